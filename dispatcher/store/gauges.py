"""What a store holds that is yet to be done, counted for metrics and readiness: by a connection of its own, read-only.

It runs beside a worker that writes, in another thread, and must stay cheap with a million rows: each statement is one
walk over a partial index that holds open rows only. No SQLAlchemy: a worker that is scraped need not import it.
"""

from __future__ import annotations

import math
import shutil
import sqlite3
import threading
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

from dispatcher.clock import Clock
from dispatcher.engine.records import OPEN_LANE, as_text, as_time
from dispatcher.errors import StoreUnusable
from dispatcher.settings import Settings

_PATIENCE_SECONDS: Final = 1.0
# Numbers are good for a second; where counting takes long, for twenty times as long as it took, so that however often
# somebody asks, at most a twentieth of a processor goes into it.
_FRESH_SECONDS: Final = 1.0
_FRESH_FACTOR: Final = 20.0
# The processor of a server is everybody's: each worker that is asked takes a hundredth of it at most.
_FRESH_FACTOR_SHARED: Final = 100.0
# A server may take long to say nothing; it is asked again all the same.
_LONGEST_FAILURE_SECONDS: Final = 10.0

_NEW_EVENTS = "SELECT count(*), min(seq) FROM events WHERE state = 'new'"
_RECEIVED_AT = "SELECT received_at FROM events WHERE seq = ?"
_OUTBOX_READY = """
SELECT lane, count(*), sum(not_before <= ?), min(not_before), min(seq) FROM outbox WHERE state = 'ready' GROUP BY lane
"""
_OUTBOX_HELD = "SELECT count(*), min(seq) FROM outbox WHERE state = 'held'"
_WRITTEN_AT = "SELECT at FROM outbox WHERE seq = ?"
_SCHEDULED = """
SELECT lane, count(*), sum(due_at <= ?), min(due_at) FROM runs WHERE due_at IS NOT NULL GROUP BY lane ORDER BY lane
"""
_RETRYING = "SELECT count(*) FROM runs WHERE state = 'retrying' AND due_at > ?"
_OPEN_RUNS = "SELECT state, count(*) FROM runs WHERE state IN ('running', 'held') GROUP BY state"
_DEAD_LETTERS = "SELECT reason, count(*) FROM dead_letters WHERE state = 'open' GROUP BY reason"


@dataclass(frozen=True, slots=True)
class Gauges:
    """What is open in a store at one moment. An age is in seconds, as of that moment; None where there is nothing.

    What is `held` waits for a person. In the outbox, `lane` is the sender whose rate a row keeps, or empty; rows that
    the publisher has in hand are not counted here, it counts them itself. A run is due when its time has come; its call
    may then be queued for a slot (`calls_queued`, by connection). `runs_waiting` stand at a wait, `runs_retrying`
    between two attempts, both for a time yet to come.
    """

    at: datetime
    events_waiting: int
    oldest_event_seconds: float | None
    outbox_ready: int
    outbox_held: int
    outbox_due: int
    # For how long the first row of each lane has been due, where one is; how old the first one is, due or not; and how
    # old the row is that was written first of all, held ones included.
    outbox_due_seconds: Mapping[str, float]
    outbox_ready_seconds: Mapping[str, float]
    oldest_outbox_seconds: float | None
    runs_due: int
    oldest_run_due_seconds: float | None
    calls_queued: Mapping[str, int]
    runs_waiting: int
    runs_retrying: int
    runs_running: int
    runs_held: int
    # Open ones, by reason.
    dead_letters: Mapping[str, int]
    store_bytes: int
    # None where the store is on a server, whose disk is not ours to look at.
    free_bytes: int | None
    # Of those that share the store, how many have shown life within their lease, and whether this process is one of
    # them. None for a store in a file, which has one worker.
    workers_alive: int | None = None
    lease_held: bool | None = None


def read_gauges(path: Path, now: datetime) -> Gauges:
    """Count what is open in the store at `path`. Raises StoreUnusable where it cannot be read."""
    try:
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=_PATIENCE_SECONDS, isolation_level=None
        )
        with closing(connection):
            connection.execute("PRAGMA query_only = ON")
            # One snapshot for all numbers, and none held longer than it takes to count.
            connection.execute("BEGIN")
            return _read(connection, path, now)
    except (sqlite3.Error, OSError) as error:
        raise StoreUnusable(
            f"the store at {path} cannot be counted: {error}.", hint="`dispatcher doctor` tells what is wrong with it."
        ) from error


def _read(connection: sqlite3.Connection, path: Path, now: datetime) -> Gauges:
    now_text = as_text(now)

    def row(statement: str, *given: Any) -> tuple[Any, ...]:
        found: tuple[Any, ...] = connection.execute(statement, given).fetchone()
        return found

    def age(text: str) -> float:
        return max(0.0, (now - as_time(text)).total_seconds())

    events, oldest_event = row(_NEW_EVENTS)
    ready = connection.execute(_OUTBOX_READY, (now_text,)).fetchall()
    held, oldest_held = row(_OUTBOX_HELD)
    oldest_rows = [seq for *_, seq in ready] + ([] if oldest_held is None else [oldest_held])
    scheduled = connection.execute(_SCHEDULED, (now_text,)).fetchall()
    # What queues for a slot of a connection has been due since it came there.
    runs, runs_due, first_due = next((rest for lane, *rest in scheduled if lane == OPEN_LANE), (0, 0, ""))
    (retrying,) = row(_RETRYING, now_text)
    open_runs = dict(connection.execute(_OPEN_RUNS).fetchall())
    return Gauges(
        at=now,
        events_waiting=events,
        oldest_event_seconds=None if oldest_event is None else age(row(_RECEIVED_AT, oldest_event)[0]),
        outbox_ready=sum(count for _, count, *_ in ready),
        outbox_held=held,
        outbox_due=sum(due for _, _, due, *_ in ready),
        outbox_due_seconds={lane: age(not_before) for lane, _, due, not_before, _ in ready if due},
        outbox_ready_seconds={lane: age(row(_WRITTEN_AT, seq)[0]) for lane, *_, seq in ready},
        oldest_outbox_seconds=age(row(_WRITTEN_AT, min(oldest_rows))[0]) if oldest_rows else None,
        runs_due=runs_due,
        oldest_run_due_seconds=age(first_due) if runs_due else None,
        calls_queued={lane: count for lane, count, *_ in scheduled if lane != OPEN_LANE},
        runs_waiting=max(0, runs - runs_due - retrying),
        runs_retrying=retrying,
        runs_running=open_runs.get("running", 0),
        runs_held=open_runs.get("held", 0),
        dead_letters=dict(connection.execute(_DEAD_LETTERS).fetchall()),
        store_bytes=sum(file.stat().st_size for file in (path, Path(f"{path}-wal")) if file.exists()),
        free_bytes=shutil.disk_usage(path.absolute().parent).free,
    )


def gauges_of(settings: Settings) -> Callable[[datetime], Gauges]:
    """Return what counts the store of these settings, for `FreshGauges`."""
    if settings.store_kind == "sqlite":
        return partial(read_gauges, settings.store_path)
    from dispatcher.store.postgres import gauges as of_database  # noqa: PLC0415 - needs its driver

    # Its password may change from one time to the next.
    return lambda now: of_database.read_gauges(settings.store_url(), now, settings.lease_seconds)


class FreshGauges:
    """The gauges of one store for many who ask at once: counted by one of them, for a while good for all.

    `count` counts them, as of the time that it is given; it may raise StoreUnusable. They are good for `factor` times
    as long as it took.
    """

    def __init__(self, count: Callable[[datetime], Gauges], clock: Clock, *, factor: float = _FRESH_FACTOR) -> None:
        self._read = count
        self._factor = factor
        self._clock = clock
        self._lock = threading.Lock()
        self._found: Gauges | StoreUnusable | None = None
        self._until = 0.0

    def read(self) -> Gauges:
        """Return the numbers, counted anew when they are stale. Raises StoreUnusable as long as they cannot be."""
        found = self._found
        stale = found is None or self._clock.monotonic() >= self._until
        # Whoever comes while another counts takes what there was before, rather than wait.
        if stale and self._lock.acquire(blocking=found is None):
            try:
                found = self._count()
            finally:
                self._lock.release()
        assert found is not None
        if isinstance(found, StoreUnusable):
            raise found
        return found

    def _count(self) -> Gauges | StoreUnusable:
        began = self._clock.monotonic()
        if self._found is not None and began < self._until:
            return self._found  # somebody else has just counted
        longest = math.inf
        try:
            self._found = self._read(self._clock.now())
        except StoreUnusable as error:
            self._found = error
            longest = _LONGEST_FAILURE_SECONDS
        ended = self._clock.monotonic()
        self._until = ended + max(_FRESH_SECONDS, min(longest, self._factor * (ended - began)))
        return self._found


def fresh_gauges(settings: Settings, clock: Clock) -> FreshGauges:
    """Return the gauges of the store of these settings; the clock is the one that the store goes by."""
    factor = _FRESH_FACTOR if settings.store_kind == "sqlite" else _FRESH_FACTOR_SHARED
    return FreshGauges(gauges_of(settings), clock, factor=factor)
