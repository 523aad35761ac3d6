"""Names and dots: how `data.address.city` is read, and what is said when it is not there.

A dot means a key of an object, never an attribute or a method. The one thing read by attribute is the envelope of the
event, and of it only the names in ENVELOPE.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dispatcher.events.event import ENVELOPE, Event
from dispatcher.events.wire import format_timestamp
from dispatcher.rules.expressions.faults import UndefinedValue
from dispatcher.rules.expressions.values import kind

Scope = dict[str, Any]
Evaluator = Callable[[Scope], Any]
Key = str | int | None

ROOTS = ("data", "event", "run", "steps", "vars")

# What a missing key raises when keys are read one after the other: no such key, or not an object at all.
NOT_THERE = (KeyError, TypeError)

_SHOWN_KEYS = 10
_SHOWN_CHARACTERS = 40
_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


class NoSuchItem(LookupError):
    """A key that cannot be read; the text says why, and begins after the name of what should have held it."""


@dataclass(frozen=True, slots=True)
class Path:
    """One chain of names that a source reads, for checking names at load.

    `parts` begins with the root; None stands for a subscript that only the event decides. `guarded` paths may be
    missing: they stand before `default(...)`, in `is defined`, or where `is defined` has been asked of them.
    """

    parts: tuple[Key, ...]
    offset: int
    guarded: bool = False


def dotted(parts: Sequence[Key]) -> str:
    """Write a path as it would stand in an expression."""
    text = str(parts[0])
    for part in parts[1:]:
        if isinstance(part, str):
            text += f".{part}" if _PLAIN_KEY.match(part) else f"[{_quoted(part)}]"
        else:
            text += f"[{'...' if part is None else part}]"
    return text


def envelope_field(event: Any, name: str) -> Any:
    """Read one name of the envelope as JSON: `event_data` is the payload, `timestamp` is ISO 8601."""
    if not isinstance(event, Event) or name not in ENVELOPE:
        raise KeyError(name)
    if name == "event_data":
        return event.data
    if name == "timestamp":
        return format_timestamp(event.timestamp)
    return getattr(event, name)


def root_value(scope: Scope, root: str) -> Any:
    """Read a root; the event as an object of its envelope."""
    value = scope[root]
    if root == "event" and isinstance(value, Event):
        return {name: envelope_field(value, name) for name in ENVELOPE}
    return value


def static(root: str, keys: Sequence[str]) -> Evaluator:
    """Read `root.key.key`, with a good message when something on the way is missing."""
    read = quick(root, keys)

    def path(scope: Scope) -> Any:
        try:
            return read(scope)
        except NOT_THERE:
            raise missing(scope, root, keys) from None

    return path


def quick(root: str, keys: Sequence[str]) -> Evaluator:
    """Read `root.key.key`, raising one of NOT_THERE when something on the way is missing."""
    if root == "event":
        return _quick_event(keys)
    match tuple(keys):
        case ():
            return lambda scope: scope[root]
        case (one,):
            return lambda scope: scope[root][one]
        case (one, two):
            return lambda scope: scope[root][one][two]
        case (one, two, three):
            return lambda scope: scope[root][one][two][three]

    def long_path(scope: Scope) -> Any:
        value = scope[root]
        for key in keys:
            value = value[key]
        return value

    return long_path


def _quick_event(keys: Sequence[str]) -> Evaluator:
    if not keys:
        return lambda scope: root_value(scope, "event")
    name, *rest = keys

    def envelope_path(scope: Scope) -> Any:
        value = envelope_field(scope["event"], name)
        for key in rest:
            value = value[key]
        return value

    return envelope_path


def specialised(root: str, keys: Sequence[str]) -> Evaluator:
    """Read as `static` does, without its inner call for the commonest shapes."""
    if root == "event" or len(keys) not in (1, 2):
        return static(root, keys)
    one, two = keys[0], keys[-1]
    if len(keys) == 1:

        def read_one(scope: Scope) -> Any:
            try:
                return scope[root][one]
            except NOT_THERE:
                raise missing(scope, root, keys) from None

        return read_one

    def read_two(scope: Scope) -> Any:
        try:
            return scope[root][one][two]
        except NOT_THERE:
            raise missing(scope, root, keys) from None

    return read_two


def missing(scope: Scope, root: str, keys: Sequence[str]) -> UndefinedValue:
    """Walk a path that is not there and say where it ends."""
    whole = dotted((root, *keys))
    if root not in scope:
        return UndefinedValue(whole, f'there is no name "{root}" (there are: {_listed(scope)})')
    value = root_value(scope, root)
    for count, key in enumerate(keys):
        try:
            value = subscript(value, key)
        except NoSuchItem as error:
            holder = dotted((root, *keys[:count]))
            return UndefinedValue(whole, f"{holder} {error}")
    return UndefinedValue(whole, "is not there")


def subscript(value: Any, key: Any) -> Any:
    """Read `value[key]`; raises NoSuchItem that says, after the name of the holder, why it cannot be read.

    The keys of a JSON object are text, so a whole number means its digits there. A text has no items: `data.phones[0]`
    must not quietly become "+" on the day that a single number arrives.
    """
    if isinstance(value, Mapping):
        if isinstance(key, int) and not isinstance(key, bool):
            key = str(key)
        if not isinstance(key, str):
            raise NoSuchItem(f"is an object, which has no key that is {kind(key)}")
        try:
            return value[key]
        except KeyError:
            has = f"it has: {_listed(value)}" if value else "it is empty"
            raise NoSuchItem(f"has no {_quoted(key)} ({has})") from None
    if isinstance(value, Sequence) and not isinstance(value, str):
        if isinstance(key, bool) or not isinstance(key, int):
            raise NoSuchItem(f"is a list, whose items are numbered; {kind(key)} names none")
        try:
            return value[key]
        except IndexError:
            count = len(value)
            raise NoSuchItem(f"has {count} item{'' if count == 1 else 's'}, so no [{key}]") from None
    wanted = "an object" if isinstance(key, str) else "a list"
    raise NoSuchItem(f"is {kind(value)}, not {wanted}")


def _quoted(key: str) -> str:
    return f'"{key[:_SHOWN_CHARACTERS]}…"' if len(key) > _SHOWN_CHARACTERS else f'"{key}"'


def _listed(value: Mapping[str, Any]) -> str:
    keys = sorted(map(str, value))
    shown = ", ".join(key[:_SHOWN_CHARACTERS] for key in keys[:_SHOWN_KEYS])
    return f"{shown} and {len(keys) - _SHOWN_KEYS} more" if len(keys) > _SHOWN_KEYS else shown
