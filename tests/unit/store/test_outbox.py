"""The outbox within a transaction: which rows are due, in which order, and what becomes of each, its text, its run."""

from __future__ import annotations

import pytest

from dispatcher import Done, Publish
from dispatcher.engine.records import Changes, as_text

RULES = """
chains:
  - name: c
    on: {event_type: done}
    steps:
      - {id: text, handler: send_sms, with: {to: "+27821234567", text: "{{ data.words }}", sender: SENDER}}
      - {id: tell, handler: scripted}
"""
SENDERS = """
senders:
  a: {type: vumi, transport_name: a}
  b: {type: vumi, transport_name: b}
"""


@pytest.fixture
def outbox(world):
    """A store with texts in its outbox, and ways to look and act within transactions of their own."""
    return Box(world)


class Box:
    def __init__(self, world):
        self.world, self.store, self.rows, self.sql = world, world.store, world.rows, world.sql

    def publish(self, *words, sender="a", told=False):
        self.world.rules(RULES.replace("SENDER", sender), senders=SENDERS)
        self.world.script[:] = [Done(publishes=[Publish("vumi", "k", {})] if told else []) for _ in words]
        self.world.publish(*({"event_data": {"words": word}} for word in words))
        return self

    def act(self, act):
        with self.store.transaction() as transaction:
            result = act(transaction.outbox)
            transaction.commit()
        return result

    def report(self, *message_ids):
        """Flush what a batch does that a transport has reported something to, which moves no text."""
        changes = Changes()
        changes.message_states += [(None, None, None, message_id) for message_id in message_ids]
        with self.store.transaction() as transaction:
            transaction.flush(changes)
            transaction.commit()

    @property
    def now(self):
        return as_text(self.world.clock.now())

    def due(self, lane="sender:a", limit=100, now=None):
        return self.act(lambda outbox: outbox.due(lane, now or self.now, limit))

    def words(self, rows):
        texts = dict(self.rows("messages", "message_id", "content"))
        return [texts[row.message_id] for row in rows]

    def claimed(self):
        rows = self.due()
        self.act(lambda outbox: outbox.claim(rows))
        return rows

    def states(self, table="outbox"):
        return sorted(row["state"] for row in self.rows(table))


def test_rows_of_a_lane_are_due_in_the_order_of_publishing(outbox):
    outbox.publish("one", "two", "three").publish("else", sender="b")
    assert outbox.words(outbox.due()) == ["one", "two", "three"]
    assert outbox.words(outbox.due(limit=2)) == ["one", "two"]
    assert outbox.words(outbox.due("sender:b")) == ["else"]
    assert outbox.due("sender:c") == []


def test_lanes_are_those_that_have_rows_to_send(outbox):
    assert outbox.act(lambda outbox: outbox.lanes()) == []
    outbox.publish("one", told=True).publish("else", sender="b")
    assert outbox.act(lambda outbox: outbox.lanes()) == ["", "sender:a", "sender:b"]
    outbox.claimed()
    assert outbox.act(lambda outbox: outbox.lanes()) == ["", "sender:b"]


def test_row_that_is_put_off_is_due_at_its_time_and_next_until_then(outbox):
    outbox.publish("one")
    (row,) = outbox.due()
    outbox.act(lambda outbox: outbox.put_off(row, attempt=3, not_before="2026-01-02T00:00:00.000000Z", error="no"))
    assert outbox.due() == []
    assert outbox.act(lambda outbox: outbox.next_due("sender:a")) == "2026-01-02T00:00:00.000000Z"
    assert outbox.store.next_outbox_due("sender:a") == "2026-01-02T00:00:00.000000Z"
    (found,) = outbox.due(now="2026-01-02T00:00:00.000000Z")
    assert found.attempt == 3
    assert outbox.rows("outbox", "error") == [("no",)]


def test_claimed_row_is_neither_due_nor_next(outbox):
    outbox.publish("one")
    (row,) = outbox.claimed()
    assert outbox.due() == []
    assert outbox.act(lambda outbox: outbox.next_due("sender:a")) is None
    assert [found.seq for found in outbox.act(lambda outbox: outbox.sending())] == [row.seq]


def test_claim_that_is_rolled_back_is_none(outbox):
    outbox.publish("one")
    with outbox.store.transaction() as transaction:
        transaction.outbox.claim(transaction.outbox.due("sender:a", outbox.now, 10))
    assert outbox.states() == ["ready"]


def test_row_comes_out_of_the_store_as_it_went_in(outbox):
    outbox.publish("one", told=True)
    written = outbox.world.batch.overlay.changes.outbox
    read = outbox.due() + outbox.due("")
    assert sorted(read, key=lambda row: row.seq) == written


def test_confirmed_rows_are_gone_and_the_texts_among_them_are_sent(outbox):
    outbox.publish("one", "two", told=True)
    rows = outbox.due() + outbox.due("")
    outbox.act(lambda outbox: outbox.confirmed(rows))
    assert outbox.rows("outbox") == []
    assert outbox.states("messages") == ["sent", "sent"]


def test_only_texts_that_are_queued_are_held_or_failed_with_their_rows(outbox):
    outbox.publish("one", "two")
    first, second = outbox.claimed()
    outbox.sql("UPDATE messages SET state = 'acked'")
    now = outbox.world.clock.now()
    assert outbox.act(lambda outbox: outbox.hold(first, "lost", now))
    assert outbox.act(lambda outbox: outbox.give_up(second, "lost", now))
    assert outbox.states("messages") == ["acked", "acked"]
    assert outbox.states() == ["held"]


@pytest.mark.parametrize("what", ["hold", "give_up"])
def test_row_that_is_gone_can_be_neither_held_nor_given_up(outbox, what):
    outbox.publish("one")
    (row,) = outbox.claimed()
    outbox.sql("DELETE FROM outbox")
    now = outbox.world.clock.now()
    assert not outbox.act(lambda outbox: getattr(outbox, what)(row, "lost", now))
    assert outbox.states("runs") == ["done"]
    assert outbox.states("messages") == ["queued"]
    assert outbox.rows("dead_letters") == []


@pytest.mark.parametrize(
    ("state", "expected"), [("done", "held"), *((state, state) for state in ("waiting", "retrying", "failed", "ready"))]
)
def test_hold_holds_a_run_only_if_it_was_done(outbox, state, expected):
    outbox.publish("one")
    (row,) = outbox.claimed()
    outbox.sql("UPDATE runs SET state = ?", state)
    outbox.act(lambda found: found.hold(row, "lost", outbox.world.clock.now()))
    assert outbox.states("runs") == [expected]
    assert outbox.states() == ["held"]


def test_texts_that_were_reported_on_are_confirmed_and_no_others(outbox):
    outbox.publish("one", "two", "three", told=True)
    rows = outbox.due() + outbox.due("")
    outbox.sql("UPDATE messages SET state = 'delivered' WHERE content = 'two'")
    outbox.sql("DELETE FROM messages WHERE content = 'three'")
    (second,) = outbox.act(lambda outbox: outbox.confirm_reported(rows))
    assert outbox.words([row for row in rows if row.seq == second]) == ["two"]
    assert len(outbox.rows("outbox")) == 5
    assert outbox.states("messages") == ["delivered", "queued"]


def test_report_ends_the_hold_of_its_text_only(outbox):
    outbox.publish("one", "two")
    now = outbox.world.clock.now()
    first, second = outbox.claimed()
    outbox.act(lambda outbox: [outbox.hold(row, "lost", now) for row in (first, second)])
    outbox.report(first.message_id, "0" * 32)
    assert [(row["message_id"], row["state"]) for row in outbox.rows("outbox")] == [(second.message_id, "held")]
    assert dict(outbox.rows("runs", "run_id", "state")) == {first.run_id: "done", second.run_id: "held"}
    assert dict(outbox.rows("dead_letters", "run_id", "state")) == {first.run_id: "replayed", second.run_id: "open"}


def test_run_is_held_until_the_last_of_its_texts_is_reported_on(outbox):
    outbox.publish("one", told=True)
    now = outbox.world.clock.now()
    rows = outbox.due() + outbox.due("")
    outbox.act(lambda outbox: [outbox.hold(row, "lost", now) for row in rows])
    text, other = rows
    outbox.report(text.message_id)
    assert outbox.states("runs") == ["held"]
    letters = {row["detail"].partition(":")[0]: row["state"] for row in outbox.rows("dead_letters")}
    assert letters == {"step text": "replayed", "step tell": "open"}
    outbox.report(other.message_id)
    assert outbox.states("runs") == ["done"]
    assert outbox.states("dead_letters") == ["replayed", "replayed"]


def test_store_that_is_opened_again_gives_new_rows_new_numbers(outbox):
    outbox.publish("one", "two")
    highest = max(seq for (seq,) in outbox.rows("outbox", "seq"))
    outbox.world.reopen()
    outbox.publish("three")
    newest = max(seq for (seq,) in outbox.rows("outbox", "seq"))
    # Where many take numbers, each takes several at once, and leaves out those that it did not use.
    assert newest > highest if outbox.world.store.shared else newest == highest + 1
