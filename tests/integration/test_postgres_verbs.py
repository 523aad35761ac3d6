"""People's verbs on a store that workers and other people write at the same moment: one wins, the other is told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import timedelta

import psycopg
import pytest

from dispatcher import Failed
from dispatcher.engine.records import OPEN_LANE, as_text
from dispatcher.errors import NotPossible, StoreUnusable
from dispatcher.events.limits import Limits
from dispatcher.store.postgres import partitions
from dispatcher.store.postgres.store import PostgresStore
from dispatcher.store.retention import REOPENING, Keep, Retention
from dispatcher.worker.administration import Administrator, perform
from tests.harness.waiting import wait_until
from tests.unit.engine.conftest import emptied_databases, postgres_place, registry, world

__all__ = ["emptied_databases", "postgres_place", "registry", "world"]

RULES = """
chains:
  - name: c
    on: {event_type: done}
    steps: [{handler: scripted, with: {say: hi}}]
  - name: waits
    on: {event_type: wait}
    steps: [{wait: 1d}, {handler: scripted, with: {say: hi}}]
  - name: texts
    on: {event_type: text}
    steps:
      - {id: contact, handler: create_contact, with: {msisdn: "{{ data.msisdn }}", name: "{{ data.name }}"}}
      - {handler: send_sms, with: {to: "{{ steps.contact.msisdn }}", text: "Dear {{ data.name }}"}}
      - {handler: emit_event, with: {event_type: welcomed, event_data: {who: "{{ data.msisdn }}"}}}
"""
NUMBER = "+27821234567"
KEEP = Keep(done=10, failed=30, skipped=20, dedupe=5)


@pytest.fixture
def place(postgres_place):
    return postgres_place


@pytest.fixture
def people(world):
    """Lets somebody do something in a process of their own, as it were; `done` waits for what came of it."""
    with ThreadPoolExecutor() as threads:

        def act(verb, **args):
            def work():
                with closing(PostgresStore.open(world.place.url)) as store:
                    return perform(store, verb, {"actor": "ann", **args}, world.clock.now(), limits=Limits())

            return threads.submit(work)

        yield act


@contextmanager
def batch(world, *, due=False):
    """Let a worker do a batch, which is written and not yet committed while the test does what it does."""
    with world.store.transaction() as transaction:
        batch = world.engine.begin(transaction)
        batch.start(transaction.take_new(256))
        if due:
            batch.resume(transaction.take_due(OPEN_LANE, as_text(world.clock.now()), 256))
        batch.advance()
        transaction.flush(batch.overlay.changes)
        yield transaction
        transaction.commit()
    transaction.flushed(batch.overlay.changes)


def until_waiting(world, many=1):
    """Wait until so many wait for a lock that others have."""
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    wait_until(lambda: world.sql(waiting)[0][0] >= many, f"{many} to wait for a lock")


@contextmanager
def locked(world, statement):
    """Have somebody else lock rows."""
    with psycopg.connect(world.place.url) as other:
        other.execute(f"{statement} FOR UPDATE")
        yield other


def what_came(*futures):
    """Return the results, or what was raised instead."""
    return [future.exception() or future.result() for future in futures]


def ids(world, table, column):
    return [value for (value,) in world.rows(table, column)]


# Two people.


@pytest.mark.parametrize("kind", ["run", "delivery"])
def test_of_two_people_who_replay_one_letter_one_wins_and_the_other_is_told(world, people, kind):
    world.rules(RULES)
    if kind == "run":
        world.script.append(Failed("no"))
        world.publish(event_id="e1")
    else:
        broken = b'{"account_key": "acc", "conversation_key": "c", "event_type": "done", "event_id": "e9"'
        world.publish(broken)
        world.sql("UPDATE dead_letters SET body = ?", broken + b"}")
    (dead_id,) = ids(world, "dead_letters", "dead_id")
    table = "runs" if kind == "run" else "dead_letters"
    with locked(world, f"SELECT 1 FROM {table}"):
        both = [people("dead.replay", dead=dead_id) for _ in range(2)]
        until_waiting(world, 2)
    came = what_came(*both)
    (lost,) = [entry for entry in came if isinstance(entry, NotPossible)]
    assert "replayed already" in lost.message
    assert sum(entry["changed"] for entry in came if isinstance(entry, dict)) == 1
    assert len(world.rows("events")) == 1


def test_of_two_people_who_retry_one_run_one_wins_and_the_other_is_told(world, people):
    world.rules(RULES)
    world.script.append(Failed("no"))
    world.publish(event_id="e1")
    (run_id,) = ids(world, "runs", "run_id")
    with locked(world, "SELECT 1 FROM runs"):
        both = [people("runs.retry", run=run_id) for _ in range(2)]
        until_waiting(world, 2)
    (lost,) = [entry for entry in what_came(*both) if isinstance(entry, NotPossible)]
    assert lost.hint == "It is due already."
    world.turn()
    assert len(world.seen) == 2


def test_verb_that_met_another_transaction_head_on_is_done_all_the_same(world, people):
    world.rules(RULES)
    world.script.append(Failed("no"))
    world.publish(event_id="e1")
    world.sql(f"ALTER DATABASE {world.sql('SELECT current_database()')[0][0]} SET deadlock_timeout = '2s'")
    (dead_id,) = ids(world, "dead_letters", "dead_id")
    with locked(world, "SELECT 1 FROM dead_letters") as other:
        # Against the order in which everybody takes rows; it waits with more patience, so that the verb gives way.
        other.execute("SET deadlock_timeout = '1min'")
        replayed = people("dead.replay", dead=dead_id)
        until_waiting(world)
        other.execute("SELECT 1 FROM runs FOR UPDATE")
    assert replayed.result()["changed"] == 1


# A person and a worker.


def test_run_that_a_worker_just_finishes_is_not_cancelled_but_told_as_done(world, people):
    world.rules(RULES).publish(event_id="e1", event_type="wait")
    (run_id,) = ids(world, "runs", "run_id")
    world.clock.advance(timedelta(days=1))
    with batch(world, due=True):
        cancelled = people("runs.cancel", run=run_id)
        until_waiting(world)
    (told,) = what_came(cancelled)
    assert isinstance(told, NotPossible)
    assert f"run {run_id} is done already" in told.message
    assert ids(world, "runs", "state") == ["done"]


def test_event_that_a_worker_just_matches_is_judged_by_what_became_of_it(world, people):
    world.rules(RULES).publish(event_id="e1", event_type="else")
    world.sql("UPDATE events SET state = 'new'")
    with batch(world):
        replayed = people("events.replay", event="e1")
        until_waiting(world)
    assert replayed.result()["message"] == "event e1 is matched anew"
    assert ids(world, "events", "state") == ["new"]


def test_text_that_a_worker_just_hands_out_is_not_withdrawn(world, people):
    world.rules(RULES).publish(event_id="e1")
    (run_id,) = ids(world, "runs", "run_id")
    now = as_text(world.clock.now())
    world.sql(
        "INSERT INTO outbox (seq, destination, body, message_id, state, not_before, at, run_id, step) "
        "VALUES (7, 'amqp:x/y', '{}', 'm1', 'ready', ?, ?, ?, 's')", now, now, run_id,
    )  # fmt: skip
    with world.store.transaction() as transaction:
        rows = transaction.outbox.due("", now, 10)
        transaction.outbox.claim(rows)
        cancelled = people("runs.cancel", run=run_id)
        until_waiting(world)
        transaction.commit()
    assert len(rows) == 1
    assert isinstance(what_came(cancelled)[0], NotPossible)
    assert ids(world, "outbox", "state") == ["sending"]


def test_erasure_beside_a_worker_takes_what_the_worker_makes_of_the_person_too(world, people):
    world.rules(RULES).publish(event_id="e1", event_type="else", event_data={"msisdn": NUMBER, "name": "Thandiwe"})
    world.sql("UPDATE events SET state = 'new', event_type = 'text'")
    with batch(world):
        erased = people("contacts.erase", contact=NUMBER, account="acc")
        until_waiting(world)
    assert "the person is erased" in erased.result()["message"]
    assert world.rows("contacts") == []
    everything = repr([world.rows(table) for table in ("events", "runs", "steps", "messages", "outbox", "event_ids")])
    assert "Thandiwe" not in everything
    assert "821234567" not in everything
    assert len(world.rows("suppressions")) == 1


def test_reader_that_still_sees_what_was_erased_is_told(world, people):
    world.rules(RULES).publish(event_id="e1", event_type="text", event_data={"msisdn": NUMBER, "name": "Thandiwe"})
    with psycopg.connect(world.place.url) as reader:
        reader.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        reader.execute("SELECT count(*) FROM events")
        left = people("contacts.erase", contact=NUMBER, account="acc").result()["left"]
    assert [where for where, _ in left] == ["its tables"]
    assert people("contacts.erase", contact=NUMBER, account="acc").result()["left"] == []


# Retention.


def forget(world, days):
    retention = Retention(world.store, KEEP)
    steps = 0
    while retention.step(world.clock.now() + timedelta(days=days)):
        steps += 1
    return steps


def test_day_that_is_over_is_dropped_and_one_that_is_not_is_kept_until_it_is(world):
    world.rules(RULES).publish({"event_id": "e1"}, {"event_id": "w1", "event_type": "wait"}, b"nonsense")
    day = f"{world.clock.now():%Y-%m-%d}"
    forget(world, 31)
    assert ids(world, "events", "event_id") == ["w1"]
    assert ids(world, "event_ids", "event_id") == ["w1"]
    assert world.rows("dead_letters") == []
    assert day in partitions.days(world.place.connection)
    world.turn(after=timedelta(days=1))
    forget(world, 31)
    assert {table: world.rows(table) for table in ("events", "event_ids", "runs", "steps")} == {
        "events": [], "event_ids": [], "runs": [], "steps": [],
    }  # fmt: skip
    assert day not in partitions.days(world.place.connection)


def test_days_to_come_are_made(world):
    world.rules(RULES)
    forget(world, 0)
    today = world.sql("SELECT to_char(now() AT TIME ZONE 'UTC' + interval '7 days', 'YYYY-MM-DD')")[0][0]
    assert today in partitions.days(world.place.connection)


def test_nothing_is_forgotten_while_a_person_changes_something_or_another_worker_forgets(world):
    world.rules(RULES).publish(event_id="e1")
    with psycopg.connect(world.place.url) as other:
        other.execute("SELECT pg_advisory_xact_lock_shared(%s)", (REOPENING,))
        assert forget(world, 100) <= 1
        assert ids(world, "events", "event_id") == ["e1"]
    with closing(PostgresStore.open(world.place.url)) as store:
        first, second = Retention(world.store, KEEP), Retention(store, KEEP)
        later = world.clock.now() + timedelta(days=100)
        going = [True, True]
        while any(going):
            going = [first.step(later), second.step(later)]
    assert world.rows("events") == []


def test_row_that_somebody_else_has_locked_is_left_for_the_next_walk(world):
    world.rules(RULES).publish({"event_id": "e1"}, {"event_id": "w1", "event_type": "wait"})
    world.store.connection.execute("SET lock_timeout = '50ms'")
    with locked(world, "SELECT 1 FROM runs WHERE event_id = 'e1'"):
        forget(world, 31)
        assert ids(world, "events", "event_id") == ["e1", "w1"]
    forget(world, 31)
    assert ids(world, "events", "event_id") == ["w1"]


def test_many_old_rows_of_a_day_that_stays_go_in_chunks(world, monkeypatch):
    world.rules(RULES)
    world.publish(*({"event_id": f"e{n}", "event_type": "else"} for n in range(30)), {"event_type": "wait"})
    world.sql(
        "INSERT INTO events SELECT seq + 100000 + n, event_id || '-' || n, account_key, conversation_key, "
        "conversation_type, event_type, event_data, timestamp, received_at, received_on, source, subject, root_id, "
        "parent_id, hops, traceparent, extra, weak, state, rulebook_digest, note, generation, crash_count "
        "FROM events CROSS JOIN generate_series(1, 5000) n WHERE event_id = 'e0'"
    )
    assert forget(world, 31) >= 3
    assert ids(world, "events", "event_type") == ["wait"]


# Commands.


def test_database_without_a_store_is_left_as_it_is(postgres):
    with pytest.raises(StoreUnusable, match="there is no store in"):
        Administrator(postgres, Limits()).request("dead.discard", dead="x")
    with psycopg.connect(postgres) as connection:
        assert connection.execute("SELECT count(*) FROM pg_class WHERE relname = 'facts'").fetchone() == (0,)


def test_command_writes_into_the_database_by_itself_beside_a_worker(world):
    world.rules(RULES).publish(b"nonsense")
    (dead_id,) = ids(world, "dead_letters", "dead_id")
    assert Administrator(world.place.url, Limits()).request("dead.discard", dead=dead_id)["changed"] == 1
    assert ids(world, "audit", "target") == [dead_id]


def test_publishers_of_the_same_events_at_once_store_each_once(postgres, tmp_path):
    file = tmp_path / "events.jsonl"
    body = {"account_key": "a", "conversation_key": "c", "event_type": "t"}
    file.write_text("".join(json.dumps({**body, "event_id": f"e{n}"}) + "\n" for n in range(3000)))
    command = [sys.executable, "-P", "-m", "dispatcher", "publish", "--json", str(file)]
    environ = {**os.environ, "DISPATCHER_STORE": postgres}
    publishers = [
        subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(3)
    ]
    told = []
    for publisher in publishers:
        out, err = publisher.communicate(timeout=120)
        assert publisher.returncode == 0, err
        told.append(json.loads(out))
    assert sum(entry["stored"] for entry in told) == 3000
    assert sum(entry["duplicates"] for entry in told) == 6000
    with psycopg.connect(postgres) as connection:
        assert connection.execute("SELECT count(*) FROM events").fetchone() == (3000,)


def test_publisher_that_has_run_for_longer_than_days_were_made_ahead_goes_on(postgres):
    command = [sys.executable, "-P", "-m", "dispatcher", "publish", "-"]
    environ = {**os.environ, "DISPATCHER_STORE": postgres}
    body = {"account_key": "a", "conversation_key": "c", "event_type": "t"}
    publisher = subprocess.Popen(command, env=environ, stdin=subprocess.PIPE, stderr=subprocess.PIPE)

    def stored(connection):
        found = connection.execute("SELECT to_regclass('event_ids') IS NOT NULL").fetchone()
        return found[0] and connection.execute("SELECT event_id FROM event_ids ORDER BY 1").fetchall()

    with psycopg.connect(postgres, autocommit=True) as connection:
        publisher.stdin.write(json.dumps({**body, "event_id": "e1"}).encode() + b"\n")
        publisher.stdin.flush()
        wait_until(lambda: stored(connection) == [("e1",)], "the first event")
        for day in partitions.days(connection):
            assert partitions.drop(connection, day)
        _, said = publisher.communicate(json.dumps({**body, "event_id": "e2"}).encode() + b"\n", timeout=60)
        assert publisher.returncode == 0, said
        assert stored(connection) == [("e1",), ("e2",)]
