"""The pieces that compiled expressions are made of: one small function for each operation, fast for its common shapes.

Each takes the evaluators of its operands and returns an evaluator. `where` writes the source of the operation, and is
asked only when the operation fails.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from dispatcher.rules.expressions.faults import EvaluationFailed, UndefinedValue
from dispatcher.rules.expressions.paths import NOT_THERE, Evaluator, NoSuchItem, Scope, missing, subscript
from dispatcher.rules.expressions.values import bounded_text, concatenate, contains, equal, ordered, text_of, too_long

Where = Callable[[], str]

_NUMBERS = (int, float)


class Constant:
    """An evaluator whose value never changes."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __call__(self, _scope: Scope) -> Any:
        """Return the value, whatever the scope."""
        return self.value


def _unequal(left: Any, right: Any) -> bool:
    return not equal(left, right)


def _within(item: Any, container: Any) -> bool:
    return contains(container, item)


def _without(item: Any, container: Any) -> bool:
    return not contains(container, item)


# What each comparison does, by Jinja's name for it.
COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "eq": equal,
    "ne": _unequal,
    "lt": partial(ordered, "<", operator.lt),
    "lteq": partial(ordered, "<=", operator.le),
    "gt": partial(ordered, ">", operator.gt),
    "gteq": partial(ordered, ">=", operator.ge),
    "in": _within,
    "notin": _without,
}
_ORDERS: dict[str, Callable[[Any, Any], Any]] = {
    "lt": operator.lt,
    "lteq": operator.le,
    "gt": operator.gt,
    "gteq": operator.ge,
}


def applied(function: Callable[..., Any], operands: Sequence[Evaluator], where: Where) -> Evaluator:
    """Apply `function` to the values of the operands."""
    first, *others = operands
    if all(isinstance(other, Constant) for other in others):
        constants = tuple(other.value for other in others if isinstance(other, Constant))

        def with_constants(scope: Scope) -> Any:
            value = first(scope)
            try:
                return function(value, *constants)
            except EvaluationFailed as fault:
                raise fault.at(where()) from None
            except UndefinedValue as fault:
                raise fault.at(where()) from None

        return with_constants

    def with_operands(scope: Scope) -> Any:
        values = [operand(scope) for operand in operands]
        try:
            return function(*values)
        except EvaluationFailed as fault:
            raise fault.at(where()) from None
        except UndefinedValue as fault:
            raise fault.at(where()) from None

    return with_operands


def chained(function: Callable[[Any, Any], Any], operands: Sequence[Evaluator], where: Where) -> Evaluator:
    """Fold the operands from the left: a + b + c."""
    if len(operands) == 2:
        return applied(function, operands, where)
    first, *others = operands

    def fold(scope: Scope) -> Any:
        value = first(scope)
        for operand in others:
            other = operand(scope)
            try:
                value = function(value, other)
            except EvaluationFailed as fault:
                raise fault.at(where()) from None
        return value

    return fold


def joined_by_tilde(operands: Sequence[Evaluator], where: Where) -> Evaluator:
    """Join the operands as text."""
    return applied(lambda *values: concatenate(values), operands, where)


def compared(name: str, left: Evaluator, right: Evaluator, where: Where) -> Evaluator:
    """Compare two values."""
    if isinstance(right, Constant):
        constant = right.value
        if name == "eq" and isinstance(constant, str):
            return lambda scope: left(scope) == constant
        if name == "ne" and isinstance(constant, str):
            return lambda scope: left(scope) != constant
        if name in _ORDERS and constant.__class__ in _NUMBERS:
            return _ordered_by_constant(_ORDERS[name], COMPARISONS[name], left, constant, where)
    if name in ("eq", "ne"):
        compare = COMPARISONS[name]
        return lambda scope: compare(left(scope), right(scope))
    return applied(COMPARISONS[name], (left, right), where)


def _ordered_by_constant(
    fast: Callable[[Any, Any], Any], slow: Callable[[Any, Any], bool], left: Evaluator, constant: Any, where: Where
) -> Evaluator:
    def order(scope: Scope) -> Any:
        value = left(scope)
        if value.__class__ in _NUMBERS:
            return fast(value, constant)
        try:
            return slow(value, constant)
        except EvaluationFailed as fault:
            raise fault.at(where()) from None

    return order


def path_compared(name: str, root: str, keys: Sequence[str], constant: str) -> Evaluator | None:
    """Compare a short path with a text: the commonest condition, without inner calls."""
    if root == "event" or len(keys) not in (1, 2) or name not in ("eq", "ne"):
        return None
    one, two = keys[0], keys[-1]
    if len(keys) == 1 and name == "eq":

        def one_equal(scope: Scope) -> bool:
            try:
                return scope[root][one] == constant  # type: ignore[no-any-return]
            except NOT_THERE:
                raise missing(scope, root, keys) from None

        return one_equal
    if len(keys) == 1:

        def one_unequal(scope: Scope) -> bool:
            try:
                return scope[root][one] != constant  # type: ignore[no-any-return]
            except NOT_THERE:
                raise missing(scope, root, keys) from None

        return one_unequal
    compare = operator.eq if name == "eq" else operator.ne

    def two_compared(scope: Scope) -> bool:
        try:
            return bool(compare(scope[root][one][two], constant))
        except NOT_THERE:
            raise missing(scope, root, keys) from None

    return two_compared


def among(left: Evaluator, texts: frozenset[str], *, negated: bool) -> Evaluator:
    """Look for a value in a list of literal texts."""
    if negated:

        def not_among(scope: Scope) -> bool:
            value = left(scope)
            return not isinstance(value, str) or value not in texts

        return not_among

    def is_among(scope: Scope) -> bool:
        value = left(scope)
        return isinstance(value, str) and value in texts

    return is_among


def comparison_chain(first: Evaluator, links: Sequence[tuple[str, Evaluator]], where: Where) -> Evaluator:
    """Compare as in `1 <= data.age < 18`: every operand is evaluated once, until one link does not hold."""
    steps = tuple((COMPARISONS[name], operand) for name, operand in links)

    def chain(scope: Scope) -> bool:
        left = first(scope)
        for compare, operand in steps:
            right = operand(scope)
            try:
                if not compare(left, right):
                    return False
            except EvaluationFailed as fault:
                raise fault.at(where()) from None
            left = right
        return True

    return chain


def conjunction(operands: Sequence[Evaluator]) -> Evaluator:
    """Return the first value that is false, else the last."""
    if len(operands) == 2:
        left, right = operands
        return lambda scope: left(scope) and right(scope)

    def every(scope: Scope) -> Any:
        value: Any = True
        for operand in operands:
            value = operand(scope)
            if not value:
                return value
        return value

    return every


def disjunction(operands: Sequence[Evaluator]) -> Evaluator:
    """Return the first value that is true, else the last."""
    if len(operands) == 2:
        left, right = operands
        return lambda scope: left(scope) or right(scope)

    def some(scope: Scope) -> Any:
        value: Any = False
        for operand in operands:
            value = operand(scope)
            if value:
                return value
        return value

    return some


def choice(condition: Evaluator, then: Evaluator, otherwise: Evaluator | None, where: Where) -> Evaluator:
    """Evaluate one of two; without an `else`, nothing is there when the condition does not hold."""
    if otherwise is not None:
        return lambda scope: then(scope) if condition(scope) else otherwise(scope)

    def when_true(scope: Scope) -> Any:
        if condition(scope):
            return then(scope)
        raise UndefinedValue(where(), "the condition does not hold, and there is no else")

    return when_true


def step(holder: Evaluator, key: Evaluator, where: Where, holder_written: Where) -> Evaluator:
    """Read `holder[key]`."""

    def read(scope: Scope) -> Any:
        value, name = holder(scope), key(scope)
        try:
            return subscript(value, name)
        except NoSuchItem as error:
            raise UndefinedValue(where(), f"{holder_written()} {error}") from None

    return read


def defaulted(value: Evaluator, fallback: Evaluator, when_false: Evaluator) -> Evaluator:
    """Stand in for what is not there, and for what is false if that is asked for."""
    if isinstance(when_false, Constant) and not when_false.value:

        def if_missing(scope: Scope) -> Any:
            try:
                return value(scope)
            except UndefinedValue:
                return fallback(scope)

        return if_missing

    def if_missing_or_false(scope: Scope) -> Any:
        try:
            found = value(scope)
        except UndefinedValue:
            return fallback(scope)
        return found if found or not when_false(scope) else fallback(scope)

    return if_missing_or_false


def quickly_defaulted(read: Evaluator, fallback: Evaluator) -> Evaluator:
    """Stand in for a plain path that is not there, without the cost of saying what is missing."""

    def if_missing(scope: Scope) -> Any:
        try:
            return read(scope)
        except NOT_THERE:
            pass
        return fallback(scope)

    return if_missing


def defined(value: Evaluator, not_there: tuple[type[Exception], ...], *, negated: bool) -> Evaluator:
    """Ask whether a value is there."""

    def is_there(scope: Scope) -> bool:
        try:
            value(scope)
        except not_there:
            return negated
        return not negated

    return is_there


def text_joined(parts: Sequence[str | Evaluator], places: Sequence[Where]) -> Evaluator:
    """Render literal texts and values in turn as one text."""

    def render(scope: Scope) -> str:
        texts = []
        size = 0
        for part in parts:
            if part.__class__ is str:
                text: Any = part
            else:
                text = part(scope)  # type: ignore[operator]
                if text.__class__ is not str:
                    try:
                        text = text_of(text)
                    except EvaluationFailed as fault:
                        raise fault.at(places[parts.index(part)]()) from None
            size += len(text)
            texts.append(text)
        if size > _SURELY_SHORT:
            if size > _SURELY_LONG:
                too_long()
            return bounded_text("".join(texts))
        return "".join(texts)

    return render


_SURELY_SHORT = 16 * 1024
_SURELY_LONG = 64 * 1024
