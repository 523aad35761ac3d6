from __future__ import annotations

from typing import Any, ClassVar

import pytest

from dispatcher import Done, Effect, Failed, Publish, RetryLater, Sender, Unknown
from dispatcher.senders.outbox import OutboxSender
from dispatcher.testing import an_event, run_handler
from handlers.send_sms import SendSms

NUMBER = "+27821234567"


class ScriptedGateway(Sender):
    """Answers each text with the next outcome."""

    answers: ClassVar[list[Any]] = []
    sent: ClassVar[list[Any]] = []
    honours_keys: bool = False

    @property
    def keyed(self):
        return self.honours_keys

    def send(self, text):
        self.sent.append(text)
        return self.answers.pop(0)


class RelayedSender(Sender):
    """Publishes within the transaction."""

    effect = Effect.TRANSACTION

    def queue(self, text, context):
        return Done(publishes=[Publish("vumi", "sms.outbound", {"message_id": text.message_id})])


class FullSender(Sender):
    """Takes nothing."""

    effect = Effect.TRANSACTION

    def queue(self, text, context):
        return Failed("full")


@pytest.fixture
def gateway():
    ScriptedGateway.answers.clear()
    ScriptedGateway.sent.clear()
    return ScriptedGateway(from_addr="+27820000000")


def send(params=None, **settings):
    return run_handler(SendSms, {"to": NUMBER, "text": "Hello!"} | (params or {}), **settings)


def with_outbox(params=None, **settings):
    return send(params, senders={"default": OutboxSender(from_addr="+27829999999")}, **settings)


def test_the_outbox_queues_one_message_in_the_transaction():
    run = with_outbox()
    [message] = run.messages
    assert run.settled.effect is Effect.TRANSACTION
    assert run.settled.connection == "sender:default"
    assert (message.state, message.to_addr, message.from_addr) == ("queued", NUMBER, "+27829999999")
    assert (message.content, message.segments, message.encoding) == ("Hello!", 1, "GSM-7")
    assert run.result == {
        "message_id": message.message_id,
        "to": NUMBER,
        "segments": 1,
        "encoding": "GSM-7",
        "sender": "default",
        "state": "queued",
        "gateway_id": None,
    }
    assert set(run.result) == set(SendSms.Result.model_fields)


def test_an_opted_out_number_is_skipped_and_the_message_told_as_failed():
    run = with_outbox(opt_outs={NUMBER: "said STOP"})
    assert isinstance(run.outcome, Done)
    assert run.outcome.skipped == "opted out: said STOP"
    [message] = run.messages
    assert (message.state, message.error) == ("failed", "opted_out: said STOP")


def test_the_opt_out_counts_however_the_number_is_spelt():
    run = with_outbox({"to": "082 123 4567"}, opt_outs={"0821234567": "x"}, region="ZA")
    assert run.outcome.skipped


@pytest.mark.parametrize("text", ["", "   ", "\n\t"])
def test_a_text_that_comes_out_blank_fails(text):
    handler = SendSms(to=NUMBER, text=text)
    run = with_outbox({"text": "x"})
    outcome = handler.run(an_event(), run.context)
    assert outcome == Failed("the text is blank")
    assert run.messages[0].state == "failed"


def test_a_text_that_is_written_blank_is_refused_at_load():
    with pytest.raises(ValueError, match="blank"):
        with_outbox({"text": " "})


def test_a_text_of_too_many_parts_fails_unsent():
    run = with_outbox({"text": "x" * 161, "max_segments": 1})
    assert isinstance(run.outcome, Failed)
    assert "2 parts" in run.outcome.reason
    assert run.messages[0].state == "failed"


def test_what_a_sender_publishes_goes_out_with_the_step():
    run = send(senders={"default": RelayedSender()})
    assert [publish.routing_key for publish in run.publishes] == ["sms.outbound"]
    assert run.publishes[0].body["message_id"] == run.messages[0].message_id


def test_a_sender_that_cannot_queue_leaves_a_failed_message():
    run = send(senders={"default": FullSender()})
    assert run.outcome == Failed("full")
    assert (run.messages[0].state, run.messages[0].error) == ("failed", "full")


def test_a_call_sends_and_keeps_the_gateways_id(gateway):
    gateway.answers.append(Done({"gateway_id": "g-1"}))
    run = send({"sender": "bulk"}, senders={"bulk": gateway})
    assert run.settled.effect is Effect.CALL
    assert run.settled.connection == "sender:bulk"
    [text] = gateway.sent
    [message] = run.messages
    assert (text.to_addr, text.from_addr, text.message_id) == (NUMBER, "+27820000000", message.message_id)
    assert text.idempotency_key == run.context.idempotency_key
    assert (message.state, message.gateway_id) == ("sent", "g-1")
    assert run.result["state"] == "sent"
    assert run.result["gateway_id"] == "g-1"


def test_the_steps_own_from_addr_wins(gateway):
    gateway.answers.append(Done(None))
    run = send({"from_addr": "CLINIC"}, senders={"default": gateway})
    assert gateway.sent[0].from_addr == "CLINIC"
    assert run.messages[0].from_addr == "CLINIC"


@pytest.mark.parametrize(
    ("outcome", "state", "error"),
    [
        (RetryLater(reason="busy"), "queued", "busy"),
        (Failed("no such number"), "failed", "no such number"),
        (Unknown("reply lost"), "held", "reply lost"),
    ],
)
def test_the_message_tells_how_the_call_ended(gateway, outcome, state, error):
    gateway.answers.append(outcome)
    run = send(senders={"default": gateway})
    assert run.outcome == outcome
    assert (run.messages[0].state, run.messages[0].error) == (state, error)


def test_a_later_attempt_keeps_the_message_and_its_key(gateway):
    gateway.answers.extend([RetryLater(reason="busy"), Done({"gateway_id": "g-2"})])
    first = send(senders={"default": gateway})
    again = run_handler(SendSms, {"to": NUMBER, "text": "Hello!"}, context=first.context)
    assert len(again.messages) == 1
    assert (again.messages[0].state, again.messages[0].error) == ("sent", None)
    assert gateway.sent[0] == gateway.sent[1]


def test_what_was_sent_is_not_sent_again(gateway):
    gateway.answers.append(Done({"gateway_id": "g-1"}))
    first = send(senders={"default": gateway})
    again = run_handler(SendSms, {"to": NUMBER, "text": "Hello!"}, context=first.context)
    assert len(gateway.sent) == 1
    assert again.result["gateway_id"] == "g-1"


def test_somebody_who_opts_out_between_attempts_is_not_texted(gateway):
    gateway.answers.append(RetryLater(reason="busy"))
    first = send(senders={"default": gateway})
    first.context.opt_outs.add(NUMBER, "said STOP")
    again = run_handler(SendSms, {"to": NUMBER, "text": "Hello!"}, context=first.context)
    assert again.outcome.skipped
    assert len(gateway.sent) == 1


def test_a_held_message_that_was_sent_after_all_is_concluded(gateway):
    gateway.answers.append(Unknown("reply lost"))
    run = send(senders={"default": gateway})
    handler = SendSms(to=NUMBER, text="Hello!")
    concluded = handler.conclude(None, run.context, Done())
    assert isinstance(concluded, Done)
    assert run.messages[0].state == "sent"


def test_keys_are_those_of_the_sender():
    assert send(senders={"default": OutboxSender()}).settled.keyed is False
    ScriptedGateway.answers.append(Done(None))
    assert send(senders={"default": ScriptedGateway(honours_keys=True)}).settled.keyed is True
