"""What a step publishes becomes rows of the outbox, in the step's own commit, each with what the relay needs of it."""

from __future__ import annotations

import json

import pytest

from dispatcher import Done, Emit, Failed, Publish
from dispatcher.engine.records import OUTBOX_COLUMNS, OutboxRow, as_text
from dispatcher.events.limits import Limits
from dispatcher.events.wire import decode

VUMI = "senders: {default: {type: vumi, transport_name: sms}}\nservices: {go: {type: vumi}}\n"
SCRIPTED = """
chains:
  - name: c
    on: {event_type: done}
    steps:
      - {id: tell, handler: scripted, on_unknown: hold}
"""


def rows(world):
    return [OutboxRow(*(row[name] for name in OUTBOX_COLUMNS)) for row in world.rows("outbox")]


def scripted(world, *outcomes, rules=SCRIPTED):
    world.rules(rules, senders=VUMI)
    world.script[:] = outcomes
    world.publish(event_id="e1", conversation_key="conv9")
    return rows(world)


def test_row_tells_whose_it_is_where_it_goes_and_what_becomes_of_it(world):
    (row,) = scripted(world, Done(publishes=[Publish("vumi", "a.b/c", {"n": 1})]))
    ((run_id,),) = world.rows("runs", "run_id")
    now = as_text(world.clock.now())
    assert row == OutboxRow(
        1, "amqp:vumi/a.b/c", '{"n":1}', row.message_id, "ready", 0, now, "", "hold", "acc", "e1", run_id, "tell", now
    )
    assert row.address == ("vumi", "a.b/c")
    assert not row.is_text


@pytest.mark.parametrize("policy", ["hold", "resend", "fail"])
def test_on_unknown_is_that_of_the_step_unless_the_receiver_knows_a_repetition(world, policy):
    publishes = [Publish("vumi", "k", {}), Publish("vumi", "k", {}, keyed=True)]
    plain, keyed = scripted(world, Done(publishes=publishes), rules=SCRIPTED.replace("hold", policy))
    assert (plain.on_unknown, keyed.on_unknown) == (policy, "resend")


def test_message_keeps_the_id_that_it_has_and_each_other_one_gets_its_own(world):
    given = Publish("vumi", "k", {}, message_id="m1")
    found = scripted(world, Done(publishes=[given, Publish("vumi", "k", {}), Publish("vumi", "k", {})]))
    ids = [row.message_id for row in found]
    assert ids[0] == "m1"
    assert len(set(ids)) == 3


def test_pages_of_a_step_publish_under_ids_of_their_own(world):
    world.rules(SCRIPTED, senders=VUMI)
    world.script[:] = [
        Done(publishes=[Publish("vumi", "k", {"page": page})], more=page if page < 3 else None) for page in (1, 2, 3)
    ]
    world.publish(event_id="e1")
    while world.rows("runs", "state") != [("done",)]:
        world.turn()
    assert [json.loads(row.body)["page"] for row in rows(world)] == [1, 2, 3]
    assert len({row.message_id for row in rows(world)}) == 3


def test_text_by_vumi_keeps_the_rate_of_its_sender_and_the_id_of_its_row(world):
    world.rules(SCRIPTED.replace("scripted", 'send_sms, with: {to: "+27821234567", text: hi}'), senders=VUMI)
    world.publish(event_id="e1")
    (row,) = rows(world)
    (text,) = world.rows("messages")
    assert (row.lane, row.is_text, row.message_id) == ("sender:default", True, text["message_id"])
    assert (text["state"], row.address) == ("queued", ("vumi", "sms.outbound"))


def test_published_event_goes_by_its_type_under_its_own_id_and_is_always_sent_again(world):
    outcome = Done(emits=[Emit("told", {"a": 1}, publish=True), Emit("quiet", {})])
    (row,) = scripted(world, outcome)
    event = next(event for event in world.rows("events") if event["event_type"] == "told")
    assert (row.address, row.message_id) == (("vumi.events", "poll.told"), event["event_id"])
    assert (row.lane, row.on_unknown) == ("", "resend")
    envelope = decode(row.body.encode(), Limits())
    assert (envelope.event_id, envelope.root_id, envelope.parent_id, envelope.hops) == (
        event["event_id"], "e1", "e1", 1,
    )  # fmt: skip


def test_event_that_the_loop_guard_stops_is_not_published(world):
    rules = "chains: [{name: c, on: {}, steps: [{handler: emit_event, with: {event_type: done, publish: true}}]}]\n"
    world.rules(rules, senders=VUMI)
    world.publish(event_id="e1")
    while world.turn() or any(state == "new" for (state,) in world.rows("events", "state")):
        pass
    hops = sorted(hops for (hops,) in world.rows("events", "hops"))
    assert hops == list(range(10))
    assert len(rows(world)) == 8
    assert world.rows("dead_letters", "reason") == [("loop",)]


def test_step_that_fails_publishes_nothing(world):
    assert scripted(world, Failed("no")) == []


@pytest.mark.parametrize(
    "body", [{"n": 2**63}, {"n": float("inf")}, {"f": print}, {"x": "a" * 2**20}], ids=lambda body: next(iter(body))
)
def test_message_that_breaks_the_limits_fails_its_step_and_none_of_the_others_goes(world, body):
    publishes = [Publish("vumi", "k", {}), Publish("vumi", "k", body)]
    assert scripted(world, Done(publishes=publishes, emits=[Emit("told", {}, publish=True)])) == []
    assert world.rows("runs", "state") == [("failed",)]
    assert [(kind,) for (kind,) in world.rows("dead_letters", "reason")] == [("failed",)]
    assert len(world.rows("events")) == 1


@pytest.mark.parametrize("exchange", ["", "a/b", "100%", "a%2Fb", "é", "a b?c#d"])
def test_address_is_read_back_as_it_was_given(world, exchange):
    (row,) = scripted(world, Done(publishes=[Publish(exchange, "k/%2F ?", {})]))
    assert row.address == (exchange, "k/%2F ?")


def test_rows_of_one_batch_stand_in_the_order_of_publishing(world):
    world.rules(SCRIPTED, senders=VUMI)
    world.script[:] = [Done(publishes=[Publish("vumi", "k", {"n": n})]) for n in range(20)]
    world.publish(*({"event_id": f"e{n}"} for n in range(20)))
    assert [json.loads(row.body)["n"] for row in rows(world)] == list(range(20))
    seqs = [row.seq for row in rows(world)]
    assert seqs == sorted(seqs)


def test_replay_of_a_done_run_publishes_nothing_again(world):
    from dispatcher.errors import NotPossible
    from dispatcher.worker.administration import perform

    scripted(world, Done(publishes=[Publish("vumi", "k", {})]))
    with pytest.raises(NotPossible):
        perform(world.store, "events.replay", {"actor": "ann", "event": "e1", "again": False}, world.clock.now())
    world.turn()
    assert len(rows(world)) == 1


WRONG = [
    ({"exchange": None}, "of texts and a mapping"),
    ({"exchange": "e" * 256}, "whose exchange has 256 bytes, where 255 are the most"),
    ({"routing_key": b"k"}, "of texts and a mapping"),
    ({"routing_key": "\u00e9" * 128}, "whose routing_key has 256 bytes, where 255 are the most"),
    ({"routing_key": "k\ud800"}, "whose routing_key holds half of a surrogate pair"),
    ({"message_id": 7}, "of texts and a mapping"),
    ({"message_id": "m" * 256}, "whose message_id has 256 bytes, where 255 are the most"),
]


@pytest.mark.parametrize(("given", "said"), WRONG, ids=lambda value: next(iter(value)) if type(value) is dict else "")
def test_name_that_no_broker_could_be_told_fails_the_step(world, given, said):
    facts = {"exchange": "vumi", "routing_key": "k", "body": {}} | given
    assert scripted(world, Done(publishes=[Publish(**facts)])) == []
    ((state, error),) = world.rows("runs", "state", "error")
    assert state == "failed"
    assert said in error


def test_longest_names_are_published(world):
    (row,) = scripted(world, Done(publishes=[Publish("e" * 255, "k" * 255, {}, message_id="m" * 255)]))
    assert row.address == ("e" * 255, "k" * 255)


def test_published_event_whose_types_make_no_routing_key_fails_its_step(world):
    emit = Emit("t" * 200, {}, conversation_type="c" * 100, publish=True)
    assert scripted(world, Done(emits=[emit])) == []
    assert world.rows("runs", "state") == [("failed",)]
    assert len(world.rows("events")) == 1


def test_emitted_event_of_any_length_may_stay_inside(world):
    scripted(world, Done(emits=[Emit("t" * 200, {}, conversation_type="c" * 100)]))
    assert world.rows("runs", "state") == [("done",)]
    assert len(world.rows("events")) == 2
