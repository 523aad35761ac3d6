"""An event that takes the worker down is found and parked, wherever it was when that happened; its neighbours run."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest
from pydantic import field_validator

from dispatcher import Done, Effect, Emit, Handler
from dispatcher.plugins.registry import Installed
from dispatcher.worker.recovery import Recovery

CHAINS = """
chains:
  - {name: a, on: {event_type: done}, steps: [{handler: emit_event, with: {event_type: next}}]}
  - {name: b, on: {event_type: next}, steps: [{handler: lethal, with: {word: "{{ data.word | default('') }}"}}]}
  - {name: c, on: {event_type: deadly}, steps: [{handler: lethal, with: {word: "{{ data.word }}"}}]}
"""


class Crash(KeyboardInterrupt):
    """Stands for the end of the process: of the one kind of exception that is never contained."""


@pytest.fixture
def deadly(workshop, monkeypatch):
    def validate(word):
        if word == "while it is bound":
            raise Crash
        return word

    class Lethal(Handler):
        """Crash in the way that the word says."""

        effect = Effect.TRANSACTION
        word: str

        @field_validator("word")
        @classmethod
        def look_at(cls, word):
            return validate(word)

        def run(self, event, context):
            if self.word != "harmless":
                raise KeyboardInterrupt
            return Done()

    workshop.world.registry.handlers.add(Installed("lethal", "tests", "1", Lethal))
    return workshop.rules(CHAINS)


def restarts(workshop, starts=8):
    """Start workers, each after the crash of the one before, until one finds nothing more to do."""
    for crashes in range(starts):
        try:
            workshop.restart().recover()
            workshop.work_off()
        except KeyboardInterrupt:
            continue
        return crashes
    pytest.fail(f"still crashing after {starts} starts")


def letters(workshop):
    return workshop.rows("dead_letters", "reason", "event_id")


def test_emitted_event_is_parked_though_its_parent_was_in_hand_with_it(deadly):
    deadly.store_new({"event_id": "e1"}, {"event_id": "e2", "event_type": "deadly", "event_data": {"word": "harmless"}})
    restarts(deadly)
    emitted = [row["event_id"] for row in deadly.rows("events") if row["parent_id"] == "e1"]
    assert letters(deadly) == [("crashed", emitted[0])]
    assert {row["event_id"]: row["state"] for row in deadly.rows("events")}["e1"] == "matched"


def test_event_that_crashes_while_its_params_are_read_is_told_from_its_neighbours(deadly):
    words = ["harmless", "harmless", "while it is bound", "harmless"]
    deadly.store_new(
        *({"event_id": f"e{n}", "event_type": "deadly", "event_data": {"word": word}} for n, word in enumerate(words))
    )
    assert restarts(deadly) == 3
    assert letters(deadly) == [("crashed", "e2")]
    assert dict(deadly.rows("events", "event_id", "crash_count")) == {"e0": 0, "e1": 0, "e2": 3, "e3": 0}


def test_event_that_crashed_the_worker_before_it_was_stored_is_parked_when_it_comes_again(deadly):
    event = {"event_id": "e1", "event_type": "deadly", "event_data": {"word": "now"}}
    deadly.ask_to_publish(event)
    with pytest.raises(KeyboardInterrupt):
        deadly.turn()
    deadly.restart().recover()
    request = deadly.ask_to_publish(event)
    deadly.turn()
    assert request.wait()["ok"]
    restarts(deadly)
    assert letters(deadly) == [("crashed", "e1")]


def test_events_are_stored_first_only_for_a_while_after_a_crash_that_names_nobody(workshop):
    workshop.rules("chains: [{name: c, on: {event_type: done}, steps: [{handler: scripted}]}]\n")
    workshop.restart(77).recover()
    workshop.ask_to_publish({"event_id": "e1"})
    workshop.turn()
    assert workshop.states("events") == ["new"]
    workshop.clock.advance(timedelta(seconds=601))
    workshop.ask_to_publish({"event_id": "e2"})
    workshop.turn()
    assert workshop.states("events") == ["matched", "matched"]


def test_error_that_nobody_expected_is_laid_at_its_event_like_a_crash(workshop):
    class Broken(list):
        def __iter__(self):
            raise ZeroDivisionError

    workshop.rules("chains: [{name: c, on: {event_type: done}, steps: [{handler: scripted}]}]\n")
    workshop.store_new({"event_id": "e1"}, {"event_id": "e2"})
    workshop.script += [lambda event, context: Done(emits=Broken([Emit("x")])) for _ in range(2)]
    with pytest.raises(ZeroDivisionError):
        workshop.turn()
    workshop.restart()
    with pytest.raises(ZeroDivisionError):
        workshop.recover()
    assert dict(workshop.rows("events", "event_id", "crash_count")) == {"e1": 1, "e2": 0}


def test_call_of_a_suspect_that_a_stop_did_not_wait_for_is_not_taken_for_abandoned(workshop):
    class Slow(Handler):
        """Take as long as the test wants."""

        effect = Effect.CALL

        def run(self, event, context):
            may_end.wait(10)
            return Done()

    may_end = threading.Event()
    workshop.world.registry.handlers.add(Installed("slow", "tests", "1", Slow))
    workshop.rules("chains: [{name: c, on: {event_type: done}, steps: [{handler: slow}]}]\n")
    workshop.store_new({"event_id": "e1"})
    workshop.restart(1)
    recovery = Recovery(
        workshop.store, workshop.batches, workshop.guard, workshop.clock, max_crashes=3, wait_for_calls=lambda: None
    )
    recovery.run()
    assert workshop.states() == ["running"]
    may_end.set()
    workshop.work_off()
    assert workshop.states() == ["done"]
