"""Erasure in one file: SQLite calls back into Python to find a person, and rewrites the whole file afterwards."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Table, func, update

from dispatcher.store.mentions import Mentions
from dispatcher.store.naming import BY_TABLE, Person, Search, scope
from dispatcher.store.sqlite.store import SqliteStore

_FUNCTIONS: Final = ("mentioned", "mentioned_in_bytes", "without_mentions", "without_mentions_in_json")


class SqliteEraser:
    """Finds a person by functions that are lent to the connection for the time of the erasure."""

    remains = None

    def __init__(self, store: SqliteStore) -> None:
        self._raw = store.connection

    def searches(self, connection: Connection, person: Person, mentions: Mentions, now: datetime) -> Iterator[Search]:
        """Yield one search: nobody else writes."""
        found_by: tuple[Callable[[Any], Any], ...] = (
            mentions.found_in, mentions.found_in_bytes, mentions.without, mentions.without_in_json,
        )  # fmt: skip
        for name, function in zip(_FUNCTIONS, found_by, strict=True):
            self._raw.create_function(name, 1, function)
        yield _SqliteSearch(connection, person)

    def forget(self) -> None:
        """Take the functions away, as they know the number, and the connection lives as long as the worker."""
        for name in _FUNCTIONS:
            self._raw.create_function(name, 1, None)

    def overwrite(self) -> Sequence[tuple[str, str]]:
        """Overwrite what was erased, in the file and in its log; return why that could not be done, if so."""
        left = self._compact()
        return () if left is None else [("the file", left)]

    def _compact(self) -> str | None:
        try:
            # The copy that VACUUM makes may be larger than the memory.
            self._raw.execute("PRAGMA temp_store = FILE")
            self._raw.execute("VACUUM")
            busy, _, _ = self._raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except sqlite3.Error as error:
            return f"its unused pages may still hold traces: {error}; erase once more to overwrite them"
        finally:
            with suppress(sqlite3.Error):
                self._raw.execute("PRAGMA temp_store = MEMORY")
        if busy:
            return "its log may still hold traces, as somebody was reading it; erase once more to overwrite them"
        return None


class _SqliteSearch:
    def __init__(self, connection: Connection, person: Person) -> None:
        self._connection = connection
        self._person = person

    def whole(self, table: Table) -> ColumnElement[bool]:
        columns = BY_TABLE[table.name].whole
        if columns == ("body",) and table.name == "dead_letters":
            return func.mentioned_in_bytes(table.c.body) == 1
        return _mentioned(table, columns)

    def gathered(self, table: Table) -> None:
        pass  # it has a key, and that is enough

    def hold_off(self) -> None:
        pass  # one process writes

    def sweep(self, table: Table) -> int:
        naming = BY_TABLE[table.name]
        cleaned: dict[str, Any] = {name: func.without_mentions(table.c[name]) for name in naming.texts}
        cleaned |= {name: func.without_mentions_in_json(table.c[name]) for name in naming.json}
        named = (scope(table, self._person), _mentioned(table, [*naming.texts, *naming.json]))
        count: int = self._connection.execute(update(table).where(*named).values(**cleaned)).rowcount
        return count


def _mentioned(table: Table, columns: Sequence[str]) -> ColumnElement[bool]:
    # The columns at once: one call into Python for each row. What stands between them is part of no number.
    joined: Any = func.coalesce(table.c[columns[0]], "")
    for name in columns[1:]:
        joined = joined + '","' + func.coalesce(table.c[name], "")
    condition: ColumnElement[bool] = func.mentioned(joined) == 1
    return condition
