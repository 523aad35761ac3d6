"""Each gateway with the requests that it documents, and with replies in the shape that it gives them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from pydantic import ValidationError

from dispatcher.plugins.outcomes import Done, Failed, RetryLater, Unknown
from dispatcher.senders.presets.africas_talking import AfricasTalkingSender
from dispatcher.senders.presets.clickatell import ClickatellSender
from dispatcher.senders.presets.infobip import InfobipSender
from dispatcher.senders.presets.junebug import JunebugSender
from dispatcher.senders.presets.kannel import KannelSender
from dispatcher.senders.presets.twilio import TwilioSender
from dispatcher.senders.presets.vonage import VonageSender

WAITS_CHARGED = "waits, charged"
WAITS_UNCHARGED = "waits, uncharged"


@pytest.fixture
def send(gateway, text):
    """Send the text through a sender of this kind, and say in a word or an id what came of it."""

    def through(kind, *, content=None, comes_from=text.from_addr, **settings):
        sender = kind.model_validate({"base_url": gateway.url, **settings})
        sender.open()
        try:
            outcome = sender.send(replace(text, content=content or text.content, from_addr=comes_from))
        finally:
            sender.close()
        match outcome:
            case Done(result=result):
                return result["gateway_id"]
            case RetryLater(counts=counts):
                return WAITS_CHARGED if counts else WAITS_UNCHARGED
        return type(outcome)

    return through


KANNEL = {"username": "disp", "password": "p&w"}


def test_kannel_gets_its_cgi_variables(send, gateway):
    gateway.answer(202, "0: Accepted for delivery")
    assert send(KannelSender, **KANNEL, smsc="mtn", dlr_url="https://us.example/dlr?id={message_id}&s=%d") is None
    [seen] = gateway.received
    assert (seen.method, seen.path) == ("GET", "/cgi-bin/sendsms")
    assert seen.query == {
        "username": "disp",
        "password": "p&w",
        "from": "+27821230000",
        "to": "+27821234567",
        "text": "Thank you, Thandi!",
        "charset": "UTF-8",
        "coding": "0",
        "smsc": "mtn",
        "dlr-mask": "31",
        "dlr-url": "https://us.example/dlr?id=0198c0de0000700080000000000000aa&s=%d",
    }


def test_kannel_gets_ucs2_for_what_gsm_lacks(send, gateway):
    send(KannelSender, **KANNEL, content="Ngiyabonga 🙏")
    assert gateway.received[0].query["coding"] == "2"
    assert gateway.received[0].query["text"] == "Ngiyabonga 🙏"
    assert "dlr-mask" not in gateway.received[0].query


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (202, "0: Accepted for delivery", None),
        (202, "0: Accepted for delivery: 4e2c0ad8-9d1e", "4e2c0ad8-9d1e"),
        (202, "3: Queued for later delivery", None),
        (200, "<html>It works!</html>", Unknown),
        (403, "Not routable. Do not try again.", Failed),
        (403, "Authorization failed for sendsms", WAITS_CHARGED),
        (503, "Temporal failure, try again later.", WAITS_UNCHARGED),
        (500, "", Unknown),
    ],
)
def test_kannel_is_understood(send, gateway, status, body, expected):
    gateway.answer(status, body)
    assert send(KannelSender, **KANNEL) == expected


JUNEBUG_REPLY = {
    "status": 201,
    "code": "Created",
    "description": "message submitted",
    "result": {"message_id": "jb-1", "channel_id": "ch", "to": "+27821234567", "content": "Thank you, Thandi!"},
}


def test_junebug_gets_a_message_for_its_channel(send, gateway):
    gateway.answer(201, JUNEBUG_REPLY)
    assert send(JunebugSender, channel="ch", event_url="https://us.example/e", event_auth_token="t") == "jb-1"
    [seen] = gateway.received
    assert (seen.method, seen.path) == ("POST", "/channels/ch/messages/")
    assert seen.json == {
        "to": "+27821234567",
        "from": "+27821230000",
        "content": "Thank you, Thandi!",
        "event_url": "https://us.example/e",
        "event_auth_token": "t",
    }
    assert "authorization" not in seen.headers


def test_vumi2_speaks_junebugs_language_at_another_path(send, gateway):
    gateway.answer(201, {"result": {"message_id": "v2-1"}})
    assert send(JunebugSender, username="u", password="p", comes_from=None) == "v2-1"
    [seen] = gateway.received
    assert seen.path == "/messages"
    assert seen.headers["authorization"] == "Basic dTpw"
    assert "from" not in seen.json


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (400, {"status": 400, "result": {"errors": [{"type": "invalid_body", "message": "bad"}]}}, Failed),
        (404, {"status": 404, "result": {"errors": [{"type": "ChannelNotFound", "message": "x"}]}}, Failed),
        (500, {"status": 500, "result": {"errors": [{"type": "KeyError", "message": "x"}]}}, Unknown),
        (200, "hello", Unknown),
    ],
)
def test_junebug_is_understood(send, gateway, status, body, expected):
    gateway.answer(status, body)
    assert send(JunebugSender, channel="ch") == expected


TWILIO = {"account_sid": "AC00000000000000000000000000000001", "auth_token": "tok", "from_addr": "+27821230000"}


def twilio_message(**given):
    return {
        "account_sid": TWILIO["account_sid"],
        "body": "Thank you, Thandi!",
        "error_code": None,
        "error_message": None,
        "num_segments": "1",
        "sid": "SM0001",
        "status": "queued",
        "to": "+27821234567",
    } | given


def test_twilio_gets_a_form_for_its_account(send, gateway):
    gateway.answer(201, twilio_message())
    assert send(TwilioSender, **TWILIO, status_callback="https://us.example/s") == "SM0001"
    [seen] = gateway.received
    assert (seen.method, seen.path) == ("POST", f"/2010-04-01/Accounts/{TWILIO['account_sid']}/Messages.json")
    assert seen.form == {
        "To": "+27821234567",
        "From": "+27821230000",
        "Body": "Thank you, Thandi!",
        "StatusCallback": "https://us.example/s",
    }
    assert seen.headers["authorization"].startswith("Basic ")


def test_twilio_needs_a_number_or_a_messaging_service():
    with pytest.raises(ValidationError, match="from_addr or messaging_service_sid"):
        TwilioSender(account_sid="AC1", auth_token="x")
    assert TwilioSender(account_sid="AC1", auth_token="x", messaging_service_sid="MG1").from_addr is None


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (201, twilio_message(status="accepted"), "SM0001"),
        (201, twilio_message(status="failed", error_code=30007, error_message="Filtered"), Failed),
        (400, {"code": 21211, "message": "Invalid 'To' Phone Number", "status": 400}, Failed),
        (400, {"code": 21610, "message": "unsubscribed recipient", "status": 400}, Failed),
        (429, {"code": 20429, "message": "Too Many Requests", "status": 429}, WAITS_UNCHARGED),
        (401, {"code": 20003, "message": "Authenticate", "status": 401}, WAITS_CHARGED),
        (500, {"code": 20500, "message": "Internal Server Error", "status": 500}, Unknown),
    ],
)
def test_twilio_is_understood(send, gateway, status, body, expected):
    gateway.answer(status, body)
    assert send(TwilioSender, **TWILIO) == expected


AFRICAS_TALKING = {"username": "sandbox", "api_key": "atsk"}


def recipients(code, status, message_id="ATXid_1"):
    recipient = {"statusCode": code, "number": "+254711000001", "status": status, "cost": "KES 0.8000"}
    return {
        "SMSMessageData": {
            "Message": "Sent to 1/1 Total Cost: KES 0.8000",
            "Recipients": [recipient | {"messageId": message_id}],
        }
    }


def test_africas_talking_gets_a_form_and_its_key(send, gateway):
    gateway.answer(201, recipients(101, "Success"))
    assert send(AfricasTalkingSender, **AFRICAS_TALKING) == "ATXid_1"
    [seen] = gateway.received
    assert seen.path == "/version1/messaging"
    assert seen.headers["apikey"] == "atsk"
    assert seen.headers["accept"] == "application/json"
    assert seen.form == {
        "username": "sandbox",
        "to": "+27821234567",
        "message": "Thank you, Thandi!",
        "from": "+27821230000",
    }


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (201, recipients(100, "Success"), "ATXid_1"),
        (201, recipients(403, "InvalidPhoneNumber", "None"), Failed),
        (201, recipients(406, "UserInBlacklist", "None"), Failed),
        (201, recipients(405, "InsufficientBalance", "None"), WAITS_CHARGED),
        (201, recipients(500, "InternalServerError", "None"), Unknown),
        (201, {"SMSMessageData": {"Message": "InvalidSenderId", "Recipients": []}}, Failed),
        (401, "The supplied authentication is invalid", WAITS_CHARGED),
        (400, "Request is missing required form field 'to'", Failed),
        (502, "", Unknown),
    ],
)
def test_africas_talking_is_understood(send, gateway, status, body, expected):
    gateway.answer(status, body)
    assert send(AfricasTalkingSender, **AFRICAS_TALKING) == expected


def infobip_status(group, name, description="…"):
    status = {"groupId": group, "groupName": "X", "id": 1, "name": name, "description": description}
    return {
        "bulkId": "b",
        "messages": [{"messageId": "2250be2d4219", "status": status, "destination": "27821234567"}],
    }


def test_infobip_gets_a_message_with_our_id(send, gateway):
    gateway.answer(200, infobip_status(1, "PENDING_ACCEPTED"))
    assert send(InfobipSender, api_key="k", notify_url="https://us.example/n") == "2250be2d4219"
    [seen] = gateway.received
    assert seen.path == "/sms/3/messages"
    assert seen.headers["authorization"] == "App k"
    assert seen.json == {
        "messages": [
            {
                "sender": "27821230000",
                "destinations": [{"to": "27821234567", "messageId": "0198c0de0000700080000000000000aa"}],
                "content": {"text": "Thank you, Thandi!"},
                "webhooks": {"delivery": {"url": "https://us.example/n"}, "contentType": "application/json"},
            }
        ]
    }


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (200, infobip_status(0, "MESSAGE_ACCEPTED"), "2250be2d4219"),
        (200, infobip_status(5, "REJECTED_DESTINATION_NOT_REGISTERED"), Failed),
        (200, infobip_status(5, "REJECTED_NOT_ENOUGH_CREDITS"), WAITS_CHARGED),
        (
            401,
            {"requestError": {"serviceException": {"messageId": "UNAUTHORIZED", "text": "Invalid login details"}}},
            WAITS_CHARGED,
        ),
        (400, {"errorCode": "E400", "description": "Request cannot be processed.", "violations": []}, Failed),
        (429, {"errorCode": "E429", "description": "Too many requests"}, WAITS_UNCHARGED),
        (500, {"errorCode": "E500", "description": "x"}, Unknown),
    ],
)
def test_infobip_is_understood(send, gateway, status, body, expected):
    gateway.answer(status, body)
    assert send(InfobipSender, api_key="k") == expected


VONAGE = {"api_key": "key", "api_secret": "secret", "from_addr": "+27821230000"}


def vonage_status(status, **more):
    return {"message-count": "1", "messages": [{"to": "27821234567", "status": status} | more]}


def test_vonage_gets_a_form_with_numbers_without_plus(send, gateway):
    gateway.answer(200, vonage_status("0", **{"message-id": "0A00", "remaining-balance": "3.14"}))
    assert send(VonageSender, **VONAGE) == "0A00"
    [seen] = gateway.received
    assert seen.path == "/sms/json"
    assert seen.form == {
        "from": "27821230000",
        "to": "27821234567",
        "text": "Thank you, Thandi!",
        "type": "text",
        "client-ref": "0198c0de0000700080000000000000aa",
    }


def test_vonage_is_told_of_unicode(send, gateway):
    send(VonageSender, **VONAGE, content="ไทย")
    assert gateway.received[0].form["type"] == "unicode"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (vonage_status("1", **{"error-text": "Throughput Rate Exceeded"}), WAITS_UNCHARGED),
        (vonage_status("2", **{"error-text": "Missing to param"}), Failed),
        (vonage_status("4", **{"error-text": "Bad Credentials"}), WAITS_CHARGED),
        (vonage_status("5", **{"error-text": "Internal Error"}), Unknown),
        (vonage_status("7", **{"error-text": "Number barred"}), Failed),
        (vonage_status("9", **{"error-text": "Quota Exceeded"}), WAITS_CHARGED),
        ({}, Unknown),
    ],
)
def test_vonage_is_understood(send, gateway, body, expected):
    gateway.answer(200, body)
    assert send(VonageSender, **VONAGE) == expected


def test_clickatell_gets_a_message_on_its_sms_channel(send, gateway):
    gateway.answer(202, {"messages": [{"apiMessageId": "02ca87d5", "accepted": True, "to": "27821234567"}]})
    assert send(ClickatellSender, api_key="ck==", comes_from=None) == "02ca87d5"
    [seen] = gateway.received
    assert seen.path == "/v1/message"
    assert seen.headers["authorization"] == "ck=="
    assert seen.json == {
        "messages": [
            {
                "channel": "sms",
                "to": "27821234567",
                "content": "Thank you, Thandi!",
                "clientMessageId": "0198c0de0000700080000000000000aa",
            }
        ]
    }


def clickatell_error(code, description):
    error = {"code": code, "description": description}
    return {"messages": [{"apiMessageId": None, "accepted": False, "to": "27821234567", "error": error}]}


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (207, clickatell_error(25, "Invalid recipient address"), Failed),
        (207, clickatell_error(26, "Recipient opted out"), Failed),
        (207, clickatell_error(20, "Insufficient account balance"), WAITS_CHARGED),
        (207, clickatell_error(43, "Rate limit"), WAITS_UNCHARGED),
        (401, {"messages": [], "error": {"code": 1, "description": "Invalid or missing API key"}}, WAITS_CHARGED),
        (500, {"messages": [], "error": {"code": 18, "description": "Internal error"}}, Unknown),
    ],
)
def test_clickatell_is_understood(send, gateway, status, body, expected):
    gateway.answer(status, body)
    assert send(ClickatellSender, api_key="ck==") == expected


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (KannelSender, KANNEL | {"base_url": "http://kannel.example:13013"}),
        (JunebugSender, {"channel": "ch", "base_url": "http://junebug.example"}),
        (TwilioSender, TWILIO),
        (AfricasTalkingSender, AFRICAS_TALKING),
        (InfobipSender, {"api_key": "k", "base_url": "https://xyz.api.infobip.com"}),
        (VonageSender, VONAGE),
        (ClickatellSender, {"api_key": "ck=="}),
    ],
)
def test_no_gateway_is_taken_to_honour_keys(kind, settings):
    assert kind.model_validate(settings).keyed is False
    with pytest.raises(ValidationError):
        kind.model_validate(settings | {"base_url": "gateway.example"})
