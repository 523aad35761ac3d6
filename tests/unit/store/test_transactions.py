"""The store's transactions: whole or not at all, its administered changes, and the rows that it refuses."""

from __future__ import annotations

import subprocess
import sys

import pytest
import sqlalchemy

from dispatcher.engine.records import Changes
from dispatcher.errors import RowsRefused, StoreUnusable
from dispatcher.store.reading import open_reader
from dispatcher.store.schema import suppressions

ONE = "chains: [{name: c, on: {event_type: done}, steps: [{handler: scripted}]}]\n"
SUPPRESS = sqlalchemy.insert(suppressions).values(number_hash=b"0", at="2026")


def letter(number):
    return (f"d{number}", "delivery", "bad_json", "", None, None, None, b"x", "2026-01-01T00:00:00.000000Z")


def a_letter(number=1):
    changes = Changes()
    changes.dead_letters.append(letter(number))
    return changes


def seen_by_others(world, table="dead_letters"):
    with open_reader(world.place.source) as connection:
        return connection.execute(sqlalchemy.text(f"SELECT count(*) FROM {table}")).scalar()


def test_committed_transaction_is_there_for_others(world):
    with world.store.transaction() as transaction:
        transaction.flush(a_letter())
        assert seen_by_others(world) == 0
        transaction.commit()
    assert seen_by_others(world) == 1


def test_transaction_that_is_left_without_commit_leaves_nothing(world):
    with world.store.transaction() as transaction:
        transaction.flush(a_letter())
    assert world.rows("dead_letters") == []
    assert not world.place.in_transaction


def test_exception_rolls_back_everything_before_it(world):
    def fail():
        with world.store.transaction() as transaction:
            transaction.flush(a_letter())
            raise KeyError("unforeseen")

    with pytest.raises(KeyError):
        fail()
    assert world.rows("dead_letters") == []
    assert not world.place.in_transaction


def test_outer_rollback_leaves_nothing_of_any_statement_within(world):
    # Python's own transaction handling for SQLite would commit before a CREATE and begin again after it.
    execute = world.store.connection.execute
    with world.store.transaction() as transaction:
        transaction.flush(a_letter())
        execute("CREATE TABLE extra (x INTEGER)")
        execute("INSERT INTO extra VALUES (1)")
        world.store.connection.cursor().executemany("INSERT INTO opt_outs VALUES ('a', 'b', 'c', 'd')", [()])
        assert execute("SELECT * FROM extra").fetchall() == [(1,)]
    assert world.rows("dead_letters") == world.rows("opt_outs") == []
    assert seen_by_others(world, "opt_outs") == 0
    with world.store.transaction():
        execute("CREATE TABLE extra (x INTEGER)")  # there is none


def test_administered_change_is_committed_through_sqlalchemy(world):
    world.store.administer(lambda connection: connection.execute(SUPPRESS))
    assert seen_by_others(world, "suppressions") == 1
    assert not world.place.in_transaction


def test_administered_change_gives_back_what_it_returns(world):
    assert world.store.administer(lambda connection: connection.execute(sqlalchemy.text("SELECT 7")).scalar()) == 7


def test_administered_change_that_raises_leaves_nothing(world):
    def change(connection):
        connection.execute(SUPPRESS)
        raise KeyError("unforeseen")

    with pytest.raises(KeyError):
        world.store.administer(change)
    assert seen_by_others(world, "suppressions") == 0
    assert not world.place.in_transaction


def test_administered_change_and_a_transaction_within_it_are_one(world):
    def change(connection):
        world.store.within(connection).flush(a_letter())
        assert seen_by_others(world) == 0
        connection.execute(SUPPRESS)

    world.store.administer(change)
    assert (seen_by_others(world), seen_by_others(world, "suppressions")) == (1, 1)


def test_row_that_the_database_refuses_is_told_as_such(world):
    changes = a_letter()
    changes.dead_letters.append(letter(1))

    def write():
        with world.store.transaction() as transaction:
            transaction.flush(changes)

    with pytest.raises(RowsRefused, match=r"(?i)unique"):
        write()
    assert world.rows("dead_letters") == []


def test_store_goes_on_after_a_refused_row(world):
    changes = a_letter()
    changes.dead_letters.append(letter(1))
    with world.store.transaction() as transaction, pytest.raises(RowsRefused):
        transaction.flush(changes)
    with world.store.transaction() as transaction:
        transaction.flush(a_letter())
        transaction.commit()
    assert world.rows("dead_letters", "dead_id") == [("d1",)]


@pytest.mark.parametrize("impossible", ["\ud800", object(), None], ids=["surrogate", "object", "nothing"])
def test_value_that_no_row_can_hold_is_a_refused_row_and_not_a_broken_store(world, impossible):
    changes = Changes()
    changes.dead_letters.append((*letter(1)[:3], impossible, *letter(1)[4:]))
    with world.store.transaction() as transaction, pytest.raises(RowsRefused):
        transaction.flush(changes)


def test_number_that_no_row_can_hold_is_a_refused_row_and_not_a_broken_store(world):
    changes = Changes()
    changes.unacked.append(("channel", 2**63, 1, None, "vumi.event", b"0", None, "2026-01-01"))
    with world.store.transaction() as transaction, pytest.raises(RowsRefused):
        transaction.flush(changes)


def test_new_store_has_a_lasting_identity(world):
    facts = dict(world.store.facts)
    assert set(facts) >= {"installation", "secret"}
    assert world.reopen().facts == facts


def test_store_of_a_newer_version_is_refused(world):
    world.sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(StoreUnusable, match="newer"):
        world.reopen()


def test_numbers_go_on_where_the_last_holder_stopped(world):
    world.rules(ONE).publish({"event_id": "e1"}, {"event_id": "e2"})
    last = {table: max(seq for (seq,) in world.rows(table, "seq")) for table in ("events", "runs")}
    world.reopen()
    with world.store.transaction() as transaction:
        for table, seq in last.items():
            found = [transaction.reserve(table) for _ in range(100)]
            assert found == sorted(set(found))
            assert found[0] > seq


KILLED = """
import os, sys
from dispatcher.engine.records import Changes
from dispatcher.store.opening import open_store

store = open_store(sys.argv[1])
row = ("delivery", "bad_json", "", None, None, None, b"x", "at")
committed, other = Changes(), Changes()
committed.dead_letters.append(("kept", *row))
other.dead_letters.append(("lost", *row))
with store.transaction() as transaction:
    transaction.flush(committed)
    transaction.commit()
with store.transaction() as transaction:
    transaction.flush(other)
    os.kill(os.getpid(), 9)
"""


def test_killed_writer_leaves_what_it_had_committed_and_nothing_else(place):
    killed = subprocess.run([sys.executable, "-c", KILLED, place.setting], check=False, timeout=30)
    assert killed.returncode == -9
    place.open()
    assert place.query("SELECT dead_id FROM dead_letters")[1] == [("kept",)]
