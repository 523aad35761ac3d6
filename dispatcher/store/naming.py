"""Where a person may be named: the columns of each table, and whose rows are searched; and what finds them there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Protocol

from sqlalchemy import ColumnElement, Connection, Table, and_, exists, or_, true

from dispatcher.store import schema
from dispatcher.store.mentions import Mentions


@dataclass(frozen=True, slots=True)
class Person:
    """Who is to be erased; `words` name nobody else, such as the key of the contact."""

    account_key: str
    msisdn: str
    words: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Naming:
    """The columns of a table in which a person may be named.

    A row that names them in one of `whole` is about them as a whole. In `texts` and `json` the number alone gets a
    mark. Rows older than the text in `since` were not made lately.
    """

    table: Table
    whole: Sequence[str]
    texts: Sequence[str]
    json: Sequence[str] = ()
    since: str = "at"


NAMING: Final = (
    Naming(
        schema.events,
        ("event_id", "conversation_key", "event_data", "subject", "extra"),
        ("event_id", "conversation_key", "root_id", "parent_id", "note"),
        since="received_at",
    ),
    Naming(schema.event_ids, (), ("event_id",), since="received_on"),
    Naming(schema.runs, (), ("event_id", "error"), ("cursor",), since="started_at"),
    Naming(schema.steps, (), ("error",), ("result",), since="started_at"),
    Naming(schema.outbox, ("destination", "body"), ("event_id", "message_id")),
    Naming(
        schema.contacts,
        (),
        ("name", "surname", "email_address"),
        ("groups", "subscription", "extra"),
        since="updated_at",
    ),
    Naming(schema.opt_outs, (), ("reason",)),
    Naming(schema.messages, (), ("to_addr", "from_addr", "content", "gateway_id", "error", "event_id")),
    Naming(schema.dead_letters, ("body",), ("event_id", "detail")),
    Naming(schema.audit, (), ("target", "detail")),
)
BY_TABLE: Final = {naming.table.name: naming for naming in NAMING}


class Search(Protocol):
    """What was found of a person, within the transaction of the erasure."""

    def whole(self, table: Table) -> ColumnElement[bool]:
        """Return the condition that a row is about the person as a whole."""
        ...

    def gathered(self, table: Table) -> None:
        """A temporary table was filled, and is about to be joined."""
        ...

    def hold_off(self) -> None:
        """Keep everybody else from the person's contact until the transaction ends."""
        ...

    def sweep(self, table: Table) -> int:
        """Put a mark wherever a row of this table still names the person; return how many did."""
        ...


class Eraser(Protocol):
    """How a store finds a person, and gets rid of what is left behind when its rows are changed."""

    @property
    def remains(self) -> str | None:
        """Where traces stay whatever is done here, if they do."""
        ...

    def searches(self, connection: Connection, person: Person, mentions: Mentions, now: datetime) -> Iterator[Search]:
        """Yield what is found, to be erased, until nothing is found that was not there before."""
        ...

    def forget(self) -> None:
        """Forget the person oneself."""
        ...

    def overwrite(self) -> Sequence[tuple[str, str]]:
        """Overwrite what was erased; return where it may be left all the same, and why."""
        ...


def scope(table: Table, person: Person) -> ColumnElement[bool]:
    """Return the condition that a row may name the person at all: it is of their account, or of nobody's."""
    match table.name:
        case "steps":
            return of_my_run(table, person)
        case "outbox":
            return of_my_run(table, person)
        case "dead_letters":
            return is_mine_or_nobodys(table, person)
        case "audit":
            return true()
        case _:
            return is_mine(table, person)


def is_mine(table: Table, person: Person) -> ColumnElement[bool]:
    """Return the condition that a row is of the person's account."""
    return table.c.account_key == person.account_key


def is_mine_or_nobodys(table: Table, person: Person) -> ColumnElement[bool]:
    """Return the condition that a row is of the person's account, or of a delivery that could not be read."""
    return or_(is_mine(table, person), table.c.account_key.is_(None))


def of_my_run(table: Table, person: Person) -> ColumnElement[bool]:
    """Return the condition that a step or a row of the outbox is of a run of the person's account, or of none."""
    runs = schema.runs
    if table.name == "steps":
        same = and_(runs.c.seq == table.c.run_seq, runs.c.received_on == table.c.received_on)
        return exists().where(same, is_mine(runs, person)).correlate(table)
    same = runs.c.run_id == table.c.run_id
    return or_(exists().where(same, is_mine(runs, person)).correlate(table), table.c.run_id.is_(None))
