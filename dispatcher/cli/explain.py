"""`dispatcher explain`: why an event starts the chains that it starts, and why not the others. Has no effect at all."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from dispatcher.cli import exits
from dispatcher.cli.options import JsonOption, RulebookOption, new_app, read_settings
from dispatcher.cli.output import say, write, write_json
from dispatcher.errors import UsageError

if TYPE_CHECKING:
    from dispatcher.engine.explain import ChainExplanation, EventExplanation, StepExplanation
    from dispatcher.events.event import Event
    from dispatcher.plugins.handler import Settled
    from dispatcher.rules.plan import Plan

app = new_app(
    examples=(
        "dispatcher explain event.json",
        "dispatcher events show ID --json | dispatcher explain -",
        "dispatcher explain event.json --json | jq '.chains[] | select(.matched)'",
    )
)

# Chains whose trigger is for other events: so many are named, the others counted.
_NAMED: Final = 20


@app.command()
def explain(
    event: Annotated[str, typer.Argument(metavar="EVENT.json|-", help="A file with one event, in any wire form.")],
    *,
    everything: Annotated[bool, typer.Option("--all", help="Name every chain, however far from matching.")] = False,
    rulebook: RulebookOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say for every chain whether an event starts it: matched, or the clause that failed and the value it saw.

    Of the chains that matched, the steps are shown with their rendered input. Nothing is stored, sent or called. The
    exit code is 1 when no chain matched or the event would be refused.
    """
    settings = read_settings(rulebook=rulebook)
    body = read_body(event, settings.max_event_bytes + 1)
    from dispatcher.engine.explain import as_event, explain_event  # noqa: PLC0415 - see main
    from dispatcher.events.limits import Limits, Refusal  # noqa: PLC0415
    from dispatcher.events.wire import decode  # noqa: PLC0415
    from dispatcher.plugins.registry import load_registry  # noqa: PLC0415
    from dispatcher.rules.plan import load_plan  # noqa: PLC0415
    from dispatcher.settings import process_environ  # noqa: PLC0415

    plan = load_plan(
        settings.rulebook, load_registry(), default_region=settings.default_region, environ=process_environ()
    )
    try:
        envelope = decode(body, Limits(body_bytes=settings.max_event_bytes, depth=settings.max_depth))
    except Refusal as refusal:
        if as_json:
            refused: dict[str, Any] = {"event": None, "chains": [], "outcome": "refused"}
            write_json(refused | {"code": refusal.code, "detail": refusal.detail})
        say(f"{event}: {refusal.code}: {refusal.detail}")
        say("An event like this becomes a dead letter; no chain sees it.")
        raise typer.Exit(exits.PROBLEMS) from None
    found = explain_event(as_event(envelope, datetime.now(UTC)), plan)
    if as_json:
        write_json(_document(found, plan))
    else:
        _print(found, plan, given_type=envelope.conversation_type, everything=everything)
    if not found.matched:
        say("No chain matched.")
        raise typer.Exit(exits.PROBLEMS)


def read_body(name: str, longest: int) -> bytes:
    """Read one body from a file, or from stdin if the name is `-`; of a longer one, only so much."""
    try:
        if name == "-":
            return sys.stdin.buffer.read(longest)
        with Path(name).open("rb") as file:
            return file.read(longest)
    except OSError as error:
        raise UsageError(f"cannot read {name}: {error.strerror or error}.") from error


# As a document.


def _document(found: EventExplanation, plan: Plan) -> dict[str, Any]:
    return {
        "event": _envelope(found),
        "chains": [_chain_document(verdict, found.event, plan) for verdict in found.chains]
        + [_disabled_document(name, why) for name, why in found.disabled.items()],
        "outcome": "matched" if found.matched else "unmatched",
    }


def _envelope(found: EventExplanation) -> dict[str, Any]:
    from dispatcher.engine.explain import ID_TO_COME  # noqa: PLC0415 - see main

    event = found.event
    return {
        "event_id": None if event.event_id == ID_TO_COME else event.event_id,
        "account_key": event.account_key,
        "conversation_key": event.conversation_key,
        "conversation_type": event.conversation_type,
        "event_type": event.event_type,
        "event_data": event.data,
        "timestamp": event.timestamp.isoformat(),
        "subject": event.subject,
    }


def _chain_document(verdict: ChainExplanation, event: Event, plan: Plan) -> dict[str, Any]:
    return {
        "chain": verdict.chain.name,
        "file": verdict.chain.file,
        "line": verdict.chain.line,
        "matched": verdict.matched,
        "reason": verdict.reason,
        "clause": verdict.clause,
        "value": verdict.value,
        "steps": [_step_document(step) | {"publishes": _publishes(step, event, plan)} for step in verdict.steps],
    }


def _disabled_document(name: str, why: str) -> dict[str, Any]:
    nothing = dict.fromkeys(("file", "line", "clause", "value"))
    return {"chain": name, "matched": False, "reason": f"disabled: {why}", "steps": []} | nothing


def _step_document(found: StepExplanation) -> dict[str, Any]:
    settled = found.step.settled
    return {
        "step": found.step.id,
        "handler": found.step.handler_name,
        "effect": settled.effect.value if settled else None,
        "connection": settled.connection if settled else None,
        "verdict": found.verdict,
        "reason": found.reason,
        "input": found.input,
        "later": found.later,
    }


def _publishes(found: StepExplanation, event: Event, plan: Plan) -> dict[str, str] | None:
    """Return where a text by a Vumi transport or a command for a Vumi worker would go; None for any other step.

    What is known only when the step runs is left out.
    """
    if found.verdict not in ("runs", "depends"):
        return None
    from dispatcher.senders.vumi import VumiSender  # noqa: PLC0415 - see main
    from dispatcher.senders.vumi_service import VumiService  # noqa: PLC0415

    settled = found.step.settled
    kind, _, name = (settled.connection or "").partition(":") if settled else ("", "", "")
    sender = plan.senders.get(name) if kind == "sender" else None
    if isinstance(sender, VumiSender):
        return {"exchange": sender.exchange, "routing_key": f"{sender.transport_name}.outbound"}
    service = plan.services.get(name) if kind == "service" else VumiService()
    if found.step.handler_name != "send_command" or not isinstance(service, VumiService):
        return None
    given = found.input
    where = {name: given.get(name) or getattr(service, name) for name in ("exchange", "routing_key")}
    if given.get("worker_name"):
        where["worker_name"] = given["worker_name"]
    elif "worker_name" not in found.later and event.conversation_type:
        where["worker_name"] = service.worker_name(event.conversation_type)
    return where


# For people.


def _print(found: EventExplanation, plan: Plan, *, given_type: str | None, everything: bool) -> None:
    event = found.event
    write(f"event {event.event_id}")
    write(f"  account {event.account_key}, conversation {event.conversation_key}")
    source = " (from `conversations:`)" if given_type is None and event.conversation_type else ""
    write(f"  {event.conversation_type or 'no conversation type'}{source}, {event.event_type}")
    if event.subject:
        write(f"  about {event.subject}")
    for verdict in found.chains:
        if verdict.matched:
            write()
            write(f"{verdict.chain.name}: matched — {verdict.reason}")
            _print_steps(verdict.steps, event, plan)
    if found.disabled:
        write()
        write("Disabled, as a plugin that they need is broken:")
    for name, why in found.disabled.items():
        write(f"  {name}: {why}")
    near = [verdict for verdict in found.chains if verdict.distance == 1]
    if near:
        write()
        write("Not matched, though the trigger fits:")
        _print_reasons(near)
    far = sorted((verdict for verdict in found.chains if verdict.distance > 1), key=lambda verdict: verdict.distance)
    if far:
        write()
        write("For other events:")
        _print_reasons(far if everything else far[:_NAMED])
        if len(far) > _NAMED and not everything:
            write(f"  … and {len(far) - _NAMED} more; --all names them")


def _print_reasons(verdicts: Iterable[ChainExplanation]) -> None:
    for verdict in verdicts:
        write(f"  {verdict.chain.name} ({verdict.chain.file}:{verdict.chain.line})")
        write(f"      {verdict.reason}")


def _print_steps(steps: Iterable[StepExplanation], event: Event, plan: Plan) -> None:
    for number, found in enumerate(steps, 1):
        step = found.step
        named = step.handler_name if step.id == step.handler_name else f"{step.id}: {step.handler_name}"
        write(f"  {number}. {named}{_effect(step.settled)}{_VERDICTS[found.verdict]}")
        if found.reason:
            write(f"       {found.reason}")
        for name in dict.fromkeys((*found.input, *found.later)):
            if name in found.input:
                write(f"       {name}: {json.dumps(found.input[name], ensure_ascii=False, default=str)}")
            else:
                write(f"       {name}: {found.later[name]}")
        if publishes := _publishes(found, event, plan):
            worker = f", for the worker {publishes['worker_name']}" if "worker_name" in publishes else ""
            to = f"{publishes['exchange']!r} with the key {publishes['routing_key']!r}"
            write(f"       goes to the exchange {to}{worker}")


_VERDICTS: Final = {
    "runs": "",
    "skipped": ": skipped",
    "depends": ": runs if its condition holds then",
    "fails": ": would fail",
    "unreached": ": not reached",
}


def _effect(settled: Settled | None) -> str:
    if settled is None:
        return ""
    return (
        f" ({settled.effect.value}, {settled.connection.replace(':', ' ')})"
        if settled.connection
        else (f" ({settled.effect.value})")
    )
