import json
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.events.event import Event
from dispatcher.events.limits import Limits, Refusal
from dispatcher.events.wire import (
    LONGEST_KEY,
    decode,
    encode,
    format_timestamp,
    parse_timestamp,
    read_envelope,
)

DESIGN_NOTE = {
    "account_key": "acc1",
    "conversation_key": "conv1",
    "conversation_type": "vxpolls",
    "event_type": "poll_complete",
    "event_data": {"msisdn": "+27821234567"},
}
HISTORIC = {
    "account_key": "acc1",
    "conversation_key": "conv1",
    "event_type": "survey_completed",
    "content": {"from_addr": "+27831234567"},
}
CLOUD_EVENT = {
    "specversion": "1.0",
    "id": "e1",
    "source": "https://crm.example/accounts/acc1",
    "type": "org.example.vxpolls.poll_complete",
    "subject": "conv1",
    "time": "2026-11-21T05:41:54.5+02:00",
    "datacontenttype": "application/json",
    "data": {"msisdn": "+27821234567"},
}
ABSENT = object()


def body(form, **changes):
    return json.dumps({key: value for key, value in {**form, **changes}.items() if value is not ABSENT}).encode()


def read(form, **changes):
    return decode(body(form, **changes), Limits())


def code_of(form, **changes):
    with pytest.raises(Refusal) as refused:
        read(form, **changes)
    return refused.value.code


def test_design_note_form_is_read():
    envelope = read(DESIGN_NOTE, event_id="e1", timestamp="2026-11-21T03:41:54Z", subject="+27821234567", shoe_size=42)
    assert (envelope.account_key, envelope.conversation_key) == ("acc1", "conv1")
    assert (envelope.conversation_type, envelope.event_type) == ("vxpolls", "poll_complete")
    assert envelope.data == {"msisdn": "+27821234567"}
    assert envelope.event_id == "e1"
    assert envelope.timestamp == datetime(2026, 11, 21, 3, 41, 54, tzinfo=UTC)
    assert envelope.subject == "+27821234567"
    assert envelope.extra == {"shoe_size": 42}


def test_historic_form_has_no_type_and_no_id():
    envelope = read(HISTORIC)
    assert envelope.conversation_type is None
    assert envelope.event_id is None
    assert envelope.timestamp is None
    assert envelope.data == {"from_addr": "+27831234567"}


def test_cloud_event_is_read():
    envelope = read(CLOUD_EVENT, partitionkey="p1")
    assert (envelope.account_key, envelope.conversation_key, envelope.event_id) == ("acc1", "conv1", "e1")
    assert (envelope.conversation_type, envelope.event_type) == ("org.example.vxpolls", "poll_complete")
    assert envelope.data == {"msisdn": "+27821234567"}
    assert envelope.timestamp == datetime(2026, 11, 21, 3, 41, 54, 500_000, tzinfo=UTC)
    assert envelope.subject is None
    assert envelope.extra == {"partitionkey": "p1"}


@pytest.mark.parametrize("form", [DESIGN_NOTE, HISTORIC, CLOUD_EVENT])
def test_null_is_as_good_as_an_absent_key(form):
    nothing = dict.fromkeys(["conversation_type", "event_id", "root_id", "parent_id", "hops", "traceparent", "time"])
    nothing |= {"timestamp": None} if form is not CLOUD_EVENT else {"data_base64": None}
    assert read(form, **nothing).timestamp is None


@pytest.mark.parametrize("payload", ["event_data", "content", "both", "neither"])
def test_either_name_of_the_payload_will_do(payload):
    data = {"a": [1, {"b": True}]}
    given_data = {name: data if payload in (name, "both") else ABSENT for name in ("event_data", "content")}
    assert read(DESIGN_NOTE, **given_data).data == ({} if payload == "neither" else data)


def test_event_data_wins_over_a_null_content():
    assert read(DESIGN_NOTE, content=None).data == DESIGN_NOTE["event_data"]
    assert read(HISTORIC, event_data=None).data == HISTORIC["content"]


def test_key_order_makes_no_conflict():
    assert read(DESIGN_NOTE, event_data={"x": 1, "y": 2}, content={"y": 2, "x": 1}).data == {"x": 1, "y": 2}


@pytest.mark.parametrize("other", [{"a": 2}, {}, {"a": True}, {"a": 1.0}, {"a": 1, "b": None}])
def test_two_different_payloads_are_a_conflict(other):
    assert code_of(DESIGN_NOTE, event_data={"a": 1}, content=other) == "conflicting_payload"


@pytest.mark.parametrize("absent", [ABSENT, None])
@pytest.mark.parametrize("name", ["account_key", "conversation_key", "event_type"])
@pytest.mark.parametrize("form", [DESIGN_NOTE, HISTORIC])
def test_required_key_may_not_be_absent(form, name, absent):
    assert code_of(form, **{name: absent}) == "missing_field"


@pytest.mark.parametrize("absent", [ABSENT, None])
@pytest.mark.parametrize("name", ["id", "source", "type", "subject"])
def test_required_attribute_of_a_cloud_event_may_not_be_absent(name, absent):
    assert code_of(CLOUD_EVENT, **{name: absent}) == "missing_field"


def test_every_missing_key_is_named_at_once():
    with pytest.raises(Refusal) as refused:
        decode(b"{}", Limits())
    assert refused.value.detail == "account_key, conversation_key, event_type are missing"


@pytest.mark.parametrize(
    "name",
    [
        "account_key",
        "conversation_key",
        "conversation_type",
        "event_type",
        "event_id",
        "subject",
        "root_id",
        "parent_id",
    ],
)
@pytest.mark.parametrize("value", ["", 5, 1.5, True, [], {}, ["acc1"], "x" * (LONGEST_KEY + 1)])
def test_key_of_another_type_is_refused(name, value):
    assert code_of(DESIGN_NOTE, **{name: value}) == "wrong_type"


@pytest.mark.parametrize("name", ["event_data", "content"])
@pytest.mark.parametrize("value", ["", "text", "{}", 5, True, [], [{}]])
def test_payload_is_an_object_or_refused(name, value):
    assert code_of(HISTORIC, **{name: value}) == "wrong_type"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("timestamp", "yesterday"),
        ("timestamp", 1_763_696_514),
        ("timestamp", ""),
        ("timestamp", "2026-13-01T00:00:00Z"),
        ("timestamp", "0001-01-01T00:00:00+05:00"),
        ("hops", -1),
        ("hops", 1.0),
        ("hops", "1"),
        ("hops", True),
        ("hops", 2**62),
    ],
)
def test_time_and_hops_of_another_type_are_refused(name, value):
    assert code_of(DESIGN_NOTE, **{name: value}) == "wrong_type"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("specversion", "0.3"),
        ("specversion", 1.0),
        ("id", ""),
        ("id", 5),
        ("subject", ""),
        ("source", ""),
        ("source", "/"),
        ("source", "https://crm.example"),
        ("source", "https://crm.example/"),
        ("source", ["acc1"]),
        ("type", ""),
        ("type", "vxpolls."),
        ("type", ".poll_complete"),
        ("type", "."),
        ("type", 5),
        ("time", "noon"),
        ("data", "text"),
        ("data", []),
        ("data_base64", "e30="),
    ],
)
def test_attribute_of_another_type_is_refused(name, value):
    assert code_of(CLOUD_EVENT, **{name: value}) == "wrong_type"


@pytest.mark.parametrize(
    ("source", "account_key"),
    [
        ("acc1", "acc1"),
        ("/acc1", "acc1"),
        ("/programmes/acc1", "acc1"),
        ("/acc1/", "acc1"),
        ("https://crm.example/acc1?since=1/2#x/y", "acc1"),
        ("//crm.example/acc1", "acc1"),
        ("urn:vumi:acc1", "urn:vumi:acc1"),
        ("mailto:clinic@example.org", "mailto:clinic@example.org"),
    ],
)
def test_account_is_the_last_segment_of_the_source(source, account_key):
    assert read(CLOUD_EVENT, source=source).account_key == account_key


@pytest.mark.parametrize(
    ("written", "expected"),
    [("poll_complete", (None, "poll_complete")), ("a.b", ("a", "b")), ("a.b.c", ("a.b", "c"))],
)
def test_type_is_split_at_its_last_dot(written, expected):
    envelope = read(CLOUD_EVENT, type=written)
    assert (envelope.conversation_type, envelope.event_type) == expected


def test_cloud_event_without_data_has_no_data():
    assert read(CLOUD_EVENT, data=ABSENT).data == {}


@pytest.mark.parametrize("value", [[], [DESIGN_NOTE], "text", 5, None, True])
def test_what_is_no_object_is_no_event(value):
    with pytest.raises(Refusal) as refused:
        decode(json.dumps(value).encode(), Limits())
    assert refused.value.code == "not_an_object"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"account_key": 5, "event_type": ABSENT}, "missing_field"),
        ({"account_key": 5, "event_data": {"a": 1}, "content": {}}, "wrong_type"),
        ({"event_data": {"a": 1}, "content": []}, "wrong_type"),
        ({"event_type": ABSENT, "content": {}}, "missing_field"),
    ],
)
def test_first_code_that_applies_is_given(changes, code):
    assert code_of(DESIGN_NOTE, **changes) == code


def test_limits_come_before_the_form():
    with pytest.raises(Refusal) as refused:
        decode(b'{"account_key": NaN}', Limits())
    assert refused.value.code == "bad_number"


def test_detail_names_the_key_but_not_the_persons_data():
    with pytest.raises(Refusal) as refused:
        read(DESIGN_NOTE, event_data="Thandi +27821234567")
    assert refused.value.detail == "event_data: an object is needed, a text was found"


def test_scratch_space_of_vumi_is_dropped():
    assert read(HISTORIC, __cache__={"a": 1}).extra == {}


@pytest.mark.parametrize("form", [DESIGN_NOTE, CLOUD_EVENT])
def test_unusable_trace_is_dropped_and_the_event_kept(form):
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    assert read(form, traceparent=trace).traceparent == trace
    for unusable in ("", "00-xyz", 5, trace + "-", trace.upper()):
        assert read(form, traceparent=unusable).traceparent is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-11-21 03:41:54.767900", datetime(2026, 11, 21, 3, 41, 54, 767_900, UTC)),
        ("2026-11-21 03:41:54", datetime(2026, 11, 21, 3, 41, 54, tzinfo=UTC)),
        ("2026-11-21 03:41:54Z", datetime(2026, 11, 21, 3, 41, 54, tzinfo=UTC)),
        ("2026-11-21T03:41:54Z", datetime(2026, 11, 21, 3, 41, 54, tzinfo=UTC)),
        ("2026-11-21T03:41Z", datetime(2026, 11, 21, 3, 41, tzinfo=UTC)),
        ("2026-11-21T03:41:54", datetime(2026, 11, 21, 3, 41, 54, tzinfo=UTC)),
        ("2026-11-21T05:41:54+02:00", datetime(2026, 11, 21, 3, 41, 54, tzinfo=UTC)),
        ("2026-11-20T19:41:54-0800", datetime(2026, 11, 21, 3, 41, 54, tzinfo=UTC)),
        ("2026-11-21T03:41:54.123456789Z", datetime(2026, 11, 21, 3, 41, 54, 123_456, UTC)),
        ("2026-11-21", None),
        ("2026-11-21X03:41:54", None),
        ("2026-11-21T25:00:00", None),
        ("", None),
    ],
)
def test_dates_of_vumi_and_of_iso_8601_are_read_in_utc(text, expected):
    read_moment = parse_timestamp(text)
    assert read_moment == expected
    assert read_moment is None or read_moment.tzinfo is UTC


def test_time_is_written_in_utc():
    moment = datetime(2026, 11, 21, 5, 41, 54, tzinfo=timezone(timedelta(hours=2)))
    assert format_timestamp(moment) == "2026-11-21T03:41:54Z"


words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=LONGEST_KEY)
events = st.builds(
    Event,
    event_id=words,
    account_key=words,
    conversation_key=words,
    conversation_type=st.none() | words,
    event_type=words,
    data=st.dictionaries(words, st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | words | st.lists(words)),
    timestamp=st.datetimes(timezones=st.just(UTC)),
    subject=st.none() | words,
    root_id=words,
    parent_id=st.none() | words,
    hops=st.integers(0, 8),
    traceparent=st.none() | st.just("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
)


@given(events, st.booleans())
def test_what_goes_out_is_read_back_as_the_same_event(event, ascii_only):
    written = json.dumps(encode(event), ensure_ascii=ascii_only).encode()
    envelope = decode(written, Limits())
    for name in Event.__slots__:
        if name not in ("source", "extra"):
            assert getattr(envelope, name) == getattr(event, name), name
    assert envelope.extra == {}


@given(events)
def test_what_goes_out_can_be_read_by_historic_dispatchers(event):
    written = encode(event)
    assert written["content"] == written["event_data"] == event.data
    assert None not in [written.get(name, "") for name in written]


keys = st.sampled_from([*DESIGN_NOTE, *CLOUD_EVENT, "content", "hops", "timestamp", "event_id", "traceparent", "other"])
values = st.sampled_from(
    [None, "", "a.b", "x" * 300, 0, -1, 1.5, True, [], {}, {"a": 1}, "1.0", "2026-11-21T00:00:00Z"]
)


@given(st.dictionaries(keys, values))
def test_no_object_ends_in_anything_but_an_envelope_or_a_refusal(fields):
    try:
        envelope = read_envelope(fields)
        verdict = "read" if envelope.account_key and envelope.event_type else "read without its keys"
    except Refusal as refusal:
        verdict = refusal.code
    assert verdict in ("read", "missing_field", "wrong_type", "conflicting_payload")


@pytest.mark.parametrize("name", ["event_data", "content"])
def test_a_null_as_the_only_payload_is_one_that_got_lost(name):
    body = {"account_key": "a", "conversation_key": "c", "conversation_type": "t", "event_type": "e", name: None}
    with pytest.raises(Refusal) as refused:
        read_envelope(body)
    assert (refused.value.code, name in refused.value.detail) == ("wrong_type", True)
