"""Starts a worker: the rulebook read, the store opened, then the loop until it is told to stop."""

from __future__ import annotations

from dispatcher.settings import Settings
from dispatcher.store.ports import Store
from dispatcher.worker.loop import Worker
from dispatcher.worker.rulebooks import read_plan


def run_worker(settings: Settings, *, drain: bool, lifeline: int | None = None) -> int:
    """Run a worker until it is told to stop, or with `drain` until nothing is left that is due; return the exit code.

    `lifeline` is the descriptor by which it hears of its supervisor, where it has one.
    Raises CannotStart (RulebookRefused, StoreInUse, StoreUnusable) before anything was done.
    """
    plan = read_plan(settings)
    worker = Worker(settings, _opened(settings), plan, load=lambda: read_plan(settings), lifeline=lifeline)
    return worker.run(drain=drain)


def _opened(settings: Settings) -> Store:
    if settings.store_kind == "sqlite":
        from dispatcher.store.sqlite.store import SqliteStore  # noqa: PLC0415 - each brings a driver

        return SqliteStore.open(settings.store_path)
    from dispatcher.store.postgres.store import PostgresStore  # noqa: PLC0415 - as above

    return PostgresStore.open(settings.store_url, shown=settings.store_shown, lease_seconds=settings.lease_seconds)
