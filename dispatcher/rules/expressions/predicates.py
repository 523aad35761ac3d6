"""The tests behind `is`: those of Jinja that look at a JSON value. `defined` is the compiler's, as `default` is."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dispatcher.rules.expressions.faults import EvaluationFailed
from dispatcher.rules.expressions.values import contains, equal, is_number, kind, ordered, text_of


@dataclass(frozen=True, slots=True)
class Predicate:
    """A test: its function, whose first argument is the value, and how many other arguments it takes."""

    function: Callable[..., bool]
    arguments: int = 0


def _divisible(value: Any, by: Any) -> bool:
    if not (is_number(value) and is_number(by)):
        raise EvaluationFailed(f"needs two numbers, not {kind(value)} and {kind(by)}")
    if by == 0:
        raise EvaluationFailed("division by zero")
    return bool(value % by == 0)


def _odd(value: Any) -> bool:
    return not _even(value) and bool(value % 2 == 1)


def _even(value: Any) -> bool:
    return _divisible(value, 2)


def _lower(value: Any) -> bool:
    return text_of(value).islower()


def _upper(value: Any) -> bool:
    return text_of(value).isupper()


def _in(value: Any, container: Any) -> bool:
    return contains(container, value)


def _unequal(left: Any, right: Any) -> bool:
    return not equal(left, right)


def _order(symbol: str, compare: Callable[[Any, Any], Any]) -> Predicate:
    return Predicate(lambda left, right: ordered(symbol, compare, left, right), 1)


_EQUAL = Predicate(equal, 1)
_UNEQUAL = Predicate(_unequal, 1)
_GREATER = _order(">", operator.gt)
_LESS = _order("<", operator.lt)
_AT_LEAST = _order(">=", operator.ge)
_AT_MOST = _order("<=", operator.le)
_WALKED = Predicate(lambda value: isinstance(value, str | Mapping | Sequence))

PREDICATES: dict[str, Predicate] = {
    "boolean": Predicate(lambda value: isinstance(value, bool)),
    "divisibleby": Predicate(_divisible, 1),
    "eq": _EQUAL,
    "equalto": _EQUAL,
    "even": Predicate(_even),
    "false": Predicate(lambda value: value is False),
    "float": Predicate(lambda value: isinstance(value, float)),
    "ge": _AT_LEAST,
    "greaterthan": _GREATER,
    "gt": _GREATER,
    "in": Predicate(_in, 1),
    "integer": Predicate(lambda value: isinstance(value, int) and not isinstance(value, bool)),
    "iterable": _WALKED,
    "le": _AT_MOST,
    "lessthan": _LESS,
    "lower": Predicate(_lower),
    "lt": _LESS,
    "mapping": Predicate(lambda value: isinstance(value, Mapping)),
    "ne": _UNEQUAL,
    "none": Predicate(lambda value: value is None),
    "number": Predicate(is_number),
    "odd": Predicate(_odd),
    "sequence": _WALKED,
    "string": Predicate(lambda value: isinstance(value, str)),
    "true": Predicate(lambda value: value is True),
    "upper": Predicate(_upper),
}

DEFINED_TESTS = ("defined", "undefined")
TEST_NAMES = tuple(sorted({*PREDICATES, *DEFINED_TESTS}))
