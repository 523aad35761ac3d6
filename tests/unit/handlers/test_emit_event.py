from __future__ import annotations

from dispatcher import Effect, Emit
from dispatcher.testing import an_event, run_handler
from handlers.emit_event import EmitEvent


def test_what_is_not_told_stays_the_parents():
    parent = an_event(account_key="acc7", conversation_key="c7", conversation_type="survey")
    run = run_handler(EmitEvent, {"event_type": "welcome_sent", "event_data": {"n": 1}}, parent)
    assert run.emits == (Emit("welcome_sent", {"n": 1}),)
    assert run.result == {
        "event_type": "welcome_sent",
        "conversation_type": "survey",
        "conversation_key": "c7",
        "account_key": "acc7",
    }
    assert set(run.result) == set(EmitEvent.Result.model_fields)


def test_everything_may_be_told():
    run = run_handler(
        EmitEvent,
        {
            "event_type": "x",
            "conversation_type": "t",
            "conversation_key": "k",
            "account": "a",
            "publish": "true",
        },
    )
    assert run.emits == (Emit("x", {}, "t", "k", "a", publish=True),)


def test_it_is_pure():
    assert run_handler(EmitEvent, {"event_type": "x"}).settled.effect is Effect.PURE
