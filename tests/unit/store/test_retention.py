"""What is forgotten, and when: by outcome, never before its dedupe time, never while something is open."""

from __future__ import annotations

from datetime import timedelta

import pytest

from dispatcher import Failed, Unknown
from dispatcher.engine.records import as_text
from dispatcher.sources.embedded import admit
from dispatcher.store.retention import Keep, Retention

CHAIN = """
chains:
  - name: c
    on: {event_type: done}
    steps:
      - {id: first, handler: scripted, with: {say: hi}}
      - {id: sms, handler: send_sms, with: {to: "0821234567", text: hello}}
  - name: calling
    on: {event_type: call}
    steps: [{id: sms, handler: send_sms, with: {to: "0821234567", text: hello}}, {id: out, handler: scripted_call}]
  - name: waiting
    on: {event_type: wait}
    steps: [{wait: 300d}]
"""
LONG = """
chains:
  - name: later
    on: {event_type: done}
    steps: [{wait: 100d}, {handler: send_sms, with: {to: "0821234567", text: hello}}]
"""
KEEP = Keep(done=10, failed=30, skipped=20, dedupe=5)
OF_AN_EVENT = ("events", "event_ids", "runs", "steps", "dead_letters")


def after(world, days, keep=KEEP):
    """Forget everything that is to be forgotten so many days from now."""
    retention = Retention(world.store, keep)
    now = world.clock.now() + timedelta(days=days)
    while retention.step(now):
        pass
    return [event_id for (event_id,) in world.rows("events", "event_id")]


def test_event_goes_with_its_runs_its_steps_its_dedupe_row_and_its_dead_letters(world):
    world.rules(CHAIN)
    world.script.append(Failed("no"))
    world.publish(event_id="e1")
    assert all(world.rows(table) for table in OF_AN_EVENT)
    assert after(world, 30) == ["e1"]
    assert all(world.rows(table) for table in OF_AN_EVENT)
    assert after(world, 31) == []
    assert {table: world.rows(table) for table in OF_AN_EVENT} == {table: [] for table in OF_AN_EVENT}


@pytest.mark.parametrize(
    ("outcome", "last_day"), [("done", 10), ("failed", 30), ("cancelled", 30), ("unmatched", 20), ("dead", 30)]
)
def test_each_outcome_has_its_own_limit(world, outcome, last_day):
    world.rules(CHAIN)
    if outcome == "failed":
        world.script.append(Failed("no"))
    world.publish(event_id="e1", event_type="else" if outcome == "unmatched" else "done")
    if outcome == "cancelled":
        world.sql("UPDATE runs SET state = 'cancelled'")
    if outcome == "dead":
        world.sql("UPDATE events SET state = 'dead'")
    assert after(world, last_day) == ["e1"]
    assert after(world, last_day + 1) == []


def test_nothing_goes_before_its_dedupe_time_is_over(world):
    keep = Keep(done=1, failed=1, skipped=1, dedupe=15)
    world.rules(CHAIN).publish(event_id="e1")
    assert after(world, 15, keep) == ["e1"]
    assert after(world, 16, keep) == []


def test_event_that_was_forgotten_may_come_again(world):
    world.rules(CHAIN).publish(event_id="e1")
    assert world.publish(event_id="e1")[0].kind == "duplicate"
    world.clock.advance(timedelta(days=11))
    assert after(world, 0) == []
    assert world.publish(event_id="e1")[0].kind == "stored"


@pytest.mark.parametrize("state", ["ready", "running", "waiting", "retrying", "held"])
def test_open_run_keeps_its_event_and_all_that_belongs_to_it(world, state):
    world.rules(CHAIN).publish(event_id="e1")
    world.sql("UPDATE runs SET state = ?", state)
    before = {table: world.rows(table) for table in (*OF_AN_EVENT, "messages")}
    assert after(world, 4000) == ["e1"]
    assert {table: world.rows(table) for table in (*OF_AN_EVENT, "messages")} == before


def test_held_run_keeps_its_message_however_old(world):
    world.rules(CHAIN).publish(event_id="e1", event_type="call")
    world.bring_back(Unknown("line cut"))
    assert world.rows("runs", "state") == [("held",)]
    after(world, 4000)
    assert len(world.rows("messages")) == 1


def test_event_that_nobody_has_looked_at_yet_stays(world):
    world.rules(CHAIN).publish(event_id="e1")
    world.sql("UPDATE events SET state = 'new'")
    world.sql("DELETE FROM runs")
    assert after(world, 4000) == ["e1"]


def test_one_failed_run_among_done_ones_keeps_the_event_as_a_failure(world):
    world.rules(CHAIN + "  - {name: other, on: {event_type: done}, steps: [{handler: log_event}]}\n")
    world.script.append(Failed("no"))
    world.publish(event_id="e1")
    assert sorted(world.rows("runs", "state")) == [("done",), ("failed",)]
    assert after(world, 11) == ["e1"]
    assert len(world.rows("runs")) == 2
    assert after(world, 31) == []


def test_old_and_young_are_told_apart(world):
    world.rules(CHAIN).publish(event_id="old")
    world.clock.advance(timedelta(days=8))
    world.publish(event_id="young")
    assert after(world, 5) == ["young"]


def test_more_than_one_chunk_is_forgotten_step_by_step_past_what_stays(world):
    world.rules(CHAIN)
    for at in range(0, 1200, 200):
        world.publish(*({"event_id": f"e{n}", "event_type": "else"} for n in range(at, at + 200)))
    world.publish(event_id="open", event_type="wait")
    world.sql("UPDATE events SET state = 'new' WHERE seq <= 600")
    retention = Retention(world.store, KEEP)
    now = world.clock.now() + timedelta(days=100)
    steps = 1
    while retention.step(now):
        steps += 1
    assert steps >= 3
    left = [seq for (seq,) in world.rows("events", "seq")]
    assert left == [*range(1, 601), 1201]


def test_contacts_and_opt_outs_stay(world):
    world.rules(
        """
chains:
  - name: c
    on: {event_type: done}
    steps:
      - {handler: create_contact, with: {msisdn: "0821234567"}}
      - {handler: opt_out, with: {msisdn: "0821234567"}}
"""
    )
    world.publish(event_id="e1")
    assert after(world, 4000) == []
    assert len(world.rows("contacts")) == len(world.rows("opt_outs")) == 1


def test_letters_of_deliveries_and_old_messages_go_by_age_and_what_waits_for_a_broker_stays(world):
    world.rules(CHAIN).publish({"event_id": "e1"}, b"nonsense")
    now = as_text(world.clock.now())
    world.sql(
        "INSERT INTO outbox (seq, destination, body, message_id, state, not_before, at) VALUES (7, ?, ?, ?, ?, ?, ?)",
        *("amqp:x/y", "{}", "m1", "ready", now, now),
    )
    after(world, 11)
    assert len(world.rows("messages")) == len(world.rows("dead_letters")) == 1
    after(world, 31)
    assert world.rows("messages") == world.rows("dead_letters") == []
    assert world.rows("outbox", "state") == [("ready",)]


def test_deliveries_that_a_broker_might_bring_again_are_forgotten_with_what_is_done(world):
    world.rules(CHAIN)
    columns = "epoch, tag, batch, queue, body_hash, received_on"
    for tag, day in ((1, f"{world.clock.now():%Y-%m-%d}"), (2, "2020-01-01")):
        world.sql(f"INSERT INTO unacked ({columns}) VALUES ('old', ?, 1, 'vumi.event', ?, ?)", tag, b"0", day)
    after(world, 1)
    assert world.rows("unacked", "tag") == [(1,)]


@pytest.mark.parametrize("place", ["sqlite"], indirect=True)  # the other looks at whole days
def test_what_is_young_is_not_read_through_to_find_that_nothing_is_old(world):
    def effort():
        steps = []
        world.store.connection.set_progress_handler(lambda: steps.append(1), 100)
        assert not Retention(world.store, KEEP).step(world.clock.now())
        world.store.connection.set_progress_handler(None, 0)
        return len(steps)

    world.rules(CHAIN).publish(*({"event_type": "else"} for _ in range(1000)))
    few = effort()
    world.publish(*({"event_type": "else"} for _ in range(2000)))
    assert effort() < 1.2 * few


def test_walk_goes_on_over_more_than_one_chunk_and_past_what_stays(world):
    world.rules(CHAIN)
    world.publish(*({"event_id": f"w{n}", "event_type": "wait"} for n in range(250)))
    world.publish(*({"event_id": f"f{n}", "event_type": "else"} for n in range(250)))
    world.publish(*({"event_id": f"g{n}", "event_type": "else"} for n in range(250)))
    while world.turn():
        pass
    world.sql("UPDATE events SET state = 'unmatched' WHERE event_type = 'else'")
    assert after(world, 21) == [f"w{n}" for n in range(250)]


def test_a_text_that_a_run_sends_after_a_long_wait_is_kept_from_then_on(world):
    """Its transport reports on it, and people ask for it, after it was sent; not when its run began."""
    world.rules(LONG)
    world.publish(event_id="e1")
    world.turn(after=timedelta(days=100, seconds=1))
    assert world.rows("runs", "state") == [("done",)]
    after(world, 1)
    assert len(world.rows("messages")) == 1
    after(world, 31)
    assert world.rows("messages") == []


def test_a_run_that_began_on_another_day_than_its_event_can_send_after_its_wait(world):
    world.rules(LONG)
    body = (
        b'{"account_key": "acc", "conversation_key": "c", "conversation_type": "poll", "event_type": "done",'
        b' "event_data": {}, "event_id": "e1"}'
    )
    admit(world.store, world.engine.intake, [body], world.clock.now())
    world.turn(after=timedelta(days=1))
    after(world, 99)
    world.turn(after=timedelta(days=100, seconds=1))
    assert world.rows("runs", "state") == [("done",)]
    assert len(world.rows("messages")) == 1
