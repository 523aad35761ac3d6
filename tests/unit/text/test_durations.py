import json
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from dispatcher.text.durations import (
    BadDuration,
    BadRate,
    Duration,
    Rate,
    format_duration,
    parse_duration,
)


class Settings(BaseModel):
    wait: Duration = timedelta(seconds=5)
    rate: Rate | None = None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("30s", timedelta(seconds=30)),
        ("5m", timedelta(minutes=5)),
        ("24h", timedelta(hours=24)),
        ("1d", timedelta(days=1)),
        ("2w", timedelta(weeks=2)),
        ("500ms", timedelta(milliseconds=500)),
        ("1h30m", timedelta(minutes=90)),
        ("1m500ms", timedelta(minutes=1, milliseconds=500)),
        (" 1h 30m ", timedelta(minutes=90)),
        ("366d", timedelta(days=366)),
    ],
)
def test_duration_is_read_as_written(text, expected):
    assert parse_duration(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        *["", " ", "5", "s", "5 minutes", "5M", "1.5h", "-5m", "0s", "0h0m", "30m1h", "1h1h", "PT5M", "1y", "367d"],
        *["53w", "9" * 5000 + "s", "999999999999w", "5m\x00", "\N{ARABIC-INDIC DIGIT FIVE}m", "1h30", "1:30:00"],
    ],
)
def test_what_is_no_duration_is_refused_with_a_pattern_to_follow(text):
    with pytest.raises(BadDuration) as refused:
        parse_duration(text)
    assert len(str(refused.value)) < 300


@given(st.integers(1, 366 * 86_400_000))
def test_formatted_duration_reads_as_the_same_duration(milliseconds):
    duration = timedelta(milliseconds=milliseconds)
    assert parse_duration(format_duration(duration)) == duration


@pytest.mark.parametrize(
    ("duration", "expected"),
    [
        (timedelta(days=1, hours=2, milliseconds=5), "1d2h5ms"),
        (timedelta(weeks=2), "2w"),
        (timedelta(days=8), "8d"),
        (timedelta(seconds=90), "1m30s"),
        (timedelta(0), "0s"),
        (timedelta(seconds=-90), "-1m30s"),
    ],
)
def test_duration_is_written_with_the_largest_units_that_fit(duration, expected):
    assert format_duration(duration) == expected


@pytest.mark.parametrize(
    ("value", "per_second", "text"),
    [
        ("30/s", 30, "30/s"),
        ("120/m", 2, "120/m"),
        ("1800/h", 0.5, "1800/h"),
        ("86400/d", 1, "86400/d"),
        ("0.5/s", 0.5, "0.5/s"),
        ("30", 30, "30/s"),
        (" 30 / s ", 30, "30/s"),
        (30, 30, "30/s"),
        (0.25, 0.25, "0.25/s"),
    ],
)
def test_rate_is_read_and_written(value, per_second, text):
    rate = Rate.parse(value)
    assert rate.per_second == pytest.approx(per_second)
    assert str(rate) == text
    assert Rate.parse(str(rate)) == rate


@pytest.mark.parametrize(
    "value", ["", "0/s", "-1/s", "30/w", "30/", "/s", "fast", 0, -1, True, float("nan"), float("inf"), 10**400]
)
def test_what_is_no_rate_is_refused_with_a_pattern_to_follow(value):
    with pytest.raises(BadRate, match="30/s"):
        Rate.parse(value)


def test_models_take_durations_and_rates_as_text():
    read = Settings.model_validate({"wait": "1h30m", "rate": "100/m"})
    assert read == Settings(wait=timedelta(minutes=90), rate=Rate(100, 60))
    assert json.loads(read.model_dump_json()) == {"wait": "1h30m", "rate": "100/m"}


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        *[({"wait": value}, "bad_duration") for value in ("soon", 30, None, True, [])],
        *[({"rate": value}, "bad_rate") for value in ("fast", True, [], {})],
    ],
)
def test_models_refuse_others_with_a_code(fields, code):
    with pytest.raises(ValidationError) as refused:
        Settings.model_validate(fields)
    assert [error["type"] for error in refused.value.errors()] == [code]


def test_models_describe_durations_and_rates_to_editors():
    properties = Settings.model_json_schema()["properties"]
    assert "pattern" in properties["wait"]
    assert "30/s" in json.dumps(properties["rate"])
