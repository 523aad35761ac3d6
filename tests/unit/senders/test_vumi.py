"""What Vumi's workers read: the rules of vumi2's parser and of vumi's own, as far as they touch what we write."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta, timezone

import pytest
from pydantic import ValidationError

from dispatcher.plugins.effects import Effect
from dispatcher.senders.vumi import VumiSender, vumi_date
from dispatcher.testing import START, an_event, run_handler
from handlers.send_sms import SendSms

DATE = "%Y-%m-%d %H:%M:%S.%f"
TRANSPORT_TYPES = {"http_api", "irc", "telnet", "twitter", "sms", "ussd", "xmpp", "mxit", "wechat"}
ADDRESS_TYPES = {"irc_nickname", "twitter_handle", "msisdn", "gtalk_id", "jabber_id", "mxit_id", "wechat_id", None}
SESSION_EVENTS = {None, "new", "resume", "close"}
# What vumi2 takes as text makes "None" of a null; what it takes as text or null does not.
TEXTS = ("message_version", "message_type", "message_id", "to_addr", "from_addr", "transport_name", "content")
TEXTS_OR_NULL = ("in_reply_to", "provider", "group")
OBJECTS = ("routing_metadata", "helper_metadata", "transport_metadata")


def sent(settings=None, event=None, **params):
    sender = VumiSender(**{"transport_name": "sms_transport", "from_addr": "+27821230000", **(settings or {})})
    run = run_handler(
        SendSms, {"to": "+27821234567", "text": "Hi", "sender": "bulk", **params}, event, senders={"bulk": sender}
    )
    [publish] = run.publishes
    return run, publish


def body_of(*args, **params):
    """Return the body as it comes out of the wire."""
    return json.loads(json.dumps(sent(*args, **params)[1].body))


def assert_vumi2_reads_it(body):
    for name in TEXTS:
        assert type(body[name]) is str, name
    for name in TEXTS_OR_NULL:
        assert body[name] is None or type(body[name]) is str, name
    for name in OBJECTS:
        assert type(body[name]) is dict, name
    assert body["transport_type"] in TRANSPORT_TYPES
    assert body["to_addr_type"] in ADDRESS_TYPES
    assert body["from_addr_type"] in ADDRESS_TYPES
    assert body["session_event"] in SESSION_EVENTS
    assert datetime.strptime(body["timestamp"], DATE)  # noqa: DTZ007  # naive, as Vumi writes it


def test_a_text_goes_to_the_queue_of_its_transport_under_the_id_of_its_message():
    run, publish = sent()

    assert (publish.exchange, publish.routing_key) == ("vumi", "sms_transport.outbound")
    assert publish.message_id == publish.body["message_id"] == run.messages[0].message_id
    assert re.fullmatch("[0-9a-f]{32}", publish.message_id)
    assert not publish.keyed
    assert run.settled.effect is Effect.TRANSACTION
    assert [message.state for message in run.messages] == ["queued"]


def test_every_key_of_the_message_is_as_vumi_writes_it():
    _, publish = sent(event=an_event(account_key="acc1", conversation_type="survey", conversation_key="c1"))

    assert publish.body == {
        "message_version": "20110921",
        "message_type": "user_message",
        "timestamp": "2026-01-01 12:00:00.000000",
        "message_id": publish.message_id,
        "to_addr": "+27821234567",
        "from_addr": "+27821230000",
        "content": "Hi",
        "transport_name": "sms_transport",
        "transport_type": "sms",
        "to_addr_type": "msisdn",
        "from_addr_type": None,
        "in_reply_to": None,
        "session_event": None,
        "group": None,
        "provider": None,
        "transport_metadata": {},
        "helper_metadata": {"go": {"user_account": "acc1", "conversation_type": "survey", "conversation_key": "c1"}},
        "routing_metadata": {"endpoint_name": "default"},
    }


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"from_addr": None},
        {"transport_type": "ussd", "from_addr_type": "msisdn", "provider": "mtn", "endpoint": "bulk"},
        {"helper_metadata": {"tag": {"tag": ["pool", "tag"]}}},
    ],
)
def test_vumi2_reads_what_is_sent(settings):
    assert_vumi2_reads_it(body_of(settings))


def test_a_text_from_nobody_has_an_empty_address_and_no_null():
    assert body_of({"from_addr": None})["from_addr"] == ""


def test_the_step_may_say_whom_a_text_is_from():
    assert body_of(from_addr="31121")["from_addr"] == "31121"


def test_what_the_rulebook_gives_goes_before_what_the_event_tells():
    given = {"go": {"conversation_key": "mine", "is_paid": True}, "tag": {"tag": ["pool", "tag"]}}

    body = body_of({"helper_metadata": given}, an_event(account_key="acc1", conversation_type="survey"))

    assert body["helper_metadata"] == {
        "go": {"user_account": "acc1", "conversation_type": "survey", "conversation_key": "mine", "is_paid": True},
        "tag": {"tag": ["pool", "tag"]},
    }
    assert given["go"] == {"conversation_key": "mine", "is_paid": True}


def test_a_type_that_nobody_knows_is_left_out():
    go = body_of(event=an_event(conversation_type=None))["helper_metadata"]["go"]

    assert go.keys() == {"user_account", "conversation_key"}


def test_another_attempt_sends_the_same_message():
    run, publish = sent()
    again = run_handler(SendSms, {"to": "+27821234567", "text": "Hi", "sender": "bulk"}, context=run.context)

    assert again.publishes == (publish,)


@pytest.mark.parametrize(
    ("moment", "written"),
    [
        (START, "2026-01-01 12:00:00.000000"),
        (datetime(2026, 11, 21, 3, 41, 54, 767900, UTC), "2026-11-21 03:41:54.767900"),
        (datetime(2026, 1, 1, 1, 0, tzinfo=timezone(timedelta(hours=2))), "2025-12-31 23:00:00.000000"),
    ],
)
def test_dates_are_in_utc_and_have_microseconds(moment, written):
    assert vumi_date(moment) == written


@pytest.mark.parametrize("name", ["Sms_transport", "ÜSSD", ""])
def test_a_transport_has_a_name_in_lower_case(name):
    with pytest.raises(ValidationError):
        VumiSender(transport_name=name)


def test_a_name_that_makes_no_routing_key_is_refused():
    assert len(VumiSender(transport_name="a" * 246).transport_name) == 246
    for name in ("a" * 247, "é" * 124):
        with pytest.raises(ValidationError, match="255 bytes"):
            VumiSender(transport_name=name)


def test_a_thousand_texts_may_be_unconfirmed_unless_the_rulebook_says_otherwise():
    assert VumiSender(transport_name="t").concurrency == 1000
    assert VumiSender(transport_name="t", concurrency=5).concurrency == 5
