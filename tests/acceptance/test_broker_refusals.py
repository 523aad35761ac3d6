"""The broker says no, or nothing, or not yet: alarms, permissions, passwords, what is missing, full or otherwise.

What cannot go out stays in the outbox and goes out once; what cannot come in stays in the queue. Nobody runs hot.
"""

from __future__ import annotations

import pytest

from tests.acceptance import brokers
from tests.acceptance.brokers import EMITTED, EVENTS_QUEUE, TEXTS, end, some_events
from tests.harness.waiting import wait_until

# At most one attempt in half a second, by each of two connections; and a bit for what was under way.
ATTEMPTS_PER_SECOND = 4


# Alarms.


@pytest.mark.parametrize("resource", ["memory", "disk"])
def test_alarm_stops_what_goes_out_and_not_what_comes_in(site, rabbit, resource):
    site.vhost.declare_queue(EVENTS_QUEUE, exchange="vumi")
    site.publish(some_events(400)).finish()
    getattr(rabbit, f"set_{resource}_alarm")()
    worker = site.start()
    site.wait_for(400)
    wait_until(lambda: site.depth(EVENTS_QUEUE) == (0, 0), "the acks")
    wait_until(lambda: worker.said("amqp.blocked", connection="publisher"), "a word about it")
    # What the broker had read of the connection before it saw that it publishes was taken, be that little or much.
    assert site.count("outbox") > 0
    assert site.depth(TEXTS)[0] + site.depth(EMITTED)[0] < 800
    getattr(rabbit, f"clear_{resource}_alarm")()
    assert end(site, worker, faults=0)["held"] == 0
    assert len(worker.said("amqp.blocked")) == len(worker.said("amqp.unblocked")) == 1


def test_alarm_that_lasts_leaves_texts_in_doubt_that_go_again_where_the_rule_says_so(site, rabbit):
    site.write_rulebook(brokers.RULEBOOK.replace("handler: send_sms", "handler: send_sms\n        on_unknown: resend"))
    site.vhost.declare_queue(EVENTS_QUEUE, exchange="vumi")
    site.publish(some_events(200)).finish()
    rabbit.set_memory_alarm()
    worker = site.start(amqp_blocked_seconds=1)
    wait_until(lambda: worker.said("amqp.disconnected", connection="publisher"), "the end of the patience")
    site.wait_for(200)
    rabbit.clear_memory_alarm()
    end(site, worker, resent=True)


def test_alarm_that_lasts_leaves_texts_in_doubt_that_are_held(site, rabbit):
    site.vhost.declare_queue(EVENTS_QUEUE, exchange="vumi")
    site.publish(some_events(200)).finish()
    rabbit.set_memory_alarm()
    worker = site.start(amqp_blocked_seconds=1)
    wait_until(lambda: worker.said("amqp.disconnected", connection="publisher"), "the end of the patience")
    rabbit.clear_memory_alarm()
    assert end(site, worker)["held"] > 0


def test_worker_stopped_during_an_alarm_ends_within_its_grace(site, rabbit):
    site.vhost.declare_queue(EVENTS_QUEUE, exchange="vumi")
    site.publish(some_events(100)).finish()
    rabbit.set_memory_alarm()
    worker = site.start(drain_seconds=0.5)
    site.wait_for(100)
    assert worker.stop() in (0, 75)
    rabbit.clear_memory_alarm()
    end(site, site.start())


# What is missing.


def test_queue_that_is_deleted_is_made_again(site):
    worker = site.start()
    site.publish(some_events(100))
    site.settle()
    site.vhost.delete_queue(EVENTS_QUEUE)
    wait_until(lambda: worker.said("queue.lost"))
    site.consumes_again()
    site.publish(some_events(100, first=100))
    end(site, worker)
    assert site.vhost.queue_arguments(EVENTS_QUEUE)["x-queue-type"] == "quorum"


def test_queue_that_is_deleted_is_waited_for_where_nothing_may_be_declared(site):
    worker = site.start(consuming=False, amqp_declare="false")
    wait_until(lambda: len(worker.said("queue.lost")) == 2)
    for queue in (EVENTS_QUEUE, "sms_transport.event"):
        site.vhost.declare_queue(queue, kind=None, exchange="vumi")
    site.consumes_again()
    site.vhost.delete_queue(EVENTS_QUEUE)
    wait_until(lambda: len(worker.said("queue.lost", queue=EVENTS_QUEUE)) >= 2)
    brokers.hold_calmly(worker, lambda: EVENTS_QUEUE not in site.vhost.queues())
    assert len(worker.said("queue.lost", queue=EVENTS_QUEUE)) <= 1 + brokers.REASONS_PER_FAULT
    site.vhost.declare_queue(EVENTS_QUEUE, kind=None, exchange="vumi")
    site.consumes_again()
    site.publish(some_events(50))
    end(site, worker)


@pytest.mark.parametrize("exchange", ["vumi", "vumi.events"])
def test_exchange_that_is_deleted_is_made_again_and_what_waits_goes_out(site, exchange):
    worker = site.start()
    site.publish(some_events(50))
    site.settle()
    site.vhost.delete_exchange(exchange)
    site.publish(some_events(50, first=50), exchange="", routing_key=EVENTS_QUEUE)
    wait_until(lambda: worker.said("outbox.refused"), "a word about it")
    site.declare_collectors()
    end(site, worker)


def test_events_come_again_once_the_exchange_that_brings_them_was_deleted(site):
    worker = site.start()
    site.vhost.delete_exchange("vumi")
    traffic = site.publish(some_events(50))
    site.declare_collectors()
    wait_until(lambda: traffic.done, "the binding of the queue", 10)
    end(site, worker)


def test_texts_that_no_queue_wants_wait_and_go_out_once(site):
    worker = site.start()
    with site.vhost.channel() as channel:
        channel.queue_unbind(TEXTS, "vumi", "sms_transport.outbound")
    site.publish(some_events(100)).finish()
    wait_until(lambda: site.count("outbox WHERE error LIKE 'unroutable%'") == 100)
    assert site.count("messages WHERE state = 'queued'") == 100
    assert len(worker.said("outbox.refused", fate="unroutable")) == 1
    site.declare_collectors()
    assert end(site, worker, faults=0)["held"] == 0


def test_texts_that_a_full_queue_refuses_wait_and_go_out_once(site):
    worker = site.start()
    with site.vhost.channel() as channel:
        channel.queue_delete(TEXTS)
        channel.queue_declare("test.full", durable=True, arguments={"x-max-length": 10, "x-overflow": "reject-publish"})
        channel.queue_bind("test.full", "vumi", "sms_transport.outbound")
    site.publish(some_events(100)).finish()
    wait_until(lambda: site.count("outbox WHERE error LIKE 'refused%'") >= 80)
    taken = site.take("test.full")
    with site.vhost.channel() as channel:
        channel.queue_delete("test.full")
    site.declare_collectors()
    site.put_back(TEXTS, taken)  # the books are of both queues together
    assert end(site, worker, faults=0)["held"] == 0


# What is otherwise.


def test_queue_that_vumi_declared_is_used_as_it_is(site):
    for queue in (EVENTS_QUEUE, "sms_transport.event"):
        site.vhost.declare_queue(queue, kind=None, exchange="vumi")
    worker = site.start()
    site.publish(some_events(200))
    end(site, worker, faults=0)
    assert site.vhost.queue_arguments(EVENTS_QUEUE) == {}
    assert f"{EVENTS_QUEUE}.dead" not in site.vhost.queues()


# What is not allowed.


def test_right_to_read_that_is_taken_away_stops_consuming_until_it_is_back(distant, proxy, rabbit):
    site = distant
    worker = site.start()
    site.publish(some_events(300), per_second=100)
    site.wait_for(50)
    site.vhost.set_permissions(read="^$")
    proxy.reset()
    wait_until(lambda: worker.said("queue.lost", queue=EVENTS_QUEUE))
    attempts = proxy.connections
    brokers.hold_calmly(worker, lambda: not site.consuming)
    assert proxy.connections - attempts <= 1
    assert len(worker.said("queue.lost", queue=EVENTS_QUEUE)) == 1
    site.vhost.set_permissions()
    site.consumes_again()
    end(site, worker)


def test_right_to_write_that_is_taken_away_leaves_what_goes_out_in_the_outbox(site, rabbit):
    worker = site.start()
    site.publish(some_events(50))
    site.settle()
    site.vhost.set_permissions(write="^$")
    rabbit.close_all_connections()  # else what the channel did a moment ago it may still do
    site.publish(some_events(100, first=50)).finish()
    site.wait_for(150)
    wait_until(lambda: site.count("outbox WHERE state = 'ready'") >= 190, "the outbox to fill")
    assert site.consuming
    assert len(worker.said("outbox.refused")) <= 2 * brokers.REASONS_PER_FAULT
    site.vhost.set_permissions()
    end(site, worker)


def test_right_to_configure_is_not_needed_where_everything_is_there(site, rabbit):
    worker = site.start()
    site.publish(some_events(50))
    site.settle()
    site.vhost.set_permissions(configure="^$")
    rabbit.close_all_connections()
    wait_until(lambda: worker.said("amqp.disconnected", connection="consumer"))
    site.consumes_again()
    site.publish(some_events(50, first=50))
    end(site, worker)


@pytest.mark.parametrize("what", ["password", "permissions"])
def test_worker_that_is_shut_out_tries_calmly_until_it_is_let_in(distant, proxy, what):
    site = distant
    worker = site.start()
    site.publish(some_events(200), per_second=200)
    site.wait_for(50)
    if what == "password":
        site.vhost.change_password("another")
    else:
        site.vhost.clear_permissions()
    proxy.reset()
    wait_until(lambda: worker.said("amqp.disconnected", connection="consumer"))
    attempts = proxy.connections
    brokers.hold_calmly(worker, lambda: not site.consuming)
    assert proxy.connections - attempts <= 2 * ATTEMPTS_PER_SECOND
    assert len(worker.said("amqp.disconnected", connection="consumer")) <= brokers.REASONS_PER_FAULT
    if what == "password":
        site.vhost.change_password(site.vhost.password)
    else:
        site.vhost.set_permissions()
    site.consumes_again()
    end(site, worker)
    assert site.vhost.password.encode() not in worker.log.read_bytes()


def test_password_is_read_again_at_each_attempt(site, rabbit):
    secret = site.folder.path / "password"
    secret.write_text(site.vhost.password + "\n")
    site.folder.environ["DISPATCHER_AMQP_URL"] = site.vhost.url.replace(f":{site.vhost.password}@", "@")
    worker = site.start(amqp_password_file=secret)
    site.publish(some_events(50))
    site.settle()
    site.vhost.change_password("rotated")
    rabbit.close_all_connections()
    wait_until(lambda: worker.said("amqp.disconnected", connection="consumer"))
    secret.write_text("rotated\n")
    site.consumes_again()
    site.publish(some_events(50, first=50))
    end(site, worker)


# What takes too long.


def test_delivery_that_is_unacked_for_longer_than_the_broker_waits_comes_again_and_counts_once(site, rabbit):
    brokers.install_slow(site.folder)
    rabbit.set_consumer_timeout(500)
    worker = site.start()
    events = some_events(60)
    events[10]["event_data"] = events[10]["event_data"] | {"seconds": 2}
    site.publish(events)
    wait_until(lambda: worker.said("queue.lost", queue=EVENTS_QUEUE))
    rabbit.set_consumer_timeout(60_000)
    site.consumes_again()
    end(site, worker)
