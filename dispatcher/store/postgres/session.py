"""One connection to PostgreSQL: made, made again, and what its errors mean to those above.

A connection that broke is replaced by the next one who asks. What was under way on it is rolled back by the server,
except for a commit whose answer was lost: that is settled by asking what became of the transaction (`fate`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, Literal, NamedTuple

import psycopg
from psycopg import errors

from dispatcher.errors import Contended, LeaseLost, StoreUnusable
from dispatcher.store.postgres.clock import DatabaseClock
from dispatcher.store.postgres.connecting import connect, said_by, unusable

_CONNECT_SECONDS: Final = 5
_PAUSE_SECONDS: Final = 0.25
# Longer than any batch of another worker takes. Who holds a row for longer is in trouble, and is not waited for.
_LOCK_SECONDS: Final = 2
# A server that fell silent is given up before a handler that waits for it would count as hung.
_SILENCE_SECONDS: Final = 15
# Nobody knows whether the commit went through; how long whoever did it waits to be told, if nobody says otherwise.
_PATIENCE_SECONDS: Final = 30.0

_BEGIN: Final = "BEGIN; SELECT extract(epoch FROM clock_timestamp())::float8"
# The number of a transaction that a crash undid may be given again. A worker's own row tells whether its transaction
# wrote it last; else it counts whether there was a crash, which begins these statistics anew.
_FATE: Final = """
SELECT pg_xact_status(%(xid)s::text::xid8), CASE
    WHEN %(worker)s::bigint IS NULL THEN %(since)s::text = (SELECT stats_reset::text FROM pg_stat_bgwriter)
    ELSE (
        SELECT xmin::text::numeric = %(xid)s::text::numeric %% 4294967296
        FROM workers WHERE number = %(worker)s::bigint
    )
END
"""
_END_BACKEND: Final = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
    "WHERE pid = %s AND backend_xid = (%s::numeric %% 4294967296)::text::xid"
)

# Another transaction was faster, or two waited for each other: nothing was kept, and the next try finds things settled.
_CONTENTION: Final = (
    errors.DeadlockDetected,
    errors.SerializationFailure,
    errors.LockNotAvailable,
    errors.UniqueViolation,
)

# The connection is of no use any more; the last is a statement that the driver takes for prepared and the server not.
_BROKEN: Final = (psycopg.OperationalError, psycopg.InterfaceError, errors.InvalidSqlStatementName)


class Written(NamedTuple):
    """By what a transaction that has written something is known, should the answer to its commit be lost.

    Its number, and the worker whose row it has written; a command has none, and remembers which run of the server's
    statistics it was in.
    """

    xid: str
    worker: int | None
    since: str | None


Patience = Callable[[str], bool]
Prepare = Callable[["psycopg.Connection[Any]"], None]


class Session:
    """The connection of one thread. `prepare` is run on each new connection before anybody uses it."""

    def __init__(self, url: Callable[[], str], shown: str, clock: DatabaseClock, *, idle_seconds: float) -> None:
        self.shown = shown
        self.clock = clock
        self.prepare: list[Prepare] = []
        # Asked while a lost commit is being settled, with what is in the way: False gives up.
        self.patience: Patience | None = None
        self._url = url
        self._idle_seconds = idle_seconds
        self._connection: psycopg.Connection[Any] | None = None
        self._notified = False
        # When the present connection was made, on the monotonic clock.
        self.connected_at = 0.0
        self._pid = 0

    @property
    def connection(self) -> psycopg.Connection[Any]:
        """The connection, made anew where the last one broke. Raises StoreUnusable when none can be made."""
        if self._connection is None or self._connection.closed:
            self._connection = None
            self._connection = self._connect()
        return self._connection

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            with suppress(psycopg.Error):
                self._connection.close()
            self._connection = None

    @property
    def descriptor(self) -> int | None:
        """The socket, None while there is none."""
        return None if self._connection is None or self._connection.closed else self._connection.fileno()

    def heard(self) -> bool:
        """Whether a notification has come in since this was asked last; never waits."""
        connection, heard = self._connection, False
        if connection is not None and not connection.closed:
            try:
                connection.pgconn.consume_input()
            except psycopg.OperationalError:
                self.close()  # whoever needs it next says what is wrong
                return False
            while connection.pgconn.notifies() is not None:
                heard = True
        heard, self._notified = heard or self._notified, False
        return heard

    def _note(self, _notify: psycopg.Notify) -> None:
        self._notified = True

    def begin(self) -> psycopg.Connection[Any]:
        """Open a transaction, and set the clock by the way; a connection that broke while idle is replaced."""
        fresh = self._connection is None or self._connection.closed
        while True:
            connection = self.connection
            try:
                cursor = connection.execute(_BEGIN)
            except psycopg.OperationalError:
                self.close()
                if fresh:
                    raise
                fresh = True
                continue
            cursor.nextset()
            row = cursor.fetchone()
            assert row is not None
            self.clock.set(row[0])
            return connection

    def rollback(self) -> None:
        """Leave the transaction, if there is one; a connection that cannot do that is given up."""
        connection = self._connection
        if connection is None or connection.closed:
            return
        status = connection.info.transaction_status
        if status == psycopg.pq.TransactionStatus.IDLE:
            return
        try:
            if status == psycopg.pq.TransactionStatus.INERROR:
                # The driver's own rollback makes it forget what it has prepared: behind an error in a pipeline the
                # server has skipped what the driver takes for prepared there.
                connection.rollback()
            else:
                connection.execute("ROLLBACK")
        except psycopg.Error:
            self.close()

    def commit(self, written: Written | None) -> None:
        """Commit; when the answer is lost, find out what became of the transaction. None has written nothing.

        Raises StoreUnusable when it was rolled back, LeaseLost when nobody can tell.
        """
        connection, pid = self._connection, self._pid
        try:
            # Not `self.connection`: a new one would have nothing to commit, and say that it has.
            cursor = _not_closed(connection).execute("COMMIT")
        except psycopg.OperationalError as error:
            self.close()
            if written is None:
                return
            if self._fate(written, pid, said_by(error)) != "committed":
                raise StoreUnusable(
                    f"the connection to {self.shown} broke before a commit; nothing of it was kept.",
                    hint="It is tried again.",
                ) from error
            return
        if cursor.statusmessage != "COMMIT":
            raise StoreUnusable(f"{self.shown} did not commit: {cursor.statusmessage}.", hint="It is tried again.")

    def _fate(self, written: Written, pid: int, reason: str) -> Literal["committed", "aborted"]:
        """Return what became of a transaction whose commit got no answer."""
        since = time.monotonic()
        while (self.patience or (lambda _: time.monotonic() - since < _PATIENCE_SECONDS))(reason):
            try:
                row = self.connection.execute(_FATE, written._asdict()).fetchone()
                match row:
                    case ("aborted", _):
                        return "aborted"
                    case ("committed", True):
                        return "committed"
                    case ("committed", False) if written.worker is not None:
                        return "aborted"
                    case ("committed", _):
                        break  # by itself, or by another one that got its number; or the worker's row is gone
                # The server has not noticed yet that we are gone.
                self.connection.execute(_END_BACKEND, (pid, written.xid))
            except errors.InvalidParameterValue:
                return "aborted"  # a number that was not given out yet: the server crashed, and has forgotten it
            except psycopg.Error as error:
                reason = said_by(error)
                self.close()
            except StoreUnusable as error:
                reason = error.message
                self.close()
            time.sleep(_PAUSE_SECONDS)
        raise LeaseLost(
            f"{self.shown} was lost in the middle of a commit: nobody knows whether that went through.",
            hint="The store is whole either way; look at what it shows once it can be reached.",
        )

    @contextmanager
    def refusals(self) -> Iterator[None]:
        """Turn what PostgreSQL says into the errors that those above know."""
        try:
            yield
        except _CONTENTION as error:
            raise Contended(f"another process was faster: {said_by(error)}.") from error
        except psycopg.Error as error:
            # Whatever it was, the next one begins on a connection that is known to work.
            if isinstance(error, _BROKEN):
                self.close()
            raise unusable(self.shown, error) from error

    def _connect(self) -> psycopg.Connection[Any]:
        url = self._url()
        # What it warns of at each error within a pipeline is told by that error.
        logging.getLogger("psycopg").setLevel(logging.ERROR)
        connection = connect(
            url, autocommit=True, prepare_threshold=2, connect_timeout=_CONNECT_SECONDS, keepalives_idle=5,
            keepalives_interval=3, keepalives_count=3, tcp_user_timeout=_SILENCE_SECONDS * 1000,
        )  # fmt: skip
        # Those that come in with an answer, too: the driver would keep them for ever.
        connection.add_notify_handler(self._note)
        try:
            # A commit counts once it is on the disk, whatever the server's default; a stricter one is left alone.
            # Compiling queries that take a tenth of a millisecond does not pay. All that a batch asks for is found by
            # an index; but a plan that was made while a table was small would read it as a whole for as long as the
            # plan is kept, which is until the table's next analysis.
            connection.execute(
                "SELECT set_config('lock_timeout', %s, false), set_config('jit', 'off', false), "
                "set_config('idle_in_transaction_session_timeout', %s, false), set_config('TimeZone', 'UTC', false), "
                "set_config('enable_seqscan', 'off', false), set_config('enable_hashjoin', 'off', false), "
                "set_config('enable_mergejoin', 'off', false), "
                "set_config('default_transaction_isolation', 'read committed', false), "
                "CASE WHEN current_setting('synchronous_commit') IN ('off', 'local') "
                "THEN set_config('synchronous_commit', 'on', false) END",
                (f"{_LOCK_SECONDS}s", f"{int(self._idle_seconds * 1000)}ms"),
            )
            for prepare in self.prepare:
                prepare(connection)
        except psycopg.Error as error:
            connection.close()
            raise unusable(url, error) from error
        except BaseException:
            connection.close()
            raise
        self.connected_at = time.monotonic()
        self._pid = connection.info.backend_pid
        return connection


def _not_closed(connection: psycopg.Connection[Any] | None) -> psycopg.Connection[Any]:
    if connection is None or connection.closed:
        raise psycopg.OperationalError("the connection is closed")
    return connection
