"""Numbers for new rows, taken from the database's sequences in blocks, so that a batch asks once and not per row.

Numbers grow with time, as lists and retention expect: what is left of a block is not kept for longer than a moment.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Any, Final

import psycopg

from dispatcher.store.postgres import statements as sql

# What the sequences count by (see the migrations): one number of theirs stands for so many of ours.
BLOCK: Final = 64
_FRESH_SECONDS: Final = 1.0
_MOST_BLOCKS: Final = 8


class Blocks:
    """The numbers that one process may give."""

    def __init__(self) -> None:
        self._numbers: dict[str, deque[int]] = {}
        self._taken_at: dict[str, float] = {}
        self._asked: dict[str, int] = {}

    def next(self, connection: psycopg.Connection[Any], table: str) -> int:
        """Return a fresh `seq` for a row of `events`, `runs` or `outbox`."""
        numbers = self._numbers.get(table)
        now = time.monotonic()
        if numbers and now - self._taken_at[table] < _FRESH_SECONDS:
            return numbers.popleft()
        # Who needed one block within a moment is likely to need more.
        often = numbers is not None and now - self._taken_at[table] < _FRESH_SECONDS
        count = min(_MOST_BLOCKS, self._asked.get(table, 1) * 2) if often else 1
        found = connection.execute(sql.BLOCK, (f"{table}_seq", count)).fetchall()
        numbers = deque(number for (first,) in sorted(found) for number in range(first, first + BLOCK))
        self._numbers[table], self._taken_at[table], self._asked[table] = numbers, now, count
        return numbers.popleft()
