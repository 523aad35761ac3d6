"""Whatever a plugin's handler does becomes an outcome in the journal; nothing of it takes the worker down."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from pydantic import field_validator

from dispatcher import Done, Effect, Emit, Failed, Handler, Publish, RetryLater, Unknown
from dispatcher.engine.attempt import checked
from dispatcher.plugins.registry import Installed

ONE = "chains: [{name: c, on: {event_type: done}, steps: [{id: s, handler: %s, retry: {for: 1h}}]}]\n"


class Mute(Exception):
    def __str__(self):
        raise RuntimeError("no words")


MISTAKES = {
    "a result that is a text": Done("text"),
    "a result that is a list": Done([1]),
    "emits that are no emits": Done(emits=[{"event_type": "x"}]),
    "one emit instead of a list": Done(emits=Emit("x")),
    "an emit with a type that is a number": Done(emits=[Emit(5)]),
    "an emit whose data is a list": Done(emits=[Emit("x", event_data=[1])]),
    "publishes that are no publishes": Done(publishes=[{"exchange": "x"}]),
    "a publish whose body is a text": Done(publishes=[Publish("e", "r", "text")]),
    "a publish without a routing key": Done(publishes=[Publish("e", None, {})]),
    "skipped without a reason": Done(skipped=True),
    "a cursor that is no JSON": Done(more=object()),
    "a pause that is a number": RetryLater(after=5, reason="busy"),
    "a pause beyond the end of time": RetryLater(after=timedelta.max, reason="busy"),
    "an exception for a reason": Failed(ValueError("odd")),
    "no reason": Failed(None),
    "a reason that UTF-8 cannot write": Failed("\ud800"),
    "a reason that PostgreSQL cannot write": Failed("a\0b"),
    "a reason of ten million letters": Failed("x" * 10_000_000),
}
RAISED = [Mute(), asyncio.CancelledError(), GeneratorExit(), MemoryError(), RecursionError(), ValueError("a\0b")]


@pytest.mark.parametrize("outcome", MISTAKES.values(), ids=MISTAKES)
@pytest.mark.parametrize("handler", ["scripted", "scripted_call"])
def test_outcome_that_cannot_be_acted_on_fails_the_step(world, handler, outcome):
    world.rules(ONE % handler)
    world.script.append(outcome)
    world.publish(event_id="e1")
    if handler == "scripted_call":
        world.bring_back(checked(outcome, world.calls[0].handler, "done"))
    assert world.rows("runs", "state") == [("failed",)]
    assert len(world.rows("dead_letters", "detail")) == 1
    assert len(world.rows("steps", "error")[0][0]) < 20_000


@pytest.mark.parametrize("error", RAISED, ids=lambda error: type(error).__name__)
def test_whatever_is_raised_fails_the_step_and_is_named(world, error):
    world.rules(ONE % "scripted")
    world.script.append(error)
    world.publish(event_id="e1")
    assert world.rows("runs", "state") == [("failed",)]
    assert type(error).__name__ in world.rows("runs", "error")[0][0]


def test_exception_given_as_the_reason_of_an_unknown_leaves_it_unknown(world):
    world.rules(ONE % "scripted_call")
    world.publish(event_id="e1")
    lost = Unknown(TimeoutError("no answer"))
    world.bring_back(checked(lost, world.calls[0].handler, "done"))
    assert world.rows("runs", "state") == [("held",)]
    assert "no answer" in world.rows("steps", "error")[0][0]


def test_validator_that_raises_fails_the_step(world):
    class Picky(Handler):
        """Read a param in a way that breaks."""

        effect = Effect.PURE
        word: str

        @field_validator("word")
        @classmethod
        def look_up(cls, word):
            return {}[word]

        def run(self, event, context):
            return Done()

    world.registry.handlers.add(Installed("picky", "tests", "1", Picky))
    world.rules(
        "chains: [{name: c, on: {event_type: done}, "
        "steps: [{id: s, handler: picky, with: {word: '{{ data.word }}'}}]}]\n"
    )
    world.publish(event_id="e1", event_data={"word": "x"})
    assert world.rows("runs", "state") == [("failed",)]
    assert "KeyError" in world.rows("runs", "error")[0][0]


def test_retry_asked_for_at_once_does_not_spin(world):
    world.rules(ONE % "scripted")
    world.script += [RetryLater(after=timedelta(0), counts=False), RetryLater(after=timedelta(days=-1), counts=False)]
    world.publish(event_id="e1")
    world.turn()
    assert len(world.seen) == 1
    world.turn(after=timedelta(seconds=1))
    world.turn()
    assert len(world.seen) == 2
    world.turn(after=timedelta(seconds=1))
    assert world.rows("runs", "state") == [("done",)]
