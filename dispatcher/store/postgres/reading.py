"""A read-only transaction on a PostgreSQL store: one snapshot of it, however many workers write meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import psycopg
from psycopg import IsolationLevel

from dispatcher import urls
from dispatcher.errors import NotFound, StoreUnusable
from dispatcher.store import migrate
from dispatcher.store.postgres.connecting import connect, unusable

if TYPE_CHECKING:
    from sqlalchemy import Connection

# Generous: somebody waits for the answer, and can end the command. They end what nobody waits for any more.
_STATEMENT_TIMEOUT: Final = "15min"
_LOCK_TIMEOUT: Final = "30s"


@contextmanager
def open_database(url: str) -> Iterator[Connection]:
    """Open the database for reading, see `dispatcher.store.reading`; the URL has its password."""
    from sqlalchemy import create_engine, exc  # noqa: PLC0415 - dear to import, and `--help` needs none
    from sqlalchemy.pool import NullPool  # noqa: PLC0415

    def opened() -> psycopg.Connection[tuple[Any, ...]]:
        raw = connect(url)
        # Said with each BEGIN: what is read is of the moment of the first statement, and nothing can be written.
        raw.isolation_level = IsolationLevel.REPEATABLE_READ
        raw.read_only = True
        return raw

    engine = create_engine("postgresql+psycopg://", creator=opened, poolclass=NullPool, use_native_hstore=False)
    try:
        with engine.connect() as connection:
            connection.exec_driver_sql(f"SET LOCAL statement_timeout = '{_STATEMENT_TIMEOUT}'")
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'")
            _refuse_other_schemas(connection, url)
            yield connection
    except exc.DataError as error:
        if isinstance(error.orig, psycopg.DataError) and error.orig.sqlstate is None:
            # The driver could not even send it, for a NUL in it.
            raise NotFound("what was asked for is not valid text, so nothing in the store is called that.") from error
        raise unusable(url, error.orig or error) from error
    except exc.DBAPIError as error:
        raise unusable(url, error.orig or error) from error
    except psycopg.Error as error:
        # SQLAlchemy does not wrap what fails while rows are fetched from the server in portions.
        raise unusable(url, error) from error


def _refuse_other_schemas(connection: Connection, url: str) -> None:
    version, facts = connection.exec_driver_sql(
        "SELECT to_regclass('alembic_version') IS NOT NULL, to_regclass('facts') IS NOT NULL"
    ).one()
    if not version:
        raise StoreUnusable(
            f"there is no store in {urls.shown(url)} yet.",
            hint="`dispatcher run` or `dispatcher publish` makes one; --store or DISPATCHER_STORE names another.",
        )
    if not facts:
        raise StoreUnusable(
            f"{urls.shown(url)} holds another program's tables, and no store of the dispatcher.",
            hint="Name another database, or give the dispatcher a schema of its own there: "
            '"?options=-csearch_path%3Ddispatcher".',
        )
    found = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
    migrate.refuse_newer(found)
    if found != migrate.HEAD:
        raise StoreUnusable(
            f"the store {urls.shown(url)} has the schema of an earlier version ({found or 'none'}).",
            hint="`dispatcher migrate` brings it to this version's; so does the next `dispatcher run`.",
        )
