"""Between rows and records: what the store's columns mean to the engine, and back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from dispatcher.engine.records import RUN_COLUMNS, Run, RunRow, StoredEvent, as_text, as_time
from dispatcher.events.event import Event
from dispatcher.plugins.context import Contact, Message

_from_json = json.JSONDecoder().decode
_to_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_RUN_WIDTH = len(RUN_COLUMNS)
_STEP_READ = ("position", "step", "state", "result", "finished_at")


def stored_event(row: Sequence[Any]) -> StoredEvent:
    """Read an event from the columns of `statements.EVENT_READ`."""
    (
        seq, event_id, account_key, conversation_key, conversation_type, event_type, data, timestamp, received_at,
        source, subject, root_id, parent_id, hops, traceparent, extra, generation, crash_count,
    ) = row  # fmt: skip
    event = Event(
        event_id, account_key, conversation_key, conversation_type, event_type, _from_json(data),
        datetime.fromisoformat(timestamp), subject, root_id, parent_id, hops, source, traceparent,
        _from_json(extra) if extra else {},
    )  # fmt: skip
    return StoredEvent(seq, event, received_at, generation, crash_count)


def run_row(row: Sequence[Any], steps: Sequence[Sequence[Any]]) -> RunRow:
    """Read a run with its event (`statements.RUN_WITH_EVENT`) and its steps (`statements.STEPS_OF_RUN`)."""
    return RunRow(
        values=dict(zip(RUN_COLUMNS, row[:_RUN_WIDTH], strict=True)),
        stored=stored_event(row[_RUN_WIDTH:]),
        steps=tuple(dict(zip(_STEP_READ, step, strict=True)) for step in steps),
    )


def fixed_columns(run: Run) -> tuple[Any, ...]:
    """Return the columns of a run that never change, in the order of RUN_COLUMNS."""
    stored = run.stored
    event = stored.event
    return (
        run.seq, run.run_id, stored.seq, event.event_id, event.account_key, run.chain.name, run.chain.digest,
        run.generation, run.started_at, stored.received_at[:10],
    )  # fmt: skip


def changing_columns(run: Run) -> tuple[Any, ...]:
    """Return the columns of a run that change, in the order of RUN_COLUMNS."""
    return (
        run.state, run.step_name, run.position, run.attempt, run.due_at, run.lane, run.error,
        None if run.cursor is None else _to_json(run.cursor), run.step_started_at, run.resolution, run.finished_at,
    )  # fmt: skip


def contact_row(contact: Contact) -> tuple[Any, ...]:
    """Return a contact in the order of CONTACT_COLUMNS."""
    return (
        contact.account_key, contact.msisdn, contact.contact_key, contact.name, contact.surname,
        contact.email_address, contact.language, _to_json(list(contact.groups)) if contact.groups else "[]",
        _to_json(dict(contact.subscription)) if contact.subscription else "{}",
        _to_json(dict(contact.extra)) if contact.extra else "{}",
        as_text(contact.created_at), as_text(contact.updated_at),
    )  # fmt: skip


def contact(row: Sequence[Any]) -> Contact:
    """Read a contact from CONTACT_COLUMNS."""
    account_key, msisdn, contact_key, name, surname, email, language, groups, subscription, extra, created, updated = (
        row
    )
    return Contact(
        contact_key, account_key, msisdn, as_time(created), as_time(updated), name, surname, email, language,
        tuple(_from_json(groups)), _from_json(subscription), _from_json(extra),
    )  # fmt: skip


def message_row(entry: tuple[Message, str, str, str]) -> tuple[Any, ...]:
    """Return a message, with the event, run and step it belongs to, in the order of MESSAGE_COLUMNS."""
    message, event_id, run_id, step = entry
    at = as_text(message.at)
    return (
        message.message_id, message.account_key, message.to_addr, message.from_addr, message.content,
        message.segments, message.encoding, message.sender, message.state, message.gateway_id, message.error,
        event_id, run_id, step, at, at[:10],
    )  # fmt: skip


def message(row: Sequence[Any]) -> Message:
    """Read a message from MESSAGE_COLUMNS."""
    (
        message_id, account_key, to_addr, from_addr, content, segments, encoding, sender, state, gateway_id, error,
        _, _, _, at, _,
    ) = row  # fmt: skip
    return Message(
        message_id, account_key, to_addr, from_addr, content, segments, encoding, sender, state, as_time(at),
        gateway_id, error,
    )  # fmt: skip
