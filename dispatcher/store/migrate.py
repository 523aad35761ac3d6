"""Bring a store in a file to the schema of this version, by Alembic; refuse a store that is newer.

Alembic and SQLAlchemy take a third of a second to import, so they are imported only to bring an older store forward.
One that is up to date is told by one plain statement, and a new one is made from `fresh.sql`: the schema to which the
revisions lead, as a test proves and `python -m dispatcher.store.migrate` writes it. The revisions are the same for
PostgreSQL; `postgres.migrate` brings them to it.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
import tempfile
import uuid
from contextlib import closing
from pathlib import Path

from dispatcher.errors import StoreUnusable

HEAD = "0003"
REVISIONS = ("0001", "0002", HEAD)
_FRESH = Path(__file__).with_name("fresh.sql")


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
    if version is not None and version not in REVISIONS:
        raise StoreUnusable(
            f"the store has schema {version}, which is newer than this version knows ({HEAD}); nothing was touched.",
            hint="Install the version of the dispatcher that made it, or name another store.",
        )


def upgrade(path: Path) -> list[str]:
    """Migrate the store at `path` to HEAD; return the revisions applied. The caller holds the store's lock."""
    if version_at(path) is None:
        _make(path)
        return list(REVISIONS)
    return _bring_forward(path)


def _bring_forward(path: Path) -> list[str]:
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
    return list(REVISIONS[REVISIONS.index(before) + 1 :] if before in REVISIONS else REVISIONS)


def _make(path: Path) -> None:
    """Make a new store at HEAD, in one transaction: a crash leaves an empty file, not half a store."""
    # For its owner only, as it is full of people's numbers; SQLite gives the files beside it the same mode.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.execute("BEGIN IMMEDIATE")
        for statement in _FRESH.read_text(encoding="utf-8").split(";\n"):
            connection.execute(statement)
        connection.execute("INSERT INTO alembic_version (version_num) VALUES (?)", (HEAD,))
        facts = [("installation", uuid.uuid4().hex), ("secret", secrets.token_hex(32))]
        connection.executemany("INSERT INTO facts (name, value) VALUES (?, ?)", facts)
        connection.execute("COMMIT")
    finally:
        connection.close()


def schema_of_revisions() -> str:
    """Return the schema to which the revisions lead, as the text of `fresh.sql`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store.db"
        # Something must be there for `upgrade` to bring forward: the table in which Alembic keeps its place.
        with closing(sqlite3.connect(path)) as connection:
            connection.execute(
                "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL, "
                "CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num))"
            )
        _bring_forward(path)
        with closing(sqlite3.connect(path)) as connection:
            rows = connection.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY rowid").fetchall()
    return ";\n".join(" ".join(sql.split()) for (sql,) in rows) + ";\n"


if __name__ == "__main__":
    _FRESH.write_text(schema_of_revisions(), encoding="utf-8")
