"""What tests against real servers need: a private RabbitMQ, a bad network, and clients that are not ours."""
