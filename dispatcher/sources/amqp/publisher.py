"""Publishes to RabbitMQ: messages go in, exactly one fate for each comes out. Neither retries nor stores anything.

The worker's thread hands messages over and takes fates back; a link's thread speaks to the broker, and the two only
exchange values. Confirms are pipelined, up to a window of messages. Publishing has a connection of its own, since a
broker that is short of memory or disk stops reading from whoever publishes.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

from pika.adapters.select_connection import SelectConnection

from dispatcher.engine.records import EVENT_EXCHANGE
from dispatcher.settings import Settings
from dispatcher.sources.amqp.fates import Fate, Outgoing, Published
from dispatcher.sources.amqp.gathering import gathered
from dispatcher.sources.amqp.link import Link, LinkStatus, Role
from dispatcher.sources.amqp.outlet import ExchangeStatus, Outlet

__all__ = ["WINDOW", "Fate", "Outgoing", "Published", "Publisher", "PublisherStatus"]

WINDOW: Final = 1_000
"""How many messages may be handed over without an answer."""

_DOWN = "there was no connection to the broker"


@dataclass(frozen=True, slots=True)
class PublisherStatus:
    """What the publisher is at, and what it has seen since it was made. Times are on the monotonic clock.

    `in_flight` counts what was handed over and has no fate yet; `quiet_since` tells since when the broker has answered
    nothing although something is written.
    """

    link: LinkStatus
    in_flight: int
    confirmed: int
    unroutable: int
    refused: int
    unknown: int
    unsent: int
    quiet_since: float | None
    exchanges: tuple[ExchangeStatus, ...]


class Publisher:
    """One connection to publish by.

    `wake` is called, from any thread, when there is a result after there was none, and when there may be room again.
    """

    def __init__(
        self,
        settings: Settings,
        wake: Callable[[], None],
        *,
        window: int = WINDOW,
        monotonic: Callable[[], float] = time.monotonic,
        make_link: Callable[[str, Settings, Role], Link] = Link,
    ) -> None:
        self._wake = wake
        self._window = window
        self._monotonic = monotonic
        # What may be created: the two exchanges that belong to us.
        self._kinds = {EVENT_EXCHANGE: "topic", settings.amqp_exchange: "direct"} if settings.amqp_declare else {}
        self._link = make_link("publisher", settings, self)

        self._lock = threading.Lock()
        self._all_told = threading.Condition(self._lock)
        self._outstanding = 0
        self._results: deque[Published] = deque()
        self._counts: Counter[Fate] = Counter()

        self._handed: deque[Outgoing] = deque()
        self._up = False
        self._blocked = False
        self._stopping = False

        # Of the link's thread alone.
        self._connection: SelectConnection | None = None
        self._outlets: dict[str, Outlet] = {}

    def start(self) -> None:
        """Connect, and stay connected, in a thread of its own. Returns at once."""
        self._link.start()

    def stop(self, patience_seconds: float) -> None:
        """Take no more, wait for the answers that are due, close. What has no answer by then is `unknown`."""
        deadline = self._monotonic() + patience_seconds
        self._stopping = True
        with self._all_told:
            self._all_told.wait_for(lambda: not self._outstanding, patience_seconds)
        self._link.stop(max(0.0, deadline - self._monotonic()))
        self.disconnected("the publisher was stopped")

    @property
    def room(self) -> int:
        """How many messages may be handed over now: none while the connection is down, blocked or stopping."""
        if not self._up or self._blocked or self._stopping:
            return 0
        return max(0, self._window - self._outstanding)

    def publish(self, messages: Sequence[Outgoing]) -> None:
        """Hand messages over, at most `room`. Returns at once; each gets exactly one `Published`, whatever happens."""
        if not messages:
            return
        with self._lock:
            self._outstanding += len(messages)
        # First handed, then looked: `disconnected` does it the other way round, so that one of the two sees them.
        self._handed.extend(messages)
        if self._stopping or not self._up:
            self._unsend(_DOWN)
        else:
            self._link.call(self._pump)

    def results(self, limit: int) -> list[Published]:
        """Return the oldest results, at most `limit`; they stay until they are forgotten."""
        with self._lock:
            return list(islice(self._results, limit))

    def forget(self, count: int) -> None:
        """Drop the oldest `count` results: they are recorded."""
        with self._lock:
            for _ in range(count):
                self._results.popleft()
            more = bool(self._results)
        if more:  # they came while the others were there, when nobody was woken
            self._wake()

    @property
    def status(self) -> PublisherStatus:
        """What the publisher is at (any thread)."""
        outlets = list(self._outlets.values())
        with self._lock:
            counts, in_flight = self._counts.copy(), self._outstanding
        return PublisherStatus(
            link=self._link.status,
            in_flight=in_flight,
            confirmed=counts["confirmed"],
            unroutable=counts["unroutable"],
            refused=counts["refused"],
            unknown=counts["unknown"],
            unsent=counts["unsent"],
            quiet_since=min((since for outlet in outlets if (since := outlet.quiet_since) is not None), default=None),
            exchanges=tuple(outlet.status for outlet in outlets),
        )

    # The role of the link: what follows is called in its thread.

    def connected(self, connection: SelectConnection) -> None:
        """Publish through this connection from now on."""
        connection.add_on_connection_blocked_callback(self._on_blocked)
        connection.add_on_connection_unblocked_callback(self._on_unblocked)
        self._connection = connection
        self._up = True
        self._pump()
        self._wake()

    def ticked(self) -> None:
        """Take up what nobody called for: a link that came up at that very moment may have missed it."""
        self._pump()

    def disconnected(self, reason: str) -> None:
        """Tell the fates of all messages: what was written is unknown, what was not is unsent."""
        self._up = False
        self._connection = None
        self._blocked = False
        for outlet in self._outlets.values():
            outlet.lost(reason)
        self._unsend(reason)

    def _on_blocked(self, *_: Any) -> None:
        self._blocked = True  # the link logs it, and ends the connection when it takes too long

    def _on_unblocked(self, *_: Any) -> None:
        self._blocked = False
        self._pump()
        self._wake()

    def _pump(self) -> None:
        connection = self._connection
        if connection is None or self._blocked:
            return
        while (message := self._next()) is not None:
            outlet = self._outlets.get(message.exchange)
            if outlet is None:
                outlet = self._outlets[message.exchange] = self._make_outlet(message.exchange)
            outlet.add(message)
        with gathered(connection):
            for outlet in self._outlets.values():
                outlet.pump(connection)

    def _make_outlet(self, exchange: str) -> Outlet:
        return Outlet(
            exchange,
            kind=self._kinds.get(exchange),
            window=self._window,
            settle=self._settle,
            more=self._pump,
            monotonic=self._monotonic,
        )

    def _next(self) -> Outgoing | None:
        try:
            return self._handed.popleft()
        except IndexError:
            return None

    def _unsend(self, reason: str) -> None:
        """Give back what never left our hands (any thread)."""
        unsent = []
        while (message := self._next()) is not None:
            unsent.append(Published(message.seq, "unsent", reason))
        if unsent:
            self._settle(unsent)

    def _settle(self, told: Sequence[Published]) -> None:
        with self._lock:
            first = not self._results
            self._results.extend(told)
            self._outstanding -= len(told)
            for published in told:
                self._counts[published.fate] += 1
            if not self._outstanding:
                self._all_told.notify_all()
        if first:
            self._wake()
