"""Retention in a shared store: old days go as whole partitions, and of days that are not over what has had its time.

One process forgets at a time. People's verbs, which alone may open again what has ended, are kept out meanwhile, so
that nothing is reopened between the look and the deletion. A day that holds nothing that stays is dropped; where one
run of it still waits, or outcomes have different limits, rows are deleted in chunks. Nobody waits long for either.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Final

import psycopg

from dispatcher.errors import Contended
from dispatcher.store.postgres import partitions
from dispatcher.store.postgres.store import PostgresStore
from dispatcher.store.retention import REOPENING, Keep

_CHUNK: Final = 1000
# Whoever forgets holds this advisory lock.
_FORGETTING: Final = 0x64_72_65_74_01

_OPEN: Final = "NOT IN ('done', 'failed', 'cancelled')"
# Whether something of a day is not over: first what indexes tell, so that a day of which something still waits is not
# read through each time. A message is of the day of its run or of a later one.
_NOT_OVER: Final = f"""
SELECT EXISTS (SELECT 1 FROM events WHERE received_on = %(day)s AND state = 'new')
    OR EXISTS (SELECT 1 FROM runs WHERE received_on = %(day)s AND due_at IS NOT NULL)
    OR EXISTS (SELECT 1 FROM runs WHERE received_on = %(day)s AND state IN ('running', 'held'))
    OR EXISTS (SELECT 1 FROM runs WHERE received_on = %(day)s AND state {_OPEN})
    OR EXISTS (
        SELECT 1 FROM messages m JOIN runs r ON r.run_id = m.run_id
        WHERE m.received_on = %(day)s AND r.received_on <= %(day)s AND r.state {_OPEN}
    )
"""  # noqa: S608
_EVENTS: Final = f"""
SELECT e.seq, e.state, coalesce(r.unfinished, 0), coalesce(r.failed, 0)
FROM (
    SELECT seq, state FROM events WHERE received_on = %(day)s AND seq > %(after)s ORDER BY seq LIMIT {_CHUNK}
) e LEFT JOIN LATERAL (
    SELECT count(*) FILTER (WHERE state {_OPEN}) AS unfinished,
           count(*) FILTER (WHERE state IN ('failed', 'cancelled')) AS failed
    FROM runs WHERE received_on = %(day)s AND event_seq = e.seq
) r ON true ORDER BY e.seq
"""  # noqa: S608
# What stands in no partition goes by the events that it belongs to. An id that came again since is another event's.
_UNNAME: Final = (
    """
    DELETE FROM event_ids i USING events e WHERE e.received_on = %(day)s AND e.seq = ANY(%(seqs)s)
    AND i.account_key = e.account_key AND i.event_id = e.event_id AND i.event_seq = e.seq
    """,
    """
    DELETE FROM dead_letters d USING events e WHERE e.received_on = %(day)s AND e.seq = ANY(%(seqs)s)
    AND d.event_id = e.event_id AND d.account_key = e.account_key
    """,
)
_FORGET: Final = (
    """
    DELETE FROM steps s USING runs r WHERE s.received_on = %(day)s AND r.received_on = %(day)s
    AND r.event_seq = ANY(%(seqs)s) AND s.run_seq = r.seq
    """,
    "DELETE FROM runs WHERE received_on = %(day)s AND event_seq = ANY(%(seqs)s)",
    *_UNNAME,
    "DELETE FROM events WHERE received_on = %(day)s AND seq = ANY(%(seqs)s)",
)
_SEQS: Final = f"SELECT seq FROM events WHERE received_on = %(day)s AND seq > %(after)s ORDER BY seq LIMIT {_CHUNK}"  # noqa: S608
_MESSAGES: Final = f"""
WITH chunk AS (
    SELECT seq, run_id FROM messages WHERE received_on = %(day)s AND seq > %(after)s ORDER BY seq LIMIT {_CHUNK}
), gone AS (
    DELETE FROM messages m USING chunk c WHERE m.received_on = %(day)s AND m.seq = c.seq AND NOT EXISTS (
        SELECT 1 FROM runs r WHERE r.run_id = c.run_id AND r.received_on <= %(day)s AND r.state {_OPEN}
    )
) SELECT max(seq), count(*) FROM chunk
"""  # noqa: S608
_LETTERS: Final = f"""
WITH chunk AS (
    SELECT seq, at, kind FROM dead_letters WHERE seq > %(after)s ORDER BY seq LIMIT {_CHUNK}
), gone AS (
    DELETE FROM dead_letters d USING chunk c WHERE d.seq = c.seq AND c.kind = 'delivery' AND c.at < %(limit)s
) SELECT max(seq), count(*) FILTER (WHERE at < %(limit)s), count(*) FROM chunk
"""  # noqa: S608
# What a broker has not brought again by now, it never will.
_FORGET_UNACKED: Final = "DELETE FROM unacked WHERE received_on < %s"


class _Busy(Exception):
    """Another process forgets, or a person changes something."""


class PostgresRetention:
    """Walks over the days from the oldest on; each `step` is one small transaction, or the drop of one day."""

    def __init__(self, store: PostgresStore, keep: Keep) -> None:
        self._store = store
        self._keep = keep
        self._walk: Iterator[None] | None = None
        # On which day each day was walked last, and for which outcomes: once a day is enough.
        self._walked: dict[str, tuple[str, frozenset[str]]] = {}

    def step(self, now: datetime) -> bool:
        """Forget one chunk or one day; False when the walk is through, and the next call begins a new one.

        Where somebody is in the way the walk is through, too: there is time.
        """
        walk, self._walk = self._walk or self._forget(now), None
        try:
            next(walk)
        except (StopIteration, _Busy, Contended):
            return False
        self._walk = walk
        return True

    def _forget(self, now: datetime) -> Iterator[None]:
        limits = self._keep.limits(now)
        messages_limit = self._keep.messages_limit(now)
        self._store.ensure_partitions()
        for day in self._days():
            outcomes = frozenset(outcome for outcome, limit in limits.items() if day < limit)
            if len(outcomes) == len(limits) and day < messages_limit and self._is_over(day):
                yield from self._forget_names(day)
                self._drop(day)
                self._walked.pop(day, None)
                yield
                continue
            today = f"{now:%Y-%m-%d}"
            if outcomes and self._walked.get(day) != (today, outcomes):
                yield from self._forget_events(day, outcomes)
                self._walked[day] = (today, outcomes)
            if day < messages_limit:
                yield from self._forget_messages(day)
        yield from self._forget_letters(limits["failed"])
        with self._alone() as connection:
            connection.execute(_FORGET_UNACKED, (limits["done"],))

    def _days(self) -> list[str]:
        with self._store.session.refusals():
            return partitions.days(self._store.connection)

    def _is_over(self, day: str) -> bool:
        with self._store.session.refusals():
            return not _row(self._store.connection, _NOT_OVER, day=day)[0]

    def _forget_names(self, day: str) -> Iterator[None]:
        """Forget the ids and the dead letters of a day that is to be dropped."""
        seqs = [0]
        while seqs:
            with self._alone() as connection:
                seqs = [row[0] for row in connection.execute(_SEQS, {"day": day, "after": seqs[-1]})]
                for statement in _UNNAME:
                    connection.execute(statement, {"day": day, "seqs": seqs})
            yield

    def _forget_events(self, day: str, outcomes: frozenset[str]) -> Iterator[None]:
        after: int | None = 0
        while after is not None:
            with self._alone() as connection:
                found = connection.execute(_EVENTS, {"day": day, "after": after}).fetchall()
                seqs = [
                    seq
                    for seq, state, unfinished, failed in found
                    if state != "new" and not unfinished and _outcome(state, failed=failed) in outcomes
                ]
                if seqs:
                    for statement in _FORGET:
                        connection.execute(statement, {"day": day, "seqs": seqs})
            after = found[-1][0] if len(found) == _CHUNK else None
            yield

    def _forget_messages(self, day: str) -> Iterator[None]:
        after, count = 0, _CHUNK
        while count == _CHUNK:
            with self._alone() as connection:
                after, count = _row(connection, _MESSAGES, day=day, after=after)
            yield

    def _forget_letters(self, limit: str) -> Iterator[None]:
        after, old, count = 0, 1, _CHUNK
        while old and count == _CHUNK:
            with self._alone() as connection:
                after, old, count = _row(connection, _LETTERS, limit=limit, after=after)
            yield

    @contextmanager
    def _alone(self) -> Iterator[psycopg.Connection[Any]]:
        """Open one transaction, during which nobody else forgets and nobody reopens anything; it commits."""
        with self._store.transaction() as transaction:
            for lock in (_FORGETTING, REOPENING):
                if not _row(transaction.connection, "SELECT pg_try_advisory_xact_lock(%(lock)s)", lock=lock)[0]:
                    raise _Busy
            yield transaction.connection
            transaction.commit()

    def _drop(self, day: str) -> None:
        """Drop a day, unless something of it is open again; what is in the way is waited for until the next walk."""
        held: list[int] = []
        with self._store.session.refusals():
            connection = self._store.connection
            try:
                for lock in (_FORGETTING, REOPENING):
                    if not _row(connection, "SELECT pg_try_advisory_lock(%(lock)s)", lock=lock)[0]:
                        raise _Busy
                    held.append(lock)
                if self._is_over(day):
                    partitions.drop(connection, day)
            finally:
                for lock in held:
                    if not connection.closed:
                        connection.execute("SELECT pg_advisory_unlock(%s)", (lock,))


def _outcome(state: str, *, failed: int) -> str:
    return "failed" if failed or state == "dead" else "skipped" if state == "unmatched" else "done"


def _row(connection: psycopg.Connection[Any], statement: str, **params: object) -> tuple[Any, ...]:
    row = connection.execute(statement, params).fetchone()
    assert row is not None
    return tuple(row)
