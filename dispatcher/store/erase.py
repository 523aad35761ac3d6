"""Erase a person of an account: the contact, the texts, and every trace of the number that the store holds.

What the law asks for (POPIA s24 and s14(4)-(5), GDPR art. 17) is that the person cannot be reconstructed, so what is
left behind is overwritten too, as far as the store can (see `sqlite.erasure` and `postgres.erasure`, which also find
who is named where). A keyed hash of the number is kept: it counts as an opt-out, so that no replay and no late event
has the person texted again.

    an event that names the person       loses its payload: the name and the answers stand beside the number
    a run of such an event               ends, and loses the results and errors of its steps
    a text of such a run, or to them     loses its words; what the outbox was yet to send is not sent
    a dead letter that names them        loses its body and is discarded
    anything else that names them        keeps its meaning, with a mark where the number was
"""

from __future__ import annotations

import hashlib
import hmac
from datetime import datetime
from typing import Any, Final

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    MetaData,
    Table,
    Text,
    and_,
    case,
    delete,
    insert,
    or_,
    select,
    tuple_,
    update,
)

from dispatcher.engine.records import OPEN_LANE, as_text
from dispatcher.errors import NotFound
from dispatcher.store import schema
from dispatcher.store.lookup import find_contact
from dispatcher.store.mentions import Mentions
from dispatcher.store.naming import NAMING, Eraser, Person, Search, is_mine, is_mine_or_nobodys, of_my_run
from dispatcher.store.operations import ERASED_NOTE, Changed, Operations, counted
from dispatcher.store.ports import Store
from dispatcher.store.suppressions import number_hash
from dispatcher.text.numbers import BadNumber, normalise_number

_MARK: Final = "[erased]"
_OPEN_RUNS: Final = ("ready", "running", "waiting", "retrying", "held")

# What a transaction has found so far, gone with it.
_scratch: Final = MetaData()
_TEMPORARY: Final[dict[str, Any]] = {"prefixes": ["TEMPORARY"], "postgresql_on_commit": "DROP"}
_events: Final = Table(
    "erased_events",
    _scratch,
    Column("seq", schema.Number, primary_key=True, autoincrement=False),
    Column("received_on", Text),
    **_TEMPORARY,
)
_runs: Final = Table(
    "erased_runs",
    _scratch,
    Column("seq", schema.Number, primary_key=True, autoincrement=False),
    Column("received_on", Text),
    Column("run_id", Text),
    **_TEMPORARY,
)


def erase(store: Store, text: str, account: str | None, *, region: str | None, actor: str, now: datetime) -> Changed:
    """Erase the person whom `text` names: by number, in any spelling, or by the key of the contact.

    Raises NotFound where the store knows nothing of them, NotPossible where several may be meant.
    """
    secret = store.facts["secret"]
    eraser = _eraser_of(store)

    def mark(spelling: str) -> str:
        # The same spelling gets the same mark, so that an id which holds a number is one id still, everywhere.
        return f"{_MARK[:-1]}:{hmac.new(secret.encode(), spelling.encode(), hashlib.sha256).hexdigest()[:8]}]"

    def change(connection: Connection) -> tuple[bytes, int]:
        person = _identify(connection, text, account, region)
        digest = number_hash(secret, person.account_key, person.msisdn)
        mentions = Mentions(person.msisdn, person.words, mark)
        count = 0
        for search in eraser.searches(connection, person, mentions, now):
            count += _Erasure(connection, person, search, as_text(now)).run()
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
        eraser.forget()
    store.suppressed.add(digest)
    message = f"the person is erased: {counted(count, 'row')} held something of them"
    if eraser.remains is not None:
        message += f"; {eraser.remains}"
    return Changed([], message, eraser.overwrite())


def _eraser_of(store: Store) -> Eraser:
    if store.shared:
        from dispatcher.store.postgres.erasure import PostgresEraser  # noqa: PLC0415 - needs its driver
        from dispatcher.store.postgres.store import PostgresStore  # noqa: PLC0415

        assert isinstance(store, PostgresStore)
        return PostgresEraser(store)
    from dispatcher.store.sqlite.erasure import SqliteEraser  # noqa: PLC0415
    from dispatcher.store.sqlite.store import SqliteStore  # noqa: PLC0415

    assert isinstance(store, SqliteStore)
    return SqliteEraser(store)


def _identify(connection: Connection, text: str, account: str | None, region: str | None) -> Person:
    try:
        account_key, msisdn = find_contact(connection, text, account)
    except NotFound:
        # Events may name somebody who never became a contact.
        if account is None:
            raise
        try:
            return Person(account, normalise_number(text, region))
        except BadNumber:
            raise _nothing_of(text, account) from None
    table = schema.contacts
    key, email = connection.execute(
        select(table.c.contact_key, table.c.email_address).where(
            table.c.account_key == account_key, table.c.msisdn == msisdn
        )
    ).one()
    return Person(account_key, msisdn, tuple(word for word in (key, email) if word))


def _nothing_of(text: str, account: str) -> NotFound:
    return NotFound(
        f"account {account} holds nothing of {text!r}.",
        hint='Write the number as it is written abroad, with "+" and country code.',
    )


class _Erasure:
    """One pass of an erasure, over what a search has found, within its transaction.

    Rows are taken in the order of a batch's flush, as workers may have the same ones in hand.
    """

    def __init__(self, connection: Connection, person: Person, search: Search, now: str) -> None:
        self._connection = connection
        self._person = person
        self._search = search
        self._now = now

    def run(self) -> int:
        """Erase; return how many rows held something of the person."""
        _scratch.create_all(self._connection)
        try:
            return sum(
                (self._blank_events(), self._forget(), self._blank_texts(), self._blank_letters(), self._sweep())
            )
        finally:
            _scratch.drop_all(self._connection)

    def _blank_events(self) -> int:
        events, runs, steps = schema.events, schema.runs, schema.steps
        named = select(events.c.seq, events.c.received_on).where(
            is_mine(events, self._person), self._search.whole(events)
        )
        found = self._changed(insert(_events).from_select(["seq", "received_on"], named))
        self._search.gathered(_events)
        self._changed(
            update(events)
            .where(_is_among(events.c.seq, events.c.received_on, _events))
            .values(
                event_data="{}",
                extra=None,
                subject=None,
                note=ERASED_NOTE,
                state=case((events.c.state == "new", "unmatched"), else_=events.c.state),
            )
        )
        theirs = select(runs.c.seq, runs.c.received_on, runs.c.run_id).where(
            _is_among(runs.c.event_seq, runs.c.received_on, _events)
        )
        self._changed(insert(_runs).from_select(["seq", "received_on", "run_id"], theirs))
        self._search.gathered(_runs)
        of_run = _is_among(runs.c.seq, runs.c.received_on, _runs)
        ended = {"state": "cancelled", "due_at": None, "lane": OPEN_LANE, "lease_token": None}
        self._changed(
            update(runs)
            .where(of_run, runs.c.state.in_(_OPEN_RUNS))
            .values(**ended, finished_at=self._now, error=ERASED_NOTE)
        )
        self._changed(
            update(runs).where(of_run).values(cursor=None, error=case((runs.c.error.is_(None), None), else_=_MARK))
        )
        of_step = _is_among(steps.c.run_seq, steps.c.received_on, _runs)
        self._changed(update(steps).where(of_step).values(result=None, error=None))
        return found

    def _forget(self) -> int:
        """Remove the contact and the opt-out, which the suppression takes the place of."""
        self._search.hold_off()
        return sum(
            self._changed(delete(table).where(is_mine(table, self._person), table.c.msisdn == self._person.msisdn))
            for table in (schema.contacts, schema.opt_outs)
        )

    def _blank_texts(self) -> int:
        messages, outbox = schema.messages, schema.outbox
        of_run = select(_runs.c.run_id)
        unsent = self._changed(
            delete(outbox).where(
                or_(outbox.c.run_id.in_(of_run), and_(of_my_run(outbox, self._person), self._search.whole(outbox)))
            )
        )
        return unsent + self._changed(
            update(messages)
            .where(
                is_mine(messages, self._person),
                or_(messages.c.to_addr == self._person.msisdn, messages.c.run_id.in_(of_run)),
            )
            .values(
                content="",
                gateway_id=None,
                error=ERASED_NOTE,
                state=case((messages.c.state.in_(("queued", "held")), "failed"), else_=messages.c.state),
            )
        )

    def _blank_letters(self) -> int:
        letters, events = schema.dead_letters, schema.events
        of_event = select(events.c.event_id).where(_is_among(events.c.seq, events.c.received_on, _events))
        return self._changed(
            update(letters)
            .where(
                is_mine_or_nobodys(letters, self._person),
                or_(
                    letters.c.event_id.in_(of_event),
                    letters.c.run_id.in_(select(_runs.c.run_id)),
                    self._search.whole(letters),
                ),
            )
            .values(
                body=None, detail=_MARK, state=case((letters.c.state == "open", "discarded"), else_=letters.c.state)
            )
        )

    def _sweep(self) -> int:
        """Put a mark wherever the person is still named."""
        return sum(self._search.sweep(naming.table) for naming in NAMING)

    def _changed(self, statement: Any) -> int:
        # Of what is inserted, SQLAlchemy keeps no count by itself.
        count: int = self._connection.execute(statement.execution_options(preserve_rowcount=True)).rowcount
        return count


def _is_among(seq: Column[Any], received_on: Column[Any], found: Table) -> ColumnElement[bool]:
    # With the day, which names the partition.
    return tuple_(seq, received_on).in_(select(found.c.seq, found.c.received_on))
