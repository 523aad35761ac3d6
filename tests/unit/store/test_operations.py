"""What people do to runs and events: it resumes what is not finished, repeats nothing, and guesses nothing."""

from __future__ import annotations

from datetime import timedelta

import pytest

from dispatcher import Done, Failed, Publish, RetryLater, Unknown
from dispatcher.errors import NotFound, NotPossible, UsageError
from dispatcher.store.operations import Operations, Page
from dispatcher.worker.administration import perform

TWO_STEPS = """
chains:
  - name: c
    on: {event_type: done}
    steps:
      - {id: first, handler: scripted, with: {say: one}}
      - {id: second, handler: scripted, with: {say: two}, retry: {attempts: 2}}
"""
CALL = """
chains:
  - name: c
    on: {event_type: done}
    steps:
      - {id: call, handler: scripted_call, with: {say: out}}
      - {id: after, handler: scripted, with: {say: after}}
"""
WAIT = """
chains:
  - name: c
    on: {event_type: done}
    steps:
      - wait: 1d
      - {id: after, handler: scripted, with: {say: after}}
"""


def by(world, verb, **args):
    return perform(world.store, verb, {"actor": "ann", **args}, world.clock.now())


def run_id(world):
    (only,) = world.rows("runs", "run_id")
    return only[0]


def states(world):
    return [state for (state,) in world.rows("runs", "state")]


def steps(world):
    return sorted(world.rows("steps", "position", "attempt", "state"))


def said(world):
    return [entry[1] for entry in world.seen]


def keys(world):
    return [entry[2] for entry in world.seen]


def a_failed_run(world):
    world.rules(TWO_STEPS)
    world.script[:] = [Done(), Failed("no such number")]
    world.publish(event_id="e1")
    assert states(world) == ["failed"]


def test_retried_run_repeats_the_failed_step_under_its_key_and_no_step_before_it(world):
    a_failed_run(world)
    told = by(world, "runs.retry", run=run_id(world))
    assert told["ids"] == [run_id(world)]
    assert told["message"] == f"run {run_id(world)} is due now"
    world.turn()
    assert states(world) == ["done"]
    assert said(world) == ["one", "two", "two"]
    assert keys(world)[1] == keys(world)[2]


def test_retried_run_keeps_its_earlier_attempts_in_the_journal(world):
    a_failed_run(world)
    by(world, "runs.retry", run=run_id(world))
    world.script[:] = [Failed("again")]
    world.turn()
    by(world, "runs.retry", run=run_id(world))
    world.turn()
    second = [(attempt, state) for position, attempt, state in steps(world) if position == 1]
    assert [state for _, state in second] == ["failed", "failed", "done"]
    assert second[-1][0] == 1


def test_retried_run_has_all_the_attempts_of_its_policy_again(world):
    world.rules(TWO_STEPS)
    world.script[:] = [Done(), RetryLater(reason="busy"), RetryLater(reason="busy")]
    world.publish(event_id="e1")
    world.turn(after=timedelta(hours=1))
    assert states(world) == ["failed"]
    world.clock.advance(timedelta(days=3))
    by(world, "runs.retry", run=run_id(world))
    world.script[:] = [RetryLater(reason="still busy")]
    world.turn()
    assert states(world) == ["retrying"]
    world.turn(after=timedelta(hours=1))
    assert states(world) == ["done"]


def test_retrying_a_run_answers_its_dead_letters(world):
    a_failed_run(world)
    assert world.rows("dead_letters", "reason", "state") == [("failed", "open")]
    by(world, "runs.retry", run=run_id(world))
    assert world.rows("dead_letters", "state") == [("replayed",)]


def test_retry_is_recorded_with_its_actor(world):
    a_failed_run(world)
    by(world, "runs.retry", run=run_id(world)[-12:])
    assert world.rows("audit", "actor", "verb", "target") == [("ann", "runs.retry", run_id(world))]


def test_run_that_waits_can_be_hurried(world):
    world.rules(WAIT)
    world.publish(event_id="e1")
    world.turn()
    assert states(world) == ["waiting"]
    by(world, "runs.retry", run=run_id(world))
    world.turn()
    assert states(world) == ["done"]
    assert said(world) == ["after"]
    assert steps(world) == [(0, 1, "done"), (1, 1, "done")]


def test_pause_between_attempts_can_be_ended(world):
    world.rules(TWO_STEPS)
    world.script[:] = [Done(), RetryLater(reason="busy", after=timedelta(hours=5))]
    world.publish(event_id="e1")
    by(world, "runs.retry", run=run_id(world))
    world.turn()
    assert states(world) == ["done"]
    assert steps(world) == [(0, 1, "done"), (1, 1, "failed"), (1, 2, "done")]


def test_run_that_is_done_cannot_be_retried(world):
    world.rules(TWO_STEPS)
    world.publish(event_id="e1")
    with pytest.raises(NotPossible, match="is done: there is nothing to retry") as caught:
        by(world, "runs.retry", run=run_id(world))
    assert "--again" in caught.value.hint


def test_run_that_nobody_knows_is_not_found(world):
    with pytest.raises(NotFound, match="there is no run 'abc'"):
        by(world, "runs.retry", run="abc")


def a_held_run(world):
    world.rules(CALL)
    world.publish(event_id="e1")
    world.bring_back(Unknown("no answer"))
    assert states(world) == ["held"]


def test_run_with_an_unknown_outcome_is_not_retried_but_resolved(world):
    a_held_run(world)
    with pytest.raises(NotPossible, match="nobody knows whether its step call had its effect") as caught:
        by(world, "runs.retry", run=run_id(world))
    assert f"runs resolve {run_id(world)} --sent" in caught.value.hint
    assert states(world) == ["held"]


def test_resolved_as_sent_goes_on_behind_the_step(world):
    a_held_run(world)
    by(world, "runs.resolve", run=run_id(world), sent=True)
    world.turn()
    assert states(world) == ["done"]
    assert world.calls == []
    assert said(world) == ["after"]
    assert world.rows("dead_letters", "state") == [("replayed",)]


def test_resolved_as_not_sent_is_called_again_under_the_same_key(world):
    a_held_run(world)
    first = world.calls[:]
    by(world, "runs.resolve", run=run_id(world), sent=False)
    world.turn()
    assert first == []
    assert [call.attempt for call in world.calls] == [2]
    world.bring_back(Done())
    assert states(world) == ["done"]
    assert steps(world) == [(0, 1, "unknown"), (0, 2, "done"), (1, 1, "done")]


def test_only_an_unknown_outcome_can_be_resolved(world):
    a_failed_run(world)
    with pytest.raises(NotPossible, match="is failed; no outcome of it is unknown"):
        by(world, "runs.resolve", run=run_id(world), sent=True)


def test_unknown_step_that_the_rulebook_calls_failed_may_be_retried_by_name(world):
    world.rules(CALL.replace("with: {say: out}", "with: {say: out}, on_unknown: fail"))
    world.publish(event_id="e1")
    world.bring_back(Unknown("no answer"))
    assert states(world) == ["failed"]
    assert by(world, "runs.retry")["left"] == [[run_id(world), "unknown"]]
    assert (
        "nobody knows whether step call had an effect before" in by(world, "runs.retry", run=run_id(world))["message"]
    )
    world.turn()
    world.bring_back(Done())
    assert states(world) == ["done"]


def test_cancelled_run_goes_no_further(world):
    world.rules(WAIT)
    world.publish(event_id="e1")
    by(world, "runs.cancel", run=run_id(world))
    world.turn(after=timedelta(days=2))
    assert world.rows("runs", "state", "error", "due_at") == [("cancelled", "by ann", None)]
    assert said(world) == []


def test_cancelled_wait_that_is_retried_is_over(world):
    world.rules(WAIT)
    world.publish(event_id="e1")
    by(world, "runs.cancel", run=run_id(world))
    by(world, "runs.retry", run=run_id(world))
    world.turn()
    assert states(world) == ["done"]
    assert said(world) == ["after"]


def test_call_of_a_cancelled_run_is_fenced_and_its_outcome_unknown(world):
    world.rules(CALL)
    world.publish(event_id="e1")
    assert "may have acted" in by(world, "runs.cancel", run=run_id(world))["message"]
    late = world.calls[0]
    world.bring_back(Done())
    assert states(world) == ["cancelled"]
    assert steps(world) == [(0, 1, "unknown")]
    with pytest.raises(NotPossible, match="nobody knows"):
        by(world, "runs.retry", run=run_id(world))
    by(world, "runs.resolve", run=run_id(world), sent=False)
    world.turn()
    world.calls.insert(0, late)
    world.slots.free -= 1
    world.bring_back(Done())
    assert states(world) == ["running"], "what came back belongs to the attempt that was cancelled"


def test_run_that_has_ended_cannot_be_cancelled(world):
    a_failed_run(world)
    with pytest.raises(NotPossible, match="is failed already"):
        by(world, "runs.cancel", run=run_id(world))


def test_run_whose_chain_does_not_bind_is_tried_again_when_it_does(world):
    world.rules(WAIT)
    world.publish(event_id="e1")
    world.sql("UPDATE runs SET state = 'held', due_at = NULL, error = 'cannot_bind: gone'")
    with pytest.raises(NotPossible, match="is held: cannot_bind: gone; no outcome of it is unknown"):
        by(world, "runs.resolve", run=run_id(world), sent=True)
    by(world, "runs.retry", run=run_id(world))
    world.turn()
    assert states(world) == ["done"]


def test_many_runs_are_retried_page_by_page_and_each_once(world, monkeypatch):
    monkeypatch.setattr("dispatcher.store.operations.PAGE", 2)
    world.rules(TWO_STEPS)
    for number in range(5):
        world.script[:] = [Done(), Failed("no")]
        world.publish(event_id=f"e{number}")
    world.script[:] = [Failed("still")] * 100
    page, pages = None, []
    while True:
        told = by(world, "runs.retry", state="failed", chain="c", page=page)
        pages.append(told["changed"])
        world.turn()  # they fail again at once, and are not of this operation any more
        page = told["next"]
        if page is None:
            break
    assert pages == [2, 2, 1]
    assert len(said(world)) == 15


def test_only_the_runs_asked_for_are_retried(world):
    a_failed_run(world)
    assert by(world, "runs.retry", chain="other")["changed"] == 0
    assert by(world, "runs.retry", account="other")["changed"] == 0
    assert by(world, "runs.retry", state="held")["changed"] == 0
    assert by(world, "runs.retry", account="acc", chain="c")["changed"] == 1
    with pytest.raises(UsageError, match="runs that are done cannot be retried"):
        by(world, "runs.retry", state="done")


def test_replayed_event_resumes_its_runs_and_a_second_replay_finds_nothing_to_do(world):
    a_failed_run(world)
    assert by(world, "events.replay", event="e1")["ids"] == [run_id(world)]
    world.turn()
    assert said(world) == ["one", "two", "two"]
    with pytest.raises(NotPossible, match="has nothing to resume: its runs are 1 done") as caught:
        by(world, "events.replay", event="e1")
    assert "--again" in caught.value.hint


def test_replayed_again_every_step_is_done_anew_with_new_keys(world):
    world.rules(TWO_STEPS)
    world.publish(event_id="e1")
    by(world, "events.replay", event="e1", again=True)
    world.turn()
    assert world.rows("runs", "generation", "state") == [(1, "done"), (2, "done")]
    assert said(world) == ["one", "two"] * 2
    assert len(set(keys(world))) == 4


def test_event_that_is_being_worked_on_is_not_run_again(world):
    world.rules(WAIT)
    world.publish(event_id="e1")
    with pytest.raises(NotPossible, match="still being worked on: its runs are 1 waiting"):
        by(world, "events.replay", event="e1", again=True)


def test_unmatched_event_is_matched_against_todays_rules(world):
    world.rules(TWO_STEPS.replace("event_type: done", "event_type: other"))
    world.publish(event_id="e1")
    assert world.rows("events", "state") == [("unmatched",)]
    world.rules(TWO_STEPS)
    by(world, "events.replay", event="e1")
    world.turn()
    assert world.rows("events", "state") == [("matched",)]
    assert states(world) == ["done"]


def test_event_that_waits_for_its_turn_is_left_alone(world):
    world.rules(TWO_STEPS)
    world.publish(event_id="e1")
    world.sql("UPDATE events SET state = 'new'")
    with pytest.raises(NotPossible, match="e1 is new"):
        by(world, "events.replay", event="e1", again=True)


def test_event_parked_as_crashed_lives_again_when_it_is_replayed(world):
    world.rules(WAIT)
    world.publish(event_id="e1")
    with world.store.transaction() as transaction:
        transaction.park_crashed(1, 3, "2026-01-01T00:00:00.000000Z", "dead-1")
        transaction.commit()
    assert (states(world), world.rows("events", "state")) == (["failed"], [("dead",)])
    by(world, "dead.replay", dead="dead-1")
    assert world.rows("events", "state", "crash_count", "note") == [("matched", 0, None)]
    assert world.rows("dead_letters", "state") == [("replayed",)]
    world.turn()
    assert states(world) == ["done"]


def test_new_event_parked_as_crashed_is_matched_when_it_is_replayed(world):
    world.rules(TWO_STEPS)
    world.publish(event_id="e1", event_type="other")
    world.sql("UPDATE events SET state = 'dead', crash_count = 3, event_type = 'done'")
    by(world, "events.replay", event="e1", account="acc")
    world.turn()
    assert states(world) == ["done"]


def test_event_with_only_unknown_outcomes_asks_for_a_person(world):
    a_held_run(world)
    with pytest.raises(NotPossible, match="nobody knows"):
        by(world, "events.replay", event="e1")


def test_same_id_in_two_accounts_needs_the_account(world):
    a_failed_run(world)
    world.script[:] = [Done(), Failed("no")]
    world.publish(event_id="e1", account_key="acc2")
    with pytest.raises(NotPossible, match="may be any of these events") as caught:
        by(world, "events.replay", event="e1")
    assert caught.value.hint == "--account says which is meant."
    assert by(world, "events.replay", event="e1", account="acc2")["changed"] == 1


@pytest.mark.parametrize(
    ("verb", "args"),
    [
        ("runs.retry", {"run": 3}),
        ("runs.cancel", {}),
        ("runs.resolve", {"run": "x"}),
        ("runs.resolve", {"run": "x", "sent": "yes"}),
        ("events.replay", {}),
        ("events.replay", {"event": "e", "again": 1}),
        ("runs.retry", {"page": "2"}),
        ("runs.retry", {"page": [1]}),
        ("dead.replay", {"dead": ["x"]}),
        ("dead.burn", {"dead": "x"}),
        ("contacts.erase", {}),
        ("no.verb", {}),
        ("", {}),
    ],
)
def test_arguments_of_another_shape_are_a_usage_error_and_never_end_the_worker(world, verb, args):
    with pytest.raises(UsageError):
        by(world, verb, **args)


def test_what_fails_half_way_leaves_nothing(world):
    a_failed_run(world)

    def change(connection):
        Operations(connection, "ann", world.clock.now()).retry_run(run_id(world))
        raise NotPossible("later")

    with pytest.raises(NotPossible):
        world.store.administer(change)
    assert states(world) == ["failed"]
    assert world.rows("audit") == []
    assert Page() == Page(0, None)


# What may have been published.

PUBLISHES = """
chains:
  - name: c
    on: {event_type: done}
    steps:
      - {id: first, handler: scripted, with: {say: one}}
      - {id: second, handler: scripted, with: {say: two}}
      - {id: third, handler: scripted_call, with: {say: out}}
"""


def publishing(number=1):
    return Done(publishes=[Publish("vumi", "k", {"n": n}) for n in range(number)])


def hold_all(world):
    """Nobody knows whether the rows of the outbox were published."""
    with world.store.transaction() as transaction:
        for lane in transaction.outbox.lanes():
            for row in transaction.outbox.due(lane, "9999", 100):
                transaction.outbox.hold(row, "connection lost", world.clock.now())
        transaction.commit()


def letters(world):
    return sorted((row["detail"].partition(": ")[0], row["state"]) for row in world.rows("dead_letters"))


def test_call_that_is_unknown_stays_so_when_what_the_run_published_is_resolved(world):
    world.rules(PUBLISHES)
    world.script[:] = [publishing()]
    world.publish(event_id="e1")
    world.bring_back(Unknown("no answer"))
    hold_all(world)
    assert states(world) == ["held"]
    assert letters(world) == [("c, step third", "open"), ("step first", "open")]
    told = by(world, "runs.resolve", run=run_id(world), sent=True)
    assert told["message"] == f"run {run_id(world)}: step first was published"
    assert states(world) == ["held"]
    assert letters(world) == [("c, step third", "open"), ("step first", "replayed")]
    by(world, "runs.resolve", run=run_id(world), sent=True)
    world.turn()
    assert states(world) == ["done"]
    assert letters(world) == [("c, step third", "replayed"), ("step first", "replayed")]


def test_names_of_steps_that_begin_alike_are_told_apart(world):
    rules = PUBLISHES.replace("id: second", "id: first_").replace("scripted_call", "scripted")
    world.rules(rules)
    world.script[:] = [publishing(), Done(), publishing()]
    world.publish(event_id="e1")
    hold_all(world)
    assert letters(world) == [("step first", "open"), ("step third", "open")]
    told = by(world, "runs.resolve", run=run_id(world), sent=False)
    assert "step first, step third was not published" in told["message"]
    assert letters(world) == [("step first", "replayed"), ("step third", "replayed")]
    assert world.rows("outbox", "state") == [("ready",), ("ready",)]


def test_held_publish_is_named_by_whoever_refuses_to_try_again(world):
    world.rules(PUBLISHES)
    world.script[:] = [publishing(), Failed("no")]
    world.publish(event_id="e1")
    hold_all(world)
    assert states(world) == ["failed"]
    for verb, target in (("runs.retry", {"run": run_id(world)}), ("events.replay", {"event": "e1", "again": True})):
        with pytest.raises(NotPossible, match="whether its step first had its effect"):
            by(world, verb, **target)
    with pytest.raises(NotPossible, match="whether its step first had its effect"):
        by(world, "events.replay", event="e1", again=False)
    by(world, "runs.resolve", run=run_id(world), sent=True)
    assert states(world) == ["failed"]
    by(world, "runs.retry", run=run_id(world))
    world.turn()
    assert states(world) == ["running"]


def test_cancelled_run_keeps_what_it_may_have_published_until_a_person_says(world):
    world.rules(PUBLISHES.replace("scripted_call", "scripted"))
    world.script[:] = [publishing(2)]
    world.publish(event_id="e1")
    hold_all(world)
    assert states(world) == ["held"]
    by(world, "runs.cancel", run=run_id(world))
    assert world.rows("outbox", "state") == [("held",), ("held",)]
    by(world, "runs.resolve", run=run_id(world), sent=False)
    assert world.rows("outbox", "state") == [("ready",), ("ready",)]
    assert states(world) == ["cancelled"]


def test_resolving_twice_says_that_nothing_is_unknown(world):
    world.rules(PUBLISHES.replace("scripted_call", "scripted"))
    world.script[:] = [publishing()]
    world.publish(event_id="e1")
    hold_all(world)
    by(world, "runs.resolve", run=run_id(world), sent=True)
    with pytest.raises(NotPossible, match="no outcome of it is unknown"):
        by(world, "runs.resolve", run=run_id(world), sent=True)
    assert [entry["detail"] for entry in world.rows("audit")] == ["sent"]


def test_letter_of_a_held_publish_cannot_be_replayed_by_guessing(world):
    world.rules(PUBLISHES.replace("scripted_call", "scripted"))
    world.script[:] = [publishing()]
    world.publish(event_id="e1")
    hold_all(world)
    ((dead_id,),) = world.rows("dead_letters", "dead_id")
    with pytest.raises(NotPossible, match="nobody knows whether its step first"):
        by(world, "dead.replay", dead=dead_id)
    assert letters(world) == [("step first", "open")]


def test_person_erased_while_a_text_to_them_is_held_leaves_nothing_to_resolve(world):
    senders = "senders: {default: {type: vumi, transport_name: sms}}\n"
    text = 'handler: send_sms, with: {to: "{{ data.msisdn }}", text: hi}'
    world.rules(f"chains: [{{name: c, on: {{event_type: done}}, steps: [{{{text}}}]}}]\n", senders=senders)
    world.publish(event_id="e1", event_data={"msisdn": "+27821234567"})
    hold_all(world)
    assert states(world) == ["held"]
    by(world, "contacts.erase", contact="+27821234567", account="acc", region=None)
    assert world.rows("outbox") == []
    assert states(world) == ["cancelled"]
    with pytest.raises(NotPossible):
        by(world, "runs.resolve", run=run_id(world), sent=False)
