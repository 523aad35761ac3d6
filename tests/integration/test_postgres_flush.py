"""How a batch goes into PostgreSQL: few rows in one round trip, many by COPY, and to the same end."""

from __future__ import annotations

import json

import pytest

from dispatcher.engine.intake import Delivery
from dispatcher.engine.records import Changes
from dispatcher.errors import Contended, RowsRefused
from dispatcher.store.postgres import flush
from dispatcher.store.postgres.store import PostgresStore
from tests.unit.engine.conftest import (
    World,
    emptied_databases,
    empty_store,
    postgres_place,
    registry,
    sqlite_place,
)

__all__ = ["emptied_databases", "empty_store", "postgres_place", "registry", "sqlite_place"]

RULES = """
chains:
  - name: welcome
    on: {event_type: done}
    steps:
      - {id: contact, handler: create_contact, with: {msisdn: "{{ data.msisdn }}", name: "{{ data.name }}"}}
      - {id: text, handler: send_sms, with: {to: "{{ data.msisdn }}", text: "Hello {{ data.name }}"}}
"""
BODY = json.dumps(
    {"event_id": "met", "account_key": "acc", "conversation_key": "conv", "event_type": "done",
     "event_data": {"msisdn": "+27821000099", "name": "Eve"}}
).encode()  # fmt: skip
TABLES = ("events", "event_ids", "runs", "steps", "contacts", "messages", "outbox", "dead_letters")


@pytest.fixture
def place(postgres_place):
    return postgres_place


@pytest.fixture(params=[-1, 1_000], ids=["by COPY", "in one round trip"])
def world(tmp_path, registry, place, request, monkeypatch):
    monkeypatch.setattr(flush, "_FEW", request.param)
    return World(tmp_path, registry, place).rules(
        RULES, senders="senders: {default: {type: vumi, transport_name: sms}}\nservices: {go: {type: vumi}}\n"
    )


def person(number, **more):
    data = {"msisdn": f"+2782100000{number}", "name": f'Ada\\\t"{number}"'}
    return {"event_id": f"e{number}", "event_data": data, **more}


def test_every_table_has_its_rows(world):
    receipts = world.publish(person(1), person(2, conversation_type=None, subject="s"), b"no event")

    assert [receipt.kind for receipt in receipts] == ["stored", "stored", "refused"]
    assert {table: len(world.rows(table)) for table in TABLES} == {
        "events": 2, "event_ids": 2, "runs": 2, "steps": 4, "contacts": 2, "messages": 2, "outbox": 2,
        "dead_letters": 1,
    }  # fmt: skip
    assert world.rows("runs", "state") == [("done",), ("done",)]
    assert sorted(world.rows("messages", "content")) == [('Hello Ada\\\t"1"',), ('Hello Ada\\\t"2"',)]
    assert world.rows("dead_letters", "reason", "body") == [("bad_json", b"no event")]


def test_repetition_is_known_by_the_content_that_was_kept(world):
    world.publish(person(1))

    again, other = world.publish(person(1), {**person(1), "event_data": {"msisdn": "+27821000009", "name": "Bob"}})

    assert (again.kind, other.code) == ("duplicate", "id_conflict")


@pytest.mark.parametrize(("dead_id", "detail"), [("dead", "half a pair: \ud800"), (None, "the database wants an id")])
def test_row_that_cannot_be_written_is_refused_and_nothing_is_kept(world, dead_id, detail):
    changes = Changes()
    row = ("delivery", "bad_json", detail, None, None, None, b"", "2026-11-21T00:00:00Z")
    changes.dead_letters += [("fine", *row[:2], "", *row[3:]), (dead_id, *row)]

    with world.store.transaction() as transaction, pytest.raises(RowsRefused, match="row of the batch"):
        transaction.flush(changes)

    assert world.rows("dead_letters") == []


def test_an_id_that_another_worker_has_just_stored_is_no_fault_of_the_row(world):
    with world.store.transaction() as transaction:
        batch = world.engine.begin(transaction)
        batch.admit([Delivery(b'{"event_id": "e", "account_key": "a", "conversation_key": "c", "event_type": "t"}')])
        world.place.query(
            "INSERT INTO event_ids (account_key, event_id, event_seq, body_hash, received_on) "
            "VALUES ('a', 'e', 1, '', '2026-01-01')"
        )
        with pytest.raises(Contended, match="same id"):
            transaction.flush(batch.overlay.changes)

    assert world.rows("events") == []


@pytest.fixture
def fresh(world):
    """A connection of its own: what the driver has prepared on it does not depend on other tests."""
    store, world.store = world.store, PostgresStore.open(world.place.url)
    for _ in range(4):  # turns with nothing to do: each is rolled back
        with world.store.transaction():
            pass
    yield world
    world.store.close()
    world.store = store


@pytest.mark.parametrize("before", range(5))
def test_statements_that_an_error_kept_from_the_server_are_sent_anew(fresh, before):
    """The driver prepares a statement at its third use, and must not take it for prepared if it never arrived."""
    for number in range(before):
        fresh.publish(person(number))
    with fresh.store.transaction() as transaction:
        batch = fresh.engine.begin(transaction)
        batch.admit([Delivery(BODY)])
        batch.advance()
        fresh.place.query(
            "INSERT INTO event_ids (account_key, event_id, event_seq, body_hash, received_on) "
            "VALUES ('acc', 'met', 1, '', '2026-01-01')"
        )
        with pytest.raises(Contended, match="same id"):
            transaction.flush(batch.overlay.changes)

    receipts = [fresh.publish(person(number))[0] for number in range(before, 9)]

    assert {receipt.kind for receipt in receipts} == {"stored"}
    assert len(fresh.rows("contacts")) == 9


@pytest.mark.parametrize("before", range(5))
def test_contacts_can_be_locked_again_after_one_was_held_for_too_long(fresh, before):
    key = ("acc", "+27821000001")
    fresh.store.connection.execute("SET lock_timeout = '20ms'")
    fresh.store.wait_no_more = lambda: None  # so that it waits the next time, too
    for _ in range(before):
        with fresh.store.transaction() as transaction:
            transaction.lock_contacts([key])
    other = PostgresStore.open(fresh.place.url)
    with other.transaction() as holder:
        holder.lock_contacts([key])
        with pytest.raises(Contended, match="lock timeout"), fresh.store.transaction() as transaction:
            transaction.lock_contacts([key])
    other.close()

    for _ in range(5):
        with fresh.store.transaction() as transaction:
            assert transaction.lock_contacts([key]) == set()
