"""The relay hands each row of the outbox to the broker once it is on record as sending, and loses or doubles none."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest

from dispatcher import Done, Publish
from dispatcher.engine.records import as_time
from dispatcher.errors import NotPossible, StoreUnusable
from dispatcher.worker.administration import perform
from dispatcher.worker.relay import STOPPED, Relay
from tests.unit.worker.fakes import FakeConsumer, FakePublisher

VUMI = "senders: {default: {type: vumi, transport_name: sms}}\n"
TEXT = """
chains:
  - name: c
    on: {event_type: done}
    steps:
      - {id: text, handler: send_sms, with: {to: "+27821234567", text: "{{ data.words }}"}, on_unknown: POLICY}
"""
SCRIPTED = """
chains:
  - name: c
    on: {event_type: done}
    steps:
      - {id: tell, handler: scripted, on_unknown: POLICY}
"""
EMIT = """
chains:
  - name: c
    on: {event_type: done}
    steps:
      - {id: emit, handler: emit_event, with: {event_type: told, publish: true}}
"""


def told(word="hello", **options):
    """Return an outcome that publishes one message."""
    return Done(publishes=[Publish("vumi", "there", {"words": word}, **options)])


class Shop:
    """The workshop with a relay to a publisher without a broker."""

    def __init__(self, workshop):
        self.workshop, self.store, self.clock = workshop, workshop.store, workshop.clock
        self.rows, self.sql, self.script = workshop.rows, workshop.sql, workshop.script

    def rules(self, text, policy="hold", senders=VUMI):
        self.workshop.rules(text.replace("POLICY", policy), senders=senders)
        self.publisher = FakePublisher(self.workshop.world.place)
        self.relay = Relay(self.publisher, self.clock)
        self.relay.configure(self.workshop.engine.connections.by_lane)
        self.workshop.batches.relay = self.relay
        return self

    def restart(self):
        """Begin anew as after a crash."""
        self.workshop.restart()
        self.publisher = FakePublisher(self.workshop.world.place)
        self.relay = Relay(self.publisher, self.clock)
        self.relay.configure(self.workshop.engine.connections.by_lane)
        self.relay.recover(self.store)
        self.workshop.batches.relay = self.relay
        return self

    def publish(self, *words, **facts):
        """Take one event in for each word, and advance them with one batch."""
        self.workshop.ask_to_publish(*({"event_data": {"words": word}, **facts} for word in words))
        assert self.turn()

    def turn(self, **options):
        return self.workshop.turn(**options)

    def work_off(self):
        self.workshop.work_off()

    def after(self, **time):
        self.clock.advance(timedelta(**time))
        return self

    def tell(self, fate, *seqs, reason=None):
        """Let the broker tell, and record it."""
        self.publisher.tell(fate, *seqs, reason=reason)
        self.turn()

    def outbox(self, *columns):
        return self.rows("outbox", *columns) if columns else self.rows("outbox")

    def states(self, table):
        return [row["state"] for row in self.rows(table)]

    def words(self):
        """Return the words of what was handed over, in order."""
        bodies = [json.loads(body) for body in self.publisher.bodies]
        return [body.get("content") or body.get("words") for body in bodies]

    def run_id(self):
        (only,) = self.rows("runs", "run_id")
        return only[0]

    def by(self, verb, **args):
        """Do what a person asks for, as the loop does it."""
        try:
            return perform(self.store, verb, {"actor": "ann", **args}, self.clock.now())
        finally:
            self.workshop.batches.count_anew()


@pytest.fixture
def shop(workshop):
    return Shop(workshop)


# What is handed over, and when.


def test_row_is_on_record_as_sending_before_the_publisher_has_it(shop):
    shop.rules(TEXT)
    shop.publish("one", "two")
    assert shop.publisher.found == ["sending", "sending"]
    assert shop.words() == ["one", "two"]


def test_row_that_waited_is_on_record_as_sending_before_the_publisher_has_it(shop):
    shop.rules(TEXT)
    shop.publisher.window = 0
    shop.publish("one", "two")
    assert shop.states("outbox") == ["ready", "ready"]
    shop.publisher.window = 1000
    assert shop.turn()
    assert shop.publisher.found == ["sending", "sending"]


def test_message_keeps_its_id_exchange_and_routing_key(shop):
    shop.rules(TEXT)
    shop.publish("one")
    (message,) = shop.publisher.handed
    (text,) = shop.rows("messages")
    assert (message.exchange, message.routing_key, message.message_id) == ("vumi", "sms.outbound", text["message_id"])


@pytest.mark.parametrize("exchange", ["", "a/b", "100%", "%2F", "a%2Fb/"])
def test_exchange_of_any_name_is_published_to(shop, exchange):
    shop.rules(SCRIPTED)
    shop.script[:] = [Done(publishes=[Publish(exchange, "key/with/slashes%", {})])]
    shop.publish("one")
    (message,) = shop.publisher.handed
    assert (message.exchange, message.routing_key) == (exchange, "key/with/slashes%")


def test_batch_that_is_rolled_back_hands_nothing_over_and_loses_nothing(shop):
    shop.rules(TEXT)
    shop.workshop.store_new({"event_data": {"words": "one"}})
    shop.workshop.world.place.forbid_writes()
    with pytest.raises(StoreUnusable):
        shop.turn()
    assert shop.publisher.handed == []
    assert shop.relay.in_flight == 0
    shop.workshop.world.place.allow_writes()
    shop.work_off()
    shop.tell("confirmed")
    assert shop.words() == ["one"]
    assert shop.states("messages") == ["sent"]


def test_rows_claimed_by_a_batch_that_is_rolled_back_are_claimed_again(shop):
    shop.rules(TEXT)
    shop.publisher.window = 0
    shop.publish("one", "two")
    shop.publisher.window = 1000
    shop.workshop.refuse("runs", "1 = 1")
    # The batch takes the waiting rows along, is refused, and is tried in halves down to the culprit, which is parked.
    shop.publish("bad")
    assert shop.publisher.handed == []
    shop.work_off()
    assert shop.words() == ["one", "two"]
    shop.tell("confirmed")
    assert shop.outbox() == []


def test_batch_that_is_halved_hands_over_each_row_once(shop):
    shop.rules(TEXT)
    shop.workshop.refuse("messages", "NEW.content = 'bad'")
    shop.publish("one", "two", "bad", "three")
    shop.work_off()
    assert sorted(shop.words()) == ["one", "three", "two"]
    assert set(shop.publisher.found) == {"sending"}
    shop.tell("confirmed")
    assert shop.outbox() == []
    assert shop.relay.in_flight == 0


def test_fates_told_while_a_batch_is_refused_are_recorded_by_the_next(shop):
    shop.rules(TEXT)
    shop.publish("one")
    shop.publisher.tell("confirmed")
    shop.workshop.refuse("messages", "NEW.content = 'bad'")
    shop.publish("bad", "two")
    shop.work_off()
    assert shop.relay.in_flight == 1
    shop.tell("confirmed")
    assert shop.outbox() == []
    assert shop.states("messages") == ["sent", "sent"]


def test_rows_that_a_refused_batch_gave_back_go_before_those_of_its_halves(shop):
    shop.rules(TEXT)
    shop.publisher.window = 0
    shop.publish("one", "two")
    shop.publisher.window = 1000
    shop.workshop.refuse("messages", "NEW.content = 'bad'")
    shop.publish("three", "bad", "four")
    shop.work_off()
    assert shop.words() == ["one", "two", "three", "four"]


def test_new_rows_do_not_overtake_those_that_were_not_sent(shop):
    shop.rules(TEXT)
    shop.publish("one", "two")
    shop.publisher.tell("unsent")
    # A worker that stops takes nothing that is due; what comes back meanwhile may still lead to texts.
    shop.turn(intake=False, due=False)
    shop.workshop.store_new({"event_data": {"words": "three"}})
    shop.turn(intake=True, due=False)
    shop.work_off()
    assert shop.words() == ["one", "two", "one", "two", "three"]


def test_new_rows_never_overtake_those_that_are_due(shop):
    shop.rules(TEXT)
    shop.publisher.window = 2
    shop.publish("one", "two", "three", "four")
    assert shop.words() == ["one", "two"]
    shop.publish("five")
    while shop.publisher.open:
        shop.publish("six")
        shop.tell("confirmed")
    assert shop.words()[:5] == ["one", "two", "three", "four", "five"]
    assert set(shop.words()[5:]) == {"six"}


def test_every_row_ends_confirmed_once_whatever_the_broker_does_first(shop):
    shop.rules(TEXT, "resend")
    words = [str(number) for number in range(40)]
    shop.publisher.window = 7
    shop.publish(*words)
    confirmed = []
    fates = ["unsent", "refused", "confirmed", "unroutable", "unknown", "confirmed", "confirmed"]
    for turn in range(400):
        if not shop.publisher.open and not shop.outbox():
            break
        for seq, message in list(shop.publisher.open.items()):
            fate = fates[(seq + turn) % len(fates)]
            if fate == "confirmed":
                confirmed.append(json.loads(message.body)["content"])
            shop.publisher.tell(fate, seq, reason="so it goes")
        shop.after(seconds=61)
        shop.turn()
    assert sorted(confirmed) == sorted(words)
    assert shop.outbox() == []
    assert set(shop.states("messages")) == {"sent"}


# What became of it.


def test_confirmed_row_is_gone_and_its_text_is_sent(shop):
    shop.rules(TEXT)
    shop.publish("one")
    assert shop.states("messages") == ["queued"]
    shop.tell("confirmed")
    assert shop.outbox() == []
    assert shop.states("messages") == ["sent"]
    assert shop.relay.in_flight == 0


def test_confirm_does_not_move_back_a_text_that_was_reported_on_sooner(shop):
    shop.rules(TEXT)
    shop.publish("one")
    shop.sql("UPDATE messages SET state = 'delivered'")
    shop.tell("confirmed")
    assert shop.outbox() == []
    assert shop.states("messages") == ["delivered"]


@pytest.mark.parametrize("fate", ["refused", "unroutable"])
def test_row_that_is_not_taken_is_tried_again_later_and_later(shop, fate):
    shop.rules(TEXT)
    shop.publish("one")
    pauses = []
    for attempt in range(1, 13):
        shop.tell(fate, reason="312 NO_ROUTE")
        (row,) = shop.outbox()
        assert (row["state"], row["attempt"], row["error"]) == ("ready", attempt, f"{fate}: 312 NO_ROUTE")
        pauses.append((as_time(row["not_before"]) - shop.clock.now()).total_seconds())
        assert len(shop.publisher.handed) == attempt  # not before its time
        shop.clock.advance(as_time(row["not_before"]) - shop.clock.now())
        shop.turn()
        assert len(shop.publisher.handed) == attempt + 1
    longest = [min(60.0, 2.0**number) for number in range(12)]
    assert all(most / 2 <= pause <= most for pause, most in zip(pauses, longest, strict=True))
    assert len(set(pauses)) == len(pauses)
    assert shop.states("messages") == ["queued"]


def test_row_that_was_never_sent_goes_again_with_no_attempt_charged(shop):
    shop.rules(TEXT)
    shop.publish("one")
    shop.publisher.window = 0
    shop.tell("unsent", reason="no connection")
    ((state, attempt),) = shop.outbox("state", "attempt")
    assert (state, attempt) == ("ready", 0)
    shop.publisher.window = 1000
    shop.turn()
    assert shop.words() == ["one", "one"]


def test_row_of_unknown_fate_is_sent_again_at_once_where_the_step_says_so(shop):
    shop.rules(TEXT, "resend")
    shop.publish("one")
    shop.tell("unknown", reason="connection lost")
    ((first, second),) = [shop.publisher.handed]
    assert first.message_id == second.message_id
    shop.tell("confirmed")
    assert shop.outbox() == []
    assert shop.states("messages") == ["sent"]
    assert shop.rows("dead_letters") == []


def test_row_whose_fate_is_unknown_time_and_again_is_sent_ever_less_often(shop):
    shop.rules(TEXT, "resend")
    shop.publish("one")
    for attempt in range(1, 20):
        shop.tell("unknown", reason="406 PRECONDITION_FAILED")
        ((at,),) = shop.outbox("not_before")
        pause = as_time(at) - shop.clock.now()
        assert attempt == 1 or pause > timedelta(0)
        shop.clock.advance(pause)
        shop.turn()
    assert pause >= timedelta(seconds=30)


def test_row_of_unknown_fate_is_dropped_where_the_step_says_fail(shop):
    shop.rules(TEXT, "fail")
    shop.publish("one")
    shop.tell("unknown", reason="connection lost")
    assert shop.outbox() == []
    assert shop.rows("messages", "state", "error") == [("failed", "connection lost")]
    (letter,) = shop.rows("dead_letters")
    assert (letter["reason"], letter["run_id"]) == ("unknown", shop.run_id())
    assert "on_unknown: fail" in letter["detail"]
    assert shop.states("runs") == ["done"]


@pytest.mark.parametrize("policy", ["hold", "fail"])
def test_what_its_receiver_knows_again_is_always_sent_again(shop, policy):
    shop.rules(SCRIPTED, policy)
    shop.script[:] = [told(keyed=True)]
    shop.publish("one")
    shop.tell("unknown", reason="connection lost")
    assert len(shop.publisher.handed) == 2
    assert shop.rows("dead_letters") == []


def test_emitted_event_of_unknown_fate_is_always_sent_again(shop):
    shop.rules(EMIT)
    shop.publish("one")
    shop.tell("unknown", reason="connection lost")
    first, second = shop.publisher.handed
    assert first.message_id == second.message_id == json.loads(first.body)["event_id"]
    assert shop.states("runs") == ["done"]


@pytest.mark.parametrize("policy", ["hold", "resend", "fail"])
def test_text_that_was_reported_on_is_not_sent_again_though_its_fate_is_unknown(shop, policy):
    shop.rules(TEXT, policy)
    shop.publish("one")
    shop.sql("UPDATE messages SET state = 'acked'")
    shop.tell("unknown", reason="connection lost")
    shop.work_off()
    assert shop.words() == ["one"]
    assert shop.outbox() == []
    assert shop.states("messages") == ["acked"]
    assert shop.rows("dead_letters") == []


def test_text_that_is_reported_on_while_it_waits_to_be_sent_again_is_not(shop):
    shop.rules(TEXT, "resend")
    shop.publish("one", "two")
    shop.publisher.window = 0
    shop.tell("unknown", reason="connection lost")
    shop.sql("UPDATE messages SET state = 'acked' WHERE content = 'one'")
    shop.publisher.window = 1000
    shop.work_off()
    assert shop.words() == ["one", "two", "two"]
    shop.tell("confirmed")
    assert shop.outbox() == []
    assert sorted(shop.rows("messages", "content", "state")) == [("one", "acked"), ("two", "sent")]


def test_row_erased_while_it_was_in_flight_holds_nothing(shop):
    shop.rules(SCRIPTED)
    shop.script[:] = [told()]
    shop.publish("one")
    shop.sql("DELETE FROM outbox")
    shop.tell("unknown", reason="connection lost")
    assert shop.states("runs") == ["done"]
    assert shop.rows("dead_letters") == []


# Holds.


def held(shop, text=TEXT):
    shop.rules(text)
    shop.publish("one")
    shop.tell("unknown", reason="connection lost")
    return shop


def test_row_of_unknown_fate_is_held_with_its_text_and_its_run_until_a_person_says(shop):
    held(shop)
    assert shop.outbox("state", "error") == [("held", "connection lost")]
    assert shop.rows("messages", "state", "error") == [("held", "connection lost")]
    assert shop.rows("runs", "state", "error") == [("held", "text: unknown: connection lost")]
    (letter,) = shop.rows("dead_letters")
    assert (letter["kind"], letter["reason"], letter["state"]) == ("run", "unknown", "open")
    assert f"dispatcher runs resolve {shop.run_id()} --sent" in letter["detail"]
    assert "--not-sent" in letter["detail"]
    shop.after(days=2).work_off()
    assert shop.words() == ["one"]


def test_hold_is_ended_by_saying_that_it_was_sent(shop):
    held(shop)
    told_back = shop.by("runs.resolve", run=shop.run_id(), sent=True)
    assert "step text was published" in told_back["message"]
    shop.work_off()
    assert shop.outbox() == []
    assert shop.words() == ["one"]
    assert shop.rows("messages", "state", "error") == [("sent", None)]
    assert shop.rows("runs", "state", "error") == [("done", None)]
    assert shop.states("dead_letters") == ["replayed"]


def test_hold_is_ended_by_saying_that_it_was_not_sent_and_the_running_worker_sends_it(shop):
    held(shop)
    assert not shop.turn()
    told_back = shop.by("runs.resolve", run=shop.run_id(), sent=False)
    assert "published again" in told_back["message"]
    shop.work_off()
    assert shop.words() == ["one", "one"]
    assert shop.rows("runs", "state", "error") == [("done", None)]
    assert shop.states("dead_letters") == ["replayed"]
    assert shop.states("messages") == ["queued"]
    shop.tell("confirmed")
    assert shop.outbox() == []
    assert shop.states("messages") == ["sent"]


def test_text_is_held_again_when_its_fate_is_unknown_again(shop):
    held(shop)
    shop.by("runs.resolve", run=shop.run_id(), sent=False)
    shop.work_off()
    shop.tell("unknown", reason="and again")
    assert shop.rows("runs", "state", "error") == [("held", "text: unknown: and again")]
    assert [letter["state"] for letter in shop.rows("dead_letters")] == ["replayed", "open"]


@pytest.mark.parametrize(("verb", "named"), [("runs.retry", "run"), ("events.replay", "event")])
@pytest.mark.parametrize("again", [False, True])
def test_nothing_is_tried_again_while_it_is_held(shop, verb, named, again):
    held(shop)
    target = shop.run_id() if named == "run" else shop.rows("events", "event_id")[0][0]
    if named == "run" and again:
        target_options = {"state": "held", "all": True}
        left = shop.by(verb, chain=None, account=None, **target_options)["left"]
        assert left == [[shop.run_id(), "unknown"]]
    else:
        options = {"again": again} if named == "event" else {}
        with pytest.raises(NotPossible, match=r"nobody knows whether its step text|still being worked on"):
            shop.by(verb, **{named: target}, **options)
    shop.work_off()
    assert shop.words() == ["one"]
    assert shop.states("outbox") == ["held"]


def test_run_that_waits_is_left_when_a_text_of_it_is_held(shop):
    held(shop, TEXT + "      - wait: 1d\n      - {id: after, handler: scripted}\n")
    assert shop.states("runs") == ["waiting"]
    shop.by("runs.resolve", run=shop.run_id(), sent=True)
    assert shop.states("runs") == ["waiting"]
    shop.after(days=1).work_off()
    assert shop.states("runs") == ["done"]
    assert shop.outbox() == []


def test_run_that_comes_to_its_end_while_its_text_is_held_is_held_until_that_is_resolved(shop):
    held(shop, TEXT + "      - wait: 1d\n      - {id: after, handler: scripted}\n")
    shop.after(days=1).work_off()
    assert shop.states("runs") == ["held"]
    shop.by("runs.resolve", run=shop.run_id(), sent=False)
    shop.work_off()
    assert shop.states("runs") == ["done"]
    assert shop.words() == ["one", "one"]
    assert shop.states("dead_letters") == ["replayed"]


TWO_TEXTS = TEXT + '      - {id: more, handler: send_sms, with: {to: "+27821234568", text: two}, on_unknown: hold}\n'


@pytest.mark.parametrize("sent", [True, False])
def test_several_held_rows_of_one_run_are_resolved_together(shop, sent):
    held(shop, TWO_TEXTS)
    assert shop.states("outbox") == ["held", "held"]
    assert len(shop.rows("dead_letters")) == 2
    shop.by("runs.resolve", run=shop.run_id(), sent=sent)
    shop.work_off()
    assert shop.words() == ["one", "two"] if sent else ["one", "two", "one", "two"]
    assert set(shop.states("dead_letters")) == {"replayed"}
    assert shop.states("runs") == ["done"]


# Recovery.


@pytest.mark.parametrize(("policy", "expected"), [("hold", ["held"]), ("fail", []), ("resend", ["ready"])])
def test_rows_left_in_flight_by_a_crash_are_of_unknown_fate_once(shop, policy, expected):
    shop.rules(TEXT, policy)
    shop.publish("one")
    shop.restart()
    assert shop.states("outbox") == expected
    letters = len(shop.rows("dead_letters"))
    shop.restart()
    assert shop.states("outbox") == expected
    assert len(shop.rows("dead_letters")) == letters
    shop.work_off()
    assert shop.words() == (["one"] if policy == "resend" else [])
    if policy == "hold":
        assert shop.rows("messages", "error") == [(STOPPED,)]


def test_rows_that_were_ready_before_a_crash_go_afterwards_in_their_order(shop):
    shop.rules(TEXT)
    shop.publisher.window = 0
    shop.publish("one", "two")
    shop.restart()
    shop.publish("three")
    shop.work_off()
    assert shop.words() == ["one", "two", "three"]


def test_confirm_that_was_not_on_record_before_a_crash_is_forgotten_with_it(shop):
    shop.rules(EMIT)
    shop.publish("one")
    shop.publisher.tell("confirmed")
    shop.restart()
    shop.work_off()
    assert len(shop.publisher.handed) == 1
    shop.tell("confirmed")
    assert shop.outbox() == []


# Rates and lanes.


def test_sender_hands_over_no_more_than_its_rate_allows_and_keeps_the_order(shop):
    shop.rules(TEXT, senders="senders: {default: {type: vumi, transport_name: sms, rate: 30/s}}\n")
    words = [str(number) for number in range(100)]
    shop.after(hours=1).publish(*words)
    assert len(shop.publisher.handed) == 3  # a tenth of a second's worth at once
    handed = [len(shop.publisher.handed)]
    for _ in range(60):
        shop.after(milliseconds=50)
        shop.turn()
        handed.append(len(shop.publisher.handed))
        if shop.publisher.open:
            shop.tell("confirmed")
            assert len(shop.publisher.handed) == handed[-1]
    for first in range(len(handed) - 20):
        assert handed[first + 20] - handed[first] <= 33  # in any second
    assert handed[-1] >= 90
    assert shop.words() == words[: handed[-1]]


def test_next_row_is_due_when_the_rate_allows_it(shop):
    shop.rules(TEXT, senders="senders: {default: {type: vumi, transport_name: sms, rate: 2/s}}\n")
    shop.publish("one", "two")
    assert shop.words() == ["one"]
    assert shop.relay.next_due(shop.store) == pytest.approx(0.5)
    shop.after(seconds=0.5).turn()
    assert shop.words() == ["one", "two"]
    assert shop.relay.next_due(shop.store) is None


def test_lane_whose_sender_left_the_rulebook_empties(shop):
    shop.rules(TEXT)
    shop.publisher.window = 0
    shop.publish("one")
    shop.workshop._options = {"senders": "senders: {default: {type: outbox}}\n"}
    shop.restart()
    shop.work_off()
    assert shop.words() == ["one"]
    shop.tell("confirmed")
    assert shop.outbox() == []
    assert shop.states("messages") == ["sent"]


def test_reload_gives_a_sender_no_burst_that_its_rate_does_not_allow(shop):
    shop.rules(TEXT, senders="senders: {default: {type: vumi, transport_name: sms, rate: 30/s}}\n")
    shop.after(hours=1).publish(*"abcdefghij")
    for _ in range(5):
        shop.relay.configure(shop.workshop.engine.connections.by_lane)
        shop.turn()
    assert len(shop.publisher.handed) == 3


def test_no_more_are_unconfirmed_than_a_sender_allows(shop):
    shop.rules(TEXT, senders="senders: {default: {type: vumi, transport_name: sms, concurrency: 2}}\n")
    shop.publish("one", "two", "three")
    assert shop.words() == ["one", "two"]
    assert shop.relay.next_due(shop.store) is None  # only the publisher can tell
    shop.tell("confirmed", shop.publisher.handed[0].seq)
    assert len(shop.publisher.open) <= 2
    shop.tell("confirmed")
    shop.work_off()
    assert shop.words() == ["one", "two", "three"]


def test_lane_with_much_to_send_does_not_keep_the_others_waiting(shop):
    shop.rules(TEXT.replace("steps:", "steps:\n      - {handler: scripted}"))
    shop.script[:] = [Done(publishes=[Publish("vumi", "there", {"words": str(n)}) for n in range(2000)])]
    shop.publisher.window = 0
    shop.publish("text")
    shop.publisher.window = 50
    for _ in range(3):
        shop.tell("confirmed") if shop.publisher.open else shop.turn()
    assert "text" in shop.words()


# The publisher is down.


def test_rows_wait_while_the_publisher_is_down_and_nothing_spins(shop):
    shop.rules(TEXT)
    shop.publisher.window = 0
    shop.publish("one", "two")
    assert shop.states("outbox") == ["ready", "ready"]
    assert shop.relay.waits
    assert not shop.turn()
    assert shop.relay.next_due(shop.store) is None
    shop.publisher.window = 1000
    assert shop.relay.next_due(shop.store) == 0.0
    shop.work_off()
    assert shop.words() == ["one", "two"]
    assert shop.relay.next_due(shop.store) is None
    assert not shop.relay.waits


def test_store_that_cannot_be_read_does_not_end_the_worker_while_it_looks_when_to_wake(shop):
    shop.rules(TEXT)
    shop.publisher.window = 0
    shop.publish("one")
    shop.publisher.window = 1000
    shop.sql("ALTER TABLE outbox RENAME TO mislaid")
    assert shop.relay.next_due(shop.store) > 0


def test_row_that_is_put_off_wakes_the_worker_at_its_time(shop):
    shop.rules(TEXT)
    shop.publish("one")
    shop.tell("refused", reason="no")
    ((at,),) = shop.outbox("not_before")
    pause = (as_time(at) - shop.clock.now()).total_seconds()
    assert shop.relay.next_due(shop.store) == pytest.approx(pause)
    assert not shop.turn()


def test_fates_are_recorded_while_the_worker_stops_and_nothing_new_is_claimed(shop):
    shop.rules(TEXT)
    shop.publisher.window = 1
    shop.publish("one", "two")
    shop.publisher.tell("confirmed")
    assert shop.turn(intake=False, due=False)
    assert shop.states("outbox") == ["ready"]
    assert shop.words() == ["one"]
    assert not shop.turn(intake=False, due=False)


def test_complaints_about_destinations_are_bounded(shop):
    shop.rules(SCRIPTED)
    for number in range(50):
        shop.script[:] = [
            Done(publishes=[Publish("vumi", f"{number}.{each}", {}) for each in range(100)]),
        ]
        shop.publish("one")
        shop.tell("unroutable", reason="312 NO_ROUTE")
        shop.after(minutes=2)
        shop.sql("DELETE FROM outbox")
    assert len(shop.relay._said) <= 1000


def test_deliveries_are_acked_after_the_commit_that_they_led_to(shop):
    from dispatcher.engine.intake import Delivery

    shop.rules(TEXT)
    shop.workshop.batches.consumer = consumer = FakeConsumer()
    body = shop.workshop.body({"event_data": {"words": "one"}})
    consumer.buffer.append(Delivery(body, "amqp", None, False, "event", "vumi.event", "e1", 1))
    assert shop.turn()
    assert [(each.epoch, each.tag) for each in consumer.acked] == [("e1", 1)]
    assert shop.words() == ["one"]
