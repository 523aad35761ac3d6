"""A person is found however the number is spelt, and nobody else is."""

from __future__ import annotations

import json

import pytest

from dispatcher.store.mentions import Mentions

ZULU = Mentions("+27821234567", ("0190aabbccdd", "thandi@example.org"), lambda _: "#")


@pytest.mark.parametrize(
    "text",
    [
        "+27821234567",
        "27821234567",
        "0027821234567",
        "0821234567",
        "821234567",
        "082 123 4567",
        "(082) 123-4567",
        "+27 (0)82 123 45 67",
        "082.123.4567",
        "082_123_4567",
        "082\u00a0123\u00a04567",
        "082\u2011123\u20114567",
        "\u0660\u0668\u0662\u0661\u0662\u0663\u0664\u0665\u0666\u0667",
        "\uff0b\uff12\uff17 82 123 4567",
        "call 0821234567, please",
        "poll-0821234567-3",
        '{"msisdn":27821234567}',
        '{"list":[1,27821234567,3]}',
        "the contact 0190aabbccdd",
        "THANDI@example.org",
    ],
)
def test_number_is_found_however_it_is_spelt(text):
    assert ZULU.found_in(text)
    assert "4567" not in ZULU.without(text)


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "+27821234568",
        "+278212345678",
        "1990821234567890",
        "[82,123,4567]",
        '{"a":"0821","b":"234567"}',
        "0190aabbccddee",
        "nothandi@example.org",
    ],
)
def test_others_are_not_found(text):
    assert not ZULU.found_in(text)
    assert ZULU.without(text) == text


@pytest.mark.parametrize(
    "body",
    [
        b'{"msisdn": "0821234567"',
        '{"msisdn": "0821234567"}'.encode("utf-16"),
        b"\xff\xfe broken 0821234567",
        rb'{"msisdn": "\u0030\u0038\u0032\u0031\u0032\u0033\u0034\u0035\u0036\u0037"}',
    ],
)
def test_number_is_found_in_bodies_of_any_encoding(body):
    assert ZULU.found_in_bytes(body)


def test_json_stays_json_without_the_person():
    told = {"a": 27821234567, "b": ["0821234567", 4], "0821234567": {"c": "see 0821234567"}, "d": 1.5, "e": None}
    cleaned = json.loads(ZULU.without_in_json(json.dumps(told)))
    assert cleaned == {"a": "#", "b": ["#", 4], "#": {"c": "see #"}, "d": 1.5, "e": None}


def test_json_without_the_person_is_left_as_it_is():
    assert ZULU.without_in_json('{ "a" : 1.0 }') == '{ "a" : 1.0 }'
    assert ZULU.without_in_json(None) is None


@pytest.mark.parametrize(("msisdn", "text"), [("+26771234567", "71234567"), ("+12025550123", "1-202-555-0123")])
def test_numbering_plans_of_other_countries(msisdn, text):
    assert Mentions(msisdn, (), lambda _: "#").found_in(text)


def test_very_short_national_number_needs_its_prefix():
    short = Mentions("+29047123", (), lambda _: "#")  # Saint Helena: five digits
    assert short.found_in("+290 47123")
    assert short.found_in("0047123") or short.found_in("00 290 47123")
    assert not short.found_in("order 47123")
