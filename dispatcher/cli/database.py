"""What `dispatcher doctor` finds at the server of a PostgreSQL store, and among the workers that share it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from dispatcher.cli.findings import Finding

if TYPE_CHECKING:
    from dispatcher.settings import Settings
    from dispatcher.store.postgres.examination import Server
    from dispatcher.store.postgres.workers import WorkerSeen

# From here on something is worth a look.
_FULL: Final = 0.8
_LONG_TRANSACTION_SECONDS: Final = 600.0
_LONG_IDLE_SECONDS: Final = 60.0
_CLOCK_SECONDS: Final = 5.0

_STARTS: Final = "`dispatcher run` starts one."


def alive(workers: Sequence[WorkerSeen], settings: Settings) -> list[WorkerSeen]:
    """Return the workers that have shown life within their lease."""
    return [worker for worker in workers if worker.silent_seconds <= settings.lease_seconds]


def worker_finding(workers: Sequence[WorkerSeen], settings: Settings, *, must_run: bool) -> Finding:
    """Tell whether workers run; with `must_run`, whether one does on this machine, which is wrong otherwise."""
    living = alive(workers, settings)
    if must_run:
        here = [worker for worker in living if worker.host == socket.gethostname()]
        if here:
            return Finding(
                "ok", "worker", f"{_listed(here)}: runs here" if len(here) == 1 else f"{_listed(here)} run here"
            )
        elsewhere = f"; elsewhere {_listed(living)}" if living else ""
        return Finding("wrong", "worker", f"none runs on this machine ({socket.gethostname()}){elsewhere}", _STARTS)
    if not living:
        return Finding("ok", "worker", "none runs", _STARTS)
    return Finding("ok", "worker", f"{len(living)} alive: {_listed(living)}")


def server_findings(server: Server, settings: Settings) -> Iterator[Finding]:
    """Tell what may cost events or speed at the server, and who was silent for too long."""
    yield from _silent(server, settings)
    yield from _durability(server)
    used = f"{server.connections_used} of {server.connections_allowed} connections are in use"
    if server.connections_used > _FULL * server.connections_allowed:
        hint = "A worker takes two, and one more while its store is counted: raise max_connections of the server."
        yield Finding("look", "connections", used, hint)
    else:
        yield Finding("ok", "connections", used)
    yield from _transactions(server)
    for name, live, dead in server.dead_rows:
        hint = "Autovacuum should be on, and an old transaction may hold it back."
        yield Finding("look", "dead rows", f"{name}: {dead:,} dead rows beside {live:,}", hint)
    if server.missing_partitions:
        missing = ", ".join(server.missing_partitions)
        hint = "A worker makes them ahead of time, and so does `dispatcher migrate`: see `partitions` in the log."
        yield Finding("wrong", "partitions", f"not there for today and tomorrow: {missing}", hint)
    else:
        yield Finding("ok", "partitions", "there for today and tomorrow")
    yield _clock(server.behind_seconds)


def state_finding(settings: Settings) -> Finding:
    """Tell whether workers can note here what they have in hand."""
    folder = settings.state.absolute()
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        told = f"{folder} is no folder that this user may write, so no worker can start here"
        return Finding("wrong", "state", told, "DISPATCHER_STATE names the folder.")
    return Finding("ok", "state", f"workers note what they have in hand in {folder}")


def server_document(server: Server) -> dict[str, Any]:
    """Return what `--json` tells of the server beside its findings."""
    return {
        "server_version": server.version,
        "connections_used": server.connections_used,
        "connections_allowed": server.connections_allowed,
        "clock_behind_seconds": round(server.behind_seconds, 3),
        "workers": [
            {
                "number": worker.number,
                "name": worker.name,
                "host": worker.host,
                "pid": worker.pid,
                "started_at": worker.started_at.isoformat(),
                "silent_seconds": round(worker.silent_seconds, 1),
            }
            for worker in server.workers
        ],
    }


def _silent(server: Server, settings: Settings) -> Iterator[Finding]:
    living = alive(server.workers, settings)
    silent = [worker for worker in server.workers if worker not in living]
    if silent and living:
        yield Finding("look", "worker", f"silent for too long: {_listed(silent)}", "The others take their work over.")
    elif silent:
        hint = f"The next one takes their work over. {_STARTS}"
        yield Finding("look", "worker", f"silent for too long: {_listed(silent)}", hint)


def _durability(server: Server) -> Iterator[Finding]:
    if not server.fsync:
        told = f"PostgreSQL {server.version} runs with fsync off: what was committed is lost if its machine crashes"
        yield Finding("wrong", "server", told, "Set fsync = on in its configuration, and reload it.")
    elif not server.full_page_writes:
        told = (
            f"PostgreSQL {server.version} runs with full_page_writes off: a crash of its machine may damage the store"
        )
        yield Finding("look", "server", told, "Set full_page_writes = on, unless its disk never writes half a page.")
    else:
        yield Finding("ok", "server", f"PostgreSQL {server.version}; what is committed is on the disk")


def _transactions(server: Server) -> Iterator[Finding]:
    hint = "It keeps the server from cleaning up; pg_stat_activity names it, pg_terminate_backend(pid) ends it."
    if server.idle_in_transaction_seconds > _LONG_IDLE_SECONDS:
        told = f"one has been idle for {_lasting(server.idle_in_transaction_seconds)}, and holds what it locked"
        yield Finding("look", "transactions", told, hint)
    elif server.oldest_transaction_seconds > _LONG_TRANSACTION_SECONDS:
        told = f"the oldest began {_lasting(server.oldest_transaction_seconds)} ago"
        yield Finding("look", "transactions", told, hint)


def _clock(behind: float) -> Finding:
    apart = f"{_lasting(abs(behind))} {'behind' if behind > 0 else 'ahead of'} the database's"
    if abs(behind) > _CLOCK_SECONDS:
        hint = "Workers go by the database's, but log lines and other programs do not: look at NTP on both machines."
        return Finding("look", "clock", f"this machine's is {apart}", hint)
    return Finding("ok", "clock", f"this machine's is {apart}")


def _listed(workers: Sequence[WorkerSeen]) -> str:
    return ", ".join(
        f"{worker.name} ({worker.host}, pid {worker.pid}, seen {_lasting(worker.silent_seconds)} ago)"
        for worker in workers
    )


def _lasting(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"
