"""Two workers over one PostgreSQL store: neither takes what the other has in hand, and both see what the other did."""

from __future__ import annotations

import json
import threading
from datetime import timedelta

import pytest

from dispatcher import Done
from dispatcher.engine.intake import Delivery
from dispatcher.engine.records import OPEN_LANE, as_text
from dispatcher.errors import Contended, StoreUnusable
from dispatcher.store.postgres.store import PostgresStore
from tests.harness.waiting import wait_until
from tests.unit.engine.conftest import (
    emptied_databases,
    empty_store,
    postgres_place,
    registry,
    sqlite_place,
    world,
)

__all__ = ["emptied_databases", "empty_store", "postgres_place", "registry", "sqlite_place", "world"]

ONE, TWO = ("acc", "+27821000001"), ("acc", "+27821000002")
CONTACTS = """
chains:
  - name: contact
    on: {event_type: done}
    steps:
      - {id: contact, handler: create_contact, with: {msisdn: "{{ data.msisdn }}"}}
      - {handler: log_event, when: steps.contact.created}
"""
SCRIPT = """
chains:
  - name: script
    on: {event_type: done}
    steps: [{handler: scripted}]
"""


@pytest.fixture
def place(postgres_place):
    return postgres_place


@pytest.fixture
def other(world):
    """Another process's way into the same store."""
    store = PostgresStore.open(world.place.url)
    yield store
    store.close()


def in_the_background(work):
    done = []
    thread = threading.Thread(target=lambda: done.append(work()), daemon=True)
    thread.start()
    return thread, done


def waits_for_a_lock(world):
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    return world.sql(waiting)[0][0] > 0


def test_a_batch_waits_for_a_contact_that_another_worker_has_in_hand(world, other):
    with world.store.transaction() as transaction:
        assert transaction.lock_contacts([ONE]) == set()

        def lock():
            with other.transaction() as second:
                return second.lock_contacts([TWO, ONE])

        thread, done = in_the_background(lock)
        wait_until(lambda: waits_for_a_lock(world), 10)
        assert not done
        transaction.commit()
    thread.join(10)
    assert done == [set()]


def test_whoever_has_locked_contacts_already_is_told_of_others_at_once(world, other):
    """Two that wait for each other would do so for ever."""
    with world.store.transaction() as first, other.transaction() as second:
        first.lock_contacts([ONE])
        second.lock_contacts([TWO])
        assert first.lock_contacts([TWO]) == {TWO}
        assert second.lock_contacts([ONE]) == {ONE}


def test_of_two_events_of_a_new_person_in_two_workers_one_creates_the_contact(world, other):
    world.rules(CONTACTS)
    event = {"event_id": "first", "event_data": {"msisdn": "+27821000001"}}
    with other.transaction() as ahead:
        ahead.lock_contacts([ONE])
        thread, done = in_the_background(lambda: world.publish(event))
        wait_until(lambda: waits_for_a_lock(world), 10)
        world.place.query(
            "INSERT INTO contacts "
            "(contact_key, account_key, msisdn, groups, subscription, extra, created_at, updated_at) "
            "VALUES ('key', 'acc', '+27821000001', '[]', '{}', '{}', '2026-01-01T00:00:00Z', '2026-01-01T00:00:00Z')"
        )
        ahead.commit()
    thread.join(10)
    assert done
    assert world.rows("steps", "step", "state") == [("contact", "done"), ("log_event", "skipped")]
    assert world.rows("contacts", "contact_key") == [("key",)]


def test_a_later_step_about_a_contact_in_other_hands_waits_its_turn_and_the_others_go_on(world, other):
    world.rules(
        "chains:\n"
        "  - name: both\n"
        "    on: {event_type: done}\n"
        "    steps:\n"
        '      - {handler: create_contact, id: one, with: {msisdn: "{{ data.first }}"}}\n'
        '      - {handler: create_contact, id: two, with: {msisdn: "{{ data.second }}"}}\n'
    )
    world.publish({"event_data": {"first": "+27821000003", "second": "+27821000004"}})  # what a handler opens is learnt
    with other.transaction() as holder:
        holder.lock_contacts([TWO])
        world.publish(
            {"event_id": "waits", "event_data": {"first": "+27821000001", "second": "+27821000002"}},
            {"event_id": "goes", "event_data": {"first": "+27821000005", "second": "+27821000006"}},
        )
    states = dict(world.rows("runs", "event_id", "state"))
    assert (states["waits"], states["goes"]) == ("ready", "done")
    world.turn()
    assert dict(world.rows("runs", "event_id", "state"))["waits"] == "ready"  # it is not looked for all the time
    world.turn(after=timedelta(seconds=1))
    assert dict(world.rows("runs", "event_id", "state"))["waits"] == "done"


def test_a_handler_that_opens_such_a_contact_by_itself_has_its_batch_tried_again(world, other):
    world.rules(SCRIPT)
    world.script.append(lambda event, context: Done({"known": context.contacts.get("+27821000001") is not None}))
    with other.transaction() as holder:
        holder.lock_contacts([ONE])
        world.store.wait_no_more()
        with pytest.raises(Contended, match="contact"):
            world.publish({"event_id": "one"})
    assert world.rows("events") == []
    world.publish({"event_id": "one"})
    assert world.rows("runs", "state") == [("done",)]


def test_new_events_that_one_worker_has_taken_are_not_taken_by_another(world, other):
    world.rules(SCRIPT)
    stored(world, 4)
    with world.store.transaction() as first, other.transaction() as second:
        mine = [event.seq for event in first.take_new(2)]
        assert len(mine) == 2
        theirs = [event.seq for event in second.take_new(4)]
        assert len(theirs) == 2
        assert not {*mine} & {*theirs}


def test_due_runs_that_one_worker_has_taken_are_not_taken_by_another(world, other):
    world.rules("chains: [{name: later, on: {event_type: done}, steps: [{wait: 1s}, {handler: scripted}]}]")
    world.publish(*({"event_id": f"e{number}"} for number in range(4)))
    later = as_text(world.clock.now().replace(year=2100))
    with world.store.transaction() as first, other.transaction() as second:
        mine = [row.values["seq"] for row in first.take_due(OPEN_LANE, later, 2)]
        theirs = [row.values["seq"] for row in second.take_due(OPEN_LANE, later, 4)]
        assert (len(mine), len(theirs)) == (2, 2)
        assert not {*mine} & {*theirs}


def test_what_was_taken_elsewhere_since_a_rollback_is_not_worked_on_again(world, other):
    """A batch that the database refused is halved, and each half is a transaction of its own."""
    world.rules(SCRIPT)
    stored(world, 2)
    with world.store.transaction() as first:
        events = first.take_new(2)
    with other.transaction() as second:
        taken = second.take_event(events[0].seq)
        with world.store.transaction() as again:
            assert again.still_new(events) == events[1:]
    assert taken.seq == events[0].seq


def test_an_event_that_two_workers_get_at_once_is_stored_by_one_and_known_to_the_other(world, other):
    world.rules(SCRIPT)
    body = json.dumps(
        {"account_key": "acc", "conversation_key": "c", "conversation_type": "poll", "event_type": "done",
         "event_data": {}, "event_id": "twice"}
    ).encode()  # fmt: skip

    def admit(store):
        with store.transaction() as transaction:
            batch = world.engine.begin(transaction)
            (receipt,) = batch.admit([Delivery(body)])
            batch.advance()
            transaction.flush(batch.overlay.changes)
            transaction.commit()
        return receipt.kind

    with other.transaction() as ahead:
        batch = world.engine.begin(ahead)
        batch.admit([Delivery(body)])
        batch.advance()
        ahead.flush(batch.overlay.changes)

        def late():
            with pytest.raises(Contended, match="same id"):
                admit(world.store)
            return True

        thread, done = in_the_background(late)
        wait_until(lambda: waits_for_a_lock(world), 10)
        ahead.commit()
    thread.join(10)
    assert done == [True]
    assert admit(world.store) == "duplicate"
    assert len(world.rows("runs")) == 1


def test_numbers_of_rows_never_meet(world, other):
    with world.store.transaction() as first, other.transaction() as second:
        mine = {first.reserve("runs") for _ in range(300)}
        theirs = {second.reserve("runs") for _ in range(300)}
    assert len(mine | theirs) == 600


def stored(world, count):
    from dispatcher.sources.embedded import admit

    bodies = [
        json.dumps(
            {"account_key": "acc", "conversation_key": "c", "conversation_type": "poll", "event_type": "done",
             "event_data": {}, "event_id": f"e{number}"}
        ).encode()
        for number in range(count)
    ]  # fmt: skip
    admit(world.store, world.engine.intake, bodies, world.clock.now())


def test_a_store_that_was_migrated_meanwhile_is_refused_once_the_connection_is_made_anew(world, other):
    world.sql("UPDATE alembic_version SET version_num = '9999' RETURNING version_num")
    other.session.close()
    with pytest.raises(StoreUnusable, match="schema 9999, which is newer"), other.transaction():
        pass


def test_a_contact_that_is_held_for_long_keeps_no_other_event_waiting_twice(world, other):
    with other.transaction() as holder:
        holder.lock_contacts([ONE])
        with pytest.raises(Contended, match="lock timeout"), world.store.transaction() as transaction:
            transaction.lock_contacts([ONE, TWO])
        for _ in range(2):
            with world.store.transaction() as transaction:
                assert transaction.lock_contacts([ONE, TWO]) == {ONE}  # told at once
                transaction.commit()


def test_a_read_that_meets_a_locked_table_is_told_as_a_fault_that_passes(world, other):
    with other.transaction() as holder:
        holder.connection.execute("LOCK TABLE runs IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(StoreUnusable, match="lock timeout"):
            world.store.next_due()
    assert world.store.next_due() is None


def test_what_others_tell_during_a_statement_is_heard(world, other):
    world.store.join("worker", look_pause=0.0)
    assert not world.store.heard()
    other.administer(lambda connection: None)
    world.store.next_due()  # the notification comes in with the answer
    assert world.store.heard()
    assert not world.store.heard()


def test_the_crashes_of_an_event_that_another_worker_runs_alone_are_not_forgotten(world, other):
    world.rules(SCRIPT)
    stored(world, 1)
    (seq,) = (row["seq"] for row in world.rows("events"))
    with world.store.transaction() as transaction:
        transaction.count_crash(seq)
        transaction.commit()
    with other.transaction() as alone:
        alone.take_event(seq)
        with world.store.transaction() as transaction:
            assert transaction.take_event(seq) is None
            transaction.forget_crashes(seq)
            transaction.commit()
    assert world.rows("events", "crash_count") == [(1,)]
