"""RabbitMQ: events are consumed from it, and what the outbox holds is published to it. The only user of pika."""
