"""Rows that a change takes for itself before it looks at their state: on PostgreSQL nobody else changes them then.

Workers and people change the same rows at the same time there, so a state that was read without a lock may be over.
All take rows in one order, that of a batch's flush: events, runs, steps, outbox, messages, dead letters, and of each
table by `seq`; two that take them so never wait for each other. SQLite has one writer, and knows no such locks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import Column, ColumnElement, Connection, Select, Table, func, select

from dispatcher.store.retention import REOPENING
from dispatcher.store.schema import events, runs

Row = Mapping[str, Any]


def may_reopen(connection: Connection) -> None:
    """Say, at the beginning of a transaction, that it may open again what has ended."""
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock_shared(REOPENING)))


def rows(connection: Connection, statement: Select[Any]) -> list[Row]:
    """Return what a statement finds."""
    return [{str(name): value for name, value in row.items()} for row in connection.execute(statement).mappings()]


def take(connection: Connection, table: Table, *conditions: ColumnElement[bool]) -> list[Row]:
    """Return the rows that meet the conditions now, by `seq`; they stay as they are until the transaction ends."""
    return rows(connection, select(table).where(*conditions).order_by(table.c.seq).with_for_update())


def take_runs(connection: Connection, seen: Iterable[Row], *conditions: ColumnElement[bool]) -> list[Row]:
    """Take runs that were seen, after their events; return those that still are there and meet the conditions."""
    seen = list(seen)
    if not seen:
        return []
    days = sorted({row["received_on"] for row in seen})
    take(connection, events, *_these(events.c.seq, {row["event_seq"] for row in seen}, events.c.received_on, days))
    these = _these(runs.c.seq, {row["seq"] for row in seen}, runs.c.received_on, days)
    return take(connection, runs, *these, *conditions)


def _these(
    seq: Column[Any], seqs: Iterable[int], received_on: Column[Any], days: Iterable[str]
) -> tuple[ColumnElement[bool], ...]:
    # The days name the partitions in which PostgreSQL looks.
    return seq.in_(sorted(seqs)), received_on.in_(days)
