"""Opens a store by its URL: one file, or a database that many share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dispatcher import urls

if TYPE_CHECKING:
    from dispatcher.store.ports import Store


def open_store(url: str) -> Store:
    """Open the store that a URL names, made or migrated where need be, to write to it.

    Raises StoreInUse while another process holds an SQLite store; StoreUnusable where it cannot be used.
    """
    if url.startswith(urls.SQLITE):
        from dispatcher.store.sqlite.store import SqliteStore  # noqa: PLC0415 - each brings a driver

        return SqliteStore.open(Path(url.removeprefix(urls.SQLITE)))
    from dispatcher.store.postgres.store import PostgresStore  # noqa: PLC0415 - as above

    return PostgresStore.open(url)
