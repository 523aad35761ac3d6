"""What batches did, in numbers: for the log, and for whoever scrapes the metrics.

One `Counts` goes with each batch; those of batches that were committed are added to one that totals them. Counting must
cost next to nothing, so these are plain numbers in plain dicts; names and words for people are the reader's business.
The totals stay small whatever comes from outside: of the keys of events that nothing matched only so many are kept.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeVar

from dispatcher.engine.records import DEAD_LETTER_COLUMNS

if TYPE_CHECKING:
    from dispatcher.engine.intake import Delivery, Receipt
    from dispatcher.engine.records import Changes
    from dispatcher.events.event import Event

_REASON: Final = DEAD_LETTER_COLUMNS.index("reason")
_KIND: Final = DEAD_LETTER_COLUMNS.index("kind")

K = TypeVar("K")

# Upper bounds of what is counted apart: seconds of a step, from what a batch does inline to the slowest gateway;
# seconds of a batch; and the things in one. Above the last bound there is one more place.
STEP_SECONDS: Final = (
    *(0.00002, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1),
    *(0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)  # fmt: skip
BATCH_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
BATCH_SIZES: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)

MOST_KEYS: Final = 1_000
LONGEST_NAME: Final = 100
# Where the keys go that came when there was no room left.
OTHER: Final = "other"


class Histogram:
    """How many values fell below each bound, and their sum. `counts` has one place more than there are bounds."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count a value; one that equals a bound is below it."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def add(self, other: Histogram) -> None:
        """Count what another histogram with the same bounds did."""
        for place, number in enumerate(other.counts):
            if number:
                self.counts[place] += number
        self.total += other.total

    def copy(self) -> Histogram:
        """Return one that does not change with this; made in one go, so that no other thread is seen at work."""
        made = Histogram.__new__(Histogram)
        made.bounds, made.counts, made.total = self.bounds, self.counts.copy(), self.total
        return made


@dataclass(slots=True)
class Counts:
    """What a batch did, or all of them.

    `deliveries` counts by (source, kind of receipt: stored, duplicate, refused); `event_states` by (source, state that
    the event came to); `unmatched_keys` by (conversation_type, event_type); `runs_ended` by state; `outcomes` by the
    name of their class; `dead_letters` by reason; `latencies` holds seconds by handler.
    """

    events: int = 0
    unmatched: int = 0
    runs: int = 0
    steps: int = 0
    retries: int = 0
    commits: int = 0
    # Batches that were tried again because another worker was faster.
    contended: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    deliveries: dict[tuple[str, str], int] = field(default_factory=dict)
    event_states: dict[tuple[str, str], int] = field(default_factory=dict)
    unmatched_keys: dict[tuple[str | None, str], int] = field(default_factory=dict)
    runs_ended: dict[str, int] = field(default_factory=dict)
    dead_letters: dict[str, int] = field(default_factory=dict)
    latencies: dict[str, Histogram] = field(default_factory=dict)
    batch_seconds: Histogram = field(default_factory=lambda: Histogram(BATCH_SECONDS))
    batch_sizes: Histogram = field(default_factory=lambda: Histogram(BATCH_SIZES))

    def observe(self, handler: str, seconds: float) -> None:
        """Count how long an attempt of this handler took, in the batch or as a call."""
        latency = self.latencies.get(handler)
        if latency is None:
            latency = self.latencies[handler] = Histogram(STEP_SECONDS)
        latency.counts[bisect_left(STEP_SECONDS, seconds)] += 1
        latency.total += seconds

    def received(self, deliveries: Iterable[Delivery], receipts: Iterable[Receipt]) -> None:
        """Count what became of deliveries."""
        for delivery, receipt in zip(deliveries, receipts, strict=True):
            key = (delivery.source, receipt.kind)
            self.deliveries[key] = self.deliveries.get(key, 0) + 1

    def matched(self, event: Event, runs: int) -> None:
        """Count an event that so many chains run for."""
        self.runs += runs
        state = (event.source, "matched" if runs else "unmatched")
        self.event_states[state] = self.event_states.get(state, 0) + 1
        if not runs:
            self.unmatched += 1
            key = (event.conversation_type, event.event_type)
            self.unmatched_keys[key] = self.unmatched_keys.get(key, 0) + 1

    def wrote(self, changes: Changes) -> None:
        """Count what a batch leaves behind: how its runs stand, and its dead letters."""
        for run in (*changes.new_runs, *changes.changed_runs.values()):
            if run.finished_at is not None:
                self.runs_ended[run.state] = self.runs_ended.get(run.state, 0) + 1
            elif run.state == "retrying":
                self.retries += 1
        for letter in changes.dead_letters:
            self.parked(letter[_REASON])
            if letter[_KIND] == "event":
                self.event_states["emitted", "dead"] = self.event_states.get(("emitted", "dead"), 0) + 1

    def parked(self, reason: str) -> None:
        """Count a dead letter."""
        self.dead_letters[reason] = self.dead_letters.get(reason, 0) + 1

    def committed(self, size: int, seconds: float) -> None:
        """Count a batch of so many things that was committed after so many seconds."""
        self.commits += 1
        self.batch_sizes.observe(size)
        self.batch_seconds.observe(seconds)

    def add(self, other: Counts) -> None:
        """Count what another batch did. Names from outside are cut, and beyond the thousandth they are `other`."""
        self.events += other.events
        self.unmatched += other.unmatched
        self.runs += other.runs
        self.steps += other.steps
        self.retries += other.retries
        self.commits += other.commits
        self.contended += other.contended
        _add(self.outcomes, other.outcomes)
        _add(self.deliveries, other.deliveries)
        _add(self.event_states, other.event_states)
        _add(self.runs_ended, other.runs_ended)
        _add(self.dead_letters, other.dead_letters)
        for (conversation_type, event_type), number in other.unmatched_keys.items():
            key = (_cut(conversation_type) if conversation_type is not None else None, _cut(event_type))
            if key not in self.unmatched_keys and len(self.unmatched_keys) >= MOST_KEYS:
                key = (OTHER, OTHER)
            self.unmatched_keys[key] = self.unmatched_keys.get(key, 0) + number
        for handler, latency in other.latencies.items():
            name = handler if handler in self.latencies or len(self.latencies) < MOST_KEYS else OTHER
            self.latencies.setdefault(name, Histogram(STEP_SECONDS)).add(latency)
        if other.commits:
            self.batch_seconds.add(other.batch_seconds)
            self.batch_sizes.add(other.batch_sizes)

    def copy(self) -> Counts:
        """Return the numbers as they are now, for another thread than the one that counts."""
        # Each copy of a dict is one step of the interpreter: the counting thread cannot come in between.
        return Counts(
            events=self.events,
            unmatched=self.unmatched,
            runs=self.runs,
            steps=self.steps,
            retries=self.retries,
            commits=self.commits,
            contended=self.contended,
            outcomes=self.outcomes.copy(),
            deliveries=self.deliveries.copy(),
            event_states=self.event_states.copy(),
            unmatched_keys=self.unmatched_keys.copy(),
            runs_ended=self.runs_ended.copy(),
            dead_letters=self.dead_letters.copy(),
            latencies={handler: latency.copy() for handler, latency in self.latencies.copy().items()},
            batch_seconds=self.batch_seconds.copy(),
            batch_sizes=self.batch_sizes.copy(),
        )


def _add(totals: dict[K, int], numbers: Mapping[K, int]) -> None:
    for key, number in numbers.items():
        totals[key] = totals.get(key, 0) + number


def _cut(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}\N{HORIZONTAL ELLIPSIS}"
