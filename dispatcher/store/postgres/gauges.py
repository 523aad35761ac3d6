"""What a PostgreSQL store holds that is yet to be done, counted as `dispatcher.store.gauges` says: read-only, cheaply.

The statements walk over partial indexes, of which each partition has one: those of days past are nearly empty.
"""

from __future__ import annotations

import os
import socket
from datetime import datetime, timedelta
from typing import Any, Final

import psycopg
from psycopg import IsolationLevel

from dispatcher.engine.records import OPEN_LANE, as_text, as_time
from dispatcher.store.gauges import Gauges
from dispatcher.store.postgres.connecting import connect, unusable

# Numbers that take longer are of no use, and hold back the server's cleaning up.
_STATEMENT_TIMEOUT: Final = "SET LOCAL statement_timeout = '10s'"
_PATIENCE_SECONDS: Final = 3

_SIZE: Final = "SELECT pg_database_size(current_database())"
# The smallest number is not the oldest row here: workers take numbers in blocks.
_NEW_EVENTS: Final = "SELECT count(*), min(received_at) FROM events WHERE state = 'new'"
_OUTBOX_READY: Final = """
SELECT lane, count(*), count(*) FILTER (WHERE not_before <= %s), min(not_before), min(at)
FROM outbox WHERE state = 'ready' GROUP BY lane
"""
_OUTBOX_HELD: Final = "SELECT count(*), min(at) FROM outbox WHERE state = 'held'"
_SCHEDULED: Final = """
SELECT lane, count(*), count(*) FILTER (WHERE due_at <= %s), min(due_at)
FROM runs WHERE due_at IS NOT NULL GROUP BY lane ORDER BY lane
"""
_RETRYING: Final = "SELECT count(*) FROM runs WHERE state = 'retrying' AND due_at > %s"
_OPEN_RUNS: Final = "SELECT state, count(*) FROM runs WHERE state IN ('running', 'held') GROUP BY state"
_DEAD_LETTERS: Final = "SELECT reason, count(*) FROM dead_letters WHERE state = 'open' GROUP BY reason"
_WORKERS: Final = "SELECT count(*), count(*) FILTER (WHERE host = %s AND pid = %s) FROM workers WHERE seen_at > %s"


def read_gauges(url: str, now: datetime, lease_seconds: float) -> Gauges:
    """Count what is open in the store at a URL with its password. Raises StoreUnusable where it cannot be read.

    `now` is the database's time, as a worker's clock tells it; a worker is alive that was seen within its lease.
    """
    try:
        with connect(url, connect_timeout=_PATIENCE_SECONDS) as connection:
            # One snapshot for all numbers, and none held longer than it takes to count.
            connection.isolation_level = IsolationLevel.REPEATABLE_READ
            connection.read_only = True
            connection.execute(_STATEMENT_TIMEOUT)
            return _read(connection, now, lease_seconds)
    except psycopg.Error as error:
        raise unusable(url, error) from error


def _read(connection: psycopg.Connection[Any], now: datetime, lease_seconds: float) -> Gauges:
    def rows(statement: str, *given: Any) -> list[tuple[Any, ...]]:
        return connection.execute(statement, given).fetchall()

    now_text = as_text(now)

    def age(text: str) -> float:
        return max(0.0, (now - as_time(text)).total_seconds())

    ((events, oldest_event),) = rows(_NEW_EVENTS)
    ready = rows(_OUTBOX_READY, now_text)
    ((held, oldest_held),) = rows(_OUTBOX_HELD)
    oldest = [at for *_, at in ready] + ([] if oldest_held is None else [oldest_held])
    scheduled = rows(_SCHEDULED, now_text)
    # What queues for a slot of a connection has been due since it came there.
    runs, runs_due, first_due = next((rest for lane, *rest in scheduled if lane == OPEN_LANE), (0, 0, ""))
    ((retrying,),) = rows(_RETRYING, now_text)
    open_runs: dict[str, int] = dict(rows(_OPEN_RUNS))
    silent_since = as_text(now - timedelta(seconds=lease_seconds))
    ((size,),) = rows(_SIZE)
    ((alive, mine),) = rows(_WORKERS, socket.gethostname(), os.getpid(), silent_since)
    return Gauges(
        at=now,
        events_waiting=events,
        oldest_event_seconds=None if oldest_event is None else age(oldest_event),
        outbox_ready=sum(count for _, count, *_ in ready),
        outbox_held=held,
        outbox_due=sum(due for _, _, due, *_ in ready),
        outbox_due_seconds={lane: age(not_before) for lane, _, due, not_before, _ in ready if due},
        outbox_ready_seconds={lane: age(at) for lane, *_, at in ready},
        oldest_outbox_seconds=age(min(oldest)) if oldest else None,
        runs_due=runs_due,
        oldest_run_due_seconds=age(first_due) if runs_due else None,
        calls_queued={lane: count for lane, count, *_ in scheduled if lane != OPEN_LANE},
        runs_waiting=max(0, runs - runs_due - retrying),
        runs_retrying=retrying,
        runs_running=open_runs.get("running", 0),
        runs_held=open_runs.get("held", 0),
        dead_letters=dict(rows(_DEAD_LETTERS)),
        store_bytes=size,
        free_bytes=None,
        workers_alive=alive,
        lease_held=mine > 0,
    )
