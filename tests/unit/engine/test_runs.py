"""What happens to an event, its runs and their steps, batch by batch."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest

from dispatcher import Done, Emit, Failed, Publish, RetryLater, Unknown
from dispatcher.engine.emits import LoopGuard
from dispatcher.engine.machine import Budget

ONE = """
chains:
  - name: one
    on: {event_type: done}
    steps: [{id: first, handler: scripted, with: {say: "{{ data.word | default('hello') }}"}}]
"""
TWO = """
chains:
  - name: two
    on: {event_type: done}
    steps:
      - {id: first, handler: scripted, with: {say: one}}
      - {id: second, handler: scripted, with: {say: "{{ steps.first.said }} and two"}}
"""
CALL = """
chains:
  - name: calling
    on: {event_type: done}
    steps:
      - {id: call, handler: scripted_call, with: {say: hi}}
      - {id: after, handler: scripted, with: {say: "{{ steps.call.state }}"}}
"""


def states(world, table="runs"):
    return [row["state"] for row in world.rows(table)]


# From an event to its runs.


def test_an_event_runs_every_chain_that_matches_it(world):
    world.rules(ONE + "  - {name: other, steps: [{handler: scripted}]}\n").publish(event_id="e1")
    assert world.rows("runs", "chain", "state") == [("one", "done"), ("other", "done")]
    assert world.rows("events", "state") == [("matched",)]


def test_an_event_that_nothing_matches_is_recorded_as_unmatched(world):
    world.rules(ONE).publish(event_type="else")
    assert world.rows("events", "state") == [("unmatched",)]
    assert world.rows("runs") == []


def test_a_default_chain_runs_only_when_no_ordinary_one_matched(world):
    world.rules(ONE + "  - {name: rest, default: true, steps: [{handler: scripted}]}\n")
    world.publish({"event_type": "done"}, {"event_type": "else"})
    assert world.rows("runs", "chain") == [("one",), ("rest",)]


def test_all_defaults_in_scope_run_and_none_of_another_account(world):
    world.rules(
        """
chains:
  - {name: mine, default: true, on: {account: acc}, steps: [{handler: scripted}]}
  - {name: all, default: true, steps: [{handler: scripted}]}
  - {name: theirs, default: true, on: {account: other}, steps: [{handler: scripted}]}
"""
    ).publish(event_type="x")
    assert world.rows("runs", "chain") == [("mine",), ("all",)]


def test_an_undefined_name_in_when_means_not_matched_and_is_told(world):
    world.rules(ONE.replace("steps:", "when: data.consent == 'yes'\n    steps:")).publish(event_id="e1")
    ((state, note),) = world.rows("events", "state", "note")
    assert state == "unmatched"
    assert "data.consent" in note


def test_an_event_without_type_takes_it_from_its_conversation(world):
    world.rules("conversations: {conv: poll}\n" + ONE.replace("{event_type: done}", "{conversation_type: poll}"))
    world.publish(json.dumps({"account_key": "acc", "conversation_key": "conv", "event_type": "done",
                              "content": {}}).encode())  # fmt: skip
    assert world.rows("events", "conversation_type", "state") == [("poll", "matched")]


def test_the_subject_is_what_the_rulebook_says(world):
    world.rules("events: [{conversation_type: poll, event_type: done, subject: data.msisdn}]\n" + ONE)
    world.publish({"event_data": {"msisdn": "+27821230000"}}, {"event_data": {}})
    assert world.rows("events", "subject") == [("+27821230000",), (None,)]


# Identity.


def test_the_same_event_twice_runs_once(world):
    world.rules(ONE)
    first, again = world.publish({"event_id": "e1"}, {"event_id": "e1"})
    (later,) = world.publish(event_id="e1")
    assert (first.kind, again.kind, later.kind) == ("stored", "duplicate", "duplicate")
    assert len(world.rows("runs")) == 1


def test_the_same_id_with_another_content_is_a_conflict_and_keeps_its_bytes(world):
    world.rules(ONE)
    _, refused = world.publish({"event_id": "e1"}, {"event_id": "e1", "event_data": {"word": "else"}})
    assert (refused.kind, refused.code) == ("refused", "id_conflict")
    ((reason, body),) = world.rows("dead_letters", "reason", "body")
    assert reason == "id_conflict"
    assert json.loads(body)["event_data"] == {"word": "else"}


def test_two_accounts_may_use_one_id(world):
    world.rules(ONE)
    world.publish({"event_id": "e1"}, {"event_id": "e1", "account_key": "other"})
    assert len(world.rows("runs")) == 2


def test_two_equal_events_without_id_are_two_events(world):
    world.rules(ONE).publish({}, {})
    assert len(world.rows("runs")) == 2


# Steps.


def test_a_step_sees_the_results_of_earlier_ones(world):
    world.rules(TWO).publish({})
    assert [say for _, say, *_ in world.seen] == ["one", "one and two"]
    assert world.rows("steps", "step", "state") == [("first", "done"), ("second", "done")]


def test_a_step_whose_condition_does_not_hold_is_skipped_with_its_reason(world):
    world.rules(TWO.replace("{id: first, ", "{id: first, when: data.x == 1, ").replace("{{ steps.first.said }}", "."))
    world.publish(event_data={"x": 2})
    assert world.rows("steps", "step", "state", "error")[0] == ("first", "skipped", "when: data.x == 1")
    assert states(world) == ["done"]


def test_an_undefined_name_in_a_step_fails_it_and_never_renders_empty(world):
    world.rules(ONE.replace(" | default('hello')", "")).publish({})
    assert states(world) == ["failed"]
    assert "data.word" in world.rows("steps", "error")[0][0]
    assert world.seen == []


@pytest.mark.parametrize("act", [Failed("no such thing"), ValueError("bang"), SystemExit(3), None])
def test_what_cannot_succeed_fails_the_run_and_leaves_a_dead_letter(world, act):
    world.script.append((lambda event, context: None) if act is None else act)
    world.rules(TWO).publish(event_id="e1")
    assert states(world) == ["failed"]
    assert world.rows("steps", "state") == [("failed",)]
    assert world.rows("dead_letters", "kind", "reason", "event_id") == [("run", "failed", "e1")]


def test_an_exception_is_recorded_with_its_traceback(world):
    world.script.append(ValueError("bang"))
    world.rules(ONE).publish({})
    (error,) = world.rows("steps", "error")[0]
    assert error.startswith("ValueError: bang")
    assert "Traceback" in error


def test_a_failing_chain_does_not_touch_another(world):
    world.script.append(ValueError("bang"))
    world.rules(ONE + "  - {name: other, steps: [{handler: scripted}]}\n").publish({})
    assert world.rows("runs", "chain", "state") == [("one", "failed"), ("other", "done")]


def test_a_failed_step_leaves_nothing_behind(world):
    def write_and_fail(event, context):
        context.contacts.create("+27821230001")
        return Failed("after all")

    world.script.append(write_and_fail)
    world.rules(ONE).publish({})
    assert world.rows("contacts") == []


def test_on_error_continue_goes_on_and_leaves_no_dead_letter(world):
    world.script.append(Failed("no"))
    world.rules(TWO.replace("with: {say: one}", "with: {say: one}, on_error: continue").replace(
        "steps.first.said", "steps.first.state")).publish({})  # fmt: skip
    assert [say for _, say, *_ in world.seen] == ["one", "failed and two"]
    assert states(world) == ["done"]
    assert world.rows("dead_letters") == []


def test_a_step_that_says_skipped_is_recorded_so_and_the_run_goes_on(world):
    world.script.append(Done({"said": "x"}, skipped="opted out"))
    world.rules(TWO).publish({})
    assert world.rows("steps", "state", "error") == [("skipped", "opted out"), ("done", None)]


@pytest.mark.parametrize(
    ("result", "code"),
    [
        ({"x": float("nan")}, "bad_number"),
        ({"x": 2**70}, "bad_number"),
        ({"x": "\0"}, "bad_text"),
        ({"x": "\ud800"}, "bad_text"),
        ({"x": "y" * 1_100_000}, "too_large"),
        ({"x": object()}, "wrong_type"),
    ],
)
def test_results_obey_the_limits_of_events(world, result, code):
    world.script.append(Done(result))
    world.rules(ONE).publish({})
    assert states(world) == ["failed"]
    assert code in world.rows("steps", "error")[0][0]


def test_a_handler_cannot_change_the_event(world):
    def meddle(event, context):
        event.event_data["word"] = "changed"

    world.script.append(meddle)
    world.rules(ONE).publish(event_data={"word": "as sent"})
    assert "TypeError" in world.rows("steps", "error")[0][0]


# Retries.


def test_a_transient_failure_is_tried_again_later_with_the_same_key(world):
    world.script += [RetryLater(reason="busy"), ConnectionError("gone"), Done({"said": "x"})]
    world.rules(ONE).publish({})
    assert world.rows("runs", "state", "attempt", "error") == [("retrying", 2, "busy")]
    world.turn(after=timedelta(seconds=3))
    world.turn(after=timedelta(seconds=5))
    assert states(world) == ["done"]
    assert world.rows("steps", "attempt", "state") == [(1, "failed"), (2, "failed"), (3, "done")]
    assert len({key for _, _, key, *_ in world.seen}) == 1


def test_a_retry_waits_for_its_time(world):
    world.script.append(RetryLater(reason="busy"))
    world.rules(ONE).publish({})
    world.turn(after=timedelta(milliseconds=900))
    assert len(world.seen) == 1


def test_attempts_that_are_used_up_end_the_run_as_exhausted(world):
    world.script += [RetryLater(reason="busy")] * 3
    world.rules(ONE.replace("with:", "retry: {attempts: 2}, with:")).publish({})
    world.turn(after=timedelta(minutes=1))
    assert states(world) == ["failed"]
    assert world.rows("dead_letters", "reason") == [("exhausted",)]
    assert len(world.seen) == 2


def test_an_attempt_that_does_not_count_burns_none(world):
    world.script += [RetryLater(reason="slow down", counts=False)] * 5
    world.rules(ONE.replace("with:", "retry: {attempts: 2}, with:")).publish({})
    for _ in range(5):
        world.turn(after=timedelta(hours=1))
    assert states(world) == ["done"]
    assert world.rows("steps", "attempt", "state") == [(1, "done")]


# Waiting and stopping.

WAITING = """
chains:
  - name: waiting
    on: {event_type: done}
    steps:
      - {id: first, handler: scripted, with: {say: before}}
      - wait: 1d
      - stop: steps.first.said == data.until
      - {id: last, handler: scripted, with: {say: after}}
"""


def test_a_wait_is_a_row_that_falls_due(world):
    world.rules(WAITING).publish(event_data={"until": "never"})
    assert world.rows("runs", "state", "step") == [("waiting", "wait")]
    world.turn(after=timedelta(hours=23))
    assert states(world) == ["waiting"]
    world.turn(after=timedelta(hours=2))
    assert states(world) == ["done"]
    assert [say for _, say, *_ in world.seen] == ["before", "after"]
    assert world.rows("steps", "step", "state") == [
        ("first", "done"), ("wait", "done"), ("stop", "done"), ("last", "done"),
    ]  # fmt: skip


def test_a_stop_ends_the_run_as_done_and_tells_what_was_not_reached(world):
    world.rules(WAITING).publish(event_data={"until": "before"})
    world.turn(after=timedelta(days=2))
    assert states(world) == ["done"]
    assert world.rows("steps", "step", "state")[-1] == ("last", "skipped")
    assert len(world.seen) == 1


def test_a_run_finishes_on_the_chain_that_it_began_with(world):
    world.rules(WAITING).publish(event_data={"until": "never"})
    world.rules(WAITING.replace("say: after", "say: edited"))
    world.turn(after=timedelta(days=2))
    assert [say for _, say, *_ in world.seen] == ["before", "after"]


def test_a_run_whose_handler_is_gone_is_held_and_told(world):
    world.rules(WAITING.replace("scripted, with: {say: after}", "log_event")).publish(event_data={"until": "never"})
    del world.registry.handlers._loaded["scripted"]
    world.rules("chains: [{name: other, steps: [{handler: log_event}]}]\n")
    world.turn(after=timedelta(days=2))
    assert states(world) == ["held"]
    assert world.rows("dead_letters", "kind", "reason") == [("run", "cannot_bind")]


# Emitting.


def test_an_emitted_event_is_an_event_like_any_other(world):
    world.script.append(Done({"said": "x"}, emits=[Emit("welcomed", {"word": "child"})]))
    world.rules(ONE + "  - {name: child, on: {event_type: welcomed}, steps: [{handler: scripted}]}\n")
    world.publish(event_id="e1")
    parent, child = world.rows("events")
    assert (child["parent_id"], child["root_id"], child["hops"], child["state"]) == ("e1", "e1", 1, "matched")
    assert child["conversation_type"] == parent["conversation_type"]
    assert world.rows("runs", "chain", "state") == [("one", "done"), ("child", "done")]


def test_an_emitted_event_that_is_published_goes_to_the_outbox_too(world):
    world.script.append(Done(emits=[Emit("welcomed", publish=True)]))
    world.rules(ONE).publish({})
    ((destination, state, body),) = world.rows("outbox", "destination", "state", "body")
    assert (destination, state) == ("amqp:vumi.events/poll.welcomed", "ready")
    assert json.loads(body)["content"] == json.loads(body)["event_data"] == {}


def test_a_published_message_goes_to_the_outbox_with_the_step(world):
    world.script.append(Done(publishes=[Publish("vumi", "vumi.api", {"command": "start"})]))
    world.rules(ONE).publish({})
    assert world.rows("outbox", "destination", "body") == [("amqp:vumi/vumi.api", '{"command":"start"}')]


LOOP = """
chains:
  - {name: a, on: {event_type: done}, steps: [{handler: emit_event, with: {event_type: back}}]}
  - {name: b, on: {event_type: back}, steps: [{handler: emit_event, with: {event_type: done}}]}
"""


def test_a_loop_is_stopped_and_leaves_one_dead_letter(world):
    world.rules(LOOP).publish(event_id="e1")
    assert world.rows("dead_letters", "kind", "reason") == [("event", "loop")]
    assert [row["hops"] for row in world.rows("events")] == list(range(10))
    assert states(world, "events")[-1] == "dead"
    assert set(states(world)) == {"done"}


def test_a_fan_out_is_stopped_by_the_budget_of_its_root_with_one_dead_letter(world):
    world.rules(
        """
chains:
  - name: twice
    steps:
      - {handler: emit_event, with: {event_type: more}}
      - {handler: emit_event, with: {event_type: more}}
""",
        loop_guard=LoopGuard(max_hops=30, max_events_per_root=50),
    ).publish(event_id="e1")
    for _ in range(20):
        world.turn()
    assert [row["reason"] for row in world.rows("dead_letters")] == ["loop"]
    assert states(world, "events").count("matched") == 51
    assert "new" not in states(world, "events")


def test_work_in_pages_commits_each_page_and_is_called_again(world):
    world.script += [Done({"said": "1"}, more={"page": 2}), Done({"said": "2"}, more={"page": 3}), Done({"said": "3"})]
    world.rules(ONE).publish({})
    assert world.rows("runs", "state", "cursor") == [("ready", '{"page":2}')]
    world.turn()
    world.turn()
    assert [cursor for *_, cursor in world.seen] == [None, {"page": 2}, {"page": 3}]
    assert len({key for _, _, key, *_ in world.seen}) == 3
    assert states(world) == ["done"]


# Calls.


def test_a_call_starts_only_after_its_start_is_committed(world):
    world.rules(CALL).publish({})
    assert states(world) == ["running"]
    assert world.rows("steps", "state") == [("started",)]
    assert world.seen == []
    assert [call.step_id for call in world.calls] == ["call"]


def test_a_call_that_came_back_lets_the_run_go_on(world):
    world.rules(CALL).publish({})
    world.bring_back(Done({"said": "ok"}))
    assert states(world) == ["done"]
    assert [say for _, say, *_ in world.seen] == ["done"]


def test_a_call_for_which_no_slot_is_free_waits_in_the_store(world):
    world.slots.free = 1
    world.rules(CALL).publish({"event_id": "e1"}, {"event_id": "e2"})
    assert world.rows("runs", "state", "lane") == [("running", ""), ("ready", "calls")]
    world.bring_back(Done())
    world.turn()
    assert world.rows("runs", "state") == [("done",), ("running",)]


def test_after_a_crash_an_unkeyed_call_is_unknown_and_held(world):
    world.rules(CALL).publish({})
    world.recover()
    assert states(world) == ["held"]
    assert world.rows("steps", "state") == [("unknown",)]
    assert world.rows("dead_letters", "reason") == [("unknown",)]


@pytest.mark.parametrize(("policy", "state", "reason"), [("resend", "retrying", None), ("fail", "failed", "unknown")])
def test_on_unknown_decides_what_becomes_of_a_lost_call(world, policy, state, reason):
    world.rules(CALL.replace("with: {say: hi}", f"on_unknown: {policy}, with: {{say: hi}}")).publish({})
    world.bring_back(Unknown("no answer"))
    assert states(world) == [state]
    assert [row["reason"] for row in world.rows("dead_letters")] == ([reason] if reason else [])


def test_a_call_that_came_back_to_a_run_that_was_cancelled_changes_nothing(world):
    world.rules(CALL).publish({})
    world.sql("UPDATE runs SET state = 'cancelled'")
    world.bring_back(Done())
    assert states(world) == ["cancelled"]


def test_an_exhausted_call_ends_as_such(world):
    world.rules(CALL.replace("with: {say: hi}", "retry: {attempts: 1}, with: {say: hi}")).publish({})
    world.bring_back(RetryLater(reason="503"))
    assert states(world) == ["failed"]
    assert world.rows("dead_letters", "reason") == [("exhausted",)]


# The budget.


def test_what_the_budget_does_not_reach_is_committed_as_new_and_taken_next(world):
    world.rules(ONE, budget=Budget(events=2))
    world.publish({}, {}, {}, {}, {})
    assert states(world, "events") == ["matched", "matched", "new", "new", "new"]
    world.turn()
    world.turn()
    assert states(world) == ["done"] * 5


def test_steps_beyond_the_budget_are_committed_as_due_now(world):
    world.rules(TWO, budget=Budget(steps=3))
    world.publish({}, {})
    assert states(world) == ["done", "ready"]
    world.turn()
    assert states(world) == ["done", "done"]
    assert len(world.seen) == 4


def test_the_guard_knows_the_event_while_its_handler_runs_and_none_behind_it(world):
    inside = []
    world.script.append(lambda event, context: inside.append(world.guard.entered[-1]) or Done())
    world.rules(ONE).publish({})
    assert inside == [(1, "Scripted")]
    assert world.guard.entered[-1] is None


def test_unknown_that_was_decided_to_be_a_failure_is_one_to_later_steps_after_a_restart_too(world):
    world.rules("""
chains:
  - name: c
    on: {event_type: done}
    steps:
      - {id: call, handler: scripted_call, on_unknown: fail, on_error: continue}
      - wait: 1d
      - {id: after, handler: scripted, when: steps.call.state == "failed"}
""")
    world.publish(event_id="e1")
    world.bring_back(Unknown("the line went dead"))
    world.turn(after=timedelta(days=1))
    assert world.rows("runs", "state") == [("done",)]
    assert world.rows("steps", "step", "state")[-1] == ("after", "done")


def test_note_on_conditions_that_could_not_be_told_stays_short(world):
    chains = [
        f"  - {{name: c{n}, on: {{event_type: done}}, when: data.x{n} == 1, steps: [{{handler: scripted}}]}}\n"
        for n in range(500)
    ]
    world.rules("chains:\n" + "".join(chains)).publish(event_id="e1")
    ((note,),) = world.rows("events", "note")
    assert note.endswith("and 490 more")
    assert len(note) < 2000


def test_pages_and_events_whose_ids_look_alike_have_keys_of_their_own(world):
    world.rules("chains: [{name: c, on: {event_type: done}, steps: [{id: s, handler: scripted}]}]\n")
    world.script += [Done(more=0), Done(more="")]
    world.publish(event_id="e1")
    world.turn()
    world.turn()
    world.publish(account_key="acc", event_id="x|y")
    world.publish(account_key="acc|x", event_id="y")
    keys = [key for _, _, key, _, _ in world.seen]
    assert len(set(keys)) == len(keys) == 5
