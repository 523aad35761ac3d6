"""The embedded store: one SQLite file, one writer connection, WAL, synchronous=FULL.

All writes and all checkpoints go through the writer connection, so the WAL-reset bug of SQLite 3.7.0 to 3.51.2
(two connections checkpointing at one instant) cannot be met; other processes open the file read-only.
Python's own transaction handling is off (`isolation_level=None`): BEGIN IMMEDIATE, COMMIT and ROLLBACK are ours.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dispatcher import failpoints
from dispatcher.engine.ports import Key
from dispatcher.engine.records import Changes, RunRow, StoredEvent
from dispatcher.errors import RowsRefused, StoreUnusable
from dispatcher.plugins.context import Contact, Message
from dispatcher.store import migrate, rows
from dispatcher.store import statements as sql
from dispatcher.store.lock import StoreLock
from dispatcher.store.suppressions import ERASED, number_hash

if TYPE_CHECKING:
    import sqlalchemy

T = TypeVar("T")

# How many accounts share one batch at most; the others have their turn in the next ones.
_ACCOUNTS_A_TURN = 32
# 16 MiB of WAL before a checkpoint: pages that many batches touch are then written back once, not each time.
_CHECKPOINT_PAGES = 4096
_CACHE_KIB = 32 * 1024
_ROWS_REFUSED = (sqlite3.IntegrityError, sqlite3.DataError, sqlite3.ProgrammingError, sqlite3.InterfaceError)


class SqliteStore:
    """The one process's hold on a store. `facts` are what the store says of itself, such as `installation`."""

    def __init__(self, path: Path, lock: StoreLock, connection: sqlite3.Connection) -> None:
        self.path = path
        self.connection = connection
        self._lock = lock
        self.facts: dict[str, str] = dict(connection.execute("SELECT name, value FROM facts").fetchall())
        self.seqs: dict[str, int] = {
            table: connection.execute(f"SELECT coalesce(max(seq), 0) FROM {table}").fetchone()[0]  # noqa: S608
            for table in ("events", "runs")
        }
        self.suppressed: set[bytes] = {row[0] for row in connection.execute(sql.SUPPRESSED).fetchall()}
        self.turns: dict[str, str] = {}
        self.known_chains: set[str] = set()

    @classmethod
    def open(cls, path: Path) -> SqliteStore:
        """Take the lock and open the store, made or migrated where need be.

        Raises StoreInUse while another process has it; StoreUnusable where it cannot be read or written, is no
        store, or was made by a newer version. Nothing is changed then.
        """
        lock = StoreLock(path)
        lock.acquire()
        try:
            with cls.refusals(path):
                return cls(path, lock, _connect(path))
        except BaseException:
            lock.release()
            raise

    @staticmethod
    @contextmanager
    def refusals(path: Path) -> Iterator[None]:
        """Turn what SQLite says of the store at `path` into StoreUnusable, with what to do about it."""
        try:
            yield
        except sqlite3.Error as error:
            raise _unusable(path, error) from error

    def close(self) -> None:
        """Check the journal in, close the file, give the lock back."""
        self.connection.close()
        self._lock.release()

    @contextmanager
    def transaction(self) -> Iterator[SqliteTransaction]:
        """Open a transaction; leaving it without `commit` rolls everything back.

        Raises StoreUnusable when the file cannot be written (read-only, disk full, I/O error): nothing was kept.
        """
        transaction = SqliteTransaction(self)
        with self.refusals(self.path):
            try:
                self.connection.execute("BEGIN IMMEDIATE")
                yield transaction
            finally:
                if self.connection.in_transaction:
                    self.connection.execute("ROLLBACK")

    def administer(self, change: Callable[[sqlalchemy.Connection], T]) -> T:
        """Run a rare change, written in SQLAlchemy Core, in one transaction on the writer connection."""
        import sqlalchemy  # noqa: PLC0415 - dear to import, and seldom needed
        from sqlalchemy.pool import StaticPool  # noqa: PLC0415

        engine = sqlalchemy.create_engine(
            "sqlite://", creator=lambda: self.connection, poolclass=StaticPool, pool_reset_on_return=None
        )
        try:
            # Our transaction lies within SQLAlchemy's connection, which rolls back when it is opened and left.
            with engine.connect() as connection, self.transaction() as transaction:
                result = change(connection)
                transaction.commit()
        except sqlalchemy.exc.DBAPIError as error:
            raise _unusable(self.path, error.orig if isinstance(error.orig, sqlite3.Error) else error) from error
        return result

    # What the worker asks between batches.

    def next_due(self) -> str | None:
        """Return when the next run falls due, None when none waits."""
        with self.refusals(self.path):
            found = self.connection.execute(sql.NEXT_DUE).fetchone()[0]
        return None if found is None else str(found)

    def queued_calls(self) -> dict[str, int]:
        """Return how many calls wait for a slot, by lane."""
        with self.refusals(self.path):
            return dict(self.connection.execute(sql.QUEUED_LANES).fetchall())

    def chain_text(self, digest: str) -> str | None:
        """Return the text of a pinned chain."""
        with self.refusals(self.path):
            row = self.connection.execute(sql.CHAIN_TEXT, (digest,)).fetchone()
        return None if row is None else str(row[0])


class SqliteTransaction:
    """One transaction: bulk reads, what is to be taken, one flush, commit."""

    def __init__(self, store: SqliteStore) -> None:
        self._store = store
        self._connection = store.connection
        self._seqs = store.seqs

    def commit(self) -> None:
        """Make it durable: when this returns, it is synced to the disk."""
        failpoints.reach("batch.before_commit")
        self._connection.execute("COMMIT")
        failpoints.reach("batch.after_commit")

    # Reads: see engine.ports.Reads. A probe by primary key costs a microsecond here, so bulk means a loop.

    def known_events(self, keys: Iterable[Key]) -> dict[Key, bytes]:
        return {key: row[0] for key in keys if (row := self._one(sql.KNOWN_EVENT, key)) is not None}

    def contacts(self, keys: Iterable[Key]) -> dict[Key, Contact]:
        return {key: rows.contact(row) for key in keys if (row := self._one(sql.CONTACT, key)) is not None}

    def contact_number(self, account_key: str, contact_key: str) -> str | None:
        row = self._one(sql.CONTACT_NUMBER, (account_key, contact_key))
        return None if row is None else row[0]

    def opt_outs(self, keys: Iterable[Key]) -> dict[Key, str]:
        found = {}
        for key in keys:
            row = self._one(sql.OPT_OUT, key)
            if row is not None:
                found[key] = row[0]
            elif self._store.suppressed and self._hash(key) in self._store.suppressed:
                found[key] = ERASED
        return found

    def message(self, message_id: str) -> Message | None:
        row = self._one(sql.MESSAGE, (message_id,))
        return None if row is None else rows.message(row)

    def family(self, root_id: str) -> tuple[int, bool]:
        row = self._one(sql.FAMILY, (root_id,))
        assert row is not None
        return row[0], bool(row[1])

    def reserve(self, table: str) -> int:
        self._seqs[table] += 1
        return self._seqs[table]

    # What a batch takes.

    def take_new(self, limit: int) -> list[StoredEvent]:
        """Return up to `limit` new events; accounts take turns, and each account's events come in their order."""
        accounts = self._turn("new", sql.ACCOUNTS_WITH_NEW, ())
        taken: list[StoredEvent] = []
        behind = dict.fromkeys(accounts, 0)
        while behind and len(taken) < limit:
            share = max(1, (limit - len(taken)) // len(behind))
            for account, seq in list(behind.items()):
                if len(taken) >= limit:
                    break
                found = self._all(sql.NEW_EVENTS, (account, seq, min(share, limit - len(taken))))
                taken.extend(rows.stored_event(row) for row in found)
                if len(found) < share:
                    del behind[account]
                else:
                    behind[account] = found[-1][0]
        return taken

    def take_event(self, seq: int) -> StoredEvent | None:
        """Return one event if it is new."""
        row = self._one(sql.NEW_EVENT, (seq,))
        return None if row is None else rows.stored_event(row)

    def take_due(self, lane: str, now: str, limit: int) -> list[RunRow]:
        """Return up to `limit` runs of this lane that are due, the longest due first.

        Where more are due than fit, half of the room goes to accounts in turns, so that none starves another.
        """
        seqs = [row[0] for row in self._all(sql.DUE, (lane, now, limit))]
        if len(seqs) == limit and limit > 1:
            chosen = dict.fromkeys(seqs[: limit // 2])
            accounts = self._turn(f"due {lane}", sql.ACCOUNTS_WITH_DUE, (lane,))
            share = max(1, (limit - len(chosen)) // max(1, len(accounts)))
            for account in accounts:
                chosen.update((row[0], None) for row in self._all(sql.DUE_OF_ACCOUNT, (lane, account, now, share)))
            chosen.update(dict.fromkeys(seqs))
            seqs = list(chosen)[:limit]
        return self.runs(seqs)

    def take_due_of_event(self, event_seq: int, now: str) -> list[RunRow]:
        """Return the due runs of one event, whatever their lane."""
        return self.runs([row[0] for row in self._all(sql.DUE_OF_EVENT, (event_seq, now))])

    def take_running(self) -> list[RunRow]:
        """Return the runs whose call was under way: at the start of a worker, those that a crash left behind."""
        return self.runs([row[0] for row in self._all(sql.RUNNING, ())])

    def take_running_of_event(self, event_seq: int) -> list[RunRow]:
        """Return the runs of one event whose call was under way."""
        return self.runs([row[0] for row in self._all(sql.RUNNING_OF_EVENT, (event_seq,))])

    def runs(self, seqs: Iterable[int]) -> list[RunRow]:
        """Return these runs with their events and the journal of their steps."""
        found = []
        for seq in seqs:
            row = self._one(sql.RUN_WITH_EVENT, (seq,))
            if row is not None:
                found.append(rows.run_row(row, self._all(sql.STEPS_OF_RUN, (seq,))))
        return found

    # Crashes.

    def count_crash(self, seq: int) -> tuple[int, str] | None:
        """Count a crash against an event; return the count and the event's state, None for an unknown event."""
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
        if changes.outbox:
            many(sql.INSERT_OUTBOX, changes.outbox)
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

    def _one(self, statement: str, params: Sequence[Any]) -> Any:
        return self._connection.execute(statement, params).fetchone()

    def _all(self, statement: str, params: Sequence[Any]) -> list[Any]:
        return self._connection.execute(statement, params).fetchall()


def _connect(path: Path) -> sqlite3.Connection:
    version = migrate.version_at(path)
    migrate.refuse_newer(version)
    if version != migrate.HEAD:
        migrate.upgrade(path)
    # The loop's thread is the only user; `check_same_thread` is off because tests and the CLI open in one thread
    # and close in another.
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, cached_statements=128)
    for pragma in (
        "journal_mode = WAL",
        "synchronous = FULL",
        f"wal_autocheckpoint = {_CHECKPOINT_PAGES}",
        f"cache_size = -{_CACHE_KIB}",
        "temp_store = MEMORY",
        "busy_timeout = 5000",
        "mmap_size = 0",
    ):
        connection.execute(f"PRAGMA {pragma}").fetchall()
    # Proves at once that the file can be written, rather than with the first event.
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("ROLLBACK")
    return connection


def _unusable(path: Path, error: Exception) -> StoreUnusable:
    said = str(error)
    hints = {
        "full": "Free some space; work goes on by itself.",
        "disk I/O": "The disk is full, or it fails: free some space, and look into the system's log.",
        "readonly": "The file and its folder must be writable for the user that runs the dispatcher.",
        "unable to open": "The folder must exist and be writable for the user that runs the dispatcher.",
        "not a database": "Name another file with --store sqlite:///PATH.",
        "malformed": "Restore the store from a backup; `dispatcher doctor` tells what is damaged.",
        "locked": "Another program has the file open for writing; only the dispatcher may write a store.",
    }
    hint = next((text for word, text in hints.items() if word in said), "See the message of SQLite above.")
    return StoreUnusable(f"the store {path} cannot be used: {said}.", hint=hint)
