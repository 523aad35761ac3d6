"""Whether a worker makes progress: pure functions from a snapshot of it to a verdict with reasons.

*Live* is red when only a restart can help: the loop has stopped turning. *Ready* is red when events are not being taken
or what they lead to does not get out, whatever the sockets say; each reason is a sentence that says what, and since
when. The broker's side is read through protocols, so that nothing here needs a broker's library.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Protocol

from dispatcher.clock import Clock

# How long something may last before it is told, in seconds. A queue that is not consumed is told at once.
LOOP_SECONDS: Final = 30.0
PAUSED_SECONDS: Final = 30.0
PUBLISHER_SECONDS: Final = 30.0
OUTBOX_SECONDS: Final = 30.0
UNACKED_SECONDS: Final = 60.0


class LinkView(Protocol):
    """A connection to the broker. Times are monotonic; `since` is when the state began."""

    @property
    def state(self) -> str:
        """`up` while there is a connection; else connecting, down, stopped."""
        ...

    @property
    def since(self) -> float:
        """When it came up, or since when it is not up."""
        ...

    @property
    def reason(self) -> str | None:
        """Why it is not up."""
        ...

    @property
    def reconnects(self) -> int:
        """How often it was made again."""
        ...

    @property
    def blocked_since(self) -> float | None:
        """Since when the broker takes nothing from us (a memory or disk alarm)."""
        ...

    @property
    def blocked_seconds(self) -> float:
        """For how long in all it did so."""
        ...


class QueueView(Protocol):
    """A queue that is to be consumed. Times are monotonic."""

    @property
    def name(self) -> str:
        """The queue's name."""
        ...

    @property
    def consuming(self) -> bool:
        """Whether the broker delivers from it."""
        ...

    @property
    def reason(self) -> str | None:
        """Why it does not."""
        ...

    @property
    def since(self) -> float:
        """Since when it is, or is not, consumed."""
        ...

    @property
    def unacked(self) -> int:
        """How many deliveries were not acked yet."""
        ...

    @property
    def oldest_unacked_since(self) -> float | None:
        """When the first of them came."""
        ...


class ConsumerView(Protocol):
    """What consumes."""

    @property
    def link(self) -> LinkView:
        """Its connection."""
        ...

    @property
    def queues(self) -> Sequence[QueueView]:
        """Every queue that is configured."""
        ...

    @property
    def stale_acks(self) -> int:
        """How many acks were dropped since the channel of their delivery was gone."""
        ...

    @property
    def delivered(self) -> int:
        """How many deliveries came."""
        ...

    @property
    def buffered(self) -> int:
        """How many of them the worker has not taken yet."""
        ...


class ExchangeView(Protocol):
    """An exchange that was published to."""

    @property
    def name(self) -> str:
        """The exchange's name."""
        ...

    @property
    def ready(self) -> bool:
        """Whether it takes messages from us."""
        ...


class PublisherView(Protocol):
    """What publishes."""

    @property
    def link(self) -> LinkView:
        """Its connection."""
        ...

    @property
    def in_flight(self) -> int:
        """How many publishes the broker has not answered yet."""
        ...

    @property
    def confirmed(self) -> int:
        """How many it took."""
        ...

    @property
    def unroutable(self) -> int:
        """How many it had no queue for."""
        ...

    @property
    def refused(self) -> int:
        """How many it would not take."""
        ...

    @property
    def unknown(self) -> int:
        """Of how many nobody knows."""
        ...

    @property
    def unsent(self) -> int:
        """How many were handed over and never written."""
        ...

    @property
    def quiet_since(self) -> float | None:
        """Since when the broker has answered nothing, though there is something to answer."""
        ...

    @property
    def exchanges(self) -> Sequence[ExchangeView]:
        """Those that were published to."""
        ...


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a worker tells about itself at one moment. `now` and whatever is `since` are monotonic, `at` is the time.

    Ages are in seconds. `consumer` and `publisher` are None where no broker is configured. The outbox's age leaves out
    what a sender's rate holds back: that is no fault.
    """

    now: float
    at: datetime
    started_at: float
    # When the loop last promised to turn, see Pulse; None before its first turn.
    turn_due: float | None
    calls: int = 0
    draining_since: float | None = None
    paused: str | None = None
    paused_since: float | None = None
    store_unusable: str | None = None
    store_unusable_since: float | None = None
    consumer: ConsumerView | None = None
    publisher: PublisherView | None = None
    oldest_outbox_due_seconds: float | None = None
    # How long the first row has waited, if the broker has confirmed nothing for so long: refused rows are never due.
    outbox_stuck_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Readiness:
    """The verdict, and why it is not what one would wish."""

    ready: bool
    reasons: tuple[str, ...] = ()


class Pulse:
    """The beat of the worker's loop: one float that the loop writes and others read: when it is to turn."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._due: float | None = None

    @property
    def due(self) -> float | None:
        """When the loop last promised to turn, on the monotonic clock; None before its first turn."""
        return self._due

    def turned(self) -> None:
        """A turn begins."""
        self._due = self._clock.monotonic()

    def sleeps(self, seconds: float) -> None:
        """The loop has nothing to do, and will turn after so many seconds at the latest."""
        self._due = self._clock.monotonic() + seconds


def late_by(snapshot: Snapshot) -> float:
    """Return by how many seconds the loop is behind the turn that it promised."""
    return 0.0 if snapshot.turn_due is None else max(0.0, snapshot.now - snapshot.turn_due)


def is_live(snapshot: Snapshot) -> Readiness:
    """Judge whether the process should go on: it should unless its loop has stopped."""
    return _verdict(_stuck(snapshot))


def is_ready(snapshot: Snapshot) -> Readiness:
    """Judge whether events are taken and what they lead to gets out."""
    return _verdict(_reasons(snapshot))


def _verdict(reasons: Iterator[str]) -> Readiness:
    found = tuple(reasons)
    return Readiness(not found, found)


def _reasons(snapshot: Snapshot) -> Iterator[str]:
    if snapshot.turn_due is None:
        yield f"starting: what the last worker left is being recovered, {_since(snapshot, snapshot.started_at)}"
    yield from _stuck(snapshot)
    if snapshot.draining_since is not None:
        calls = f"{snapshot.calls} call{'' if snapshot.calls == 1 else 's'} under way"
        yield f"draining: nothing more is taken, {calls}, {_since(snapshot, snapshot.draining_since)}"
    if snapshot.store_unusable is not None:
        since = _since(snapshot, snapshot.store_unusable_since)
        yield f"the store cannot be used: {_said(snapshot.store_unusable)}, {since}"
    if snapshot.paused is not None and _lasts(snapshot, snapshot.paused_since, PAUSED_SECONDS):
        yield f"the sources are paused: {_said(snapshot.paused)}, {_since(snapshot, snapshot.paused_since)}"
    if snapshot.consumer is not None:
        yield from _consumer(snapshot, snapshot.consumer)
    if snapshot.publisher is not None:
        yield from _publisher(snapshot, snapshot.publisher)


def _stuck(snapshot: Snapshot) -> Iterator[str]:
    if late_by(snapshot) > LOOP_SECONDS:
        yield f"the worker's loop has stopped turning, {_since(snapshot, snapshot.turn_due)}"


def _consumer(snapshot: Snapshot, consumer: ConsumerView) -> Iterator[str]:
    # Who drains has let go of the queues, which is no fault.
    if snapshot.draining_since is None:
        for queue in consumer.queues:
            if not queue.consuming:
                # What keeps the connection away is newer than what the queue was lost by.
                why = queue.reason if consumer.link.state == "up" else consumer.link.reason or queue.reason
                yield f"queue {queue.name} is not consumed{_why(why)}, {_since(snapshot, queue.since)}"
    for queue in consumer.queues:
        if _lasts(snapshot, queue.oldest_unacked_since, UNACKED_SECONDS):
            waiting = _since(snapshot, queue.oldest_unacked_since)
            yield f"{queue.unacked} deliveries of queue {queue.name} are not acked, the oldest {waiting}"


def _publisher(snapshot: Snapshot, publisher: PublisherView) -> Iterator[str]:
    link = publisher.link
    if link.state != "up":
        if _lasts(snapshot, link.since, PUBLISHER_SECONDS):
            yield f"there is no connection to publish{_why(link.reason)}, {_since(snapshot, link.since)}"
    elif _lasts(snapshot, link.blocked_since, PUBLISHER_SECONDS):
        yield f"the broker takes no publishes (a memory or disk alarm), {_since(snapshot, link.blocked_since)}"
    elif _lasts(snapshot, publisher.quiet_since, PUBLISHER_SECONDS):
        yield f"the broker does not answer what is published, {_since(snapshot, publisher.quiet_since)}"
    age = snapshot.oldest_outbox_due_seconds
    if age is not None and age > OUTBOX_SECONDS:
        yield f"the outbox is not handed out: its first row is due {_since(snapshot, snapshot.now - age)}"
        return
    age = snapshot.outbox_stuck_seconds
    if age is not None and age > OUTBOX_SECONDS:
        since = _since(snapshot, snapshot.now - age)
        yield f"messages wait, and the broker takes none, {since}; `dispatcher doctor` tells which and why"


def _lasts(snapshot: Snapshot, since: float | None, seconds: float) -> bool:
    return since is not None and snapshot.now - since > seconds


def _since(snapshot: Snapshot, since: float | None) -> str:
    if since is None:
        return "just now"
    seconds = max(0.0, snapshot.now - since)
    began = snapshot.at - timedelta(seconds=seconds)
    return f"since {began.strftime('%Y-%m-%dT%H:%M:%SZ')} ({seconds:.0f} s)"


def _why(reason: str | None) -> str:
    return f": {_said(reason)}" if reason else ""


def _said(reason: str) -> str:
    """Return what somebody else said, as a part of a sentence."""
    return reason.strip().rstrip(".")
