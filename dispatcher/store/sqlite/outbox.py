"""The outbox as the relay sees it: rows to hand to the broker, what became of them, and those that nobody knows of."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from datetime import datetime

from dispatcher.engine.records import OutboxRow, as_text
from dispatcher.events.identity import uuid7
from dispatcher.store.sqlite import statements as sql


class SqliteOutbox:
    """The outbox within one transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def lanes(self) -> list[str]:
        """Return the lanes that have rows to send, due or not."""
        return [row[0] for row in self._connection.execute(sql.OUTBOX_LANES)]

    def due(self, lane: str, now: str, limit: int) -> list[OutboxRow]:
        """Return up to `limit` rows of this lane that are due, the longest due first."""
        return [OutboxRow(*row) for row in self._connection.execute(sql.OUTBOX_DUE, (lane, now, limit))]

    def next_due(self, lane: str) -> str | None:
        """Return when the next row of this lane falls due, None when it has none."""
        found: str | None = self._connection.execute(sql.OUTBOX_NEXT, (lane,)).fetchone()[0]
        return found

    def sending(self) -> list[OutboxRow]:
        """Return the rows that were handed to a publisher and have no confirm on record."""
        return [OutboxRow(*row) for row in self._connection.execute(sql.OUTBOX_SENDING)]

    def claim(self, rows: Iterable[OutboxRow]) -> None:
        """Record that these rows are about to be published: should the worker die, they may have been."""
        self._connection.executemany(sql.CLAIM_OUTBOX, [(row.seq,) for row in rows])

    def confirmed(self, rows: Sequence[OutboxRow]) -> None:
        """Drop rows that the broker has; the texts among them are sent."""
        self._connection.executemany(sql.DELETE_OUTBOX, [(row.seq,) for row in rows])
        texts = [(row.message_id,) for row in rows if row.is_text]
        if texts:
            self._connection.executemany(sql.TEXT_SENT, texts)

    def put_off(self, row: OutboxRow, *, attempt: int, not_before: str, error: str | None) -> None:
        """Try a row again later."""
        self._connection.execute(sql.PUT_OFF_OUTBOX, (attempt, not_before, error, row.seq))

    def confirm_reported(self, rows: Iterable[OutboxRow]) -> set[int]:
        """Drop the texts among these that a transport has reported on: they were published. Return their numbers."""
        reported = [row for row in rows if row.is_text and self._was_reported(row)]
        if reported:
            self.confirmed(reported)
        return {row.seq for row in reported}

    def withdraw_opted_out(self, rows: Iterable[OutboxRow]) -> set[int]:
        """Take back the texts among these to people who opted out while they waited. Return their numbers."""
        execute, withdrawn = self._connection.execute, set()
        for row in rows:
            found = execute(sql.TEXT_OPTED_OUT, (row.message_id,)).fetchone() if row.is_text else None
            if found is not None:
                execute(sql.DELETE_OUTBOX, (row.seq,))
                execute(sql.TEXT_OTHERWISE, ("failed", f"opted_out: {found[0]}", row.message_id))
                withdrawn.add(row.seq)
        return withdrawn

    def hold(self, row: OutboxRow, reason: str, now: datetime) -> bool:
        """Leave a row to a person: nobody knows whether it was published. Its run is held too, if it was done.

        Return whether there is such a row: an erasure takes away even what is in flight.
        """
        execute = self._connection.execute
        if execute(sql.HOLD_OUTBOX, (reason, row.seq)).rowcount == 0:
            return False
        execute(sql.TEXT_OTHERWISE, ("held", reason, row.message_id))
        execute(sql.HOLD_DONE_RUN, (f"{row.step}: unknown: {reason}", row.run_id))
        hint = f"`dispatcher runs resolve {row.run_id} --sent` or `--not-sent` ends the hold"
        self._letter(row, f"step {row.step}: {reason}; {hint}", now)
        return True

    def give_up(self, row: OutboxRow, reason: str, now: datetime) -> bool:
        """Drop a row whose fate nobody knows; its text counts as failed. Return whether there was such a row."""
        if self._connection.execute(sql.DELETE_OUTBOX, (row.seq,)).rowcount == 0:
            return False
        self._connection.execute(sql.TEXT_OTHERWISE, ("failed", reason, row.message_id))
        self._letter(row, f"step {row.step}: {reason}; `on_unknown: fail` gave it up", now)
        return True

    def _was_reported(self, row: OutboxRow) -> bool:
        """Whether a transport has reported on this text, so that it must have been published."""
        found = self._connection.execute(sql.TEXT_STATE, (row.message_id,)).fetchone()
        return found is not None and found[0] not in ("queued", "held")

    def _letter(self, row: OutboxRow, detail: str, now: datetime) -> None:
        dead_id = uuid7(int(now.timestamp() * 1000))
        letter = (dead_id, "run", "unknown", detail, row.account_key, row.event_id, row.run_id, None, as_text(now))
        self._connection.execute(sql.INSERT_DEAD_LETTER, letter)


def settle_held(connection: sqlite3.Connection, message_id: str) -> None:
    """End the hold on a text that a transport has reported on: it was published."""
    for run_id, step in connection.execute(sql.DELETE_HELD, (message_id,)).fetchall():
        held = {entry[0] for entry in connection.execute(sql.HELD_OF_RUN, (run_id,))}
        if not held:
            connection.execute(sql.RELEASE_RUN, (run_id,))
        if step not in held:
            connection.execute(sql.CLOSE_UNKNOWN_LETTERS, (run_id, f"step {step}: "))
