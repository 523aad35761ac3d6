from __future__ import annotations

import json
import string
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.events.limits import REFUSAL_CODES, Limits, Refusal
from dispatcher.events.transport import read_transport_event

MESSAGE_ID = "0198a7c2d4e57f318b1a2c3d4e5f6071"
EVENT_ID = "3b9f1f0c8e7d4c6b9a5f4e3d2c1b0a99"
ABSENT = object()

# As the Python of Vumi Go writes it: only the extra that its type needs.
ACK = {
    "message_version": "20110921",
    "message_type": "event",
    "timestamp": "2026-11-21 03:41:54.767900",
    "event_id": EVENT_ID,
    "event_type": "ack",
    "user_message_id": MESSAGE_ID,
    "sent_message_id": "smsc-77",
    "transport_name": "sms_transport",
    "transport_metadata": {},
    "helper_metadata": {},
    "routing_metadata": {},
}
# As vumi2 writes it: all extras, null where they say nothing, and no transport.
FROM_VUMI2 = {
    "user_message_id": MESSAGE_ID,
    "event_type": "delivery_report",
    "message_version": "20110921",
    "message_type": "event",
    "timestamp": "2026-11-21 03:41:54.000000",
    "routing_metadata": {},
    "helper_metadata": {},
    "event_id": EVENT_ID,
    "sent_message_id": None,
    "nack_reason": None,
    "delivery_status": "delivered",
    "transport_metadata": {},
}


def read(form=ACK, **changes):
    fields = {key: value for key, value in {**form, **changes}.items() if value is not ABSENT}
    return read_transport_event(json.dumps(fields).encode(), Limits())


def code_or_event(changes):
    try:
        return read(**changes)
    except Refusal as refused:
        return refused.code


def refusal_of(form=ACK, **changes):
    with pytest.raises(Refusal) as refused:
        read(form, **changes)
    return refused.value


def test_an_ack_tells_the_gateways_id():
    event = read()

    assert (event.event_id, event.event_type, event.message_id) == (EVENT_ID, "ack", MESSAGE_ID)
    assert (event.gateway_id, event.reason, event.delivery_status) == ("smsc-77", None, None)
    assert event.timestamp == datetime(2026, 11, 21, 3, 41, 54, 767900, UTC)
    assert event.transport_name == "sms_transport"


def test_a_nack_tells_why():
    assert read(event_type="nack", sent_message_id=ABSENT, nack_reason="no route").reason == "no route"


@pytest.mark.parametrize("status", ["pending", "failed", "delivered"])
def test_a_delivery_report_of_vumi2_is_read(status):
    event = read(FROM_VUMI2, delivery_status=status)

    assert (event.event_type, event.delivery_status) == ("delivery_report", status)
    assert (event.gateway_id, event.reason, event.transport_name) == (None, None, None)


def test_chains_see_it_under_the_names_of_vumi_and_find_every_one_of_them():
    assert read(FROM_VUMI2).data == {
        "message_id": MESSAGE_ID,
        "event_type": "delivery_report",
        "sent_message_id": None,
        "nack_reason": None,
        "delivery_status": "delivered",
        "transport_name": None,
    }
    assert read(FROM_VUMI2, delivery_state="DELIVRD").data["delivery_state"] == "DELIVRD"


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-21 03:41:54",
        "2026-11-21 03:41:54.000000",
        "2026-11-21 03:41:54.000000Z",
        "2026-11-21T03:41:54Z",
        "2026-11-21T05:41:54+02:00",
    ],
)
def test_dates_of_vumi_and_of_iso_8601_are_read(text):
    assert read(timestamp=text).timestamp == datetime(2026, 11, 21, 3, 41, 54, tzinfo=UTC)


@pytest.mark.parametrize("name", ["message_version", "message_type", "timestamp", "sent_message_id", "transport_name"])
@pytest.mark.parametrize("value", [None, ABSENT])
def test_what_is_not_needed_may_be_missing(name, value):
    assert read(**{name: value}).message_id == MESSAGE_ID


def test_the_number_of_the_format_does_not_matter():
    assert read(message_version="20110907").event_type == "ack"


@pytest.mark.parametrize(
    "written", ["0198a7c2-d4e5-7f31-8b1a-2c3d4e5f6071", "0198A7C2-D4E5-7F31-8B1A-2C3D4E5F6071", MESSAGE_ID.upper()]
)
def test_ids_in_other_spellings_are_the_same(written):
    assert read(user_message_id=written).message_id == MESSAGE_ID


def test_an_id_that_is_no_uuid_is_left_as_it_is():
    assert read(user_message_id="Text-42").message_id == "Text-42"


@pytest.mark.parametrize(
    ("value", "text"),
    [(4711, "4711"), (["a", 1], '["a",1]'), ({"b": 1, "a": None}, '{"a":null,"b":1}'), (False, "false"), ("", None)],
)
def test_what_a_gateway_gives_is_kept_as_text(value, text):
    assert read(sent_message_id=value).gateway_id == text
    assert read(event_type="nack", nack_reason=value).reason == text


@pytest.mark.parametrize(
    ("changes", "code", "detail"),
    [
        ({"user_message_id": ABSENT}, "missing_field", "user_message_id is missing"),
        ({"event_id": None, "event_type": ABSENT}, "missing_field", "event_id, event_type are missing"),
        ({"user_message_id": 7}, "wrong_type", "user_message_id: a text of 1 to 200"),
        ({"event_id": ""}, "wrong_type", "event_id: a text of 1 to 200"),
        ({"event_id": "x" * 201}, "wrong_type", "a text of 201 was found"),
        ({"event_type": "read"}, "wrong_type", "ack, nack or delivery_report is needed, another text was found"),
        ({"event_type": ["ack"]}, "wrong_type", "a list was found"),
        ({"message_type": "user_message"}, "wrong_type", "message_type"),
        ({"event_type": "delivery_report"}, "missing_field", "delivery_status is missing"),
        ({"event_type": "delivery_report", "delivery_status": "seen"}, "wrong_type", "pending, failed or delivered"),
        ({"timestamp": "yesterday"}, "wrong_type", "timestamp"),
        ({"timestamp": 5}, "wrong_type", "timestamp"),
    ],
)
def test_what_cannot_be_read_is_refused_with_code_and_place(changes, code, detail):
    refused = refusal_of(**changes)

    assert refused.code == code
    assert detail in refused.detail


def test_a_refusal_repeats_nothing_of_what_was_found():
    assert "+2782" not in refusal_of(event_type="+27821234567").detail


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "bad_json"),
        (b"[]", "not_an_object"),
        (b"\xff", "bad_utf8"),
        (b'{"event_id": "a", "event_id": "b"}', "duplicate_key"),
        (b'{"x": ' + b"[" * 40 + b"]" * 40 + b"}", "too_deep"),
        (b'{"x": NaN}', "bad_number"),
        (b'{"x": "\\u0000"}', "bad_text"),
        (b" " * 1_048_577, "too_large"),
    ],
)
def test_the_limits_of_events_hold(body, code):
    with pytest.raises(Refusal) as refused:
        read_transport_event(body, Limits())

    assert refused.value.code == code


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.text(string.printable, max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(string.ascii_letters, max_size=4), inner),
    max_leaves=4,
)


@given(st.dictionaries(st.sampled_from([*ACK, "nack_reason", "delivery_status", "delivery_state"]), json_values))
def test_anything_is_either_read_or_refused_and_what_is_read_is_plain(changes):
    found = code_or_event(changes)

    if isinstance(found, str):
        assert found in REFUSAL_CODES
    else:
        assert json.loads(json.dumps(found.data)) == found.data
        assert {type(value) for value in found.data.values()} <= {str, type(None)}
