"""What is forgotten, and when: by outcome, oldest first, in small transactions between the batches.

An event goes with its runs, its steps, its dedupe row and its dead letters; what the outbox holds stays until it is
handed out. Nothing is forgotten before its dedupe time is over, and nothing while a run of it is open. Contacts and
opt-outs stay. How it is done is the store's own business: `sqlite.retention` and `postgres.retention`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Protocol

from dispatcher.store.ports import Store

# Whoever may open again what has ended shares this advisory lock on PostgreSQL; what retention judges to be over stays
# so until it is forgotten. Here, for a worker needs no SQLAlchemy, and importing it is a fifth of a start.
REOPENING: Final = 0x64_72_65_74_02


@dataclass(frozen=True, slots=True)
class Keep:
    """For how many days what is kept: by how it ended, and the dedupe row at the least."""

    done: int
    failed: int
    skipped: int
    dedupe: int

    def limits(self, now: datetime) -> dict[str, str]:
        """Return for each outcome the first day of which events are kept: those of the days before it go."""
        kept = {"done": self.done, "failed": self.failed, "skipped": self.skipped}
        return {outcome: _day(now, max(days, self.dedupe)) for outcome, days in kept.items()}

    def messages_limit(self, now: datetime) -> str:
        """Return the first day of which messages are kept."""
        return _day(now, max(self.done, self.failed))


class _Walk(Protocol):
    def step(self, now: datetime) -> bool: ...


class Retention:
    """Walks over a store from the oldest event on."""

    def __init__(self, store: Store, keep: Keep) -> None:
        self._walk = _walk_of(store, keep)

    def step(self, now: datetime) -> bool:
        """Forget one chunk, in a small transaction; False when the walk is through, and the next call begins anew.

        Of the workers that share a store one at a time forgets; for the others the walk is through at once.
        """
        return self._walk.step(now)


def _walk_of(store: Store, keep: Keep) -> _Walk:
    if store.shared:
        from dispatcher.store.postgres.retention import PostgresRetention  # noqa: PLC0415 - needs its driver
        from dispatcher.store.postgres.store import PostgresStore  # noqa: PLC0415

        assert isinstance(store, PostgresStore)
        return PostgresRetention(store, keep)
    from dispatcher.store.sqlite.retention import SqliteRetention  # noqa: PLC0415
    from dispatcher.store.sqlite.store import SqliteStore  # noqa: PLC0415

    assert isinstance(store, SqliteStore)
    return SqliteRetention(store, keep)


def _day(now: datetime, days: int) -> str:
    return (now - timedelta(days=days)).strftime("%Y-%m-%d")
