"""A read-only connection to an SQLite store: it works beside a worker that writes, and when nobody does.

Nothing here can change a store: the file is opened with `mode=ro`, and the connection refuses to write besides.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from dispatcher.errors import StoreUnusable
from dispatcher.store import migrate

if TYPE_CHECKING:
    from sqlalchemy import Connection

_PATIENCE_SECONDS = 10.0


@contextmanager
def open_file(path: Path) -> Iterator[Connection]:
    """Open the file for reading, see `dispatcher.store.reading`."""
    from sqlalchemy import create_engine, exc  # noqa: PLC0415 - dear to import, and `--help` needs none
    from sqlalchemy.pool import StaticPool  # noqa: PLC0415

    raw = _connect(path)
    try:
        engine = create_engine("sqlite://", creator=lambda: raw, poolclass=StaticPool)
        with engine.connect() as connection:
            # One snapshot for everything: a story told from several tables does not change while it is told.
            connection.exec_driver_sql("BEGIN")
            yield connection
    except exc.DBAPIError as error:
        raise _unreadable(path, error.orig or error) from error
    finally:
        raw.close()


def _connect(path: Path) -> sqlite3.Connection:
    try:
        found = path.is_file() and path.stat().st_size > 0
    except OSError as error:
        raise _unreadable(path, error) from error
    if not found:
        raise StoreUnusable(
            f"there is no store at {path.absolute()}.",
            hint="`dispatcher run` or `dispatcher publish` makes one; --store or DISPATCHER_STORE names another.",
        )
    try:
        return _opened(path, "mode=ro")
    except sqlite3.OperationalError as error:
        # In a folder that we may not write, SQLite cannot make its index of the WAL. Without a WAL none is needed.
        wal = Path(f"{path}-wal")
        if wal.exists() and wal.stat().st_size > 0:
            raise _unreadable(path, error) from error
        try:
            return _opened(path, "mode=ro&immutable=1")
        except sqlite3.Error as again:
            raise _unreadable(path, again) from again
    except sqlite3.Error as error:
        raise _unreadable(path, error) from error


def _opened(path: Path, options: str) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?{options}", uri=True, timeout=_PATIENCE_SECONDS, isolation_level=None
    )
    try:
        connection.execute("PRAGMA query_only = ON")
        _refuse_other_schemas(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def _refuse_other_schemas(connection: sqlite3.Connection, path: Path) -> None:
    version = migrate.schema_version(connection)
    migrate.refuse_newer(version)
    if version != migrate.HEAD:
        raise StoreUnusable(
            f"the store at {path} has the schema of an earlier version ({version or 'none'}).",
            hint="`dispatcher migrate` brings it to this version's; so does the next `dispatcher run`.",
        )


def _unreadable(path: Path, error: BaseException) -> StoreUnusable:
    said = str(error)
    hint = (
        "Name another file with --store sqlite:///PATH."
        if "not a database" in said
        else "Restore it from a backup; `dispatcher doctor` tells what is damaged."
        if "malformed" in said
        else "The file and its folder must be readable for the user that runs this command."
    )
    return StoreUnusable(f"the store at {path} cannot be read: {said}.", hint=hint)
