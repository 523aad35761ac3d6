"""The consumer against a real broker: everything that was not acked comes again, and whatever breaks heals."""

from __future__ import annotations

import json
import threading
import time

import pika
import pytest

from dispatcher.sources.amqp.consumer import Queue
from tests.harness.proxy import ChaosProxy
from tests.harness.waiting import wait_until
from tests.integration.consumers import EVENTS, is_empty, numbered, publish, worker

__all__ = ["worker"]


@pytest.fixture
def log_lines(capfd):
    told: list[dict] = []

    def lines(event: str) -> list[dict]:
        told.extend(json.loads(line) for line in capfd.readouterr().err.splitlines() if line.startswith("{"))
        return [line for line in told if line["event"] == event]

    return lines


# What is consumed from.


def test_a_queue_that_is_absent_is_made_as_a_quorum_queue_with_a_place_for_dead_letters(vhost, worker):
    assert worker(amqp_delivery_limit=7).queue().created

    assert vhost.queue_arguments("vumi.event") == {
        "x-queue-type": "quorum",
        "x-delivery-limit": 7,
        "x-dead-letter-exchange": "vumi.dead",
        "x-dead-letter-routing-key": "vumi.event",
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }
    assert vhost.queue_arguments("vumi.event.dead") == {"x-queue-type": "quorum"}


def test_what_is_published_as_vumi_workers_do_arrives(vhost, worker):
    mine = worker()
    with vhost.channel() as channel:
        channel.exchange_declare("vumi", exchange_type="direct", durable=True)  # as Vumi declares it
        channel.basic_publish("vumi", "vumi.event", b"{}", pika.BasicProperties(message_id="m1"), mandatory=True)

    (delivery,) = mine.take(1)

    assert (delivery.body, delivery.source, delivery.message_id, delivery.redelivered) == (b"{}", "amqp", "m1", False)
    assert (delivery.kind, delivery.queue, delivery.tag) == ("event", "vumi.event", 1)


def test_what_a_queue_made_here_cannot_deliver_is_kept_beside_it(vhost, worker):
    worker(amqp_delivery_limit=1).consumer.stop(2)
    publish(vhost, b"poison")
    with vhost.channel() as channel:
        for _ in range(2):
            method, _, _ = channel.basic_get("vumi.event")
            channel.basic_nack(method.delivery_tag)

    wait_until(lambda: vhost.queue_depth("vumi.event.dead") == (1, 0), "the dead letter")


def test_a_classic_queue_that_is_there_is_consumed_as_it_is(vhost, worker):
    vhost.declare_queue("vumi.event", kind=None, exchange="vumi")
    publish(vhost, b"old")

    mine = worker()

    assert mine.take(1)[0].body == b"old"
    assert not mine.queue().created
    assert vhost.queue_arguments("vumi.event") == {}
    assert vhost.queues() == ["vumi.event"]


def test_a_queue_is_made_classic_where_that_is_asked_for_so_that_vumi_workers_may_declare_it_too(vhost, worker):
    worker(amqp_queue_type="classic")

    vhost.declare_queue("vumi.event", kind=None)  # raises where arguments differ


def test_a_queue_of_transport_events_is_made_as_vumi_declares_it(vhost, worker):
    mine = worker(Queue("sms.event", "transport_event"))
    publish(vhost, b"{}", queue="sms.event")

    assert mine.take(1)[0].kind == "transport_event"
    vhost.declare_queue("sms.event", kind=None, exchange="vumi")


def test_nothing_is_made_where_the_settings_forbid_it_and_the_queue_is_consumed_once_it_appears(
    vhost, worker, log_lines
):
    mine = worker(amqp_declare=False, consuming=False)
    mine.await_reason("DISPATCHER_AMQP_DECLARE is off")
    assert vhost.queues() == []

    vhost.declare_queue("vumi.event", kind="classic")

    mine.await_consuming(seconds=20)
    assert not mine.queue().created
    assert len(log_lines("queue.lost")) == 1


def test_a_dead_letter_queue_that_somebody_made_otherwise_is_left_as_it_is(vhost, worker):
    vhost.declare_queue("vumi.event.dead", kind="classic")

    worker()

    assert vhost.queue_arguments("vumi.event.dead") == {"x-queue-type": "classic"}


# Deliveries.


def test_a_body_is_cut_that_is_far_too_large_to_be_taken(vhost, worker):
    mine = worker(max_event_bytes=1_000)
    publish(vhost, b"x" * 2_000, b"y" * 300_000)

    assert [len(delivery.body) for delivery in mine.take(2)] == [2_000, 2_000]


class Raw(pika.BasicProperties):
    """Headers as bytes: what pika itself would not write."""

    def __init__(self, headers: bytes, message_id: bytes) -> None:
        super().__init__()
        self._raw = headers, message_id

    def encode(self):
        headers, message_id = self._raw
        flags = self.FLAG_HEADERS | self.FLAG_MESSAGE_ID
        table = len(headers).to_bytes(4, "big") + headers
        return [flags.to_bytes(2, "big"), table, bytes([len(message_id)]), message_id]


@pytest.mark.parametrize(
    ("headers", "message_id", "kept"),
    [
        (b"\x01tT" + b"\x7f" * 8, b"m1", "m1"),  # a time in a far future
        (b"\x01tD\xff\x00\x00\x00\x01", b"m1", "m1"),  # a number with 255 decimals
        (b"\x02\xff\xfeV", b"m1", "m1"),  # a name that is no text
        (b"\x01aV", b"\xff\xfe", None),  # an id that is no text
        (b"\x01aV", b"", None),
    ],
    ids=["time", "decimals", "name", "id", "empty id"],
)
def test_a_message_with_odd_properties_is_delivered_and_so_is_the_next(vhost, worker, headers, message_id, kept):
    mine = worker()
    with vhost.channel() as channel:
        channel.basic_publish("", "vumi.event", b"odd", Raw(headers, message_id))
    publish(vhost, b"next")

    odd, after = mine.take(2)

    assert (odd.body, odd.message_id, after.body) == (b"odd", kept, b"next")
    assert mine.link.reconnects == 0


def test_the_worker_is_woken_when_something_comes_after_nothing(vhost, worker):
    mine = worker()
    mine.consumer.take(1)
    mine.woken.clear()

    publish(vhost, b"1")

    assert mine.woken.wait(10)


def test_no_more_is_fetched_than_the_prefetch_allows(vhost, worker):
    mine = worker(amqp_prefetch=10)
    publish(vhost, *numbered(30))

    wait_until(lambda: mine.consumer.status.buffered == 10, "the prefetch")
    assert mine.queue().unacked == 10
    assert vhost.queue_depth("vumi.event") == (20, 10)
    mine.work(until=lambda: len(mine.got) == 30)


def test_what_is_put_back_comes_first(vhost, worker):
    mine = worker()
    publish(vhost, *numbered(5))
    taken = mine.take(4)

    mine.consumer.put_back(taken[1:])

    assert [delivery.tag for delivery in mine.take(4)] == [2, 3, 4, 5]


# Acks.


def test_one_ack_for_a_batch_empties_what_is_unacked(vhost, worker):
    mine = worker()
    publish(vhost, *numbered(100))
    taken = mine.take(100)
    assert (mine.queue().unacked, vhost.queue_depth("vumi.event")) == (100, (0, 100))
    assert mine.queue().oldest_unacked_since is not None

    mine.consumer.ack(taken)

    wait_until(lambda: is_empty(vhost), "the acks")
    assert (mine.queue().unacked, mine.queue().oldest_unacked_since) == (0, None)


def test_what_is_acked_out_of_order_acks_nothing_else(vhost, worker):
    mine = worker()
    publish(vhost, *numbered(6))
    taken = mine.take(6)

    mine.consumer.ack([taken[5], taken[3]])
    mine.consumer.ack([taken[0]])
    wait_until(lambda: vhost.queue_depth("vumi.event") == (0, 3), "three acks")
    mine.consumer.ack(taken[:4])  # some of them again
    wait_until(lambda: vhost.queue_depth("vumi.event") == (0, 1), "five acks")
    mine.consumer.ack(taken)

    wait_until(lambda: is_empty(vhost), "all acks")
    assert mine.queue().consuming
    assert mine.consumer.status.stale_acks == 0


def test_it_is_told_up_to_where_acks_are_surely_processed(vhost, worker):
    mine = worker()
    publish(vhost, *numbered(300))
    told: dict[str, int] = {}

    def note() -> bool:
        told.update(mine.consumer.surely_acked())
        return list(told.values()) == [300]

    assert mine.consumer.surely_acked() == []
    for _ in range(3):
        mine.consumer.ack(mine.take(100))
    wait_until(note, "the answer")

    assert list(told) == [mine.got[0].epoch]
    assert is_empty(vhost)
    assert mine.consumer.surely_acked() == []


def test_an_ack_of_a_connection_that_ended_is_dropped_and_counted(vhost, worker):
    mine = worker()
    publish(vhost, *numbered(10))
    old = mine.take(10)
    vhost.node.close_all_connections()
    again = mine.take(10)

    mine.consumer.ack(old)

    assert mine.consumer.status.stale_acks == 10
    assert vhost.queue_depth("vumi.event") == (0, 10)
    mine.consumer.ack(again)
    wait_until(lambda: is_empty(vhost), "the acks")
    assert mine.link.reconnects == 1
    assert mine.queue().consuming


def test_stopping_flushes_the_acks_given_so_far(vhost, worker):
    mine = worker()
    publish(vhost, *numbered(400))
    mine.consumer.ack(mine.take(300))

    mine.consumer.stop(5)

    assert mine.link.state == "stopped"
    assert sum(vhost.queue_depth("vumi.event")) == 100
    rest = worker().take(100)
    assert {delivery.body for delivery in rest} == set(numbered(100, begin=300))


def test_holding_takes_no_more_gives_back_the_rest_and_lets_what_was_taken_be_acked(vhost, worker):
    mine = worker()
    publish(vhost, *numbered(20))
    taken = mine.take(8)
    wait_until(lambda: mine.consumer.status.buffered == 12, "the rest")

    mine.consumer.hold()
    publish(vhost, *numbered(5, begin=20))
    wait_until(lambda: not vhost.consumers(), "the end of the consumer")

    assert mine.consumer.take(100) == []
    assert not mine.queue().consuming
    mine.consumer.ack(taken)
    mine.consumer.stop(5)
    wait_until(lambda: vhost.queue_depth("vumi.event") == (17, 0), "what was not taken")


def test_a_held_consumer_stays_held_on_the_next_connection(vhost, worker):
    mine = worker()
    mine.consumer.hold()
    vhost.node.close_all_connections()
    wait_until(lambda: mine.link.reconnects == 1, "the next connection")
    publish(vhost, b"1")

    assert vhost.queue_depth("vumi.event") == (1, 0)
    assert vhost.consumers() == []


# How much waits.


def test_it_is_told_how_much_waits_only_as_of_the_last_delivery(vhost, worker):
    mine = worker(amqp_prefetch=10)
    publish(vhost, *numbered(25))
    wait_until(lambda: mine.consumer.status.buffered == 10, "the prefetch")
    assert mine.consumer.waiting() is None  # what is buffered is to be taken first

    first = mine.take(10)
    wait_until(lambda: mine.consumer.waiting() == 15, "the answer")
    mine.consumer.ack(first)
    mine.work(until=lambda: len(mine.got) == 25)

    wait_until(lambda: mine.consumer.waiting() == 0, "the last answer")


def test_nobody_knows_how_much_waits_in_a_queue_that_is_not_consumed(vhost, worker):
    mine = worker()
    wait_until(lambda: mine.consumer.waiting() == 0, "the answer")

    vhost.node.close_all_connections()
    wait_until(lambda: mine.consumer.status.link.state == "down", "the end")

    assert mine.consumer.waiting() is None


# Several queues.


def test_a_queue_that_is_refused_does_not_stop_the_others(vhost, worker, log_lines):
    vhost.declare_queue("private")
    vhost.set_permissions(read="^vumi.*")
    mine = worker(Queue("private"), EVENTS, consuming=False)
    mine.await_consuming()
    mine.await_reason("ACCESS_REFUSED", "private")
    publish(vhost, *numbered(50))

    mine.work(until=lambda: len(mine.got) == 50)

    assert len(log_lines("queue.lost")) == 1
    vhost.set_permissions()
    mine.await_consuming("private", seconds=20)
    assert mine.link.reconnects == 0


@pytest.mark.parametrize("kind", ["quorum", None])
def test_a_queue_that_another_program_consumes_is_left_to_it_until_it_is_free(vhost, worker, kind):
    vhost.declare_queue(EVENTS.name, kind=kind)
    with vhost.channel() as channel:
        channel.basic_consume(EVENTS.name, lambda *_: None)
        second = worker(EVENTS, consuming=False)
        second.await_reason("another program consumes this queue")
    second.await_consuming()


def test_of_two_that_consume_a_queue_one_at_least_leaves_it(vhost, worker):
    first = worker(EVENTS)
    with vhost.channel() as channel:
        channel.basic_consume(EVENTS.name, lambda *_: None)
        first.await_reason("another program consumes this queue")
    first.await_consuming()


def test_other_queues_after_a_reload_do_not_disturb_those_that_stay(vhost, worker):
    mine = worker(EVENTS, Queue("a.event", "transport_event"))
    publish(vhost, b"in hand")
    taken = mine.take(1)

    mine.consumer.replace_queues([EVENTS, Queue("b.event", "transport_event")])
    mine.await_consuming("b.event")

    assert [queue.name for queue in mine.consumer.status.queues] == ["vumi.event", "b.event"]
    assert sorted(consumer["queue"] for consumer in vhost.consumers()) == ["b.event", "vumi.event"]
    mine.consumer.ack(taken)
    wait_until(lambda: is_empty(vhost), "the ack")
    assert (mine.consumer.status.stale_acks, mine.consumer.status.delivered) == (0, 1)


def test_other_queues_that_were_named_while_the_broker_was_away_are_consumed_when_it_is_back(vhost, worker):
    mine = worker()
    vhost.node.stop_app()
    wait_until(lambda: mine.link.state == "down", "the end")
    mine.consumer.replace_queues([Queue("b.event", "transport_event")])
    vhost.node.start_app()

    mine.await_consuming("b.event")


# What breaks, and heals.


def test_what_was_not_acked_comes_again_when_the_broker_closes_the_connection(vhost, worker, log_lines):
    mine = worker()
    publish(vhost, *numbered(40))
    mine.consumer.ack(mine.take(10))
    mine.take(10)
    wait_until(lambda: vhost.queue_depth("vumi.event") == (0, 30), "the acks")

    vhost.node.close_all_connections("closed by a test")
    wait_until(lambda: mine.link.reconnects, "the next connection")  # until it is noticed, the old ones may be taken
    again = mine.take(30)

    assert {delivery.body for delivery in again} == set(numbered(30, begin=10))
    assert all(delivery.redelivered for delivery in again)
    assert {delivery.epoch for delivery in again}.isdisjoint({mine.got[0].epoch})
    (ended,) = log_lines("amqp.disconnected")
    assert "320 CONNECTION_FORCED - closed by a test" in ended["reason"]


def test_a_connection_that_is_closed_again_and_again_loses_nothing(vhost, worker):
    mine = worker()
    with vhost.channel() as channel:
        channel.confirm_delivery()
        for round_ in range(4):
            for body in numbered(100, begin=round_ * 100):
                channel.basic_publish("", "vumi.event", body, pika.BasicProperties(delivery_mode=2))
            closed = [row for row in vhost.connections() if "dispatcher consumer" in str(row)]
            assert len(closed) <= 1
            count = mine.link.reconnects
            if closed and mine.link.state == "up":
                mine.consumer._link.drop("a test")
                mine.work(until=lambda count=count: mine.link.reconnects > count and mine.queue().consuming)
    mine.work(until=lambda: len(mine.bodies()) == 400 and is_empty(vhost))


def test_a_queue_that_is_deleted_is_made_again(vhost, worker, log_lines):
    mine = worker()
    vhost.delete_queue("vumi.event")
    mine.await_reason("cancelled")

    mine.await_consuming(seconds=20)
    publish(vhost, b"after")

    assert mine.take(1)[0].body == b"after"
    assert mine.link.reconnects == 0
    assert len(log_lines("queue.lost")) == 1
    assert len(log_lines("queue.consuming")) == 2


def test_an_exchange_that_is_deleted_is_made_and_bound_again_with_the_next_set_up(vhost, worker):
    mine = worker()
    vhost.delete_exchange("vumi")
    vhost.node.close_all_connections()
    wait_until(lambda: mine.link.reconnects == 1, "the next connection")
    mine.await_consuming()

    with vhost.channel() as channel:
        channel.confirm_delivery()
        channel.basic_publish("vumi", "vumi.event", b"1", mandatory=True)
    mine.take(1)


def test_a_delivery_that_took_too_long_for_the_broker_comes_again(vhost, worker):
    vhost.node.set_consumer_timeout(1_000)
    mine = worker(amqp_queue_type="classic")
    publish(vhost, b"slow")
    mine.take(1)
    vhost.node.eval("[P ! tick || P <- rabbit_channel:list_local()]")

    (again,) = mine.take(1)

    assert again.redelivered


@pytest.mark.parametrize("taken", ["configure", "read"])
def test_a_permission_that_is_missing_is_told_once_and_tried_slowly_until_it_is_there(vhost, worker, log_lines, taken):
    vhost.set_permissions(**{taken: "^$"})
    mine = worker(consuming=False)
    reason = mine.await_reason("403 ACCESS_REFUSED")
    began, attempts = time.monotonic(), mine.subscription.attempts
    wait_until(lambda: mine.subscription.attempts >= attempts + 2, "two more attempts")

    assert time.monotonic() - began > 1.0
    assert vhost.user in reason
    assert len(log_lines("queue.lost")) == 1
    vhost.set_permissions()
    mine.await_consuming(seconds=20)


def test_a_queue_that_may_not_be_bound_is_consumed_all_the_same(vhost, worker, log_lines):
    vhost.declare_queue("vumi.event", exchange="vumi")
    vhost.set_permissions(configure="^$", write="^$")
    mine = worker()
    publish(vhost, b"1")

    mine.take(1)

    (told,) = log_lines("queue.not_bound")
    assert "ACCESS_REFUSED" in told["reason"]


def test_a_wrong_password_is_told_and_heals_with_the_file_that_holds_it(vhost, worker, log_lines, tmp_path):
    secret = tmp_path / "password"
    secret.write_text("outdated-secret\n")
    url = vhost.url.replace(f":{vhost.password}@", "@")
    mine = worker(url=url, amqp_password_file=secret, consuming=False)
    wait_until(lambda: mine.link.reason, "a reason")

    assert mine.link.reason.startswith("the broker refused the login (403 ACCESS_REFUSED")
    assert "outdated-secret" not in str(mine.consumer.status)
    secret.write_text(f"{vhost.password}\n")
    mine.await_consuming(seconds=20)
    assert len(log_lines("amqp.disconnected")) == 1


def test_a_password_that_is_changed_under_a_connection_matters_with_the_next(vhost, worker, tmp_path):
    secret = tmp_path / "password"
    secret.write_text(vhost.password)
    mine = worker(url=vhost.url.replace(f":{vhost.password}@", "@"), amqp_password_file=secret)
    vhost.change_password("another")
    vhost.node.close_all_connections()
    wait_until(lambda: "refused the login" in (mine.link.reason or ""), "the refusal")

    secret.write_text("another")

    mine.await_consuming(seconds=20)


def test_a_vhost_that_is_not_there_or_not_for_us_is_told(vhost, worker):
    vhost.clear_permissions()
    mine = worker(consuming=False)
    wait_until(lambda: mine.link.reason, "a reason")

    assert "refused the vhost (530" in mine.link.reason
    vhost.set_permissions()
    mine.await_consuming(seconds=20)


def test_a_broker_that_stops_and_starts_is_consumed_from_again(vhost, worker, log_lines):
    mine = worker()
    publish(vhost, *numbered(10))
    mine.take(10)
    vhost.node.stop_app()
    wait_until(lambda: "connection refused" in (mine.link.reason or ""), "the reason")
    vhost.node.start_app()

    mine.await_consuming(seconds=20)

    assert {delivery.body for delivery in mine.take(10)} == set(numbered(10))
    assert len(log_lines("amqp.disconnected")) <= 3  # shut down, perhaps closed in mid-handshake, refused


def test_a_broker_that_is_killed_is_consumed_from_after_its_return(vhost, worker):
    mine = worker()
    publish(vhost, *numbered(10))
    mine.take(10)

    vhost.node.restart()

    mine.await_consuming(seconds=20)
    assert {delivery.body for delivery in mine.take(10)} == set(numbered(10))


def test_a_network_that_swallows_everything_is_noticed_within_two_heartbeats(vhost, worker):
    with ChaosProxy(vhost.port) as proxy:
        mine = worker(url=proxy.url(vhost.url), amqp_heartbeat=2)
        publish(vhost, *numbered(10))
        mine.take(10)
        proxy.blackhole()
        wait_until(lambda: mine.link.state == "down", "the end, two heartbeats and a moment later", seconds=15)

        assert "within the heartbeat" in mine.link.reason
        proxy.pass_on()
        mine.await_consuming()
        assert len(mine.take(10)) == 10


def test_frames_cut_anywhere_are_no_more_than_another_connection(vhost, worker):
    vhost.declare_queue("vumi.event")
    publish(vhost, *numbered(200))
    with ChaosProxy(vhost.port) as proxy:
        mine = worker(url=proxy.url(vhost.url), consuming=False)
        for cut in (7, 700, 4_096):
            cuts = proxy.cuts
            proxy.cut_after(cut, "to_client")
            mine.work(until=lambda cuts=cuts: proxy.cuts > cuts or (mine.queue().consuming and not mine.woken.is_set()))
        mine.work(until=lambda: len(mine.bodies()) == 200 and is_empty(vhost))


def test_a_thread_that_died_is_started_anew(vhost, worker, monkeypatch):
    mine = worker()
    link = mine.consumer._link

    def die() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    link._loop.add_callback_threadsafe(die)
    wait_until(lambda: not link._thread.is_alive(), "the death")
    publish(vhost, b"1")

    assert mine.take(1)[0].body == b"1"
