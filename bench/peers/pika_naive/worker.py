"""A worker as the tutorials of pika write it: one event at a time, and each publish waits for its confirm."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass

import pika
from jinja2 import Environment
from pydantic import BaseModel, ValidationError
from pydantic_core import to_json


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
PROPERTIES = pika.BasicProperties(content_type="application/json", delivery_mode=pika.DeliveryMode.Persistent)


def on_event(channel, method, _properties, body: bytes) -> None:
    try:
        event = Event.model_validate_json(body)
    except ValidationError:
        channel.basic_reject(method.delivery_tag, requeue=False)
        return
    chain = CHAINS.get((event.conversation_type, event.event_type))
    if chain is not None and chain.condition(event.event_data):
        contact = Contact(event.event_data.msisdn, event.event_data.name.title())
        text = {
            "to_addr": contact.msisdn,
            "content": chain.render(name=contact.name),
            "message_id": str(uuid.uuid4()),
        }
        # Returns once the broker has confirmed it; raises if the broker refused it, and the program ends.
        channel.basic_publish("vumi", "sms.outbound", to_json(text), PROPERTIES)
    channel.basic_ack(method.delivery_tag)


if __name__ == "__main__":
    connection = pika.BlockingConnection(pika.URLParameters(os.environ["BENCH_AMQP_URL"]))
    channel = connection.channel()
    channel.confirm_delivery()
    channel.basic_qos(prefetch_count=50)
    channel.basic_consume("vumi.event", on_event)
    channel.start_consuming()
    raise SystemExit("the broker ended the consumer")
