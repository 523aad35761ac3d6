"""The partitions of the tables that grow: one a day and table, made ahead of time, dropped when nothing needs them.

A day is 'YYYY-MM-DD' in UTC. Nothing here makes the workers' reads and writes wait: a partition is made as a table by
itself and then attached, and detached beside running transactions before it is dropped.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, timedelta
from typing import Any, Final, TypeAlias

import psycopg
from psycopg import errors, sql

from dispatcher.store.postgres.foresight import foresee

# In the order in which a batch writes them.
TABLES: Final = ("events", "runs", "steps", "messages")

# PostgreSQL takes these for a partition, not for the table as a whole. A day may have 100 million rows, of which by
# default a fifth is dead before it is cleared away: the indexes of what is new or due would be full of what was.
# A text changes its state about three times (sent, acknowledged, delivered), and a call's step once, which no index
# holds: where the page has room the row changes in place. Measured for texts with three changes: pages that are
# filled to 60 % take 30 MB where full ones take 50 MB, and indexes of half the size.
_STORAGE: Final = {
    "events": "autovacuum_vacuum_scale_factor = 0.05",
    "runs": "autovacuum_vacuum_scale_factor = 0.05",
    "steps": "autovacuum_vacuum_scale_factor = 0.05, fillfactor = 90",
    "messages": "autovacuum_vacuum_scale_factor = 0.05, fillfactor = 60",
}

# Advisory locks: one for all who make partitions at once, one for all who drop any.
_MAKING: Final = 0x64_70_61_72_01
_DROPPING: Final = 0x64_70_61_72_02

# How long days that are not needed yet, and days that are no longer, wait for others: long locks are held by
# migrations, backups and long queries, and there is time.
_PATIENCE: Final = "1s"

_FOUND: Final = """
SELECT relname FROM pg_catalog.pg_class
WHERE relname = ANY(%s) AND relnamespace = current_schema()::regnamespace
"""
_DAYS: Final = """
SELECT DISTINCT to_char(to_date(right(relname, 8), 'YYYYMMDD'), 'YYYY-MM-DD') FROM pg_catalog.pg_class
WHERE relkind = 'r' AND relnamespace = current_schema()::regnamespace
AND relname ~ '^(events|runs|steps|messages)_p[0-9]{8}$' ORDER BY 1
"""
# Which partitions of a table somebody began to detach, and did not live to.
_HALF_DETACHED: Final = """
SELECT inhrelid::regclass::text FROM pg_catalog.pg_inherits
WHERE inhparent = %s::regclass AND inhdetachpending
"""
_ATTACHED: Final = """
SELECT EXISTS (SELECT 1 FROM pg_catalog.pg_inherits WHERE inhrelid = to_regclass(%s) AND inhparent = %s::regclass)
"""

Runner: TypeAlias = "psycopg.Connection[Any] | psycopg.Cursor[Any]"


def name_of(table: str, day: str) -> str:
    """Return the name of a table's partition of a day."""
    return f"{table}_p{day.replace('-', '')}"


def ensure(connection: Runner, today: str, ahead: int = 7) -> list[str]:
    """Make the partitions that are missing from yesterday to `ahead` days after today; return their names.

    Costs one small query when none is missing. Any number of processes may do it at once. Days from the day after
    tomorrow on are left for the next time when somebody is in the way; for the others it waits. Not for the middle of
    a transaction that has written: it takes locks in an order of its own.
    """
    first = date.fromisoformat(today)
    wanted = {
        name_of(table, day.isoformat()): (table, day)
        for day in (first + timedelta(days=offset) for offset in range(-1, ahead + 1))
        for table in TABLES
    }
    missing = _missing(connection, wanted)
    if not missing:
        return []
    may_wait = all(wanted[name][1] > first + timedelta(days=1) for name in missing)
    owner = connection.connection if isinstance(connection, psycopg.Cursor) else connection
    try:
        with owner.transaction():
            if may_wait:
                connection.execute(f"SET LOCAL lock_timeout = '{_PATIENCE}'")
            connection.execute("SELECT pg_advisory_xact_lock(%s)", (_MAKING,))
            # The lock that attaching takes, before any lesser one: whoever detaches waits for those who hold a lesser.
            connection.execute(f"LOCK TABLE ONLY {', ONLY '.join(TABLES)} IN SHARE UPDATE EXCLUSIVE MODE")
            # Others may have made them while this process waited.
            missing = _missing(connection, wanted)
            for name in missing:
                _make(connection, name, *wanted[name])
    except errors.LockNotAvailable:
        if not may_wait:
            raise
        return []
    return missing


def days(connection: Runner) -> list[str]:
    """Return the days of which there are partitions, or what a drop left of them, the oldest first."""
    return [str(day) for (day,) in connection.execute(_DAYS).fetchall()]


def drop(connection: psycopg.Connection[Any], day: str) -> bool:
    """Drop the partitions of a day, with all that is in them; the connection is in autocommit mode.

    False when somebody is in the way, such as a long query, a backup, or another process that drops: some of it may
    be left, and `days` goes on naming the day. Then it is to be tried again. A crash in the middle leaves the same.
    """
    row = connection.execute("SELECT pg_try_advisory_lock(%s)", (_DROPPING,)).fetchone()
    if row is None or not row[0]:
        return False
    try:
        with _impatient(connection):
            # What hangs on others goes first: a run without steps is better than steps without a run.
            for table in reversed(TABLES):
                _drop(connection, table, name_of(table, day))
    except errors.LockNotAvailable:
        return False
    finally:
        if not connection.closed:
            connection.execute("SELECT pg_advisory_unlock(%s)", (_DROPPING,))
    return True


def _missing(connection: Runner, wanted: dict[str, tuple[str, date]]) -> list[str]:
    found = {str(name) for (name,) in connection.execute(_FOUND, (list(wanted),)).fetchall()}
    return [name for name in wanted if name not in found]


def _make(connection: Runner, name: str, table: str, day: date) -> None:
    made, parent = sql.Identifier(name), sql.Identifier(table)
    connection.execute(
        sql.SQL("CREATE TABLE {} (LIKE {} INCLUDING DEFAULTS) WITH ({})").format(made, parent, sql.SQL(_STORAGE[table]))
    )
    foresee(connection, table, name=name, day=day.isoformat())
    # Its indexes come with it.
    connection.execute(
        sql.SQL("ALTER TABLE {} ATTACH PARTITION {} FOR VALUES FROM ({}) TO ({})").format(
            parent, made, day.isoformat(), (day + timedelta(days=1)).isoformat()
        )
    )


def _drop(connection: psycopg.Connection[Any], table: str, name: str) -> None:
    parent, dropped = sql.Identifier(table), sql.Identifier(name)
    for (half,) in connection.execute(_HALF_DETACHED, (table,)).fetchall():
        connection.execute(sql.SQL("ALTER TABLE {} DETACH PARTITION {} FINALIZE").format(parent, sql.Identifier(half)))
    row = connection.execute(_ATTACHED, (name, table)).fetchone()
    if row is not None and row[0]:
        # Readers and writers of the other days go on; dropping it as it stands would lock them all out.
        connection.execute(sql.SQL("ALTER TABLE {} DETACH PARTITION {} CONCURRENTLY").format(parent, dropped))
    connection.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(dropped))


@contextmanager
def _impatient(connection: psycopg.Connection[Any]) -> Iterator[None]:
    row = connection.execute("SHOW lock_timeout").fetchone()
    connection.execute(f"SET lock_timeout = '{_PATIENCE}'")
    try:
        yield
    finally:
        if row is not None and not connection.closed:
            connection.execute("SELECT set_config('lock_timeout', %s, false)", (row[0],))
