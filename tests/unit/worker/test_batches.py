"""One turn of the loop: fair shares, one commit, then the replies and the calls; the culprit alone is refused."""

from __future__ import annotations

import dataclasses
import itertools
from datetime import timedelta

import pytest

from dispatcher import Done, Emit, RetryLater, failpoints
from dispatcher.engine.machine import Budget
from dispatcher.errors import StoreUnusable
from dispatcher.failpoints import FailpointReached
from dispatcher.worker.work import Work

CONTACT = """
chains:
  - name: c
    on: {event_type: done}
    steps: [{id: contact, handler: create_contact, with: {msisdn: "{{ data.number }}"}}]
"""
ONE = """
chains:
  - name: c
    on: {event_type: done}
    steps: [{id: first, handler: scripted, with: {say: "{{ event.event_id }}"}}]
"""
CALL = """
chains:
  - name: c
    on: {event_type: done}
    steps: [{id: call, handler: outside, retry: {initial: 1s}}]
"""
TEXT = """
chains:
  - name: c
    on: {event_type: done}
    steps: [{id: call, handler: scripted_call}, {id: sms, handler: send_sms, with: {to: "0821234567", text: hi}}]
"""


@pytest.fixture(autouse=True)
def disarmed():
    yield
    failpoints.arm("")


def numbered(count, **more):
    return [{"event_id": f"e{n}", "event_data": {"number": f"082 555 {n:04d}"}} | more for n in range(count)]


def answered(request):
    return request._answered.is_set()


def answer(request):
    assert answered(request)
    return request.wait()


def told(request):
    said = answer(request)
    assert said["ok"], said
    return [(kind, event_id, code) for kind, event_id, code, _ in said["result"]["receipts"]]


def everything(workshop):
    tables = ("events", "event_ids", "chains", "runs", "steps", "contacts", "messages", "outbox", "dead_letters")
    return {table: rows for table in tables if (rows := workshop.rows(table))}


# The order: commit first.


def test_turn_with_nothing_to_do_says_so(workshop):
    workshop.rules(ONE)
    assert not workshop.turn()


@pytest.mark.parametrize("point", ["batch.before_flush", "batch.before_commit"])
def test_batch_that_is_not_committed_leaves_nothing_and_no_reply(workshop, point):
    workshop.rules(TEXT)
    request = workshop.ask_to_publish({"event_id": "e1"})
    failpoints.arm(f"{point}:raise")
    with pytest.raises(FailpointReached):
        workshop.turn()
    assert everything(workshop) == {}
    assert not answered(request)
    assert workshop.calls.under_way == 0
    assert workshop.calls.free("calls") == 4
    assert not workshop.world.place.in_transaction


def test_reply_comes_after_the_commit(workshop):
    workshop.rules(ONE)
    request = workshop.ask_to_publish({"event_id": "e1"}, {"event_id": "e1"}, b"nonsense")
    workshop.turn()
    assert told(request) == [("stored", "e1", None), ("duplicate", "e1", None), ("refused", None, "bad_json")]
    assert workshop.states("events") == ["matched"]


def test_call_starts_after_the_commit_that_records_it(workshop):
    workshop.rules(CALL).ask_to_publish({"event_id": "e1"})
    failpoints.arm("call.before_start:raise")
    with pytest.raises(FailpointReached):
        workshop.turn()
    assert workshop.states() == ["running"]
    assert workshop.states("steps") == ["started"]
    assert workshop.keys == []


def test_return_that_was_not_committed_is_taken_again(workshop):
    workshop.rules(CALL).ask_to_publish({"event_id": "e1"})
    workshop.turn()
    while not workshop.calls.has_returns:
        pass
    failpoints.arm("batch.before_commit:raise")
    with pytest.raises(FailpointReached):
        workshop.turn()
    assert workshop.calls.free("calls") == 3
    workshop.turn()
    assert workshop.states() == ["done"]
    assert workshop.calls.free("calls") == 4
    assert len(workshop.keys) == 1


def test_return_passes_the_failpoint_between_call_and_record(workshop):
    workshop.rules(CALL).ask_to_publish({"event_id": "e1"})
    workshop.turn()
    while not workshop.calls.has_returns:
        pass
    failpoints.arm("call.after_return:raise")
    with pytest.raises(FailpointReached):
        workshop.turn()
    assert workshop.states() == ["running"]


def test_publisher_is_told_when_the_store_cannot_be_written(workshop):
    workshop.rules(ONE)
    workshop.world.place.forbid_writes()
    request = workshop.ask_to_publish(*numbered(200, event_data={"fill": "x" * 4000}))
    with pytest.raises(StoreUnusable):
        workshop.turn()
    assert answer(request)["kind"] == "StoreUnusable"
    assert everything(workshop) == {}
    workshop.world.place.allow_writes()
    request = workshop.ask_to_publish({"event_id": "e1"})
    workshop.turn()
    assert told(request) == [("stored", "e1", None)]


# What the store refuses.


@pytest.mark.parametrize("position", [0, 1, 6, 12])
def test_the_one_event_whose_rows_are_refused_is_parked_and_its_neighbours_are_not(workshop, position):
    workshop.rules(CONTACT)
    events = numbered(13)
    events[position]["event_data"] = {"number": "+27829999999"}
    workshop.store_new(*events)
    workshop.refuse("contacts", "NEW.msisdn = '+27829999999'")
    workshop.work_off()
    states = workshop.rows("events", "event_id", "state")
    assert [event for event, state in states if state == "dead"] == [f"e{position}"]
    assert workshop.states() == ["done"] * 12
    assert len(workshop.rows("contacts")) == 12
    assert workshop.rows("dead_letters", "kind", "reason", "event_id") == [("event", "failed", f"e{position}")]


def test_receipts_keep_their_order_when_the_batch_was_halved(workshop):
    workshop.rules(CONTACT)
    events = numbered(9)
    events[4]["event_data"] = {"number": "+27829999999"}
    workshop.refuse("contacts", "NEW.msisdn = '+27829999999'")
    request = workshop.ask_to_publish(*events[:6], b"nonsense", *events[6:])
    workshop.turn()
    receipts = told(request)
    assert [event_id for kind, event_id, _ in receipts if kind == "stored"] == [f"e{n}" for n in range(9) if n != 4]
    assert [code for _, _, code in receipts] == [None] * 4 + ["failed"] + [None, "bad_json"] + [None] * 3
    letters = sorted(workshop.rows("dead_letters", "kind", "reason"))
    assert letters == [("delivery", "bad_json"), ("delivery", "failed")]
    assert next(row["body"] for row in workshop.rows("dead_letters") if row["reason"] == "failed") == workshop.body(
        events[4]
    )


def test_run_whose_later_step_is_refused_fails_with_a_dead_letter(workshop):
    workshop.rules(
        """
chains:
  - name: c
    on: {event_type: done}
    steps:
      - wait: 1h
      - {id: contact, handler: create_contact, with: {msisdn: "{{ data.number }}"}}
"""
    )
    workshop.store_new(*numbered(3))
    workshop.work_off()
    workshop.refuse("contacts", "NEW.msisdn = '+27825550001'")
    workshop.clock.advance(timedelta(hours=2))
    workshop.work_off()
    assert sorted(workshop.rows("runs", "event_id", "state")) == [("e0", "done"), ("e1", "failed"), ("e2", "done")]
    assert workshop.rows("dead_letters", "kind", "reason", "event_id") == [("run", "failed", "e1")]


def test_call_whose_outcome_is_refused_fails_its_run_and_gives_its_slot_back(workshop):
    workshop.rules(TEXT)
    workshop.script.append(Done())
    workshop.refuse("messages", "NEW.to_addr = '+27821234567'")
    workshop.store_new({"event_id": "e1"})
    workshop.work_off()
    assert workshop.states() == ["failed"]
    assert workshop.calls.free("calls") == 4
    assert workshop.rows("dead_letters", "kind", "reason") == [("run", "failed")]


def test_publisher_is_told_when_the_store_fails_while_the_culprit_is_sought(workshop, monkeypatch):
    workshop.rules(CONTACT)
    events = numbered(4)
    workshop.refuse("contacts", "NEW.msisdn = '+27825550003'")
    request = workshop.ask_to_publish(*events)

    def unusable(work):
        raise StoreUnusable("the disk is gone.")

    monkeypatch.setattr(workshop.batches, "_park", unusable)
    with pytest.raises(StoreUnusable):
        workshop.turn()
    assert answer(request)["kind"] == "StoreUnusable"


def test_suspect_that_runs_alone_is_parked_too_when_its_rows_are_refused(workshop):
    workshop.rules(CONTACT)
    workshop.store_new(*numbered(2))
    workshop.refuse("contacts", "NEW.msisdn = '+27825550001'")
    workshop.restart(2).recover()
    workshop.work_off()
    assert workshop.rows("events", "event_id", "state") == [("e0", "matched"), ("e1", "dead")]


@pytest.mark.parametrize("size", range(2, 12))
def test_halves_have_everything_once_in_order_and_neither_is_empty(size):
    for fields in itertools.product(range(4), repeat=4):
        if sum(fields) != size:
            continue
        names = ("deliveries", "events", "due", "returns")
        work = Work(**{name: [(name, n) for n in range(count)] for name, count in zip(names, fields, strict=True)})
        first, second = work.halves()
        assert first.size
        assert second.size
        for name in names:
            assert [*getattr(first, name), *getattr(second, name)] == list(getattr(work, name))


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Work)])
def test_work_of_any_kind_counts(name):
    assert Work(**{name: ["one", "two"]}).size == 2


# Turns.


def test_account_with_ten_thousand_events_does_not_starve_another(workshop):
    workshop.rules(ONE)
    busy = [{"account_key": "busy", "event_id": f"b{n}"} for n in range(10_000)]
    for at in range(0, len(busy), 1000):
        workshop.store_new(*busy[at : at + 1000])
    workshop.store_new({"account_key": "quiet", "event_id": "q1"}, {"account_key": "quiet", "event_id": "q2"})
    workshop.turn()
    states = {row["event_id"]: row["state"] for row in workshop.rows("events WHERE account_key = 'quiet'")}
    assert states == {"q1": "matched", "q2": "matched"}


def test_each_accounts_events_run_in_the_order_they_came(workshop):
    workshop.rules(ONE, budget=Budget(events=10))
    events = [{"account_key": account, "event_id": f"{account}{n}"} for n in range(15) for account in "ab"]
    workshop.store_new(*events)
    workshop.work_off()
    said = [say for _, say, *_ in workshop.seen]
    for account in "ab":
        assert [say for say in said if say[0] == account] == [f"{account}{n}" for n in range(15)]


def test_more_accounts_than_fit_into_one_batch_take_turns(workshop):
    workshop.rules(ONE, budget=Budget(events=8))
    workshop.store_new(*({"account_key": f"a{n % 50:02d}", "event_id": f"e{n}"} for n in range(150)))
    for _ in range(20):
        workshop.turn()
    served = {event.account_key for event, *_ in workshop.seen}
    assert len(served) == 50


def test_due_runs_do_not_starve_new_events_nor_the_other_way_round(workshop):
    workshop.rules(ONE, budget=Budget(events=16))
    workshop.script.extend([RetryLater(after=timedelta(hours=1))] * 40)
    workshop.store_new(*({"event_id": f"old{n}"} for n in range(40)))
    workshop.work_off()
    workshop.seen.clear()
    workshop.clock.advance(timedelta(hours=2))
    workshop.store_new(*({"event_id": f"new{n}"} for n in range(40)))
    workshop.turn()
    said = [say[:3] for _, say, *_ in workshop.seen]
    assert said.count("old") >= 8
    assert said.count("new") >= 4


def test_stored_events_have_their_turn_while_others_keep_publishing(workshop):
    workshop.rules(ONE, budget=Budget(events=16))
    workshop.store_new(*({"account_key": "patient", "event_id": f"p{n}"} for n in range(8)))
    for round_ in range(4):
        workshop.ask_to_publish(*({"account_key": "loud", "event_id": f"l{round_}-{n}"} for n in range(16)))
        workshop.turn()
    assert {row["state"] for row in workshop.rows("events WHERE account_key = 'patient'")} == {"matched"}


def test_account_with_many_due_runs_does_not_starve_another(workshop):
    workshop.rules(ONE, budget=Budget(events=16))
    workshop.script.extend([RetryLater(after=timedelta(hours=1))] * 201)
    workshop.store_new(*({"account_key": "busy", "event_id": f"b{n}"} for n in range(200)))
    workshop.work_off()
    workshop.clock.advance(timedelta(minutes=1))
    workshop.store_new({"account_key": "quiet", "event_id": "q1"})
    workshop.work_off()
    workshop.seen.clear()
    workshop.clock.advance(timedelta(hours=2))
    workshop.turn()
    assert "q1" in [say for _, say, *_ in workshop.seen]


def test_calls_beyond_the_pool_wait_in_the_store_and_all_run(workshop):
    workshop.rules(CALL).store_new(*numbered(11))
    workshop.turn()
    assert workshop.batches.queued == {"calls": 7}
    workshop.work_off()
    assert workshop.states() == ["done"] * 11
    assert len(set(workshop.keys)) == 11
    assert workshop.batches.queued == {}
    assert workshop.calls.free("calls") == 4


def test_nothing_is_taken_when_intake_and_due_are_off(workshop):
    workshop.rules(ONE).store_new({"event_id": "e1"})
    request = workshop.ask_to_publish({"event_id": "e2"})
    assert not workshop.turn(intake=False, due=False)
    assert workshop.states("events") == ["new"]
    assert not answered(request)


def test_emitted_events_run_in_the_same_turn(workshop):
    workshop.rules(
        ONE + "  - {name: heard, on: {event_type: said}, steps: [{handler: scripted, with: {say: heard}}]}\n"
    )
    workshop.script.append(Done(emits=[Emit("said", {})]))
    workshop.store_new({"event_id": "e1"})
    workshop.turn()
    assert workshop.rows("runs", "chain", "state") == [("c", "done"), ("heard", "done")]


def test_totals_tell_what_was_done(workshop):
    workshop.rules(ONE).store_new({"event_id": "e1"}, {"event_id": "e2", "event_type": "else"})
    workshop.work_off()
    totals = workshop.batches.totals
    assert (totals.events, totals.unmatched, totals.runs, totals.steps) == (2, 1, 1, 1)
    assert totals.outcomes == {"Done": 1}


def test_publisher_is_told_of_the_commit_though_the_store_cannot_be_read_right_after_it(workshop, monkeypatch):
    workshop.rules(CALL)
    workshop.turn()

    def unreadable():
        raise StoreUnusable("an I/O error")

    request = workshop.ask_to_publish(*numbered(5))
    monkeypatch.setattr(workshop.store, "queued_calls", unreadable)
    workshop.turn()
    assert [kind for kind, *_ in told(request)] == ["stored"] * 5
    with pytest.raises(StoreUnusable):
        workshop.turn()


def test_calls_that_wait_go_before_runs_that_come_due(workshop):
    workshop.rules(CALL).store_new(*numbered(7))
    workshop.turn()
    late = max(event_id for event_id, state in workshop.rows("runs", "event_id", "state") if state == "ready")
    workshop.sql(
        "UPDATE runs SET state = 'retrying', lane = '', due_at = '2000-01-01T00:00:00.000000Z' WHERE event_id = ?",
        late,
    )
    workshop.batches.count_anew()
    while workshop.calls.under_way or workshop.calls.has_returns:
        workshop.turn(intake=False, due=False)
    assert all(workshop.calls.reserve("calls") for _ in range(2))
    workshop.turn()
    states = dict(workshop.rows("runs", "event_id", "state"))
    assert states.pop(late) == "ready"
    assert "ready" not in states.values()
