"""One run of ours between two queues, on whatever store: what an event costs from the first tenth on.

The rate is that of the texts, seen from outside; processor time is taken at the same two moments. A queue may hold more
than is measured: then the worker is stopped after that, and what it did until it had ended must be in its store.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from bench.contestants import SCRIPT
from bench.ours import Store
from bench.processes import ContestantFailed, Launch, Running, started
from bench.series_stores import environ_of
from bench.site import QUEUES, Message, Site

# Reading a hundred thousand chains comes before the first text.
START_PATIENCE = 600.0
SLOWEST = 200.0  # events/s
POLL_SECONDS = 0.01
AT_ONCE = 10_000

INCOMING, OUTGOING = QUEUES


def fill_queue(site: Site, bodies: Iterable[bytes]) -> None:
    """Put events into the incoming queue, some at a time: a million messages at once would take gigabytes here."""
    rest = iter(bodies)
    while some := [Message(body) for body in islice(rest, AT_ONCE)]:
        site.fill(some, INCOMING)


@dataclass(frozen=True)
class Passage:
    """One worker on a store, between the queues of a site."""

    site: Site
    store: Store
    rulebook: Path
    on_server: bool

    def measure(self, events: int) -> dict[str, Any]:
        """Take so many events out of the queue, which holds as many or more. Raises ContestantFailed."""
        with self.site.channel() as channel:
            channel.queue_purge(OUTGOING)
        waiting = self.site.depth(INCOMING)
        environ = {**environ_of(self.store, self.rulebook), "DISPATCHER_AMQP_URL": self.site.url}
        # It makes its store here, if there is none, so that one may count what was there before.
        for verb in ("migrate", "run"):
            launch = Launch([str(SCRIPT), verb], self.site.folder, environ)
            with started(launch, self.site.folder / f"{verb}.out") as running:
                if verb == "migrate":
                    running.wait(START_PATIENCE)
                    before = self._last_run()
                    continue
                first = self._wait_for(running, events // 10, START_PATIENCE)
                last = self._wait_for(running, events, START_PATIENCE + events / SLOWEST)
                running.tree.look()
                running.stop()
        self._check(before, waiting)
        measured = last.done - first.done
        return {
            "events": events,
            "events_per_second": measured / (last.at - first.at),
            "cpu_us": (last.worker - first.worker) / measured * 1e6,
            "database_cpu_us": (last.database - first.database) / measured * 1e6 if self.on_server else None,
            "peak_mb": running.tree.peak_mb,
        }

    def _wait_for(self, running: Running, texts: int, patience: float) -> _Moment:
        deadline = time.monotonic() + patience
        while (done := self.site.depth(OUTGOING)) < texts:
            if running.ended() or time.monotonic() > deadline:
                raise ContestantFailed(f"{done} of {texts} texts came out: {running.said()}")
            time.sleep(POLL_SECONDS)
        database = self.site.lab.database_tree.cpu_seconds() if self.on_server else 0.0
        return _Moment(time.perf_counter(), done, running.tree.cpu_seconds(), database)

    def _last_run(self) -> int:
        [(last,)] = self.store.rows("SELECT coalesce(max(seq), 0) FROM runs")
        return int(last)

    def _check(self, before: int, waiting: int) -> None:
        """See that each event that is no longer in the queue has a run that is done, and a text."""
        taken = waiting - self.site.depth(INCOMING)
        [(runs,)] = self.store.rows(f"SELECT count(*) FROM runs WHERE seq > {before} AND state = 'done'")
        [(dead,)] = self.store.rows("SELECT count(*) FROM dead_letters")
        if not taken == runs == self.site.depth(OUTGOING) or dead:
            texts = self.site.depth(OUTGOING)
            raise ContestantFailed(f"of {taken} events came {runs} runs, {texts} texts and {dead} dead letters")


@dataclass(frozen=True)
class _Moment:
    at: float
    done: int
    worker: float
    database: float
