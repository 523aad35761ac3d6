"""The partitions of the tables that grow: one a day and table, made ahead of time, dropped when nothing needs them.

A day is 'YYYY-MM-DD' in UTC. Nothing here blocks the workers' reads and writes: a partition is made as a table by
itself and then attached, detached before it is dropped, as both of these let others use the partitioned table.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import date, timedelta
from typing import Any

import psycopg
from psycopg import sql

# In the order in which a batch writes them.
TABLES = ("events", "runs", "steps", "messages")
# Whoever makes or drops partitions holds this advisory lock: two at once would trip over one another.
_LOCK = 0x64_70_61_72_74
_NAMED = re.compile(rf"({'|'.join(TABLES)})_p(\d{{4}})(\d{{2}})(\d{{2}})")

_FOUND = """
SELECT relname FROM pg_catalog.pg_class
WHERE relnamespace = current_schema()::regnamespace AND relkind = 'r' AND relname LIKE '%\\_p________'
"""


def ensure(connection: psycopg.Connection[Any] | psycopg.Cursor[Any], today: str, ahead: int = 7) -> list[str]:
    """Make the partitions that are missing from yesterday to `ahead` days after today; return their names.

    Costs one small query when none is missing. Any number of processes may do it at once.
    """
    wanted = dict(_wanted(date.fromisoformat(today), ahead))
    if not wanted.keys() - _tables(connection):
        return []
    owner = connection.connection if isinstance(connection, psycopg.Cursor) else connection
    with owner.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        # Others may have made them while this process waited.
        missing = sorted(wanted.keys() - _tables(connection))
        for name in missing:
            table, day = wanted[name]
            _make(connection, name, table, day)
    return missing


def days(connection: psycopg.Connection[Any] | psycopg.Cursor[Any]) -> list[str]:
    """Return the days of which there is a partition, the oldest first."""
    matches = (_NAMED.fullmatch(name) for name in _tables(connection))
    return sorted({"-".join(match.group(2, 3, 4)) for match in matches if match})


def _wanted(today: date, ahead: int) -> Iterator[tuple[str, tuple[str, date]]]:
    for offset in range(-1, ahead + 1):
        day = today + timedelta(days=offset)
        for table in TABLES:
            yield name_of(table, day.isoformat()), (table, day)


def name_of(table: str, day: str) -> str:
    """Return the name of a table's partition of a day."""
    return f"{table}_p{day.replace('-', '')}"


def _tables(connection: psycopg.Connection[Any] | psycopg.Cursor[Any]) -> set[str]:
    return {str(name) for (name,) in connection.execute(_FOUND).fetchall()}


def _make(connection: psycopg.Connection[Any] | psycopg.Cursor[Any], name: str, table: str, day: date) -> None:
    made, parent = sql.Identifier(name), sql.Identifier(table)
    connection.execute(sql.SQL("CREATE TABLE {} (LIKE {} INCLUDING DEFAULTS INCLUDING STORAGE)").format(made, parent))
    connection.execute(
        sql.SQL("ALTER TABLE {} ATTACH PARTITION {} FOR VALUES FROM ({}) TO ({})").format(
            parent, made, day.isoformat(), (day + timedelta(days=1)).isoformat()
        )
    )
