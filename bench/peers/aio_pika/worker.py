"""The benchmark's job with aio-pika: one process, one callback a delivery, as many at once as the prefetch allows.

aio-pika starts each callback as a task of its own, so that confirms of many texts are awaited together; its `process()`
acknowledges an event when the callback ends, after the confirm.
"""

from __future__ import annotations

import asyncio
import os
import signal
import uuid
from collections.abc import Callable
from dataclasses import dataclass

import aio_pika
import uvloop
from aio_pika.abc import AbstractIncomingMessage
from jinja2 import Environment
from pydantic import BaseModel
from pydantic_core import to_json

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


def text_of(event: Event) -> dict[str, str] | None:
    """Run the chain of an event: a contact, then a text to it."""
    chain = CHAINS.get((event.conversation_type, event.event_type))
    if chain is None or not chain.condition(event.event_data):
        return None
    contact = Contact(msisdn=event.event_data.msisdn, name=event.event_data.name.title())
    return {
        "message_id": str(uuid.uuid4()),
        "to_addr": contact.msisdn,
        "content": chain.render(name=contact.name),
    }


async def main() -> None:
    """Consume until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    connection = await aio_pika.connect_robust(os.environ["BENCH_AMQP_URL"])
    async with connection:
        channel = await connection.channel(publisher_confirms=True)
        await channel.set_qos(prefetch_count=PREFETCH)
        exchange = await channel.get_exchange("vumi")
        queue = await channel.get_queue("vumi.event")

        async def on_event(message: AbstractIncomingMessage) -> None:
            async with message.process():
                text = text_of(Event.model_validate_json(message.body))
                if text is not None:
                    body = to_json(text)
                    await exchange.publish(
                        aio_pika.Message(body, delivery_mode=aio_pika.DeliveryMode.PERSISTENT), "sms.outbound"
                    )

        await queue.consume(on_event)
        await stop.wait()


uvloop.run(main())
