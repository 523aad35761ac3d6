"""Whatever a broker and a worker do to each other, in any order: a ledger beside them says that nothing got lost.

A model of a broker, with chance for its only whim. It is seeded, so what fails once fails again.
"""

from __future__ import annotations

import json
import random
from collections import Counter, deque

import pytest

from dispatcher.engine.intake import Delivery
from dispatcher.errors import StoreUnusable
from tests.unit.worker.test_relay import TEXT, Shop

COUNTED = "chains: [{name: c, on: {event_type: done}, steps: [{handler: log_event}]}]\n"


class ModelQueue:
    """One queue with one consumer. Acks travel, may get lost with their channel, and are answered some time later."""

    def __init__(self, chance, prefetch=20):
        self._chance, self._prefetch = chance, prefetch
        self.ready = deque()  # [body, redelivered]
        self.unacked = {}
        self._epochs = 0
        self._buffer, self._acks, self._answers, self._told = deque(), deque(), deque(), deque()
        self.reconnect()

    def publish(self, body):
        self.ready.append([body, False])
        self._deliver()

    def reconnect(self):
        """End the channel: of the acks under way some arrive, and what is not acked by then comes again."""
        self._arrive()
        for tag in sorted(self.unacked, reverse=True):
            self.ready.appendleft([self.unacked[tag][0], True])
        for each in (self.unacked, self._buffer, self._acks, self._answers, self._told):
            each.clear()
        self._epochs, self._tag = self._epochs + 1, 0
        self._deliver()

    def tick(self):
        """Let some acks arrive, and some answers."""
        self._arrive()
        for _ in range(self._chance.randint(0, len(self._answers))):
            self._told.append(self._answers.popleft())
        self._deliver()

    def _arrive(self):
        for _ in range(self._chance.randint(0, len(self._acks))):
            upto = self._acks.popleft()
            for tag in [tag for tag in self.unacked if tag <= upto]:
                del self.unacked[tag]
            self._answers.append((f"e{self._epochs:03}", upto))

    def _deliver(self):
        while self.ready and len(self.unacked) < self._prefetch:
            self._tag += 1
            body, again = self.unacked[self._tag] = self.ready.popleft()
            self._buffer.append(Delivery(body, "amqp", None, again, "event", "q", f"e{self._epochs:03}", self._tag))

    # The face of a consumer.

    @property
    def epochs(self):
        return {f"e{self._epochs:03}"}

    def take(self, limit):
        return [self._buffer.popleft() for _ in range(min(limit, len(self._buffer), self._chance.randint(1, 10)))]

    def put_back(self, deliveries):
        self._buffer.extendleft(reversed(deliveries))

    def ack(self, deliveries):
        self._acks.append(deliveries[-1].tag)

    def surely_acked(self):
        told = list(self._told)
        self._told.clear()
        return told


def fails_to_write(workshop):
    workshop.world.place.forbid_writes()
    try:
        workshop.turn()
    except StoreUnusable:
        pass
    finally:
        workshop.world.place.allow_writes()


@pytest.mark.parametrize("seed", range(8))
def test_every_event_without_an_id_is_taken_in_once(workshop, seed):
    chance = random.Random(seed)
    workshop.rules(COUNTED)
    queue = workshop.batches.consumer = ModelQueue(chance)
    published = 0

    def start_again():
        workshop.restart()
        queue.reconnect()
        workshop.batches.consumer = queue

    def die_before_the_ack():
        queue.ack = lambda deliveries: None
        workshop.turn()
        del queue.ack
        start_again()

    for _ in range(150):
        act = chance.random()
        if act < 0.3:
            for _ in range(chance.randint(1, 15)):
                published += 1
                queue.publish(workshop.body({"event_data": {"n": published}}))
        elif act < 0.7:
            workshop.turn()
        elif act < 0.85:
            queue.tick()
        elif act < 0.9:
            queue.reconnect()
        elif act < 0.94:
            start_again()
        elif act < 0.97:
            die_before_the_ack()
        else:
            fails_to_write(workshop)
    while queue.ready or queue.unacked:
        queue.tick()
        workshop.turn()
    workshop.work_off()
    taken = Counter(json.loads(data)["n"] for (data,) in workshop.rows("events", "event_data"))
    assert taken == Counter(range(1, published + 1))
    assert set(workshop.states("events")) == {"matched"}


@pytest.mark.parametrize("seed", range(8))
def test_every_text_gets_to_the_broker_and_under_one_id(workshop, seed):
    chance = random.Random(seed)
    shop = Shop(workshop).rules(TEXT, "resend")
    workshop.refuse("messages", "NEW.content LIKE 'bad%'")
    ledger = {}  # what the broker has: ids by content
    wanted, made = set(), 0

    def has(message):
        ledger.setdefault(json.loads(message.body)["content"], []).append(message.message_id)

    def tell_some():
        for seq, message in list(shop.publisher.open.items()):
            fate = chance.choice(["confirmed", "confirmed", "unsent", "refused", "unroutable", "unknown", None])
            if fate == "confirmed" or (fate == "unknown" and chance.random() < 0.5):
                has(message)
            if fate is not None:
                shop.publisher.tell(fate, seq, reason="so it goes")
        shop.turn()

    def crash():
        for message in shop.publisher.open.values():
            if chance.random() < 0.5:
                has(message)
        shop.restart()

    for _ in range(100):
        act = chance.random()
        if act < 0.35:
            words = []
            for _ in range(chance.randint(1, 12)):
                made += 1
                words.append(f"{'bad' if chance.random() < 0.04 else 'word'} {made}")
            wanted.update(word for word in words if word.startswith("word"))
            shop.publish(*words)
        elif act < 0.7:
            tell_some()
        elif act < 0.75:
            crash()
        elif act < 0.8:
            shop.publisher.window = chance.choice([0, 1, 5, 1000])
        elif act < 0.85:
            fails_to_write(workshop)
        else:
            shop.after(seconds=chance.choice([0.1, 1, 30, 70])).turn()
        assert shop.relay.in_flight == shop.states("outbox").count("sending")
    shop.publisher.window = 1000
    while shop.outbox():
        for seq, message in list(shop.publisher.open.items()):
            has(message)
            shop.publisher.tell("confirmed", seq)
        shop.after(seconds=61).work_off()
    assert set(ledger) == wanted
    assert all(len(set(ids)) == 1 for ids in ledger.values())
    assert set(shop.states("messages")) == {"sent"}
    assert shop.relay.in_flight == 0
