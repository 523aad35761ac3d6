"""Of which days there is something to do: so that a batch looks into these partitions, and not into all of them.

A query over a hundred partitions takes a third of a millisecond and holds a lock on each of them and of their indexes,
however little it finds. Today is always looked into; which other days have new events, or runs that fall due, is found
out now and then for a moment ahead.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any, Final

import psycopg

from dispatcher.engine.records import as_text
from dispatcher.store.postgres import partitions
from dispatcher.store.postgres import statements as sql

_LOOK_EVERY: Final = 1.0
_LIST_EVERY: Final = 60.0
# Further ahead than the next look is away.
_AHEAD: Final = timedelta(seconds=2)


class Days:
    """The days of new events (`new`) and of due runs (`due`), as far as is known."""

    def __init__(self) -> None:
        self._all: list[str] = []
        self._found: dict[str, set[str]] = {"new": set(), "due": set()}
        # Whoever is to end at nothing must have looked everywhere.
        self.all = False
        self._next_look = 0.0
        self._next_list = 0.0

    def look(self, connection: psycopg.Connection[Any], now: datetime) -> None:
        """Find out, if it is time; the connection has no transaction open."""
        at = time.monotonic()
        if at < self._next_look:
            return
        if at >= self._next_list:
            self._all = partitions.days(connection)
            self._next_list = at + _LIST_EVERY
        new, due = set(), set()
        for day, has_new, has_due in connection.execute(sql.DAYS, (as_text(now + _AHEAD), self._all)):
            if has_new:
                new.add(day)
            if has_due:
                due.add(day)
        around = {now.strftime("%Y-%m-%d"), (now - timedelta(days=1)).strftime("%Y-%m-%d")}
        self._found = {"new": new | around, "due": due | around}
        self._next_look = at + _LOOK_EVERY

    def add(self, what: str, days: Iterable[str]) -> None:
        """There is something of these days by now."""
        if self._found[what]:  # else nobody has looked, and no day is left out
            self._found[what].update(days)

    def of(self, what: str) -> str:
        """Return the condition that a row is of one of the days."""
        if self.all:
            return ""
        listed = ", ".join(f"'{day}'" for day in sorted(self._found[what]))
        return f" AND received_on IN ({listed})" if listed else ""
