"""The limit for our job on PostgreSQL: a hand-written loop on pika's SelectConnection, with a journal through psycopg.

What comes within one tick of the loop is one transaction, on the server's disk when it returns (synchronous_commit on):
each event's contact and two rows of a ledger, one for each step. Only then are its texts published, with pipelined
confirms; the events whose texts are confirmed are acked once per tick, all of them at once. The ledger says what was
done and guards nothing: after a crash, events that were not acked are worked off again. SIGTERM ends it as it ends any
process.
"""

from __future__ import annotations

import gc
import logging
import os
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import psycopg
from jinja2 import Environment
from pika import BasicProperties, SelectConnection, URLParameters
from pika.spec import Basic
from pydantic import BaseModel, ValidationError
from pydantic_core import to_json

PREFETCH = 1000
SCHEMA = """
CREATE TABLE IF NOT EXISTS contacts (
    account_key text NOT NULL, msisdn text NOT NULL, name text NOT NULL, updated_at timestamptz NOT NULL,
    PRIMARY KEY (account_key, msisdn)
);
CREATE TABLE IF NOT EXISTS ledger (
    seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, event_id text NOT NULL, step text NOT NULL,
    outcome text NOT NULL, message_id text, at timestamptz NOT NULL
);
"""
# Both tables in one statement: it is a transaction by itself, and one round trip.
WRITE = """
WITH upserted AS (
    INSERT INTO contacts (account_key, msisdn, name, updated_at)
    SELECT account_key, msisdn, name, %(now)s
    FROM unnest(%(accounts)s::text[], %(msisdns)s::text[], %(names)s::text[]) AS new (account_key, msisdn, name)
    ON CONFLICT (account_key, msisdn) DO UPDATE SET name = excluded.name, updated_at = excluded.updated_at
)
INSERT INTO ledger (event_id, step, outcome, message_id, at)
SELECT event_id, step, outcome, message_id, %(now)s
FROM unnest(%(event_ids)s::text[], %(steps)s::text[], %(outcomes)s::text[], %(message_ids)s::text[])
    AS new (event_id, step, outcome, message_id)
"""
log = logging.getLogger("worker")


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


@dataclass(slots=True)
class Contact:
    msisdn: str
    name: str


@dataclass(slots=True)
class Chain:
    condition: Callable[[EventData], bool]
    render: Callable[..., str]


CHAINS = {
    ("vxpolls", "poll_complete"): Chain(
        condition=lambda data: data.consent == "yes",
        render=Environment(autoescape=False).from_string("Thanks {{ name }}!").render,
    )
}


def a_text(event: Event, chain: Chain, contact: Contact, message_id: str, stamp: str) -> bytes:
    """Return the text to a contact as a Vumi transport reads it."""
    return to_json(
        {
            "message_version": "20110921",
            "message_type": "user_message",
            "timestamp": stamp,
            "message_id": message_id,
            "to_addr": contact.msisdn,
            "from_addr": "+27820000000",
            "content": chain.render(name=contact.name),
            "transport_name": "sms",
            "transport_type": "sms",
            "to_addr_type": "msisdn",
            "from_addr_type": None,
            "in_reply_to": None,
            "session_event": None,
            "group": None,
            "provider": None,
            "transport_metadata": {},
            "helper_metadata": {
                "go": {
                    "user_account": event.account_key,
                    "conversation_type": event.conversation_type,
                    "conversation_key": event.conversation_key,
                }
            },
            "routing_metadata": {"endpoint_name": "default"},
        }
    )


class Journal:
    """Contacts and a ledger of steps in PostgreSQL; what `write` has written is on its disk."""

    def __init__(self, url: str) -> None:
        self.store = psycopg.connect(url, autocommit=True)
        self.store.execute("SET synchronous_commit = on")
        self.store.execute(SCHEMA)

    def write(self, names: dict[tuple[str, str], str], ledger: list[tuple], now: datetime) -> None:
        # In order of their keys: two workers then never wait for each other's contacts crosswise.
        keys = sorted(names)
        accounts, msisdns = zip(*keys, strict=True)
        event_ids, steps, outcomes, message_ids = map(list, zip(*ledger, strict=True))
        values = {
            "now": now,
            "accounts": list(accounts),
            "msisdns": list(msisdns),
            "names": [names[key] for key in keys],
            "event_ids": event_ids,
            "steps": steps,
            "outcomes": outcomes,
            "message_ids": message_ids,
        }
        self.store.execute(WRITE, values, prepare=True)


class Worker:
    def __init__(self, url: str, journal: Journal) -> None:
        self.journal = journal
        # One for all texts: pika writes it out within the call of basic_publish.
        self.properties = BasicProperties(
            content_type="application/json", content_encoding="utf-8", delivery_mode=2, message_id=""
        )
        # (number of its publish or 0, delivery tag) of the events in hand, in the order in which they came
        self.in_hand: deque[tuple[int, int]] = deque()
        self.delivered: list[tuple[int, bytes]] = []  # (delivery tag, body) of what came within this tick
        self.published = 0
        self.confirmed_up_to = 0
        self.confirmed_beyond: set[int] = set()
        self.settling = False
        self.connection = SelectConnection(
            URLParameters(url),
            on_open_callback=lambda connection: connection.channel(on_open_callback=self.on_channel),
            on_open_error_callback=self.on_end,
            on_close_callback=self.on_end,
        )
        self.ioloop = self.connection.ioloop

    def run(self) -> None:
        self.ioloop.start()

    def on_end(self, _: object, reason: BaseException | str) -> None:
        raise SystemExit(f"the connection ended: {reason}")

    def on_channel(self, channel) -> None:
        self.channel = channel
        channel.add_on_close_callback(self.on_end)
        channel.confirm_delivery(self.on_answer, callback=self.on_confirms)

    def on_confirms(self, _: object) -> None:
        self.channel.basic_qos(prefetch_count=PREFETCH, callback=self.on_qos)

    def on_qos(self, _: object) -> None:
        self.channel.add_on_cancel_callback(lambda _: self.on_end(None, "the queue is gone"))
        self.channel.basic_consume("vumi.event", self.on_delivery)

    def on_delivery(self, _channel, method: Basic.Deliver, _: BasicProperties, body: bytes) -> None:
        if not self.delivered:
            self.ioloop.call_later(0, self.work)
        self.delivered.append((method.delivery_tag, body))

    def work(self) -> None:
        """Work off what came within this tick: one transaction for all of it, and the texts after that."""
        delivered, self.delivered = self.delivered, []
        now = datetime.now(UTC)
        stamp = now.replace(tzinfo=None).isoformat(" ", "microseconds")
        contacts: dict[tuple[str, str], str] = {}  # no statement may write a row twice
        ledger, texts, tags = [], [], []
        for tag, body in delivered:
            try:
                event = Event.model_validate_json(body)
            except ValidationError as error:
                log.warning("rejected: %s", error)
                self.channel.basic_reject(tag, requeue=False)
                continue
            chain = CHAINS.get((event.conversation_type, event.event_type))
            if chain is None or not chain.condition(event.event_data):
                tags.append((tag, False))
                continue
            message_id = str(uuid.uuid4())
            contact = Contact(event.event_data.msisdn, event.event_data.name.title())
            contacts[event.account_key, contact.msisdn] = contact.name
            ledger.append((event.event_id, "contact", "done", None))
            ledger.append((event.event_id, "text", "sent", message_id))
            texts.append((message_id, a_text(event, chain, contact, message_id, stamp)))
            tags.append((tag, True))
        if texts:
            self.journal.write(contacts, ledger, now)
        self.publish(tags, texts)

    def publish(self, tags: list[tuple[int, bool]], texts: list[tuple[str, bytes]]) -> None:
        publish, properties = self.channel.basic_publish, self.properties
        for message_id, body in texts:
            properties.message_id = message_id
            publish("vumi", "sms.outbound", body, properties)
        for tag, has_text in tags:
            self.published += has_text
            self.in_hand.append((self.published if has_text else 0, tag))
        if len(texts) < len(tags):
            self.settle_soon()

    def on_answer(self, frame) -> None:
        method = frame.method
        if not isinstance(method, Basic.Ack):
            raise SystemExit("the broker refused a text")
        if method.multiple:
            self.confirmed_up_to = max(self.confirmed_up_to, method.delivery_tag)
        elif method.delivery_tag == self.confirmed_up_to + 1:
            self.confirmed_up_to += 1
        else:
            self.confirmed_beyond.add(method.delivery_tag)
        self.settle_soon()

    def settle_soon(self) -> None:
        """Have what this tick confirms acked together, at its end."""
        if not self.settling:
            self.settling = True
            self.ioloop.call_later(0, self.settle)

    def settle(self) -> None:
        self.settling = False
        in_hand, beyond = self.in_hand, self.confirmed_beyond
        last = 0
        while in_hand:
            number, tag = in_hand[0]
            if number > self.confirmed_up_to:
                if number not in beyond:
                    break
                self.confirmed_up_to = number
            beyond.discard(number)
            in_hand.popleft()
            last = tag
        if last:
            self.channel.basic_ack(last, multiple=True)


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    gc.freeze()
    gc.set_threshold(50_000)  # nothing here makes cycles worth looking for after every 700 objects
    Worker(os.environ["BENCH_AMQP_URL"], Journal(os.environ["BENCH_STORE"])).run()
