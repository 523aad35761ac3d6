"""What a transport reports of a text moves it forward and becomes an event: nothing is lost, nothing done twice."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest

from dispatcher.engine.emits import LoopGuard
from dispatcher.engine.intake import Delivery
from dispatcher.worker.relay import Relay
from tests.unit.worker.fakes import FakePublisher

VUMI = "senders: {default: {type: vumi, transport_name: sms}}\n"
TEXT = """
chains:
  - name: c
    on: {event_type: done}
    steps:
      - {id: text, handler: send_sms, with: {to: "+27821234567", text: "hi {{ data.n | default(0) }}"}}
"""
REPORTED = """
  - name: told
    on: {conversation_type: sms}
    steps: [{handler: scripted, with: {say: told}}]
"""
ENDLESS = """
  - name: again
    on: {conversation_type: sms, event_type: ack}
    steps: [{handler: send_sms, with: {to: "{{ data.msisdn }}", text: again}}]
"""


def report(message_id, event_type="ack", event_id="r1", **facts):
    """Return the body of a report, as vumi2 writes it."""
    body = {
        "message_type": "event",
        "message_version": "20110921",
        "event_id": event_id,
        "event_type": event_type,
        "user_message_id": message_id,
        "sent_message_id": None,
        "nack_reason": None,
        "delivery_status": None,
        "timestamp": "2026-01-02 03:04:05.000006",
        "transport_name": "sms",
    }
    return json.dumps(body | facts).encode()


def delivered(body, *, kind="transport_event", tag=1, epoch="e1", redelivered=False, message_id=None):
    return Delivery(body, "amqp", message_id, redelivered, kind, "sms.event", epoch, tag)


def bring(world, *bodies, **options):
    return world.turn([delivered(body, tag=tag, **options) for tag, body in enumerate(bodies, 1)])


def a_text(world, more=REPORTED, **options):
    """Have a text sent, and return its id."""
    world.rules(TEXT + more, senders=VUMI, **options)
    world.publish(event_id="e1", event_data={"n": 1}, conversation_key="conv9")
    ((message_id,),) = world.rows("messages", "message_id")
    return message_id


def state(world):
    (row,) = world.rows("messages")
    return row["state"], row["gateway_id"], row["error"]


REPORTS = {
    "ack": ("ack", {"sent_message_id": "g1"}),
    "nack": ("nack", {"nack_reason": "no credit"}),
    "pending": ("delivery_report", {"delivery_status": "pending"}),
    "delivered": ("delivery_report", {"delivery_status": "delivered"}),
    "failed": ("delivery_report", {"delivery_status": "failed"}),
}


def tell(world, message_id, *names):
    for number, name in enumerate(names):
        event_type, facts = REPORTS[name]
        (receipt,) = bring(world, report(message_id, event_type, f"r{number}", **facts))
        assert receipt.kind == "stored"


# How far a text has come.


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["ack"], ("acked", "g1", None)),
        (["nack"], ("nacked", None, "nacked: no credit")),
        (["pending"], ("sent", None, None)),
        (["delivered"], ("delivered", None, None)),
        (["failed"], ("failed", None, "delivery failed")),
        (["ack", "delivered"], ("delivered", "g1", None)),
        (["ack", "failed"], ("failed", "g1", "delivery failed")),
        (["ack", "pending"], ("acked", "g1", None)),
        (["delivered", "ack"], ("delivered", "g1", None)),
        (["delivered", "pending"], ("delivered", None, None)),
        (["delivered", "nack"], ("delivered", None, None)),
        (["failed", "ack"], ("failed", "g1", "delivery failed")),
        (["failed", "delivered"], ("failed", None, "delivery failed")),
        (["delivered", "failed"], ("failed", None, "delivery failed")),
        (["ack", "nack"], ("nacked", "g1", "nacked: no credit")),
        (["nack", "ack"], ("acked", "g1", None)),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_report_moves_the_text_forward_only(world, names, expected):
    tell(world, a_text(world), *names)
    assert state(world) == expected


def test_reports_of_one_batch_move_the_text_as_those_of_several_do(world):
    message_id = a_text(world)
    delivery = report(message_id, "delivery_report", "r1", delivery_status="delivered")
    bring(world, delivery, report(message_id, "ack", "r2", sent_message_id="g1"))
    assert state(world) == ("delivered", "g1", None)


def test_nack_without_a_reason_says_so(world):
    bring(world, report(a_text(world), "nack"))
    assert state(world) == ("nacked", None, "nacked: no reason given")


@pytest.mark.parametrize("name", REPORTS)
def test_report_of_any_kind_ends_the_hold_of_a_text(world, name):
    message_id = a_text(world, "")
    publisher = FakePublisher()
    relay = Relay(publisher, world.clock)
    with world.store.transaction() as transaction:
        relay.look_anew()
        relay.take_due(transaction, 10)
        transaction.commit()
    relay.committed(lambda: None)
    publisher.tell("unknown", reason="connection lost")
    with world.store.transaction() as transaction:
        relay.settle(transaction, 10)
        transaction.commit()
    relay.committed(lambda: None)
    assert world.rows("runs", "state") == [("held",)]
    tell(world, message_id, name)
    assert world.rows("runs", "state", "error") == [("done", None)]
    assert world.rows("outbox") == []
    assert world.rows("dead_letters", "state") == [("replayed",)]
    assert state(world)[0] not in ("held", "queued")


# The event that it becomes.


def test_report_becomes_an_event_that_descends_from_the_one_that_caused_the_text(world):
    message_id = a_text(world)
    (receipt,) = bring(world, report(message_id, "ack", "abc", sent_message_id="g1"))
    assert receipt.kind == "stored"
    first, second = world.rows("events")
    assert {name: second[name] for name in ("event_id", "account_key", "conversation_key", "conversation_type")} == {
        "event_id": "abc", "account_key": "acc", "conversation_key": "conv9", "conversation_type": "sms",
    }  # fmt: skip
    assert (second["event_type"], second["source"], second["subject"]) == ("ack", "amqp", "+27821234567")
    assert (second["root_id"], second["parent_id"], second["hops"]) == ("e1", "e1", first["hops"] + 1)
    assert second["timestamp"] == "2026-01-02T03:04:05.000006Z"
    assert json.loads(second["event_data"]) == {
        "message_id": message_id, "event_type": "ack", "sent_message_id": "g1", "nack_reason": None,
        "delivery_status": None, "transport_name": "sms", "msisdn": "+27821234567", "sender": "default",
    }  # fmt: skip
    (seen,) = world.seen
    assert seen[0].event_id == "abc"


def test_report_on_a_text_whose_event_is_forgotten_is_still_taken(world):
    message_id = a_text(world)
    for table in ("steps", "runs", "events", "event_ids"):
        world.sql(f"DELETE FROM {table}")
    (receipt,) = bring(world, report(message_id, "ack", "abc"))
    assert receipt.kind == "stored"
    (event,) = world.rows("events")
    assert (event["root_id"], event["parent_id"], event["hops"], event["conversation_key"]) == (
        "e1", "e1", 1, "default",
    )  # fmt: skip
    assert state(world)[0] == "acked"


def test_report_without_a_time_has_the_time_of_its_receipt(world):
    message_id = a_text(world)
    world.clock.advance(timedelta(hours=1))
    bring(world, report(message_id, timestamp=None))
    assert world.rows("events", "timestamp", "received_at")[1][0] == world.rows("events", "received_at")[1][0]


def test_id_of_a_text_is_read_with_dashes_too(world):
    message_id = a_text(world)
    dashed = "-".join((message_id[:8], message_id[8:12], message_id[12:16], message_id[16:20], message_id[20:]))
    assert bring(world, report(dashed.upper()))[0].kind == "stored"
    assert state(world)[0] == "acked"


# What is not taken.


def test_report_on_a_message_that_was_never_sent_is_a_dead_letter_with_its_body(world):
    a_text(world)
    body = report("f" * 32)
    (receipt,) = bring(world, body)
    assert (receipt.kind, receipt.code) == ("refused", "unknown_message")
    (letter,) = world.rows("dead_letters")
    assert (letter["kind"], letter["reason"], letter["body"]) == ("delivery", "unknown_message", body)
    assert "f" * 32 in letter["detail"]
    assert len(world.rows("events")) == 1


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"event_type": "ack"}', b"\xff"])
def test_report_that_cannot_be_read_is_a_dead_letter_with_its_body(world, body):
    a_text(world)
    (receipt,) = bring(world, body)
    assert receipt.kind == "refused"
    assert world.rows("dead_letters", "body") == [(body,)]


def test_same_report_twice_is_a_duplicate(world):
    message_id = a_text(world)
    assert bring(world, report(message_id))[0].kind == "stored"
    assert bring(world, report(message_id), redelivered=True, epoch="e2")[0].kind == "duplicate"
    assert [receipt.kind for receipt in bring(world, report(message_id), report(message_id))] == ["duplicate"] * 2
    assert len(world.rows("events")) == 2
    assert len(world.seen) == 1


def test_same_report_twice_in_one_batch_is_a_duplicate(world):
    message_id = a_text(world)
    assert [receipt.kind for receipt in bring(world, report(message_id), report(message_id))] == ["stored", "duplicate"]
    assert len(world.rows("events")) == 2


def test_report_with_the_id_of_another_is_refused_and_moves_nothing(world):
    message_id = a_text(world)
    bring(world, report(message_id))
    (receipt,) = bring(world, report(message_id, "nack", nack_reason="no credit"))
    assert (receipt.kind, receipt.code) == ("refused", "id_conflict")
    assert state(world)[0] == "acked"


def test_report_that_comes_again_is_stored_first_and_advanced_by_a_later_batch(world):
    message_id = a_text(world)
    (receipt,) = bring(world, report(message_id), redelivered=True)
    assert receipt.kind == "stored"
    assert world.seen == []
    assert state(world)[0] == "acked"
    world.turn()
    assert len(world.seen) == 1


# With others in one batch.


def test_receipts_stand_in_the_order_of_the_deliveries(world):
    message_id = a_text(world)
    event = {"account_key": "acc", "conversation_key": "c", "conversation_type": "poll", "event_type": "x"}

    def body(event_id):
        return json.dumps({**event, "event_id": event_id, "event_data": {}}).encode()

    receipts = world.turn(
        [
            delivered(body("a"), kind="event", tag=1),
            delivered(report(message_id, event_id="r1"), tag=2),
            delivered(b"{", kind="event", tag=3),
            delivered(report("0" * 32, event_id="r2"), tag=4),
            delivered(body("a"), kind="event", tag=5),
            delivered(report(message_id, event_id="r1"), tag=6),
            delivered(body("b"), kind="event", tag=7),
        ]
    )
    assert [(receipt.kind, receipt.event_id or receipt.code) for receipt in receipts] == [
        ("stored", "a"), ("stored", "r1"), ("refused", "bad_json"), ("refused", "unknown_message"),
        ("duplicate", "a"), ("duplicate", "r1"), ("stored", "b"),
    ]  # fmt: skip


def test_chain_that_texts_on_each_ack_is_stopped_with_one_dead_letter(world):
    a_text(world, ENDLESS, loop_guard=LoopGuard(max_hops=3))
    for turn in range(8):
        known = {key for (key,) in world.rows("events", "event_id")}
        for (message_id,) in world.rows("messages", "message_id"):
            if f"r{message_id}" not in known:
                bring(world, report(message_id, event_id=f"r{message_id}"))
        assert turn < 7 or len(world.rows("messages")) == 4
    hops = [hops for (hops,) in world.rows("events", "hops")]
    assert hops == [0, 1, 2, 3, 4]
    (letter,) = world.rows("dead_letters")
    assert (letter["kind"], letter["reason"]) == ("event", "loop")
    assert "sender 'default'" in letter["detail"]
    # The text itself is told of all the same.
    assert {row["state"] for row in world.rows("messages")} == {"acked"}


def test_reports_past_the_most_events_of_a_root_still_move_their_texts(world):
    message_id = a_text(world, loop_guard=LoopGuard(max_events_per_root=2))
    tell(world, message_id, "pending", "ack", "delivered")
    assert state(world) == ("delivered", "g1", None)
    assert len(world.seen) == 2
    assert world.rows("dead_letters", "reason") == [("loop",)]
