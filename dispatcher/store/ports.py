"""What a store is to those above it: the same words for SQLite and PostgreSQL.

`SqliteStore` is one file that one process writes. `PostgresStore` is shared by any number of processes: what a
transaction takes from it nobody else takes meanwhile, and what outlasts a transaction is held by a lease.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from typing import TYPE_CHECKING, Protocol, TypeVar

from dispatcher.clock import Clock
from dispatcher.engine.ports import Reads
from dispatcher.engine.records import Changes, OutboxRow, RunKey, RunRow, StoredEvent

if TYPE_CHECKING:
    import sqlalchemy

T = TypeVar("T")


class Outbox(Protocol):
    """The outbox within one transaction, as the relay sees it."""

    def lanes(self) -> list[str]:
        """Return the lanes that have rows to send, due or not."""
        ...

    def due(self, lane: str, now: str, limit: int) -> list[OutboxRow]:
        """Return up to `limit` rows of this lane that are due, the longest due first; nobody else gets them now."""
        ...

    def next_due(self, lane: str) -> str | None:
        """Return when the next row of this lane falls due, None when it has none."""
        ...

    def sending(self) -> list[OutboxRow]:
        """Return the rows that a worker which is gone had handed to its publisher: this worker has them now."""
        ...

    def claim(self, rows: Iterable[OutboxRow]) -> None:
        """Record that these rows are about to be published: should the worker die, they may have been."""
        ...

    def confirmed(self, rows: Sequence[OutboxRow]) -> None:
        """Drop rows that the broker has; the texts among them are sent."""
        ...

    def put_off(self, row: OutboxRow, *, attempt: int, not_before: str, error: str | None) -> None:
        """Try a row again later."""
        ...

    def confirm_reported(self, rows: Iterable[OutboxRow]) -> set[int]:
        """Drop the texts among these that a transport has reported on: they were published. Return their numbers."""
        ...

    def withdraw_opted_out(self, rows: Iterable[OutboxRow]) -> set[int]:
        """Take back the texts among these to people who opted out while they waited. Return their numbers."""
        ...

    def hold(self, row: OutboxRow, reason: str, now: datetime) -> bool:
        """Leave a row to a person: nobody knows whether it was published. Return whether there is such a row."""
        ...

    def give_up(self, row: OutboxRow, reason: str, now: datetime) -> bool:
        """Drop a row whose fate nobody knows; its text counts as failed. Return whether there was such a row."""
        ...


class Transaction(Reads, Protocol):
    """One transaction: bulk reads, what is to be taken, one flush, commit. Left without `commit`, nothing was done."""

    @property
    def outbox(self) -> Outbox:
        """The outbox within this transaction."""
        ...

    def commit(self) -> None:
        """Make it durable: when this returns, it is synced to the disk."""
        ...

    def together(self) -> AbstractContextManager[object]:
        """Send what is written within the block to the store in one round trip, where there is one to make."""
        ...

    def take_new(self, limit: int) -> list[StoredEvent]:
        """Return up to `limit` new events; accounts take turns, and each account's events come in their order."""
        ...

    def take_event(self, seq: int) -> StoredEvent | None:
        """Return one event if it is new."""
        ...

    def take_due(self, lane: str, now: str, limit: int) -> list[RunRow]:
        """Return up to `limit` runs of this lane that are due, the longest due first, fairly among accounts."""
        ...

    def take_due_of_event(self, event_seq: int, now: str) -> list[RunRow]:
        """Return the due runs of one event, whatever their lane."""
        ...

    def take_running(self) -> list[RunRow]:
        """Return the runs whose call was under way in a worker that is gone: this worker has them now."""
        ...

    def take_running_of_event(self, event_seq: int) -> list[RunRow]:
        """Return the runs of one event whose call was under way in a worker that is gone."""
        ...

    def still_new(self, events: Sequence[StoredEvent]) -> Sequence[StoredEvent]:
        """Return those of the events, taken by a transaction that was rolled back, that nobody has taken since."""
        ...

    def still_there(self, runs: Sequence[RunRow]) -> Sequence[RunRow]:
        """Return those of the runs, taken by a transaction that was rolled back, that nobody has moved since."""
        ...

    def runs(self, keys: Iterable[RunKey]) -> list[RunRow]:
        """Return these runs with their events and the journal of their steps."""
        ...

    def count_crash(self, seq: int) -> tuple[int, str] | None:
        """Count a crash against an event; return the count and the event's id, None for an unknown event."""
        ...

    def forget_crashes(self, seq: int) -> None:
        """Take back the suspicion against an event that ran alone and did no harm."""
        ...

    def park_crashed(self, seq: int, crashes: int, now: str, dead_id: str) -> None:
        """Park an event that took the worker down too often, and end its runs."""
        ...

    def suspects(self) -> list[int]:
        """Return the new events that were being advanced when a worker died."""
        ...

    def forget_acked(self, epoch: str, tag: int) -> None:
        """Forget the deliveries of an epoch up to this tag: the broker has their acks."""
        ...

    def flush(self, changes: Changes) -> None:
        """Write the batch: a few bulk statements, in one order of tables and of keys.

        Raises RowsRefused when the database takes one of the rows for impossible; Contended when another worker was
        faster, and the batch is to be tried again.
        """
        ...

    def flushed(self, changes: Changes) -> None:
        """Remember, after the commit, what need not be asked again."""
        ...


class Store(Protocol):
    """A process's hold on a store. `facts` are what the store says of itself, such as `installation`."""

    facts: dict[str, str]
    # What `contacts erase` has erased, as keyed hashes: they count as opted out.
    suppressed: set[bytes]

    @property
    def shown(self) -> str:
        """The store as people and logs may see it: a file, or a URL with its password masked."""
        ...

    @property
    def shared(self) -> bool:
        """Whether other processes write it too."""
        ...

    @property
    def clock(self) -> Clock:
        """Whose time counts: the system's, or the database's where several machines share the store."""
        ...

    def transaction(self) -> AbstractContextManager[Transaction]:
        """Open a transaction. Raises StoreUnusable when the store cannot be written; Contended, RowsRefused."""
        ...

    def within(self, connection: sqlalchemy.Connection) -> Transaction:
        """Return a view of the transaction that `administer` has open; it ends with that one."""
        ...

    def prove(self) -> None:
        """Prove that this worker's lease still holds, unless that was proven a moment ago: it is about to act outside.

        Raises LeaseLost where it does not, or where that cannot be told.
        """
        ...

    def administer(self, change: Callable[[sqlalchemy.Connection], T]) -> T:
        """Run a rare change, written in SQLAlchemy Core, in one transaction."""
        ...

    def next_due(self) -> str | None:
        """Return when the next run falls due, None when none waits."""
        ...

    def queued_calls(self) -> dict[str, int]:
        """Return how many calls wait for a slot, by lane."""
        ...

    def next_outbox_due(self, lane: str) -> str | None:
        """Return when the next row of the outbox falls due in this lane, None when it has none."""
        ...

    def chain_text(self, digest: str) -> str | None:
        """Return the text of a pinned chain."""
        ...

    def close(self) -> None:
        """Let go of the store."""
        ...
