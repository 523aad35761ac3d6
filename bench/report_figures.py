"""What the figures of a results document come to: medians with their extremes, and ratios of the same round.

It reads the document as bench/__main__.py writes it and knows neither Markdown nor plots, which both build upon it.
A ratio is taken within a round, where both sides had the same machine in the same minutes, and then the median of
these: so a slow moment that falls on a whole round leaves it alone.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

OURS, LOOP, PEER, OUTSIDE = "ours", "loop", "peer", "outside"
BARE_LOOP, JOURNALING_LOOP, JOURNALING_LOOP_POSTGRESQL = "pika_loop", "pika_journal", "pika_journal_postgresql"
BASE, ON_POSTGRESQL = "ours-sqlite", "ours-postgresql"

Row = Mapping[str, Any]
Rounds = dict[int, float]


@dataclass(frozen=True)
class Spread:
    """A median with its extremes, and of how many values it is."""

    middle: float
    least: float
    most: float
    count: int


def spread(values: Iterable[float]) -> Spread | None:
    """Return the median of some values with their extremes; None where there are none."""
    found = sorted(values)
    return Spread(statistics.median(found), found[0], found[-1], len(found)) if found else None


def paired(over: Rounds, under: Rounds) -> Spread | None:
    """Return what one side is to the other, in the rounds that have both."""
    return spread(over[number] / under[number] for number in over.keys() & under.keys() if under[number])


@dataclass(frozen=True)
class Line:
    """What one set-up did at the sizes of one series: rows by size, then by round."""

    store: str
    source: str
    rows: Mapping[int, Mapping[int, Row]]

    @property
    def sizes(self) -> list[int]:
        """The sizes, the base first."""
        return sorted(self.rows)

    def rounds(self, size: int, field: str) -> Rounds:
        """Return a field by round; `cost_us` is the processor time of worker and database together."""
        return {number: found for number, row in self.rows[size].items() if (found := _value(row, field)) is not None}

    def spread(self, size: int, field: str) -> Spread | None:
        """Return the median of a field at a size."""
        return spread(self.rounds(size, field).values())

    def to_base(self, size: int, field: str) -> Spread | None:
        """Return what a field at a size is to the same field at the smallest size."""
        return paired(self.rounds(size, field), self.rounds(self.sizes[0], field))


def _value(row: Row, field: str) -> float | None:
    if field == "cost_us":
        return None if row["cpu_us"] is None else row["cpu_us"] + (row.get("database_cpu_us") or 0.0)
    return row.get(field)


class Results:
    """A results document, by what is asked of it."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.document = document
        self._contestants = {each["name"]: each for each in document.get("contestants", ())}

    def contestants(self, *kinds: str) -> list[Row]:
        """Return the contestants of some kinds, in the order of the document."""
        return [each for each in self._contestants.values() if each["kind"] in kinds]

    def has(self, name: str) -> bool:
        """Whether a contestant took part."""
        return name in self._contestants

    def title(self, name: str) -> str:
        """Return how a contestant is called."""
        return str(self._contestants[name]["title"])

    def rounds(self, measure: str, name: str, field: str) -> Rounds:
        """Return a field of a measure by round; without the rounds that lack it."""
        return {
            row["round"]: row[field]
            for row in self.document.get(measure, ())
            if row["contestant"] == name and row.get(field) is not None
        }

    def spread(self, measure: str, name: str, field: str) -> Spread | None:
        """Return the median of a field over the rounds."""
        return spread(self.rounds(measure, name, field).values())

    def ratio(self, over: str, under: str, field: str = "events_per_second") -> Spread | None:
        """Return what one contestant's throughput is to another's."""
        return paired(self.rounds("throughput", over, field), self.rounds("throughput", under, field))

    def best_peer(self) -> str | None:
        """Return the peer with the highest median of events/s."""
        speeds = {
            each["name"]: found.middle
            for each in self.contestants(PEER)
            if (found := self.spread("throughput", each["name"], "events_per_second"))
        }
        return max(speeds, key=speeds.__getitem__, default=None)

    def distinct(self, measure: str, field: str) -> list[Any]:
        """Return the different values that a field has over all runs of a measure.

        Without those of contestants outside the job: they measure themselves, by figures of their own.
        """
        outside = {each["name"] for each in self.contestants(OUTSIDE)}
        rows = [row for row in self.document.get(measure, ()) if row["contestant"] not in outside]
        return sorted({row[field] for row in rows if row.get(field) is not None})

    def lines(self, series: str) -> list[Line]:
        """Return what each set-up did in a series."""
        found: dict[tuple[str, str], dict[int, dict[int, Row]]] = {}
        for row in self.document.get("series", ()):
            if row["series"] == series:
                sizes = found.setdefault((row["store"], row["source"]), {})
                sizes.setdefault(row["size"], {})[row["round"]] = row
        return [Line(store, source, rows) for (store, source), rows in found.items()]


# By name: the heading, and what its size counts.
SERIES: Mapping[str, tuple[str, str]] = {
    "chains": ("Chains", "chains in the rulebook"),
    "backlog": ("Backlog", "events that wait"),
    "archive": ("Archive", "events done earlier and still kept"),
    "timers": ("Timers", "runs that wait for their time"),
    "spread": ("Chains, all of them in use", "chains in the rulebook, over which the events are spread"),
    "drained": ("Backlog, to its end", "events that wait, all of which are worked off"),
}
PLOTTED = ("chains", "backlog", "archive", "timers")


def setup(line: Line, lines: Sequence[Line] = ()) -> str:
    """Return how a series' set-up is called; the source only where the others have another."""
    store = {"sqlite": "SQLite", "postgresql": "PostgreSQL"}.get(line.store, line.store)
    source = {"rabbitmq": "RabbitMQ"}.get(line.source, line.source)
    return store if lines and len({each.source for each in lines}) == 1 else f"{store}, {source}"
