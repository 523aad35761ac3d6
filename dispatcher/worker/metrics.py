"""The worker's numbers as Prometheus reads them: made when somebody asks, so that the work itself pays for none of it.

The only importer of prometheus_client, and that with the first scrape. What comes from outside and ends up as a label
(types of events that nothing matched, names of queues) is cut, and digits that could be a person's number are hidden.
"""

from __future__ import annotations

import math
import platform
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from dispatcher.clock import Clock, SystemClock
from dispatcher.engine.counts import LONGEST_NAME, Counts, Histogram
from dispatcher.errors import StoreUnusable
from dispatcher.events.limits import REFUSAL_CODES
from dispatcher.store.gauges import Gauges
from dispatcher.worker.health import ConsumerView, LinkView, PublisherView, Snapshot, is_live, is_ready, late_by

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric

# However many scrape, the numbers are rendered once in a while: rendering takes turns with the work.
_FRESH_SECONDS: Final = 1.0
_NUMBER: Final = re.compile(r"\+?\d(?:[ ().-]?\d){6,}")
_SURROGATE: Final = re.compile("[\ud800-\udfff]")

# What is told as 0 before it happens for the first time, so that a first time is a rise.
_RUN_STATES: Final = ("done", "failed", "cancelled")
_OUTCOMES: Final = ("Done", "RetryLater", "Failed", "Unknown")
_LATER_REASONS: Final = ("loop", "crashed", "failed", "exhausted", "unknown", "cannot_bind")


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the numbers come from; each may be asked from any thread. `gauges` may raise StoreUnusable.

    `totals` are written by the worker's thread while they are read here, so a copy of them is taken.
    """

    totals: Counts
    gauges: Callable[[], Gauges]
    snapshot: Callable[[], Snapshot]
    version: str


class Metrics:
    """Renders the numbers of one worker; `render` is for the listener's threads."""

    def __init__(self, sources: Sources, clock: Clock | None = None) -> None:
        self._sources = sources
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._registry: CollectorRegistry | None = None
        self._rendered = b""
        self._until = -math.inf

    def render(self) -> bytes:
        """Return the exposition in the text format; the same one to all who ask within a second."""
        from prometheus_client import generate_latest  # noqa: PLC0415 - takes 80 ms, and is wanted by scrapes only

        with self._lock:
            if self._clock.monotonic() >= self._until:
                self._registry = self._registry or self._make_registry()
                self._rendered = generate_latest(self._registry)
                self._until = self._clock.monotonic() + _FRESH_SECONDS
            return self._rendered

    def _make_registry(self) -> CollectorRegistry:
        from prometheus_client import (  # noqa: PLC0415
            CollectorRegistry,
            GCCollector,
            PlatformCollector,
            ProcessCollector,
        )
        from prometheus_client.registry import Collector  # noqa: PLC0415

        sources = self._sources

        class Worker(Collector):
            def collect(self) -> Iterable[Metric]:
                return _collect(sources)

            def describe(self) -> Iterable[Metric]:
                return ()  # not asked before the first scrape

        # None of the process's own registry: a plugin may have filled that with numbers of another kind.
        registry = CollectorRegistry()
        registry.register(Worker())
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        return registry


def _collect(sources: Sources) -> Iterator[Metric]:
    snapshot = sources.snapshot()
    yield _labelled_gauge(
        "dispatcher_build_info",
        "Always 1; the labels say which versions run.",
        ("version", "python"),
        {(sources.version, platform.python_version()): 1},
    )
    yield from _health(snapshot)
    yield from _totals(sources.totals.copy())
    try:
        gauges = sources.gauges()
    except StoreUnusable:
        yield _gauge("dispatcher_store_readable", "Whether the store could be read for this answer.", 0)
    else:
        yield _gauge("dispatcher_store_readable", "Whether the store could be read for this answer.", 1)
        yield from _store(gauges)
    yield from _links(snapshot)
    if snapshot.consumer is not None:
        yield from _consumer(snapshot, snapshot.consumer)
    if snapshot.publisher is not None:
        yield from _publisher(snapshot.publisher)


def _health(snapshot: Snapshot) -> Iterator[Metric]:
    ready, live = is_ready(snapshot).ready, is_live(snapshot).ready
    yield _gauge("dispatcher_live", "Whether the worker's loop turns, as /live says.", live)
    yield _gauge("dispatcher_ready", "Whether events are taken and their effects get out, as /ready says.", ready)
    yield _gauge("dispatcher_loop_late_seconds", "For how long the worker's loop is overdue.", late_by(snapshot))
    yield _gauge("dispatcher_draining", "Whether the worker takes nothing more and is about to end.",
                 snapshot.draining_since is not None)  # fmt: skip
    yield _gauge("dispatcher_sources_paused", "Whether nothing new is taken: full disk, or too many calls wait.",
                 snapshot.paused is not None)  # fmt: skip
    yield _gauge("dispatcher_calls_under_way", "Calls to the outside that have begun and not come back.",
                 snapshot.calls)  # fmt: skip


def _totals(totals: Counts) -> Iterator[Metric]:
    yield _counter(
        "dispatcher_deliveries", "Hand-overs of events by source; kind is stored, duplicate or refused.",
        ("source", "kind"), {(source, kind): number for (source, kind), number in totals.deliveries.items()},
    )  # fmt: skip
    yield _counter(
        "dispatcher_events", "Events that were matched with the chains, by source and by the state they came to.",
        ("source", "state"), {(source, state): number for (source, state), number in totals.event_states.items()},
    )  # fmt: skip
    unmatched: dict[tuple[str, ...], float] = {}
    for (conversation_type, event_type), number in totals.unmatched_keys.items():
        key = (_hidden(conversation_type or ""), _hidden(event_type))
        unmatched[key] = unmatched.get(key, 0) + number
    yield _counter(
        "dispatcher_events_unmatched", "Events that no chain wanted, by type; those beyond a thousand types are other.",
        ("conversation_type", "event_type"), unmatched,
    )  # fmt: skip
    yield _counter("dispatcher_runs_started", "Runs of chains that were started.", (), {(): totals.runs})
    yield _counter(
        "dispatcher_runs_ended", "Runs that came to an end, by their last state.",
        ("state",), _by_name(totals.runs_ended, _RUN_STATES),
    )  # fmt: skip
    yield _counter("dispatcher_steps", "Attempts of steps that were begun.", (), {(): totals.steps})
    outcomes = {_snake(name): number for name, number in _known(totals.outcomes, _OUTCOMES).items()}
    yield _counter(
        "dispatcher_step_outcomes", "Attempts of steps that were settled, by their outcome.",
        ("outcome",), _by_name(outcomes, ()),
    )  # fmt: skip
    yield _counter("dispatcher_retries", "Attempts that are to be made again later.", (), {(): totals.retries})
    yield _counter(
        "dispatcher_dead_letters", "Dead letters that were written, by reason.",
        ("reason",), _by_name(totals.dead_letters, (*REFUSAL_CODES, *_LATER_REASONS)),
    )  # fmt: skip
    yield _histogram(
        "dispatcher_step_duration_seconds", "How long attempts took, by handler, in the batch or as a call.",
        ("handler",), {(_name(handler),): latency for handler, latency in totals.latencies.items()},
    )  # fmt: skip
    yield _counter("dispatcher_commits", "Batches that were committed.", (), {(): totals.commits})
    yield _counter("dispatcher_batches_contended", "Batches tried again because another worker was faster.",
                   (), {(): totals.contended})  # fmt: skip
    yield _histogram("dispatcher_batch_duration_seconds", "How long a batch took, its commit included.",
                     (), {(): totals.batch_seconds})  # fmt: skip
    yield _histogram("dispatcher_batch_size", "Things in a batch: deliveries, events, due runs, returned calls.",
                     (), {(): totals.batch_sizes})  # fmt: skip


def _store(gauges: Gauges) -> Iterator[Metric]:
    yield _gauge("dispatcher_events_waiting", "Stored events that are yet to be matched.", gauges.events_waiting)
    yield _gauge("dispatcher_events_oldest_waiting_seconds", "Since when the first of them waits.",
                 gauges.oldest_event_seconds or 0)  # fmt: skip
    runs = {
        "due": gauges.runs_due,
        "waiting": gauges.runs_waiting,
        "retrying": gauges.runs_retrying,
        "running": gauges.runs_running,
        "held": gauges.runs_held,
    }
    yield _labelled_gauge(
        "dispatcher_runs_open", "Runs by what they stand at: due now, at a wait, before a retry, in a call, held.",
        ("state",), _by_name(runs, ()),
    )  # fmt: skip
    yield _gauge("dispatcher_runs_oldest_due_seconds", "For how long the first due run (a timer, a retry) is due.",
                 gauges.oldest_run_due_seconds or 0)  # fmt: skip
    yield _labelled_gauge(
        "dispatcher_calls_queued", "Calls that wait for a free slot or for their rate, by connection.",
        ("connection",), {(_name(lane),): number for lane, number in gauges.calls_queued.items()},
    )  # fmt: skip
    outbox = {"ready": gauges.outbox_ready, "held": gauges.outbox_held}
    yield _labelled_gauge(
        "dispatcher_outbox_rows", "What is yet to be published: ready, or held for a person to resolve.",
        ("state",), _by_name(outbox, ()),
    )  # fmt: skip
    yield _gauge("dispatcher_outbox_due", "Rows of the outbox that may go now.", gauges.outbox_due)
    yield _gauge("dispatcher_outbox_oldest_due_seconds", "For how long the first due row of the outbox is due.",
                 max(gauges.outbox_due_seconds.values(), default=0))  # fmt: skip
    yield _gauge("dispatcher_outbox_oldest_seconds", "How old the oldest row of the outbox is, due or not.",
                 gauges.oldest_outbox_seconds or 0)  # fmt: skip
    yield _labelled_gauge(
        "dispatcher_dead_letters_open", "Dead letters that nobody has replayed or discarded, by reason.",
        ("reason",), _by_name(gauges.dead_letters, ()),
    )  # fmt: skip
    yield _gauge("dispatcher_store_bytes", "Size of the store: of its file and write-ahead log, or of the database.",
                 gauges.store_bytes)  # fmt: skip
    # What only a file has, and what only workers have that share a store.
    if gauges.free_bytes is not None:
        yield _gauge("dispatcher_store_free_bytes", "Room on the store's disk.", gauges.free_bytes)
    if gauges.workers_alive is not None:
        yield _gauge("dispatcher_workers_alive", "Workers of the store that have shown life within their lease.",
                     gauges.workers_alive)  # fmt: skip
    if gauges.lease_held is not None:
        yield _gauge("dispatcher_lease_held", "Whether this worker is one of them: nobody takes its work over.",
                     gauges.lease_held)  # fmt: skip


def _links(snapshot: Snapshot) -> Iterator[Metric]:
    links: dict[str, LinkView] = {}
    if snapshot.consumer is not None:
        links["consumer"] = snapshot.consumer.link
    if snapshot.publisher is not None:
        links["publisher"] = snapshot.publisher.link
    if not links:
        return
    yield _labelled_gauge(
        "dispatcher_broker_up", "Whether the connection to the broker is up.",
        ("link",), {(name,): link.state == "up" for name, link in links.items()},
    )  # fmt: skip
    yield _counter(
        "dispatcher_broker_reconnects", "How often a connection to the broker was made again.",
        ("link",), {(name,): link.reconnects for name, link in links.items()},
    )  # fmt: skip
    yield _labelled_gauge(
        "dispatcher_broker_blocked", "Whether the broker takes nothing from us (a memory or disk alarm).",
        ("link",), {(name,): link.blocked_since is not None for name, link in links.items()},
    )  # fmt: skip
    yield _counter(
        "dispatcher_broker_blocked_seconds", "For how long in all the broker has taken nothing from us.",
        ("link",), {(name,): link.blocked_seconds for name, link in links.items()},
    )  # fmt: skip


def _consumer(snapshot: Snapshot, consumer: ConsumerView) -> Iterator[Metric]:
    queues = {_name(queue.name): queue for queue in consumer.queues}
    yield _labelled_gauge(
        "dispatcher_queue_consuming", "Whether the broker delivers from this queue to us.",
        ("queue",), {(name,): queue.consuming for name, queue in queues.items()},
    )  # fmt: skip
    yield _labelled_gauge(
        "dispatcher_queue_unacked", "Deliveries of this queue that are not acked yet.",
        ("queue",), {(name,): queue.unacked for name, queue in queues.items()},
    )  # fmt: skip
    oldest: dict[tuple[str, ...], float] = {
        (name,): 0.0 if queue.oldest_unacked_since is None else max(0.0, snapshot.now - queue.oldest_unacked_since)
        for name, queue in queues.items()
    }
    yield _labelled_gauge(
        "dispatcher_queue_oldest_unacked_seconds", "For how long the first of them is with us.", ("queue",), oldest
    )
    yield _counter(
        "dispatcher_broker_deliveries", "Deliveries that came from the broker.", (), {(): consumer.delivered}
    )
    yield _gauge(
        "dispatcher_broker_deliveries_buffered", "Of these, those the loop has not taken yet.", consumer.buffered
    )
    yield _counter(
        "dispatcher_stale_acks", "Acks dropped because the channel of their delivery is gone; it will come again.",
        (), {(): consumer.stale_acks},
    )  # fmt: skip


def _publisher(publisher: PublisherView) -> Iterator[Metric]:
    fates = {
        "confirmed": publisher.confirmed,
        "unroutable": publisher.unroutable,
        "refused": publisher.refused,
        "unknown": publisher.unknown,
        "unsent": publisher.unsent,
    }
    yield _counter(
        "dispatcher_publishes", "Messages to publish, by what the broker answered: unknown is nothing, unsent no try.",
        ("fate",), _by_name(fates, ()),
    )  # fmt: skip
    yield _gauge(
        "dispatcher_publishes_in_flight", "Messages that the broker has not answered yet.", publisher.in_flight
    )
    yield _labelled_gauge(
        "dispatcher_exchange_ready", "Whether this exchange, which was published to, takes messages from us.",
        ("exchange",), {(_name(exchange.name),): exchange.ready for exchange in publisher.exchanges},
    )  # fmt: skip


# Families of the library, from plain numbers.


def _gauge(name: str, told: str, value: float) -> Metric:
    return _labelled_gauge(name, told, (), {(): value})


def _labelled_gauge(name: str, told: str, labels: Iterable[str], values: Mapping[tuple[str, ...], float]) -> Metric:
    from prometheus_client.core import GaugeMetricFamily  # noqa: PLC0415

    family = GaugeMetricFamily(name, told, labels=tuple(labels))
    for key, value in values.items():
        family.add_metric(key, float(value))
    return family


def _counter(name: str, told: str, labels: Iterable[str], values: Mapping[tuple[str, ...], float]) -> Metric:
    from prometheus_client.core import CounterMetricFamily  # noqa: PLC0415

    family = CounterMetricFamily(name, told, labels=tuple(labels))
    for key, value in values.items():
        family.add_metric(key, float(value))
    return family


def _histogram(name: str, told: str, labels: Iterable[str], values: Mapping[tuple[str, ...], Histogram]) -> Metric:
    from prometheus_client.core import HistogramMetricFamily  # noqa: PLC0415

    family = HistogramMetricFamily(name, told, labels=tuple(labels))
    for key, histogram in values.items():
        buckets, below = [], 0
        for bound, number in zip((*histogram.bounds, math.inf), histogram.counts, strict=True):
            below += number
            buckets.append(("+Inf" if math.isinf(bound) else str(float(bound)), below))
        family.add_metric(key, buckets, histogram.total)
    return family


def _known(numbers: Mapping[str, int], names: Iterable[str]) -> dict[str, int]:
    return dict.fromkeys(names, 0) | dict(numbers)


def _by_name(numbers: Mapping[str, int], names: Iterable[str]) -> dict[tuple[str, ...], float]:
    return {(_name(name),): number for name, number in _known(numbers, names).items()}


def _name(text: str) -> str:
    """Return a label's value: bounded, and such that it can be encoded. The library escapes the rest."""
    return _SURROGATE.sub("\N{REPLACEMENT CHARACTER}", text[:LONGEST_NAME])


def _hidden(text: str) -> str:
    return _NUMBER.sub("#", _name(text))


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
