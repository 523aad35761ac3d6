import importlib
import subprocess
import sys

import phonenumbers
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dispatcher.text import numbers
from dispatcher.text.numbers import BadNumber, mask_number, normalise_number

CODES = sorted(map(str, phonenumbers.COUNTRY_CODE_TO_REGION_CODE))
REGIONS = sorted(phonenumbers.SUPPORTED_REGIONS)


def told_by_the_library(text, region):
    """Return what `phonenumbers` makes of the text, or None where it is no possible number that can be texted."""
    try:
        number = phonenumbers.parse(text, region)
    except phonenumbers.NumberParseException:
        return None
    if number.extension or not phonenumbers.is_possible_number(number):
        return None
    return phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)


def told_by_us(text, region):
    try:
        return normalise_number(text, region)
    except BadNumber:
        return None


@pytest.mark.parametrize(
    ("raw", "region", "expected"),
    [
        ("+27821234567", None, "+27821234567"),
        ("+27 82 123 4567", None, "+27821234567"),
        ("+27 (0)82 123-4567", None, "+27821234567"),
        ("0821234567", "ZA", "+27821234567"),
        ("082 123 4567", "ZA", "+27821234567"),
        ("082-123-4567", "za", "+27821234567"),
        ("27821234567", "ZA", "+27821234567"),
        ("0027821234567", "ZA", "+27821234567"),
        ("821234567", "ZA", "+27821234567"),
        ("tel:+27-82-123-4567", None, "+27821234567"),
        (27821234567, "ZA", "+27821234567"),
        (821234567, "ZA", "+27821234567"),
        ("٠٨٢١٢٣٤٥٦٧", "ZA", "+27821234567"),
        ("+٢٧٨٢١٢٣٤٥٦٧", None, "+27821234567"),
        ("+254712345678", "ZA", "+254712345678"),  # a country code rules over the region
        ("011 15 2345 6789", "AR", "+5491123456789"),
        ("(415) 555-2671", "US", "+14155552671"),
        ("1 415 555 2671", "US", "+14155552671"),
        ("06 698 1234", "IT", "+39066981234"),  # Italy keeps its zero
        ("8 (701) 234-56-78", "KZ", "+77012345678"),
    ],
)
def test_every_spelling_of_a_number_becomes_the_same_e164_text(raw, region, expected):
    assert normalise_number(raw, region) == expected


@pytest.mark.parametrize(
    "raw",
    [
        *["", "   ", "abc", "+", "12", "+27", "+27821", "+278212345678901", "+999123456789", "+27821234567x5"],
        *["0" * 10_000, "\ud800", "\x00", "+27\x00", "¹²³⁴⁵⁶⁷⁸⁹"],
        *[None, True, 1.5, -27821234567, 10**4000, {"a": 1}, [1]],
    ],
)
def test_what_is_no_possible_number_is_refused(raw):
    with pytest.raises(BadNumber):
        normalise_number(raw, "ZA")


def test_number_without_country_code_and_region_says_what_to_set():
    with pytest.raises(BadNumber, match=r"`region` of the account, `defaults\.region` or DISPATCHER_DEFAULT_REGION"):
        normalise_number("0821234567", None)


def test_unknown_region_is_named():
    with pytest.raises(BadNumber, match='"ZZ" is not a region'):
        normalise_number("0821234567", "zz")


def test_messages_do_not_repeat_the_number():
    with pytest.raises(BadNumber) as refused:
        normalise_number("+27821234567890", None)
    assert "8212345" not in str(refused.value)


@settings(max_examples=500)
@given(st.sampled_from(CODES), st.text("0123456789", max_size=16), st.none() | st.sampled_from(REGIONS))
@example("1", "4155552671", None)
@example("54", "91123456789", None)
@example("39", "0669812345", None)
@example("800", "12345678", None)
def test_international_spelling_means_what_the_library_says(code, national, region):
    text = f"+{code}{national}"
    assert told_by_us(text, region) == told_by_the_library(text, region)


@settings(max_examples=500)
@given(st.text("0123456789", max_size=16), st.sampled_from(REGIONS))
@example("0821234567", "ZA")
@example("27821234567", "ZA")
@example("0027821234567", "ZA")
def test_national_spelling_means_what_the_library_says(text, region):
    assert told_by_us(text, region) == told_by_the_library(text, region)


@settings(max_examples=300)
@given(st.sampled_from(REGIONS), st.sampled_from(["", "0", "1", "8", "CC", "00CC", "0CC"]), st.data())
def test_likely_numbers_of_every_region_mean_what_the_library_says(region, before, data):
    kind = data.draw(st.sampled_from([phonenumbers.PhoneNumberType.MOBILE, phonenumbers.PhoneNumberType.FIXED_LINE]))
    sample = phonenumbers.example_number_for_type(region, kind)
    if sample is None:
        return
    digits = phonenumbers.national_significant_number(sample)
    at = data.draw(st.integers(0, len(digits) - 1))
    digits = digits[:at] + data.draw(st.text("0123456789", min_size=0, max_size=2)) + digits[at + 1 :]
    text = before.replace("CC", str(sample.country_code)) + digits
    assert told_by_us(text, region) == told_by_the_library(text, region)


@given(st.text(max_size=30), st.none() | st.sampled_from(["ZA", "US", "XX"]))
def test_no_text_ends_in_anything_but_a_number_or_a_refusal(text, region):
    result = told_by_us(text, region)
    assert result is None or result.startswith("+")


def test_plain_spellings_are_settled_without_the_library(monkeypatch):
    normalise_number("+27821234567", "ZA")  # loads the tables
    monkeypatch.setattr(numbers, "_read_fully", None)
    assert normalise_number("+27821234567", None) == "+27821234567"
    assert normalise_number("0821234567", "ZA") == "+27821234567"
    assert normalise_number("27821234567", "ZA") == "+27821234567"


@pytest.mark.parametrize(
    ("number", "masked"),
    [("+27821234567", "+27*****4567"), ("0821234567", "08****4567"), ("12345", "***45"), ("12", "**"), ("", "")],
)
def test_masked_number_keeps_only_its_ends(number, masked):
    assert mask_number(number) == masked


@pytest.mark.parametrize(
    ("number", "parts"),
    [
        ("+27821234567", ("27", "821234567")),
        ("+12025550123", ("1", "2025550123")),
        ("+26771234567", ("267", "71234567")),
        ("+8612345678901", ("86", "12345678901")),
    ],
)
def test_number_splits_into_calling_code_and_national_part(number, parts):
    assert numbers.split_number(number) == parts


def test_country_whose_tables_cannot_be_read_keeps_no_other_from_being_read(monkeypatch):
    def fails(name):
        raise OSError(24, "Too many open files", name)

    numbers._plan.cache_clear()
    monkeypatch.setattr(importlib, "import_module", fails)
    with pytest.raises(OSError, match="Too many open files"):
        normalise_number("+4915112345678", None)
    monkeypatch.undo()
    assert not phonenumbers.PhoneMetadata._metadata_lock.locked()
    assert normalise_number("+4915112345678", None) == "+4915112345678"


def test_numbers_of_no_country_are_not_remembered():
    numbers._plan.cache_clear()
    assert numbers.split_number("+0ab1") == ("", "0ab1")
    assert numbers._plan.cache_info().currsize == 0


def test_number_loads_the_tables_of_its_own_country_alone():
    program = (
        "import sys; from dispatcher.text.numbers import normalise_number; normalise_number('+27821234567', None);"
        "print(*sorted(name for name in sys.modules if name.startswith('phonenumbers.data.region_')))"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["phonenumbers.data.region_ZA"]
