"""The job on kombu: a ConsumerProducerMixin as its documentation has it, with publisher confirms; acks after them."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from jinja2 import Environment
from kombu import Connection, Exchange, Message, Queue
from kombu.mixins import ConsumerProducerMixin
from pydantic import BaseModel, ValidationError

PREFETCH = 50
VUMI = Exchange("vumi", type="direct", durable=True)
EVENTS = Queue("vumi.event", VUMI, routing_key="vumi.event", durable=True, queue_arguments={"x-queue-type": "quorum"})


class EventData(BaseModel):
    msisdn: str
    name: str
    consent: str
    language: str
    answers: dict[str, str]


class Event(BaseModel):
    event_id: str
    account_key: str
    conversation_key: str
    conversation_type: str
    event_type: str
    event_data: EventData


@dataclass
class Contact:
    msisdn: str
    name: str


@dataclass
class Chain:
    condition: Callable[[EventData], bool]
    render: Callable[..., str]


CHAINS = {
    ("vxpolls", "poll_complete"): Chain(
        condition=lambda data: data.consent == "yes",
        render=Environment(autoescape=False).from_string("Thanks {{ name }}!").render,
    )
}


class Worker(ConsumerProducerMixin):
    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def get_consumers(self, consumer, _channel):
        return [consumer([EVENTS], on_message=self.on_event, prefetch_count=PREFETCH)]

    def on_consume_ready(self, _connection, _channel, _consumers, **_) -> None:
        self.texts = self.producer  # the mixin makes a new one each time it is asked; one for each connection will do

    def on_event(self, message: Message) -> None:
        try:
            event = Event.model_validate_json(message.body)
        except ValidationError:
            message.reject()
            return
        chain = CHAINS.get((event.conversation_type, event.event_type))
        if chain is not None and chain.condition(event.event_data):
            contact = Contact(event.event_data.msisdn, event.event_data.name.title())
            text = {
                "to_addr": contact.msisdn,
                "content": chain.render(name=contact.name),
                "message_id": str(uuid.uuid4()),
            }
            # With confirm_publish it returns once the broker has confirmed the text. Persistent is kombu's default.
            self.texts.publish(text, exchange=VUMI, routing_key="sms.outbound", serializer="json", retry=True)
        message.ack()


if __name__ == "__main__":
    with Connection(os.environ["BENCH_AMQP_URL"], transport_options={"confirm_publish": True}) as connection:
        Worker(connection).run()
