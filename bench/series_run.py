"""One run of ours between two queues, on whatever store: what an event costs from the first tenth on.

The rate is that of the texts, seen from outside; processor time is taken at the same two moments. A queue may hold more
than is measured: then the worker is stopped after that, and what it did until it had ended must be in its store.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from bench.contestants import SCRIPT
from bench.ours import Store
from bench.processes import ContestantFailed, Launch, Running, started
from bench.series_stores import environ_of
from bench.site import QUEUES, Site, plain_json

# Reading a hundred thousand chains comes before the first text.
START_PATIENCE = 600.0
SLOWEST = 200.0  # events/s
POLL_SECONDS = 0.01
FILL_PATIENCE = 900.0
STALLED_SECONDS = 5.0
PERSISTENT = plain_json()

INCOMING, OUTGOING = QUEUES


def fill_queue(site: Site, bodies: Iterator[bytes], wanted: int, *, empty_before: bool) -> None:
    """Put events into the incoming queue until it holds so many; `bodies` has no end.

    To wait for each confirm would take minutes, and what is published without them may be lost: to a queue that was
    just declared and has no leader yet, or on a busy machine in a channel that is closed too soon. So the channel stays
    open, and what does not come is published again.
    """
    with site.channel() as channel:
        if empty_before:
            channel.queue_purge(INCOMING)
        there, since = site.depth(INCOMING), 0.0
        deadline = time.monotonic() + FILL_PATIENCE
        while there < wanted:
            if time.monotonic() > deadline:
                raise ContestantFailed(f"the queue took {there} of {wanted} events")
            if time.monotonic() - since > STALLED_SECONDS:
                for body in islice(bodies, wanted - there):
                    channel.basic_publish("", INCOMING, body, PERSISTENT)
                since = time.monotonic()
            channel.connection.process_data_events(0.05)
            before, there = there, site.depth(INCOMING)
            if there > before:
                since = time.monotonic()


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
                    before = self._last()
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

    def _last(self) -> tuple[int, int]:
        [(event, run)] = self.store.rows(
            "SELECT (SELECT coalesce(max(seq), 0) FROM events), (SELECT coalesce(max(seq), 0) FROM runs)"
        )
        return event, run

    def _check(self, before: tuple[int, int], waiting: int) -> None:
        """See that each event that is no longer in the queue is in the store, and that each run has come to a text.

        Of a queue that was not worked off, the store may have some that were to be matched next.
        """
        last_event, last_run = before
        left, texts = self.site.depth(INCOMING), self.site.depth(OUTGOING)
        [(stored,)] = self.store.rows(f"SELECT count(*) FROM events WHERE seq > {last_event}")
        [(runs,)] = self.store.rows(f"SELECT count(*) FROM runs WHERE seq > {last_run} AND state = 'done'")
        [(dead,)] = self.store.rows("SELECT count(*) FROM dead_letters")
        finished = runs == texts and (runs == stored or left)
        if waiting - left != stored or not finished or dead:
            raise ContestantFailed(
                f"{waiting - left} events were taken, {stored} stored; {runs} runs, {texts} texts, {dead} dead letters"
            )


@dataclass(frozen=True)
class _Moment:
    at: float
    done: int
    worker: float
    database: float
