"""How fast the dispatcher is with no broker: `publish` of a file, then `run --drain`, in real processes.

The rate is that of the drain once it is loaded, from the first tenth of the runs that end to the last, by the store's
own record of when each did. Processor time and memory are of both processes from start to end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench import job
from bench.contestants import OursEntry
from bench.ours import finished
from bench.processes import Launch, Tree, spent_by_children, started

PATIENCE = 600.0


def measure(entry: OursEntry, events: int) -> dict[str, Any]:
    """Publish and drain once."""
    site, contestant = entry.site, entry.contestant
    with (site.folder / "events.jsonl").open("wb") as file:
        file.writelines(event + b"\n" for event in job.events(events))
    database = site.lab.database_tree if contestant.needs_database else None
    before, used = spent_by_children(), database.cpu_seconds() if database else 0.0
    trees = [_to_the_end(entry, entry.dispatch("publish", "events.jsonl")), _to_the_end(entry, entry.launch)]
    spent = spent_by_children() - before
    costs = None if database is None else (database.cpu_seconds() - used) / events * 1e6
    entry.check(events)
    return {
        "events": events,
        "events_per_second": rate(finished(entry.store)),
        "cpu_us": spent / events * 1e6,
        "broker_cpu_us": None,
        "database_cpu_us": costs,
        "peak_mb": max(tree.peak_mb for tree in trees),
        "processes": max(tree.size for tree in trees),
        "workers": contestant.workers,
    }


def _to_the_end(entry: OursEntry, launch: Launch) -> Tree:
    with started(launch, entry.site.folder / "worker.out") as running:
        running.wait(PATIENCE)
        return running.tree


def rate(moments: Sequence[float]) -> float:
    """Return how many a second there were between the first tenth of these moments and the last."""
    first, last = moments[len(moments) // 10], moments[-1]
    return sum(moment > first for moment in moments) / (last - first)
