"""Workers on PostgreSQL that stand still for longer than their lease, and wake: they change nothing any more.

SIGSTOP is what a machine that swaps, sleeps or is moved does to a process: its connections stay open, and it does not
know that time has passed.
"""

from __future__ import annotations

import signal

import pytest

from tests.acceptance import brokers
from tests.acceptance.conftest import an_event
from tests.acceptance.databases import (
    FENCED,
    PATIENCE,
    all_is_well,
    events_of_few,
    sized,
)
from tests.harness.waiting import wait_until

QUICK = {"lease_seconds": 2, "handler_hang_seconds": 1}
CALLS = 8
FREEZES = sized(2, 30)
PART = 600
EVENTS = FREEZES * PART


def freeze(worker):
    worker.process.send_signal(signal.SIGSTOP)


def wake(worker):
    """Let a worker go on, and wait until it has found out and ended."""
    worker.process.send_signal(signal.SIGCONT)
    assert worker.ended() == FENCED, worker.log.read_text()


def taken_over(shop, worker, by):
    """Wait until a worker has been taken over."""
    number = shop.number_of(worker)
    wait_until(lambda: shop.books.query("SELECT number FROM workers WHERE number = %s", (number,)) == [], "a takeover")
    took = [line["workers"] for other in by for line in other.said("worker.taken_over")]
    assert [number] in took


@pytest.fixture
def calling(workshop, ledger):
    """A workshop whose rulebook calls the ledger's service."""
    workshop.install_calls(ledger.url)
    return workshop


def test_calls_of_a_frozen_worker_are_settled_by_another_and_it_changes_nothing_when_it_wakes(calling, ledger):
    shop = calling
    ledger.answers.clear()
    shop.publish(
        *(an_event(n, event_type="call", event_data={}) for n in range(CALLS)),
        *(an_event(100 + n, event_type="call_once", event_data={}) for n in range(CALLS)),
    )
    frozen = shop.start(1, host="there", **QUICK)
    wait_until(lambda: len(ledger.calls) == 2 * CALLS, "the calls")
    freeze(frozen)
    other = shop.start(2, **QUICK)
    shop.entered(other)
    wait_until(lambda: len(ledger.calls) == 3 * CALLS, "the keyed calls again", PATIENCE)
    ledger.answers.set()  # to both of them, though one does not listen
    settled = "runs WHERE state IN ('done', 'held')"
    wait_until(lambda: shop.books.count(settled) == 2 * CALLS, "the calls to be settled", PATIENCE)
    taken_over(shop, frozen, by=[other])
    before, calls = shop.books.snapshot(), list(ledger.calls)

    wake(frozen)

    assert frozen.said("lease.lost")
    assert shop.books.snapshot() == before
    assert ledger.calls == calls
    assert ledger.times == {f"e-{n}": 2 for n in range(CALLS)} | {f"e-{100 + n}": 1 for n in range(CALLS)}
    keyed = [call for call in calls if call[1] is not None]
    assert len(keyed) == 2 * CALLS
    assert len(set(keyed)) == CALLS, "a call that was repeated had another key"
    states = shop.books.query("SELECT chain, state, count(*) FROM runs GROUP BY 1, 2 ORDER BY 1")
    assert states == [("calling", "done", CALLS), ("calling-once", "held", CALLS)]
    assert shop.books.query("SELECT reason, count(*) FROM dead_letters GROUP BY 1") == [("unknown", CALLS)]
    shop.end()


def test_batch_of_a_frozen_worker_is_done_by_another_and_it_changes_nothing_when_it_wakes(calling):
    shop = calling
    path = shop.folder.path
    event_data = {"msisdn": "0825550001"}
    shop.publish(*(an_event(n, event_type="linger", event_data=event_data) for n in range(20)))
    frozen = shop.start(1, host="there", **QUICK)
    wait_until((path / f"lingers.{frozen.process.pid}").exists, "a batch in hand")
    freeze(frozen)
    (path / "go").touch()
    other = shop.start(2, **QUICK)
    wait_until(lambda: shop.books.count("runs WHERE state = 'done'") == 20, "all runs", PATIENCE)
    taken_over(shop, frozen, by=[other])
    before = shop.books.snapshot()

    wake(frozen)

    assert shop.books.snapshot() == before
    assert shop.books.query("SELECT count(*), count(DISTINCT event_id) FROM messages") == [(20, 20)]
    assert shop.books.query("SELECT msisdn FROM contacts") == [("+27825550001",)]
    shop.end()


def test_texts_that_a_frozen_worker_was_publishing_are_held_by_another_and_not_published_again(shared_site, rabbit):
    site = shared_site
    frozen = site.shop.start(1, host="there", **QUICK)
    wait_until(lambda: site.consuming, "a consumer", PATIENCE)
    site.publish(brokers.some_events(20)).finish()
    wait_until(lambda: site.count("messages WHERE state = 'sent'") == 20, "some texts")
    # The broker reads no more from who publishes; this event was published before.
    freeze(frozen)
    site.publish(brokers.some_events(20, first=20)).finish()
    rabbit.set_memory_alarm()
    frozen.process.send_signal(signal.SIGCONT)
    wait_until(lambda: site.count("outbox") == 40, "texts and emits that wait for a confirm")
    wait_until(lambda: frozen.said("amqp.blocked"), "the broker's word that it takes no more")
    freeze(frozen)
    in_doubt = site.count("outbox WHERE state = 'sending' AND on_unknown = 'hold'")
    assert in_doubt  # those that were with the publisher before; the others wait in the store
    other = site.shop.start(2, **QUICK)
    site.shop.entered(other)
    wait_until(lambda: site.count("messages WHERE state = 'held'") == in_doubt, "held texts", PATIENCE)
    rabbit.clear_memory_alarm()
    taken_over(site.shop, frozen, by=[other])
    # What the frozen one has not acked it keeps from all others for as long as its connection lives.
    wait_until(lambda: site.count("outbox WHERE state <> 'held'") == 0, "the emits", PATIENCE)
    before = site.books.snapshot()

    wake(frozen)

    assert site.books.snapshot() == before
    site.settle(PATIENCE)
    site.shop.end()
    figures = brokers.nothing_is_lost_or_doubled(site)
    assert figures["held"] == in_doubt


def test_workers_frozen_at_random_moments_lose_nothing_and_repeat_nothing(workshop, chance):
    alive = {number: workshop.start(number, batch_events=16, **QUICK) for number in (1, 2)}
    in_hand = 0
    for part in range(FREEZES):
        number = chance.choice([1, 2])
        frozen, other = alive[number], alive[3 - number]
        workshop.entered(frozen)
        workshop.entered(other)
        workshop.publish(*events_of_few(PART, first=part * PART))
        enough = part * PART + chance.randrange(1, PART // 2)
        wait_until(lambda enough=enough: workshop.books.count("messages") >= enough, f"{enough} texts", PATIENCE)
        freeze(frozen)
        in_hand += workshop.in_transaction(frozen)
        taken_over(workshop, frozen, by=[other])
        wake(frozen)
        alive[number] = workshop.start(number, batch_events=16, **QUICK)
    print(f"{in_hand} of {FREEZES} frozen in a transaction")  # noqa: T201
    wait_until(lambda: workshop.books.count("runs WHERE state = 'done'") == 2 * EVENTS, "all runs", PATIENCE)
    workshop.end()
    all_is_well(workshop.books, EVENTS)
    assert workshop.books.deadlocks == 0
