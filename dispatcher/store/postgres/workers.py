"""Who shares a PostgreSQL store, for people and health checks: one small question, without SQLAlchemy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import psycopg

from dispatcher.engine.records import as_time
from dispatcher.store.postgres.connecting import connect, unusable

WORKERS: Final = "SELECT number, name, host, pid, started_at, seen_at FROM workers ORDER BY number"


@dataclass(frozen=True, slots=True)
class WorkerSeen:
    """A worker among those that share the store, and for how many seconds it has been silent."""

    number: int
    name: str
    host: str
    pid: int
    started_at: datetime
    silent_seconds: float


def read_workers(url: str, *, patience_seconds: int) -> tuple[WorkerSeen, ...]:
    """Return the workers of the store at a URL with its password. Raises StoreUnusable where they cannot be read."""
    try:
        with connect(url, autocommit=True, connect_timeout=patience_seconds) as connection:
            connection.execute("SELECT set_config('statement_timeout', %s, false)", (f"{patience_seconds}s",))
            row = connection.execute("SELECT clock_timestamp()").fetchone()
            assert row is not None
            return workers_seen(connection.execute(WORKERS).fetchall(), row[0].astimezone(UTC))
    except psycopg.Error as error:
        raise unusable(url, error) from error


def workers_seen(rows: Iterable[Any], now: datetime) -> tuple[WorkerSeen, ...]:
    """Return what WORKERS found, as of the database's time."""
    return tuple(
        WorkerSeen(number, name, host, pid, as_time(started_at), max(0.0, (now - as_time(seen_at)).total_seconds()))
        for number, name, host, pid, started_at, seen_at in rows
    )
