"""Hands events over to RabbitMQ from a command line: publishes what it is given and waits until all is confirmed.

A publisher for a few seconds or minutes: it neither keeps nor repeats anything. At the first message that the broker
does not confirm nothing more is handed over, so that whoever called can say from where on to begin again.
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterable
from threading import Event
from typing import TYPE_CHECKING, Final, Self

from dispatcher.errors import BrokerUnreachable
from dispatcher.events.identity import uuid7
from dispatcher.sources.amqp.fates import Outgoing, Published
from dispatcher.sources.amqp.publisher import WINDOW, Publisher

if TYPE_CHECKING:
    from dispatcher.settings import Settings

# How much may be on its way at once; a window full of the largest events would be gigabytes.
_MOST_BYTES: Final = 16 * 2**20
# The broker's answers wake us; this only bounds how late a lost connection is seen.
_LOOK_SECONDS: Final = 0.05
# Beyond the time that a broker may be blocked: then nothing moves any more.
_GRACE_SECONDS: Final = 15.0
# Whoever publishes by hand waits for a blocked broker so long, however long a worker would.
_PATIENCE_SECONDS: Final = 60.0
_LONGEST_ID: Final = 255


def message_id(event_id: str | None) -> str:
    """Return the AMQP message id of an event: its own id, or, where it has none, a new one.

    The worker takes a message id for the event's id, so that a repeated delivery is told from a new event. An id that
    is too long for AMQP (255 bytes) is represented by its digest.
    """
    if not event_id:
        return uuid7(time.time_ns() // 1_000_000)
    encoded = event_id.encode()
    return event_id if len(encoded) <= _LONGEST_ID else hashlib.sha256(encoded).hexdigest()


class Handover:
    """Publishes to the exchange and the first queue of the settings. A context; entering it connects.

    `confirmed` counts; `failures` are the messages that were handed over and not confirmed, at most a window of them.
    """

    def __init__(self, settings: Settings, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._exchange = settings.amqp_exchange
        self._key = settings.amqp_queue_names[0]
        self._patience = min(settings.amqp_blocked_seconds, _PATIENCE_SECONDS) + _GRACE_SECONDS
        self._monotonic = monotonic
        self._woken = Event()
        # What is missing is the worker's to make: only it knows with which arguments.
        self._publisher = Publisher(settings.model_copy(update={"amqp_declare": False}), self._woken.set)
        self._sizes: dict[int, int] = {}
        self._bytes = 0
        self._moved = monotonic()
        self.confirmed = 0
        self.failures: list[Published] = []
        self.stuck: str | None = None

    def __enter__(self) -> Self:
        """Connect. Raises BrokerUnreachable when the first attempt fails."""
        self._publisher.start()
        while not self._publisher.room:
            link = self._publisher.status.link
            if link.state == "down":
                self._publisher.stop(0.0)
                raise BrokerUnreachable(
                    f"{link.reason or 'there is no connection to the broker'}.",
                    hint="`dispatcher doctor` looks closer.",
                )
            self._pause()
        self._moved = self._monotonic()
        return self

    def __exit__(self, failed: object, *_: object) -> None:
        self._publisher.stop(0.0 if failed else 5.0)

    def send(self, messages: Iterable[tuple[int, bytes, str]]) -> int | None:
        """Hand over (number, body, message id) in order, as the broker takes them; numbers are never used twice.

        Returns None when all are handed over, else the number of the first that was not: one before it failed (see
        `failures`), or nothing moves any more (see `stuck`).
        """
        waiting = deque(messages)
        while waiting:
            self._collect()
            if self.failures or self.stuck:
                return waiting[0][0]
            room = self._publisher.room
            batch: list[Outgoing] = []
            while waiting and len(batch) < room and (self._bytes < _MOST_BYTES or not self._sizes):
                number, body, identity = waiting.popleft()
                self._sizes[number] = len(body)
                self._bytes += len(body)
                batch.append(Outgoing(number, self._exchange, self._key, body, identity))
            if batch:
                self._publisher.publish(batch)
            else:
                self._wait()
        return None

    def finish(self) -> None:
        """Wait until everything that was handed over is confirmed, or is not."""
        self._collect()
        while self._sizes:
            self._wait()
            self._collect()

    def _collect(self) -> None:
        results = self._publisher.results(WINDOW)
        for result in results:
            self._bytes -= self._sizes.pop(result.seq)
            if result.fate == "confirmed":
                self.confirmed += 1
            else:
                self.failures.append(result)
        if results:
            self._publisher.forget(len(results))
            self._moved = self._monotonic()

    def _wait(self) -> None:
        self._pause()
        if self._monotonic() - self._moved > self._patience:
            link = self._publisher.status.link
            self.stuck = link.reason or f"the broker has taken nothing for {self._patience:g} seconds"
            # What is on its way is unknown from now on, and comes back as such.
            self._publisher.stop(0.0)

    def _pause(self) -> None:
        self._woken.wait(_LOOK_SECONDS)
        self._woken.clear()
