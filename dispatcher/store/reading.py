"""A read-only connection for the cold queries: it works beside workers that write, and when nobody does.

Nothing that is read so can change a store, and all of it is of one moment.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from dispatcher import urls
from dispatcher.errors import NotFound

if TYPE_CHECKING:
    from sqlalchemy import Connection


@contextmanager
def open_reader(store: str | Path) -> Iterator[Connection]:
    """Open a store for reading, by its URL with the password in it, or by the path of its file.

    Raises StoreUnusable where there is no store, where it cannot be read, or where its schema is not this version's.
    """
    try:
        if isinstance(store, str) and store.startswith(urls.POSTGRESQL):
            from dispatcher.store.postgres.reading import open_database  # noqa: PLC0415 - needs its driver

            with open_database(store) as connection:
                yield connection
        else:
            from dispatcher.store.sqlite.reading import open_file  # noqa: PLC0415 - needs no other driver

            with open_file(store if isinstance(store, Path) else Path(store.removeprefix(urls.SQLITE))) as connection:
                yield connection
    except UnicodeEncodeError as error:
        # An argument with bytes that are no text: no store holds such an id or name.
        raise NotFound("what was asked for is not valid text, so nothing in the store is called that.") from error
