"""What is forgotten, and when: by outcome, oldest first, in small transactions between the batches.

An event goes with its runs, its steps, its dedupe row, its dead letters and what the outbox sent for it. Nothing is
forgotten before its dedupe time is over, and nothing while a run of it is open. Contacts and opt-outs stay.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from dispatcher.store.sqlite import SqliteStore

_CHUNK = 500

_CANDIDATES = """
SELECT e.seq, e.received_on, e.state,
       (SELECT count(*) FROM runs r WHERE r.event_seq = e.seq AND r.state NOT IN ('done', 'failed', 'cancelled')),
       (SELECT count(*) FROM runs r WHERE r.event_seq = e.seq AND r.state IN ('failed', 'cancelled'))
FROM events e WHERE e.seq > ? AND e.received_on < ? ORDER BY e.seq LIMIT ?
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
_FORGET_MESSAGES = """
DELETE FROM messages WHERE seq IN (
    SELECT m.seq FROM messages m WHERE m.received_on < ? AND NOT EXISTS (
        SELECT 1 FROM runs r WHERE r.run_id = m.run_id AND r.state NOT IN ('done', 'failed', 'cancelled')
    ) LIMIT ?
)
"""
_FORGET_SENT = "DELETE FROM outbox WHERE seq IN (SELECT seq FROM outbox WHERE state = 'sent' AND at < ? LIMIT ?)"
_FORGET_LETTERS = (
    "DELETE FROM dead_letters WHERE seq IN (SELECT seq FROM dead_letters WHERE kind = 'delivery' AND at < ? LIMIT ?)"
)


@dataclass(frozen=True, slots=True)
class Keep:
    """For how many days what is kept: by how it ended, and the dedupe row at the least."""

    done: int
    failed: int
    skipped: int
    dedupe: int


class Retention:
    """Walks over the store from the oldest event on; each `step` is one small transaction."""

    def __init__(self, store: SqliteStore, keep: Keep) -> None:
        self._store = store
        self._keep = keep
        self._behind = 0

    def step(self, now: datetime) -> bool:
        """Forget one chunk; False when the walk is through, and the next call begins a new one."""
        keep = self._keep
        newest = _day(now, max(keep.dedupe, min(keep.done, keep.failed, keep.skipped)))
        limits = {
            name: _day(now, max(days, keep.dedupe))
            for name, days in (("done", keep.done), ("failed", keep.failed), ("skipped", keep.skipped))
        }
        execute = self._store.connection.execute
        with self._store.transaction() as transaction:
            found = execute(_CANDIDATES, (self._behind, newest, _CHUNK)).fetchall()
            for seq, received_on, state, unfinished, failed in found:
                self._behind = seq
                if state == "new" or unfinished:
                    continue
                outcome = "failed" if failed or state == "dead" else "skipped" if state == "unmatched" else "done"
                if received_on < limits[outcome]:
                    for statement in _FORGET:
                        execute(statement, (seq,))
            forgotten = 0
            for statement, limit in (
                (_FORGET_MESSAGES, _day(now, max(keep.done, keep.failed))),
                (_FORGET_SENT, limits["done"]),
                (_FORGET_LETTERS, limits["failed"]),
            ):
                forgotten = max(forgotten, execute(statement, (limit, _CHUNK)).rowcount)
            transaction.commit()
        if len(found) < _CHUNK and forgotten < _CHUNK:
            self._behind = 0
            return False
        return True


def _day(now: datetime, days: int) -> str:
    return (now - timedelta(days=days)).strftime("%Y-%m-%d")
