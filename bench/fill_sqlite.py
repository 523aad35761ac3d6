"""A SQLite store with a past: copies of what a worker wrote for one event, by the million, in the order of their time.

The rows go in as a worker would have put them, table after table for each few thousand events, so that the trees of
random keys are as loose, and the pages of the tables as mixed, as they are after weeks of work. `fill` wants a store
in which one event was brought to its end (or to its wait); its rows are the pattern, and are gone afterwards.
"""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

from bench.fill_people import archived_person, refuse_without_room

# Measured, on a disk of a virtual machine: what a filled store takes with its indexes, and how fast it is filled.
BYTES_AN_EVENT = 2300
EVENTS_A_SECOND = 50_000
# About as many events go by between two looks at the disk as a busy minute brings.
_CHUNK = 10_000
_CACHE_KIB = 2 * 1024 * 1024
_OWN = "g, event_id, run_id, message_id, contact_key, msisdn, at, received_on, due_at"
# What is each row's own; the rest is as in the row that is copied.
_COLUMNS = {
    "events": {
        "seq": "g", "event_id": "event_id", "root_id": "event_id", "received_at": "at", "timestamp": "at",
        "received_on": "received_on",
    },
    "event_ids": {"event_id": "event_id", "event_seq": "g", "received_on": "received_on"},
    "runs": {
        "seq": "g", "run_id": "run_id", "event_seq": "g", "event_id": "event_id", "started_at": "at",
        "received_on": "received_on", "due_at": "due_at", "step_started_at": "at", "finished_at": "at",
    },
    "steps": {"run_seq": "g", "started_at": "at", "finished_at": "at", "received_on": "received_on"},
    "contacts": {
        "seq": "g", "contact_key": "contact_key", "msisdn": "msisdn", "created_at": "at", "updated_at": "at",
    },
    "messages": {
        "seq": "g", "message_id": "message_id", "to_addr": "msisdn", "event_id": "event_id", "run_id": "run_id",
        "at": "at", "received_on": "received_on",
    },
}  # fmt: skip


def fill(path: Path, count: int, days: int, *, waiting: bool = False, now: datetime | None = None) -> None:
    """Put so many events with all that belongs to them into a store, evenly over `days` days up to now.

    With `waiting`, the pattern is one whose run waits, and the runs fall due over a day in a week.
    """
    refuse_without_room(path.parent, count, BYTES_AN_EVENT, EVENTS_A_SECOND)
    now = now or datetime.now(UTC)
    with closing(sqlite3.connect(path, isolation_level=None)) as store:
        # Nobody else has it, and what a crash leaves of it is thrown away.
        store.execute("PRAGMA journal_mode = MEMORY")
        store.execute("PRAGMA synchronous = OFF")
        store.execute("PRAGMA temp_store = MEMORY")
        store.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        store.execute("BEGIN")
        for table in _COLUMNS:
            store.execute(f"CREATE TEMP TABLE like_{table} AS SELECT * FROM {table}")
            store.execute(f"DELETE FROM {table}")
        (found,) = store.execute("SELECT count(*) FROM like_events").fetchone()
        assert found == 1, f"{found} events are no pattern"
        store.execute(f"CREATE TEMP TABLE own ({_OWN})")
        statements = [_statement(store, table, waiting=waiting) for table in _COLUMNS]
        store.execute("COMMIT")
        rows = _own_rows(count, now - timedelta(days=days), timedelta(days=days) / count, waiting=waiting)
        for first in range(0, count, _CHUNK):
            store.execute("BEGIN")
            store.executemany(
                "INSERT INTO own VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (next(rows) for _ in range(min(_CHUNK, count - first))),
            )
            for statement in statements:
                store.execute(statement)
            store.execute("DELETE FROM own")
            store.execute("COMMIT")
        store.execute("PRAGMA journal_mode = WAL")


def _statement(store: sqlite3.Connection, table: str, *, waiting: bool) -> str:
    own = _COLUMNS[table]
    if waiting:
        # Its last step is under way, and its run has no end.
        own = {column: value for column, value in own.items() if column != "finished_at"}
    else:
        own = {column: value for column, value in own.items() if column not in ("due_at", "step_started_at")}
    columns = [row[1] for row in store.execute(f"PRAGMA table_info({table})")]
    values = ", ".join(f"own.{own[column]}" if column in own else f'p."{column}"' for column in columns)
    # Persons come back; all else is there once.
    verb = "INSERT OR IGNORE" if table == "contacts" else "INSERT"
    return f"{verb} INTO {table} SELECT {values} FROM own CROSS JOIN like_{table} p"


def _own_rows(count: int, first: datetime, step: timedelta, *, waiting: bool) -> Iterator[tuple[int | str | None, ...]]:
    bits = random.Random(count).getrandbits
    due = datetime.now(UTC) + timedelta(days=7)
    for number in range(1, count + 1):
        at = first + step * number
        text = at.isoformat(timespec="microseconds")[:26] + "Z"
        due_at = (due + timedelta(days=1) * (number * 7919 % count) / count) if waiting else None
        yield (
            number,
            _dashed(f"{bits(128):032x}"),
            _dashed(_by_time(at, bits(74))),
            _by_time(at, bits(74)),
            _by_time(at, bits(74)),
            f"+2782{archived_person(number):07d}",
            text,
            text[:10],
            None if due_at is None else due_at.isoformat(timespec="microseconds")[:26] + "Z",
        )


def _by_time(at: datetime, digits: int) -> str:
    random_part = f"7{digits & 0xFFF:03x}8{digits >> 12 & 0xFFF:03x}{digits >> 24 & (1 << 48) - 1:012x}"
    return f"{int(at.timestamp() * 1000):012x}{random_part}"


def _dashed(digits: str) -> str:
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
