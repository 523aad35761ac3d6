"""What a worker finds after a crash: suspects run alone, the third crash parks the culprit, calls are settled."""

from __future__ import annotations

import pytest

from dispatcher import Done, failpoints
from dispatcher.failpoints import FailpointReached

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
    steps: [{id: call, handler: outside, with: {keyed: KEYED}, on_unknown: DECISION}]
"""


@pytest.fixture(autouse=True)
def disarmed():
    yield
    failpoints.arm("")


def numbered(count):
    return [{"event_id": f"e{n}"} for n in range(1, count + 1)]


def crashes(workshop):
    return dict(workshop.rows("events", "event_id", "crash_count"))


def states(workshop):
    return dict(workshop.rows("events", "event_id", "state"))


def died_calling(workshop, *, keyed, decision="hold"):
    """A worker died after it had recorded a call as started and before it recorded what became of it."""
    text = CALL.replace("KEYED", str(keyed).lower()).replace("DECISION", decision)
    workshop.rules(text).store_new({"event_id": "e1"})
    failpoints.arm("call.before_start:raise")
    with pytest.raises(FailpointReached):
        workshop.turn()
    assert workshop.states() == ["running"]
    return workshop.restart()


def test_nothing_in_hand_changes_nothing(workshop):
    workshop.rules(ONE).store_new(*numbered(2))
    workshop.restart().recover()
    assert states(workshop) == {"e1": "new", "e2": "new"}
    assert workshop.seen == []


def test_suspect_runs_alone_before_all_others_and_is_cleared_when_it_does_no_harm(workshop):
    workshop.rules(ONE).store_new(*numbered(3))
    workshop.restart(2).recover()
    assert crashes(workshop) == {"e1": 0, "e2": 0, "e3": 0}
    assert states(workshop) == {"e1": "new", "e2": "matched", "e3": "new"}
    assert [say for _, say, *_ in workshop.seen] == ["e2"]


def test_suspects_run_in_batches_of_one(workshop):
    workshop.rules(ONE).store_new(*numbered(3))
    neighbours = []

    def look(event, context):
        open_now = workshop.rows("events WHERE state = 'matched'", "event_id")
        neighbours.append([event_id for (event_id,) in open_now])
        return Done()

    workshop.script.extend([look] * 3)
    workshop.restart(3, 1).recover()
    assert neighbours == [[], ["e1"]]


def test_third_crash_parks_the_culprit_and_spares_its_neighbours(workshop):
    workshop.rules(ONE).store_new(*numbered(3))
    workshop.sql("UPDATE events SET crash_count = 2 WHERE event_id = 'e2'")
    workshop.restart(2).recover()
    workshop.work_off()
    assert states(workshop) == {"e1": "matched", "e2": "dead", "e3": "matched"}
    assert workshop.rows("dead_letters", "kind", "reason", "event_id", "account_key") == [
        ("event", "crashed", "e2", "acc")
    ]
    assert [say for _, say, *_ in workshop.seen] == ["e1", "e3"]


def test_runs_of_a_parked_event_are_failed_and_not_left_open(workshop):
    workshop.rules(CALL.replace("KEYED", "true").replace("DECISION", "hold")).store_new({"event_id": "e1"})
    failpoints.arm("call.before_start:raise")
    with pytest.raises(FailpointReached):
        workshop.turn()
    workshop.sql("UPDATE events SET crash_count = 2")
    workshop.restart(1).recover()
    assert workshop.states() == ["failed"]
    assert workshop.states("events") == ["dead"]
    assert workshop.keys == []
    (error,) = [row["error"] for row in workshop.rows("runs")]
    assert error.startswith("crashed: ")


def test_event_of_a_batch_that_was_never_committed_is_nobody(workshop):
    workshop.rules(ONE).store_new(*numbered(1))
    workshop.restart(99).recover()
    assert crashes(workshop) == {"e1": 0}


def test_keyed_call_goes_again_with_the_same_key(workshop):
    workshop.rules(CALL.replace("KEYED", "true").replace("DECISION", "hold")).store_new({"event_id": "e1"})
    workshop.turn()
    while not workshop.calls.has_returns:
        pass
    (key,) = workshop.keys
    workshop.restart().recover()
    workshop.work_off()
    assert workshop.states() == ["done"]
    assert workshop.keys == [key, key]
    assert workshop.rows("steps", "attempt", "state") == [(1, "done")]


def test_call_without_a_key_becomes_unknown_and_is_held(workshop):
    died_calling(workshop, keyed=False).recover()
    workshop.work_off()
    assert workshop.states() == ["held"]
    assert workshop.states("steps") == ["unknown"]
    assert workshop.rows("dead_letters", "kind", "reason") == [("run", "unknown")]
    assert workshop.keys == []


@pytest.mark.parametrize(("decision", "state", "calls"), [("fail", "failed", 0), ("resend", "retrying", 0)])
def test_on_unknown_decides_over_a_call_without_a_key(workshop, decision, state, calls):
    died_calling(workshop, keyed=False, decision=decision).recover()
    assert workshop.states() == [state]
    assert len(workshop.keys) == calls


def test_more_calls_than_one_batch_takes_are_all_settled(workshop):
    workshop.rules(CALL.replace("KEYED", "false").replace("DECISION", "hold")).store_new(*numbered(300))
    workshop.work_off()
    workshop.sql("UPDATE runs SET state = 'running', step = 'call', position = 0")
    workshop.sql("UPDATE steps SET state = 'started'")
    workshop.restart().recover()
    assert set(workshop.states()) == {"held"}


def test_recovery_cut_short_before_its_commit_is_done_again_in_full(workshop):
    workshop.rules(ONE).store_new(*numbered(2))
    failpoints.arm("recovery.before_commit:raise")
    with pytest.raises(FailpointReached):
        workshop.restart(1).recover()
    assert crashes(workshop) == {"e1": 0, "e2": 0}
    workshop.restart(1).recover()
    assert crashes(workshop) == {"e1": 0, "e2": 0}
    assert states(workshop) == {"e1": "matched", "e2": "new"}


def test_suspects_that_an_interrupted_recovery_did_not_reach_run_alone_in_the_next(workshop):
    workshop.rules(ONE).store_new(*numbered(3))
    failpoints.arm("batch.before_commit:raise@2")  # the first commit is that of the counts, the second e1's own
    with pytest.raises(FailpointReached):
        workshop.restart(1, 3).recover()
    assert crashes(workshop) == {"e1": 1, "e2": 0, "e3": 1}
    workshop.restart().recover()
    assert states(workshop) == {"e1": "matched", "e2": "new", "e3": "matched"}
    assert crashes(workshop) == {"e1": 0, "e2": 0, "e3": 0}


def test_recovery_twice_over_finds_nothing_the_second_time(workshop):
    died_calling(workshop, keyed=False).recover()
    workshop.restart().recover()
    assert workshop.states() == ["held"]
    assert len(workshop.rows("dead_letters")) == 1
