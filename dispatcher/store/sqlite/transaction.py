"""One transaction of the SQLite store: bulk reads, what a batch takes, one flush, commit.

A probe by primary key costs a microsecond here, and asking for it three: keys that are known together are asked for
together. The flush is a few bulk statements.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from dispatcher import failpoints
from dispatcher.engine.ports import Key
from dispatcher.engine.records import OUTBOX_COLUMNS, Changes, Remembered, RunKey, RunRow, StoredEvent, Texted
from dispatcher.errors import RowsRefused
from dispatcher.plugins.context import Contact, Message
from dispatcher.store import rows
from dispatcher.store.sqlite import statements as sql
from dispatcher.store.sqlite.outbox import SqliteOutbox, settle_held
from dispatcher.store.suppressions import ERASED, number_hash
from dispatcher.store.turns import half_in_turns, share_out

if TYPE_CHECKING:
    from dispatcher.store.sqlite.store import SqliteStore

# How many accounts share one batch at most; the others have their turn in the next ones.
_ACCOUNTS_A_TURN = 32
# So many keys are asked for one by one: the query for many has to be handed all its places.
_FEW = 8
_outbox_columns = attrgetter(*OUTBOX_COLUMNS)
_NOTHING = nullcontext()
_ROWS_REFUSED = (sqlite3.IntegrityError, sqlite3.DataError, sqlite3.ProgrammingError, sqlite3.InterfaceError)


class SqliteTransaction:
    """One transaction: bulk reads, what is to be taken, one flush, commit."""

    def __init__(self, store: SqliteStore) -> None:
        self._store = store
        self._connection = store.connection
        self._seqs = store.seqs
        self.outbox = SqliteOutbox(store.connection)

    def commit(self) -> None:
        """Make it durable: when this returns, it is synced to the disk."""
        failpoints.reach("batch.before_commit")
        self._connection.execute("COMMIT")
        failpoints.reach("batch.after_commit")

    def together(self) -> AbstractContextManager[object]:
        """Do nothing: the store is in this process, and nothing travels."""
        return _NOTHING

    # Reads: see engine.ports.Reads. There is no other writer whom anything would have to be kept from.

    shared = False

    def lock_contacts(self, keys: Iterable[Key]) -> set[Key]:
        return set()

    def take_turns(self, queues: Mapping[str, bool]) -> None:
        pass

    def left(self, queue: str, epoch: str) -> list[str]:
        raise AssertionError("a queue that one worker consumes has its past forgotten at once")

    def repeated(self, queue: str, epoch: str, digest: bytes) -> Remembered | None:
        raise AssertionError("a queue that one worker consumes brings its deliveries again in their order")

    def known_events(self, keys: Iterable[Key]) -> dict[Key, bytes]:
        return {(account, event_id): digest for account, event_id, digest in self._found(sql.KNOWN_EVENTS, keys)}

    def contacts(self, keys: Iterable[Key]) -> dict[Key, Contact]:
        return {(row[0], row[1]): rows.contact(row) for row in self._found(sql.CONTACTS, keys)}

    def contact_number(self, account_key: str, contact_key: str) -> str | None:
        row = self._one(sql.CONTACT_NUMBER, (account_key, contact_key))
        return None if row is None else row[0]

    def opt_outs(self, keys: Iterable[Key]) -> dict[Key, str]:
        keys = list(keys)
        found = {(account, number): reason for account, number, reason in self._found(sql.OPT_OUTS, keys)}
        if self._store.suppressed:
            for key in keys:
                if key not in found and self._hash(key) in self._store.suppressed:
                    found[key] = ERASED
        return found

    def message(self, message_id: str) -> Message | None:
        row = self._one(sql.MESSAGE, (message_id,))
        return None if row is None else rows.message(row)

    def families(self, roots: Iterable[Key]) -> dict[str, tuple[int, bool]]:
        found = {}
        for _, root_id in roots:
            count, stopped = self._one(sql.FAMILY, (root_id,))
            found[root_id] = (count, bool(stopped))
        return found

    def texted(self, message_ids: Iterable[str]) -> dict[str, Texted]:
        found = {message_id: self._one(sql.TEXTED, (message_id,)) for message_id in message_ids}
        return {message_id: self._text(row) for message_id, row in found.items() if row is not None}

    @staticmethod
    def _text(row: Sequence[Any]) -> Texted:
        account_key, to_addr, sender, state, event_id, conversation_key, root_id, hops, traceparent = row
        # An event that was forgotten leaves its text, and that tells enough.
        return Texted(account_key, to_addr, sender, state, event_id, conversation_key, root_id, hops or 0, traceparent)

    def unacked(self, queue: str, epoch: str) -> list[Remembered]:
        return [Remembered(*row) for row in self._all(sql.UNACKED, (queue, epoch))]

    def reserve(self, table: str) -> int:
        self._seqs[table] += 1
        return self._seqs[table]

    # What a batch takes.

    def take_new(self, limit: int) -> list[StoredEvent]:
        """Return up to `limit` new events; accounts take turns, and each account's events come in their order."""
        accounts = self._turn("new", sql.ACCOUNTS_WITH_NEW, ())
        found = share_out(accounts, limit, lambda *asked: self._all(sql.NEW_EVENTS, asked))
        return [rows.stored_event(row) for row in found]

    def take_event(self, seq: int) -> StoredEvent | None:
        """Return one event if it is new."""
        row = self._one(sql.NEW_EVENT, (seq,))
        return None if row is None else rows.stored_event(row)

    def take_due(self, lane: str, now: str, limit: int) -> list[RunRow]:
        """Return up to `limit` runs of this lane that are due, the longest due first.

        Where more are due than fit, half of the room goes to accounts in turns, so that none starves another.
        """
        seqs = half_in_turns(
            [row[0] for row in self._all(sql.DUE, (lane, now, limit))],
            limit,
            lambda: self._turn(f"due {lane}", sql.ACCOUNTS_WITH_DUE, (lane,)),
            lambda account, share: [row[0] for row in self._all(sql.DUE_OF_ACCOUNT, (lane, account, now, share))],
        )
        return self._runs(seqs)

    def take_due_of_event(self, event_seq: int, now: str) -> list[RunRow]:
        """Return the due runs of one event, whatever their lane."""
        return self._runs([row[0] for row in self._all(sql.DUE_OF_EVENT, (event_seq, now))])

    def take_running(self) -> list[RunRow]:
        """Return the runs whose call was under way: at the start of a worker, those that a crash left behind."""
        return self._runs([row[0] for row in self._all(sql.RUNNING, ())])

    def take_running_of_event(self, event_seq: int) -> list[RunRow]:
        """Return the runs of one event whose call was under way."""
        return self._runs([row[0] for row in self._all(sql.RUNNING_OF_EVENT, (event_seq,))])

    def still_new(self, events: Sequence[StoredEvent]) -> Sequence[StoredEvent]:
        """Return the events: nobody else takes any."""
        return events

    def still_there(self, runs: Sequence[RunRow]) -> Sequence[RunRow]:
        """Return the runs: nobody else moves any."""
        return runs

    def runs(self, keys: Iterable[RunKey]) -> list[RunRow]:
        """Return these runs with their events and the journal of their steps."""
        return self._runs(seq for seq, _ in keys)

    def _runs(self, seqs: Iterable[int]) -> list[RunRow]:
        found = []
        for seq in seqs:
            row = self._one(sql.RUN_WITH_EVENT, (seq,))
            if row is not None:
                found.append(rows.run_row(row, self._all(sql.STEPS_OF_RUN, (seq,))))
        return found

    # Crashes.

    def count_crash(self, seq: int) -> tuple[int, str] | None:
        """Count a crash against an event; return the count and the event's id, None for an unknown event."""
        row = self._one(sql.COUNT_CRASH, (seq,))
        return None if row is None else (row[0], row[1])

    def forget_crashes(self, seq: int) -> None:
        """Take back the suspicion against an event that ran alone and did no harm."""
        self._connection.execute(sql.FORGET_CRASHES, (seq,))

    def park_crashed(self, seq: int, crashes: int, now: str, dead_id: str) -> None:
        """Park an event that took the worker down too often, and end its runs."""
        detail = f"the worker died {crashes} times while it advanced this event"
        execute = self._connection.execute
        execute(sql.PARK_CRASHED_EVENT, (detail, seq))
        execute(sql.PARK_CRASHED_RUNS, (f"crashed: {detail}", now, seq))
        execute(sql.PARK_CRASHED_LETTER, (dead_id, detail, now, seq))

    def suspects(self) -> list[int]:
        """Return the new events that were being advanced when a worker died."""
        return [row[0] for row in self._all(sql.SUSPECTS, ())]

    # Deliveries that a broker may bring again.

    def forget_acked(self, epoch: str, tag: int) -> None:
        """Forget the deliveries of an epoch up to this tag: the broker has their acks, and never brings them again."""
        self._connection.execute(sql.FORGET_ACKED, (epoch, tag))

    # The flush.

    def flush(self, changes: Changes) -> None:
        """Write the batch: a few bulk statements, in one order of tables, and of keys where rows are shared.

        Raises RowsRefused when the database takes one of the rows for impossible.
        """
        try:
            self._flush(changes)
        except (*_ROWS_REFUSED, OverflowError, UnicodeError) as error:
            raise RowsRefused(f"the store refused a row of the batch: {error}") from error

    def _flush(self, changes: Changes) -> None:
        failpoints.reach("batch.before_flush")
        many = self._connection.executemany
        known = self._store.known_chains
        chains = [chain for digest, chain in changes.chains.items() if digest not in known]
        if chains:
            first_used = changes.new_runs[0].started_at if changes.new_runs else ""
            many(sql.INSERT_CHAIN, [(chain.digest, chain.name, chain.text, first_used) for chain in chains])
        if changes.events:
            many(sql.INSERT_EVENT, changes.events.values())
            many(sql.INSERT_EVENT_ID, sorted(changes.event_ids))
        if changes.event_states:
            many(sql.UPDATE_EVENT_STATE, changes.event_states)
        if changes.new_runs:
            many(sql.INSERT_RUN, [rows.fixed_columns(run) + rows.changing_columns(run) for run in changes.new_runs])
        if changes.changed_runs:
            many(
                sql.UPDATE_RUN,
                [(*rows.changing_columns(run), seq) for seq, run in sorted(changes.changed_runs.items())],
            )
            many(sql.HOLD_ENDING_RUN, [(seq,) for seq, run in changes.changed_runs.items() if run.state == "done"])
        if changes.unbound_runs:
            many(sql.UPDATE_UNBOUND_RUN, changes.unbound_runs)
        if changes.steps:
            many(sql.UPSERT_STEP, changes.steps)
        if changes.contacts:
            many(sql.UPSERT_CONTACT, [rows.contact_row(changes.contacts[key]) for key in sorted(changes.contacts)])
        for (account, number), entry in sorted(changes.opt_outs.items()):
            if entry is None:
                self._connection.execute(sql.DELETE_OPT_OUT, (account, number))
                if self._store.suppressed:
                    self._connection.execute(sql.DELETE_SUPPRESSION, (self._hash((account, number)),))
            else:
                self._connection.execute(sql.INSERT_OPT_OUT, (account, number, *entry))
        if changes.messages:
            many(sql.UPSERT_MESSAGE, [rows.message_row(changes.messages[key]) for key in sorted(changes.messages)])
        if changes.message_states:
            many(sql.UPDATE_MESSAGE_STATE, changes.message_states)
            for *_, message_id in changes.message_states:
                settle_held(self._connection, message_id)
        if changes.outbox:
            many(sql.INSERT_OUTBOX, [_outbox_columns(row) for row in changes.outbox])
        if changes.acked:
            many(sql.FORGET_ACKED, changes.acked.items())
        if changes.unacked_past:
            many(sql.FORGET_PAST, changes.unacked_past)
        if changes.unacked:
            many(sql.INSERT_UNACKED, changes.unacked)
        if changes.dead_letters:
            many(sql.INSERT_DEAD_LETTER, changes.dead_letters)

    def flushed(self, changes: Changes) -> None:
        """Remember, after the commit, which chains the store has, and who opted in again after an erasure."""
        self._store.known_chains.update(changes.chains)
        if self._store.suppressed:
            self._store.suppressed -= {self._hash(key) for key, entry in changes.opt_outs.items() if entry is None}

    # Helpers of the above.

    def _hash(self, key: Key) -> bytes:
        return number_hash(self._store.facts["secret"], *key)

    def _turn(self, name: str, statement: str, params: tuple[Any, ...]) -> list[str]:
        """Return the accounts whose turn it is, from behind the last one served, around the end."""
        last = self._store.turns.get(name, "")
        accounts = [row[0] for row in self._all(statement, (*params, last, _ACCOUNTS_A_TURN))]
        if last and len(accounts) < _ACCOUNTS_A_TURN:
            again = [row[0] for row in self._all(statement, (*params, "", _ACCOUNTS_A_TURN - len(accounts)))]
            accounts = list(dict.fromkeys(accounts + again))
        if accounts:
            self._store.turns[name] = accounts[-1]
        return accounts

    def _found(self, lookup: sql.Lookup, keys: Iterable[Key]) -> Iterator[Sequence[Any]]:
        """Yield the row of each key that has one, led by the key."""
        execute, keys, most = self._connection.execute, list(keys), lookup.AT_ONCE
        while len(keys) > _FEW:
            params: list[str | None] = list(chain.from_iterable(keys[:most]))
            params += [None] * (2 * most - len(params))
            del keys[:most]
            yield from execute(lookup.many, params)
        for key in keys:
            yield from execute(lookup.one, key)

    def _one(self, statement: str, params: Sequence[Any]) -> Any:
        return self._connection.execute(statement, params).fetchone()

    def _all(self, statement: str, params: Sequence[Any]) -> list[Any]:
        return self._connection.execute(statement, params).fetchall()
