"""Several workers with one store consume one queue of a real broker: each event goes to one of them."""

from __future__ import annotations

import pytest

from dispatcher.settings import Settings
from dispatcher.sources.amqp.topology import queue_arguments
from tests.harness.proxy import ChaosProxy
from tests.harness.waiting import wait_until
from tests.integration.consumers import EVENTS, is_empty, numbered, publish, worker

__all__ = ["worker"]

KINDS = pytest.mark.parametrize("kind", ["quorum", "classic"])


@pytest.fixture
def two(worker):
    """Two workers that share a store."""

    def make(**settings):
        return worker(shared=True, **settings), worker(shared=True, **settings)

    return make


def work_both(first, second, *, until):
    """Take and ack at both until it is so."""

    def turn():
        for each in (first, second):
            taken = each.consumer.take(256)
            each.got += taken
            each.consumer.ack(taken)
        return until()

    wait_until(turn, "the work of both")


@KINDS
def test_each_event_goes_to_one_of_the_workers(vhost, two, kind):
    first, second = two(amqp_queue_type=kind, amqp_prefetch=20)
    publish(vhost, *numbered(400))

    work_both(first, second, until=lambda: is_empty(vhost))

    assert sorted(each.body for each in [*first.got, *second.got]) == sorted(numbered(400))
    assert first.got
    assert second.got
    assert not any(each.redelivered for each in [*first.got, *second.got])
    assert first.consumer.epochs.isdisjoint(second.consumer.epochs)


@KINDS
def test_what_a_killed_worker_had_in_hand_comes_to_the_other_marked_as_redelivered(vhost, worker, kind):
    with ChaosProxy(vhost.port) as proxy:
        first = worker(shared=True, url=proxy.url(vhost.url), amqp_queue_type=kind, amqp_prefetch=30)
        publish(vhost, *numbered(30))
        first.consumer.ack(first.take(10))
        wait_until(lambda: vhost.queue_depth(EVENTS.name) == (0, 20), "the acks")
        second = worker(shared=True, amqp_queue_type=kind)
        proxy.refuse()
        proxy.reset()
        second.work(until=lambda: is_empty(vhost))

    assert [each.body for each in second.got] == numbered(20, begin=10)
    assert all(each.redelivered for each in second.got)


def test_worker_whose_channel_ended_knows_it_no_more(vhost, worker):
    mine = worker(shared=True)
    (old,) = mine.consumer.epochs
    vhost.node.close_all_connections()
    wait_until(lambda: mine.link.reconnects == 1 and mine.queue().consuming, "the next channel")

    (new,) = mine.consumer.epochs
    assert old < new


@KINDS
def test_another_worker_that_comes_later_disturbs_nobody(vhost, worker, kind, monkeypatch):
    monkeypatch.setattr("dispatcher.sources.amqp.subscription.REBIND_SECONDS", 0.0)
    first = worker(shared=True, amqp_queue_type=kind)
    epochs = first.consumer.epochs
    bound_at = first.subscription._bound_at
    second = worker(shared=True, amqp_queue_type=kind)
    wait_until(lambda: first.subscription._bound_at > bound_at, "the look after the queue")
    bound_at = first.subscription._bound_at
    wait_until(lambda: first.subscription._bound_at > bound_at, "the next one, so that the first is over")

    assert (first.queue().consuming, second.queue().consuming) == (True, True)
    assert first.consumer.epochs == epochs
    assert [each.subscription.attempts for each in (first, second)] == [1, 1]


# How much waits.


def test_what_another_worker_has_in_hand_does_not_wait(vhost, two):
    first, second = two(amqp_prefetch=10)
    publish(vhost, *numbered(20))
    wait_until(lambda: second.consumer.status.buffered == 10, "the second's share")
    first.consumer.ack(first.take(10))

    wait_until(lambda: first.consumer.waiting() == 0, "the answer")

    assert second.consumer.status.buffered == 10


def test_what_another_worker_has_no_room_for_waits(vhost, two):
    first, second = two(amqp_prefetch=10)
    publish(vhost, *numbered(50))
    wait_until(lambda: first.consumer.status.buffered == second.consumer.status.buffered == 10, "both shares")
    taken = first.take(10)

    wait_until(lambda: first.consumer.waiting() == 30, "the answer")

    first.consumer.ack(taken)
    wait_until(lambda: first.consumer.status.buffered == 10, "the next share")
    assert first.consumer.waiting() is None


def test_what_another_worker_gives_back_waits_again(vhost, two):
    first, second = two(amqp_prefetch=10)
    publish(vhost, *numbered(20))
    wait_until(lambda: first.consumer.status.buffered == second.consumer.status.buffered == 10, "both shares")
    first.take(10)
    wait_until(lambda: first.consumer.waiting() == 0, "the answer")

    second.consumer.stop(2)

    wait_until(lambda: first.consumer.waiting() == 10, "the answer of later")


# Both begin at once.


@KINDS
def test_workers_that_make_the_queue_at_the_same_time_do_so_without_an_error(vhost, worker, capfd, kind):
    workers = [worker(shared=True, consuming=False, amqp_queue_type=kind) for _ in range(4)]
    for each in workers:
        each.await_consuming()

    assert len(vhost.consumers()) == 4
    assert "queue.lost" not in capfd.readouterr().err
    assert vhost.queue_arguments(EVENTS.name) == queue_arguments(Settings(amqp_queue_type=kind), EVENTS.name)
