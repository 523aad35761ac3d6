"""The SQLite store: transactions that are ours from BEGIN to COMMIT, fair takes, and what it says when it cannot."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy

from dispatcher.engine.records import Changes, as_text
from dispatcher.errors import RowsRefused, StoreInUse, StoreUnusable
from dispatcher.sources.embedded import admit
from dispatcher.store.sqlite.store import SqliteStore

ONE = "chains: [{name: c, on: {event_type: done}, steps: [{handler: scripted}]}]\n"
WAITING = "chains: [{name: c, on: {event_type: done}, steps: [{wait: 1h}]}]\n"
SUPPRESS = "INSERT INTO suppressions (number_hash, at) VALUES (x'00', '2026')"


def rows(path, statement):
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(statement).fetchall()


def letter(number):
    return (f"d{number}", "delivery", "bad_json", "", None, None, None, b"x", "2026-01-01T00:00:00.000000Z")


def a_letter(number=1):
    changes = Changes()
    changes.dead_letters.append(letter(number))
    return changes


# Transactions.


def test_committed_transaction_is_there_for_others(world):
    with world.store.transaction() as transaction:
        transaction.flush(a_letter())
        assert rows(world.store.path, "SELECT * FROM dead_letters") == []
        transaction.commit()
    assert len(rows(world.store.path, "SELECT * FROM dead_letters")) == 1


def test_transaction_that_is_left_without_commit_leaves_nothing(world):
    with world.store.transaction() as transaction:
        transaction.flush(a_letter())
    assert world.rows("dead_letters") == []
    assert not world.store.connection.in_transaction


def test_exception_rolls_back_everything_before_it(world):
    def fail():
        with world.store.transaction() as transaction:
            transaction.flush(a_letter())
            raise KeyError("unforeseen")

    with pytest.raises(KeyError):
        fail()
    assert world.rows("dead_letters") == []


def test_outer_rollback_leaves_nothing_of_any_statement_within(world):
    # Python's own transaction handling would commit before a CREATE and begin again after it.
    with world.store.transaction() as transaction:
        transaction.flush(a_letter())
        world.store.connection.execute("CREATE TABLE extra (x)")
        world.store.connection.execute("INSERT INTO extra VALUES (1)")
        world.store.connection.executemany("INSERT INTO extra VALUES (?)", [(2,), (3,)])
        world.store.connection.execute("SELECT * FROM extra").fetchall()
    assert world.rows("dead_letters") == []
    with pytest.raises(sqlite3.OperationalError, match="no such table"):
        world.store.connection.execute("SELECT * FROM extra")


def test_transaction_takes_the_write_lock_at_its_begin(world):
    with (
        world.store.transaction(),
        closing(sqlite3.connect(world.store.path, timeout=0)) as other,
        pytest.raises(sqlite3.OperationalError, match="locked"),
    ):
        other.execute("BEGIN IMMEDIATE")


def test_administered_change_is_committed_through_sqlalchemy(world):
    world.store.administer(lambda connection: connection.execute(sqlalchemy.text(SUPPRESS)))
    assert len(rows(world.store.path, "SELECT * FROM suppressions")) == 1
    assert not world.store.connection.in_transaction


def test_administered_change_that_raises_leaves_nothing(world):
    def change(connection):
        connection.execute(sqlalchemy.text(SUPPRESS))
        raise KeyError("unforeseen")

    with pytest.raises(KeyError):
        world.store.administer(change)
    assert rows(world.store.path, "SELECT * FROM suppressions") == []
    assert not world.store.connection.in_transaction


@pytest.mark.parametrize(
    ("pragma", "value"), [("journal_mode", "wal"), ("synchronous", 2), ("mmap_size", 0), ("busy_timeout", 5000)]
)
def test_connection_is_set_for_durability(world, pragma, value):
    assert world.store.connection.execute(f"PRAGMA {pragma}").fetchone() == (value,)


def test_row_that_the_database_refuses_is_told_as_such(world):
    changes = a_letter()
    changes.dead_letters.append(letter(1))

    def write():
        with world.store.transaction() as transaction:
            transaction.flush(changes)

    with pytest.raises(RowsRefused, match="UNIQUE"):
        write()
    assert world.rows("dead_letters") == []


@pytest.mark.parametrize("impossible", [2**63, "\ud800", object()], ids=["huge", "surrogate", "object"])
def test_value_that_no_row_can_hold_is_a_refused_row_and_not_a_broken_store(world, impossible):
    changes = Changes()
    changes.dead_letters.append((*letter(1)[:3], impossible, *letter(1)[4:]))
    with world.store.transaction() as transaction, pytest.raises(RowsRefused):
        transaction.flush(changes)


def test_full_file_is_told_and_the_store_goes_on_once_there_is_room(world):
    pages = world.store.connection.execute("PRAGMA page_count").fetchone()[0]
    world.store.connection.execute(f"PRAGMA max_page_count = {pages + 2}").fetchone()
    changes = Changes()
    changes.dead_letters.extend((f"d{n}", *letter(n)[1:7], b"x" * 4000, letter(n)[8]) for n in range(50))

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


# What is taken.


def stored(world, *events):
    common = {"account_key": "acc", "conversation_key": "c", "event_type": "done", "event_data": {}}
    bodies = [json.dumps(common | event).encode() for event in events]
    admit(world.store, world.engine.intake, bodies, world.clock.now())


def taken(world, limit):
    with world.store.transaction() as transaction:
        return [found.event.event_id for found in transaction.take_new(limit)]


def due(world, limit, lane=""):
    with world.store.transaction() as transaction:
        return [row.values["event_id"] for row in transaction.take_due(lane, as_text(world.clock.now()), limit)]


def test_new_events_are_shared_among_accounts_and_room_left_over_is_used(world):
    world.rules(ONE)
    stored(world, *({"account_key": "a", "event_id": f"a{n}"} for n in range(20)))
    stored(world, {"account_key": "b", "event_id": "b0"}, {"account_key": "c", "event_id": "c0"})
    found = taken(world, 10)
    assert len(found) == 10
    assert {"b0", "c0"} <= set(found)
    assert [event for event in found if event[0] == "a"] == [f"a{n}" for n in range(8)]


def test_accounts_beyond_one_turn_have_the_next_and_then_the_first_again(world):
    world.rules(ONE)
    stored(world, *({"account_key": f"a{n:03d}", "event_id": f"{n}-{m}"} for n in range(40) for m in range(3)))
    first, second = taken(world, 32), taken(world, 32)
    assert {event.partition("-")[0] for event in first} == {str(n) for n in range(32)}
    assert {event.partition("-")[0] for event in second} >= {str(n) for n in range(32, 40)}


def test_suspects_are_not_taken_with_the_others(world):
    world.rules(ONE)
    stored(world, {"event_id": "e1"}, {"event_id": "e2"})
    world.store.connection.execute("UPDATE events SET crash_count = 1 WHERE event_id = 'e1'")
    assert taken(world, 10) == ["e2"]


def test_runs_come_due_in_the_order_of_their_times_and_not_before(world):
    world.rules(WAITING)
    for number in (1, 2, 3):
        world.publish(event_id=f"e{number}")
        world.clock.advance(timedelta(minutes=1))
    assert due(world, 10) == []
    world.clock.advance(timedelta(minutes=58))
    assert due(world, 10) == ["e1", "e2"]
    assert due(world, 1) == ["e1"]
    assert due(world, 10, lane="sender:x") == []


def test_due_runs_are_shared_among_accounts_and_the_longest_due_are_among_them(world):
    world.rules(WAITING)
    world.publish(*({"account_key": "busy", "event_id": f"b{n:02d}"} for n in range(60)))
    world.clock.advance(timedelta(minutes=1))
    world.publish({"account_key": "quiet", "event_id": "q1"}, {"account_key": "still", "event_id": "s1"})
    world.clock.advance(timedelta(hours=2))
    found = due(world, 10)
    assert len(found) == len(set(found)) == 10
    assert {"q1", "s1"} <= set(found)
    assert sum(event[0] == "b" for event in found) == 8


def test_next_due_is_the_soonest_of_what_waits_for_time_alone(world):
    world.rules(WAITING)
    assert world.store.next_due() is None
    world.publish(event_id="e1")
    assert world.store.next_due() == world.rows("runs", "due_at")[0][0]
    world.store.connection.execute("UPDATE runs SET lane = 'calls'")
    assert world.store.next_due() is None
    assert world.store.queued_calls() == {"calls": 1}
