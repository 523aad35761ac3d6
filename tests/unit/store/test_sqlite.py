"""What only a store in a file has: its settings, its lock, its folder, a disk that may be full."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from dispatcher.engine.records import Changes
from dispatcher.errors import StoreInUse, StoreUnusable
from dispatcher.store.sqlite.store import SqliteStore

ONE = "chains: [{name: c, on: {event_type: done}, steps: [{handler: scripted}]}]\n"


@pytest.fixture
def place(sqlite_place):
    """These are about the file."""
    return sqlite_place


# Transactions.


def test_transaction_takes_the_write_lock_at_its_begin(world):
    with (
        world.store.transaction(),
        closing(sqlite3.connect(world.store.path, timeout=0)) as other,
        pytest.raises(sqlite3.OperationalError, match="locked"),
    ):
        other.execute("BEGIN IMMEDIATE")


@pytest.mark.parametrize(
    ("pragma", "value"), [("journal_mode", "wal"), ("synchronous", 2), ("mmap_size", 0), ("busy_timeout", 5000)]
)
def test_connection_is_set_for_durability(world, pragma, value):
    assert world.store.connection.execute(f"PRAGMA {pragma}").fetchone() == (value,)


def test_full_file_is_told_and_the_store_goes_on_once_there_is_room(world):
    pages = world.store.connection.execute("PRAGMA page_count").fetchone()[0]
    world.store.connection.execute(f"PRAGMA max_page_count = {pages + 2}").fetchone()
    changes = Changes()
    row = ("delivery", "bad_json", "", None, None, None, b"x" * 4000, "2026-01-01T00:00:00.000000Z")
    changes.dead_letters.extend((f"d{n}", *row) for n in range(50))

    def write():
        with world.store.transaction() as transaction:
            transaction.flush(changes)
            transaction.commit()

    with pytest.raises(StoreUnusable, match=r"full.*Free some space"):
        write()
    assert world.rows("dead_letters") == []
    world.store.connection.execute("PRAGMA max_page_count = 100000").fetchone()
    write()
    assert len(world.rows("dead_letters")) == 50


# Opening.


def test_second_holder_is_refused_with_the_pid_of_the_first(world):
    with pytest.raises(StoreInUse, match=str(os.getpid())):
        SqliteStore.open(world.store.path)


def test_store_can_be_opened_again_after_a_refusal_and_after_a_close(tmp_path):
    path = tmp_path / "store.db"
    path.write_bytes(b"no database at all, but long enough to be looked at" * 100)
    for _ in range(2):
        with pytest.raises(StoreUnusable, match="not a database"):
            SqliteStore.open(path)
    path.unlink()
    for _ in range(2):
        SqliteStore.open(path).close()


def test_new_store_has_a_lasting_identity_and_is_private(tmp_path):
    path = tmp_path / "store.db"
    first = SqliteStore.open(path)
    facts = first.facts
    first.close()
    again = SqliteStore.open(path)
    assert again.facts == facts
    assert set(facts) >= {"installation", "secret"}
    again.close()


def test_store_of_a_newer_version_is_refused_and_not_touched(world):
    path = world.store.path
    world.store.connection.execute("UPDATE alembic_version SET version_num = '9999'")
    world.store.close()
    before = path.read_bytes()
    with pytest.raises(StoreUnusable, match="newer"):
        SqliteStore.open(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("what", ["folder", "missing folder", "file as folder"])
def test_place_where_no_store_can_be_is_told(tmp_path, what):
    (tmp_path / "file").write_text("x")
    path = {"folder": tmp_path, "missing folder": tmp_path / "no" / "s.db", "file as folder": tmp_path / "file" / "s"}
    with pytest.raises(StoreUnusable) as caught:
        SqliteStore.open(path[what])
    assert str(path[what]) in str(caught.value)


def test_seqs_go_on_where_the_last_holder_stopped(world):
    world.rules(ONE).publish({"event_id": "e1"}, {"event_id": "e2"})
    path = world.store.path
    world.store.close()
    store = SqliteStore.open(path)
    with store.transaction() as transaction:
        assert transaction.reserve("events") == 3
        assert transaction.reserve("runs") == 3
    store.close()


def test_killed_writer_leaves_what_it_had_committed_and_nothing_else(tmp_path, empty_store):
    path = tmp_path / "store.db"
    path.write_bytes(empty_store.read_bytes())
    script = (
        "import os, sys; from pathlib import Path; from dispatcher.store.sqlite.store import SqliteStore;"
        "from dispatcher.engine.records import Changes;"
        "store = SqliteStore.open(Path(sys.argv[1])); row = ('delivery', 'bad_json', '', None, None, None, b'x', 'at');"
        "committed, other = Changes(), Changes();"
        "committed.dead_letters.append(('kept', *row)); other.dead_letters.append(('lost', *row));"
        "first = store.transaction(); t = first.__enter__(); t.flush(committed); t.commit(); first.__exit__(*[None]*3);"
        "second = store.transaction(); t = second.__enter__(); t.flush(other); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", script, str(path)], check=False, timeout=30)
    store = SqliteStore.open(path)
    assert store.connection.execute("SELECT dead_id FROM dead_letters").fetchall() == [("kept",)]
    assert store.connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    store.close()


def test_lock_file_is_for_its_owner_alone(world):
    mode = Path(f"{world.store.path}.lock").stat().st_mode
    assert stat.S_IMODE(mode) == 0o600
