"""What an event would start, and why it would not start the rest: the verdict on every chain, with no effect at all.

The same matching and the same rendering as in a batch; but nothing is run, so what a step would find out is not known,
and everything that needs it is told as such.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from pydantic import ValidationError

from dispatcher.engine.attempt import explained
from dispatcher.engine.matching import completed
from dispatcher.events.event import Event
from dispatcher.events.wire import Envelope
from dispatcher.rules.expressions import Clause, Explanation, Expression, ExpressionError, compile_expression
from dispatcher.rules.plan import Chain, Plan, Step
from dispatcher.text.durations import format_duration

StepVerdict = Literal["runs", "skipped", "depends", "fails", "unreached"]

# Stands for the id of an event that has none yet.
ID_TO_COME = "(given when the event is stored)"


class NotKnownYet(ExpressionError):
    """A name whose value only the run itself finds out."""


class _ToCome(dict[str, Any]):
    """A part of the scope of which a run has only some by now."""

    def __init__(self, known: dict[str, Any], why: str) -> None:
        super().__init__(known)
        self._why = why

    def __getitem__(self, key: str) -> Any:
        if key in self:
            return super().__getitem__(key)
        raise NotKnownYet(self._why.format(key))


@dataclass(slots=True)
class StepExplanation:
    """What one step would do: whether it runs, with which input, and what of that is not known yet."""

    step: Step
    verdict: StepVerdict
    reason: str | None = None
    input: dict[str, Any] = field(default_factory=dict)
    later: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class ChainExplanation:
    """The verdict on one chain. `distance` tells how near it came: 0 matched, 1 its trigger fitted, 2 and more not."""

    chain: Chain
    matched: bool
    distance: int
    reason: str
    clause: str | None = None
    value: Any = None
    steps: list[StepExplanation] = field(default_factory=list)


@dataclass(slots=True)
class EventExplanation:
    """The event as the rulebook completes it, and the verdict on every chain, in the order of the rulebook.

    `disabled` are the chains that a broken plugin keeps from running, each with its problem.
    """

    event: Event
    chains: list[ChainExplanation]
    disabled: dict[str, str]

    @property
    def matched(self) -> bool:
        """Whether any chain would run."""
        return any(verdict.matched for verdict in self.chains)


def as_event(envelope: Envelope, now: datetime) -> Event:
    """Return the event that the store would make of this envelope."""
    event_id = envelope.event_id or ID_TO_COME
    return Event(
        event_id=event_id,
        account_key=envelope.account_key,
        conversation_key=envelope.conversation_key,
        conversation_type=envelope.conversation_type,
        event_type=envelope.event_type,
        data=envelope.data,
        timestamp=envelope.timestamp or now,
        subject=envelope.subject,
        root_id=envelope.root_id or event_id,
        parent_id=envelope.parent_id,
        hops=envelope.hops,
        traceparent=envelope.traceparent,
        extra=envelope.extra,
    )


def explain_event(event: Event, plan: Plan) -> EventExplanation:
    """Say for every chain whether the event would start it, and why."""
    event = completed(event, plan)
    verdicts = [_explain_chain(chain, event, plan) for chain in plan.chains]
    ordinary = [verdict.chain.name for verdict in verdicts if verdict.matched and not verdict.chain.default]
    if ordinary:
        for verdict in verdicts:
            if verdict.matched and verdict.chain.default:
                verdict.matched, verdict.distance, verdict.steps = False, 1, []
                verdict.reason = f"a default chain runs only when no other does, and {ordinary[0]} matched"
    return EventExplanation(event, verdicts, plan.disabled)


def _explain_chain(chain: Chain, event: Event, plan: Plan) -> ChainExplanation:
    misses = _misses(chain, event)
    if misses:
        key, value, reason = misses[0]
        return ChainExplanation(chain, False, 1 + len(misses), reason, clause=f"on.{key}", value=value)
    if chain.when is not None:
        scope = {"event": event, "data": event.data, "vars": chain.vars}
        found = chain.when.explain(scope)
        if not found.holds:
            clause = found.failed.source if found.failed else chain.when.source
            value = _seen(found.failed, scope) if found.failed else None
            return ChainExplanation(chain, False, 1, found.sentence, clause=clause, value=value)
        reason = found.sentence
    else:
        reason = "its trigger fits" if not chain.default else "it is a default chain, and no other matched"
    return ChainExplanation(chain, True, 0, reason, steps=_explain_steps(chain, event, plan.region(event.account_key)))


def _misses(chain: Chain, event: Event) -> list[tuple[str, str | None, str]]:
    """Name the parts of the trigger that the event does not fit."""
    misses = []
    for key, wanted, value in (
        ("event_type", chain.event_type, event.event_type),
        ("conversation_type", chain.conversation_type, event.conversation_type),
        ("conversation", chain.conversation, event.conversation_key),
        ("account", chain.account, event.account_key),
    ):
        if wanted is None or value in wanted:
            continue
        texts = " or ".join(f'"{text}"' for text in wanted[:3]) + (" or others" if len(wanted) > 3 else "")
        if value is None:
            has = f"the event has none, and `conversations:` does not name {event.conversation_key}"
        else:
            has = f'the event has "{value}"'
        misses.append((key, value, f"{key}: the chain takes {texts}, {has}"))
    return misses


def _seen(clause: Clause, scope: dict[str, Any]) -> Any:
    """Return what a clause saw: the value of its one path, or of each of its paths."""
    values: dict[str, Any] = {}
    for source, _ in clause.seen:
        try:
            values[source] = compile_expression(source).evaluate(scope)
        except ExpressionError:
            values[source] = None
    return next(iter(values.values())) if len(values) == 1 else values or None


def _explain_steps(chain: Chain, event: Event, region: str | None) -> list[StepExplanation]:
    steps = _ToCome({}, "known when step {} has run")
    scope = {
        "event": event,
        "data": event.data,
        "steps": steps,
        "vars": chain.vars,
        "run": _ToCome({}, "run.{} is known when the run has started"),
    }
    found: list[StepExplanation] = []
    end: str | None = None
    for step in chain.steps:
        if end is not None:
            found.append(StepExplanation(step, "unreached", end))
            continue
        verdict = _explain_step(step, scope, region)
        found.append(verdict)
        match verdict.verdict:
            case "skipped":
                steps[step.id] = {"state": "skipped"}
            case "fails":
                steps[step.id] = {"state": "failed"}
                if step.on_error == "stop":
                    end = f"step {step.id} would fail, and `on_error` is stop"
            case "runs" if step.kind == "wait":
                steps[step.id] = {"state": "done"}
            case "runs" if step.kind == "stop":
                end = f"step {step.id} ends the run"
    return found


def _explain_step(step: Step, scope: dict[str, Any], region: str | None) -> StepExplanation:
    depends: str | None = None
    if step.when is not None:
        holds, why = _judge(step.when, scope)
        if holds is False:
            return StepExplanation(step, "skipped", why)
        if holds is None:
            return StepExplanation(step, "fails", f"when: {why}")
        depends = why if holds == "later" else None
    if step.kind == "wait":
        assert step.wait is not None
        verdict = StepExplanation(step, "runs", f"waits {format_duration(step.wait)}")
    elif step.kind == "stop":
        assert step.stop is not None
        holds, why = _judge(step.stop, scope)
        if holds is None:
            return StepExplanation(step, "fails", f"stop: {why}")
        if holds == "later":
            return StepExplanation(step, "depends", depends or why)
        verdict = StepExplanation(step, "runs" if holds else "skipped", why)
    else:
        verdict = _explain_input(step, scope, region)
    if depends is not None and verdict.verdict == "runs":
        verdict.verdict, verdict.reason = "depends", depends
    return verdict


def _judge(expression: Expression, scope: dict[str, Any]) -> tuple[bool | Literal["later"] | None, str]:
    """Return whether an expression holds: None when it has no value, "later" when that is not known yet."""
    try:
        holds = expression.test(scope)
        found: Explanation = expression.explain(scope)
    except NotKnownYet as error:
        return "later", f"{expression.source}: {error.message}"
    except ExpressionError as error:
        return None, error.message
    return holds, found.sentence


def _explain_input(step: Step, scope: dict[str, Any], region: str | None) -> StepExplanation:
    assert step.handler is not None
    assert step.params is not None
    values, missing = step.params.render_each(scope)
    later = {name: error.message for name, error in missing.items() if isinstance(error, NotKnownYet)}
    undefined = {name: error.message for name, error in missing.items() if name not in later}
    if undefined:
        told = "; ".join(f'param "{name}": {message}' for name, message in undefined.items())
        return StepExplanation(step, "fails", told, input=values, later=later)
    try:
        handler = step.handler.model_validate(values, context={"region": region})
    except ValidationError as error:
        if not later:
            return StepExplanation(step, "fails", explained(error), input=values)
        # What is not known yet counts as missing here; only what is known can be wrong already.
        wrong = [item for item in error.errors(include_url=False) if item["loc"] and item["loc"][0] in values]
        if wrong:
            told = "; ".join(f"{item['loc'][0]}: {item['msg']}" for item in wrong)
            return StepExplanation(step, "fails", f"bad param: {told}", input=values, later=later)
    else:
        # Numbers as they would be written and looked up.
        values |= {name: getattr(handler, name) for name in step.number_params if name in values}
    return StepExplanation(step, "runs", input=values, later=later)
