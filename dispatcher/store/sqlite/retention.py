"""Retention in one file: a walk over each table from its oldest row on, a chunk at a time. See `store.retention`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from dispatcher.store.retention import Keep
from dispatcher.store.sqlite.store import SqliteStore

_CHUNK = 500

# Each walk reads a chunk of rows by `seq`, which grows with age, so that it ends at the first chunk that is young:
# a store is never read through to find that nothing is old.
_EVENTS = """
SELECT e.seq, e.received_on, e.state,
       (SELECT count(*) FROM runs r WHERE r.event_seq = e.seq AND r.state NOT IN ('done', 'failed', 'cancelled')),
       (SELECT count(*) FROM runs r WHERE r.event_seq = e.seq AND r.state IN ('failed', 'cancelled'))
FROM events e WHERE e.seq > ? ORDER BY e.seq LIMIT ?
"""
_FORGET = (
    "DELETE FROM steps WHERE run_seq IN (SELECT seq FROM runs WHERE event_seq = ?1)",
    "DELETE FROM runs WHERE event_seq = ?1",
    """DELETE FROM dead_letters WHERE event_id = (SELECT event_id FROM events WHERE seq = ?1)
       AND account_key = (SELECT account_key FROM events WHERE seq = ?1)""",
    """DELETE FROM event_ids WHERE account_key = (SELECT account_key FROM events WHERE seq = ?1)
       AND event_id = (SELECT event_id FROM events WHERE seq = ?1)""",
    "DELETE FROM events WHERE seq = ?1",
)
# (seq, since when, whether it is to stay)
_ROWS = {
    "messages": """
        SELECT m.seq, m.received_on, EXISTS (
            SELECT 1 FROM runs r WHERE r.run_id = m.run_id AND r.state NOT IN ('done', 'failed', 'cancelled')
        ) FROM messages m WHERE m.seq > ? ORDER BY m.seq LIMIT ?
    """,
    "dead_letters": "SELECT seq, at, kind <> 'delivery' FROM dead_letters WHERE seq > ? ORDER BY seq LIMIT ?",
}
# What a broker has not brought again by now, it never will.
_FORGET_UNACKED = "DELETE FROM unacked WHERE received_on < ?"


class SqliteRetention:
    """Walks over the store from the oldest event on; each `step` is one small transaction."""

    def __init__(self, store: SqliteStore, keep: Keep) -> None:
        self._store = store
        self._keep = keep
        # How far the walk over each table has come; what is missing is through.
        self._behind = self._at_the_start()

    def step(self, now: datetime) -> bool:
        """Forget one chunk; False when the walk is through, and the next call begins a new one."""
        limits = self._keep.limits(now)
        oldest = {"messages": self._keep.messages_limit(now), "dead_letters": limits["failed"]}
        with self._store.transaction() as transaction:
            for table in list(self._behind):
                if table == "events":
                    self._forget_events(limits)
                else:
                    self._forget_rows(table, oldest[table])
            if not self._behind:
                self._store.connection.execute(_FORGET_UNACKED, (limits["done"],))
            transaction.commit()
        if self._behind:
            return True
        self._behind = self._at_the_start()
        return False

    def _forget_events(self, limits: dict[str, str]) -> None:
        execute = self._store.connection.execute
        found = execute(_EVENTS, (self._behind["events"], _CHUNK)).fetchall()
        for seq, received_on, state, unfinished, failed in found:
            if state == "new" or unfinished:
                continue
            outcome = "failed" if failed or state == "dead" else "skipped" if state == "unmatched" else "done"
            if received_on < limits[outcome]:
                for statement in _FORGET:
                    execute(statement, (seq,))
        self._walk_on("events", found, max(limits.values()))

    def _forget_rows(self, table: str, limit: str) -> None:
        connection = self._store.connection
        found = connection.execute(_ROWS[table], (self._behind[table], _CHUNK)).fetchall()
        old = [(seq,) for seq, since, stays in found if since < limit and not stays]
        connection.executemany(f"DELETE FROM {table} WHERE seq = ?", old)  # noqa: S608
        self._walk_on(table, found, limit)

    def _walk_on(self, table: str, found: Sequence[tuple[Any, ...]], limit: str) -> None:
        if len(found) < _CHUNK or found[-1][1] >= limit:
            del self._behind[table]
        else:
            self._behind[table] = found[-1][0]

    @staticmethod
    def _at_the_start() -> dict[str, int]:
        return dict.fromkeys(("events", *_ROWS), 0)
