"""The filters that expressions offer: those of Jinja that are pure, with our kinds and bounds.

A filter of text takes what its value would be rendered as; a filter of lists walks at most MAX_ITEMS. `default` is not
here: it looks at what is missing, so the compiler knows it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, quote_plus

from dispatcher.rules.expressions.faults import EvaluationFailed, UndefinedValue
from dispatcher.rules.expressions.values import (
    MAX_BUILT,
    MAX_TEXT,
    add,
    bounded_number,
    bounded_text,
    fits,
    is_number,
    items_of,
    json_text,
    kind,
    text_of,
    too_long,
)

REQUIRED: Any = object()

_WORD_STARTS = re.compile(r"([-\s({\[<]+)")
_WORD = re.compile(r"\w+")
_LONGEST_NUMBER = 400  # characters; no float has more, and int() of more takes time
_MOST_DIGITS = 20


@dataclass(frozen=True, slots=True)
class Filter:
    """A filter: its function, whose first argument is the value, and the names and defaults of the others."""

    function: Callable[..., Any]
    parameters: tuple[tuple[str, Any], ...] = ()
    gives_text: bool = False


def _text(value: Any) -> str:
    return value if value.__class__ is str else text_of(value)


def _title(value: Any) -> str:
    words = _WORD_STARTS.split(_text(value))
    return bounded_text("".join([word[0].upper() + word[1:].lower() for word in words if word]))


def _upper(value: Any) -> str:
    return bounded_text(_text(value).upper())


def _lower(value: Any) -> str:
    return bounded_text(_text(value).lower())


def _capitalize(value: Any) -> str:
    return bounded_text(_text(value).capitalize())


def _trim(value: Any, characters: Any) -> str:
    return bounded_text(_text(value).strip(None if characters is None else _text(characters)))


def _string(value: Any) -> str:
    return _text(value)


def _replace(value: Any, old: Any, new: Any, count: Any) -> str:
    text, old_text, new_text = _text(value), _text(old), _text(new)
    limit = -1 if count is None else _whole("count", count)
    found = text.count(old_text)
    times = found if limit < 0 else min(found, limit)
    if len(text) + times * (len(new_text) - len(old_text)) > MAX_TEXT:
        too_long()
    return bounded_text(text.replace(old_text, new_text, limit))


def _truncate(value: Any, length: Any, killwords: Any, end: Any, leeway: Any) -> str:
    text, ending = _text(value), _text(end)
    longest, spare = _whole("length", length), _whole("leeway", leeway)
    if longest < len(ending) or spare < 0:
        raise EvaluationFailed(f"length must be at least that of the ending, {len(ending)}, and leeway at least 0")
    if len(text) <= longest + spare:
        return bounded_text(text)
    cut = text[: longest - len(ending)]
    return bounded_text((cut if killwords else cut.rsplit(" ", 1)[0]) + ending)


def _wordcount(value: Any) -> int:
    return sum(1 for _ in _WORD.finditer(_text(value)))


def _urlencode(value: Any) -> str:
    """Quote as Jinja does: a text for a path, an object or a list of pairs as a query."""
    if isinstance(value, Mapping):
        pairs = list(value.items())
    elif isinstance(value, Sequence) and not isinstance(value, str):
        pairs = [tuple(items_of(pair)) for pair in items_of(value)]
        if any(len(pair) != 2 for pair in pairs):
            raise EvaluationFailed("urlencode needs a list of pairs")
    else:
        return bounded_text(quote(bounded_text(_text(value)), safe="/", errors="replace"))
    return bounded_text("&".join(f"{_quoted(key)}={_quoted(item)}" for key, item in pairs))


def _quoted(value: Any) -> str:
    return quote_plus(bounded_text(_text(value)), errors="replace")


def _length(value: Any) -> int:
    if isinstance(value, str | Mapping | Sequence):
        return len(value)
    raise EvaluationFailed(f"a text, a list or an object has a length, {kind(value)} has none")


def _int(value: Any, default: Any, base: Any) -> Any:
    """Read a whole number as Jinja does: what is none gives the default."""
    radix = _whole("base", base)
    if radix != 0 and not 2 <= radix <= 36:
        raise EvaluationFailed("base must be from 2 to 36")
    if isinstance(value, str):
        if len(value) > _LONGEST_NUMBER:
            return default
        try:
            return bounded_number(int(value, radix))
        except ValueError:
            pass
    elif not isinstance(value, int | float):
        return default
    try:
        return bounded_number(int(value) if isinstance(value, int) else int(float(value)))
    except (ValueError, OverflowError):
        return default


def _float(value: Any, default: Any) -> Any:
    """Read a number as Jinja does; what is none, infinity included, gives the default."""
    if isinstance(value, str | int | float) and not (isinstance(value, str) and len(value) > _LONGEST_NUMBER):
        try:
            number = float(value)
        except (ValueError, OverflowError):
            return default
        if math.isfinite(number):
            return number
    return default


def _round(value: Any, precision: Any, method: Any) -> Any:
    number, digits = _number(value), _whole("precision", precision)
    if abs(digits) > _MOST_DIGITS:
        raise EvaluationFailed(f"precision must be from -{_MOST_DIGITS} to {_MOST_DIGITS}")
    try:
        match method:
            case "common":
                return bounded_number(round(number, digits))
            case "ceil":
                return bounded_number(math.ceil(number * 10**digits) / 10**digits)
            case "floor":
                return bounded_number(math.floor(number * 10**digits) / 10**digits)
    except OverflowError as error:
        raise EvaluationFailed("the number is too large") from error
    raise EvaluationFailed("method must be common, ceil or floor")


def _abs(value: Any) -> Any:
    return bounded_number(abs(_number(value)))


def _join(value: Any, between: Any) -> str:
    separator = _text(between)
    texts, size = [], 0
    for item in items_of(value):
        text = _text(item)
        size += len(text) + len(separator)
        if size - len(separator) > MAX_TEXT:
            too_long()
        texts.append(text)
    return bounded_text(separator.join(texts))


def _end(index: int) -> Callable[[Any], Any]:
    def end(value: Any) -> Any:
        if not isinstance(value, str | Mapping | Sequence):
            raise EvaluationFailed(f"needs a list, not {kind(value)}")
        if not value:
            raise UndefinedValue("", f"the {kind(value)} is empty")
        return list(value)[index] if isinstance(value, Mapping) else value[index]

    return end


def _list(value: Any) -> list[Any]:
    return items_of(value)


def _reverse(value: Any) -> Any:
    return bounded_text(value[::-1]) if isinstance(value, str) else items_of(value)[::-1]


def _folded(items: list[Any], case_sensitive: Any) -> Callable[[Any], Any]:
    """Return the key to order by, once it is sure that the items can be ordered."""
    kinds = {kind(item) for item in items}
    if len(kinds) > 1 or not kinds <= {"text", "number"}:
        raise EvaluationFailed(f"only numbers or texts have an order, not {' and '.join(sorted(kinds))}")
    if case_sensitive or "text" not in kinds:
        return lambda item: item
    return str.lower


def _sort(value: Any, reverse: Any, case_sensitive: Any) -> list[Any]:
    items = items_of(value)
    return sorted(items, key=_folded(items, case_sensitive), reverse=bool(reverse)) if items else []


def _unique(value: Any, case_sensitive: Any) -> list[Any]:
    first_of: dict[tuple[str, Any], Any] = {}
    items = items_of(value)
    if not fits(items, MAX_BUILT):
        raise EvaluationFailed("the list is larger than an event may be")
    for item in items:
        same = item.lower() if isinstance(item, str) and not case_sensitive else item
        if isinstance(item, Mapping | Sequence) and not isinstance(item, str):
            same = json_text(item)
        first_of.setdefault((kind(item), same), item)
    return list(first_of.values())


def _extreme(choose: Callable[..., Any]) -> Callable[[Any, Any], Any]:
    def extreme(value: Any, case_sensitive: Any) -> Any:
        items = items_of(value)
        if not items:
            raise UndefinedValue("", f"the {kind(value)} is empty")
        return choose(items, key=_folded(items, case_sensitive))

    return extreme


def _sum(value: Any, start: Any) -> Any:
    total = _number(start)
    for item in items_of(value):
        total = add(total, _number(item))
    return total


def _number(value: Any) -> Any:
    if not is_number(value):
        raise EvaluationFailed(f"needs a number, not {kind(value)}")
    return value


def _whole(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise EvaluationFailed(f"{name} must be a whole number, not {kind(value)}")
    return value


_CASE_SENSITIVE = ("case_sensitive", False)

FILTERS: dict[str, Filter] = {
    "abs": Filter(_abs),
    "capitalize": Filter(_capitalize, gives_text=True),
    "count": Filter(_length),
    "first": Filter(_end(0)),
    "float": Filter(_float, (("default", 0.0),)),
    "int": Filter(_int, (("default", 0), ("base", 10))),
    "join": Filter(_join, (("d", ""),), gives_text=True),
    "last": Filter(_end(-1)),
    "length": Filter(_length),
    "list": Filter(_list),
    "lower": Filter(_lower, gives_text=True),
    "max": Filter(_extreme(max), (_CASE_SENSITIVE,)),
    "min": Filter(_extreme(min), (_CASE_SENSITIVE,)),
    "replace": Filter(_replace, (("old", REQUIRED), ("new", REQUIRED), ("count", None)), gives_text=True),
    "reverse": Filter(_reverse),
    "round": Filter(_round, (("precision", 0), ("method", "common"))),
    "sort": Filter(_sort, (("reverse", False), _CASE_SENSITIVE)),
    "string": Filter(_string, gives_text=True),
    "sum": Filter(_sum, (("start", 0),)),
    "title": Filter(_title, gives_text=True),
    "tojson": Filter(json_text, gives_text=True),
    "trim": Filter(_trim, (("chars", None),), gives_text=True),
    "truncate": Filter(
        _truncate, (("length", 255), ("killwords", False), ("end", "..."), ("leeway", 5)), gives_text=True
    ),
    "unique": Filter(_unique, (_CASE_SENSITIVE,)),
    "upper": Filter(_upper, gives_text=True),
    "urlencode": Filter(_urlencode, gives_text=True),
    "wordcount": Filter(_wordcount),
}

DEFAULT_FILTERS = ("default", "d")
FILTER_NAMES = tuple(sorted({*FILTERS, *DEFAULT_FILTERS}))
