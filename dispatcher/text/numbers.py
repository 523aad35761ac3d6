"""Phone numbers: every spelling of one number becomes the same E.164 text. Knows nothing of contacts or opt-outs.

What `phonenumbers` says is right here, and it takes some 12 µs to say it. Numbers that are spelt plainly are
settled by three table look-ups which the tests prove to agree with it; everything else is left to the library.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from typing import NamedTuple

# Longer than any spelling of a number; what is longer is not even shown to the parser, nor repeated in messages.
_LONGEST_SPELLING = 60


class BadNumber(ValueError):
    """What was given is not a phone number, or cannot be told without a region; the message says which."""


class _NumberPlan(NamedTuple):
    """What is needed of a calling code's metadata to read a plain spelling."""

    prefix: re.Pattern[str] | None
    prefix_is_plain: bool
    national: re.Pattern[str]
    exit_code: re.Pattern[str]
    lengths: frozenset[int]


def normalise_number(raw: object, region: str | None) -> str:
    """Return the number as E.164, such as "+27821234567".

    A number without "+" is read in `region`, such as "ZA". Possible numbers are accepted, not only valid ones:
    tables of number ranges age, people's numbers do not wait for them. Raises BadNumber.
    """
    if type(raw) is str:
        plain = _read_plainly(raw, region)
        return plain if plain is not None else _read_fully(raw, region)
    if isinstance(raw, int) and not isinstance(raw, bool):
        if not 0 <= raw < 10**17:
            raise BadNumber(f"a phone number has 5 to 15 digits and no sign, not {_shown(raw)}")
        return normalise_number(str(raw), region)
    if isinstance(raw, str):
        return normalise_number(str.__str__(raw), region)
    raise BadNumber(f"a phone number is a text of digits, not {_shown(raw)}")


def mask_number(text: str) -> str:
    """Return the number for a log: "+27*****4567". Short ones keep only their last two characters."""
    if len(text) < 9:
        return "*" * (len(text) - 2) + text[-2:] if len(text) > 2 else "*" * len(text)
    head = 3 if text.startswith("+") else 2
    return text[:head] + "*" * (len(text) - head - 4) + text[-4:]


@cache
def known_regions() -> frozenset[str]:
    """Return the regions in which numbers can be read, such as "ZA"."""
    import phonenumbers  # noqa: PLC0415

    return frozenset(phonenumbers.SUPPORTED_REGIONS)


def split_number(number: str) -> tuple[str, str]:
    """Return the calling code and the national part of an E.164 number: ("27", "821234567") of "+27821234567"."""
    digits = number.removeprefix("+")
    codes = _calling_codes()
    size = next((size for size in (2, 3, 1) if digits[:size] in codes), 0)
    return digits[:size], digits[size:]


def _read_plainly(text: str, region: str | None) -> str | None:
    """Settle a plain spelling, or return None to have `phonenumbers` decide."""
    if text[:1] == "+":
        digits = text[1:]
        if not (digits.isascii() and digits.isdigit()):
            return None
        for size in (2, 3, 1):
            plan = _plan(digits[:size])
            if plan is not None:
                national = digits[size:]
                return text if len(national) in plan.lengths and _stands_alone(national, plan) else None
        return None
    if region is None or not (text.isascii() and text.isdigit()):
        return None
    code = _code_of(region)
    if code is None:
        return None
    plan = _plan(code)
    if plan is None or plan.exit_code.match(text):
        return None
    if text.startswith(code):
        # Written with the country's code but no "+": only when the rest is a number and the whole is not.
        national = text[len(code) :]
        if plan.national.fullmatch(text) or not plan.national.fullmatch(national):
            return None
        return "+" + text if len(national) in plan.lengths and _stands_alone(national, plan) else None
    prefixed = plan.prefix.match(text) if plan.prefix is not None else None
    if prefixed is None:
        return f"+{code}{text}" if text[0] != "0" and len(text) in plan.lengths else None
    national = text[prefixed.end() :]
    settled = (
        plan.prefix_is_plain
        and national[:1] not in ("", "0")
        and len(national) in plan.lengths
        and plan.national.fullmatch(national) is not None
    )
    return f"+{code}{national}" if settled else None


def _stands_alone(national: str, plan: _NumberPlan) -> bool:
    """Whether nothing would be stripped from this national number."""
    return national[0] != "0" and (plan.prefix is None or plan.prefix.match(national) is None)


@lru_cache(maxsize=65536)
def _read_fully(text: str, region: str | None) -> str:
    # Imported here: it takes 30 ms, which `dispatcher --help` need not wait for.
    import phonenumbers  # noqa: PLC0415

    if not text.strip():
        raise BadNumber("the phone number is empty")
    if len(text) > _LONGEST_SPELLING:
        raise BadNumber(f"a phone number has at most 15 digits, this text has {len(text)} characters")
    where = region.upper() if region else None
    if where is not None and where not in phonenumbers.SUPPORTED_REGIONS:
        raise BadNumber(f'"{where}" is not a region; a region has two letters, such as ZA, KE or GB')
    try:
        number = phonenumbers.parse(text, where)
    except phonenumbers.NumberParseException as problem:
        if where is None and problem.error_type == phonenumbers.NumberParseException.INVALID_COUNTRY_CODE:
            if "+" in text or "\N{FULLWIDTH PLUS SIGN}" in text:
                raise BadNumber(f"{_shown(text)} begins with a country code that does not exist") from None
            raise BadNumber(
                f'{_shown(text)} has no "+" and country code, and no region is set to read it in: set `region` of the '
                "account, `defaults.region` or DISPATCHER_DEFAULT_REGION"
            ) from None
        raise BadNumber(f"{_shown(text)} is not a phone number") from None
    if number.extension:
        raise BadNumber(f"{_shown(text)} has an extension, which no text or call from here can reach")
    if not phonenumbers.is_possible_number(number):
        reason = phonenumbers.is_possible_number_with_reason(number)
        how = {
            phonenumbers.ValidationResult.TOO_SHORT: "too short",
            phonenumbers.ValidationResult.TOO_LONG: "too long",
            phonenumbers.ValidationResult.IS_POSSIBLE_LOCAL_ONLY: "a local number without its area code",
        }.get(reason, "of a length that no number has")
        raise BadNumber(f"{_shown(text)} is {how} for a number of +{number.country_code}")
    written: str = phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)
    return written


@cache
def _plan(code: str) -> _NumberPlan | None:
    """Return the number plan of a calling code, None where there is none; each country is loaded when it is met."""
    regions = _calling_codes().get(code)
    if regions is None:
        return None
    import phonenumbers  # noqa: PLC0415

    # Before the library does it: that holds a lock meanwhile, and keeps it for ever when the file cannot be read.
    country = code if regions[0] == phonenumbers.REGION_CODE_FOR_NON_GEO_ENTITY else regions[0]
    importlib.import_module(f"phonenumbers.data.region_{country}")
    found = phonenumbers.PhoneMetadata.metadata_for_region_or_calling_code(int(code), regions[0])
    if found is None or found.general_desc is None or not found.general_desc.national_number_pattern:
        return None
    prefix = found.national_prefix_for_parsing
    compiled = re.compile(prefix) if prefix else None
    return _NumberPlan(
        prefix=compiled,
        prefix_is_plain=compiled is None or (compiled.groups == 0 and not found.national_prefix_transform_rule),
        national=re.compile(found.general_desc.national_number_pattern),
        exit_code=re.compile(found.international_prefix or "NonMatch"),
        # Two digits are the least that is parsed as a number, seventeen the most.
        lengths=frozenset(length for length in found.general_desc.possible_length if 2 <= length <= 17),
    )


@cache
def _calling_codes() -> Mapping[str, Sequence[str]]:
    """Return the regions of each calling code, the main one first. Calling codes begin no other calling code."""
    import phonenumbers  # noqa: PLC0415

    return {str(code): regions for code, regions in phonenumbers.COUNTRY_CODE_TO_REGION_CODE.items()}


@cache
def _code_of(region: str) -> str | None:
    """Return the calling code of a region that leads its number plan; None leaves the rest to the library."""
    import phonenumbers  # noqa: PLC0415

    code = phonenumbers.country_code_for_region(region.upper())
    leads = code and phonenumbers.region_code_for_country_code(code) == region.upper()
    return str(code) if leads and _plan(str(code)) is not None else None


def _shown(value: object) -> str:
    """Show what was given, without a person's number: a message may reach a log."""
    if isinstance(value, str):
        return f'"{mask_number(value)}"' if len(value) <= _LONGEST_SPELLING else f"a text of {len(value)} characters"
    if isinstance(value, int) and not isinstance(value, bool):
        return "a negative number" if value < 0 else "a larger number"
    return {
        "NoneType": "null",
        "bool": "true or false",
        "float": "a number with a fraction",
        "dict": "an object",
        "list": "a list",
    }.get(type(value).__name__, type(value).__name__)
