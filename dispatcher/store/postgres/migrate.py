"""Bring a store on PostgreSQL to the schema of this version; refuse one that is newer, and a schema of other programs.

A store that is up to date is told by one plain query. Everything else happens in one transaction under an advisory
lock: of many workers that start at once one migrates while the others wait, and a crash leaves what was there.
"""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg

from dispatcher.errors import StoreUnusable
from dispatcher.store.migrate import HEAD, REVISIONS, refuse_newer
from dispatcher.store.postgres import partitions

# Whoever migrates holds this advisory lock.
_LOCK = 0x64_6D_69_67_72

# What an extension brought into the schema is nobody's data.
_RELATIONS = """
SELECT c.relname FROM pg_catalog.pg_class c
WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
AND NOT EXISTS (
    SELECT 1 FROM pg_catalog.pg_depend d
    WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'
)
"""


def schema_version(connection: psycopg.Connection[Any]) -> str | None:
    """Return the revision that the store is at, None for an empty schema.

    The store is in the schema that `search_path` names first. Raises StoreUnusable where there is none such, or it
    holds what other programs made.
    """
    schema = _scalar(connection, "SELECT current_schema()")
    if schema is None:
        raise StoreUnusable(
            f"{_place(connection)} has no schema that its search_path names: {_scalar(connection, 'SHOW search_path')}.",
            hint="Create the schema (CREATE SCHEMA name), or name another one with ?options=-csearch_path%3Dname.",
        )
    found = {str(name) for (name,) in connection.execute(_RELATIONS).fetchall()}
    if not found:
        return None
    # Other programs use Alembic too; `facts` tells theirs from ours.
    if not found >= {"alembic_version", "facts"}:
        raise StoreUnusable(
            f"the schema {schema} of {_place(connection)} holds tables, but is not a store of the dispatcher.",
            hint="Name a database or a schema of its own, such as postgresql://…/name?options=-csearch_path%3Dname.",
        )
    version = _scalar(connection, "SELECT version_num FROM alembic_version")
    return None if version is None else str(version)


def upgrade(url: str) -> list[str]:
    """Migrate the store at a `postgresql://` URL to HEAD; return the revisions applied.

    Raises StoreUnusable where it cannot be reached or changed, is no store, or is newer than this version.
    """
    try:
        with closing(psycopg.connect(url, autocommit=True)) as connection:
            return bring_forward(connection)
    except psycopg.Error as error:
        raise StoreUnusable(f"the store cannot be migrated: {_said(error)}.") from error


def bring_forward(connection: psycopg.Connection[Any]) -> list[str]:
    """Migrate the store of an autocommit connection to HEAD, in one transaction; return the revisions applied.

    Makes the partitions of these days too. Raises StoreUnusable as `schema_version`, and for a store that is newer.
    """
    version = schema_version(connection)
    refuse_newer(version)
    if version == HEAD:
        partitions.ensure(connection, _today(connection))
        return []
    with _alone(connection):
        # Another process may have migrated while this one waited.
        version = schema_version(connection)
        refuse_newer(version)
        if version != HEAD:
            _refuse_without_rights(connection)
            _run_revisions(connection)
    if version == HEAD:
        return []
    return list(REVISIONS if version is None else REVISIONS[REVISIONS.index(version) + 1 :])


@contextmanager
def _alone(connection: psycopg.Connection[Any]) -> Iterator[None]:
    connection.execute("SELECT pg_advisory_lock(%s)", (_LOCK,))
    try:
        yield
    finally:
        # A connection that broke has given its lock back.
        if not connection.closed:
            connection.execute("SELECT pg_advisory_unlock(%s)", (_LOCK,))


def _run_revisions(connection: psycopg.Connection[Any]) -> None:
    from alembic import command  # noqa: PLC0415 - dear to import, and seldom needed
    from alembic.config import Config  # noqa: PLC0415
    from sqlalchemy import create_engine, exc  # noqa: PLC0415
    from sqlalchemy.pool import StaticPool  # noqa: PLC0415

    engine = create_engine("postgresql+psycopg://", creator=lambda: connection, poolclass=StaticPool)
    connection.autocommit = False
    try:
        with engine.begin() as adopted:
            config = Config()
            config.set_main_option("script_location", str(Path(__file__).parent.parent / "migrations"))
            config.attributes["connection"] = adopted
            command.upgrade(config, HEAD)
            facts = [("installation", uuid.uuid4().hex), ("secret", secrets.token_hex(32))]
            connection.cursor().executemany(
                "INSERT INTO facts (name, value) VALUES (%s, %s) ON CONFLICT DO NOTHING", facts
            )
            partitions.ensure(connection, _today(connection))
    except exc.DBAPIError as error:
        raise error.orig or error from error
    finally:
        if not connection.closed:
            connection.autocommit = True


def _refuse_without_rights(connection: psycopg.Connection[Any]) -> None:
    if _scalar(connection, "SELECT has_schema_privilege(current_schema(), 'CREATE')"):
        return
    schema, user = _scalar(connection, "SELECT current_schema()"), connection.info.user
    raise StoreUnusable(
        f"the user {user} may not create tables in the schema {schema} of {_place(connection)}.",
        hint=f"GRANT CREATE ON SCHEMA {schema} TO {user}, or a database that the user owns.",
    )


def _today(connection: psycopg.Connection[Any]) -> str:
    return str(_scalar(connection, "SELECT to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD')"))


def _scalar(connection: psycopg.Connection[Any], query: str) -> Any:
    row = connection.execute(query).fetchone()
    return None if row is None else row[0]


def _place(connection: psycopg.Connection[Any]) -> str:
    """Return which database, for messages; no password is in it."""
    info = connection.info
    return f"the database {info.dbname} at {info.host or 'this machine'}:{info.port}"


def _said(error: psycopg.Error) -> str:
    return str(error).strip().rstrip(".").replace("\n", " ")
