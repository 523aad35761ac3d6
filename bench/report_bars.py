"""The bars that were set for this product's speed, and what a run says of each: measured, held, or short by how much.

A bar is judged by medians over the rounds; the extremes stand beside them. What limits a figure that falls short is
for a person to say: bench/report.py takes that from the remarks under the bar's key.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bench.report_figures import (
    BASE,
    JOURNALING_LOOP,
    JOURNALING_LOOP_POSTGRESQL,
    ON_POSTGRESQL,
    Line,
    Results,
    Spread,
    setup,
    spread,
)

AT_LEAST, UNDER = "at least", "under"
MOST = 1.05
WITHIN = f"at most {MOST}"
UNKNOWN = "not measured"

# By the key of its remark, what a bar is about.
BARS = {
    "peers": "The fastest peer",
    "loop": "The journaling loop on SQLite",
    "loop_postgresql": "The journaling loop on PostgreSQL",
    "latency": "Latency",
    "chains": "The number of chains",
    "startup": "The start",
    "memory": "Memory",
}


@dataclass(frozen=True)
class Verdict:
    """One bar: what was asked, what was measured, and by which share it falls short (0 where it holds)."""

    key: str
    what: str
    asked: str
    measured: str
    short: float | None  # None: not measured

    @property
    def holds(self) -> bool:
        """Whether it was measured and holds."""
        return self.short == 0.0


def verdicts(results: Results) -> list[Verdict]:
    """Judge every bar."""
    return [*_ratios(results), *_latencies(results), *_chains(results), *_starts(results), *_memory(results)]


def _judge(
    key: str, what: str, sense: str, bar: float, found: Spread | None, *, unit: str = "", digits: int = 2,
    worst: bool = False,
) -> Verdict:  # fmt: skip
    """Compare a median (or the highest value, where that is what is promised) with its bar."""
    asked = f"{sense} {bar:.{digits}f}{unit}" if bar != int(bar) else f"{sense} {bar:.0f}{unit}"
    if found is None:
        return Verdict(key, what, asked, UNKNOWN, None)
    value = found.most if worst else found.middle
    measured = f"{value:.{digits}f}{unit}"
    if found.count > 1:
        measured += f" ({found.least:.{digits}f} to {found.most:.{digits}f})"
    missed = value < bar if sense == AT_LEAST else value >= bar
    return Verdict(key, what, asked, measured, abs(value - bar) / bar if missed else 0.0)


def _ratios(results: Results) -> Iterator[Verdict]:
    best = results.best_peer()
    name = f"events/s on SQLite, to the fastest peer ({results.title(best) if best else 'none was measured'})"
    yield _judge("peers", name, AT_LEAST, 4, results.ratio(BASE, best) if best else None)
    for key, ours, loop, bar in (
        ("loop", BASE, JOURNALING_LOOP, 0.6),
        ("loop_postgresql", ON_POSTGRESQL, JOURNALING_LOOP_POSTGRESQL, 0.5),
    ):
        store = _store(ours)
        yield _judge(
            key, f"events/s on {store}, to the journaling loop on {store}", AT_LEAST, bar, results.ratio(ours, loop)
        )


def _store(ours: str) -> str:
    return "PostgreSQL" if ours == ON_POSTGRESQL else "SQLite"


def _latencies(results: Results) -> Iterator[Verdict]:
    rates = results.distinct("latency", "rate")
    at = f" at {rates[0]}/s" if len(rates) == 1 else ""
    for ours in (BASE, ON_POSTGRESQL):
        found = results.spread("latency", ours, "p99_ms")
        yield _judge("latency", f"p99{at}, {_store(ours)}", UNDER, 8, found, unit=" ms", digits=1)


def _chains(results: Results) -> Iterator[Verdict]:
    lines = results.lines("chains")
    if not lines:
        yield Verdict("chains", "processor time of an event with many chains, to that with one", WITHIN, UNKNOWN, None)
    for line in lines:
        yield _within(line, setup(line, lines))


def _within(line: Line, name: str) -> Verdict:
    """Judge the size that costs most: one that is slow in between is not within 5 % either."""
    what = f"processor time of an event with up to {line.sizes[-1]:,} chains, to that with {line.sizes[0]:,}, {name}"
    costs = {size: found for size in line.sizes[1:] if (found := line.to_base(size, "cost_us"))}
    if not costs:
        return Verdict("chains", what, WITHIN, UNKNOWN, None)
    worst = max(costs, key=lambda size: costs[size].middle)
    cost = costs[worst]
    speeds = [found.middle for size in costs if (found := line.to_base(size, "events_per_second"))]
    told = f"{cost.middle:.2f}"
    told += f" ({cost.least:.2f} to {cost.most:.2f})" if cost.count > 1 else ""
    told += f" with {worst:,}"
    told += f"; of the events/s, at the least {min(speeds):.2f}" if speeds else ""
    return Verdict("chains", what, WITHIN, told, max(0.0, cost.middle / MOST - 1))


def _starts(results: Results) -> Iterator[Verdict]:
    for field, what in (("started_seconds", "`worker.started`"), ("first_text_seconds", "the first text")):
        for ours in (BASE, ON_POSTGRESQL):
            found = results.spread("startup", ours, field)
            yield _judge("startup", f"start to {what}, {_store(ours)}", UNDER, 0.5, found, unit=" s")


def _memory(results: Results) -> Iterator[Verdict]:
    """Peaks are judged by the highest, for that is what has to fit."""
    for ours in (BASE, ON_POSTGRESQL):
        throughput = results.rounds("throughput", ours, "peak_mb").values()
        found = spread(throughput)
        yield _judge(
            "memory", f"peak memory with one chain, {_store(ours)}", UNDER, 100, found, unit=" MB", digits=0, worst=True
        )
