"""The outbox as the relay of one worker sees it: rows to hand to the broker, what became of them, and those in doubt.

A row that is `sending` bears the number of the worker that publishes it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import psycopg

from dispatcher.engine.records import OutboxRow, as_text
from dispatcher.events.identity import day_of, uuid7
from dispatcher.store.postgres import statements as sql


class PostgresOutbox:
    """The outbox within one transaction; `worker` is the number of the worker whose it is."""

    def __init__(self, connection: psycopg.Connection[Any], worker: int | None) -> None:
        self._connection = connection
        self._worker = worker

    def lanes(self) -> list[str]:
        """Return the lanes that have rows to send, due or not."""
        return [row[0] for row in self._connection.execute(sql.OUTBOX_LANES)]

    def due(self, lane: str, now: str, limit: int) -> list[OutboxRow]:
        """Return up to `limit` rows of this lane that are due, the longest due first; nobody else gets them now."""
        return [OutboxRow(*row) for row in self._connection.execute(sql.OUTBOX_DUE, (lane, now, limit))]

    def next_due(self, lane: str) -> str | None:
        """Return when the next row of this lane falls due, None when it has none."""
        row = self._connection.execute(sql.OUTBOX_NEXT, (lane,)).fetchone()
        return None if row is None else row[0]

    def sending(self) -> list[OutboxRow]:
        """Return the rows that this worker has taken over, or had handed to its publisher."""
        return [OutboxRow(*row) for row in self._connection.execute(sql.SENDING, (self._worker,))]

    def take_over(self, workers: Sequence[int]) -> list[OutboxRow]:
        """Make the rows that dead workers were publishing this one's, and return them."""
        found = self._connection.execute(sql.TAKE_SENDING, (self._worker, list(workers)))
        return [OutboxRow(*row) for row in found]

    def claim(self, rows: Iterable[OutboxRow]) -> None:
        """Record that these rows are about to be published: should the worker die, they may have been."""
        seqs = [row.seq for row in rows]
        if seqs:
            self._connection.execute(sql.CLAIM_OUTBOX, (self._worker, seqs))

    def confirmed(self, rows: Sequence[OutboxRow]) -> None:
        """Drop rows that the broker has; the texts among them are sent."""
        self._connection.execute(sql.DELETE_OUTBOX, ([row.seq for row in rows],))
        for day, ids in _by_day(rows).items():
            self._connection.execute(sql.on_day(sql.TEXTS_SENT, day), (ids,))

    def put_off(self, row: OutboxRow, *, attempt: int, not_before: str, error: str | None) -> None:
        """Try a row again later."""
        self._connection.execute(sql.PUT_OFF_OUTBOX, (attempt, not_before, error, row.seq))

    def confirm_reported(self, rows: Iterable[OutboxRow]) -> set[int]:
        """Drop the texts among these that a transport has reported on: they were published. Return their numbers."""
        rows = list(rows)
        reported = {
            row[0]
            for day, ids in _by_day(rows).items()
            for row in self._connection.execute(sql.on_day(sql.TEXTS_REPORTED, day), (ids,))
        }
        gone = [row for row in rows if row.is_text and row.message_id in reported]
        if gone:
            self.confirmed(gone)
        return {row.seq for row in gone}

    def withdraw_opted_out(self, rows: Iterable[OutboxRow]) -> set[int]:
        """Take back the texts among these to people who opted out while they waited. Return their numbers."""
        rows = list(rows)
        reasons = {
            message_id: reason
            for day, ids in _by_day(rows).items()
            for message_id, reason in self._connection.execute(sql.on_day(sql.TEXTS_OPTED_OUT, day), (ids,))
        }
        withdrawn = [row for row in rows if row.is_text and row.message_id in reasons]
        if withdrawn:
            self._connection.execute(sql.DELETE_OUTBOX, ([row.seq for row in withdrawn],))
            for row in withdrawn:
                self._text_becomes("failed", f"opted_out: {reasons[row.message_id]}", row.message_id)
        return {row.seq for row in withdrawn}

    def hold(self, row: OutboxRow, reason: str, now: datetime) -> bool:
        """Leave a row to a person: nobody knows whether it was published. Its run is held too, if it was done.

        Return whether there is such a row: an erasure takes away even what is in flight.
        """
        execute = self._connection.execute
        # The run first, as people's verbs take them: in one order, nobody waits for each other.
        execute(sql.LOCK_RUNS, ([row.run_id],))
        if execute(sql.HOLD_OUTBOX, (reason, row.seq)).fetchone() is None:
            return False
        self._text_becomes("held", reason, row.message_id)
        execute(sql.HOLD_DONE_RUN, (f"{row.step}: unknown: {reason}", row.run_id))
        hint = f"`dispatcher runs resolve {row.run_id} --sent` or `--not-sent` ends the hold"
        self._letter(row, f"step {row.step}: {reason}; {hint}", now)
        return True

    def give_up(self, row: OutboxRow, reason: str, now: datetime) -> bool:
        """Drop a row whose fate nobody knows; its text counts as failed. Return whether there was such a row."""
        if self._connection.execute(sql.DELETE_OUTBOX, ([row.seq],)).fetchone() is None:
            return False
        self._text_becomes("failed", reason, row.message_id)
        self._letter(row, f"step {row.step}: {reason}; `on_unknown: fail` gave it up", now)
        return True

    def _text_becomes(self, state: str, error: str, message_id: str) -> None:
        day = day_of(message_id)
        if day is not None:
            self._connection.execute(sql.on_day(sql.TEXT_OTHERWISE, day), (state, error, message_id))

    def _letter(self, row: OutboxRow, detail: str, now: datetime) -> None:
        dead_id = uuid7(int(now.timestamp() * 1000))
        letter = (dead_id, "run", "unknown", detail, row.account_key, row.event_id, row.run_id, None, as_text(now))
        self._connection.execute(sql.INSERT_DEAD_LETTER, letter)


def settle_held(connection: psycopg.Connection[Any], message_ids: Sequence[str]) -> None:
    """End the hold on texts that a transport has reported on: they were published."""
    runs = [row[0] for row in connection.execute(sql.RUNS_OF_HELD, (list(message_ids),))]
    if not runs:
        return
    connection.execute(sql.LOCK_RUNS, (runs,))
    for run_id, step in connection.execute(sql.DELETE_HELD, (list(message_ids),)).fetchall():
        held = {entry[0] for entry in connection.execute(sql.HELD_OF_RUN, (run_id,))}
        if not held:
            connection.execute(sql.RELEASE_RUN, (run_id,))
        if step not in held:
            connection.execute(sql.CLOSE_UNKNOWN_LETTERS, (run_id, f"step {step}: "))


def _by_day(rows: Iterable[OutboxRow]) -> Mapping[str, list[str]]:
    """Return the ids of the texts among these, by the day that is in them, in order."""
    days: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        if row.is_text and (day := day_of(row.message_id)) is not None:
            days[day].append(row.message_id)
    for ids in days.values():
        ids.sort()
    return dict(sorted(days.items()))
