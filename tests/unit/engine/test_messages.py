"""`messages` tells the truth: what became of each text, however its step ended."""

from __future__ import annotations

from typing import ClassVar

import pytest

from dispatcher import Done, Effect, Failed, RetryLater, Sender, Unknown
from dispatcher.plugins.registry import Installed

TEXT = """
  line: {type: line}
chains:
  - name: c
    on: {event_type: done}
    steps:
      - {id: sms, handler: send_sms, with: {to: "0821234567", text: hi, sender: line}, retry: {attempts: 1} MORE}
"""


class Within(Sender):
    """Works within the store, as the test says."""

    effect: ClassVar[Effect] = Effect.TRANSACTION
    act: ClassVar = None

    def queue(self, text, context):
        if isinstance(self.act, Exception):
            raise self.act
        return self.act


class Gateway(Sender):
    """A gateway that knows no keys; what its calls bring back is up to the test."""


@pytest.fixture
def rules(world):
    def load(kind, more=""):
        world.registry.senders.add(Installed("line", "tests", "1", kind))
        text = TEXT.replace("MORE", more)
        return world.rules(text, senders="senders:\n  default: {type: outbox}\n")

    return load


@pytest.mark.parametrize(
    ("act", "error"),
    [
        (RuntimeError("the queue is gone"), "RuntimeError: the queue is gone"),
        (RetryLater(reason="busy"), "no attempts left after 1: busy"),
        (Failed("no such number"), "no such number"),
    ],
    ids=lambda act: type(act).__name__,
)
def test_text_that_could_not_be_queued_is_failed_and_not_queued_for_ever(world, rules, monkeypatch, act, error):
    monkeypatch.setattr(Within, "act", act)
    rules(Within).publish(event_id="e1")
    assert world.rows("runs", "state") == [("failed",)]
    assert world.rows("messages", "state", "error") == [("failed", error)]


def test_text_that_was_queued_is_queued(world, rules, monkeypatch):
    monkeypatch.setattr(Within, "act", Done())
    rules(Within).publish(event_id="e1")
    assert world.rows("messages", "state", "error") == [("queued", None)]


def test_resent_text_whose_last_attempt_is_unknown_is_not_told_as_surely_failed(world, rules):
    rules(Gateway, ", on_unknown: resend").publish(event_id="e1")
    world.bring_back(Unknown("no reply"))
    assert world.rows("runs", "state") == [("failed",)]
    assert world.rows("steps", "state") == [("unknown",)]
    assert world.rows("messages", "state") == [("held",)]
    assert world.rows("dead_letters", "reason") == [("exhausted",)]


def test_text_that_was_sent_is_told_though_a_reload_took_its_sender_away_meanwhile(world, rules):
    rules(Gateway, "}\n      - {id: after, handler: scripted").publish(event_id="e1")
    world.rules("chains: []\n")
    world.bring_back(Done({"gateway_id": "g1"}))
    assert world.rows("messages", "state", "gateway_id") == [("sent", "g1")]
    assert world.rows("steps", "step", "state") == [("sms", "done")]
    world.turn()
    assert world.rows("runs", "state", "step") == [("held", "after")]
    assert world.rows("dead_letters", "reason") == [("cannot_bind",)]
