"""What a body may be: its size, its depth, its text and its numbers. Knows JSON, and nothing of what an event is.

A well-formed body is read once, by the C parser, with hooks that stop at anything odd. Only an odd one is read again,
carefully, to say which code applies first and where. Both ways give the same answer; the tests hold them against
each other.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal, get_args

from pydantic_core import to_json

from dispatcher.events.event import JsonObject, JsonValue

RefusalCode = Literal[
    "too_large",
    "bad_utf8",
    "too_deep",
    "bad_json",
    "duplicate_key",
    "bad_number",
    "bad_text",
    "not_an_object",
    "missing_field",
    "wrong_type",
    "conflicting_payload",
    "id_conflict",
]

# In the order in which they are looked for: a body gets the first that applies.
REFUSAL_CODES: tuple[RefusalCode, ...] = get_args(RefusalCode)

# How messages name a place: a parent's place and the key or index in it; None is the body itself.
_Place = tuple[Any, str | int] | None

_LARGEST_INTEGER = 2**63 - 1
_SMALLEST_INTEGER = -(2**63)
# No integer of more characters than "-9223372036854775808" fits; longer ones are never converted.
_LONGEST_INTEGER = 20
_DEEPEST_SETTING = 200

_OTHER_ENCODING = re.compile(rb"\xef\xbb\xbf|\0|.\0", re.DOTALL)
# A NUL or half a surrogate pair gets into well-formed JSON in UTF-8 only by an escape that looks like this.
_SUSPECT_ESCAPE = re.compile(rb"\\u(?:0000|[dD][89a-fA-F])")
_BLANKS = " \t\r\n"
_ATOMS = frozenset((str, bool, type(None)))
_BAD_CHARACTER = re.compile("[\0\ud800-\udfff]")
_STRING = re.compile(rb'"(?:[^"\\]+|\\.)*+"?', re.DOTALL)
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_STEP = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}


class Refusal(Exception):
    """A body cannot be read as an event: `code` says why, for programs; `detail` where and what, for people."""

    __slots__ = ("code", "detail")

    def __init__(self, code: RefusalCode, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code: RefusalCode = code
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Limits:
    """How large a body may be, and how deeply nested: the outermost object counts as 1. Both are inclusive."""

    body_bytes: int = 1_048_576
    depth: int = 32

    def __post_init__(self) -> None:
        """Refuse limits that the reader itself could not keep."""
        if self.body_bytes < 1:
            raise ValueError(f"a body needs at least 1 byte, not {self.body_bytes}")
        if not 1 <= self.depth <= _DEEPEST_SETTING:
            raise ValueError(f"the depth of a body is limited to between 1 and {_DEEPEST_SETTING}, not {self.depth}")


def read_json(body: bytes, limits: Limits) -> JsonValue:
    """Return what a body holds. Raises Refusal, with the first code that applies, and nothing else."""
    if len(body) > limits.body_bytes:
        raise Refusal("too_large", f"the body is larger than the {limits.body_bytes} bytes that are allowed")
    if _OTHER_ENCODING.match(body) is not None:
        _refuse_other_encodings(body)
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as problem:
        raise Refusal(
            "bad_utf8", f"byte {problem.start} (0x{body[problem.start]:02x}) does not belong to UTF-8 text"
        ) from None
    # As many brackets as levels are allowed cannot nest too deeply, wherever they stand.
    if body.count(b"{") + body.count(b"[") > limits.depth and _is_deeper(body, limits.depth):
        raise Refusal("too_deep", f"objects and lists are nested in more than {limits.depth} levels")
    try:
        value, end = _STRICT.raw_decode(text)
    except (_OddError, ValueError):
        return _read_carefully(text)
    if (end < len(text) and text[end:].strip(_BLANKS)) or _SUSPECT_ESCAPE.search(body) is not None:
        return _read_carefully(text)
    return value


def plain_json(value: Any, limits: Limits) -> JsonValue:
    """Return a copy that is plain JSON of what a handler made: mappings as dicts, sequences as lists.

    Raises Refusal with the codes of bodies, and `wrong_type` for what JSON cannot hold.
    """
    return _copy(value, None, limits.depth)


def quickly_plain(value: Any, limits: Limits) -> tuple[JsonObject, str] | None:
    """Return a copy and the text of what is plain JSON at a glance; None leaves it to `plain_json` to judge."""
    if type(value) is not dict:
        return None
    try:
        copy = _quick_copy(value, limits.depth)
        text = to_json(copy).decode()
    except (_OddError, ValueError):  # the latter for half a surrogate pair, which UTF-8 cannot write
        return None
    if len(text) > limits.body_bytes or ("\\" in text and "\\u0000" in text):
        return None
    return copy, text


def canonical_json(value: JsonValue) -> str:
    """Write JSON so that equal values are equal texts: sorted keys, no spaces, only ASCII.

    `1`, `1.0` and `true` are three different values: two spellings of one number are rare, and telling them apart
    needs no second walk over every event.
    """
    return _CANONICAL.encode(value)


def found(value: Any) -> str:
    """Name what was found, without showing it: it may be about a person."""
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "a text" if value else "an empty text"
        case Mapping():
            return "an object"
        case Sequence() if not isinstance(value, (bytes, bytearray)):
            return "a list"
        case _:
            return type(value).__name__


def _refuse_other_encodings(body: bytes) -> None:
    if body.startswith(b"\xef\xbb\xbf"):
        raise Refusal("bad_utf8", "the body begins with a byte order mark; send UTF-8 without one")
    encoding = json.detect_encoding(body)
    try:
        text = body.decode(encoding)
    except UnicodeDecodeError:
        return  # Not that either: UTF-8 with a stray NUL.
    if text.lstrip()[:1] in set('{["') and "\0" not in text:
        raise Refusal("bad_utf8", f"the body is {encoding.upper()}; send UTF-8")


def _is_deeper(body: bytes, allowed: int) -> bool:
    brackets = _STRING.sub(b"", body).translate(None, _NOT_BRACKETS)
    return any(depth > allowed for depth in accumulate(map(_STEP.__getitem__, brackets)))


class _OddError(Exception):
    """Something in the body needs the careful reader."""


def _strict_object(pairs: list[tuple[str, Any]]) -> JsonObject:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise _OddError
    return members


def _strict_integer(digits: str) -> int:
    if len(digits) >= _LONGEST_INTEGER - 1:
        raise _OddError
    return int(digits)


def _strict_float(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise _OddError
    return number


def _strict_constant(name: str) -> float:
    raise _OddError(name)


_STRICT = json.JSONDecoder(
    object_pairs_hook=_strict_object,
    parse_int=_strict_integer,
    parse_float=_strict_float,
    parse_constant=_strict_constant,
)
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), check_circular=False)


class _Pairs(list[tuple[str, Any]]):
    """The members of an object as they were written, repeated keys included."""


@dataclass(frozen=True, slots=True)
class _Unfit:
    """A number that cannot be kept, and why."""

    why: str


def _integer(digits: str) -> int | _Unfit:
    if len(digits) <= _LONGEST_INTEGER and _SMALLEST_INTEGER <= (number := int(digits)) <= _LARGEST_INTEGER:
        return number
    return _Unfit(f"an integer of {len(digits.lstrip('-'))} digits does not fit in 64 bits")


def _float(digits: str) -> float | _Unfit:
    number = float(digits)
    return number if math.isfinite(number) else _Unfit("the number is too large for a double")


_CAREFUL = json.JSONDecoder(
    object_pairs_hook=_Pairs,
    parse_int=_integer,
    parse_float=_float,
    parse_constant=lambda name: _Unfit(f"{name} is not a number in JSON"),
)


def _read_carefully(text: str) -> JsonValue:
    """Read what the strict hooks stopped at; its depth is known to be allowed."""
    if not text.strip(_BLANKS):
        raise Refusal("bad_json", "the body is blank" if text else "the body is empty")
    try:
        tree = _CAREFUL.decode(text)
    except json.JSONDecodeError as problem:
        raise Refusal("bad_json", f"{problem.msg} at line {problem.lineno} column {problem.colno}") from None
    findings: dict[RefusalCode, str] = {}
    value = _settle(tree, None, findings)
    for code in REFUSAL_CODES:
        if code in findings:
            raise Refusal(code, findings[code])
    return value


def _settle(node: Any, place: _Place, findings: dict[RefusalCode, str]) -> JsonValue:
    """Return the plain value of what was read, and note the first finding of each kind."""
    if isinstance(node, _Pairs):
        members: JsonObject = {}
        for key, child in node:
            if key in members:
                findings.setdefault("duplicate_key", f"{_path((place, key))} stands there twice")
            if _BAD_CHARACTER.search(key) is not None:
                findings.setdefault("bad_text", f"the key {_path((place, key))} holds {_bad_character(key)}")
            members[key] = _settle(child, (place, key), findings)
        return members
    if isinstance(node, list):
        return [_settle(child, (place, index), findings) for index, child in enumerate(node)]
    if isinstance(node, str):
        if _BAD_CHARACTER.search(node) is not None:
            findings.setdefault("bad_text", f"{_path(place)} holds {_bad_character(node)}")
    elif isinstance(node, _Unfit):
        findings.setdefault("bad_number", f"{_path(place)}: {node.why}")
        return None
    return node


def _quick_copy(value: JsonObject, levels: int) -> JsonObject:
    """Copy an object of texts, whole numbers, lists of texts and such objects; what is in a text is not looked at.

    Fractions are left to the other way: not all writers of JSON write them alike.
    """
    if levels == 0:
        raise _OddError
    copy: JsonObject = {}
    for key, child in value.items():
        kind = type(child)
        if type(key) is not str:
            raise _OddError
        if kind in _ATOMS or (kind is int and _SMALLEST_INTEGER <= child <= _LARGEST_INTEGER):
            copy[key] = child
        elif kind is dict:
            copy[key] = _quick_copy(child, levels - 1)
        elif kind is list and levels > 1 and _ATOMS.issuperset(map(type, child)):
            copy[key] = child.copy()
        else:
            raise _OddError
    return copy


def _copy(value: Any, place: _Place, levels: int) -> JsonValue:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        if _BAD_CHARACTER.search(value) is not None:
            raise Refusal("bad_text", f"{_path(place)} holds {_bad_character(value)}")
        return str.__str__(value)
    if isinstance(value, int):
        if not _SMALLEST_INTEGER <= value <= _LARGEST_INTEGER:
            raise Refusal("bad_number", f"{_path(place)}: the integer does not fit in 64 bits")
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise Refusal("bad_number", f"{_path(place)}: {value} is not a number in JSON")
        return float(value)
    if isinstance(value, Mapping):
        if levels == 0:
            raise Refusal("too_deep", f"{_path(place)} is nested too deeply")
        return {_copy_key(key, place): _copy(child, (place, str(key)), levels - 1) for key, child in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray, memoryview)):
        if levels == 0:
            raise Refusal("too_deep", f"{_path(place)} is nested too deeply")
        return [_copy(child, (place, index), levels - 1) for index, child in enumerate(value)]
    raise Refusal("wrong_type", f"{_path(place)}: JSON cannot hold {found(value)}")


def _copy_key(key: Any, place: _Place) -> str:
    if not isinstance(key, str):
        raise Refusal("wrong_type", f"a key in {_path(place)} is {found(key)}; in JSON it is a text")
    if _BAD_CHARACTER.search(key) is not None:
        raise Refusal("bad_text", f"the key {_path((place, key))} holds {_bad_character(key)}")
    return str.__str__(key)


def _bad_character(text: str) -> str:
    return "a NUL" if "\0" in text else "half a surrogate pair"


def _path(place: _Place) -> str:
    """Write a place such as `event_data.answers[2]`; keys that are no plain names are quoted and shortened."""
    steps: list[str] = []
    while place is not None:
        place, key = place
        if isinstance(key, int):
            steps.append(f"[{key}]")
        elif key.isascii() and key.isidentifier() and len(key) <= 40:
            steps.append(f".{key}")
        else:
            steps.append(f"[{json.dumps(key[:40])}{'...' if len(key) > 40 else ''}]")
    written = "".join(reversed(steps)).removeprefix(".")
    return written if len(written) <= 200 else f"{written[:200]}..." if written else "the body"
