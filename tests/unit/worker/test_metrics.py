from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from dispatcher.engine.counts import MOST_KEYS, Counts
from dispatcher.errors import StoreUnusable
from dispatcher.store.gauges import Gauges
from dispatcher.testing import FrozenClock
from dispatcher.worker.health import Pulse, Snapshot
from dispatcher.worker.metrics import Metrics, Sources
from dispatcher.worker.overview import Overview
from tests.unit.worker.test_health import HEALTHY, NOW, Consumer, Exchange, Link, Publisher, Queue

GAUGES = Gauges(
    at=datetime(2026, 1, 2, tzinfo=UTC),
    events_waiting=3,
    oldest_event_seconds=4.5,
    outbox_ready=5,
    outbox_held=1,
    outbox_due=2,
    outbox_ready_seconds={},
    outbox_due_seconds={"": 6.0, "sender:bulk": 60.0},
    oldest_outbox_seconds=700.0,
    runs_due=8,
    oldest_run_due_seconds=None,
    calls_queued={"sender:bulk": 9},
    runs_waiting=10,
    runs_retrying=11,
    runs_running=12,
    runs_held=13,
    dead_letters={"failed": 14},
    store_bytes=4096,
    free_bytes=2**40,
    workers_alive=4,
    lease_held=True,
)
EMBEDDED = Snapshot(now=NOW, at=GAUGES.at, started_at=0.0, turn_due=NOW, calls=2)


class World:
    """The metrics of a worker that a test makes up."""

    def __init__(self):
        self.totals, self.found, self.snapshot = Counts(), GAUGES, EMBEDDED
        self.clock = FrozenClock()
        self.metrics = Metrics(Sources(self.totals, self.gauges, lambda: self.snapshot, "1.2.3"), self.clock)

    def gauges(self):
        if isinstance(self.found, StoreUnusable):
            raise self.found
        return self.found

    def families(self):
        self.clock.advance(timedelta(minutes=1))
        return {family.name: family for family in text_string_to_metric_families(self.metrics.render().decode())}

    def samples(self):
        """Return what Prometheus reads: {(name, sorted labels): value}."""
        found = [sample for family in self.families().values() for sample in family.samples]
        read = {(sample.name, *sorted(sample.labels.items())): sample.value for sample in found}
        assert len(read) == len(found)  # no series twice, which Prometheus would refuse
        return read

    def value(self, name, **labels):
        return self.samples()[name, *sorted(labels.items())]


@pytest.fixture
def world():
    return World()


def test_every_family_is_named_for_us_and_has_a_sentence_and_a_type(world):
    world.totals.observe("send_sms", 0.2)
    world.snapshot = HEALTHY

    families = world.families()

    ours = {name: family for name, family in families.items() if not name.startswith(("process_", "python_"))}
    assert len(ours) > 40
    for name, family in ours.items():
        assert name.startswith("dispatcher_")
        assert family.documentation.endswith(".")
        assert family.type in ("counter", "gauge", "histogram")
        if family.type == "counter":
            assert all(sample.name.endswith("_total") for sample in family.samples)


def test_the_numbers_of_the_process_are_there(world):
    samples = world.samples()

    assert samples["process_resident_memory_bytes",] > 0
    assert ("process_start_time_seconds",) in samples
    assert any(name == "python_gc_collections_total" for name, *_ in samples)


def test_the_build_is_told(world):
    (labels,) = [dict(labels) for name, *labels in world.samples() if name == "dispatcher_build_info"]

    assert labels["version"] == "1.2.3"
    assert labels["python"] == ".".join(map(str, sys.version_info[:3]))


def test_what_batches_did_is_told(world):
    world.totals.add(
        Counts(
            events=5, unmatched=1, runs=4, steps=6, retries=2,
            outcomes={"Done": 3, "RetryLater": 2, "Failed": 1},
            deliveries={("amqp", "stored"): 5, ("amqp", "refused"): 1},
            event_states={("amqp", "matched"): 4},
            unmatched_keys={("poll", "begun"): 1, (None, "begun"): 2},
            runs_ended={"done": 3, "failed": 1},
            dead_letters={"bad_json": 1},
        )
    )  # fmt: skip

    samples = world.samples()

    def value(name, **labels):
        return samples[name, *sorted(labels.items())]

    assert value("dispatcher_deliveries_total", source="amqp", kind="stored") == 5
    assert value("dispatcher_deliveries_total", source="amqp", kind="refused") == 1
    assert value("dispatcher_events_total", source="amqp", state="matched") == 4
    assert value("dispatcher_events_unmatched_total", conversation_type="poll", event_type="begun") == 1
    assert value("dispatcher_events_unmatched_total", conversation_type="", event_type="begun") == 2
    assert value("dispatcher_runs_started_total") == 4
    assert value("dispatcher_runs_ended_total", state="done") == 3
    assert value("dispatcher_steps_total") == 6
    assert value("dispatcher_step_outcomes_total", outcome="retry_later") == 2
    assert value("dispatcher_retries_total") == 2
    assert value("dispatcher_dead_letters_total", reason="bad_json") == 1


def test_what_has_not_happened_yet_is_told_as_0_so_that_the_first_time_is_a_rise(world):
    assert world.value("dispatcher_dead_letters_total", reason="exhausted") == 0
    assert world.value("dispatcher_dead_letters_total", reason="id_conflict") == 0
    assert world.value("dispatcher_runs_ended_total", state="failed") == 0
    assert world.value("dispatcher_step_outcomes_total", outcome="unknown") == 0


def test_latencies_are_a_histogram_by_handler(world):
    for seconds in (0.00001, 0.2, 0.2, 100.0):
        world.totals.observe("send_sms", seconds)

    samples = world.samples()

    def below(bound):
        return samples["dispatcher_step_duration_seconds_bucket", ("handler", "send_sms"), ("le", bound)]

    assert [below(bound) for bound in ("2e-05", "0.1", "0.25", "60.0", "+Inf")] == [1, 1, 3, 3, 4]
    assert samples["dispatcher_step_duration_seconds_count", ("handler", "send_sms")] == 4
    assert samples["dispatcher_step_duration_seconds_sum", ("handler", "send_sms")] == pytest.approx(100.40001)


def test_batches_are_told_by_size_and_time(world):
    world.totals.committed(200, 0.015)
    world.totals.committed(1, 0.002)

    assert world.value("dispatcher_commits_total") == 2
    assert world.value("dispatcher_batch_size_sum") == 201
    assert world.value("dispatcher_batch_size_bucket", le="1.0") == 1
    assert world.value("dispatcher_batch_duration_seconds_bucket", le="0.02") == 2


def test_what_the_store_holds_open_is_told(world):
    assert world.value("dispatcher_store_readable") == 1
    assert world.value("dispatcher_events_waiting") == 3
    assert world.value("dispatcher_events_oldest_waiting_seconds") == 4.5
    states = {"due": 8, "waiting": 10, "retrying": 11, "running": 12, "held": 13}
    assert {state: world.value("dispatcher_runs_open", state=state) for state in states} == states
    assert world.value("dispatcher_runs_oldest_due_seconds") == 0
    assert world.value("dispatcher_calls_queued", connection="sender:bulk") == 9
    assert world.value("dispatcher_outbox_rows", state="ready") == 5
    assert world.value("dispatcher_outbox_rows", state="held") == 1
    assert world.value("dispatcher_outbox_due") == 2
    assert world.value("dispatcher_outbox_oldest_due_seconds") == 60
    assert world.value("dispatcher_outbox_oldest_seconds") == 700
    assert world.value("dispatcher_dead_letters_open", reason="failed") == 14
    assert world.value("dispatcher_store_free_bytes") == 2**40
    assert world.value("dispatcher_workers_alive") == 4
    assert world.value("dispatcher_lease_held") == 1


def test_a_store_that_cannot_be_read_costs_its_own_numbers_only(world):
    world.found = StoreUnusable("it cannot be counted.")

    names = {name for name, *_ in world.samples()}

    assert world.value("dispatcher_store_readable") == 0
    assert "dispatcher_events_waiting" not in names
    assert "dispatcher_runs_started_total" in names


def test_health_is_told_as_numbers(world):
    assert world.value("dispatcher_ready") == 1
    assert world.value("dispatcher_calls_under_way") == 2

    world.snapshot = replace(EMBEDDED, turn_due=NOW - 50, draining_since=NOW, paused="full", paused_since=NOW)

    assert world.value("dispatcher_live") == 0
    assert world.value("dispatcher_ready") == 0
    assert world.value("dispatcher_loop_late_seconds") == 50
    assert world.value("dispatcher_draining") == 1
    assert world.value("dispatcher_sources_paused") == 1


def test_without_a_broker_nothing_is_told_of_one(world):
    assert [name for name, *_ in world.samples() if "broker" in name or "queue_" in name or "publishes" in name] == []


def test_the_broker_is_told(world):
    queues = (Queue(unacked=5, oldest_unacked_since=NOW - 7), Queue("sms.event", consuming=False))
    world.snapshot = replace(
        EMBEDDED,
        consumer=Consumer(Link(reconnects=3), queues, stale_acks=4, delivered=1000, buffered=6),
        publisher=Publisher(
            Link("down", blocked_since=NOW - 1, blocked_seconds=12.5),
            in_flight=8, confirmed=100, unroutable=9, refused=1, unknown=2, unsent=3,
            exchanges=(Exchange(), Exchange("vumi.events", ready=False)),
        ),
    )  # fmt: skip

    samples = world.samples()

    def value(name, **labels):
        return samples[name, *sorted(labels.items())]

    assert [value("dispatcher_broker_up", link=link) for link in ("consumer", "publisher")] == [1, 0]
    assert value("dispatcher_broker_reconnects_total", link="consumer") == 3
    assert value("dispatcher_broker_blocked", link="publisher") == 1
    assert value("dispatcher_broker_blocked_seconds_total", link="publisher") == 12.5
    assert [value("dispatcher_queue_consuming", queue=name) for name in ("vumi.event", "sms.event")] == [1, 0]
    assert value("dispatcher_queue_unacked", queue="vumi.event") == 5
    assert value("dispatcher_queue_oldest_unacked_seconds", queue="vumi.event") == 7
    assert value("dispatcher_queue_oldest_unacked_seconds", queue="sms.event") == 0
    assert value("dispatcher_stale_acks_total") == 4
    assert value("dispatcher_broker_deliveries_total") == 1000
    assert value("dispatcher_broker_deliveries_buffered") == 6
    assert value("dispatcher_publishes_in_flight") == 8
    fates = {"confirmed": 100, "unroutable": 9, "refused": 1, "unknown": 2, "unsent": 3}
    assert {fate: value("dispatcher_publishes_total", fate=fate) for fate in fates} == fates
    assert [value("dispatcher_exchange_ready", exchange=name) for name in ("vumi", "vumi.events")] == [1, 0]


@pytest.mark.parametrize("odd", ['quote"', "back\\slash", "line\nbreak", "}", "né", "\ud800", "\x00", "# HELP"])
def test_odd_names_from_outside_come_through_as_labels(world, odd):
    world.totals.add(Counts(unmatched_keys={(odd, odd): 1}))
    world.snapshot = replace(HEALTHY, consumer=Consumer(queues=(Queue(odd),)))

    told = {dict(labels)["event_type"] for name, *labels in world.samples() if name.endswith("unmatched_total")}

    assert told == {odd.replace("\ud800", "\N{REPLACEMENT CHARACTER}")}


@pytest.mark.parametrize(
    "number", ["+27821234567", "27821234567", "0821234567", "+27 82 123 4567", "082-123-4567", "٠٨٢١٢٣٤٥٦٧"]
)
def test_numbers_of_people_are_no_labels_though_a_type_holds_one(world, number):
    for key in ((number, "begun"), ("poll", f"begun_{number}"), ("poll", f"{number}.begun")):
        world.totals.add(Counts(unmatched_keys={key: 1}))

    assert number not in world.metrics.render().decode()
    assert world.value("dispatcher_events_unmatched_total", conversation_type="#", event_type="begun") == 1


def test_types_that_differ_only_in_a_number_are_one_series(world):
    for last in range(5):
        world.totals.add(Counts(unmatched_keys={("poll", f"from {27821234560 + last}"): 1}))

    assert world.value("dispatcher_events_unmatched_total", conversation_type="poll", event_type="from #") == 5


def test_short_numbers_in_types_stay(world):
    world.totals.add(Counts(unmatched_keys={("poll", "question_12_2026"): 1}))

    assert (
        world.value("dispatcher_events_unmatched_total", conversation_type="poll", event_type="question_12_2026") == 1
    )


def test_types_without_number_make_no_more_series_than_a_thousand(world):
    for number in range(3 * MOST_KEYS):
        world.totals.add(Counts(unmatched_keys={("poll", f"kind_{number}"): 1}))

    unmatched = {key: value for key, value in world.samples().items() if key[0] == "dispatcher_events_unmatched_total"}

    assert len(unmatched) == MOST_KEYS + 1
    assert sum(unmatched.values()) == 3 * MOST_KEYS


def test_who_asks_within_a_second_gets_what_was_told_before(world):
    first = world.metrics.render()
    world.totals.add(Counts(runs=1))

    assert world.metrics.render() is first
    world.clock.advance(timedelta(seconds=1))
    assert b"dispatcher_runs_started_total 1.0" in world.metrics.render()


def test_metrics_of_plugins_in_the_registry_of_the_process_stay_out(world):
    from prometheus_client import REGISTRY, Gauge

    gauge = Gauge("made_by_a_plugin", "Not ours.")
    try:
        assert b"made_by_a_plugin" not in world.metrics.render()
    finally:
        REGISTRY.unregister(gauge)


def test_every_metric_is_in_the_manual_and_every_metric_of_the_manual_is_here(world):
    world.totals.observe("send_sms", 0.2)
    world.snapshot = HEALTHY
    rendered = world.metrics.render().decode()
    rendered += Overview((), Path, Pulse(world.clock)).metrics().decode()
    ours = {line.split()[2] for line in rendered.splitlines() if line.startswith("# TYPE dispatcher_")}

    manual = (Path(__file__).parents[3] / "docs" / "monitoring.md").read_text("utf-8")

    assert set(re.findall(r"^\| `(dispatcher_\w+)`", manual, re.MULTILINE)) == ours
    named = {re.sub(r"_(bucket|sum|count)$", "", name) for name in re.findall(r"\bdispatcher_\w+", manual)}
    assert named <= ours


def test_the_library_is_imported_by_the_first_scrape_and_not_before():
    program = (
        "import sys\n"
        "from dispatcher.worker.metrics import Metrics, Sources\n"
        "from dispatcher.engine.counts import Counts\n"
        "metrics = Metrics(Sources(Counts(), None, None, '1'))\n"
        "assert not [name for name in sys.modules if name.startswith(('prometheus', 'sqlalchemy', 'pika'))]\n"
    )

    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)
