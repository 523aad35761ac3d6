"""One transaction of the PostgreSQL store: bulk reads, what a batch takes, one flush, commit.

Whatever is taken is locked until the transaction ends, and passed over by others (`SKIP LOCKED`), so no two workers
ever have the same thing in hand. Contacts are locked by advisory locks, in the order of their keys and before any of
them is read, for there may be no row yet: a batch waits for contacts once, and no two batches wait for each other's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final

import psycopg

from dispatcher import failpoints
from dispatcher.engine.ports import Key
from dispatcher.engine.records import EVENT_STATE, Changes, Remembered, RunKey, RunRow, StoredEvent, Texted
from dispatcher.errors import Contended
from dispatcher.events.identity import day_of
from dispatcher.plugins.context import Contact, Message
from dispatcher.store import rows
from dispatcher.store.postgres import statements as sql
from dispatcher.store.postgres.flush import flush
from dispatcher.store.postgres.outbox import PostgresOutbox
from dispatcher.store.suppressions import ERASED, number_hash
from dispatcher.store.turns import half_in_turns, share_out

if TYPE_CHECKING:
    from dispatcher.store.postgres.store import PostgresStore

# How many accounts share one batch at most; the others have their turn in the next ones.
_ACCOUNTS_A_TURN: Final = 8

# What was asked of each account.
_Asked = list[tuple[str, psycopg.Cursor[Any]]]


class PostgresTransaction:
    """One transaction. `connection` has it open; `store` knows what holds between transactions."""

    shared = True

    def __init__(self, store: PostgresStore, connection: psycopg.Connection[Any]) -> None:
        self._store = store
        self.connection = connection
        self.outbox = PostgresOutbox(connection, store.lease.number)
        self._has_locked = False
        # Contacts that came along with their locks, with what was asked for.
        self._came_along: tuple[set[Key], dict[Key, Contact]] | None = None
        # The lease's proof, when it was asked for along with something else.
        self._proof: psycopg.Cursor[Any] | None = None

    def commit(self) -> None:
        """Make it durable: when this returns, it is synced to the disk. Raises LeaseLost where that is past."""
        failpoints.reach("batch.before_commit")
        if self._store.lease.number is None:
            self._execute(sql.NOTIFY)
        proof, self._proof = self._proof or self._store.lease.ask(self.connection), None
        self._store.session.commit(self._store.lease.told(proof))
        self._store.lease.proven()
        failpoints.reach("batch.after_commit")

    def together(self) -> AbstractContextManager[object]:
        """Send what is executed within the block in one round trip. What is asked there is read after the block."""
        return self.connection.pipeline()

    def ask_for_proof(self) -> None:
        """Ask for the proof of the lease that the commit needs, in a round trip that is made anyway."""
        self._proof = self._store.lease.ask(self.connection)

    # Reads: see engine.ports.Reads.

    def lock_contacts(self, keys: Iterable[Key]) -> set[Key]:
        locks = {_lock_of(key): key for key in keys}
        waits = not self._has_locked and self._store.waits
        self._has_locked = True
        try:
            with self.together():
                locked = self._execute(sql.LOCK_CONTACTS if waits else sql.TRY_CONTACTS, (sorted(locks),))
                # Read once they are locked, as they are for this; each statement sees what is committed by then.
                asked = self._ask_for_each(sql.CONTACTS, locks.values())
        except psycopg.errors.LockNotAvailable:
            self._store.wait_no_more()  # for one that is held for so long, everything else is not to wait
            raise
        self._came_along = (set(locks.values()), _contacts_in(asked))
        return set() if waits else {locks[row[0]] for row in locked}

    def take_turns(self, queues: Mapping[str, bool]) -> None:
        # In one order, and before contacts are locked: else two that have both would wait for each other.
        for queue, again in sorted(queues.items()):
            self._execute(sql.LOCK_QUEUE if again else sql.SHARE_QUEUE, (sql.QUEUES, queue))

    def left(self, queue: str, epoch: str) -> list[str]:
        return [row[0] for row in self._execute(sql.LEFT, (queue, epoch))]

    def repeated(self, queue: str, epoch: str, digest: bytes) -> Remembered | None:
        row = self._one(sql.REPEATED, (queue, epoch, digest))
        if row is None:
            return None
        *found, held = row
        if held:
            raise Contended(
                f"an event without an id came again through the queue {queue}, and nobody knows yet whether the "
                "worker that has it has ended."
            )
        self._execute(sql.DELETE_UNACKED, (row[0], row[1]))
        return Remembered(*found)

    def unacked(self, queue: str, epoch: str) -> list[Remembered]:
        raise AssertionError("a queue that several workers consume has no order in which deliveries come again")

    def known_events(self, keys: Iterable[Key]) -> dict[Key, bytes]:
        keys = list(keys)
        if not keys:
            return {}
        with self.together():
            asked = self._ask_for_each(sql.KNOWN_EVENTS, keys)
        return _values_in(asked)

    def contacts(self, keys: Iterable[Key]) -> dict[Key, Contact]:
        keys = set(keys)
        came_along, self._came_along = self._came_along, None
        if came_along is not None and came_along[0] == keys:
            return came_along[1]
        with self.together():
            asked = self._ask_for_each(sql.CONTACTS, keys)
        return _contacts_in(asked)

    def contact_number(self, account_key: str, contact_key: str) -> str | None:
        row = self._one(sql.CONTACT_NUMBER, (account_key, contact_key))
        return None if row is None else row[0]

    def opt_outs(self, keys: Iterable[Key]) -> dict[Key, str]:
        keys = list(keys)
        with self.together():
            asked = self._ask_for_each(sql.OPT_OUTS, keys)
            # Another process may have erased somebody a moment ago, so the database is asked, not what was known here.
            some = self._execute(sql.SUPPRESSED_ANY)
        found: dict[Key, str] = _values_in(asked)
        if (row := some.fetchone()) is not None and row[0]:
            hashes = {self.hash_of(key): key for key in keys if key not in found}
            for row in self._execute(sql.SUPPRESSED, (list(hashes),)):
                found[hashes[bytes(row[0])]] = ERASED
        return found

    def message(self, message_id: str) -> Message | None:
        day = day_of(message_id)
        row = None if day is None else self._one(sql.on_day(sql.MESSAGE, day), (message_id,))
        return None if row is None else rows.message(row)

    def families(self, roots: Iterable[Key]) -> dict[str, tuple[int, bool]]:
        keys = list(roots)
        found = self._execute(sql.FAMILIES, ([account for account, _ in keys], [root_id for _, root_id in keys]))
        return {root_id: (count, stopped) for root_id, count, stopped in found}

    def texted(self, message_ids: Iterable[str]) -> dict[str, Texted]:
        sent: list[Any] = []
        for day, ids in _by_day((day_of(message_id), message_id) for message_id in message_ids):
            sent += self._all(sql.on_day(sql.TEXTED, day), (ids,))
        causes: dict[int, Any] = {}
        for day, seqs in _by_day((row[7], row[6]) for row in sent):
            for seq, *cause in self._execute(sql.on_day(sql.CAUSES, day), (seqs,)):
                causes[seq] = cause
        # An event that was forgotten leaves its text, and that tells enough.
        unknown = (None, None, 0, None)
        return {row[0]: Texted(*row[1:6], *causes.get(row[6], unknown)) for row in sent}

    def reserve(self, table: str) -> int:
        return self._store.blocks.next(self.connection, table)

    # What a batch takes.

    def take_new(self, limit: int) -> list[StoredEvent]:
        """Return up to `limit` new events; accounts take turns, and each account's events come in their order."""
        if not self._store.worth_a_look("new"):
            return []
        days = self._store.days.of("new")
        taken = self._take_new(limit, days)
        self._store.looked("new", found=bool(taken))
        return taken

    def _take_new(self, limit: int, days: str) -> list[StoredEvent]:
        accounts = self._turn("new", sql.within(sql.ACCOUNTS_WITH_NEW, days), {})
        events = sql.within(sql.NEW_EVENTS, days.replace("received_on", "e.received_on"))
        found = share_out(accounts, limit, lambda *asked: self._all(events, asked))
        return [rows.stored_event(row) for row in found]

    def take_event(self, seq: int) -> StoredEvent | None:
        """Return one event if it is new."""
        row = self._one(sql.NEW_EVENT, (seq,))
        return None if row is None else rows.stored_event(row)

    def take_due(self, lane: str, now: str, limit: int) -> list[RunRow]:
        """Return up to `limit` runs of this lane that are due, the longest due first.

        Where more are due than fit, half of the room goes to accounts in turns, so that none starves another.
        """
        if not self._store.worth_a_look(f"due {lane}"):
            return []
        days = self._store.days.of("due")
        keys = self._due(lane, now, limit, days)
        self._store.looked(f"due {lane}", found=bool(keys))
        return self.runs(keys)

    def _due(self, lane: str, now: str, limit: int, days: str) -> list[RunKey]:
        of_account = sql.within(sql.DUE_OF_ACCOUNT, days)
        return half_in_turns(
            self._all(sql.within(sql.DUE, days), (lane, now, limit)),
            limit,
            lambda: self._turn(f"due {lane}", sql.within(sql.ACCOUNTS_WITH_DUE, days), {"lane": lane}),
            lambda account, share: self._all(of_account, (lane, account, now, share)),
        )

    def take_due_of_event(self, event_seq: int, now: str) -> list[RunRow]:
        """Return the due runs of one event, whatever their lane."""
        return self.runs(self._all(sql.DUE_OF_EVENT, (event_seq, now)))

    def take_running(self) -> list[RunRow]:
        """Return the runs whose call was under way in a worker from which this one has taken over."""
        return self.runs(self._all(sql.RUNNING, (self._store.lease.number,)))

    def take_running_of_event(self, event_seq: int) -> list[RunRow]:
        """Return the runs of one event whose call was under way in a worker from which this one has taken over."""
        return self.runs(self._all(sql.RUNNING_OF_EVENT, (event_seq, self._store.lease.number)))

    def still_new(self, events: Sequence[StoredEvent]) -> Sequence[StoredEvent]:
        """Return those of the events, taken by a transaction that was rolled back, that nobody has taken since."""
        days = _by_day((stored.received_on, stored.seq) for stored in events)
        new = {row[0] for day, seqs in days for row in self._execute(sql.on_day(sql.STILL_NEW, day), (seqs,))}
        return [stored for stored in events if stored.seq in new]

    def still_there(self, runs: Sequence[RunRow]) -> Sequence[RunRow]:
        """Return those of the runs, taken by a transaction that was rolled back, that nobody has moved since."""
        now = self.runs((row.values["seq"], row.values["received_on"]) for row in runs)
        before = {row.values["seq"]: row.values for row in runs}
        return [row for row in now if row.values == before[row.values["seq"]]]

    def runs(self, keys: Iterable[RunKey]) -> list[RunRow]:
        """Return these runs with their events and the journal of their steps, in the order of the keys."""
        keys = list(keys)
        found: dict[int, RunRow] = {}
        for day, seqs in _by_day((day, seq) for seq, day in keys):
            steps: dict[int, list[Any]] = defaultdict(list)
            # Locked first: the journal of a run is read under its lock.
            locked = self._all(sql.on_day(sql.RUNS_WITH_EVENTS, day), (seqs,))
            for run_seq, *step in self._execute(sql.on_day(sql.STEPS_OF_RUNS, day), (seqs,)):
                steps[run_seq].append(step)
            for row in locked:
                found[row[0]] = rows.run_row(row, steps[row[0]])
        return [found[seq] for seq, _ in keys if seq in found]

    # Crashes.

    def count_crash(self, seq: int) -> tuple[int, str] | None:
        """Count a crash against an event; return the count and the event's id, None for an unknown event."""
        row = self._one(sql.COUNT_CRASH, (seq,))
        return None if row is None else (row[0], row[1])

    def forget_crashes(self, seq: int) -> None:
        """Take back the suspicion against an event that ran alone and did no harm."""
        self._execute(sql.FORGET_CRASHES, (seq,))

    def park_crashed(self, seq: int, crashes: int, now: str, dead_id: str) -> None:
        """Park an event that took the worker down too often, and end its runs."""
        detail = f"the worker died {crashes} times while it advanced this event"
        self._execute(sql.PARK_CRASHED_EVENT, (detail, seq))
        self._execute(sql.PARK_CRASHED_RUNS, (f"crashed: {detail}", now, seq))
        self._execute(sql.PARK_CRASHED_LETTER, (dead_id, detail, now, seq))

    def suspects(self) -> list[int]:
        """Return the new events that were being advanced when a worker died."""
        return [row[0] for row in self._execute(sql.SUSPECTS)]

    # Deliveries that a broker may bring again.

    def forget_acked(self, epoch: str, tag: int) -> None:
        """Forget the deliveries of an epoch up to this tag: the broker has their acks, and never brings them again."""
        self._execute(sql.FORGET_ACKED, (epoch, tag))

    # The flush.

    def flush(self, changes: Changes) -> None:
        """Write the batch: a few bulk statements, in one order of tables and of keys.

        Raises RowsRefused when the database takes one of the rows for impossible, Contended when another worker was
        faster.
        """
        flush(self, self._store, changes)

    def flushed(self, changes: Changes) -> None:
        """Remember, after the commit, what need not be asked again."""
        self._store.known_chains.update(changes.chains)
        self._store.open_channels.update((row[0], row[4]) for row in changes.unacked)
        # What the batch left for later is there to be taken at once.
        if any(row[EVENT_STATE] == "new" for row in changes.events.values()):
            self._store.look_anew("new")
        for run in (*changes.new_runs, *changes.changed_runs.values()):
            if run.due_at is not None:
                self._store.days.add("due", [run.stored.received_on])
                self._store.look_anew(f"due {run.lane}")

    def hash_of(self, key: Key) -> bytes:
        """Return under which hash an erased number is remembered."""
        return number_hash(self._store.facts["secret"], *key)

    # Helpers of the above.

    def _turn(self, name: str, statement: str, params: dict[str, Any]) -> list[str]:
        """Return the accounts whose turn it is, from behind the last one served, around the end."""
        last = self._store.turns.get(name, "")
        accounts = [row[0] for row in self._execute(statement, {**params, "last": last, "most": _ACCOUNTS_A_TURN})]
        if last and len(accounts) < _ACCOUNTS_A_TURN:
            rest = {**params, "last": "", "most": _ACCOUNTS_A_TURN - len(accounts)}
            accounts = list(dict.fromkeys(accounts + [row[0] for row in self._execute(statement, rest)]))
        if accounts:
            self._store.turns[name] = accounts[-1]
        return accounts

    def _ask_for_each(self, statement: str, keys: Iterable[Key]) -> _Asked:
        """Ask for these keys, account by account; to be read once what is asked together was sent."""
        return [(account, self._execute(statement, (account, names))) for account, names in _grouped(keys).items()]

    def _execute(self, statement: str, params: Any = None) -> psycopg.Cursor[Any]:
        return self.connection.execute(statement, params)

    def _one(self, statement: str, params: Any = None) -> Any:
        return self._execute(statement, params).fetchone()

    def _all(self, statement: str, params: Any = None) -> list[Any]:
        return self._execute(statement, params).fetchall()


def _contacts_in(asked: _Asked) -> dict[Key, Contact]:
    return {(account, row[1]): rows.contact(row) for account, cursor in asked for row in cursor}


def _values_in(asked: _Asked) -> dict[Key, Any]:
    """Return the second column by account and first column."""
    return {(account, row[0]): row[1] for account, cursor in asked for row in cursor}


def _grouped(keys: Iterable[Key]) -> dict[str, list[str]]:
    grouped: dict[str, list[str]] = defaultdict(list)
    for account, name in keys:
        grouped[account].append(name)
    return grouped


def _by_day(dated: Iterable[tuple[str | None, Any]]) -> list[tuple[str, list[Any]]]:
    """Return what is of each day, the days and what is of them in order; what has no day is left out."""
    days: dict[str, list[Any]] = defaultdict(list)
    for day, item in dated:
        if day is not None:
            days[day].append(item)
    return [(day, sorted(items)) for day, items in sorted(days.items())]


def _lock_of(key: Key) -> int:
    """Return which advisory lock stands for a contact. Two that share one wait in vain, once in a blue moon."""
    digest = blake2b(f"{key[0]}\0{key[1]}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)
