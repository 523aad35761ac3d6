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
from dispatcher.store.sqlite.store import SqliteStore
from dispatcher.testing import FrozenClock
from dispatcher.worker.relay import Relay
from tests.unit.worker.fakes import FakePublisher


def differences(path: Path) -> list[object]:
    """Return in what the tables of a store differ from those of the schema."""
    engine = sqlalchemy.create_engine(f"sqlite:///{path}")
    fresh = sqlalchemy.create_engine("sqlite://")
    metadata.create_all(fresh)
    # Some indexes are for PostgreSQL alone.
    indexes = {found["name"] for table in metadata.tables for found in sqlalchemy.inspect(fresh).get_indexes(table)}
    fresh.dispose()
    options = {"include_object": lambda thing, name, kind, found, _: kind != "index" or found or name in indexes}
    with engine.connect() as connection:
        found = compare_metadata(MigrationContext.configure(connection, opts=options), metadata)
    engine.dispose()
    return found


def test_migrating_from_nothing_leads_to_the_schema(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    assert migrate.upgrade(path) == ["0001", "0002", "0003"]
    assert differences(path) == []


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


def _store_of(revision: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> sqlite3.Connection:
    """Make a store as the version of the dispatcher did that ended at this revision."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)")
    with monkeypatch.context() as patched:
        patched.setattr(migrate, "HEAD", revision)
        migrate._bring_forward(path)
    connection.executemany(
        "INSERT OR IGNORE INTO facts (name, value) VALUES (?, 'x')", [("installation",), ("secret",)]
    )
    return connection


def test_message_that_waited_in_a_store_without_a_relay_is_published_once_it_has_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.db"
    old = _store_of("0001", path, monkeypatch)
    at = "2026-01-01T00:00:00.000000Z"
    columns = "seq, destination, body, message_id, state, not_before, event_id, run_id, at"
    old.executemany(
        f"INSERT INTO outbox ({columns}) VALUES ({', '.join('?' * 9)})",
        [
            (7, "amqp:vumi.events/poll.told", '{"n": 1}', "m1", "ready", at, "e1", "r1", at),
            (9, "amqp:vumi/vumi.api", '{"n": 2}', "m2", "ready", at, None, None, at),
        ],
    )
    old.close()
    store = SqliteStore.open(path)
    publisher = FakePublisher()
    relay = Relay(publisher, FrozenClock())
    relay.recover(store)
    for fate in ("unknown", "confirmed"):
        with store.transaction() as transaction:
            relay.settle(transaction, 10)
            relay.take_due(transaction, 10)
            transaction.commit()
        relay.committed(lambda: None)
        assert [(sent.seq, sent.exchange, sent.routing_key, sent.body, sent.message_id) for sent in publisher.handed][
            -2:
        ] == [
            (7, "vumi.events", "poll.told", b'{"n": 1}', "m1"),
            (9, "vumi", "vumi.api", b'{"n": 2}', "m2"),
        ]
        publisher.tell(fate, reason="connection lost")
    with store.transaction() as transaction:
        relay.settle(transaction, 10)
        transaction.commit()
    relay.committed(lambda: None)
    assert store.connection.execute("SELECT count(*) FROM outbox").fetchone() == (0,)
    assert store.seqs["outbox"] == 9
    store.close()


def test_store_of_every_revision_is_brought_to_the_schema(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for revision in migrate.REVISIONS:
        path = tmp_path / f"{revision}.db"
        _store_of(revision, path, monkeypatch).close()
        SqliteStore.open(path).close()
        assert differences(path) == []
