"""What JSON values mean to expressions: their kinds in words, their text, equality, order, arithmetic and bounds.

Knows nothing of syntax. Every operation is bounded in memory and time whatever its operands are.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from dispatcher.rules.expressions.faults import EvaluationFailed

MAX_TEXT = 64 * 1024  # bytes of UTF-8 in a text that an expression builds
MAX_ITEMS = 10_000  # items that a filter walks or a sum of lists holds
MAX_BUILT = 1024 * 1024  # characters in an object or a list that an expression builds: the limit of an event

_WORST_UTF8 = 4
_INTEGER_BOUND = 2**63
_SHORT = frozenset({int, float, bool, type(None)})


def kind(value: Any) -> str:
    """Name the JSON type of `value` as people know it."""
    if isinstance(value, str):
        return "text"
    if isinstance(value, bool):
        return "true/false"
    if isinstance(value, int | float):
        return "number"
    if value is None:
        return "null"
    if isinstance(value, Mapping):
        return "object"
    if isinstance(value, Sequence):
        return "list"
    return type(value).__name__


def is_number(value: Any) -> bool:
    """Whether `value` is a number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def bounded_text(text: str) -> str:
    """Return `text` if it keeps to MAX_TEXT."""
    length = len(text)
    if length * _WORST_UTF8 > MAX_TEXT and (length > MAX_TEXT or len(text.encode("utf-8", "surrogatepass")) > MAX_TEXT):
        too_long()
    return text


def too_long() -> NoReturn:
    """Refuse a text above MAX_TEXT."""
    raise EvaluationFailed(f"the text would be longer than {MAX_TEXT // 1024} KiB")


def bounded_number(number: Any) -> Any:
    """Return `number` if events can carry it: an integer of 64 bits, a finite float."""
    if isinstance(number, float):
        if not math.isfinite(number):
            raise EvaluationFailed("the number is too large")
    elif isinstance(number, complex):
        raise EvaluationFailed("the result is not a real number")
    elif not -_INTEGER_BOUND <= number < _INTEGER_BOUND:
        raise EvaluationFailed("the number does not fit into 64 bits")
    return number


def fits(value: Any, budget: int) -> bool:
    """Whether `value` as JSON takes about `budget` characters at most; stops counting when it does not."""
    stack: list[Any] = [(value,)]
    while stack:
        holder = stack.pop()
        budget -= 2 * len(holder)
        if budget < 0:
            return False
        if isinstance(holder, Mapping):
            budget -= sum(map(len, holder)) + 2 * len(holder)
            holder = holder.values()
        for item in holder:
            if item.__class__ in _SHORT:
                continue
            if isinstance(item, str):
                budget -= len(item)
            elif isinstance(item, dict | list | Mapping | Sequence):
                stack.append(item)
    return budget >= 0


def _plain(view: Any) -> Any:
    if isinstance(view, Mapping):
        return dict(view)
    if isinstance(view, Sequence):
        return list(view)
    raise EvaluationFailed(f"{kind(view)} has no JSON form")


_ENCODER = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False, default=_plain)


def json_text(value: Any) -> str:
    """Write `value` as compact JSON of at most MAX_TEXT."""
    if not fits(value, MAX_TEXT):
        too_long()
    try:
        return bounded_text(_ENCODER.encode(value))
    except ValueError as error:
        raise EvaluationFailed("the number has no JSON form") from error


def text_of(value: Any) -> str:
    """Write `value` as it stands in a text: text as it is, the rest as in JSON; null has no text."""
    if isinstance(value, str):
        return value
    if value is None:
        raise EvaluationFailed('the value is null, which has no text; default("...", true) would stand in')
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(bounded_number(value))
    return json_text(value)


def equal(left: Any, right: Any) -> bool:
    """Compare as JSON does: 1 equals 1.0, but neither true nor "1"; lists and objects by what they hold."""
    if isinstance(left, str) or isinstance(right, str) or left is None or right is None:
        return bool(left == right)
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, Mapping):
        return (
            isinstance(right, Mapping)
            and len(left) == len(right)
            and all(key in right and equal(item, right[key]) for key, item in left.items())
        )
    if isinstance(left, Sequence):
        return isinstance(right, Sequence) and len(left) == len(right) and all(map(equal, left, right))
    return bool(left == right)


def ordered(symbol: str, compare: Callable[[Any, Any], Any], left: Any, right: Any) -> bool:
    """Compare two numbers or two texts; nothing else has an order."""
    if (is_number(left) and is_number(right)) or (isinstance(left, str) and isinstance(right, str)):
        return bool(compare(left, right))
    raise EvaluationFailed(f"{kind(left)} and {kind(right)} cannot be compared by {symbol}")


def contains(container: Any, item: Any) -> bool:
    """Whether a list holds the item, a text the text, or an object the key."""
    if isinstance(container, str):
        if isinstance(item, str):
            return item in container
        raise EvaluationFailed(f"a text holds texts, so {kind(item)} cannot be looked for in it")
    if isinstance(container, Mapping):
        return isinstance(item, str) and item in container
    if isinstance(container, Sequence):
        return any(equal(member, item) for member in container)
    raise EvaluationFailed(f'"in" looks into a list, a text or an object, not into {kind(container)}')


def add(left: Any, right: Any) -> Any:
    """Add two numbers, or join two texts or two lists."""
    if is_number(left) and is_number(right):
        return bounded_number(left + right)
    if isinstance(left, str) and isinstance(right, str):
        if len(left) + len(right) > MAX_TEXT:
            too_long()
        return bounded_text(left + right)
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        if len(left) + len(right) > MAX_ITEMS:
            raise EvaluationFailed(f"the list would have more than {MAX_ITEMS} items")
        return [*left, *right]
    hint = "; ~ joins anything as text" if isinstance(left, str) or isinstance(right, str) else ""
    raise EvaluationFailed(f"{kind(left)} and {kind(right)} cannot be added{hint}")


def calculate(symbol: str, operation: Callable[[Any, Any], Any], left: Any, right: Any) -> Any:
    """Apply an operation that is for numbers only: - * / // % and **."""
    if not (is_number(left) and is_number(right)):
        raise EvaluationFailed(f"{symbol} needs two numbers, not {kind(left)} and {kind(right)}")
    try:
        return bounded_number(operation(left, right))
    except ZeroDivisionError as error:
        raise EvaluationFailed("division by zero") from error
    except OverflowError as error:
        raise EvaluationFailed("the number is too large") from error


def power(base: Any, exponent: Any) -> Any:
    """Raise to a power, refusing what could not fit before it is computed."""
    if isinstance(base, int) and isinstance(exponent, int) and abs(base) > 1 and abs(exponent) > 64:
        raise EvaluationFailed("the number does not fit into 64 bits")
    return base**exponent


def signed(symbol: str, operation: Callable[[Any], Any], value: Any) -> Any:
    """Apply a sign to a number."""
    if not is_number(value):
        raise EvaluationFailed(f"{symbol} needs a number, not {kind(value)}")
    return bounded_number(operation(value))


def concatenate(values: Sequence[Any]) -> str:
    """Join values as text: what ~ does."""
    texts = [text_of(value) for value in values]
    if sum(map(len, texts)) > MAX_TEXT:
        too_long()
    return bounded_text("".join(texts))


def items_of(value: Any) -> list[Any]:
    """List what a filter walks: the items of a list, the characters of a text, the keys of an object."""
    if not isinstance(value, str | Mapping | Sequence):
        raise EvaluationFailed(f"needs a list, not {kind(value)}")
    if len(value) > MAX_ITEMS:
        raise EvaluationFailed(f"walks at most {MAX_ITEMS} items, not {len(value)}")
    return list(value)


def sliced(value: Any, start: Any, stop: Any, step: Any) -> Any:
    """Cut a piece out of a text or a list."""
    if not isinstance(value, str | list | tuple):
        raise EvaluationFailed(f"[from:to] cuts a text or a list, not {kind(value)}")
    for bound in (start, stop, step):
        if bound is not None and (isinstance(bound, bool) or not isinstance(bound, int)):
            raise EvaluationFailed(f"[from:to] needs whole numbers, not {kind(bound)}")
    if step == 0:
        raise EvaluationFailed("a step of 0 leads nowhere")
    return value[start:stop:step]
