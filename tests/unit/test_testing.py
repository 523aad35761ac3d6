from __future__ import annotations

from datetime import timedelta

import pytest
from pydantic import BaseModel, ValidationError

from dispatcher import Done, Effect, Emit, Handler, Msisdn, Publish, RetryLater
from dispatcher.testing import START, FrozenClock, MemoryContext, an_event, run_handler


class Paged(Handler):
    """Three pages."""

    effect = Effect.PURE
    pages: int = 3

    def run(self, event, context):
        page = context.cursor or 1
        return Done(
            {"page": page},
            emits=[Emit("page", {"n": page})],
            publishes=[Publish("x", "y", {"n": page})],
            more=page + 1 if page < self.pages else None,
        )


class Calling(Handler):
    """A call with something before and something after it."""

    effect = Effect.CALL
    msisdn: Msisdn

    class Result(BaseModel):
        """What came."""

        seen: str

    def prepare(self, event, context):
        if context.opt_outs.reason(self.msisdn):
            return Done(skipped="opted out")
        return None

    async def run(self, event, context):
        return RetryLater(reason="first") if context.attempt == 1 else Done(self.Result(seen=context.idempotency_key))

    def conclude(self, event, context, outcome):
        context.contacts.create(self.msisdn) if isinstance(outcome, Done) else None
        return outcome


class Reaching(Handler):
    """A call that reaches for the store."""

    effect = Effect.CALL

    def run(self, event, context):
        return Done({"contact": context.contacts.get("+27821234567")})


class Forgetful(Handler):
    """Returns nothing."""

    effect = Effect.PURE

    def run(self, event, context):
        return None


def test_pages_are_followed_to_the_end():
    run = run_handler(Paged, {})
    assert [emit.event_data["n"] for emit in run.emits] == [1, 2, 3]
    assert [publish.body["n"] for publish in run.publishes] == [1, 2, 3]
    assert run.result == {"page": 3}


def test_pages_without_end_end():
    with pytest.raises(RuntimeError, match="pages"):
        run_handler(Paged, {"pages": 10**9})


def test_a_call_goes_through_prepare_run_and_conclude_and_may_be_async():
    first = run_handler(Calling, {"msisdn": "0821234567"}, region="ZA")
    assert first.outcome == RetryLater(reason="first")
    assert first.contacts == {}
    again = run_handler(Calling, {"msisdn": "0821234567"}, context=first.context)
    assert again.result == {"seen": "key-1"}
    assert list(again.contacts) == ["+27821234567"]


def test_prepare_may_end_the_step():
    run = run_handler(Calling, {"msisdn": "+27821234567"}, opt_outs={"+27821234567": "STOP"})
    assert run.outcome == Done(skipped="opted out")


def test_a_call_may_not_reach_for_the_store():
    with pytest.raises(AttributeError, match=r"context\.contacts"):
        run_handler(Reaching, {})


def test_what_is_no_outcome_is_told_at_once():
    with pytest.raises(TypeError, match="NoneType instead of an outcome"):
        run_handler(Forgetful, {})


def test_params_that_do_not_fit_raise():
    with pytest.raises(ValidationError):
        run_handler(Calling, {})


def test_an_event_is_plausible_and_takes_any_field():
    event = an_event(event_type="x", event_data={"a": 1})
    assert (event.event_type, event.event_data["a"], event.root_id) == ("x", 1, event.event_id)


def test_time_stands_still_until_it_is_told_to_move():
    clock = FrozenClock()
    context = MemoryContext(clock=clock)
    assert context.now == START
    clock.advance(timedelta(hours=1))
    assert context.now == START + timedelta(hours=1)
    assert clock.monotonic() == 3600


def test_the_memory_keeps_the_stores_rules():
    context = MemoryContext(contacts=[{"msisdn": "+27821234567"}])
    with pytest.raises(ValueError, match="exists"):
        context.contacts.create("+27821234567")
    with pytest.raises(ValueError, match="no contact"):
        context.contacts.update("+27829999999", name="x")
    with pytest.raises(TypeError, match="nmae"):
        context.contacts.update("+27821234567", nmae="x")
    with pytest.raises(TypeError, match="contact_key"):
        context.contacts.update("+27821234567", contact_key="x")


def test_a_context_and_settings_exclude_each_other():
    with pytest.raises(TypeError, match="either"):
        run_handler(Paged, {}, context=MemoryContext(), region="ZA")
