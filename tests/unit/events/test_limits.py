import json
import math
from decimal import Decimal

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dispatcher.events import limits
from dispatcher.events.event import ReadOnlyObject
from dispatcher.events.limits import (
    REFUSAL_CODES,
    Limits,
    Refusal,
    canonical_json,
    plain_json,
    quickly_plain,
    read_json,
)

LIMITS = Limits()
# A grinning face as JSON may escape it, the two halves of its surrogate pair.
HIGH, LOW = "\\ud83d", "\\ude00"


def read(body, allowed=LIMITS):
    """Return what was read in a dict of its own, or the code of the refusal."""
    return answer_of(lambda: read_json(body, allowed))


def answer_of(reader):
    try:
        return {"value": reader()}
    except Refusal as refusal:
        return refusal.code if refusal.code in REFUSAL_CODES and len(refusal.detail) < 500 else refusal


def nested(levels, opening=b"[", closing=b"]"):
    return opening * levels + closing * levels


@pytest.mark.parametrize(
    ("body", "code"),
    [
        # Not text in UTF-8.
        (b"\xef\xbb\xbf{}", "bad_utf8"),
        ('{"a": "é"}'.encode("latin-1"), "bad_utf8"),
        (b'{"a": "\xed\xa0\x80"}', "bad_utf8"),  # half a surrogate pair, raw
        (b'{"a": "\xc0\x80"}', "bad_utf8"),  # NUL, overlong
        (b'{"a": "\xf4\x90\x80\x80"}', "bad_utf8"),  # beyond Unicode
        (b'{"a": "\xe2\x82', "bad_utf8"),  # cut within a character
        *[
            ('{"a": 1}'.encode(name), "bad_utf8")
            for name in ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le")
        ],
        (b"\xff" * 100, "bad_utf8"),
        # Not JSON.
        (b"", "bad_json"),
        (b" \r\n\t", "bad_json"),
        (b"\x00", "bad_json"),
        (b"\x00\x00\x00\x00", "bad_json"),
        (b"hello", "bad_json"),
        (b"{'a': 1}", "bad_json"),
        (b'{"a": 1', "bad_json"),
        (b'{"a": 1,}', "bad_json"),
        (b"[1,]", "bad_json"),
        (b'{"a": 1} {"b": 2}', "bad_json"),
        (b'{"a": 1}\x00', "bad_json"),
        (b'{"a": "\x00"}', "bad_json"),
        (b'{"a": "line\nbreak"}', "bad_json"),
        (b'{"a": "\x1b[31m"}', "bad_json"),
        (b'{"a": "\\x41"}', "bad_json"),
        (b'{"a": "\\u12"}', "bad_json"),
        (b'{"a": "\\u+123"}', "bad_json"),
        (b'{"a": "\\"}', "bad_json"),
        (b'{"a": 01}', "bad_json"),
        (b'{"a": +1}', "bad_json"),
        (b'{"a": 1.}', "bad_json"),
        (b'{"a": .5}', "bad_json"),
        (b'{"a": 0x10}', "bad_json"),
        (b'{"a": True}', "bad_json"),
        (b'{"a": nan}', "bad_json"),
        (b'{1: "a"}', "bad_json"),
        (b'{"a": 1 /* b */}', "bad_json"),
        (b'{"a": undefined}', "bad_json"),
        ("{\N{NO-BREAK SPACE}}".encode(), "bad_json"),
        (b'{"a": ' + b"-" * 10_000 + b"}", "bad_json"),
        (b"]" * 100, "bad_json"),
        # Repeated keys.
        (b'{"a": 1, "a": 1}', "duplicate_key"),
        (b'{"a": 1, "\\u0061": 2}', "duplicate_key"),
        (b'{"a": {"b": [{"c": 1, "d": 2, "c": 3}]}}', "duplicate_key"),
        (b'[{"": 1, "": 2}]', "duplicate_key"),
        # Numbers.
        (b'{"a": NaN}', "bad_number"),
        (b'{"a": Infinity}', "bad_number"),
        (b'{"a": [-Infinity]}', "bad_number"),
        (b'{"a": 1e999}', "bad_number"),
        (b'{"a": -1e999}', "bad_number"),
        (b'{"a": 1' + b"0" * 400 + b".0}", "bad_number"),
        (b'{"a": 9223372036854775808}', "bad_number"),
        (b'{"a": -9223372036854775809}', "bad_number"),
        (b'{"a": ' + b"9" * 5000 + b"}", "bad_number"),
        (b'{"a": -' + b"9" * 500_000 + b"}", "bad_number"),
        # Text.
        (b'{"a": "\\u0000"}', "bad_text"),
        (b'{"a\\u0000b": 1}', "bad_text"),
        (b'{"a": "\\ud83d"}', "bad_text"),
        (b'{"a": "\\uDE00"}', "bad_text"),
        (b'{"a": "\\ude00\\ud83d"}', "bad_text"),
        (b'{"a": "\\ud83d\\\\ude00"}', "bad_text"),
        (b'{"a": "\\ud83d \\ude00"}', "bad_text"),
        (b'{"\\ud800": 1}', "bad_text"),
        (b'["\\\\\\u0000"]', "bad_text"),  # an escaped backslash, then a NUL
    ],
)
def test_body_is_refused_with_its_code(body, code):
    assert read(body) == code


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b"{}", {}),
        (b" \t\r\n[ ] \n", []),
        (b"0", 0),
        (b'"text"', "text"),
        (b"null", None),
        (b'{"a": 9223372036854775807, "b": -9223372036854775808}', {"a": 2**63 - 1, "b": -(2**63)}),
        (b'{"a": 1e308, "b": 1e-999, "c": -0}', {"a": 1e308, "b": 0.0, "c": 0}),
        (b'{"a": 0.' + b"3" * 5000 + b"}", {"a": 1 / 3}),
        (f'{{"a": "{HIGH}{LOW}"}}'.encode(), {"a": "😀"}),
        (f'{{"{HIGH}{LOW}": 1}}'.encode(), {"😀": 1}),
        ('{"a": "😀 \N{ZERO WIDTH NO-BREAK SPACE}"}'.encode(), {"a": "😀 \N{ZERO WIDTH NO-BREAK SPACE}"}),
        (b'{"a": "\\\\u0000"}', {"a": "\\u0000"}),
        (b'{"a": "\\\\ud83d"}', {"a": "\\ud83d"}),
        (b'{"a": "\\u00e9\\u0001\\u001b\x7f"}', {"a": "é\x01\x1b\x7f"}),
        (b'{"a": {"a": {"a": 1}}, "b": [{"a": 1}, {"a": 1}]}', {"a": {"a": {"a": 1}}, "b": [{"a": 1}, {"a": 1}]}),
        (b'{"a": "]}[{' + b"[" * 100 + b'"}', {"a": "]}[{" + "[" * 100}),
        (b'{"a": "\\"' + b"[" * 100 + b'"}', {"a": '"' + "[" * 100}),
        (b"[" + b"{}," * 100 + b"1]", [{}] * 100 + [1]),
    ],
)
def test_odd_but_honest_body_is_read(body, value):
    assert read(body) == {"value": value}


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"\xff" * 2_000_000, "too_large"),
        (b"\xef\xbb\xbf" + nested(33), "bad_utf8"),
        (nested(33) + b"\xff", "bad_utf8"),
        (b"[" * 100_000, "too_deep"),
        (b'{"a": 1, "a": ' + b"[" * 33, "too_deep"),
        (b'{"a": 1, "a": 2', "bad_json"),
        (b'{"a": NaN', "bad_json"),
        (b'{"a": "\\u0000', "bad_json"),
        (b'{"a": NaN, "b": 1, "b": 2}', "duplicate_key"),
        (b'{"b": "\\u0000", "a": NaN}', "bad_number"),
        (b'["\\ud800", {"a": 1, "a": 1}, 1e999]', "duplicate_key"),
    ],
)
def test_first_code_that_applies_is_given(body, code):
    assert read(body) == code


def test_body_of_exactly_the_allowed_size_passes():
    body = b'{"a": "' + b"x" * (1_048_576 - 9) + b'"}'
    assert len(body) == 1_048_576
    assert isinstance(read(body), dict)
    assert read(body + b" ") == "too_large"


@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}")])
@pytest.mark.parametrize("breadth", [b"", b"[],{},[[]]," * 50])
def test_depth_counts_the_outermost_as_one(opening, closing, breadth):
    def body(levels):
        return b"[" + breadth + opening * (levels - 1) + b"1" + closing * (levels - 1) + b"]"

    assert isinstance(read(body(32)), dict)
    assert read(body(33)) == "too_deep"
    assert read(body(100_000)) == "too_deep"


def test_other_limits_are_kept():
    assert read(nested(3), Limits(depth=2)) == "too_deep"
    assert read(nested(2), Limits(depth=2)) == {"value": [[]]}
    assert read(b"[ ]", Limits(body_bytes=2)) == "too_large"


@pytest.mark.parametrize("numbers", [{"body_bytes": 0}, {"depth": 0}, {"depth": 201}])
def test_limits_that_could_not_be_kept_are_refused(numbers):
    with pytest.raises(ValueError, match=str(next(iter(numbers.values())))):
        Limits(**numbers)


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (b'{"event_data": {"answers": [1, {"a": NaN}]}}', "event_data.answers[1].a: NaN is not a number in JSON"),
        (b'{"a": {"not a name": 1, "not a name": 2}}', 'a["not a name"] stands there twice'),
        (b'{"a": ["x\\u0000"]}', "a[0] holds a NUL"),
        (b'{"\\ud800": 1}', r'the key ["\ud800"] holds half a surrogate pair'),
        (b'{"a": 1,, "b": 2}', "Expecting property name enclosed in double quotes at line 1 column 9"),
        (b'{"a": "\xff"}', "byte 7 (0xff) does not belong to UTF-8 text"),
        (b"", "the body is empty"),
    ],
)
def test_detail_names_the_place_and_what_was_found(body, detail):
    with pytest.raises(Refusal) as refused:
        read_json(body, LIMITS)
    assert refused.value.detail == detail


def test_detail_shows_no_control_characters_and_stays_short():
    key = "\x1b[31m\n" + "x" * 10_000
    with pytest.raises(Refusal) as refused:
        read_json(json.dumps({key: {key: math.nan}}).encode(), LIMITS)
    assert refused.value.detail.isprintable()
    assert len(refused.value.detail) < 300


scalars = st.sampled_from(
    [
        *["1", "-1", "0.5", "1e5", "1e999", "NaN", "-Infinity", "true", "null", "01", "x", ""],
        *["9" * 18, "9" * 19, "-" + "9" * 30],
        *['"a"', '"é😀"', '"\\u00e9"', '"\\u0000"', f'"{HIGH}{LOW}"', f'"{LOW}"', '"\\\\u0000"', '"[{"', '"\\""', '"'],
    ]
)
keys = st.sampled_from(['"a"', '"b"', '"\\u0061"', '"\\u0000"', '"a:{"', f'"{HIGH}"', "a"])
documents = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4).map(lambda items: f"[{', '.join(items)}]")
        | st.lists(st.tuples(keys, inner), max_size=4).map(
            lambda pairs: "{" + ", ".join(f"{key}: {value}" for key, value in pairs) + "}"
        )
    ),
    max_leaves=12,
)


@settings(max_examples=500)
@given(documents)
@example('{"a": 1, "a": NaN}')
@example('{"a": "\\ud83d\\ude00"}')
def test_fast_reading_gives_the_answer_of_careful_reading(text):
    assert repr(read(text.encode())) == repr(answer_of(lambda: limits._read_carefully(text)))


def depth_by_walking(value):
    if isinstance(value, dict):
        return 1 + max(map(depth_by_walking, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(depth_by_walking, value), default=0)
    return 0


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    # NUL and lone surrogates apart, any text may stand in an event.
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.sampled_from('ab"\\[{:é😀\n'), max_size=5), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(json_values, st.booleans(), st.integers(1, 4))
def test_whatever_is_within_the_limits_is_read_as_written(value, ascii_only, depth):
    body = json.dumps(value, ensure_ascii=ascii_only).encode()
    expected = {"value": value} if depth_by_walking(value) <= depth else "too_deep"
    assert repr(read(body, Limits(depth=depth))) == repr(expected)


@settings(max_examples=300)
@given(st.binary(max_size=60) | st.text('{}[]":,\\u0dDe81aftn. \0\ufeff', max_size=60).map(str.encode))
def test_no_body_ends_in_anything_but_a_value_or_a_refusal(body):
    read(body)


@given(json_values)
def test_plain_copy_equals_its_original(value):
    copy = plain_json(value, LIMITS)
    assert repr(copy) == repr(value)


@given(json_values)
def test_what_is_plain_at_a_glance_reads_and_is_written_as_the_careful_way_has_it(value):
    plain = quickly_plain({"value": value}, LIMITS)
    if plain is not None:
        copy = plain_json({"value": value}, LIMITS)
        assert repr(plain[0]) == repr(copy)
        assert plain[1] == json.dumps(copy, ensure_ascii=False, separators=(",", ":"))


def test_what_a_handler_usually_returns_is_plain_at_a_glance():
    result = {"msisdn": "+27821234567", "name": "Zoë", "surname": None, "groups": ["a"], "extra": {"n": 1}, "new": True}
    plain = quickly_plain(result, LIMITS)
    assert plain is not None
    assert plain[0] == result
    assert plain[0]["groups"] is not result["groups"]
    assert plain[0]["extra"] is not result["extra"]


def test_plain_copy_shares_nothing_with_its_original():
    original = {"a": [1, {"b": 2}]}
    copy = plain_json(ReadOnlyObject(original), LIMITS)
    original["a"][1]["b"] = 3
    assert copy == {"a": [1, {"b": 2}]}
    assert type(copy["a"]) is list


def itself():
    inner = []
    inner.append(inner)
    return inner


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (json.loads(nested(33)), "too_deep"),
        (itself(), "too_deep"),
        ({"a": 2**63}, "bad_number"),
        ({"a": math.nan}, "bad_number"),
        ({"a": math.inf}, "bad_number"),
        ({"a": "\0"}, "bad_text"),
        ({"\ud800": 1}, "bad_text"),
        ({1: 2}, "wrong_type"),
        ({"a": b"bytes"}, "wrong_type"),
        ({"a": {1, 2}}, "wrong_type"),
        ({"a": Decimal(1)}, "wrong_type"),
        (object(), "wrong_type"),
    ],
)
def test_what_json_cannot_hold_is_refused_from_handlers_too(value, code):
    with pytest.raises(Refusal) as refused:
        plain_json(value, LIMITS)
    assert refused.value.code == code
    assert quickly_plain(value, LIMITS) is None
    assert quickly_plain({"value": value}, LIMITS) is None


@given(json_values)
def test_canonical_text_is_ascii_and_reads_as_the_same_value(value):
    text = canonical_json(value)
    assert text.isascii()
    assert repr(canonical_json(json.loads(text))) == repr(text)
