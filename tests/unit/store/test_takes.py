"""What a batch takes from the store: fairly among accounts, in order, and not before its time."""

from __future__ import annotations

import json
from datetime import timedelta

from dispatcher.engine.records import as_text
from dispatcher.sources.embedded import admit

ONE = "chains: [{name: c, on: {event_type: done}, steps: [{handler: scripted}]}]\n"
WAITING = "chains: [{name: c, on: {event_type: done}, steps: [{wait: 1h}]}]\n"


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
    served = []
    while len(served) < 40:
        # However many accounts share a turn, those that had none yet come first, in their order.
        found = {int(event.partition("-")[0]) for event in taken(world, 32)} - set(served)
        assert sorted(found) == list(range(len(served), len(served) + len(found)))
        assert found
        served += sorted(found)
    assert taken(world, 32)


def test_suspects_are_not_taken_with_the_others(world):
    world.rules(ONE)
    stored(world, {"event_id": "e1"}, {"event_id": "e2"})
    world.sql("UPDATE events SET crash_count = 1 WHERE event_id = 'e1'")
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
    world.sql("UPDATE runs SET lane = 'calls'")
    assert world.store.next_due() is None
    assert world.store.queued_calls() == {"calls": 1}
