"""One attempt of a step: its params rendered and typed, its handler run behind the one boundary that catches all."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from pydantic import BaseModel, ValidationError

from dispatcher.engine.records import LONGEST_NAME, Run
from dispatcher.engine.unit import StepContext
from dispatcher.errors import Contended
from dispatcher.plugins.boundary import Escaped, contained, contained_later
from dispatcher.plugins.handler import Handler
from dispatcher.plugins.outcomes import Done, Emit, Failed, Outcome, Publish, RetryLater, Unknown
from dispatcher.rules.expressions import ExpressionError
from dispatcher.rules.plan import Step

_TRACEBACK_LIMIT = 4000
_REASON_LIMIT = 16_000
_TRANSIENT = (ConnectionError, TimeoutError)


@dataclass(slots=True)
class Attempt:
    """A step of a run, bound to its rendered params and ready to be executed."""

    run: Run
    step: Step
    handler: Handler


def scope_of(run: Run) -> dict[str, Any]:
    """Return the names that the expressions of a run's steps see."""
    if not run.scope:
        event = run.stored.event
        run.scope = {
            "event": event,
            "data": event.data,
            "steps": run.results,
            "vars": run.chain.vars,
            "run": {"id": run.run_id, "started_at": run.started_at},
        }
    return run.scope


def bind(run: Run, step: Step, region: str | None) -> Attempt | Outcome:
    """Render and type the params of a step, or say why they cannot be."""
    assert step.handler is not None
    assert step.params is not None
    model = step.handler
    try:
        params = step.params.render(scope_of(run))
    except ExpressionError as error:
        return Failed(str(error))
    # Validators are the plugin's code too.
    handler = contained(lambda: model.model_validate(params, context={"region": region}))
    if not isinstance(handler, Escaped):
        return Attempt(run, step, handler)
    if isinstance(handler.error, ValidationError):
        return Failed(explained(handler.error))
    return outcome_of_error(handler.error, model)


def explained(error: ValidationError) -> str:
    """Say in one line which params do not fit, and why; the values themselves are people's data and stay out."""
    parts = []
    for item in error.errors(include_url=False, include_input=False):
        where = ".".join(str(part) for part in item["loc"]) or "params"
        parts.append(f"{where}: {item['msg']}")
    return "bad param: " + "; ".join(parts)


def guarded(call: Callable[[], Any], handler: Handler, event_type: str) -> Outcome | Awaitable[Any]:
    """Run a handler's method: what escapes becomes an outcome. An awaitable is handed back as it is."""
    returned = contained(call)
    # Nearly always it is a Done: asking anything else whether it can be awaited is dear.
    if type(returned) is not Done:
        if isinstance(returned, Escaped):
            return outcome_of_error(returned.error, handler)
        if inspect.isawaitable(returned):
            return returned
    return checked(returned, handler, event_type)


async def awaited(returned: Any, handler: Handler, event_type: str) -> Outcome:
    """Wait for what `guarded` handed back, and return the outcome that it came to."""
    if inspect.isawaitable(returned):
        returned = await contained_later(returned)
    if isinstance(returned, Escaped):
        return outcome_of_error(returned.error, handler)
    return checked(returned, handler, event_type)


def outcome_of_error(error: BaseException, handler: Handler | type[Handler]) -> Outcome:
    """Return the outcome of an attempt that ended with an exception: transient ones are tried again.

    Raises Contended: what another worker has in hand is no outcome, and the batch is tried again as a whole. What a
    call brought back must not be forgotten over it.
    """
    if isinstance(error, Contended):
        raise error
    said = f"{type(error).__name__}: {_sayable(error)}".rstrip(": ")
    if isinstance(error, (*_TRANSIENT, *handler.transient)):
        return RetryLater(reason=said)
    trace = _sayable("".join(traceback.format_exception(error))[-_TRACEBACK_LIMIT:])
    return Failed(f"{said}\n{trace}")


def checked(returned: Any, handler: Handler, event_type: str) -> Outcome:
    """Return what a handler returned if it is an outcome that can be acted on; anything else is its mistake."""
    mistake = _mistake_in(returned)
    if mistake is not None:
        name = type(handler).__name__
        return Failed(
            f"{name} returned {mistake} for {event_type!r} instead of an outcome; "
            "a handler returns Done, RetryLater, Failed or Unknown"
        )
    outcome: Outcome = returned
    if isinstance(outcome, Done):
        return outcome
    said = _sayable(outcome.reason)
    return outcome if said == outcome.reason else replace(outcome, reason=said)


def _mistake_in(returned: Any) -> str | None:
    """Name what keeps this from being an outcome that can be acted on. Types are not enforced on plugins."""
    match returned:
        case Done(result=result, emits=emits, publishes=publishes, skipped=skipped):
            if not (result is None or type(result) is dict or isinstance(result, (BaseModel, Mapping))):
                return f"Done with {type(result).__name__} for a result"
            if not (skipped is None or isinstance(skipped, str)):
                return f"Done with {type(skipped).__name__} for the reason in `skipped`"
            if emits and not _all_are(Emit, emits):
                return "Done with something else than a list of Emit in `emits`"
            if publishes and not (_all_are(Publish, publishes) and all(map(_can_be_published, publishes))):
                return "Done with something else than a list of Publish, of texts and a mapping, in `publishes`"
            for publish in publishes:
                if (mistake := _mistake_in_names(publish)) is not None:
                    return f"Done with a Publish whose {mistake}"
        case RetryLater(after=after):
            if not (after is None or isinstance(after, timedelta)):
                return f"RetryLater with {type(after).__name__} for `after`"
        case Failed() | Unknown():
            pass
        case _:
            return type(returned).__name__
    return None


def _all_are(kind: type, items: Any) -> bool:
    # A tuple or a list is known at a glance; whether anything else is a sequence is a dear question.
    if type(items) is not tuple and type(items) is not list and not isinstance(items, Sequence):
        return False
    return all(isinstance(item, kind) for item in items)


def _can_be_published(publish: Publish) -> bool:
    return (
        isinstance(publish.exchange, str)
        and isinstance(publish.routing_key, str)
        and (publish.message_id is None or isinstance(publish.message_id, str))
        and (type(publish.body) is dict or isinstance(publish.body, Mapping))
    )


def _mistake_in_names(publish: Publish) -> str | None:
    """Say what AMQP cannot carry. A broker ends the connection over it, with all that is in flight."""
    names = {"exchange": publish.exchange, "routing_key": publish.routing_key, "message_id": publish.message_id or ""}
    for name, text in names.items():
        if len(text) > LONGEST_NAME or not text.isascii():
            try:
                if (size := len(text.encode())) > LONGEST_NAME:
                    return f"{name} has {size} bytes, where {LONGEST_NAME} are the most"
            except UnicodeEncodeError:
                return f"{name} holds half of a surrogate pair"
    return None


def _sayable(reason: object) -> str:
    """Return a reason as the journal can keep it, whatever a plugin gives for one: text, of bounded length."""
    said = contained(lambda: "" if reason is None else str(reason))  # a `__str__` may be the plugin's
    if isinstance(said, Escaped):
        said = f"{type(reason).__name__} (which cannot be shown: {type(said.error).__name__})"
    return said[:_REASON_LIMIT].encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")


def prepared(attempt: Attempt, context: StepContext) -> Outcome | None:
    """Run `prepare` of a CALL: None when the call is to start."""
    event = attempt.run.stored.event
    handler = attempt.handler
    returned: list[Any] = []
    broken = guarded(lambda: returned.append(handler.prepare(event, context)), handler, event.event_type)
    if not returned:
        assert isinstance(broken, Failed | RetryLater)
        return broken
    return None if returned[0] is None else checked(returned[0], handler, event.event_type)


def concluded(attempt: Attempt, context: StepContext, outcome: Outcome) -> tuple[Outcome, bool]:
    """Run `conclude` of a CALL on what the call brought back; False when it broke and what it wrote is void."""
    event = attempt.run.stored.event
    handler = attempt.handler
    finished: list[Any] = []
    final = guarded(lambda: finished.append(handler.conclude(event, context, outcome)), handler, event.event_type)
    if not finished:
        assert isinstance(final, Failed | RetryLater)
        return final, False
    return checked(finished[0], handler, event.event_type), True
