"""The broker goes away, the connections to it are cut, the network lies: nothing is lost, nothing is done twice.

After each: consuming again within five seconds of the broker's return, and one line of log for each change.
"""

from __future__ import annotations

import pytest

from tests.acceptance import brokers
from tests.acceptance.brokers import end, some_events
from tests.harness.waiting import wait_until


def test_broker_that_stops_and_starts_is_consumed_again(site, rabbit):
    worker = site.start()
    site.publish(some_events(900), per_second=400)
    for part in range(1, 3):
        site.wait_for(part * 250)
        rabbit.stop_app()
        if part == 1:
            lines = len(worker.said("amqp.disconnected"))
            brokers.hold_calmly(worker)
            assert len(worker.said("amqp.disconnected")) <= lines + 2 * brokers.REASONS_PER_FAULT
        rabbit.start_app()
        site.consumes_again()
    end(site, worker, faults=2)


def test_broker_that_is_killed_is_consumed_again(site, rabbit):
    worker = site.start()
    site.publish(some_events(900), per_second=400)
    site.wait_for(400)
    rabbit.kill()
    rabbit.start()
    site.consumes_again()
    end(site, worker, faults=1)


def test_connections_closed_again_and_again_cost_nothing(site, rabbit):
    worker = site.start(amqp_prefetch=50)
    site.publish(some_events(900), per_second=300)
    closings = 3
    for part in range(1, closings + 1):
        site.wait_for(part * 200)
        rabbit.close_all_connections()
        wait_until(lambda part=part: len(worker.said("amqp.disconnected", connection="consumer")) >= part)
        site.consumes_again()
    end(site, worker, faults=closings)
    assert "unknown delivery tag" not in rabbit.said()


def test_acks_of_a_channel_that_is_gone_touch_nothing_of_the_next(distant, proxy):
    # The handler is slow, so that a cut meets a batch in hand; its acks come after the next channel has begun to count.
    site = distant
    brokers.install_slow(site.folder)
    events = some_events(400)
    for event in events:
        event["event_data"]["seconds"] = 0.004
    worker = site.start(amqp_prefetch=100, batch_events=100, batch_ms=400)
    site.publish(events)
    for part in range(1, 4):
        site.wait_for(part * 80)
        proxy.reset()
        wait_until(lambda part=part: len(worker.said("amqp.connected", connection="consumer")) > part)
    site.consumes_again()
    end(site, worker, faults=3)


def test_connection_cut_in_the_middle_of_a_frame_costs_nothing(distant, proxy, chance):
    site = distant
    worker = site.start(amqp_prefetch=50)
    site.publish(some_events(1200), per_second=250)
    cuts = 4
    for part in range(1, cuts + 1):
        site.wait_for(part * 100)
        proxy.cut_after(chance.randrange(1, 4096), chance.choice(["to_server", "to_client"]))
        wait_until(lambda part=part: proxy.cuts >= part, "the cut")
        site.consumes_again()
    end(site, worker, faults=cuts)


@pytest.mark.parametrize("fault", ["blackhole", "half_open"])
def test_connection_that_nobody_reads_is_noticed_by_its_heartbeat(distant, proxy, fault):
    site = distant
    worker = site.start(amqp_heartbeat=1)
    site.publish(some_events(600), per_second=200)
    site.wait_for(200)
    getattr(proxy, fault)()
    for connection in ("consumer", "publisher"):
        wait_until(
            lambda connection=connection: worker.said("amqp.disconnected", connection=connection),
            f"the end of the {connection}'s patience",
            5,
        )
    proxy.pass_on()
    site.consumes_again()
    end(site, worker, faults=1)


def test_slow_network_is_no_fault(distant, proxy):
    site = distant
    proxy.delay(0.05)
    worker = site.start(amqp_heartbeat=5)
    site.publish(some_events(500))
    end(site, worker, faults=0)
