"""Events from RabbitMQ, texts and events to RabbitMQ, with the real worker: what goes in comes out, once.

The broker is well here; it is the worker that is killed, stopped and fed with what does it harm.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess

import pytest

from tests.acceptance import brokers, chaos
from tests.acceptance.brokers import EVENTS_QUEUE, some_events
from tests.acceptance.conftest import an_event
from tests.harness.waiting import wait_until


def test_every_event_becomes_a_contact_a_text_and_an_event(site):
    worker = site.start()
    site.publish(some_events(500))
    site.settle()
    assert worker.stop() == 0
    figures = brokers.nothing_is_lost_or_doubled(site)
    assert figures["held"] == figures["told twice"] == 0
    brokers.faults_were_told_once(worker, 0)


def test_drain_takes_what_waits_and_ends(site):
    assert site.start("--drain", consuming=False).ended() == 0  # makes the queue
    site.publish(some_events(300)).finish()
    assert site.start("--drain", consuming=False).ended() == 0
    assert site.settled
    brokers.nothing_is_lost_or_doubled(site)


# Killed and stopped.


def test_worker_killed_at_random_under_load_loses_nothing_and_repeats_nothing(site, chance):
    worker = site.start(amqp_prefetch=200)
    events, kills = 2000, 6
    site.publish(some_events(events), per_second=1000)
    for part in range(kills):
        site.wait_for(part * events // kills + chance.randrange(1, events // kills))
        worker.kill()
        worker = site.start(amqp_prefetch=200)
    site.settle()
    assert worker.stop() == 0
    print(brokers.nothing_is_lost_or_doubled(site))  # noqa: T201 - shown when it fails


def test_worker_stopped_under_load_leaves_nothing_behind_that_it_finished(site):
    events, stops = 1500, 3
    worker = site.start(amqp_prefetch=100)
    site.publish(some_events(events), per_second=800)
    for part in range(stops):
        site.wait_for(200 + part * events // stops)
        assert worker.stop() == 0
        finished = site.terminal
        waiting = site.look_into(EVENTS_QUEUE)
        assert finished & set(waiting) == set(), "finished, and not acked"
        worker = site.start(amqp_prefetch=100)
    site.settle()
    assert worker.stop() == 0
    assert brokers.nothing_is_lost_or_doubled(site)["held"] == 0


def test_worker_with_a_hung_call_is_stopped_within_its_grace(site):
    chaos.install(site.folder)
    worker = site.start(drain_seconds=0.3)
    site.publish([an_event(1, event_type="call_once", event_data={"misdeed": "hang"})])
    wait_until(lambda: chaos.calls(site.folder))
    assert worker.stop() == 75
    worker = site.start()
    wait_until(lambda: site.query("SELECT state FROM runs") == [("held",)])
    assert worker.stop() == 0
    assert len(chaos.calls(site.folder)) == 1
    assert site.depth(EVENTS_QUEUE) == (0, 0)


# What does harm.


def test_event_that_takes_the_worker_down_is_put_aside_and_its_neighbours_are_not(site):
    chaos.install(site.folder)
    assert site.start("--drain", consuming=False).ended() == 0
    events = [an_event(n, event_type="misbehave", event_data={}) for n in range(100)]
    events[42]["event_data"] = {"misdeed": "abort"}
    site.publish(events).finish()
    crashes = 0
    while (code := site.start("--drain", consuming=False, amqp_prefetch=100).ended()) != 0:
        assert code == -signal.SIGABRT
        crashes += 1
        assert crashes <= 4  # one before it was stored, and three that count
    assert site.query("SELECT kind, reason, event_id FROM dead_letters") == [("event", "crashed", "e-42")]
    assert site.query("SELECT event_id FROM events WHERE state <> 'matched'") == [("e-42",)]
    assert site.count("runs WHERE state = 'done' AND event_id <> 'e-42'") == 99
    assert site.depth(EVENTS_QUEUE) == site.depth(f"{EVENTS_QUEUE}.dead") == (0, 0)


def test_events_that_fail_for_good_are_put_aside_and_the_others_are_done(site, chance):
    events = some_events(1000)
    bad = chance.sample(events, 10)
    for event in bad:
        event["event_data"] = event["event_data"] | {"msisdn": "no number"}
    worker = site.start()
    site.publish(events)
    site.settle()
    assert worker.stop() == 0
    brokers.nothing_is_lost_or_doubled(site, letters=[("failed", event["event_id"]) for event in bad])


# Events without ids.


def historic(number):
    """An event as Vumi Go publishes it: no id, no type."""
    return {
        "account_key": "acc1",
        "conversation_key": "c-historic",
        "event_type": "poll_complete",
        "content": {"msisdn": f"+2782555{number:04d}", "name": "sipho", "consent": "yes", "seconds": 0.002},
    }


def side_by_side(number):
    return number // 2


def far_apart(number):
    return number % 300


@pytest.mark.parametrize("fault", ["closed connections", "kills"])
@pytest.mark.parametrize("twin", [far_apart, side_by_side])
def test_equal_events_without_ids_are_as_many_as_went_in(site, rabbit, fault, twin):
    brokers.install_slow(site.folder)
    assert site.start("--drain", consuming=False).ended() == 0
    events, faults = 600, 3
    site.publish([historic(twin(number)) for number in range(events)]).finish()  # each votes twice, alike
    worker = site.start(amqp_prefetch=100)
    for part in range(1, faults + 1):
        site.wait_for(part * 80)
        if fault == "kills":
            worker.kill()
            worker = site.start(amqp_prefetch=100)
        else:
            rabbit.close_all_connections()
            wait_until(
                lambda part=part, worker=worker: len(worker.said("amqp.disconnected", connection="consumer")) >= part
            )
    site.settle()
    wait_until(lambda: site.count("runs WHERE state NOT IN ('done', 'held')") == 0, "all runs")
    assert worker.stop() == 0
    assert site.query("SELECT event_data, count(*) FROM events WHERE hops = 0 GROUP BY 1 HAVING count(*) > 2") == []
    # A batch that ends with a vote whose ack was not heard of, and then a vote like it: nobody can tell the two apart.
    untold = faults if twin is side_by_side else 0
    assert events - untold <= site.stored <= events
    assert site.count("messages") == site.stored
    assert site.count("contacts") == events // 2
    brokers.everything_stored_came_out(site)


# Other people's tools.


def amqp_publish(site, body, routing_key=EVENTS_QUEUE):
    if shutil.which("amqp-publish") is None:
        pytest.skip("amqp-publish is not installed (Debian: apt install amqp-tools)")
    command = [
        "amqp-publish",
        f"--url={site.vhost.url}",
        "--exchange=vumi",
        f"--routing-key={routing_key}",
        "--persistent",
    ]
    subprocess.run(command, input=json.dumps(body).encode(), timeout=10, check=True)


@pytest.mark.may_skip_in_ci  # amqp-publish is one client of several
@pytest.mark.parametrize("event", [historic(1), an_event(1)], ids=["historic", "new"])
def test_event_of_amqp_publish_becomes_a_message_that_vumi_can_read(site, event):
    worker = site.start()
    amqp_publish(site, event)
    wait_until(lambda: site.count("messages WHERE state = 'sent'") == 1)
    assert worker.stop() == 0
    assert site.query("SELECT msisdn FROM contacts") == [("+27825550001",)]
    [(message_id, text)] = site.take(brokers.TEXTS)
    texts = ("to_addr", "from_addr", "content", "transport_name", "transport_type", "message_id", "timestamp")
    assert all(isinstance(text[name], str) and text[name] for name in texts)
    assert text["message_version"] == "20110921"
    assert text["message_type"] == "user_message"
    assert text["message_id"] == message_id
    assert text["to_addr"] == "+27825550001"
    assert text["transport_name"] == "sms_transport"
    assert text["helper_metadata"]["go"]["user_account"] == "acc1"
    [(_, emitted)] = site.take(brokers.EMITTED)
    assert emitted["event_data"] == emitted["content"] == {"msisdn": "+27825550001"}


REPORTED = """\
  - name: reported
    on: {conversation_type: sms, event_type: [ack, delivery_report]}
    steps:
      - handler: update_contact
        with: {msisdn: "{{ event.subject }}", extra: {last_report: "{{ event.event_type }}"}}
"""


def test_reports_of_a_transport_move_texts_and_start_chains(site):
    with (site.folder.path / "rulebook.yaml").open("a") as rulebook:
        rulebook.write(REPORTED)
    worker = site.start()
    site.publish(some_events(50))
    site.settle()
    taken = site.take(brokers.TEXTS)
    common = {"message_version": "20110921", "message_type": "event", "transport_name": "sms_transport"}
    for kind, more in (("ack", {"sent_message_id": "g-1"}), ("delivery_report", {"delivery_status": "delivered"})):
        reports = [
            common | {"event_id": f"{kind}-{n}", "event_type": kind, "user_message_id": message_id} | more
            for n, (message_id, _) in enumerate(taken)
        ]
        traffic = site.publish(reports, routing_key="sms_transport.event")
        traffic.finish()
        state = "acked" if kind == "ack" else "delivered"
        wait_until(lambda state=state: site.count(f"messages WHERE state = '{state}'") == 50)
        site.traffic.remove(traffic)
    wait_until(lambda: site.count("runs WHERE chain = 'reported' AND state = 'done'") == 100)
    assert worker.stop() == 0
    assert site.query("SELECT state, gateway_id, count(*) FROM messages GROUP BY 1, 2") == [("delivered", "g-1", 50)]
    assert site.count("dead_letters") == 0
