"""The days of a PostgreSQL store: made ahead by whoever comes first, dropped beside everything that goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import closing
from typing import Any

import psycopg
import pytest
from psycopg import errors

from dispatcher.store.postgres import partitions
from dispatcher.store.postgres.migrate import upgrade
from tests.harness.waiting import wait_until

# Far from the days that the migration makes, which these tests leave alone.
TODAY = "2031-03-01"
YESTERDAY = "2031-02-28"
TOMORROW = "2031-03-02"
EVENT = (
    "INSERT INTO events (seq, event_id, account_key, conversation_key, event_type, event_data, timestamp, received_at, "
    "received_on, source, root_id, hops, weak, state) "
    "VALUES (%s, 'e', 'a', 'c', 't', '{}', '', '', %s, 's', 'e', 0, false, 'new')"
)
DROP = """
import sys
import psycopg
from dispatcher.store.postgres import partitions
with psycopg.connect(sys.argv[1], autocommit=True) as connection:
    connection.execute("SET application_name = 'dropping'")
    # As long as the test takes.
    partitions._PATIENCE = "0"
    partitions.drop(connection, sys.argv[2])
"""


@pytest.fixture
def store(postgres):
    upgrade(postgres)
    return postgres


@pytest.fixture
def connection(store):
    with closing(connected(store)) as connection:
        yield connection


@pytest.fixture
def other(store):
    """Somebody who does other things meanwhile."""
    with closing(psycopg.connect(store)) as connection:
        yield connection


def connected(url: str) -> psycopg.Connection[Any]:
    return psycopg.connect(url, autocommit=True)


def tables(connection) -> set[str]:
    found = connection.execute("SELECT relname FROM pg_class WHERE relispartition AND relname ~ '_p2031[0-9]{4}$'")
    return {name for (name,) in found}


def of(*wanted: str) -> set[str]:
    return {partitions.name_of(table, day) for table in partitions.TABLES for day in wanted}


def days(connection) -> list[str]:
    return [day for day in partitions.days(connection) if day.startswith("2031")]


def add_event(connection, seq: int, day: str) -> None:
    connection.execute(EVENT, (seq, day))


def events(connection) -> list[int]:
    return [seq for (seq,) in connection.execute("SELECT seq FROM events ORDER BY seq")]


def waits_for_a_lock(connection, count: int = 1) -> bool:
    found = connection.execute(
        "SELECT count(DISTINCT pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    return found.fetchone()[0] >= count


def test_days_from_yesterday_on_are_made_for_every_table_that_grows(connection):
    made = partitions.ensure(connection, TODAY, ahead=1)
    assert set(made) == tables(connection) == of(YESTERDAY, TODAY, TOMORROW)
    assert days(connection) == [YESTERDAY, TODAY, TOMORROW]
    assert partitions.ensure(connection, TODAY, ahead=1) == []
    assert set(partitions.ensure(connection, TOMORROW, ahead=1)) == of("2031-03-03")


def test_a_row_goes_to_the_day_that_it_is_of_and_one_of_no_day_is_refused(connection):
    partitions.ensure(connection, TODAY, ahead=0)
    add_event(connection, 1, TODAY)
    add_event(connection, 2, YESTERDAY)
    assert connection.execute("SELECT seq FROM events_p20310301").fetchall() == [(1,)]
    with pytest.raises(errors.CheckViolation):
        add_event(connection, 3, TOMORROW)


def test_a_day_has_the_indexes_of_its_table(connection):
    partitions.ensure(connection, TODAY, ahead=0)
    counts = dict(connection.execute("SELECT tablename, count(*) FROM pg_indexes GROUP BY 1").fetchall())
    for table in partitions.TABLES:
        assert counts[table] > 0
        assert counts[partitions.name_of(table, TODAY)] == counts[table]


def test_days_are_made_within_a_transaction_and_by_a_cursor_too(store, connection):
    with psycopg.connect(store) as transaction:
        partitions.ensure(transaction.cursor(), TODAY, ahead=0)
        transaction.rollback()
        assert days(connection) == []
        partitions.ensure(transaction, TODAY, ahead=0)
    assert days(connection) == [YESTERDAY, TODAY]


def test_of_eight_who_make_the_same_days_at_once_none_fails(store, connection, other):
    other.execute("LOCK TABLE events IN SHARE UPDATE EXCLUSIVE MODE")
    made = []

    def make() -> None:
        with closing(connected(store)) as own:
            made.append(partitions.ensure(own, TODAY))

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    wait_until(lambda: waits_for_a_lock(connection, 8), "eight who have seen that the days are missing")
    other.rollback()
    for thread in threads:
        thread.join()
    assert sorted(map(len, made)) == [0] * 7 + [4 * 9]


def test_a_day_is_made_beside_open_transactions_that_write(connection, other):
    partitions.ensure(connection, TODAY, ahead=0)
    add_event(other, 1, TODAY)
    assert set(partitions.ensure(connection, TOMORROW, ahead=0)) == of(TOMORROW)
    add_event(other, 2, TODAY)
    other.commit()
    assert events(connection) == [1, 2]


def test_a_day_far_ahead_is_left_for_the_next_time_when_somebody_is_in_the_way(connection, other):
    partitions.ensure(connection, TODAY, ahead=1)
    other.execute("LOCK TABLE events IN SHARE UPDATE EXCLUSIVE MODE")
    assert partitions.ensure(connection, TODAY, ahead=2) == []
    other.rollback()
    assert set(partitions.ensure(connection, TODAY, ahead=2)) == of("2031-03-03")


def test_a_day_is_dropped_with_what_is_in_it_and_the_others_stay(connection):
    partitions.ensure(connection, TODAY, ahead=0)
    add_event(connection, 1, TODAY)
    add_event(connection, 2, YESTERDAY)
    assert partitions.drop(connection, YESTERDAY)
    assert events(connection) == [1]
    assert days(connection) == [TODAY]
    assert partitions.drop(connection, YESTERDAY)


def test_nobody_waits_for_a_drop_that_waits_for_a_long_reader(store, connection, other):
    partitions.ensure(connection, TODAY, ahead=0)
    add_event(connection, 1, YESTERDAY)
    other.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    assert events(other) == [1]
    dropping = subprocess.Popen([sys.executable, "-c", DROP, store, YESTERDAY])
    wait_until(lambda: waits_for_a_lock(connection), "a drop that waits for the reader")
    # The one that waits does not keep these waiting: the server gives them a second at most.
    connection.execute("SET lock_timeout = '1s'")
    add_event(connection, 2, TODAY)
    assert events(connection) == [2]
    assert events(other) == [1]
    other.rollback()
    assert dropping.wait(timeout=60) == 0
    assert days(connection) == [TODAY]


def test_a_drop_gives_up_on_a_long_reader_and_is_completed_the_next_time(connection, other):
    partitions.ensure(connection, TODAY, ahead=0)
    events(other)
    assert not partitions.drop(connection, YESTERDAY)
    assert days(connection) == [YESTERDAY, TODAY]
    # Days to come are made all the same.
    assert set(partitions.ensure(connection, TOMORROW, ahead=0)) == of(TOMORROW)
    other.rollback()
    assert partitions.drop(connection, YESTERDAY)
    assert days(connection) == [TODAY, TOMORROW]


def test_a_drop_that_was_killed_is_completed_even_by_one_of_another_day(store, connection, other):
    partitions.ensure(connection, TODAY, ahead=0)
    events(other)
    dropping = subprocess.Popen([sys.executable, "-c", DROP, store, YESTERDAY])
    wait_until(lambda: waits_for_a_lock(connection), "a drop that waits for the reader")
    os.kill(dropping.pid, signal.SIGKILL)
    dropping.wait()
    connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'dropping'")
    other.rollback()
    assert wait_until(lambda: partitions.drop(connection, TODAY), "the end of the killed one's backend")
    assert days(connection) == [YESTERDAY]
    assert partitions.drop(connection, YESTERDAY)
    assert days(connection) == []


def test_only_one_drops_at_a_time(store, connection, other):
    partitions.ensure(connection, TODAY, ahead=0)
    events(other)
    dropping = subprocess.Popen([sys.executable, "-c", DROP, store, YESTERDAY])
    wait_until(lambda: waits_for_a_lock(connection), "a drop that waits for the reader")
    assert not partitions.drop(connection, TODAY)
    other.rollback()
    assert dropping.wait(timeout=60) == 0
    assert days(connection) == [TODAY]


def test_the_limits_of_a_connection_are_as_they_were_after_a_drop(connection):
    connection.execute("SET lock_timeout = '7s'")
    partitions.ensure(connection, TODAY, ahead=0)
    partitions.drop(connection, TODAY)
    partitions.ensure(connection, TODAY, ahead=2)
    assert connection.execute("SHOW lock_timeout").fetchone() == ("7s",)
