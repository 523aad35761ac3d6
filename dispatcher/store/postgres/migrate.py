"""Bring a store on PostgreSQL to the schema of this version; refuse one that is newer, and a schema of other programs.

A store that is up to date is told by plain queries. Everything else happens in one transaction under an advisory
lock: of many workers that start at once one migrates while the others wait, and a crash leaves what was there before.
The store is in the schema that `search_path` names first, so that several may share a database.
"""

from __future__ import annotations

import secrets
import uuid
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import psycopg

from dispatcher import urls
from dispatcher.errors import StoreUnusable
from dispatcher.store.migrate import HEAD, REVISIONS, refuse_newer
from dispatcher.store.postgres import partitions
from dispatcher.store.postgres.connecting import connect, unusable
from dispatcher.store.postgres.foresight import WHOLE, foresee

# The first version that can detach a partition beside running transactions.
_OLDEST_SERVER: Final = 140000
# The advisory lock of whoever migrates: any number that nobody else uses.
_LOCK: Final = 0x64_6D_69_67_72

# Other programs use Alembic too; `facts` tells theirs from ours. Asked of the table of tables and not of to_regclass(),
# which within a transaction may go by what it knew before this process waited for another one.
_LOOK: Final = """
SELECT current_schema(), (
    SELECT count(*) = 2 FROM pg_catalog.pg_class
    WHERE relname IN ('alembic_version', 'facts') AND relnamespace = current_schema()::regnamespace
)
"""
# What an extension brought along belongs to no program.
_OCCUPIED: Final = """
SELECT EXISTS (
    SELECT 1 FROM pg_catalog.pg_class c
    WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
    AND NOT EXISTS (
        SELECT 1 FROM pg_catalog.pg_depend d
        WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'
    )
)
"""
# Alembic would take a store in a later schema of the search_path for this one. Limits that somebody has set for the
# queries of this user are not meant for a migration.
_BY_ITSELF: Final = """
SELECT set_config('search_path', quote_ident(current_schema()), true), set_config('lock_timeout', '0', true),
       set_config('statement_timeout', '0', true), set_config('idle_in_transaction_session_timeout', '0', true)
"""


def version_at(url: str) -> str | None:
    """Return the revision of the store at a `postgresql://` URL with its password, None where there is none yet.

    Writes nothing. Raises StoreUnusable where it cannot be reached or read, or where other programs have their tables.
    """
    with closing(connect(url, autocommit=True)) as connection:
        try:
            return _schema_version(connection, url)
        except psycopg.Error as error:
            raise unusable(url, error) from error


def upgrade(url: str) -> list[str]:
    """Migrate the store at a `postgresql://` URL with its password to HEAD; return the revisions applied.

    Makes the partitions of these days too. Raises StoreUnusable where it cannot be reached or changed, where other
    programs have their tables, or where it is newer than this version; nothing was changed then.
    """
    with closing(connect(url, autocommit=True)) as connection:
        try:
            version = _schema_version(connection, url)
            refuse_newer(version)
            if version == HEAD:
                partitions.ensure(connection, _today(connection))
                return []
            _refuse_unfit(connection, url)
            return _bring_forward(connection, url)
        except psycopg.Error as error:
            raise unusable(url, error) from error


def refuse_other_schemas(connection: psycopg.Connection[Any], url: str) -> None:
    """Raise StoreUnusable when the store is no longer that of this version: somebody has migrated it meanwhile."""
    version = _schema_version(connection, url)
    refuse_newer(version)
    if version != HEAD:
        raise StoreUnusable(
            f"the store {urls.shown(url)} is gone, or was replaced by one of schema {version}.",
            hint="Restart the worker: it makes what is missing.",
        )


def _schema_version(connection: psycopg.Connection[Any], url: str) -> str | None:
    schema, ours = _row(connection, _LOOK)
    if schema is None:
        raise StoreUnusable(
            f"the store {urls.shown(url)} has no schema to be in: its user may use none of those that search_path "
            f"names, {_row(connection, 'SHOW search_path')[0]}.",
            hint="CREATE SCHEMA makes one, GRANT USAGE, CREATE ON SCHEMA opens it.",
        )
    if ours:
        version = _row(connection, "SELECT min(version_num) FROM alembic_version")[0]
        if version is None:
            raise StoreUnusable(
                f"the store {urls.shown(url)} does not say of which schema it is: its table alembic_version is empty.",
                hint="Restore it from a backup; nothing was touched.",
            )
        return str(version)
    if _row(connection, _OCCUPIED)[0]:
        raise StoreUnusable(
            f"{urls.shown(url)} holds another program's tables in its schema {schema}, and no store of the dispatcher.",
            hint="Name another database, or give the dispatcher a schema of its own there: "
            'CREATE SCHEMA dispatcher, and "?options=-csearch_path%3Ddispatcher" behind the URL.',
        )
    return None


def _refuse_unfit(connection: psycopg.Connection[Any], url: str) -> None:
    """Refuse what cannot become a store, before PostgreSQL does it in words that say less."""
    if connection.info.server_version < _OLDEST_SERVER:
        raise StoreUnusable(
            f"the server of {urls.shown(url)} is PostgreSQL {connection.info.server_version // 10000}, "
            f"and the dispatcher needs {_OLDEST_SERVER // 10000} or later.",
            hint="Upgrade the server, or name another one.",
        )
    schema, user, may = _row(
        connection, "SELECT current_schema(), current_user, has_schema_privilege(current_schema(), 'CREATE')"
    )
    encoding = connection.info.parameter_status("server_encoding")
    if encoding != "UTF8":
        raise StoreUnusable(
            f"the database of {urls.shown(url)} is encoded in {encoding}, which cannot hold every text.",
            hint="Make one that can: createdb --encoding=UTF8 --template=template0 NAME.",
        )
    if not may:
        raise StoreUnusable(
            f"the user {user} may not create tables in the schema {schema} of {urls.shown(url)}.",
            hint=f"Have its owner GRANT CREATE ON SCHEMA {schema} TO {user}, or take a database that {user} owns.",
        )


def _bring_forward(connection: psycopg.Connection[Any], url: str) -> list[str]:
    from sqlalchemy import create_engine, exc  # noqa: PLC0415 - dear to import, and seldom needed
    from sqlalchemy.pool import StaticPool  # noqa: PLC0415

    connection.autocommit = False
    engine = create_engine(
        "postgresql+psycopg://", creator=lambda: connection, poolclass=StaticPool, use_native_hstore=False
    )
    try:
        with engine.begin() as adopted:
            connection.execute(_BY_ITSELF)
            connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
            # Another process may have migrated while this one waited.
            before = _schema_version(connection, url)
            refuse_newer(before)
            if before == HEAD:
                return []
            _run_revisions(adopted)
            if before is None:
                for table in WHOLE:
                    foresee(connection, table)
            facts = [("installation", uuid.uuid4().hex), ("secret", secrets.token_hex(32))]
            connection.cursor().executemany(
                "INSERT INTO facts (name, value) VALUES (%s, %s) ON CONFLICT DO NOTHING", facts
            )
            partitions.ensure(connection, _today(connection))
    except exc.DBAPIError as error:
        raise unusable(url, error.orig or error) from error
    return list(REVISIONS if before is None else REVISIONS[REVISIONS.index(before) + 1 :])


def _run_revisions(connection: object) -> None:
    from alembic import command  # noqa: PLC0415 - dear to import, and seldom needed
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent.parent / "migrations"))
    config.attributes["connection"] = connection
    command.upgrade(config, HEAD)


def _today(connection: psycopg.Connection[Any]) -> str:
    return str(_row(connection, "SELECT to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD')")[0])


def _row(connection: psycopg.Connection[Any], query: str) -> tuple[Any, ...]:
    row = connection.execute(query).fetchone()
    assert row is not None
    return tuple(row)
