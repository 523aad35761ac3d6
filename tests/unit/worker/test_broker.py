"""What ties a worker to its broker: what it consumes, when a drain is over, and what is recorded at the end."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta

import pytest

from dispatcher.engine.counts import Counts
from dispatcher.engine.intake import Delivery
from dispatcher.errors import BrokerUnreachable, CannotStart
from dispatcher.settings import Settings
from dispatcher.sources.amqp.topology import Queue
from dispatcher.worker import broker as module
from dispatcher.worker.broker import Broker, queues_of
from tests.unit.worker.fakes import FakeConsumer, FakePublisher

RULES = """
chains:
  - name: c
    on: {event_type: done}
    steps: [{id: text, handler: send_sms, with: {to: "+27821234567", text: "{{ data.words | default('') }}"}}]
"""
TWO_SENDERS = """
senders:
  default: {type: vumi, transport_name: sms}
  again: {type: vumi, transport_name: sms, from_addr: "+27821230000"}
  silent: {type: vumi, transport_name: quiet, reports: false}
  other: {type: vumi, transport_name: bulk}
  here: {type: outbox}
"""
VUMI = "senders: {default: {type: vumi, transport_name: sms}}\n"


@dataclass
class LinkNow:
    state: str = "up"
    reason: str | None = None
    blocked_since: float | None = None


@dataclass
class QueueNow:
    name: str = "vumi.event"
    consuming: bool = True
    reason: str | None = None


@dataclass
class Status:
    link: LinkNow = field(default_factory=LinkNow)
    queues: tuple = (QueueNow(),)


class Publisher(FakePublisher):
    def __init__(self, settings, wake):
        super().__init__()
        self.status = Status()
        self.at_stop = lambda: None
        self.order = []

    def start(self):
        self.order.append("started")

    def stop(self, patience):
        self.at_stop()


class Consumer(FakeConsumer):
    def __init__(self, settings, queues, wake, *, shared):
        super().__init__()
        self.queues = list(queues)
        self.status = Status()
        self.depth = 0
        self.at_stop = lambda: None

    def start(self):
        pass

    def stop(self, patience):
        self.at_stop()

    def waiting(self):
        return self.depth

    def replace_queues(self, queues):
        self.queues = list(queues)


@pytest.fixture
def made(workshop, monkeypatch):
    """Make a broker over the workshop's store, with a publisher and a consumer that the test plays."""
    monkeypatch.setattr(module, "Publisher", Publisher)
    monkeypatch.setattr(module, "Consumer", Consumer)

    def make(senders=VUMI, **settings):
        workshop.rules(RULES, senders=senders)
        found = Settings(amqp_url="amqp://someone:secret@broker", **settings)
        broker = Broker(found, workshop.engine.plan, workshop.clock, totals=Counts(), wake=lambda: None)
        broker.start(workshop.store, workshop.batches, workshop.engine.connections.by_lane)
        return broker

    return make


def queues(workshop, senders, **settings):
    workshop.rules(RULES, senders=senders)
    return queues_of(Settings(amqp_url="amqp://broker", **settings), workshop.engine.plan)


def published(workshop, *words):
    workshop.ask_to_publish(*({"event_data": {"words": word}} for word in words))
    assert workshop.turn()


# The queues.


def test_queues_are_those_of_the_settings_and_the_reports_of_each_transport(workshop):
    assert queues(workshop, TWO_SENDERS, amqp_queues="vumi.event, more.event") == [
        Queue("vumi.event", "event"),
        Queue("more.event", "event"),
        Queue("bulk.event", "transport_event"),
        Queue("sms.event", "transport_event"),
    ]


def test_rulebook_without_transports_leaves_the_queues_of_the_settings(workshop):
    assert queues(workshop, "senders: {default: {type: outbox}}\n") == [Queue("vumi.event", "event")]


def test_queue_of_events_that_a_transport_reports_to_as_well_is_refused(workshop):
    with pytest.raises(CannotStart, match=r"queue sms\.event .* transport 'sms'") as refused:
        queues(workshop, VUMI, amqp_queues="vumi.event,sms.event")
    assert "reports: false" in refused.value.hint


def test_transport_that_does_not_report_here_may_share_its_name_with_a_queue(workshop):
    found = queues(workshop, VUMI.replace("sms}", "sms, reports: false}"), amqp_queues="sms.event")
    assert found == [Queue("sms.event", "event")]


def test_queues_and_rates_follow_the_rulebook(made, workshop):
    broker = made()
    workshop.rules(RULES, senders=TWO_SENDERS)
    broker.reloaded(workshop.engine.plan, workshop.engine.connections.by_lane)
    assert [queue.name for queue in broker.consumer.queues] == ["vumi.event", "bulk.event", "sms.event"]


# The start.


def test_what_was_in_flight_is_settled_before_anything_is_published(made, workshop):
    first = made()
    published(workshop, "one")
    assert first.relay.in_flight == 1
    workshop.restart()
    second = made()
    assert second.relay.in_flight == 0
    assert workshop.states("outbox") == ["held"]
    assert second.publisher.order == ["started"]
    assert second.publisher.handed == []


# A drain.


def drains(broker, workshop):
    return broker.drained(workshop.store)


def test_drain_is_over_when_nothing_waits_on_either_side(made, workshop):
    assert drains(made(), workshop)


@pytest.mark.parametrize("depth", [None, 1])
def test_drain_goes_on_while_the_broker_has_more_or_has_not_said(made, workshop, depth):
    broker = made()
    broker.consumer.depth = depth
    assert not drains(broker, workshop)
    workshop.clock.advance(timedelta(hours=1))
    assert not drains(broker, workshop)


def test_drain_goes_on_while_a_rate_keeps_texts_waiting(made, workshop):
    broker = made(VUMI.replace("sms}", "sms, rate: 1/s}"))
    published(workshop, "one", "two")
    broker.publisher.tell("confirmed")
    workshop.turn()
    assert not drains(broker, workshop)
    workshop.clock.advance(timedelta(seconds=1))
    workshop.turn()
    assert drains(broker, workshop)


@pytest.mark.parametrize("fate", ["refused", "unroutable"])
def test_drain_does_not_wait_for_what_is_put_off(made, workshop, fate):
    broker = made()
    published(workshop, "one")
    broker.publisher.tell(fate, reason="312 NO_ROUTE")
    workshop.turn()
    assert workshop.states("outbox") == ["ready"]
    assert drains(broker, workshop)


OBSTACLES = {
    "no connection to consume": lambda broker: broker.consumer.status.__setattr__("link", LinkNow("down", "refused")),
    "never connected": lambda broker: broker.consumer.status.__setattr__("link", LinkNow("connecting")),
    "a queue that is not there": lambda broker: broker.consumer.status.__setattr__(
        "queues", (QueueNow(), QueueNow("more", consuming=False, reason="404 no queue"))
    ),
    "no connection to publish": lambda broker: broker.publisher.status.__setattr__("link", LinkNow("down", "refused")),
    "a broker that is short of memory": lambda broker: broker.publisher.status.__setattr__(
        "link", LinkNow(blocked_since=1.0)
    ),
}


@pytest.mark.parametrize("obstacle", OBSTACLES.values(), ids=OBSTACLES)
def test_drain_waits_a_while_for_a_broker_that_does_not_serve_and_then_says_why(made, workshop, obstacle):
    broker = made(amqp_queues="vumi.event,more")
    broker.publisher.window = 0
    published(workshop, "one")
    obstacle(broker)
    assert not drains(broker, workshop)
    workshop.clock.advance(timedelta(seconds=14))
    assert not drains(broker, workshop)
    workshop.clock.advance(timedelta(seconds=2))
    with pytest.raises(BrokerUnreachable, match=r"does not serve: \w+") as raised:
        drains(broker, workshop)
    assert "secret" not in str(raised.value)
    assert workshop.states("outbox") == ["ready"]


@pytest.mark.parametrize("named", ["no connection to publish", "a broker that is short of memory"])
def test_drain_needs_no_way_out_when_nothing_is_to_go_out(made, workshop, named):
    broker = made()
    OBSTACLES[named](broker)
    assert drains(broker, workshop)


def test_drain_does_not_wait_for_a_transport_that_has_never_run(made, workshop):
    broker = made()
    broker.consumer.status.queues = (QueueNow(), QueueNow("sms.event", consuming=False, reason="404 no queue"))
    assert drains(broker, workshop)


def test_patience_begins_anew_once_the_broker_has_served(made, workshop):
    broker = made()
    broker.consumer.depth = 1
    broker.consumer.status.link = LinkNow("down", "refused")
    assert not drains(broker, workshop)
    workshop.clock.advance(timedelta(seconds=14))
    broker.consumer.status.link = LinkNow("up")
    assert not drains(broker, workshop)
    broker.consumer.status.link = LinkNow("down", "refused")
    workshop.clock.advance(timedelta(seconds=14))
    assert not drains(broker, workshop)


# The end.


def test_what_is_told_while_it_stops_is_recorded(made, workshop):
    broker = made()
    published(workshop, "one", "two")
    first, second = broker.publisher.open
    broker.publisher.at_stop = lambda: (
        broker.publisher.tell("confirmed", first),
        broker.publisher.tell("unknown", second, reason="the publisher was stopped"),
    )
    broker.stop(1.0)
    broker.settle(workshop.store)
    assert workshop.states("outbox") == ["held"]
    assert sorted(workshop.states("messages")) == ["held", "sent"]
    assert broker.relay.in_flight == 0


def test_what_could_not_be_written_goes_with_the_next_worker(made, workshop):
    broker = made()
    published(workshop, "one")
    broker.publisher.at_stop = lambda: broker.publisher.tell("unsent", reason="stopped")
    broker.stop(1.0)
    broker.settle(workshop.store)
    assert workshop.rows("outbox", "state", "attempt") == [("ready", 0)]
    assert len(broker.publisher.handed) == 1
    workshop.restart()
    broker = made()
    workshop.turn()
    assert len(broker.publisher.handed) == 1


def test_acks_that_are_answered_while_it_stops_are_recorded(made, workshop):
    """Else what the broker has let go would be expected to come again, and swallow an equal event."""
    broker = made()
    body = workshop.body({"event_data": {"words": "one"}})
    broker.consumer.buffer.append(Delivery(body, "amqp", None, False, "event", "vumi.event", "e1", 1))
    workshop.turn()
    assert len(workshop.rows("unacked")) == 1
    broker.consumer.at_stop = lambda: broker.consumer.processed.append(("e1", 1))
    broker.stop(1.0)
    broker.settle(workshop.store)
    assert workshop.rows("unacked") == []


def test_acks_that_were_answered_while_nothing_was_to_do_are_recorded_at_the_end(made, workshop):
    broker = made()
    body = workshop.body({"event_data": {"words": "one"}})
    broker.consumer.buffer.append(Delivery(body, "amqp", None, False, "event", "vumi.event", "e1", 1))
    workshop.turn()
    broker.consumer.processed.append(("e1", 1))
    if not workshop.store.shared:  # others wait to hear of them
        assert not workshop.turn()
        assert len(workshop.rows("unacked")) == 1  # not worth a commit of its own
    broker.stop(1.0)
    broker.settle(workshop.store)
    assert workshop.rows("unacked") == []


def test_a_worker_of_a_shared_store_records_acks_that_others_may_wait_to_hear_of(made, workshop):
    broker = made()
    body = workshop.body({"event_data": {"words": "one"}})
    broker.consumer.buffer.append(Delivery(body, "amqp", None, False, "event", "vumi.event", "e1", 1))
    workshop.turn()
    broker.consumer.processed.append(("e1", 1))
    workshop.turn()
    assert (workshop.rows("unacked") == []) is workshop.store.shared


def test_store_that_cannot_be_written_at_the_end_leaves_the_rest_to_the_next_worker(made, workshop):
    broker = made()
    published(workshop, "one")
    broker.publisher.tell("confirmed")
    workshop.world.place.forbid_writes()
    broker.settle(workshop.store)
    workshop.world.place.allow_writes()
    assert workshop.states("outbox") == ["sending"]
    assert workshop.states("messages") == ["queued"]
