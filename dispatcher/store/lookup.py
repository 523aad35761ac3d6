"""From what a person types to the row that is meant: an id, its beginning, its end, or a number however it is spelt.

Ids sort by time, so those of one minute begin alike; their ends are what tells them apart, and what lists show.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Column, ColumnElement, Connection, func, select

from dispatcher.errors import NotFound, NotPossible
from dispatcher.events.identity import day_of
from dispatcher.store.schema import contacts, dead_letters, event_ids, events, messages, runs

# An end that is shorter would meet others by chance.
_SHORTEST_END = 4
# What lists put before an end, and people copy with it.
_CUT = "…"
_SHOWN = 5
_LAST_CHARACTER = "\U0010ffff"
_NOT_DIGITS = re.compile(r"[^0-9]")
_FEWEST_DIGITS = 6


@dataclass(frozen=True, slots=True)
class EventRef:
    """An event as the store knows it: ids are the accounts' own, so the account is part of the name."""

    seq: int
    account_key: str
    event_id: str
    # The day by which the row, its runs and their steps are partitioned.
    received_on: str


def find_run(connection: Connection, text: str) -> str:
    """Return the id of the run that `text` names. Raises NotFound, or NotPossible when it names several."""
    return str(_one(connection, "run", runs.c.run_id, text))


def find_dead_letter(connection: Connection, text: str) -> str:
    """Return the id of the dead letter that `text` names. Raises NotFound, or NotPossible when it names several."""
    return str(_one(connection, "dead letter", dead_letters.c.dead_id, text))


def find_message(connection: Connection, text: str) -> str:
    """Return the id of the message that `text` names. Raises NotFound, or NotPossible when it names several."""
    return str(_one(connection, "message", messages.c.message_id, text, of_message(connection, text)))


def of_message(connection: Connection, message_id: str) -> list[ColumnElement[bool]]:
    """Return the condition that leads to the one partition in which a message is, where its whole id is known."""
    day = day_of(message_id) if connection.dialect.name == "postgresql" else None
    return [] if day is None else [messages.c.received_on == day]


def find_event(connection: Connection, text: str, account_key: str | None = None) -> EventRef:
    """Return the event that `text` names, in one account or in any.

    Raises NotFound, or NotPossible when it names several.
    """
    # The narrow table of ids first; the wide one only for events whose row there has had its time.
    found: dict[tuple[Any, ...], EventRef] = {}
    for table, seq in ((event_ids, event_ids.c.event_seq), (events, events.c.seq)):
        scope = [] if account_key is None else [table.c.account_key == account_key]
        columns = (table.c.account_key, table.c.event_id, seq, table.c.received_on)
        for row in _matching(connection, columns, table.c.event_id, text, scope):
            found.setdefault(tuple(row[:2]), EventRef(row[2], row[0], row[1], row[3]))
        if found:
            break
    if len(found) == 1:
        return next(iter(found.values()))
    where = f" in account {account_key}" if account_key is not None else ""
    if not found:
        raise _not_found("event", text, where)
    several_accounts = len({ref.event_id for ref in found.values()}) == 1
    raise _ambiguous(
        "event",
        text + where,
        [f"{ref.event_id} (account {ref.account_key})" for ref in found.values()],
        hint="--account says which is meant." if several_accounts else None,
    )


def find_contact(connection: Connection, text: str, account_key: str | None = None) -> tuple[str, str]:
    """Return account and number of the contact that `text` names: by number, in any spelling, or by key.

    Raises NotFound, or NotPossible when it names several.
    """
    scope = [] if account_key is None else [contacts.c.account_key == account_key]
    columns = (contacts.c.account_key, contacts.c.msisdn, contacts.c.contact_key)
    rows = _select(connection, columns, [number_like(contacts.c.msisdn, text), *scope]) if _is_number(text) else []
    if not rows:
        rows = _matching(connection, columns, contacts.c.contact_key, text, scope)
    if len(rows) == 1:
        return rows[0][0], rows[0][1]
    where = f" in account {account_key}" if account_key is not None else ""
    if not rows:
        raise _not_found("contact", text, where)
    several_accounts = len({row[1] for row in rows}) == 1
    raise _ambiguous(
        "contact",
        text + where,
        [f"{row[2]} {row[1]} (account {row[0]})" for row in rows],
        hint="--account says which is meant." if several_accounts else None,
    )


def number_like(column: Column[Any], text: str) -> ColumnElement[bool]:
    """Return the condition that a column of E.164 numbers holds `text`, however it is spelt.

    With a "+" (or "00") all digits count. Without, the number may be national, and is compared from its end.
    """
    digits = _NOT_DIGITS.sub("", text)
    if text.lstrip().startswith("+"):
        return column == f"+{digits}"
    if digits.startswith("00"):
        return column == f"+{digits[2:]}"
    national = digits.lstrip("0")
    return column.like(f"+%{national}") if len(national) >= _FEWEST_DIGITS else column == text


def _is_number(text: str) -> bool:
    return re.fullmatch(r"\+?[0-9 ().\-/]+", text.strip()) is not None


def _one(
    connection: Connection, what: str, column: Column[Any], text: str, scope: Sequence[ColumnElement[bool]] = ()
) -> Any:
    rows = _matching(connection, (column,), column, text, scope)
    if not rows:
        raise _not_found(what, text, "")
    if len(rows) > 1:
        raise _ambiguous(what, text, [row[0] for row in rows])
    return rows[0][0]


def _matching(
    connection: Connection,
    columns: Sequence[Column[Any]],
    column: Column[Any],
    text: str,
    scope: Sequence[ColumnElement[bool]],
) -> Sequence[Any]:
    """Return the rows whose id is `text`; failing that those that begin with it; failing that those that end so."""
    if not text:
        return []
    # A range instead of LIKE: it uses the index, which is sorted by bytes, and tells upper from lower case.
    # The ids of events are sorted within their accounts.
    asked = _select_by_account if column is event_ids.c.event_id and not scope else _select
    for condition in (column == text, (column >= text) & (column < text + _LAST_CHARACTER)):
        rows = asked(connection, columns, [condition, *scope])
        if rows:
            return rows
    end = text.removeprefix(_CUT)
    if len(end) < _SHORTEST_END:
        return []
    return _select(connection, columns, [column.iendswith(end, autoescape=True), *scope])


def _select_by_account(
    connection: Connection, columns: Sequence[Column[Any]], conditions: Sequence[ColumnElement[bool]]
) -> Sequence[Any]:
    """Ask one account after the other by their index, where a walk over the ids of all might take minutes."""
    key = event_ids.c.account_key
    rows: list[Any] = []
    account = connection.execute(select(func.min(key))).scalar()
    while account is not None and len(rows) <= _SHOWN:
        rows += _select(connection, columns, [key == account, *conditions])
        account = connection.execute(select(func.min(key)).where(key > account)).scalar()
    return rows


def _select(
    connection: Connection, columns: Sequence[Column[Any]], conditions: Sequence[ColumnElement[bool]]
) -> Sequence[Any]:
    return connection.execute(select(*columns).where(*conditions).limit(_SHOWN + 1)).all()


def _not_found(what: str, text: str, where: str) -> NotFound:
    return NotFound(
        f"there is no {what} {text!r}{where}.", hint=f"`dispatcher {_VERBS[what]} list` shows what is there."
    )


def _ambiguous(what: str, text: str, found: Sequence[str], hint: str | None = None) -> NotPossible:
    lines = "".join(f"\n  {line}" for line in found[:_SHOWN]) + ("\n  …" if len(found) > _SHOWN else "")
    return NotPossible(f"{text!r} may be any of these {what}s:{lines}", hint=hint or "Type more of the one you mean.")


_VERBS = {"run": "runs", "event": "events", "dead letter": "dead", "message": "messages", "contact": "contacts"}
