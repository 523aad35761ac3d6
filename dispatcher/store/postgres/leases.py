"""Who is alive among the workers that share a store, and who takes over from whom.

A worker has a row in `workers`, with a number that no other ever had: the fencing token. Each of its commits proves
that the row is still there. Whoever takes a worker for dead deletes that row in the very transaction that makes its
work his own, so one that was only frozen changes nothing any more.

Dead is who was silent for the length of the lease; or whose session with the server has ended, and who has not come
back for a sixth of it; or of whom somebody on the same machine knows it for sure. The database's clock decides.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterable
from typing import Any, Final

import psycopg

from dispatcher.errors import LeaseLost
from dispatcher.store.postgres import statements as sql
from dispatcher.store.postgres.session import Session, Written

# Which advisory locks are a worker's sign of life; the other half of the key is its number.
SIGN_OF_LIFE: Final = 0x64697370
# A session that ended may be on its way back, which takes a server's restart at the worst; so long it is waited for.
_GRACE: Final = 1 / 6


class Lease:
    """This process's place among the workers."""

    def __init__(self, session: Session, seconds: float) -> None:
        self._session = session
        self._seconds = seconds
        self.number: int | None = None
        self._beaten_at = self._proven_at = 0.0

    def join(self, name: str) -> int:
        """Enter this process among the workers; return its number."""
        connection = self._session.begin()
        try:
            row = connection.execute(sql.JOIN, (name, socket.gethostname(), os.getpid())).fetchone()
            assert row is not None
            connection.execute("COMMIT")
        finally:
            self._session.rollback()
        self.number = int(row[0])
        self._session.prepare.append(self._show_life)
        self._show_life(connection)
        self._beaten_at = self._proven_at = _now()
        return self.number

    def beat(self) -> None:
        """Show that this worker is alive, if it has not just done so. Raises LeaseLost when it was taken for dead."""
        if self.number is not None and _now() - self._beaten_at > self.beat_every:
            with self._session.refusals():
                try:
                    connection = self._session.begin()
                    self.prove(connection)
                    connection.execute("COMMIT")
                    self.proven()
                    self._show_life(connection)  # again: the server may have taken an earlier session for alive then
                finally:
                    self._session.rollback()

    def prove(self, connection: psycopg.Connection[Any]) -> Written | None:
        """Prove within a transaction that this worker still has its lease; return what the transaction is known by.

        Raises LeaseLost. Without a lease, as for a command, there is nothing to prove.
        """
        return self.told(self.ask(connection))

    def ask(self, connection: psycopg.Connection[Any]) -> psycopg.Cursor[Any]:
        """Ask for the proof within a transaction; `told` reads the answer."""
        if self.number is None:
            return connection.execute(sql.TRANSACTION)
        # Before the server looks: should this process be frozen from here on, it is later than it says.
        self._proven_at = _now()
        return connection.execute(sql.PROVE, (self.number,))

    def told(self, answer: psycopg.Cursor[Any]) -> Written | None:
        """Read what the server said to `ask`; see `prove`."""
        row = answer.fetchone()
        if row is None and self.number is not None:
            raise LeaseLost(
                "this worker was silent for so long that another one has taken its work over.",
                hint="It ends, to be started again; nothing that it had in hand was lost.",
            )
        return None if row is None or row[0] is None else Written(*row)

    def proven(self) -> None:
        """What was proven is committed: others see that this worker is alive."""
        self._beaten_at = self._proven_at

    def dead(self, connection: psycopg.Connection[Any], surely: Iterable[int] = ()) -> list[int]:
        """Lock and return the workers that are dead; `surely` are those of whom that is known.

        A worker that has itself been connected for a moment only says nothing about others: after an outage of the
        server all come back, one after the other.
        """
        settled = time.monotonic() - self._session.connected_at > self._seconds * _GRACE
        return [row[0] for row in connection.execute(sql.DEAD, self._asked(surely, settled=settled))]

    def anyone_silent(self, connection: psycopg.Connection[Any]) -> bool:
        """Whether a worker seems dead, though this one may not have been connected for long enough to say so."""
        row = connection.execute(sql.SILENT, self._asked((), settled=True)).fetchone()
        return row is not None and bool(row[0])

    def _asked(self, surely: Iterable[int], *, settled: bool) -> dict[str, Any]:
        return {
            "me": self.number, "surely": list(surely), "settled": settled, "lease": self._seconds,
            "grace": self._seconds * _GRACE, "sign": SIGN_OF_LIFE,
        }  # fmt: skip

    @property
    def beat_every(self) -> float:
        """How often to show that this worker is alive, in seconds."""
        return self._seconds / 8

    @property
    def look_every(self) -> float:
        """How often to look for the dead, in seconds."""
        return self._seconds * _GRACE

    def resign(self, *, clean: bool) -> None:
        """Leave the workers: for good, or, with work that is not settled, so that whoever comes next takes it over."""
        if self.number is None:
            return
        number, self.number = self.number, None
        self._session.prepare.remove(self._show_life)
        with self._session.refusals():
            self._session.connection.execute(sql.LEAVE if clean else sql.LAPSE, (number,))

    def _show_life(self, connection: psycopg.Connection[Any]) -> None:
        connection.execute("SELECT pg_try_advisory_lock(%s, %s)", (SIGN_OF_LIFE, self.number))


def _now() -> float:
    """Return seconds on a clock that goes on while the machine sleeps, where there is one."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()
