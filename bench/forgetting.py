"""What it takes to forget a day on PostgreSQL, and whether a busy worker is held up by it. Ours only, with no broker.

A store gets a day of events that are 40 days old, and new events, which a worker drains. Meanwhile that day goes by
retention's own steps: its ids chunk by chunk, then its partitions. The longest time without the end of a run tells
whether anybody waited for that.

    python -m bench.forgetting --forgotten 500000 --events 100000 --folder /var/tmp
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

from bench import job, machine, pgfill
from bench.contestants import SCRIPT
from bench.ending import temporary_folder
from bench.fill_people import NoRoom, new_person, refuse_without_room
from bench.ours import PostgresDatabase, count, finished
from bench.processes import ContestantFailed, Launch, started, wait_until
from bench.series_stores import PATTERNS, environ_of, write_pattern
from bench.site import Lab, Site
from dispatcher.store.postgres import partitions
from dispatcher.store.postgres.retention import PostgresRetention
from dispatcher.store.postgres.store import PostgresStore
from dispatcher.store.retention import Keep
from tests.harness.postgres import NoPostgres
from tests.harness.rabbit import NoRabbit

AGE = timedelta(days=40)
KEEP = Keep(done=30, failed=30, skipped=30, dedupe=30)
PATIENCE = 900.0
START_PATIENCE = 60.0


@dataclass
class Steps:
    """When each step of retention began and ended: of those that took ids away, and of those that dropped the day."""

    ids: list[tuple[float, float]] = field(default_factory=list)
    drops: list[tuple[float, float]] = field(default_factory=list)

    @property
    def began(self) -> float:
        """When the first began."""
        return min(began for began, _ in self.ids + self.drops)

    @property
    def ended(self) -> float:
        """When the last ended."""
        return max(ended for _, ended in self.ids + self.drops)


def measure(lab: Lab, forgotten: int, events: int) -> dict[str, Any]:
    """Forget a day of so many events while a worker drains others. Raises ContestantFailed, NoRoom, NoPostgres."""
    with lab.site("forgetting", declare=()) as site:
        refuse_without_room(site.folder, forgotten + events, pgfill.BYTES_AN_EVENT, pgfill.EVENTS_A_SECOND)
        store = PostgresDatabase(site.database())
        old = datetime.now(UTC).date() - AGE
        write_pattern(store, site.folder, PATTERNS)
        pgfill.multiply(store.url, forgotten, 1, "poll_complete", due=None, last=old)
        before = count(store, "runs WHERE state = 'done'")
        with started(_worker(site, store, events), site.folder / "worker.out") as running:
            busy = f"runs WHERE state = 'done' AND received_on <> '{old}'"
            wait_until(lambda: count(store, busy) > PATTERNS, START_PATIENCE, "a worker at work")
            steps = _forget(store.url, old.isoformat())
            running.wait(PATIENCE)
        if (done := count(store, "runs WHERE state = 'done'")) != before - forgotten + events:
            raise ContestantFailed(
                f"{before} runs were done, {forgotten} of them forgotten, {events} added: {done} are"
            )
        ends = finished(store)[PATTERNS:]
    return {
        "forgotten": forgotten,
        "ids_seconds": sum(ended - began for began, ended in steps.ids),
        "drop_seconds": sum(ended - began for began, ended in steps.drops),
        "longest_pause_seconds": _longest_pause(ends, steps.began, steps.ended),
        # None where the worker had no work left by then: give it more.
        "longest_pause_in_drop_seconds": _longest_pause(ends, steps.drops[0][0], steps.drops[-1][1]),
    }


def _worker(site: Site, store: PostgresDatabase, events: int) -> Launch:
    """Publish so many events, and return how to start the worker that drains them."""
    rulebook, published = site.folder / "rulebook.yaml", site.folder / "events.jsonl"
    rulebook.write_text(job.rulebook(job.TO_OUTBOX))
    with published.open("wb") as file:
        file.writelines(job.an_event(new_person(number)) + b"\n" for number in range(events))
    environ = environ_of(store, rulebook)
    with started(
        Launch([str(SCRIPT), "publish", str(published)], site.folder, environ), site.folder / "out"
    ) as running:
        running.wait(PATIENCE)
    return Launch([str(SCRIPT), "run", "--drain"], site.folder, environ)


def _forget(url: str, day: str) -> Steps:
    """Take retention's steps until a day is gone; where somebody is in the way it walks again, as a worker's would."""
    steps, deadline = Steps(), time.monotonic() + PATIENCE
    with closing(PostgresStore.open(url)) as store:
        retention = PostgresRetention(store, KEEP)
        while day in partitions.days(store.connection):
            if time.monotonic() > deadline:
                raise ContestantFailed(f"{day} was not forgotten within {PATIENCE:.0f} s")
            began = time.time()
            retention.step(datetime.now(UTC))
            ended = time.time()
            taken = steps.ids if day in partitions.days(store.connection) else steps.drops
            taken.append((began, ended))
    return steps


def _longest_pause(ends: Sequence[float], began: float, ended: float) -> float | None:
    """Return the longest time without the end of a run, of those that touch a span; None where none does."""
    return max((after - before for before, after in pairwise(ends) if after >= began and before <= ended), default=None)


def main() -> None:
    """Measure once, and print the figures."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.forgetting", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--forgotten", type=int, default=500_000, help="events of the old day: 500,000")
    parser.add_argument("--events", type=int, default=100_000, help="new ones, on which the worker is busy: 100,000")
    parser.add_argument("--folder", type=Path, help="where the servers have their files: on a disk")
    given = parser.parse_args()
    try:
        with temporary_folder(given.folder or machine.a_disk()) as folder, Lab(folder) as lab:
            print(json.dumps(measure(lab, given.forgotten, given.events), indent=1))
    except (ContestantFailed, NoPostgres, NoRabbit, NoRoom) as failure:
        raise SystemExit(str(failure)) from None


if __name__ == "__main__":
    main()
