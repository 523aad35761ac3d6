"""Our stores as they are looked at from outside: whether a worker is at rest, whether all was done, and when."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import psycopg

from bench.processes import ContestantFailed


class Store(Protocol):
    """A store of ours."""

    @property
    def url(self) -> str:
        """What DISPATCHER_STORE says of it."""
        ...

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """Return what a query finds."""
        ...


@dataclass(frozen=True)
class SqliteFile:
    """A store in a file."""

    path: Path

    @property
    def url(self) -> str:
        """What DISPATCHER_STORE says of it."""
        return f"sqlite:///{self.path}"

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """Return what a query finds."""
        with closing(sqlite3.connect(f"file:{self.path}?mode=ro", uri=True)) as connection:
            return connection.execute(query).fetchall()


@dataclass(frozen=True)
class PostgresDatabase:
    """A store on PostgreSQL."""

    url: str

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """Return what a query finds."""
        with psycopg.connect(self.url) as connection:
            return connection.execute(query.encode()).fetchall()


def count(store: Store, rows: str) -> int:
    """Return how many rows of a kind a store has."""
    [(found,)] = store.rows(f"SELECT count(*) FROM {rows}")
    return int(found)


def check(store: Store, events: int, texts: str) -> None:
    """See that every event matched, each run is done, with a contact and a text each in the state `texts`."""
    wanted = {
        "events WHERE state = 'matched'": events,
        "runs WHERE state = 'done'": events,
        "contacts": events,
        f"messages WHERE state = '{texts}'": events,
        "outbox": 0,
        "dead_letters": 0,
    }
    found = {rows: count(store, rows) for rows in wanted}
    if found != wanted:
        raise ContestantFailed(f"its store has {found} of {events} events")


def finished(store: Store) -> Sequence[float]:
    """Return when each run came to its end, in order, in seconds."""
    found = store.rows("SELECT finished_at FROM runs WHERE state = 'done' ORDER BY finished_at")
    return [datetime.fromisoformat(at).timestamp() for (at,) in found]
