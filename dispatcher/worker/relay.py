"""The relay: hands the rows of the outbox to the publisher, and records what became of each.

A row is `sending` in the store before the publisher has it. When the worker or the connection dies meanwhile, nobody
knows whether it was published: what its receiver knows again by its message id goes again, and for everything else the
step's `on_unknown` decides.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from dispatcher import failpoints
from dispatcher.clock import Clock
from dispatcher.engine.counts import Counts
from dispatcher.engine.records import OutboxRow, as_text, as_time
from dispatcher.errors import StoreUnusable
from dispatcher.plugins.services import Service
from dispatcher.sources.amqp.publisher import Outgoing, Published, Publisher
from dispatcher.telemetry import log
from dispatcher.worker.lanes import Lane

if TYPE_CHECKING:
    from dispatcher.store.ports import Store, Transaction

# The first pause after a publish that was not taken, doubled each time, and the longest.
_FIRST_PAUSE: Final = 1.0
_LONGEST_PAUSE: Final = 60.0
_SAY_AGAIN_AFTER: Final = 60.0
_MOST_SAID: Final = 1_000
_PAUSE_AFTER_STORE_ERROR: Final = 1.0
_MANY: Final = 1_000_000
_LEFT: Final = "the worker that published it ended before the broker's confirm was recorded"
STOPPED: Final = "the worker stopped before the broker's confirm was recorded"


class Relay:
    """The outbox of one worker. Everything but the publisher's own thread runs in the worker's loop."""

    def __init__(self, publisher: Publisher, clock: Clock, totals: Counts | None = None) -> None:
        self._publisher = publisher
        self._clock = clock
        self._lanes: dict[str, Lane] = {"": Lane(_MANY, None)}
        # Lanes that may have rows waiting in the store; what comes new stands behind those that are due.
        self._waiting: set[str] = set()
        self._backlogged: set[str] = set()
        self._in_flight: dict[int, OutboxRow] = {}
        self._claimed: list[OutboxRow] = []
        self._settled: list[Published] = []
        self._said: dict[str, float] = {}
        self._last_served = ""
        self._stale = False
        # When the broker last took something, on the monotonic clock.
        self.confirmed_at: float | None = None
        self._totals = totals or Counts()

    def configure(self, connections: Mapping[str, Service]) -> None:
        """Set the bounds of each lane; `connections` are keyed as `Settled.connection` names them."""
        for name, service in connections.items():
            lane = Lane(service.concurrency, service.rate.per_second if service.rate else None)
            known = self._lanes.get(name)
            if known is not None:
                # What is under way, and what went a moment ago, counts under the new bounds too.
                lane.taken, lane.allowance, lane.counted_at = known.taken, known.allowance, known.counted_at
            self._lanes[name] = lane

    @property
    def in_flight(self) -> int:
        """How many messages were handed over, with no fate on record."""
        return len(self._in_flight)

    @property
    def waits(self) -> bool:
        """Whether rows may be waiting in the store."""
        return bool(self._waiting)

    def look_anew(self) -> None:
        """Somebody else changed what waits."""
        self._stale = True

    # At the start.

    def recover(self, store: Store) -> int:
        """Settle what an earlier worker had handed over: nobody knows of it. Return how much there was."""
        now = self._clock.now()
        with store.transaction() as transaction:
            left = transaction.outbox.sending()
            for row in left:
                self._unknown(transaction, row, STOPPED, now)
            self._waiting.update(transaction.outbox.lanes())
            self._backlogged.update(self._waiting)
            transaction.commit()
        if left:
            log.warning("outbox.recovered", messages=len(left))
        return len(left)

    def settle_left(self, transaction: Transaction, rows: Iterable[OutboxRow]) -> None:
        """Settle what another worker had handed over when it died: nobody knows of it."""
        now = self._clock.now()
        for row in rows:
            self._unknown(transaction, row, _LEFT, now)

    # Within a batch's transaction.

    def settle(self, transaction: Transaction, limit: int) -> int:
        """Record the fates that the publisher has told; return how many."""
        self._settled = results = self._publisher.results(limit)
        if not results:
            return 0
        failpoints.reach("outbox.before_record")
        now = self._clock.now()
        confirmed = []
        for published in results:
            row = self._in_flight[published.seq]
            match published.fate:
                case "confirmed":
                    confirmed.append(row)
                case "unsent":
                    self._put_off(transaction, row, row.attempt, as_time(row.not_before), _error(published))
                case "unknown":
                    self._unknown(transaction, row, published.reason or "the connection to the broker was lost", now)
                case _:
                    attempt = row.attempt + 1
                    self._put_off(transaction, row, attempt, now + _pause(attempt), _error(published))
                    self._say(published, row)
        if confirmed:
            self.confirmed_at = self._clock.monotonic()
            transaction.outbox.confirmed(confirmed)
        return len(results)

    def take_due(self, transaction: Transaction, limit: int) -> int:
        """Claim rows that are due, as far as the publisher and the rates of their lanes have room; return how many."""
        if self._stale:
            self._stale = False
            self._waiting.update(transaction.outbox.lanes())
        if not self._waiting:
            return 0
        now = as_text(self._clock.now())
        taken = 0
        # Lanes take turns: none with much to send keeps the others waiting.
        lanes = sorted(self._waiting, key=lambda lane: (lane <= self._last_served, lane))
        for lane in lanes:
            free = min(limit - taken, self._room(lane))
            if free <= 0:
                self._backlogged.add(lane)
                continue
            due = transaction.outbox.due(lane, now, free)
            # One whose fate was unknown may have been reported on while it waited: it did go out.
            over = transaction.outbox.confirm_reported(due)
            # And somebody may have asked for no more texts since.
            over |= transaction.outbox.withdraw_opted_out(row for row in due if row.seq not in over)
            rows = [row for row in due if row.seq not in over] if over else due
            transaction.outbox.claim(rows)
            for row in rows:
                self._claim(row)
            taken += len(due)
            self._last_served = lane
            if len(due) == free:
                self._backlogged.add(lane)
                continue
            self._backlogged.discard(lane)
            if transaction.outbox.next_due(lane) is None:
                self._waiting.discard(lane)
        return taken

    def claim(self, rows: Iterable[OutboxRow]) -> None:
        """Take new rows of the batch along, before they are written, where nothing stands before them."""
        room, now = self._publisher.room - len(self._claimed), self._clock.monotonic()
        for row in rows:
            if room > 0 and row.lane not in self._backlogged and self._lane(row.lane).room(now) > 0:
                room -= 1
                row.state = "sending"
                self._claim(row)
            else:
                self._wait(row.lane)

    # After it.

    def committed(self, prove: Callable[[], None]) -> None:
        """Hand over what was claimed, and forget what was settled: both are on record now.

        `prove` is called before anything is handed over; see `Store.prove`.
        """
        for published in self._settled:
            row = self._in_flight.pop(published.seq)
            self._lane(row.lane).taken -= 1
        if self._settled:
            self._publisher.forget(len(self._settled))
            self._settled = []
        if self._claimed:
            claimed, self._claimed = self._claimed, []
            self._in_flight.update((row.seq, row) for row in claimed)
            failpoints.reach("outbox.before_publish")
            prove()
            self._publisher.publish([_outgoing(row) for row in claimed])

    def rolled_back(self) -> None:
        """Nothing of the transaction was kept: what was claimed is not handed over, what was settled is told anew."""
        self._settled = []
        for row in self._claimed:
            self._lane(row.lane).taken -= 1
            self._wait(row.lane)
        self._claimed = []

    def wants_turn(self) -> bool:
        """Whether the publisher has told something that is not on record."""
        return bool(self._publisher.results(1))

    def next_due(self, store: Store) -> float | None:
        """Return in how many seconds a row may be handed over; None when only the publisher can tell."""
        if not self._waiting or self._publisher.room <= 0:
            return None
        pauses = []
        monotonic, now = self._clock.monotonic(), self._clock.now()
        for lane in self._waiting:
            try:
                due = store.next_outbox_due(lane)
            except StoreUnusable:
                return _PAUSE_AFTER_STORE_ERROR  # the next turn tells of it, or finds it mended
            bound = self._lane(lane)
            pause = 0.0 if bound.room(monotonic) else bound.pause(monotonic)
            if due is not None and pause is not None:
                pauses.append(max((as_time(due) - now).total_seconds(), pause))
        return max(0.0, min(pauses)) if pauses else None

    def has_due(self, store: Store) -> bool:
        """Whether a row may be handed over by now, if not for a rate or a publisher without room."""
        now = as_text(self._clock.now())
        return any((at := store.next_outbox_due(lane)) is not None and at <= now for lane in self._waiting)

    # Helpers of the above.

    def _wait(self, lane: str) -> None:
        """A row of this lane waits in the store: what comes new stands behind it, until it is seen not to be due."""
        self._waiting.add(lane)
        self._backlogged.add(lane)

    def _room(self, lane: str) -> int:
        room = self._publisher.room - len(self._claimed)
        return min(room, self._lane(lane).room(self._clock.monotonic()))

    def _lane(self, name: str) -> Lane:
        """Return a lane; one whose sender has left the rulebook keeps no rate, and empties."""
        if name not in self._lanes:
            self._lanes[name] = Lane(_MANY, None)
        return self._lanes[name]

    def _claim(self, row: OutboxRow) -> None:
        self._lane(row.lane).take()
        self._claimed.append(row)

    def _unknown(self, transaction: Transaction, row: OutboxRow, reason: str, now: datetime) -> None:
        if transaction.outbox.confirm_reported([row]):
            return
        if row.on_unknown == "resend":
            # At once; but what keeps ending the connection must not do so as fast as it comes back.
            attempt = row.attempt + 1
            self._put_off(transaction, row, attempt, now + _pause(attempt) if row.attempt else now, reason)
            return
        settle = transaction.outbox.hold if row.on_unknown == "hold" else transaction.outbox.give_up
        if settle(row, reason, now):
            self._totals.parked("unknown")

    def _put_off(self, transaction: Transaction, row: OutboxRow, attempt: int, at: datetime, error: str | None) -> None:
        transaction.outbox.put_off(row, attempt=attempt, not_before=as_text(at), error=error)
        self._wait(row.lane)

    def _say(self, published: Published, row: OutboxRow) -> None:
        """Tell that the broker does not take a message: once a minute for each reason."""
        now = self._clock.monotonic()
        key = f"{published.fate} {row.destination}"
        if now >= self._said.get(key, 0.0):
            if len(self._said) >= _MOST_SAID:  # event types from outside make destinations
                self._said.clear()
            self._said[key] = now + _SAY_AGAIN_AFTER
            log.error(
                "outbox.refused", fate=published.fate, destination=row.destination, reason=published.reason,
                attempt=row.attempt + 1,
            )  # fmt: skip


def _error(published: Published) -> str | None:
    """Say why a message is not with the broker yet."""
    return None if published.reason is None else f"{published.fate}: {published.reason}"


def _pause(attempt: int) -> timedelta:
    """Return how long to wait before the next attempt: exponential, with full jitter above half."""
    longest = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** (attempt - 1))
    return timedelta(seconds=longest * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, no secret


def _outgoing(row: OutboxRow) -> Outgoing:
    exchange, routing_key = row.address
    return Outgoing(row.seq, exchange, routing_key, row.body.encode(), row.message_id)
