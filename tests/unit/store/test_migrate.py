"""The revisions lead from nothing to the schema, and a store of a later version is left alone."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
import sqlalchemy
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from dispatcher.errors import StoreUnusable
from dispatcher.store import migrate
from dispatcher.store.schema import metadata
from dispatcher.store.sqlite import SqliteStore


def test_migrating_from_nothing_leads_to_the_schema(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    assert migrate.upgrade(path) == ["0001", "0002"]
    engine = sqlalchemy.create_engine(f"sqlite:///{path}")
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    engine.dispose()


def test_the_partial_indexes_are_those_of_the_schema(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    migrate.upgrade(path)
    fresh = sqlalchemy.create_engine("sqlite://")
    metadata.create_all(fresh)
    wanted = "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL ORDER BY name"
    with fresh.connect() as connection:
        expected = [tuple(row) for row in connection.exec_driver_sql(wanted)]
    fresh.dispose()
    with sqlite3.connect(path) as connection:
        found = connection.execute(wanted).fetchall()
    connection.close()
    assert [(name, " ".join(sql.split())) for name, sql in found] == [
        (name, " ".join(sql.split())) for name, sql in expected
    ]


def test_a_new_store_is_what_the_revisions_lead_to() -> None:
    """`python -m dispatcher.store.migrate` writes the file anew after a revision was added."""
    assert Path(migrate.__file__).with_name("fresh.sql").read_text() == migrate.schema_of_revisions()


def test_a_new_store_is_for_its_owner_only(tmp_path: Path) -> None:
    store = SqliteStore.open(tmp_path / "a.db")
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in tmp_path.iterdir()} == dict.fromkeys(
        ("a.db", "a.db-shm", "a.db-wal", "a.db.lock"), "0o600"
    )
    store.close()


def test_head_is_the_last_revision() -> None:
    scripts = ScriptDirectory(str(Path(migrate.__file__).parent / "migrations"))
    assert scripts.get_current_head() == migrate.HEAD


def test_migrating_twice_does_nothing_the_second_time(tmp_path: Path) -> None:
    migrate.upgrade(tmp_path / "a.db")
    assert migrate.upgrade(tmp_path / "a.db") == []


def test_a_store_of_a_newer_version_is_refused_and_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    migrate.upgrade(path)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(StoreUnusable, match="newer than this version"):
        SqliteStore.open(path)
    assert path.read_bytes() == before
    assert sorted(found.name for found in tmp_path.iterdir()) == ["a.db", "a.db.lock"]


def test_another_programs_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE bookmarks (url TEXT)")
    connection.close()
    with pytest.raises(StoreUnusable, match="not a store of the dispatcher"):
        SqliteStore.open(path)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    path.write_text("this is a letter, and a long one at that " * 100)
    with pytest.raises(StoreUnusable, match="cannot be used"):
        SqliteStore.open(path)
