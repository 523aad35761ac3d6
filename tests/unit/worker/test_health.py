from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime

import pytest

from dispatcher.testing import FrozenClock
from dispatcher.worker import health
from dispatcher.worker.health import Pulse, Readiness, Snapshot, is_live, is_ready, late_by

NOW = 10_000.0


@dataclass(frozen=True)
class Link:
    state: str = "up"
    since: float = NOW - 3600
    reason: str | None = None
    reconnects: int = 0
    blocked_since: float | None = None
    blocked_seconds: float = 0.0


@dataclass(frozen=True)
class Queue:
    name: str = "vumi.event"
    consuming: bool = True
    reason: str | None = None
    since: float = NOW - 3600
    unacked: int = 0
    oldest_unacked_since: float | None = None
    created: bool = False


@dataclass(frozen=True)
class Consumer:
    link: Link = Link()
    queues: tuple[Queue, ...] = (Queue(),)
    stale_acks: int = 0
    delivered: int = 0
    buffered: int = 0


@dataclass(frozen=True)
class Exchange:
    name: str = "vumi"
    ready: bool = True
    reason: str | None = None


@dataclass(frozen=True)
class Publisher:
    link: Link = Link()
    in_flight: int = 0
    confirmed: int = 0
    unroutable: int = 0
    refused: int = 0
    unknown: int = 0
    unsent: int = 0
    quiet_since: float | None = None
    exchanges: tuple[Exchange, ...] = ()


EMBEDDED = Snapshot(now=NOW, at=datetime(2026, 1, 2, 3, 0, 0, tzinfo=UTC), started_at=NOW - 7200, turn_due=NOW)
HEALTHY = replace(EMBEDDED, consumer=Consumer(), publisher=Publisher())


def the_reason(snapshot):
    verdict = is_ready(snapshot)
    assert not verdict.ready
    (reason,) = verdict.reasons
    return reason


@pytest.mark.parametrize("snapshot", [EMBEDDED, HEALTHY], ids=["embedded", "broker"])
def test_a_worker_that_turns_and_consumes_is_live_and_ready(snapshot):
    assert is_live(snapshot) == Readiness(ready=True)
    assert is_ready(snapshot) == Readiness(ready=True)


def test_a_worker_that_has_not_turned_yet_is_live_but_not_ready():
    snapshot = replace(EMBEDDED, turn_due=None, started_at=NOW - 600)

    assert is_live(snapshot).ready
    assert the_reason(snapshot) == (
        "starting: what the last worker left is being recovered, since 2026-01-02T02:50:00Z (600 s)"
    )


def test_a_loop_that_is_late_by_less_than_its_patience_is_live():
    snapshot = replace(EMBEDDED, turn_due=NOW - health.LOOP_SECONDS)

    assert is_live(snapshot).ready
    assert is_ready(snapshot).ready


def test_a_loop_that_has_stopped_is_neither_live_nor_ready():
    snapshot = replace(EMBEDDED, turn_due=NOW - health.LOOP_SECONDS - 1)

    told = "the worker's loop has stopped turning, since 2026-01-02T02:59:29Z (31 s)"
    assert is_live(snapshot) == Readiness(ready=False, reasons=(told,))
    assert is_ready(snapshot) == Readiness(ready=False, reasons=(told,))


def test_a_loop_that_sleeps_is_late_only_after_the_time_for_which_it_meant_to_sleep():
    clock = FrozenClock()
    pulse = Pulse(clock)
    assert pulse.due is None

    pulse.turned()
    assert pulse.due == clock.monotonic()
    pulse.sleeps(30.0)

    snapshot = replace(EMBEDDED, now=clock.monotonic() + 59.0, turn_due=pulse.due)
    assert late_by(snapshot) == pytest.approx(29.0)
    assert is_live(snapshot).ready
    assert late_by(replace(snapshot, now=clock.monotonic())) == 0.0
    assert not is_live(replace(snapshot, now=clock.monotonic() + 61.0)).ready


@pytest.mark.parametrize(("calls", "told"), [(0, "0 calls"), (1, "1 call"), (2, "2 calls")])
def test_a_worker_that_drains_is_live_but_not_ready(calls, told):
    snapshot = replace(HEALTHY, draining_since=NOW - 4, calls=calls)

    assert is_live(snapshot).ready
    assert the_reason(snapshot) == (
        f"draining: nothing more is taken, {told} under way, since 2026-01-02T02:59:56Z (4 s)"
    )


def test_queues_that_a_drain_let_go_of_are_no_reason():
    queues = (Queue(consuming=False, reason="on hold", since=NOW - 4),)

    assert "draining" in the_reason(replace(HEALTHY, draining_since=NOW - 4, consumer=Consumer(queues=queues)))


def test_a_store_that_cannot_be_used_is_a_reason_at_once():
    snapshot = replace(EMBEDDED, store_unusable="the disk is full.", store_unusable_since=NOW - 2)

    assert the_reason(snapshot) == "the store cannot be used: the disk is full, since 2026-01-02T02:59:58Z (2 s)"


def test_sources_that_pause_for_a_moment_are_no_reason_and_for_longer_they_are():
    why = "12 MB free on the disk, 64 MB wanted"
    pausing = replace(EMBEDDED, paused=why, paused_since=NOW - health.PAUSED_SECONDS)

    assert is_ready(pausing).ready
    assert the_reason(replace(pausing, paused_since=NOW - health.PAUSED_SECONDS - 1)) == (
        f"the sources are paused: {why}, since 2026-01-02T02:59:29Z (31 s)"
    )


def test_each_queue_that_is_not_consumed_is_a_reason_at_once():
    queues = (Queue(), Queue(name="sms.event", consuming=False, reason="NOT_FOUND - no queue 'sms.event'.", since=NOW))

    assert the_reason(replace(HEALTHY, consumer=Consumer(queues=queues))) == (
        "queue sms.event is not consumed: NOT_FOUND - no queue 'sms.event', since 2026-01-02T03:00:00Z (0 s)"
    )


def test_a_queue_without_a_reason_of_its_own_tells_that_of_its_connection():
    link = Link(state="down", reason="connection refused")
    consumer = Consumer(link, (Queue(consuming=False, since=NOW - 3),))

    assert the_reason(replace(HEALTHY, consumer=consumer)) == (
        "queue vumi.event is not consumed: connection refused, since 2026-01-02T02:59:57Z (3 s)"
    )


def test_a_delivery_that_is_long_with_us_is_a_reason():
    def with_oldest(seconds):
        queues = (Queue(unacked=7, oldest_unacked_since=NOW - seconds),)
        return replace(HEALTHY, consumer=Consumer(queues=queues))

    assert is_ready(with_oldest(health.UNACKED_SECONDS)).ready
    assert the_reason(with_oldest(health.UNACKED_SECONDS + 1)) == (
        "7 deliveries of queue vumi.event are not acked, the oldest since 2026-01-02T02:58:59Z (61 s)"
    )


@pytest.mark.parametrize("state", ["connecting", "down", "stopped"])
def test_a_connection_to_publish_that_is_long_away_is_a_reason(state):
    def away(seconds):
        return replace(HEALTHY, publisher=Publisher(Link(state, NOW - seconds, "ACCESS_REFUSED")))

    assert is_ready(away(health.PUBLISHER_SECONDS)).ready
    assert the_reason(away(health.PUBLISHER_SECONDS + 1)) == (
        "there is no connection to publish: ACCESS_REFUSED, since 2026-01-02T02:59:29Z (31 s)"
    )


def test_a_broker_that_takes_nothing_for_long_is_a_reason():
    def blocked(seconds):
        return replace(HEALTHY, publisher=Publisher(Link(blocked_since=NOW - seconds)))

    assert is_ready(blocked(health.PUBLISHER_SECONDS)).ready
    assert the_reason(blocked(health.PUBLISHER_SECONDS + 1)) == (
        "the broker takes no publishes (a memory or disk alarm), since 2026-01-02T02:59:29Z (31 s)"
    )


def test_a_broker_that_answers_no_publish_for_long_is_a_reason():
    def quiet(seconds, **link):
        return replace(HEALTHY, publisher=Publisher(Link(**link), in_flight=3, quiet_since=NOW - seconds))

    assert is_ready(quiet(health.PUBLISHER_SECONDS)).ready
    assert the_reason(quiet(health.PUBLISHER_SECONDS + 1)) == (
        "the broker does not answer what is published, since 2026-01-02T02:59:29Z (31 s)"
    )
    assert "alarm" in the_reason(quiet(100, blocked_since=NOW - 100))


def test_a_row_of_the_outbox_that_is_long_due_is_a_reason_where_there_is_a_broker():
    due = replace(HEALTHY, oldest_outbox_due_seconds=health.OUTBOX_SECONDS + 1)

    assert is_ready(replace(due, oldest_outbox_due_seconds=health.OUTBOX_SECONDS)).ready
    assert the_reason(due) == ("the outbox is not handed out: its first row is due since 2026-01-02T02:59:29Z (31 s)")
    assert is_ready(replace(due, consumer=None, publisher=None)).ready


def test_an_outbox_of_which_the_broker_takes_nothing_is_a_reason_though_no_row_is_due():
    stuck = replace(HEALTHY, outbox_stuck_seconds=health.OUTBOX_SECONDS + 1)

    assert is_ready(replace(stuck, outbox_stuck_seconds=health.OUTBOX_SECONDS)).ready
    assert the_reason(stuck) == (
        "messages wait, and the broker takes none, since 2026-01-02T02:59:29Z (31 s); "
        "`dispatcher doctor` tells which and why"
    )
    assert is_ready(replace(stuck, consumer=None, publisher=None)).ready


def test_all_reasons_are_told():
    snapshot = replace(
        HEALTHY,
        turn_due=NOW - 100,
        store_unusable="read-only",
        paused="full",
        paused_since=NOW - 100,
        consumer=Consumer(queues=(Queue(consuming=False), Queue("sms.event", consuming=False))),
        publisher=Publisher(Link("down", NOW - 100)),
        oldest_outbox_due_seconds=100.0,
    )

    assert len(is_ready(snapshot).reasons) == 7
