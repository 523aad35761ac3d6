"""Durations and rates as people write them in a rulebook: "1h30m", "30/s"; with their pydantic types."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any

from pydantic_core import PydanticCustomError, core_schema

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler

_MILLISECONDS = {"w": 604_800_000, "d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1000, "ms": 1}
# Digits are bounded, so that no input makes a huge integer; the longest duration is checked afterwards.
_DURATION = re.compile(
    r"\s*(?:(?P<w>\d{1,12})w)?\s*(?:(?P<d>\d{1,12})d)?\s*(?:(?P<h>\d{1,12})h)?\s*(?:(?P<m>\d{1,12})m(?!s))?"
    r"\s*(?:(?P<s>\d{1,12})s)?\s*(?:(?P<ms>\d{1,12})ms)?\s*",
    re.ASCII,
)
_RATE = re.compile(r"\s*(?P<count>\d{1,9}(?:\.\d{1,9})?)\s*(?:/\s*(?P<unit>[smhd])\s*)?", re.ASCII)
_LONGEST = timedelta(days=366)
_FASTEST = 10**9
_FORMS = 'such as "30s", "5m", "24h", "1d", "2w", "500ms" or "1h30m"'


class BadDuration(ValueError):
    """A text that is no duration, or one out of bounds; the message shows how to write it."""


class BadRate(ValueError):
    """A text or number that is no rate; the message shows how to write it."""


def parse_duration(text: str) -> timedelta:
    """Read a duration such as "1h30m": more than nothing, 366 days at most. Raises BadDuration."""
    found = _DURATION.fullmatch(text)
    if found is None or found.lastgroup is None:
        raise BadDuration(f"{_shown(text)} is not a duration; write it with units from large to small, {_FORMS}")
    amount = sum(int(digits) * _MILLISECONDS[unit] for unit, digits in found.groupdict().items() if digits)
    if amount == 0:
        raise BadDuration(f"{_shown(text)} is no time at all; a duration is longer than 0")
    # Compared as a number: a timedelta of that size might not exist.
    if amount > _LONGEST // timedelta(milliseconds=1):
        raise BadDuration(f"{_shown(text)} is longer than {_LONGEST.days} days, the most that is allowed")
    return timedelta(milliseconds=amount)


def format_duration(duration: timedelta) -> str:
    """Write a duration as `parse_duration` reads it, rounded to the millisecond; "0s" when nothing is left."""
    rest = round(duration / timedelta(milliseconds=1))
    if rest < 0:
        return "-" + format_duration(-duration)
    if rest and rest % _MILLISECONDS["w"] == 0:
        return f"{rest // _MILLISECONDS['w']}w"
    written = []
    for unit in ("d", "h", "m", "s", "ms"):
        amount, rest = divmod(rest, _MILLISECONDS[unit])
        if amount:
            written.append(f"{amount}{unit}")
    return "".join(written) or "0s"


@dataclass(frozen=True, slots=True)
class Rate:
    """How many in how many seconds: `Rate(30, 1)` is "30/s"."""

    count: float
    per_seconds: float = 1.0

    @property
    def per_second(self) -> float:
        """How many in one second."""
        return self.count / self.per_seconds

    def __str__(self) -> str:
        unit = {1.0: "s", 60.0: "m", 3600.0: "h", 86400.0: "d"}.get(self.per_seconds)
        return f"{self.count:.12g}/{unit}" if unit else f"{self.per_second:.9f}/s"

    @classmethod
    def parse(cls, value: str | float) -> Rate:
        """Read "30/s", "100/m", "1000/h", "5000/d", or a number per second. Raises BadRate."""
        if isinstance(value, str):
            found = _RATE.fullmatch(value)
            count = float(found["count"]) if found else math.nan
            unit = found["unit"] if found else None
        else:
            count, unit = (math.nan if isinstance(value, bool) or value > _FASTEST else float(value)), None
        if not 0 < count <= _FASTEST:
            raise BadRate(
                f'{_shown(value)} is not a rate above 0; write it such as "30/s", "100/m", "1000/h" or "5000/d"'
            )
        return cls(count, _MILLISECONDS[unit or "s"] / 1000)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        """Accept a rate, a text or a number; write a text."""
        return core_schema.no_info_plain_validator_function(
            _read_rate, serialization=core_schema.plain_serializer_function_ser_schema(str, when_used="json")
        )

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Describe it to editors."""
        text = {"type": "string", "pattern": r"^\s*\d+(\.\d+)?\s*(/\s*[smhd]\s*)?$", "examples": ["30/s", "1000/h"]}
        return {"anyOf": [text, {"type": "number", "exclusiveMinimum": 0}]}


class _DurationSchema:
    """Reads a duration as `parse_duration` does; a bare number is refused, as it does not say of what."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(
            _read_duration,
            serialization=core_schema.plain_serializer_function_ser_schema(format_duration, when_used="json"),
        )

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        pattern = r"^\s*(\d+w)?\s*(\d+d)?\s*(\d+h)?\s*(\d+m)?\s*(\d+s)?\s*(\d+ms)?\s*$"
        return {"type": "string", "pattern": pattern, "examples": ["30s", "5m", "1h30m", "1d"]}


Duration = Annotated[timedelta, _DurationSchema()]


def _read_duration(value: Any) -> timedelta:
    if isinstance(value, timedelta):
        return value
    if not isinstance(value, str):
        reason = f"{_shown(value)} is not a duration; write a number and its unit, {_FORMS}"
        raise PydanticCustomError("bad_duration", "{reason}", {"reason": reason})
    try:
        return parse_duration(value)
    except BadDuration as bad:
        raise PydanticCustomError("bad_duration", "{reason}", {"reason": str(bad)}) from None


def _read_rate(value: Any) -> Rate:
    if isinstance(value, Rate):
        return value
    try:
        return Rate.parse(value if isinstance(value, (str, int, float)) else "")
    except BadRate as bad:
        raise PydanticCustomError("bad_rate", "{reason}", {"reason": str(bad)}) from None


def _shown(value: object) -> str:
    text = f'"{value}"' if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else text[:57] + '..."'
