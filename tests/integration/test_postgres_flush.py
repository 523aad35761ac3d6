"""How a batch goes into PostgreSQL: few rows in one round trip, many by COPY, and to the same end."""

from __future__ import annotations

import pytest

from dispatcher.engine.intake import Delivery
from dispatcher.engine.records import Changes
from dispatcher.errors import Contended, RowsRefused
from dispatcher.store.postgres import flush
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
TABLES = ("events", "event_ids", "runs", "steps", "contacts", "messages", "outbox", "dead_letters")


@pytest.fixture
def place(postgres_place):
    return postgres_place


@pytest.fixture(params=[0, 1_000], ids=["by COPY", "in one round trip"])
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


def test_row_that_the_database_takes_for_impossible_is_refused_and_nothing_is_kept(world):
    changes = Changes()
    half_a_pair = "\ud800"
    changes.dead_letters.append(("dead", "delivery", "bad_json", half_a_pair, None, None, None, b"", "2026-11-21"))

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
