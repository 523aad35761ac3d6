"""Publishers and readers that are not the dispatcher's: what they saw is the ledger that a test believes."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import pika
import pika.exceptions
import pytest
from kombu.connection import Connection
from kombu.messaging import Producer
from pika.adapters.blocking_connection import BlockingChannel

from tests.harness.waiting import wait_until

CONFIRM_WINDOW = 1000
PATIENCE = 30


@dataclass(frozen=True)
class Read:
    """A message as it was read from a queue."""

    body: bytes
    properties: pika.BasicProperties
    exchange: str
    routing_key: str
    redelivered: bool


def amqp_publish(url: str, exchange: str, routing_key: str, body: bytes | str, *flags: str) -> None:
    """Publish with amqp-tools, a client in C (persistent, without a confirm); skips the test where it is missing."""
    program = shutil.which("amqp-publish")
    if program is None:
        pytest.skip("amqp-publish is not installed (Debian: apt install amqp-tools; `make test` does it as root)")
    command = [program, f"--url={url}", f"--exchange={exchange}", f"--routing-key={routing_key}", "--persistent"]
    content = body.encode() if isinstance(body, str) else body
    done = subprocess.run([*command, *flags], input=content, capture_output=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr.decode(errors="replace")


def kombu_publish(url: str, exchange: str, routing_key: str, body: Any, **properties: Any) -> None:
    """Publish with kombu and py-amqp (confirmed): as JSON unless `serializer` or `content_type` say otherwise.

    Other properties are those of kombu's Producer.publish: message_id, headers, priority, ...
    """
    with Connection(url, transport_options={"confirm_publish": True}) as connection:
        Producer(connection.channel()).publish(
            body, exchange=exchange, routing_key=routing_key, delivery_mode=2, mandatory=True, **properties
        )


def publish_many(
    url: str,
    exchange: str,
    routing_key: str,
    bodies: Iterable[bytes],
    *,
    message_ids: Iterable[str] | None = None,
    headers: Mapping[str, Any] | None = None,
) -> int:
    """Publish persistent messages with pipelined confirms, thousands a second; how many there were.

    Returns once all are confirmed; AssertionError when the broker refused or returned one.
    """
    publisher = _Pipeline(exchange, routing_key, bodies, message_ids, headers)
    connection = pika.SelectConnection(
        pika.URLParameters(url),
        on_open_callback=publisher.opened,
        on_open_error_callback=publisher.failed,
        on_close_callback=publisher.failed,
    )
    publisher.connection = connection
    connection.ioloop.start()
    connection.ioloop.close()
    assert publisher.problem is None, f"{publisher.problem} (after {publisher.confirmed} confirms)"
    return publisher.confirmed


class _Pipeline:
    """Keeps a window of unconfirmed messages full until all are confirmed."""

    def __init__(
        self,
        exchange: str,
        routing_key: str,
        bodies: Iterable[bytes],
        message_ids: Iterable[str] | None,
        headers: Mapping[str, Any] | None,
    ) -> None:
        self.connection: Any = None
        self.problem: str | None = None
        self.confirmed = 0
        self._sent = 0
        self._done = False
        self._exchange, self._routing_key = exchange, routing_key
        self._messages = self._each(bodies, message_ids, headers)

    def _each(
        self, bodies: Iterable[bytes], message_ids: Iterable[str] | None, headers: Mapping[str, Any] | None
    ) -> Iterator[tuple[bytes, pika.BasicProperties]]:
        ids = iter(message_ids) if message_ids is not None else None
        for body in bodies:
            yield (
                body,
                pika.BasicProperties(
                    delivery_mode=2,
                    content_type="application/json",
                    message_id=next(ids) if ids is not None else None,
                    headers=dict(headers) if headers else None,
                ),
            )

    def opened(self, connection: Any) -> None:
        connection.channel(on_open_callback=self._channel_opened)

    def _channel_opened(self, channel: Any) -> None:
        self._channel = channel
        channel.add_on_close_callback(lambda _channel, reason: self._end(str(reason)))
        channel.add_on_return_callback(lambda _channel, method, *_: self._end(f"returned: {method.reply_text}"))
        channel.confirm_delivery(self._answered, callback=lambda _frame: self._fill())

    def _fill(self) -> None:
        while self._sent - self.confirmed < CONFIRM_WINDOW:
            message = next(self._messages, None)
            if message is None:
                self._done = True
                break
            body, properties = message
            self._channel.basic_publish(self._exchange, self._routing_key, body, properties, mandatory=True)
            self._sent += 1
        if self._done and self.confirmed == self._sent:
            self._end(None)

    def _answered(self, frame: Any) -> None:
        if isinstance(frame.method, pika.spec.Basic.Nack):
            self._end("the broker refused a message")
            return
        # Tags count from 1, and an answer to several covers all up to its tag; single ones may come out of order.
        self.confirmed = max(self.confirmed + 1, frame.method.delivery_tag if frame.method.multiple else 0)
        if self._sent - self.confirmed <= CONFIRM_WINDOW // 2 or self._done:
            self._fill()

    def _end(self, problem: str | None) -> None:
        if self.connection.is_open:
            self.problem = problem
            self.connection.close()

    def failed(self, connection: Any, reason: Any) -> None:
        if not (self._done and self.confirmed == self._sent) and self.problem is None:
            self.problem = str(reason)
        connection.ioloop.stop()


def drain(url: str, queue: str) -> list[Read]:
    """Take all that is ready in a queue, oldest first."""
    messages: list[Read] = []
    with _channel(url) as channel:
        # Asking for one at a time costs a quorum queue half a millisecond each.
        while waiting := channel.queue_declare(queue, passive=True).method.message_count:
            for method, properties, body in channel.consume(queue):
                messages.append(Read(body, properties, method.exchange, method.routing_key, method.redelivered))
                waiting -= 1
                # A quorum queue hands out at most 2,000 that are not acknowledged.
                if not waiting or len(messages) % 500 == 0:
                    channel.basic_ack(method.delivery_tag, multiple=True)
                if not waiting:
                    break
            channel.cancel()  # gives back what came since
    return messages


@contextlib.contextmanager
def _channel(url: str) -> Iterator[BlockingChannel]:
    connection = pika.BlockingConnection(pika.URLParameters(url))
    try:
        yield connection.channel()
    finally:
        if connection.is_open:
            connection.close()


class Reader:
    """Reads queues in a thread of its own into `ledger`, through whatever happens to the broker; a context manager.

    What was read just before a connection broke comes again, `redelivered`: count by message_id.
    """

    def __init__(self, url: str, *queues: str) -> None:
        self.url, self.queues = url, queues
        self.ledger: list[Read] = []
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._read, name="reader", daemon=True)

    def wait_for(self, count: int, seconds: float = PATIENCE) -> list[Read]:
        """Wait until so many messages were read, and return all."""
        wait_until(
            lambda: len(self.ledger) >= count, f"{count} messages from {', '.join(self.queues)}", seconds=seconds
        )
        return list(self.ledger)

    def _read(self) -> None:
        while not self._ending.is_set():
            with contextlib.suppress(pika.exceptions.AMQPError, OSError):
                self._read_connection()
            self._ending.wait(0.1)

    def _read_connection(self) -> None:
        with _channel(self.url) as channel:
            channel.basic_qos(prefetch_count=500)
            for queue in self.queues:
                channel.basic_consume(queue, self._delivered)
            while not self._ending.is_set() and channel.is_open and channel.consumer_tags:
                channel.connection.process_data_events(time_limit=0.05)

    def _delivered(self, channel: Any, method: Any, properties: pika.BasicProperties, body: bytes) -> None:
        self.ledger.append(Read(body, properties, method.exchange, method.routing_key, method.redelivered))
        channel.basic_ack(method.delivery_tag)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ending.set()
        self._thread.join(PATIENCE)
