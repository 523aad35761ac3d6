"""From an event to its runs: which chains it starts, and a note where a condition could not be told."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from dispatcher.engine.records import EVENT_COLUMNS, Run, StoredEvent
from dispatcher.engine.unit import Overlay
from dispatcher.events.event import Event
from dispatcher.events.identity import derived_uuid7
from dispatcher.rules.expressions import ExpressionError
from dispatcher.rules.plan import Chain, Plan

_STATE = EVENT_COLUMNS.index("state")
_DIGEST = EVENT_COLUMNS.index("rulebook_digest")
_NOTE = EVENT_COLUMNS.index("note")
_TYPE = EVENT_COLUMNS.index("conversation_type")
_SUBJECT = EVENT_COLUMNS.index("subject")
# A field that an event lacks may be asked for by thousands of chains; each event keeps its note.
_MOST_NOTES = 10


def completed(event: Event, plan: Plan) -> Event:
    """Return the event with what the rulebook adds: its type if it carries none, its subject if it names one."""
    if event.conversation_type is None:
        known = plan.conversations.get(event.conversation_key)
        if known is not None:
            event = replace(event, conversation_type=known)
    if event.subject is None and event.conversation_type is not None:
        path = plan.subject_of(event.conversation_type, event.event_type)
        if path is not None:
            try:
                subject = path.evaluate({"event": event, "data": event.data})
            except ExpressionError:
                return event  # an event may lack the field that names its person; it has no subject then
            if isinstance(subject, str | int):
                event = replace(event, subject=str(subject))
    return event


def matching_chains(event: Event, plan: Plan) -> tuple[list[Chain], str | None]:
    """Return the chains that this event starts, and a note on conditions that met an undefined name."""
    matched: list[Chain] = []
    defaults: list[Chain] = []
    notes: list[str] = []
    for chain in plan.triggered(event):
        if chain.default:
            defaults.append(chain)
        elif chain.when is None or _holds(chain, event, notes):
            matched.append(chain)
    if not matched:
        matched = [chain for chain in defaults if chain.when is None or _holds(chain, event, notes)]
    if len(notes) > _MOST_NOTES:
        notes[_MOST_NOTES:] = [f"and {len(notes) - _MOST_NOTES} more"]
    return matched, "; ".join(notes) or None


def _holds(chain: Chain, event: Event, notes: list[str]) -> bool:
    assert chain.when is not None
    try:
        return chain.when.test({"event": event, "data": event.data, "vars": chain.vars})
    except ExpressionError as error:
        notes.append(f"{chain.name}: when: {error}")
        return False


def start_runs(stored: StoredEvent, plan: Plan, overlay: Overlay) -> list[Run]:
    """Match the event, record its state, and return the runs that it starts."""
    event = stored.event
    full = completed(event, plan)
    stored.event = full
    chains, note = matching_chains(full, plan)
    state = "matched" if chains else "unmatched"
    changes = overlay.changes
    row: list[Any] | None = changes.events.get(stored.seq)
    if row is not None:
        row[_STATE], row[_DIGEST], row[_NOTE] = state, plan.digest, note
        row[_TYPE], row[_SUBJECT] = full.conversation_type, full.subject
    else:
        changes.event_states.append(
            (state, plan.digest, full.conversation_type, full.subject, note, stored.seq, stored.received_on)
        )
    runs = []
    for chain in chains:
        run = Run(
            seq=overlay.reads.reserve("runs"),
            run_id=derived_uuid7(overlay.now_ms, full.account_key, full.event_id, chain.name, stored.generation),
            stored=stored,
            chain=chain,
            generation=stored.generation,
            started_at=overlay.now_text,
            begun_here=True,
        )
        changes.chains[chain.digest] = chain
        changes.new_runs.append(run)
        runs.append(run)
    return runs
