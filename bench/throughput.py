"""How fast a full queue is drained, as seen from outside: by what reaches the outgoing queue.

Measured is from the first tenth of the texts to the last of them, so that starting up is not; processor time likewise,
until the contestant is at rest. Every event must have come out once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from bench import embedded, outside
from bench.contestants import OUTSIDE, Contestant, OursEntry
from bench.processes import ContestantFailed, Running, Tree, started
from bench.site import Lab, Message, Site

START_PATIENCE = 60.0
SLOWEST = 100.0  # events/s; who is slower is not waited for


@dataclass(frozen=True)
class Moment:
    """How far a contestant is, when, and what everybody has taken of the processors until then."""

    at: float
    done: int
    worker: float
    broker: float
    database: float | None


def measure(lab: Lab, contestant: Contestant, events: int, messages: Callable[[], Sequence[Message]]) -> dict[str, Any]:
    """Drain so many events once. Raises ContestantFailed."""
    with lab.site(contestant.name, contestant.declare) as site:
        entry = contestant.enter(site)
        if isinstance(entry, OursEntry) and entry.contestant.embedded:
            return embedded.measure(entry, events)
        if contestant.kind == OUTSIDE:
            return outside.measure(site, entry)
        site.fill(messages(), contestant.incoming)
        with started(entry.launch, site.folder / "worker.out") as running:
            run = _Run(site, contestant, running, events)
            first = run.wait_for(events // 10)
            last = run.wait_for(events)
            entry.settle()
            rest = run.moment()
            running.stop()
        entry.check(events)
    if first.done == events:
        raise ContestantFailed(f"{events} events came out between two looks: give it more")
    return {
        "events": events,
        "events_per_second": (events - first.done) / (last.at - first.at),
        **run.costs(first, rest, events - first.done),
        "peak_mb": running.tree.peak_mb,
        "processes": running.tree.size,
        "workers": contestant.workers,
    }


class _Run:
    """One run under way: how far it is, and what it has cost."""

    def __init__(self, site: Site, contestant: Contestant, running: Running, events: int) -> None:
        self._site, self._contestant, self._running = site, contestant, running
        self._database: Tree | None = site.lab.database_tree if contestant.needs_database else None
        self._deadline = time.monotonic() + START_PATIENCE + events / SLOWEST

    def moment(self, done: int = 0) -> Moment:
        """Return the moment that is now."""
        self._running.tree.look()
        return Moment(
            at=time.perf_counter(),
            done=done,
            worker=self._running.tree.cpu_seconds(),
            broker=self._site.lab.broker_tree.cpu_seconds(),
            database=self._database.cpu_seconds() if self._database else None,
        )

    def wait_for(self, texts: int) -> Moment:
        """Wait until so many texts came out."""
        began = time.perf_counter()
        while (done := self._site.depth(self._contestant.outgoing)) < texts:
            if self._running.ended():
                raise ContestantFailed(f"it ended with {done} of {texts} texts: {self._running.said()}")
            if time.monotonic() > self._deadline:
                raise ContestantFailed(f"it was too slow: {done} of {texts} texts: {self._running.said()}")
            time.sleep(_pause(time.perf_counter() - began, done / texts))
        return self.moment(done)

    @staticmethod
    def costs(first: Moment, last: Moment, events: int) -> dict[str, float | None]:
        """Return what an event took of the processors, in microseconds."""

        def each(before: float, after: float) -> float:
            return (after - before) / events * 1e6

        return {
            "cpu_us": each(first.worker, last.worker),
            "broker_cpu_us": each(first.broker, last.broker),
            "database_cpu_us": (
                None if first.database is None or last.database is None else each(first.database, last.database)
            ),
        }


def _pause(so_far: float, share: float) -> float:
    """Return how long to wait before looking again: a look takes the broker's time, but the end must be seen."""
    ahead = so_far * (1 - share) / share if share else 0.1
    return min(0.05, max(0.005, ahead / 4))
