"""How a store fares, in numbers: what `dispatcher doctor` tells and `dispatcher demo` sums up. Reads only."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import ColumnElement, Connection, Table, func, select

from dispatcher.engine.records import as_time
from dispatcher.store import schema
from dispatcher.store.migrate import HEAD

# In these versions two connections that check the WAL in at one instant can damage the file.
_WAL_RESET_BUG: Final = ((3, 7, 0), (3, 51, 2))
_MOST_COMPLAINTS: Final = 5

Counts = Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Examination:
    """What a store holds, by state. `complaints` are what SQLite found damaged; None if it was not asked."""

    schema: str
    complaints: tuple[str, ...] | None
    events: Counts
    runs: Counts
    messages: Counts
    dead_letters: Counts
    weak_events: int
    contacts: int
    opt_outs: int
    outbox_ready: int
    outbox_sending: int
    outbox_held: int
    # When the oldest of what waits was written, and what was not taken: how much, by destination and reason.
    outbox_since: datetime | None
    outbox_refused: Counts
    queued_texts: Counts


def examine(connection: Connection, *, check_integrity: bool) -> Examination:
    """Count what is there; with `check_integrity`, have SQLite go through the whole file."""
    queued = schema.messages.c.state == "queued"
    outbox = schema.outbox.c
    waiting = outbox.state == "ready"
    since = connection.execute(select(func.min(outbox.at)).where(waiting)).scalar_one()
    refused = outbox.destination + ": " + outbox.error
    dead = schema.dead_letters
    return Examination(
        schema=HEAD,
        complaints=_complaints(connection) if check_integrity else None,
        events=_counts(connection, schema.events, schema.events.c.state),
        runs=_counts(connection, schema.runs, schema.runs.c.state),
        messages=_counts(connection, schema.messages, schema.messages.c.state),
        dead_letters=_counts(connection, dead, dead.c.reason, dead.c.state == "open"),
        weak_events=_count(connection, schema.events, schema.events.c.weak.is_(True)),
        contacts=_count(connection, schema.contacts),
        opt_outs=_count(connection, schema.opt_outs),
        outbox_ready=_count(connection, schema.outbox, waiting),
        outbox_sending=_count(connection, schema.outbox, outbox.state == "sending"),
        outbox_held=_count(connection, schema.outbox, outbox.state == "held"),
        outbox_since=None if since is None else as_time(since),
        outbox_refused=_counts(connection, schema.outbox, refused, waiting & outbox.error.is_not(None)),
        queued_texts=_counts(connection, schema.messages, schema.messages.c.sender, queued),
    )


def next_retry(connection: Connection) -> datetime | None:
    """Return when the next step that failed for a while is tried again, None when none is."""
    runs = schema.runs
    due = connection.execute(select(func.min(runs.c.due_at)).where(runs.c.state == "retrying")).scalar_one()
    return None if due is None else datetime.fromisoformat(due)


def sqlite_verdict() -> tuple[str, bool]:
    """Return the version of SQLite in use, and whether it has the bug that resets a WAL under another connection."""
    first, last = _WAL_RESET_BUG
    return sqlite3.sqlite_version, first <= sqlite3.sqlite_version_info <= last


def _complaints(connection: Connection) -> tuple[str, ...]:
    found = [str(row[0]) for row in connection.exec_driver_sql(f"PRAGMA quick_check({_MOST_COMPLAINTS})")]
    return () if found == ["ok"] else tuple(found)


def _counts(
    connection: Connection, table: Table, column: ColumnElement[str], *conditions: ColumnElement[bool]
) -> Counts:
    statement = select(column, func.count()).select_from(table).where(*conditions).group_by(column).order_by(column)
    return {str(name): int(count) for name, count in connection.execute(statement)}


def _count(connection: Connection, table: Table, *conditions: ColumnElement[bool]) -> int:
    statement = select(func.count()).select_from(table).where(*conditions)
    return int(connection.execute(statement).scalar_one())
