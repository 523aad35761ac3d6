"""Dead letters: what they stand for is taken up once, or they are closed."""

from __future__ import annotations

import json

import pytest

from dispatcher import Done, Failed
from dispatcher.errors import NotFound, NotPossible
from dispatcher.events.limits import Limits
from dispatcher.worker.administration import perform

RULES = """
chains:
  - name: c
    on: {event_type: done}
    steps: [{id: only, handler: scripted}]
"""


def by(world, verb, limits=None, **args):
    return perform(world.store, verb, {"actor": "ann", **args}, world.clock.now(), limits=limits)


def letters(world, *columns):
    return world.rows("dead_letters", *columns)


def a_body(**fields):
    return json.dumps({"account_key": "acc", "conversation_key": "k", "conversation_type": "poll",
                       "event_type": "done", "event_data": {}, **fields}).encode()  # fmt: skip


def park(world, body, event_id=None, reason="too_large"):
    world.sql(
        "INSERT INTO dead_letters (dead_id, kind, reason, detail, event_id, body, at) "
        "VALUES (?, 'delivery', ?, '', ?, ?, ?)",
        *(f"dead-{reason}-{len(letters(world))}", reason, event_id, body, "2026-01-01T00:00:00.000000Z"),
    )


def test_delivery_that_fits_today_is_taken_in_and_run(world):
    world.rules(RULES)
    park(world, a_body(event_id="e1"))
    told = by(world, "dead.replay", dead="dead")
    assert told["message"] == "the delivery is event e1"
    world.turn()
    assert world.rows("runs", "event_id", "state") == [("e1", "done")]
    assert letters(world, "state") == [("replayed",)]
    assert world.rows("audit", "verb", "target") == [("dead.replay", "dead-too_large-0")]


def test_replaying_twice_takes_the_delivery_in_once(world):
    world.rules(RULES)
    park(world, a_body())
    by(world, "dead.replay", dead="dead")
    with pytest.raises(NotPossible, match="is replayed already"):
        by(world, "dead.replay", dead="dead")
    assert len(world.rows("events")) == 1


def test_delivery_whose_event_came_by_another_way_is_a_duplicate(world):
    world.rules(RULES)
    world.publish(a_body(event_id="e1"))
    park(world, a_body(event_id="e1"))
    assert by(world, "dead.replay", dead="dead")["message"] == "the delivery is a duplicate of event e1"
    assert len(world.rows("events")) == 1


def test_name_that_the_source_gave_is_kept(world):
    world.rules(RULES)
    park(world, a_body(), event_id="from-the-broker")
    by(world, "dead.replay", dead="dead")
    assert world.rows("events", "event_id") == [("from-the-broker",)]


def test_delivery_that_is_refused_again_stays_open_and_leaves_nothing(world):
    park(world, b"{")
    with pytest.raises(NotPossible, match="is refused again: bad_json") as caught:
        by(world, "dead.replay", dead="dead")
    assert "Publish it mended" in caught.value.hint
    assert letters(world, "state") == [("open",)]
    assert (world.rows("events"), world.rows("audit")) == ([], [])


def test_limits_are_those_of_this_process(world):
    world.rules(RULES)
    park(world, a_body(event_id="e1"))
    with pytest.raises(NotPossible, match="too_large"):
        by(world, "dead.replay", limits=Limits(body_bytes=10), dead="dead")


def test_letter_of_a_run_retries_the_run(world):
    world.rules(RULES)
    world.script[:] = [Failed("no"), Done()]
    world.publish(event_id="e1")
    ((dead_id,),) = letters(world, "dead_id")
    by(world, "dead.replay", dead=dead_id)
    world.turn()
    assert world.rows("runs", "state") == [("done",)]
    assert letters(world, "state") == [("replayed",)]


def test_all_of_a_reason_are_replayed_and_what_is_refused_is_told(world):
    world.rules(RULES)
    for body in (a_body(event_id="e1"), b"{", a_body(event_id="e2")):
        park(world, body)
    park(world, a_body(event_id="e3"), reason="other")
    told = by(world, "dead.replay", reason="too_large")
    assert (told["changed"], told["next"]) == (2, None)
    ((left, why),) = told["left"]
    assert left == "dead-too_large-1"
    assert "bad_json" in why
    assert letters(world, "state") == [("replayed",), ("open",), ("replayed",), ("open",)]


def test_discarded_letter_is_closed_with_its_reason_in_the_audit(world):
    park(world, b"{")
    by(world, "dead.discard", dead="dead", why="a test of the gateway")
    assert letters(world, "state") == [("discarded",)]
    assert world.rows("audit", "verb", "detail") == [("dead.discard", "a test of the gateway")]
    with pytest.raises(NotPossible, match="is discarded already"):
        by(world, "dead.discard", dead="dead")


def test_discarded_letter_can_still_be_replayed(world):
    world.rules(RULES)
    park(world, a_body(event_id="e1"))
    by(world, "dead.discard", dead="dead")
    by(world, "dead.replay", dead="dead")
    assert letters(world, "state") == [("replayed",)]


def test_all_of_a_kind_are_discarded(world):
    park(world, b"{")
    park(world, b"[", reason="other")
    assert by(world, "dead.discard", kind="run")["changed"] == 0
    assert by(world, "dead.discard", kind="delivery")["changed"] == 2


def test_unknown_letter_is_not_found(world):
    with pytest.raises(NotFound, match="there is no dead letter 'x'"):
        by(world, "dead.replay", dead="x")
