"""What a broker delivers: acked when it is stored and not before, and taken in turns with whoever publishes by hand."""

from __future__ import annotations

import pytest

from dispatcher.engine.intake import Delivery
from dispatcher.errors import StoreUnusable
from tests.unit.worker.fakes import FakeConsumer

CHAIN = """
chains:
  - name: c
    on: {event_type: done}
    steps: [{handler: send_sms, with: {to: "+27821234567", text: "{{ data.words }}"}}]
"""


@pytest.fixture
def consumer(workshop):
    workshop.rules(CHAIN)
    workshop.batches.consumer = FakeConsumer()
    return workshop.batches.consumer


def deliver(workshop, consumer, *words):
    for word in words:
        body = workshop.body({"event_data": {"words": word}})
        tag = len(consumer.buffer) + len(consumer.acked) + 1
        consumer.buffer.append(Delivery(body, "amqp", queue="vumi.event", epoch="e1", tag=tag))


def tags(deliveries):
    return [delivery.tag for delivery in deliveries]


def test_deliveries_are_acked_with_the_batch_that_stores_them(workshop, consumer):
    deliver(workshop, consumer, "one", "two")
    assert workshop.turn()
    assert tags(consumer.acked) == [1, 2]
    assert workshop.states("events") == ["matched", "matched"]


def test_deliveries_that_could_not_be_stored_are_put_back_unacked(workshop, consumer, monkeypatch):
    deliver(workshop, consumer, "one", "two")

    def fail(*_):
        raise StoreUnusable("the disk is full.")

    with monkeypatch.context() as patch:
        patch.setattr(workshop.batches, "_run", fail)
        with pytest.raises(StoreUnusable):
            workshop.turn()
    assert consumer.acked == []
    assert workshop.turn()
    assert tags(consumer.acked) == [1, 2]


def test_what_was_stored_before_the_store_failed_is_acked_and_only_the_rest_put_back(workshop, consumer, monkeypatch):
    deliver(workshop, consumer, "a", "b", "bad", "d")
    workshop.refuse("messages", "NEW.content = 'bad'")
    run, runs = workshop.batches._run, []

    def fail_at_the_third(transaction, work):
        runs.append(work)
        if len(runs) == 3:
            raise StoreUnusable("the disk is full.")
        return run(transaction, work)

    with monkeypatch.context() as patch:
        patch.setattr(workshop.batches, "_run", fail_at_the_third)
        with pytest.raises(StoreUnusable):
            workshop.turn()
    assert tags(consumer.acked) == [1, 2]
    workshop.work_off()
    assert tags(consumer.acked) == [1, 2, 3, 4]
    assert len(workshop.rows("events")) == 3
    assert [row["reason"] for row in workshop.rows("dead_letters")] == ["failed"]


def test_busy_publisher_by_hand_does_not_keep_the_brokers_deliveries_waiting(workshop, consumer):
    for number in range(4):
        workshop.ask_to_publish({"event_id": f"by-hand-{number}"})
    deliver(workshop, consumer, "one")
    assert workshop.turn()
    assert workshop.turn()
    assert tags(consumer.acked) == [1]
    assert len(workshop.rows("events")) == 2


def test_request_to_publish_nothing_is_answered(workshop, consumer):
    request = workshop.ask_to_publish()
    workshop.turn()
    assert request.wait()["result"] == {"receipts": []}


def test_batch_whose_channel_ended_is_kept_only_where_no_other_worker_can_have_got_it(workshop, consumer, monkeypatch):
    deliver(workshop, consumer, "one", "two")
    take = consumer.take

    def take_at_the_last_moment(limit):
        taken = take(limit)
        consumer.ended.add("e1")
        return taken

    monkeypatch.setattr(consumer, "take", take_at_the_last_moment)
    assert workshop.turn()
    shared = workshop.store.shared
    assert (workshop.states("events"), tags(consumer.acked)) == (([], []) if shared else (["matched"] * 2, [1, 2]))
    assert not consumer.buffer
