"""The benchmark's job with taskiq on RabbitMQ: an event is a task, and its text is another, kicked to the out-queue.

A taskiq broker consumes all its queues, so that the texts, which are another worker's to send, have a broker of their
own. An event is acknowledged when its task has ended, after the confirm of the text's task.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from jinja2 import Environment
from pydantic import BaseModel
from taskiq import TaskiqEvents, TaskiqState
from taskiq.serializers import ORJSONSerializer
from taskiq_aio_pika import AioPikaBroker, Exchange, Queue

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


def broker_of(queue: str) -> AioPikaBroker:
    """A broker of one queue, which is there and bound."""
    broker = AioPikaBroker(
        os.environ["BENCH_AMQP_URL"],
        qos=PREFETCH,
        exchange=Exchange(name="vumi", declare=False),
        task_queues=[Queue(name=queue, declare=False)],
    )
    return broker.with_serializer(ORJSONSerializer())


broker = broker_of("vumi.event")
texts = broker_of("sms.outbound")


@broker.on_event(TaskiqEvents.WORKER_STARTUP)
async def connect(_: TaskiqState) -> None:
    await texts.startup()


@broker.on_event(TaskiqEvents.WORKER_SHUTDOWN)
async def disconnect(_: TaskiqState) -> None:
    await texts.shutdown()


@texts.task(task_name="send_sms")
async def send_sms(message_id: str, to_addr: str, content: str) -> None:
    """For the transport that listens to sms.outbound; no worker runs it here."""


@broker.task(task_name="on_event")
async def on_event(event: Event) -> None:
    """Run the chain of an event: a contact, then a text to it."""
    chain = CHAINS.get((event.conversation_type, event.event_type))
    if chain is None or not chain.condition(event.event_data):
        return
    contact = Contact(msisdn=event.event_data.msisdn, name=event.event_data.name.title())
    await send_sms.kiq(message_id=str(uuid.uuid4()), to_addr=contact.msisdn, content=chain.render(name=contact.name))
