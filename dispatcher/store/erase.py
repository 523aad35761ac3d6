"""Erase a person of an account: the contact, the texts, and every trace of the number that the store holds.

What the law asks for (POPIA s24 and s14(4)-(5), GDPR art. 17) is that the person cannot be reconstructed, so what is
left in the file is overwritten too: it is vacuumed and its log truncated. A keyed hash of the number is kept: it counts
as an opt-out, so that no replay and no late event has the person texted again.

    an event that names the person       loses its payload: the name and the answers stand beside the number
    a run of such an event               ends, and loses the results and errors of its steps
    a text of such a run, or to them     loses its words; what the outbox was yet to send is not sent
    a dead letter that names them        loses its body and is discarded
    anything else that names them        keeps its meaning, with a mark where the number was
"""

from __future__ import annotations

import hashlib
import hmac
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Integer,
    MetaData,
    Table,
    Text,
    and_,
    case,
    delete,
    func,
    insert,
    or_,
    select,
    update,
)

from dispatcher.engine.records import OPEN_LANE, as_text
from dispatcher.errors import NotFound
from dispatcher.store import schema
from dispatcher.store.lookup import find_contact
from dispatcher.store.mentions import Mentions
from dispatcher.store.operations import ERASED_NOTE, Changed, Operations, counted
from dispatcher.store.sqlite.store import SqliteStore
from dispatcher.store.suppressions import number_hash
from dispatcher.text.numbers import BadNumber, normalise_number

_MARK: Final = "[erased]"
_OPEN_RUNS: Final = ("ready", "running", "waiting", "retrying", "held")

# What a transaction has found so far; in memory, and gone with it.
_scratch: Final = MetaData()
_events: Final = Table("erased_events", _scratch, Column("seq", Integer, primary_key=True), prefixes=["TEMPORARY"])
_runs: Final = Table(
    "erased_runs", _scratch, Column("seq", Integer, primary_key=True), Column("run_id", Text), prefixes=["TEMPORARY"]
)


@dataclass(frozen=True, slots=True)
class _Person:
    account_key: str
    msisdn: str
    words: tuple[str, ...] = ()


def erase(
    store: SqliteStore, text: str, account: str | None, *, region: str | None, actor: str, now: datetime
) -> Changed:
    """Erase the person whom `text` names: by number, in any spelling, or by the key of the contact.

    Raises NotFound where the store knows nothing of them, NotPossible where several may be meant.
    """
    secret = store.facts["secret"]

    def mark(spelling: str) -> str:
        # The same spelling gets the same mark, so that an id which holds a number is one id still, everywhere.
        return f"{_MARK[:-1]}:{hmac.new(secret.encode(), spelling.encode(), hashlib.sha256).hexdigest()[:8]}]"

    def change(connection: Connection) -> tuple[bytes, int]:
        person = _identify(connection, text, account, region)
        digest = number_hash(secret, person.account_key, person.msisdn)
        mentions = Mentions(person.msisdn, person.words, mark)
        _install(connection, mentions)
        count = _Erasure(connection, person, as_text(now)).run()
        table = schema.suppressions
        known = connection.execute(delete(table).where(table.c.number_hash == digest)).rowcount
        if not count and not known:
            raise _nothing_of(text, person.account_key)
        connection.execute(insert(table).values(number_hash=digest, at=as_text(now)))
        # The hash and not the number: the audit must not bring back what was erased.
        Operations(connection, actor, now).note("contacts.erase", digest.hex()[:16], counted(count, "row"))
        return digest, count

    try:
        digest, count = store.administer(change)
    finally:
        _uninstall(store.connection)
    store.suppressed.add(digest)
    left = _compact(store.connection)
    message = f"the person is erased: {counted(count, 'row')} held something of them"
    return Changed([], message, () if left is None else [("the file", left)])


def _identify(connection: Connection, text: str, account: str | None, region: str | None) -> _Person:
    try:
        account_key, msisdn = find_contact(connection, text, account)
    except NotFound:
        # Events may name somebody who never became a contact.
        if account is None:
            raise
        try:
            return _Person(account, normalise_number(text, region))
        except BadNumber:
            raise _nothing_of(text, account) from None
    table = schema.contacts
    key, email = connection.execute(
        select(table.c.contact_key, table.c.email_address).where(
            table.c.account_key == account_key, table.c.msisdn == msisdn
        )
    ).one()
    return _Person(account_key, msisdn, tuple(word for word in (key, email) if word))


def _nothing_of(text: str, account: str) -> NotFound:
    return NotFound(
        f"account {account} holds nothing of {text!r}.",
        hint='Write the number as it is written abroad, with "+" and country code.',
    )


class _Erasure:
    """One erasure, within its transaction. The functions of `_install` are at hand there."""

    def __init__(self, connection: Connection, person: _Person, now: str) -> None:
        self._connection = connection
        self._person = person
        self._now = now

    def run(self) -> int:
        """Erase; return how many rows held something of the person."""
        _scratch.create_all(self._connection)
        try:
            return sum(
                (self._forget(), self._blank_events(), self._blank_texts(), self._blank_letters(), self._sweep())
            )
        finally:
            _scratch.drop_all(self._connection)

    def _forget(self) -> int:
        """Remove the contact and the opt-out, which the suppression takes the place of."""
        return sum(
            self._changed(delete(table).where(self._mine(table), table.c.msisdn == self._person.msisdn))
            for table in (schema.contacts, schema.opt_outs)
        )

    def _blank_events(self) -> int:
        events, runs, steps = schema.events, schema.runs, schema.steps
        named = select(events.c.seq).where(
            self._mine(events),
            _mentioned(events, "event_id", "conversation_key", "event_data", "subject", "extra"),
        )
        found = self._changed(insert(_events).from_select(["seq"], named))
        self._changed(
            update(events)
            .where(events.c.seq.in_(select(_events.c.seq)))
            .values(
                event_data="{}",
                extra=None,
                subject=None,
                note=ERASED_NOTE,
                state=case((events.c.state == "new", "unmatched"), else_=events.c.state),
            )
        )
        theirs = select(runs.c.seq, runs.c.run_id).where(runs.c.event_seq.in_(select(_events.c.seq)))
        self._changed(insert(_runs).from_select(["seq", "run_id"], theirs))
        of_run = runs.c.seq.in_(select(_runs.c.seq))
        self._changed(
            update(runs)
            .where(of_run, runs.c.state.in_(_OPEN_RUNS))
            .values(state="cancelled", due_at=None, lane=OPEN_LANE, finished_at=self._now, error=ERASED_NOTE)
        )
        self._changed(
            update(runs).where(of_run).values(cursor=None, error=case((runs.c.error.is_(None), None), else_=_MARK))
        )
        self._changed(update(steps).where(steps.c.run_seq.in_(select(_runs.c.seq))).values(result=None, error=None))
        return found

    def _blank_texts(self) -> int:
        messages, outbox = schema.messages, schema.outbox
        erased = self._changed(
            update(messages)
            .where(
                self._mine(messages),
                or_(messages.c.to_addr == self._person.msisdn, messages.c.run_id.in_(select(_runs.c.run_id))),
            )
            .values(
                content="",
                gateway_id=None,
                error=ERASED_NOTE,
                state=case((messages.c.state.in_(("queued", "held")), "failed"), else_=messages.c.state),
            )
        )
        return erased + self._changed(
            delete(outbox).where(
                or_(
                    outbox.c.run_id.in_(select(_runs.c.run_id)),
                    and_(self._my_run(outbox), _mentioned(outbox, "destination", "body")),
                )
            )
        )

    def _blank_letters(self) -> int:
        letters, events = schema.dead_letters, schema.events
        of_event = select(events.c.event_id).where(events.c.seq.in_(select(_events.c.seq)))
        return self._changed(
            update(letters)
            .where(
                self._mine_or_nobodys(letters),
                or_(
                    letters.c.event_id.in_(of_event),
                    letters.c.run_id.in_(select(_runs.c.run_id)),
                    func.mentioned_in_bytes(letters.c.body),
                ),
            )
            .values(
                body=None, detail=_MARK, state=case((letters.c.state == "open", "discarded"), else_=letters.c.state)
            )
        )

    def _sweep(self) -> int:
        """Put a mark wherever the person is still named."""
        tables: list[tuple[Table, ColumnElement[bool], Sequence[str], Sequence[str]]] = [
            (schema.events, self._mine(schema.events), _EVENT_IDS, ()),
            (schema.event_ids, self._mine(schema.event_ids), ("event_id",), ()),
            (schema.runs, self._mine(schema.runs), ("event_id", "error"), ("cursor",)),
            (schema.steps, self._my_step(), ("error",), ("result",)),
            (schema.outbox, self._my_run(schema.outbox), ("event_id", "message_id"), ()),
            (schema.dead_letters, self._mine_or_nobodys(schema.dead_letters), ("event_id", "detail"), ()),
            (schema.contacts, self._mine(schema.contacts), ("name", "surname", "email_address"), _CONTACT_JSON),
            (schema.opt_outs, self._mine(schema.opt_outs), ("reason",), ()),
            (schema.messages, self._mine(schema.messages), _MESSAGE_TEXTS, ()),
            (schema.audit, schema.audit.c.seq > 0, ("target", "detail"), ()),
        ]
        return sum(self._sweep_table(*entry) for entry in tables)

    def _sweep_table(self, table: Table, scope: ColumnElement[bool], texts: Sequence[str], json: Sequence[str]) -> int:
        cleaned: dict[str, Any] = {name: func.without_mentions(table.c[name]) for name in texts}
        cleaned |= {name: func.without_mentions_in_json(table.c[name]) for name in json}
        return self._changed(update(table).where(scope, _mentioned(table, *texts, *json)).values(**cleaned))

    def _mine(self, table: Table) -> ColumnElement[bool]:
        return table.c.account_key == self._person.account_key

    def _mine_or_nobodys(self, table: Table) -> ColumnElement[bool]:
        # Of a delivery that could not be read nobody knows the account.
        return or_(self._mine(table), table.c.account_key.is_(None))

    def _my_run(self, table: Table) -> ColumnElement[bool]:
        runs = schema.runs
        return or_(table.c.run_id.in_(select(runs.c.run_id).where(self._mine(runs))), table.c.run_id.is_(None))

    def _my_step(self) -> ColumnElement[bool]:
        runs = schema.runs
        return schema.steps.c.run_seq.in_(select(runs.c.seq).where(self._mine(runs)))

    def _changed(self, statement: Any) -> int:
        count: int = self._connection.execute(statement).rowcount
        return count


_EVENT_IDS: Final = ("event_id", "conversation_key", "root_id", "parent_id", "note")
_CONTACT_JSON: Final = ("groups", "subscription", "extra")
_MESSAGE_TEXTS: Final = ("to_addr", "from_addr", "content", "gateway_id", "error", "event_id")


def _mentioned(table: Table, *columns: str) -> ColumnElement[bool]:
    # The columns at once: one call into Python for each row. What stands between them is part of no number.
    joined: Any = func.coalesce(table.c[columns[0]], "")
    for name in columns[1:]:
        joined = joined + '","' + func.coalesce(table.c[name], "")
    condition: ColumnElement[bool] = func.mentioned(joined)
    return condition


def _install(connection: Connection, mentions: Mentions) -> None:
    raw = connection.connection.driver_connection
    assert isinstance(raw, sqlite3.Connection)
    functions: dict[str, Callable[[Any], Any]] = {
        "mentioned": mentions.found_in,
        "mentioned_in_bytes": mentions.found_in_bytes,
        "without_mentions": mentions.without,
        "without_mentions_in_json": mentions.without_in_json,
    }
    for name, function in functions.items():
        raw.create_function(name, 1, function)


def _uninstall(raw: sqlite3.Connection) -> None:
    for name in ("mentioned", "mentioned_in_bytes", "without_mentions", "without_mentions_in_json"):
        # They know the number, so they are not left on a connection that lives as long as the worker.
        raw.create_function(name, 1, None)


def _compact(raw: sqlite3.Connection) -> str | None:
    """Overwrite what was erased, in the file and in its log; return why that could not be done, if so."""
    try:
        # The copy that VACUUM makes may be larger than the memory.
        raw.execute("PRAGMA temp_store = FILE")
        raw.execute("VACUUM")
        busy, _, _ = raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    except sqlite3.Error as error:
        return f"its unused pages may still hold traces: {error}; erase once more to overwrite them"
    finally:
        with suppress(sqlite3.Error):
            raw.execute("PRAGMA temp_store = MEMORY")
    if busy:
        return "its log may still hold traces, as somebody was reading it; erase once more to overwrite them"
    return None
