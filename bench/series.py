"""What an event costs as things grow: chains, the backlog in the queue, the archive, runs that wait. Ours only.

Each size is measured in a pair with the smallest one, back to back, and the order changes from pair to pair: their
ratio does not follow whatever else the machine does. The rows of a pair have the same `round`, which counts pairs.

All runs are between two quorum queues: there each event is taken in, remembered, worked off and answered by the one
worker whose time is taken. What has to be there before (stores, queues) is made once for each size.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

from bench import job
from bench.fill_people import NoRoom, new_person
from bench.ours import SqliteFile
from bench.processes import ContestantFailed
from bench.series_run import Passage, fill_queue
from bench.series_stores import Past, PostgresStores, SqliteStores, Stores
from bench.site import Lab, Site
from tests.harness.postgres import NoPostgres

EVENTS = 20_000
# `spread` is `chains` with the events over all of them, each chain's first event included; `drained` is `backlog`
# worked off to its end. Both are measured when asked for. 10,000,000 archived events take 23 GB on SQLite, 35 GB on
# PostgreSQL, and some minutes to fill in.
SIZES: Mapping[str, Sequence[int]] = {
    "chains": (1, 10, 100, 1_000, 10_000, 100_000),
    "spread": (1, 1_000, 100_000),
    "backlog": (10_000, 100_000, 1_000_000),
    "drained": (10_000, 1_000_000),
    "archive": (10_000, 100_000, 1_000_000),
    # Of as many events, none waits in the store beside.
    "timers": (0, 10_000, 100_000, 1_000_000),
}
USUAL = ("chains", "backlog", "archive", "timers")
STORES = ("sqlite", "postgresql")
NAMES = (*SIZES, *(f"{name}-{store}" for name in ("archive", "timers") for store in STORES))
Say = Callable[[str], None]


def say(text: str) -> None:
    """Say how far this is."""
    sys.stderr.write(text + "\n")


def measure(
    lab: Lab,
    names: Sequence[str],
    rounds: int,
    sizes: Mapping[str, Sequence[int]] | None = None,
    *,
    events: int = EVENTS,
    tell: Say = say,
) -> Generator[dict[str, Any], None, None]:
    """Yield the rows of these series; `archive` and `timers` are on both stores, `archive-sqlite` and so on on one.

    A size that does not fit on the disk is left out, as is what failed; `tell` hears why.
    """
    wanted = {**SIZES, **(sizes or {})}
    for name in names:
        for store in _stores_of(name):
            series = name.removesuffix(f"-{store}")
            with ExitStack() as stack:
                try:
                    subject = _subject(series, store, lab, stack, events)
                    yield from _pairs(subject, series, sorted(set(wanted.get(name, wanted[series]))), rounds, tell)
                except NoPostgres as missing:
                    tell(f"{series}, {store}: {missing}")


def _stores_of(name: str) -> Sequence[str]:
    if name in ("archive", "timers"):
        return STORES
    return ("postgresql",) if name.endswith("-postgresql") else ("sqlite",)


class Subject(Protocol):
    """One series on one store."""

    store: str

    def prepare(self, size: int) -> None:
        """Make what has to be there for a size. Raises NoRoom where it does not fit, and ContestantFailed."""
        ...

    def run(self, size: int, other: int) -> dict[str, Any]:
        """Measure a size once; `other` is the larger one of its pair. Raises ContestantFailed."""
        ...


def _pairs(subject: Subject, series: str, sizes: Sequence[int], rounds: int, tell: Say) -> Iterator[dict[str, Any]]:
    there = []
    for size in sizes:
        try:
            subject.prepare(size)
        except (NoRoom, ContestantFailed) as refusal:
            tell(f"{series}, {subject.store}, {size:,}: left out: {refusal}")
        else:
            there.append(size)
    if not there:
        return
    base, *others = there
    couples: list[tuple[int, ...]] = [(base, other) for other in others] or [(base,)]
    for number, couple in enumerate(couple for _ in range(rounds) for couple in couples):
        # By rounds and by sizes, for each size has to be first as often as its base.
        order = -1 if (number // len(couples) + number % len(couples)) % 2 else 1
        for size in couple[::order]:
            row = {"series": series, "store": subject.store, "source": "rabbitmq", "size": size, "round": number}
            try:
                row |= subject.run(size, couple[-1])
            except ContestantFailed as failure:
                tell(f"{series}, {subject.store}, {size:,}: {failure}")
                continue
            tell(f"{series}, {subject.store}, {size:,}: {_figures(row)}")
            yield row


def _figures(row: Mapping[str, Any]) -> str:
    database = "" if row["database_cpu_us"] is None else f" + {row['database_cpu_us']:.0f}"
    return f"{row['events_per_second']:,.0f} events/s, {row['cpu_us']:.0f}{database} µs, {row['peak_mb']:.0f} MB"


def _subject(series: str, store: str, lab: Lab, stack: ExitStack, events: int) -> Subject:
    if series in ("chains", "spread"):
        return Chains(stack.enter_context(lab.site(series)), events, spread=series == "spread")
    if series in ("backlog", "drained"):
        return Backlog(lab, stack, events, whole=series == "drained")
    site = stack.enter_context(lab.site(series))
    stores: Stores = SqliteStores(site.folder) if store == "sqlite" else PostgresStores(lab, site.folder, stack)
    return Pasts(site, stores, events, waiting=series == "timers")


def _chains(count: int) -> Iterator[str]:
    """Yield a rulebook whose chains differ in the conversation that they are for; the first is that of the job."""
    yield f"{job.HEAD}{job.TO_VUMI}chains:\n"
    for number in range(count):
        yield job.CHAIN.replace("welcome", f"welcome-{number}").replace(
            "on: {", f"on: {{conversation: {_conversation(number)}, "
        )


def _conversation(number: int) -> str:
    return f"a6a20571e77f4aa89a8b10a7{number:08d}"


def _event_of(number: int, chain: int) -> bytes:
    return job.an_event(number).replace(b"a6a20571e77f4aa89a8b10a771b005bc", _conversation(chain).encode())


class Chains:
    """A rulebook of so many chains. The events are of one of them, or of as many as there are."""

    store = "sqlite"

    def __init__(self, site: Site, events: int, *, spread: bool) -> None:
        self._site, self._events, self._spread = site, events, spread
        self._stores = SqliteStores(site.folder)
        self._stores.fill(Past(0))

    def prepare(self, size: int) -> None:
        """Write the rulebook."""
        with self._rulebook(size).open("w") as file:
            file.writelines(_chains(size))

    def run(self, size: int, other: int) -> dict[str, Any]:
        """Measure a size once."""
        chains = min(size, self._events) if self._spread else 1
        # The chain in the middle of the rulebook, or all of them.
        first = 0 if self._spread else size // 2
        fill_queue(
            self._site,
            (_event_of(number, first + number % chains) for number in itertools.count()),
            self._events,
            empty_before=True,
        )
        with self._stores.take(Past(0)) as store:
            return Passage(self._site, store, self._rulebook(size), on_server=False).measure(self._events)

    def _rulebook(self, size: int) -> Path:
        return self._site.folder / f"chains-{size}.yaml"


class Backlog:
    """A queue in which so many events wait; measured are the first of them, or all."""

    store = "sqlite"

    def __init__(self, lab: Lab, stack: ExitStack, events: int, *, whole: bool) -> None:
        self._lab, self._stack, self._events, self._whole = lab, stack, events, whole
        self._sites: dict[int, Site] = {}
        self._numbers = itertools.count()

    def prepare(self, size: int) -> None:
        """Fill the queue of this size, with events of its own."""
        site = self._sites[size] = self._stack.enter_context(self._lab.site(f"backlog-{size}"))
        (site.folder / "rulebook.yaml").write_text(job.rulebook(job.TO_VUMI))
        self._fill_up(size)
        # The same number everywhere: as many as the smallest has.
        self._events = min(self._events, size)

    def run(self, size: int, other: int) -> dict[str, Any]:
        """Measure a size once; what is missing of it comes in behind the rest."""
        self._fill_up(size)
        site = self._sites[size]
        folder = site.folder / "store"
        folder.mkdir()
        passage = Passage(site, SqliteFile(folder / "store.db"), site.folder / "rulebook.yaml", on_server=False)
        try:
            return passage.measure(size if self._whole else self._events)
        finally:
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()

    def _fill_up(self, size: int) -> None:
        fill_queue(self._sites[size], map(job.an_event, self._numbers), size, empty_before=False)


class Pasts:
    """A store that holds so many events, archived or with runs that wait.

    A run that waits has an event, whose id and person the store knows: that costs what an archived event costs. So a
    store with none that wait is one with as many archived events as wait in the other store of the pair.
    """

    def __init__(self, site: Site, stores: Stores, events: int, *, waiting: bool) -> None:
        self._site, self._stores, self._events, self._waiting = site, stores, events, waiting
        self.store = stores.kind
        self._numbers = itertools.count()
        self._rulebook = site.folder / "rulebook.yaml"
        self._rulebook.write_text(job.rulebook(job.TO_VUMI))

    def prepare(self, size: int) -> None:
        """Fill what is needed for a size; warm what will be used again."""
        pasts = [Past(size, waiting=True), Past(size)] if self._waiting and size else [Past(size)]
        for past in pasts:
            if self._stores.fill(past):
                self._run(past)

    def run(self, size: int, other: int) -> dict[str, Any]:
        """Measure a size once, with new people among those that the store knows."""
        if self._waiting:
            return self._run(Past(size, waiting=True) if size else Past(other))
        return self._run(Past(size))

    def _run(self, past: Past) -> dict[str, Any]:
        bodies = (job.an_event(new_person(number)) for number in self._numbers)
        fill_queue(self._site, bodies, self._events, empty_before=True)
        on_server = self.store == "postgresql"
        with self._stores.take(past) as store:
            return Passage(self._site, store, self._rulebook, on_server=on_server).measure(self._events)
