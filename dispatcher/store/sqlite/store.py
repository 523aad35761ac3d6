"""The embedded store: one SQLite file, one writer connection, WAL, synchronous=FULL.

All writes and all checkpoints go through the writer connection, so the WAL-reset bug of SQLite 3.7.0 to 3.51.2
(two connections checkpointing at one instant) cannot be met; other processes open the file read-only.
Python's own transaction handling is off (`isolation_level=None`): BEGIN IMMEDIATE, COMMIT and ROLLBACK are ours.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from dispatcher.clock import Clock, SystemClock
from dispatcher.errors import StoreUnusable
from dispatcher.store import migrate
from dispatcher.store.sqlite import statements as sql
from dispatcher.store.sqlite.lock import StoreLock
from dispatcher.store.sqlite.outbox import SqliteOutbox
from dispatcher.store.sqlite.transaction import SqliteTransaction

if TYPE_CHECKING:
    import sqlalchemy

T = TypeVar("T")

# 16 MiB of WAL before a checkpoint: pages that many batches touch are then written back once, not each time.
_CHECKPOINT_PAGES = 4096
_CACHE_KIB = 32 * 1024


class SqliteStore:
    """The one process's hold on a store: see `ports.Store`."""

    shared = False

    def __init__(self, path: Path, lock: StoreLock, connection: sqlite3.Connection) -> None:
        self.path = path
        self.connection = connection
        self.clock: Clock = SystemClock()
        self._lock = lock
        self.facts: dict[str, str] = dict(connection.execute("SELECT name, value FROM facts").fetchall())
        self.seqs: dict[str, int] = {
            table: connection.execute(f"SELECT coalesce(max(seq), 0) FROM {table}").fetchone()[0]  # noqa: S608
            for table in ("events", "runs", "outbox")
        }
        self.suppressed: set[bytes] = {row[0] for row in connection.execute(sql.SUPPRESSED).fetchall()}
        self.turns: dict[str, str] = {}
        self.known_chains: set[str] = set()

    @property
    def shown(self) -> str:
        """The file, as people and logs may see it."""
        return str(self.path)

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

    def within(self, connection: sqlalchemy.Connection) -> SqliteTransaction:
        """Return a view of the transaction that `administer` has open; it ends with that one."""
        return SqliteTransaction(self)

    def prove(self) -> None:
        """Nothing is to be proven: the lock of the file is held until the process ends."""

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

    def next_outbox_due(self, lane: str) -> str | None:
        """Return when the next row of the outbox falls due in this lane, None when it has none."""
        with self.refusals(self.path):
            return SqliteOutbox(self.connection).next_due(lane)

    def chain_text(self, digest: str) -> str | None:
        """Return the text of a pinned chain."""
        with self.refusals(self.path):
            row = self.connection.execute(sql.CHAIN_TEXT, (digest,)).fetchone()
        return None if row is None else str(row[0])


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
