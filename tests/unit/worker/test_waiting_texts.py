"""Texts that wait in the outbox: taken back when the person opts out or somebody says so, resolved by the hundred."""

from __future__ import annotations

import pytest

from dispatcher.errors import NotPossible
from tests.unit.worker.test_relay import TEXT, Shop

OPT_OUT = """
  - name: out
    on: {event_type: stop}
    steps: [{handler: opt_out, with: {msisdn: "+27821234567", reason: stop}}]
"""


@pytest.fixture
def shop(workshop):
    return Shop(workshop)


@pytest.fixture
def waiting(shop):
    """A text that waits, as the publisher has no room."""
    shop.rules(TEXT + OPT_OUT)
    shop.publisher.window = 0
    shop.publish("hello")
    assert shop.states("outbox") == ["ready"]
    return shop


def let_go(shop):
    shop.publisher.window = 1000
    shop.work_off()


def the_message(shop):
    (message,) = shop.rows("messages")
    return message["state"], message["error"]


def test_text_that_waits_is_not_sent_to_a_person_who_opted_out_meanwhile(waiting):
    waiting.publish("stop", event_type="stop")
    let_go(waiting)
    assert waiting.words() == []
    assert waiting.states("outbox") == []
    assert the_message(waiting) == ("failed", "opted_out: stop")


def test_text_to_somebody_else_is_sent_all_the_same(waiting):
    waiting.sql("UPDATE messages SET to_addr = '+27829999999'")
    waiting.publish("stop", event_type="stop")
    let_go(waiting)
    assert waiting.words() == ["hello"]


def test_text_that_waits_is_withdrawn_with_its_run_which_stays_done(waiting):
    told = waiting.by("runs.cancel", run=waiting.run_id())
    assert told["message"].endswith("1 message withdrawn that waited")
    let_go(waiting)
    assert waiting.words() == []
    assert the_message(waiting) == ("failed", "cancelled by ann")
    assert waiting.states("runs") == ["done"]
    with pytest.raises(NotPossible, match="nothing of it waits"):
        waiting.by("runs.cancel", run=waiting.run_id())


def test_replay_of_an_event_withdraws_the_text_that_has_not_gone_out(waiting):
    (event,) = waiting.rows("events")
    waiting.by("events.replay", event=event["event_id"], again=True)
    let_go(waiting)
    assert waiting.words() == ["hello"]
    assert sorted(waiting.states("messages")) == ["failed", "queued"]


def test_held_runs_are_resolved_by_the_hundred_and_others_left(shop):
    shop.rules(TEXT.replace("POLICY", "hold"))
    shop.publish("one", "two", "three")
    shop.tell("unknown")
    (_, _, other) = [row["run_id"] for row in shop.rows("runs")]
    shop.sql("DELETE FROM outbox WHERE run_id = ?", other)
    shop.sql("UPDATE runs SET error = 'cannot_bind: gone' WHERE run_id = ?", other)
    told = shop.by("runs.resolve", sent=True)
    assert (told["changed"], told["left"], told["next"]) == (2, [[other, "cannot_bind"]], None)
    assert sorted(shop.states("runs")) == ["done", "done", "held"]
    assert shop.states("outbox") == []
    assert sorted(shop.states("messages")) == ["held", "sent", "sent"]


def test_held_runs_that_were_not_sent_go_again(shop):
    shop.rules(TEXT.replace("POLICY", "hold"))
    shop.publish("one", "two")
    shop.tell("unknown")
    assert shop.by("runs.resolve", sent=False, chain="c")["changed"] == 2
    shop.work_off()
    assert shop.words() == ["one", "two", "one", "two"]


def test_only_the_runs_of_the_chain_that_is_named_are_resolved(shop):
    shop.rules(TEXT.replace("POLICY", "hold"))
    shop.publish("one")
    shop.tell("unknown")
    assert shop.by("runs.resolve", sent=True, chain="another")["changed"] == 0
    assert shop.states("runs") == ["held"]
