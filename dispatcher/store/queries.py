"""What the store holds, for people and programs: lists with filters, and the whole story of one thing.

Rows come as plain JSON objects whose keys are the store's columns. Lists are in order of time and keep the newest.
Nothing is masked here: who may read the file may read it all.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, Table, func, select

from dispatcher.errors import NotFound
from dispatcher.store import schema
from dispatcher.store.lookup import (
    EventRef,
    find_contact,
    find_dead_letter,
    find_event,
    find_message,
    find_run,
    number_like,
    of_message,
)

Row = dict[str, Any]

# How many rows of a list are fetched at once.
_PAGE = 500
# Up to how many are counted.
_COUNTED = 1_000_000
_INNER = frozenset({"seq", "event_seq", "run_seq", "lane", "owner", "received_on"})


@dataclass(frozen=True, slots=True)
class Listing:
    """The newest rows that fit, oldest first, and how many fit the filters in all. `rows` can be read once.

    With `more`, there are still more than `total`: a store may hold more rows than anybody waits to have counted.
    """

    rows: Iterator[Row]
    total: int
    more: bool = False


def list_events(
    connection: Connection,
    *,
    account: str | None = None,
    conversation: str | None = None,
    conversation_type: str | None = None,
    event_type: str | None = None,
    state: str | None = None,
    since: datetime | None = None,
    limit: int = 0,
) -> Listing:
    """List events; `since` looks at when they were received."""
    table = schema.events
    conditions = _equal(
        table,
        account_key=account,
        conversation_key=conversation,
        conversation_type=conversation_type,
        event_type=event_type,
        state=state,
    )
    conditions += _since(table, "received_at", since)
    if since is not None:
        # What leaves out the partitions of the days before.
        conditions.append(table.c.received_on >= since.astimezone(UTC).date().isoformat())
    return _listing(connection, table, conditions, limit, _event)


def list_runs(
    connection: Connection,
    *,
    event: str | None = None,
    chain: str | None = None,
    state: str | None = None,
    account: str | None = None,
    since: datetime | None = None,
    limit: int = 0,
) -> Listing:
    """List runs; `event` is the id of an event, or enough of it. Raises NotFound where there is no such event."""
    table = schema.runs
    conditions = _equal(table, chain=chain, state=state, account_key=account)
    if event is not None:
        ref = find_event(connection, event, account)
        conditions += [table.c.event_seq == ref.seq, table.c.received_on == ref.received_on]
    return _listing(connection, table, [*conditions, *_since(table, "started_at", since)], limit, _run)


def list_dead_letters(
    connection: Connection,
    *,
    reason: str | None = None,
    kind: str | None = None,
    account: str | None = None,
    since: datetime | None = None,
    only_open: bool = True,
    limit: int = 0,
) -> Listing:
    """List dead letters: those that nobody has replayed or discarded yet, or all of them."""
    table = schema.dead_letters
    conditions = _equal(table, reason=reason, kind=kind, account_key=account, state="open" if only_open else None)
    return _listing(connection, table, [*conditions, *_since(table, "at", since)], limit, _dead_letter)


def list_contacts(
    connection: Connection, *, account: str | None = None, msisdn: str | None = None, limit: int = 0
) -> Listing:
    """List contacts; `msisdn` may be spelt in any way."""
    table = schema.contacts
    conditions = _equal(table, account_key=account)
    if msisdn is not None:
        conditions.append(number_like(table.c.msisdn, msisdn))
    return _listing(connection, table, conditions, limit, _contact)


def list_messages(
    connection: Connection,
    *,
    account: str | None = None,
    to: str | None = None,
    state: str | None = None,
    sender: str | None = None,
    since: datetime | None = None,
    limit: int = 0,
) -> Listing:
    """List messages; `to` may be spelt in any way."""
    table = schema.messages
    conditions = _equal(table, account_key=account, state=state, sender=sender)
    if to is not None:
        conditions.append(number_like(table.c.to_addr, to))
    return _listing(connection, table, [*conditions, *_since(table, "at", since)], limit, _message)


def show_event(connection: Connection, text: str, account: str | None = None) -> Row:
    """Tell all of one event: its runs with their steps, its messages and dead letters, the events it led to."""
    return _event_story(connection, find_event(connection, text, account))


def show_run(connection: Connection, text: str) -> Row:
    """Tell all of one run: every attempt of its steps, its messages, its dead letters."""
    run_id = find_run(connection, text)
    table = schema.runs
    row = _first(connection, select(table).where(table.c.run_id == run_id))
    assert row is not None
    dead = schema.dead_letters
    return {
        **_run_with_steps(connection, row),
        "messages": _all(
            connection,
            schema.messages,
            [schema.messages.c.run_id == run_id, *_not_before(connection, schema.messages, row["received_on"])],
            _message,
        ),
        "dead_letters": _all(
            connection, dead, [dead.c.event_id == row["event_id"], dead.c.run_id == run_id], _dead_letter
        ),
    }


def show_dead_letter(connection: Connection, text: str) -> Row:
    """Tell all of one dead letter, with its event and its run where it has them."""
    dead_id = find_dead_letter(connection, text)
    table = schema.dead_letters
    row = _first(connection, select(table).where(table.c.dead_id == dead_id))
    assert row is not None
    events, runs = schema.events, schema.runs
    event: list[Row] = []
    if row["kind"] != "delivery":
        same = [events.c.event_id == row["event_id"], events.c.account_key == row["account_key"]]
        event = _all(connection, events, same, _event)
    run = _first(connection, select(runs).where(runs.c.run_id == row["run_id"]))
    return {
        **_dead_letter(row),
        "event": event[0] if event else None,
        "run": None if run is None else _run_with_steps(connection, run),
    }


def show_contact(connection: Connection, text: str, account: str | None = None) -> Row:
    """Tell all of one contact: whether the number is opted out, and the texts it was sent."""
    account_key, msisdn = find_contact(connection, text, account)
    table, opt_outs, texts = schema.contacts, schema.opt_outs, schema.messages
    here = [table.c.account_key == account_key, table.c.msisdn == msisdn]
    opted_out = connection.execute(
        select(opt_outs.c.reason, opt_outs.c.at).where(
            opt_outs.c.account_key == account_key, opt_outs.c.msisdn == msisdn
        )
    ).one_or_none()
    return {
        **_all(connection, table, here, _contact)[0],
        "opted_out": None if opted_out is None else {"reason": opted_out[0], "at": opted_out[1]},
        "messages": _all(connection, texts, [texts.c.account_key == account_key, texts.c.to_addr == msisdn], _message),
    }


def show_message(connection: Connection, text: str) -> Row:
    """Tell all of one message; `outbox` is what waits of it to be published, None where nothing does."""
    table, outbox = schema.messages, schema.outbox
    message_id = find_message(connection, text)
    waiting = _all(connection, outbox, [outbox.c.message_id == message_id], _publish)
    return {
        **_all(connection, table, [table.c.message_id == message_id, *of_message(connection, message_id)], _message)[0],
        "outbox": waiting[0] if waiting else None,
    }


def _event_story(connection: Connection, ref: EventRef) -> Row:
    events, runs, dead, texts = schema.events, schema.runs, schema.dead_letters, schema.messages
    day = ref.received_on
    found = _all(connection, events, [events.c.seq == ref.seq, events.c.received_on == day], _event)
    if not found:
        # That it came is remembered for longer, lest it comes again.
        raise NotFound(f"event {ref.event_id} is not kept any more.")
    event = found[0]
    of_event = select(runs).where(runs.c.event_seq == ref.seq, runs.c.received_on == day).order_by(runs.c.seq)
    # By root first: that is what the index on descendants knows.
    emitted = [
        events.c.root_id == event["root_id"], events.c.hops > 0, events.c.parent_id == ref.event_id,
        events.c.account_key == ref.account_key, *_not_before(connection, events, day),
    ]  # fmt: skip
    sent = [
        texts.c.account_key == ref.account_key, texts.c.event_id == ref.event_id,
        *_not_before(connection, texts, day),
    ]  # fmt: skip
    return {
        **event,
        "runs": [_run_with_steps(connection, row) for row in _rows(connection, of_event)],
        "messages": _all(connection, texts, sent, _message),
        "dead_letters": _all(
            connection,
            dead,
            [dead.c.event_id == ref.event_id, func.coalesce(dead.c.account_key, ref.account_key) == ref.account_key],
            _dead_letter,
        ),
        "emitted": _all(connection, events, emitted, _event),
    }


def _run_with_steps(connection: Connection, row: Row) -> Row:
    table = schema.steps
    here = [table.c.run_seq == row["seq"], table.c.received_on == row["received_on"]]
    of_run = select(table).where(*here).order_by(table.c.position, table.c.attempt)
    steps: list[Row] = []
    for step in _rows(connection, of_run):
        # A retried run numbers its attempts anew and keeps the earlier ones below 1; people count from the first.
        again = bool(steps) and steps[-1]["position"] == step["position"]
        attempt = steps[-1]["attempt"] + 1 if again else 1
        steps.append({"run_id": row["run_id"], **_step(step), "attempt": attempt})
    outbox = schema.outbox
    held = [outbox.c.run_id == row["run_id"], outbox.c.state == "held"]
    return {**_run(row), "steps": steps, "held_publishes": _all(connection, outbox, held, _publish)}


# From rows to JSON.


def _event(row: Row) -> Row:
    return {
        **_visible(row),
        "event_data": json.loads(row["event_data"]),
        "extra": json.loads(row["extra"]) if row["extra"] else {},
    }


def _run(row: Row) -> Row:
    return {**_visible(row), "cursor": json.loads(row["cursor"]) if row["cursor"] is not None else None}


def _step(row: Row) -> Row:
    return {**_visible(row), "result": json.loads(row["result"]) if row["result"] is not None else None}


def _dead_letter(row: Row) -> Row:
    body, encoding = _body(row["body"])
    return {**_visible(row), "body": body, "body_encoding": encoding}


def _contact(row: Row) -> Row:
    return {**_visible(row), **{name: json.loads(row[name]) for name in ("groups", "subscription", "extra")}}


def _message(row: Row) -> Row:
    return _visible(row)


def _publish(row: Row) -> Row:
    return {
        name: row[name]
        for name in ("run_id", "message_id", "step", "destination", "state", "attempt", "not_before", "at", "error")
    }


def _body(body: bytes | None) -> tuple[str | None, str | None]:
    """Return a body as text where it is text, else as base64."""
    if body is None:
        return None, None
    try:
        return body.decode("utf-8"), None
    except UnicodeDecodeError:
        return base64.b64encode(body).decode("ascii"), "base64"


def _visible(row: Row) -> Row:
    return {name: value for name, value in row.items() if name not in _INNER}


# From filters to statements.


def _equal(table: Table, **wanted: str | None) -> list[ColumnElement[bool]]:
    return [table.c[name] == value for name, value in wanted.items() if value is not None]


def _since(table: Table, column: str, since: datetime | None) -> list[ColumnElement[bool]]:
    return [] if since is None else [table.c[column] >= since.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")]


def _not_before(connection: Connection, table: Table, day: str) -> list[ColumnElement[bool]]:
    """Return the condition that leaves out the partitions of days before what an event of this day led to."""
    if connection.dialect.name != "postgresql":
        return []  # where there are none
    # A day of patience with clocks at midnight.
    return [table.c.received_on >= (date.fromisoformat(day) - timedelta(days=1)).isoformat()]


def _listing(
    connection: Connection,
    table: Table,
    conditions: list[ColumnElement[bool]],
    limit: int,
    read: Callable[[Row], Row],
) -> Listing:
    some = select(table.c.seq).where(*conditions).limit(_COUNTED + 1).subquery()
    found: int = connection.execute(select(func.count()).select_from(some)).scalar_one()
    total, more = min(found, _COUNTED), found > _COUNTED
    statement = select(table)
    if limit and (more or limit < found):
        newest = select(table.c.seq).where(*conditions).order_by(table.c.seq.desc()).limit(limit)
        statement = statement.where(table.c.seq.in_(newest))
    else:
        statement = statement.where(*conditions)
    return Listing(_portioned(connection, statement.order_by(table.c.seq), read), total, more)


def _all(
    connection: Connection, table: Table, conditions: list[ColumnElement[bool]], read: Callable[[Row], Row]
) -> list[Row]:
    return [read(row) for row in _rows(connection, select(table).where(*conditions).order_by(table.c.seq))]


def _portioned(connection: Connection, statement: Select[Any], read: Callable[[Row], Row]) -> Iterator[Row]:
    """Ask with the first row that is wanted, and fetch in portions: a list of everything needs no more memory."""
    with connection.execute(statement.execution_options(yield_per=_PAGE)) as result:
        for row in result.mappings():
            yield read(_named(row))


def _rows(connection: Connection, statement: Select[Any]) -> Iterator[Row]:
    return map(_named, connection.execute(statement).mappings())


def _first(connection: Connection, statement: Select[Any]) -> Row | None:
    row = connection.execute(statement).mappings().first()
    return None if row is None else _named(row)


def _named(row: Mapping[Any, Any]) -> Row:
    return {str(name): value for name, value in row.items()}
