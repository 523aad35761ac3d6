"""Measure ours and its peers side by side, on one broker and in one run: they take turns within each round.

So whatever else the machine does falls on all of them, and ratios are taken within a round. Everything is private and
temporary: the broker, PostgreSQL, their folders. Results are written after every row; Ctrl-C and SIGTERM end all that
was started.

    python -m bench --quick --only ours-sqlite,pika_loop,pika_journal
    python -m bench --measures throughput --rounds 3 --json found.json
    python -m bench --resume found.json --json found.json --write-docs
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import latency, machine, series, startup, table, throughput
from bench.contestants import Contestant, Feed, choose
from bench.ending import temporary_folder
from bench.environments import ROOT, Unavailable
from bench.processes import ContestantFailed
from bench.results import MEASURES, SERIES, Results
from bench.site import Lab
from tests.harness.rabbit import NoRabbit

# Rounds, events in the queue, seconds of latency.
USUAL = (5, 20_000, 10.0)
QUICK = (1, 2_000, 3.0)


@dataclass(frozen=True)
class Options:
    """What is measured."""

    measures: Sequence[str]
    rounds: int
    events: int
    rate: int
    seconds: float

    @property
    def most(self) -> int:
        """The most events that any run takes; one more than the steady ones warms the latency's way up."""
        return max(self.events, int(self.rate * self.seconds) + 1)


class Benchmark:
    """One run on one lab."""

    def __init__(self, lab: Lab, options: Options, results: Results) -> None:
        self._lab, self._options, self._results = lab, options, results
        self._feed = Feed(lab, options.most)

    def prepare(self, contestants: Sequence[Contestant]) -> list[Contestant]:
        """Make everybody ready; return those who can take part."""
        ready = []
        order = [one.name for one in choose((), ())]
        for one in contestants:
            try:
                versions = one.prepare(self._lab)
            except Unavailable as lack:
                self._miss(one, str(lack))
            else:
                self._results.enter(one, order, versions)
                ready.append(one)
        return ready

    def run(self, contestants: Sequence[Contestant]) -> None:
        """Measure them, by rounds; one that fails takes part no longer."""
        still = list(contestants)
        for number in range(self._options.rounds):
            for measure in (name for name in MEASURES if name in self._options.measures):
                for one in [*still] if number % 2 == 0 else [*reversed(still)]:
                    left_out = measure not in one.measures or number >= (one.rounds or number + 1)
                    if left_out or self._results.has(measure, one, number):
                        continue
                    try:
                        row = self._measure(measure, one)
                    except ContestantFailed as failure:
                        still.remove(one)
                        self._miss(one, f"{measure}, round {number}: {failure}")
                    else:
                        self._results.add(measure, {"contestant": one.name, "round": number, **row})
                        say(f"{measure}, round {number}, {one.name}: {shown(row)}")

    def _measure(self, measure: str, one: Contestant) -> dict[str, Any]:
        options = self._options
        if measure == "throughput":
            feed = self._feed
            return throughput.measure(self._lab, one, options.events, lambda: feed.messages(one, options.events))
        if measure == "latency":
            steady = int(options.rate * options.seconds)
            messages = self._feed.messages(one, steady + 1)
            return latency.measure(self._lab, one, options.rate, options.seconds, messages)
        return startup.measure(self._lab, one, self._feed.messages(one, 1))

    def grow(self, names: Sequence[str], sizes: Mapping[str, Sequence[int]]) -> None:
        """Measure what an event costs as things grow."""
        # An end may come while a row is written: then, too, a series takes away what it has made.
        with closing(series.measure(self._lab, names, self._options.rounds, sizes)) as rows:
            for row in rows:
                self._results.add(SERIES, row)

    def _miss(self, one: Contestant, why: str) -> None:
        self._results.miss(one, why)
        say(f"{one.name} is missing: {why}")


def say(text: str) -> None:
    """Say how far this is."""
    sys.stderr.write(text + "\n")


def shown(row: Mapping[str, Any]) -> str:
    """Write a row on one line."""
    return ", ".join(f"{name} {value:,.5g}" for name, value in row.items() if isinstance(value, int | float))


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _series(text: str) -> tuple[str, list[int]]:
    """Read `chains=1,1000` or `chains`. Raises ArgumentTypeError."""
    name, _, counts = text.partition("=")
    if name not in series.NAMES:
        raise argparse.ArgumentTypeError(f"there is no series {name}; there are {', '.join(series.NAMES)}")
    if not all(count.isdecimal() for count in _names(counts)):
        raise argparse.ArgumentTypeError(
            f"the sizes of {name} are whole numbers with commas between them, not {counts}"
        )
    return name, [int(count) for count in _names(counts)]


def _existing(text: str) -> Path:
    """Read the name of something that is there. Raises ArgumentTypeError."""
    if not (path := Path(text)).exists():
        raise argparse.ArgumentTypeError(f"there is no {text}")
    return path


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=__doc__,
        epilog=f"Contestants: {', '.join(one.name for one in choose((), ()))}.\nSeries: {', '.join(series.NAMES)}.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--only", type=_names, default=[], metavar="NAMES", help="contestants, by commas; all without it")
    add("--without", type=_names, default=[], metavar="NAMES", help="contestants that do not take part")
    add(
        "--measures",
        type=_names,
        default=[*MEASURES, SERIES],
        metavar="NAMES",
        help=f"of {', '.join(MEASURES)}, {SERIES}",
    )
    add("--rounds", type=int, help="5")
    add("--events", type=int, help="in the queue that is drained: 20,000")
    add("--rate", type=int, default=500, help="events/s while latency is measured")
    add("--seconds", type=float, help="how long latency is measured: 10, of which the first does not count")
    add(
        "--series",
        nargs="+",
        type=_series,
        default=[(name, []) for name in series.USUAL],
        metavar="NAME[=SIZES]",
        help="chains=1,1000 backlog ...; the usual without it",
    )
    add("--quick", action="store_true", help="2,000 events, one round, three seconds of latency, no series")
    add("--folder", type=_existing, help="where stores and servers have their files: on a disk")
    add("--json", type=Path, metavar="FILE", help="where the results go")
    add("--resume", type=_existing, metavar="FILE", help="earlier results, whose rows are not measured again")
    add("--write-docs", action="store_true", help="write docs/benchmarks.md with its plots")
    given = parser.parse_args(arguments)
    rounds, events, seconds = QUICK if given.quick else USUAL
    for name, usual in (("rounds", rounds), ("events", events), ("seconds", seconds)):
        if getattr(given, name) is None:
            setattr(given, name, usual)
    if given.quick:
        given.measures = [name for name in given.measures if name != SERIES]
    if strange := set(given.measures) - {*MEASURES, SERIES}:
        parser.error(f"there is no measure {', '.join(sorted(strange))}")
    if given.events < 10 or given.rounds < 1 or given.rate < 1 or given.seconds <= latency.WARM_UP:
        parser.error(f"--events begin at 10, --rounds and --rate at 1, --seconds above {latency.WARM_UP}")
    if given.write_docs and (given.quick or given.only or given.without) and not given.resume:
        parser.error("--write-docs replaces the page of a whole run; a part of one goes into it with --resume")
    return given


def main() -> None:
    """Measure, print the table, write the results."""
    given = parse()
    contestants = choose(given.only, given.without)
    parent = given.folder or machine.a_disk()
    if (kind := machine.filesystem(parent)) in machine.IN_MEMORY:
        raise SystemExit(f"{parent} is a {kind}, where syncing costs nothing: name a --folder on a disk")
    file = given.json or Path(tempfile.mkstemp(prefix="bench-", suffix=".json", dir=parent)[1])
    results = Results.resumed(given.resume, file) if given.resume else Results(file)
    options = Options(given.measures, given.rounds, given.events, given.rate, given.seconds)
    try:
        with temporary_folder(parent) as folder:
            _measure(folder, contestants, options, results, dict(given.series))
    except NoRabbit as missing:
        raise SystemExit(str(missing)) from None
    finally:
        print("\n".join(table.lines(results.document)))
        if given.json or any(results.document[name] for name in (*MEASURES, SERIES)):
            print(f"Results: {file}")
        else:
            file.unlink(missing_ok=True)
    if given.write_docs:
        from bench import report  # noqa: PLC0415 - its plots need what other runs do not

        report.write(results.document, ROOT / "docs")
    if any(each["name"].startswith("ours") for each in results.document["missing"]):
        raise SystemExit("One of ours is missing.")


def _measure(
    folder: Path,
    contestants: Sequence[Contestant],
    options: Options,
    results: Results,
    growing: Mapping[str, Sequence[int]],
) -> None:
    if (earlier := results.document["commit"]) and earlier != machine.commit():
        say(f"The earlier results are of {earlier}, and this is {machine.commit()}: they should not be mixed.")
    results.describe(
        commit=machine.commit(), options={**vars(options)}, machine=machine.described(folder),
        versions=machine.versions(),
    )  # fmt: skip
    if (busy := machine.busy()) > 0.1:
        say(f"This machine is doing something else ({busy:.0%} of it): figures will be worse and less steady.")
    with Lab(folder) as lab:
        benchmark = Benchmark(lab, options, results)
        benchmark.run(benchmark.prepare(contestants))
        if SERIES in options.measures:
            benchmark.grow([*growing], {name: sizes for name, sizes in growing.items() if sizes})
        results.describe(versions=lab.versions())


if __name__ == "__main__":
    main()
