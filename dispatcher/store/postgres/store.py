"""The shared store: one PostgreSQL database, written by any number of workers and commands on any machine.

Nothing is acknowledged before its commit has returned, with `synchronous_commit` on at least. What a batch takes is
locked for the length of its transaction (see `transaction`); what outlasts one is held by a lease (see `leases`). The
database's clock is everybody's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar

import psycopg

from dispatcher import urls
from dispatcher.errors import Contended, LeaseLost, StoreUnusable
from dispatcher.store.postgres import migrate, partitions
from dispatcher.store.postgres import statements as sql
from dispatcher.store.postgres.blocks import Blocks
from dispatcher.store.postgres.clock import DatabaseClock
from dispatcher.store.postgres.days import Days
from dispatcher.store.postgres.leases import Lease
from dispatcher.store.postgres.session import Session
from dispatcher.store.postgres.transaction import PostgresTransaction

if TYPE_CHECKING:
    import sqlalchemy

    from dispatcher.engine.records import OutboxRow, RunKey

T = TypeVar("T")

# A command that is in no worker's way holds nothing for long; a worker says how long its lease is.
_IDLE_SECONDS: Final = 60.0
# How often a change that met another one is tried.
_TRIES: Final = 5
# For how long batches do not wait for contacts, after one had to wait too long.
_IMPATIENT_SECONDS: Final = 10.0


class PostgresStore:
    """One process's way into a shared store. `facts` are what the store says of itself, such as `installation`."""

    shared = True

    def __init__(self, session: Session, *, lease_seconds: float) -> None:
        self.session = session
        self.clock: DatabaseClock = session.clock
        self.lease = Lease(session, lease_seconds)
        self.blocks = Blocks()
        self.days = Days()
        self.known_chains: set[str] = set()
        # (epoch, queue) of the channels that are on record as this worker's.
        self.open_channels: set[tuple[str, str]] = set()
        self.turns: dict[str, str] = {}
        self._wait_again_at = 0.0
        # After a look that found nothing, for how many seconds the next one is spared.
        self.look_pause = 0.0
        self._looked: dict[str, float] = {}
        # At each connection: a server that comes back may bring a store that somebody has migrated meanwhile.
        session.prepare.append(lambda connection: migrate.refuse_other_schemas(connection, session.shown))
        with session.refusals():
            found = session.connection.execute("SELECT name, value FROM facts").fetchall()
        self.facts: dict[str, str] = dict(found)
        self.suppressed: set[bytes] = set()

    @classmethod
    def open(
        cls, url: str | Callable[[], str], *, shown: str | None = None, lease_seconds: float = _IDLE_SECONDS
    ) -> PostgresStore:
        """Connect to the store, made or migrated where need be; `url` is asked for at each connection.

        Raises StoreUnusable where it cannot be reached or written, is no store, or was made by a newer version.
        """
        asked = url if callable(url) else lambda: url
        migrate.upgrade(asked())
        session = Session(asked, shown or urls.shown(asked()), DatabaseClock(), idle_seconds=lease_seconds)
        try:
            return cls(session, lease_seconds=lease_seconds)
        except BaseException:
            session.close()
            raise

    @property
    def shown(self) -> str:
        """The store's URL as people and logs may see it."""
        return self.session.shown

    @property
    def connection(self) -> psycopg.Connection[Any]:
        """The connection itself."""
        return self.session.connection

    def close(self) -> None:
        """Close the connection."""
        self.session.close()

    @contextmanager
    def transaction(self) -> Iterator[PostgresTransaction]:
        """Open a transaction; leaving it without `commit` rolls everything back.

        Raises StoreUnusable while the server cannot be reached or takes no writes, Contended when another process was
        faster, LeaseLost when this worker was taken for dead: nothing was kept.
        """
        with self.session.refusals():
            try:
                if self.lease.number is not None:
                    self.days.look(self.connection, self.clock.now())
                yield PostgresTransaction(self, self.session.begin())
            finally:
                self.session.rollback()

    def within(self, connection: sqlalchemy.Connection) -> PostgresTransaction:
        """Return a view of the transaction that `administer` has open; it ends with that one."""
        raw = connection.connection.driver_connection
        assert isinstance(raw, psycopg.Connection)
        return PostgresTransaction(self, raw)

    def prove(self) -> None:
        """Prove that this worker's lease still holds, unless that was proven a moment ago: it is about to act outside.

        Raises LeaseLost where it does not, or where that cannot be told.
        """
        try:
            self.lease.beat()
        except (Contended, StoreUnusable) as error:
            raise LeaseLost(
                f"nobody can tell whether this worker was taken for dead meanwhile: {error.message}",
                hint="It ends, to be started again; nothing that it had in hand was lost.",
            ) from error

    def administer(self, change: Callable[[sqlalchemy.Connection], T]) -> T:
        """Run a rare change, written in SQLAlchemy Core, in one transaction; again where it met another one."""
        for _ in range(_TRIES - 1):
            with suppress(Contended):
                return self._administer(change)
        return self._administer(change)

    def _administer(self, change: Callable[[sqlalchemy.Connection], T]) -> T:
        import sqlalchemy  # noqa: PLC0415 - dear to import, and seldom needed
        from sqlalchemy.pool import StaticPool  # noqa: PLC0415

        with self.session.refusals():
            raw = self.session.begin()
            engine = sqlalchemy.create_engine(
                "postgresql+psycopg://", creator=lambda: raw, poolclass=StaticPool, pool_reset_on_return=None,
                use_native_hstore=False,
            )  # fmt: skip
            try:
                with engine.connect() as connection:
                    # Getting to know the server, SQLAlchemy has rolled back.
                    raw.execute("BEGIN")
                    result = change(connection)
                    if self.lease.number is None:
                        raw.execute(sql.NOTIFY)
                    self.session.commit(self.lease.prove(raw))
            except sqlalchemy.exc.DBAPIError as error:
                if isinstance(error.orig, psycopg.Error):
                    raise error.orig from error
                raise
            finally:
                self.session.rollback()
            return result

    # A worker's place among the others.

    def join(self, name: str, *, look_pause: float) -> int:
        """Enter this process among the workers, by a number that none ever had; see `leases`."""
        with self.session.refusals():
            self.session.prepare.append(_listen)
            number = self.lease.join(name)
            _listen(self.session.connection)
        self.look_pause = look_pause
        return number

    def take_over(
        self, surely: list[int], settle: Callable[[PostgresTransaction, list[OutboxRow]], None] | None
    ) -> tuple[list[int], list[RunKey]]:
        """Take over the work of dead workers; return their numbers, and the runs whose call was under way.

        `settle` is given what they were publishing, within the same transaction; a worker without a broker has nobody
        for that, and leaves it to others. The runs are this worker's when this returns; should it die, the next one
        takes them over from it.
        """
        with self.transaction() as transaction:
            connection = transaction.connection
            dead = self.lease.dead(connection, surely)
            runs = connection.execute(sql.TAKE_RUNS, (self.lease.number, dead)).fetchall()
            left = transaction.outbox.take_over(dead) if settle is not None else []
            if settle is not None and left:
                settle(transaction, left)
            if not dead and not runs and not left:
                return [], []
            connection.execute(sql.FORGET_CHANNELS, (dead,))
            connection.execute(sql.BURY, (dead,))
            transaction.commit()
        return dead, runs

    def anyone_silent(self) -> bool:
        """Whether a worker seems dead whose work cannot be taken over yet."""
        with self._reading():
            return self.lease.anyone_silent(self.connection)

    def keep_channels(self, epochs: Collection[str]) -> None:
        """Record that of this worker's channels only these are open still, and that it has nothing of others in hand.

        What it has remembered of the others may come again, to anybody.
        """
        with self.session.refusals():
            self.connection.execute(sql.KEEP_CHANNELS, (self.lease.number, list(epochs)))

    def ensure_partitions(self) -> None:
        """Make sure that the tables have a partition for today and the days to come."""
        with self.session.refusals():
            self.session.rollback()
            partitions.ensure(self.session.connection, self.clock.now().strftime("%Y-%m-%d"))

    # What the worker asks between batches.

    @property
    def waits(self) -> bool:
        """Whether a batch waits for contacts that another worker has in hand."""
        return time.monotonic() >= self._wait_again_at

    def wait_no_more(self) -> None:
        """For a while, take what can be had at once: somebody holds a contact for longer than any batch takes."""
        self._wait_again_at = time.monotonic() + _IMPATIENT_SECONDS

    def worth_a_look(self, what: str) -> bool:
        """Whether to look for something now: not if a look found nothing a moment ago."""
        return time.monotonic() >= self._looked.get(what, 0.0)

    def looked(self, what: str, *, found: bool) -> None:
        """Note what a look came to."""
        self._looked[what] = 0.0 if found else time.monotonic() + self.look_pause

    def look_everywhere(self) -> bool:
        """Look into all days with the next look, until `look_narrowly`; False when that was so already."""
        before, self.days.all = self.days.all, True
        return not before

    def look_narrowly(self) -> None:
        """Look into the days again that are known to have something."""
        self.days.all = False

    def look_anew(self, what: str | None = None) -> None:
        """There may be something now that was not there a moment ago."""
        if what is None:
            self._looked.clear()
        else:
            self._looked.pop(what, None)

    @property
    def descriptor(self) -> int | None:
        """Where something can be read once another process has told that there is something to do; see `heard`."""
        return self.session.descriptor

    def heard(self) -> bool:
        """Whether another process has told so since this was asked last."""
        heard = self.session.heard()
        if heard:
            self.look_anew()
        return heard

    def next_due(self) -> str | None:
        """Return when the next run falls due, None when none waits."""
        return self._value(sql.NEXT_DUE)

    def queued_calls(self) -> dict[str, int]:
        """Return how many calls wait for a slot, by lane."""
        with self._reading():
            return dict(self.connection.execute(sql.within(sql.QUEUED_LANES, self.days.of("due"))).fetchall())

    def next_outbox_due(self, lane: str) -> str | None:
        """Return when the next row of the outbox falls due in this lane, None when it has none."""
        return self._value(sql.OUTBOX_NEXT, (lane,))

    def chain_text(self, digest: str) -> str | None:
        """Return the text of a pinned chain."""
        return self._value(sql.CHAIN_TEXT, (digest,))

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Tell what keeps a single read from its answer as a fault of the store: no batch is tried again for it."""
        try:
            with self.session.refusals():
                yield
        except Contended as error:
            raise StoreUnusable(error.message, hint="It is tried again.") from error

    def _value(self, statement: str, params: tuple[Any, ...] = ()) -> str | None:
        with self._reading():
            row = self.connection.execute(statement, params).fetchone()
        return None if row is None or row[0] is None else str(row[0])


def _listen(connection: psycopg.Connection[Any]) -> None:
    connection.execute(sql.LISTEN)
