"""Bring a store to the schema of this version, by Alembic; refuse a store that is newer.

Alembic and SQLAlchemy take a third of a second to import, so a store that is up to date is told by one plain
statement, and they are imported only when there is something to do.
"""

from __future__ import annotations

import secrets
import sqlite3
import uuid
from pathlib import Path

from dispatcher.errors import StoreUnusable

HEAD = "0001"
_KNOWN = ("0001",)


def schema_version(connection: sqlite3.Connection) -> str | None:
    """Return the revision that the store is at, None for an empty one. Raises StoreUnusable for a foreign file."""
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if not tables:
        return None
    if "alembic_version" not in tables:
        raise StoreUnusable(
            "the file is an SQLite database, but not a store of the dispatcher.",
            hint="Name another file with --store sqlite:///PATH.",
        )
    row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    return str(row[0]) if row else None


def version_at(path: Path) -> str | None:
    """Return the revision of the store at `path` without writing to it, None where there is none yet.

    Raises StoreUnusable for a foreign file, sqlite3.Error for what is no database or cannot be read.
    """
    if not path.exists() or path.stat().st_size == 0:
        return None
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
    try:
        return schema_version(connection)
    finally:
        connection.close()


def refuse_newer(version: str | None) -> None:
    """Raise StoreUnusable when the store was made by a later version of the dispatcher."""
    if version is not None and version not in _KNOWN:
        raise StoreUnusable(
            f"the store has schema {version}, which is newer than this version knows ({HEAD}); nothing was touched.",
            hint="Install the version of the dispatcher that made it, or name another store.",
        )


def upgrade(path: Path) -> list[str]:
    """Migrate the store at `path` to HEAD; return the revisions applied. The caller holds the store's lock."""
    from alembic import command  # noqa: PLC0415 - dear to import, see the module's charter
    from alembic.config import Config  # noqa: PLC0415
    from sqlalchemy import create_engine, event  # noqa: PLC0415
    from sqlalchemy.pool import NullPool  # noqa: PLC0415

    engine = create_engine(f"sqlite:///{path}", poolclass=NullPool)

    # Python's own transaction handling would commit before each CREATE TABLE and leave half a schema after a crash.
    @event.listens_for(engine, "connect")
    def _no_implicit_transactions(connection: sqlite3.Connection, _record: object) -> None:
        connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def _begin(connection: object) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")  # type: ignore[attr-defined]

    with engine.begin() as connection:
        raw = connection.connection.driver_connection
        assert isinstance(raw, sqlite3.Connection)
        before = schema_version(raw)
        refuse_newer(before)
        if before == HEAD:
            return []
        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
        config.attributes["connection"] = connection
        command.upgrade(config, HEAD)
        if before is None:
            facts = [("installation", uuid.uuid4().hex), ("secret", secrets.token_hex(32))]
            raw.executemany("INSERT INTO facts (name, value) VALUES (?, ?)", facts)
    start = 0 if before is None else _KNOWN.index(before) + 1
    return list(_KNOWN[start:])
