"""The publisher of the command line: what it hands over, when it stops, and what it waits for."""

from __future__ import annotations

import hashlib
from collections import deque
from types import SimpleNamespace

import pytest

from dispatcher.errors import BrokerUnreachable
from dispatcher.settings import Settings
from dispatcher.sources.amqp import handover
from dispatcher.sources.amqp.fates import Published
from dispatcher.sources.amqp.handover import Handover, message_id


class Broker:
    """A publisher that answers at once: `fates` by number, all others are confirmed; None: no answer."""

    def __init__(self):
        self.settings = None
        self.fates = {}
        self.taken = []
        self.largest = 0
        self.room = 3
        self.link = SimpleNamespace(state="up", reason=None)
        self.told = deque()
        self.open = set()
        self.stopped = []

    def __call__(self, settings, wake):
        self.settings = settings
        return self

    def start(self):
        pass

    @property
    def status(self):
        return SimpleNamespace(link=self.link)

    def publish(self, messages):
        assert len(messages) <= self.room
        self.taken += messages
        for message in messages:
            self.open.add(message.seq)
            fate = self.fates.get(message.seq, "confirmed")
            if fate is not None:
                self.answer(message.seq, fate)

    def answer(self, number, fate):
        self.open.discard(number)
        self.told.append(Published(number, fate, None if fate == "confirmed" else "because"))

    def results(self, limit):
        return list(self.told)[:limit]

    def forget(self, count):
        for _ in range(count):
            self.told.popleft()

    def stop(self, patience_seconds):
        self.stopped.append(patience_seconds)
        for number in sorted(self.open):
            self.answer(number, "unknown")


@pytest.fixture
def broker(monkeypatch):
    made = Broker()
    monkeypatch.setattr(handover, "Publisher", made)
    monkeypatch.setattr(handover, "_LOOK_SECONDS", 0.0)
    return made


def settings(**fields):
    return Settings(amqp_url="amqp://broker", **fields)


def messages(*numbers, size=2):
    return [(number, b"x" * size, f"id{number}") for number in numbers]


def test_all_is_handed_over_as_the_room_allows_and_counted(broker):
    with Handover(settings(amqp_queues="a,b", amqp_exchange="e")) as out:
        assert out.send(messages(*range(1, 11))) is None
        out.finish()

    assert (out.confirmed, out.failures, out.stuck) == (10, [], None)
    assert [(one.seq, one.exchange, one.routing_key, one.message_id) for one in broker.taken[:2]] == [
        (1, "e", "a", "id1"),
        (2, "e", "a", "id2"),
    ]


def test_nothing_is_made_at_the_broker(broker):
    with Handover(settings()):
        pass

    assert broker.settings.amqp_declare is False


def test_at_the_first_failure_no_more_is_handed_over_and_the_rest_is_waited_for(broker):
    broker.fates = {2: "unroutable"}
    with Handover(settings()) as out:
        assert out.send(messages(1, 2, 3, 4, 5)) == 4
        out.finish()

    assert [(failure.seq, failure.fate) for failure in out.failures] == [(2, "unroutable")]
    assert out.confirmed == 2


def test_what_is_on_its_way_is_bounded_in_bytes(broker, monkeypatch):
    monkeypatch.setattr(handover, "_MOST_BYTES", 100)
    batches = []
    publish = broker.publish
    broker.publish = lambda batch: (batches.append([one.seq for one in batch]), publish(batch))
    with Handover(settings()) as out:
        assert out.send(messages(1, 2, 3, 4, size=60)) is None
        out.finish()

    assert batches == [[1, 2], [3, 4]]


def test_a_broker_that_cannot_be_reached_is_told_with_its_reason(broker):
    broker.room, broker.link = 0, SimpleNamespace(state="down", reason="connection refused at broker:5672")

    with pytest.raises(BrokerUnreachable, match="connection refused at broker:5672"):
        Handover(settings()).__enter__()

    assert broker.stopped == [0.0]


def test_a_broker_that_never_answers_is_given_up_after_a_while(broker):
    broker.fates = {1: None}
    clock = iter(range(0, 10_000, 10))
    with Handover(settings(amqp_blocked_seconds=1.0), monotonic=lambda: next(clock)) as out:
        assert out.send(messages(1)) is None
        out.finish()

    assert out.stuck == "the broker has taken nothing for 16 seconds"
    assert [(failure.seq, failure.fate) for failure in out.failures] == [(1, "unknown")]


def test_one_that_has_no_room_any_more_is_given_up_too(broker):
    clock = iter(range(0, 10_000, 10))
    with Handover(settings(amqp_blocked_seconds=1.0), monotonic=lambda: next(clock)) as out:
        broker.room, broker.link = 0, SimpleNamespace(state="down", reason="the connection was reset")
        assert out.send(messages(1, 2)) == 1
        out.finish()

    assert (out.stuck, out.failures, out.confirmed) == ("the connection was reset", [], 0)


def test_the_id_of_an_event_is_the_message_id():
    assert message_id("e1") == "e1"


def test_an_event_without_an_id_gets_a_new_one_each_time():
    assert len({message_id(None), message_id(None), message_id("")}) == 3


def test_an_id_too_long_for_amqp_is_told_by_its_digest():
    assert message_id("é" * 127) == "é" * 127
    assert message_id("é" * 128) == hashlib.sha256(("é" * 128).encode()).hexdigest()
