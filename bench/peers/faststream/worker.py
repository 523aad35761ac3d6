"""The benchmark's job with FastStream on RabbitMQ: a typed subscriber and a publisher.

FastStream validates the event by the handler's annotation and acknowledges it when the handler has ended, after the
confirm of the text.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from faststream import AckPolicy, FastStream
from faststream.rabbit import Channel, QueueType, RabbitBroker, RabbitExchange, RabbitQueue
from jinja2 import Environment
from pydantic import BaseModel

PREFETCH = 200


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


class Text(BaseModel):
    message_id: str
    to_addr: str
    content: str


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

# Its log of each message's arrival and end is left out: no other contestant writes one.
broker = RabbitBroker(
    os.environ["BENCH_AMQP_URL"], default_channel=Channel(prefetch_count=PREFETCH, publisher_confirms=True), logger=None
)
app = FastStream(broker)
vumi = RabbitExchange("vumi", durable=True)
events = RabbitQueue("vumi.event", queue_type=QueueType.QUORUM, durable=True)
texts = broker.publisher("sms.outbound", exchange=vumi, persist=True)


@broker.subscriber(events, vumi, ack_policy=AckPolicy.NACK_ON_ERROR)
async def on_event(event: Event) -> None:
    """Run the chain of an event: a contact, then a text to it."""
    chain = CHAINS.get((event.conversation_type, event.event_type))
    if chain is None or not chain.condition(event.event_data):
        return
    contact = Contact(msisdn=event.event_data.msisdn, name=event.event_data.name.title())
    await texts.publish(
        Text(message_id=str(uuid.uuid4()), to_addr=contact.msisdn, content=chain.render(name=contact.name))
    )
