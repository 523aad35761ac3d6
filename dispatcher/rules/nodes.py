"""What a rulebook's YAML is read into: texts, lists and mappings that know where they stand.

Scalars stay text until the schema types them, so `no`, `0123`, `+27821230000` and `1:30` mean what they look like.
Only free-form values (`vars`, `event_data` and the like) are typed here, as YAML 1.2 core does, minus what eats phone
numbers: a number with a leading "+" or a leading zero stays text. Quoted scalars are always text.
Lines and columns count from 1. Knows nothing of the YAML library.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]{0,18})\Z")
_FLOAT = re.compile(r"-?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*|(?=[eE])))(?:[eE][-+]?[0-9]{1,4})?\Z")
_LARGEST = 2**63
_CONSTANTS = {
    "": None,
    "~": None,
    "null": None,
    "Null": None,
    "NULL": None,
    "true": True,
    "True": True,
    "TRUE": True,
    "false": False,
    "False": False,
    "FALSE": False,
}
# What follows a backslash in double quotes to give white space; nothing at all continues on the next line.
_BLANK_ESCAPES = frozenset(("", "n", "r", "t", "v", "f", " ", "\t", "_", "N", "L", "P"))
_NULLS = frozenset(("", "~", "null", "Null", "NULL"))

# Scalar, Sequence, Mapping or Broken, told apart by type where it matters; a union would cost casts everywhere.
Node = Any


class Scalar:
    """A scalar as written: its text, where it begins and ends, its style ("" plain, else its quote or indicator)."""

    __slots__ = ("column", "end_column", "end_line", "line", "style", "text")

    def __init__(  # noqa: PLR0917  # made by the million
        self, text: str, line: int, column: int, end_line: int, end_column: int, style: str
    ) -> None:
        self.text = text
        self.line = line
        self.column = column
        self.end_line = end_line
        self.end_column = end_column
        self.style = style

    @property
    def is_null(self) -> bool:
        """Whether this is no value at all: nothing, `~` or `null`, unquoted."""
        return not self.style and self.text in _NULLS

    def __repr__(self) -> str:
        return f"Scalar({self.text!r} at {self.line}:{self.column})"


class Sequence:
    """A list and where it begins."""

    __slots__ = ("column", "items", "line")

    def __init__(self, items: list[Node], line: int, column: int) -> None:
        self.items = items
        self.line = line
        self.column = column

    def __repr__(self) -> str:
        return f"Sequence({self.items!r})"


class Broken:
    """Stands for a value that could not be read, and that a problem was noted for: nothing more is said of it."""

    __slots__ = ("column", "line")

    def __init__(self, line: int, column: int) -> None:
        self.line = line
        self.column = column

    def __repr__(self) -> str:
        return "Broken()"


class Mapping:
    """A mapping and where it begins; each member is its key, which has a place of its own, and its value.

    `partial` tells that some of its keys could not be read.
    """

    __slots__ = ("column", "line", "members", "partial")

    def __init__(
        self, members: dict[str, tuple[Scalar, Node]], line: int, column: int, *, partial: bool = False
    ) -> None:
        self.members = members
        self.line = line
        self.column = column
        self.partial = partial

    def get(self, name: str) -> Node | None:
        """Return the value of this key, or None."""
        found = self.members.get(name)
        return found[1] if found else None

    def key(self, name: str) -> Scalar:
        """Return the key itself, for its place."""
        return self.members[name][0]

    def without(self, *names: str) -> Mapping:
        """Return the same mapping, at the same place, without these keys."""
        kept = {name: member for name, member in self.members.items() if name not in names}
        return Mapping(kept, self.line, self.column, partial=self.partial)

    def __repr__(self) -> str:
        return f"Mapping({ {name: value for name, (_, value) in self.members.items()}!r})"


def described(node: Node) -> str:
    """Say what this is, for a message: "a list", "a mapping", "nothing" or the text."""
    if isinstance(node, Mapping):
        return "a mapping"
    if isinstance(node, Sequence):
        return "a list"
    if isinstance(node, Broken):
        return "what cannot be read"
    if node.is_null:
        return "nothing"
    return shown(node.text)


def shown(text: str) -> str:
    """Quote a text for a message, cut to a readable length, on one line."""
    flat = text if len(text) <= 60 else text[:57] + "..."
    return '"' + flat.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t") + '"'


def core_scalar(node: Scalar) -> Any:
    """Type a scalar of a free-form value as YAML 1.2 core does, minus numbers that may be people's."""
    text = node.text
    if node.style:
        return text
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _INTEGER.match(text):
        number = int(text)
        return number if -_LARGEST <= number < _LARGEST else text
    if _FLOAT.match(text):
        fraction = float(text)
        return fraction if math.isfinite(fraction) else text
    return text


def core_value(node: Node) -> Any:
    """Return a free-form value: scalars typed by YAML 1.2 core, lists and mappings as they are."""
    if type(node) is Scalar:
        return core_scalar(node)
    if type(node) is Mapping:
        return {name: core_value(value) for name, (_, value) in node.members.items()}
    if type(node) is Broken:
        return None
    return [core_value(item) for item in node.items]


def text_value(node: Node) -> Any:
    """Return a value whose scalars are left for a schema to type: texts, and None for no value at all."""
    if type(node) is Scalar:
        return None if not node.style and node.text in _NULLS else node.text
    if type(node) is Mapping:
        return {name: text_value(value) for name, (_, value) in node.members.items()}
    if type(node) is Broken:
        return None
    return [text_value(item) for item in node.items]


def scalars_of(node: Node) -> Iterator[Scalar]:
    """Go through all scalar values in a value, in the order in which they are written."""
    if type(node) is Scalar:
        yield node
    elif type(node) is Mapping:
        for _, value in node.members.values():
            yield from scalars_of(value)
    elif type(node) is Sequence:
        for item in node.items:
            yield from scalars_of(item)


def from_json(value: Any) -> Node:
    """Return JSON values as nodes that read back as the same values; they stand nowhere."""
    if isinstance(value, dict):
        return Mapping({n: (Scalar(n, 1, 1, 1, 1, '"'), from_json(v)) for n, v in value.items()}, 1, 1)
    if isinstance(value, list):
        return Sequence([from_json(item) for item in value], 1, 1)
    if isinstance(value, str):
        return Scalar(value, 1, 1, 1, 1, '"')
    if value is None:
        return Scalar("", 1, 1, 1, 1, "")
    if isinstance(value, bool):
        return Scalar("true" if value else "false", 1, 1, 1, 1, "")
    return Scalar(repr(value), 1, 1, 1, 1, "")


def place_in(scalar: Scalar, offset: int, lines: list[str]) -> tuple[int, int]:
    """Return line and column of the character at `offset` of a scalar's text.

    `lines` are the lines of the file that the scalar spans. White space may be folded and quotes may be escaped, so
    the other characters are counted along both texts.
    """
    if not lines:
        return scalar.line, scalar.column
    wanted = sum(1 for char in scalar.text[: max(offset, 0)] if not char.isspace())
    line, column = 0, scalar.column - 1
    last = len(lines) - 1
    if scalar.style in ("|", ">"):
        line, column = 1, 0
    elif scalar.style:
        column += 1
    seen = 0
    while line <= last:
        row = lines[line]
        while column < len(row):
            if row[column].isspace():
                column += 1
                continue
            width, counts = _character(row, column, scalar.style)
            if counts:
                if seen == wanted:
                    return scalar.line + line, column + 1
                seen += 1
            column += width
        line, column = line + 1, 0
    return scalar.line, scalar.column


def _character(row: str, column: int, style: str) -> tuple[int, bool]:
    """Return how many characters stand for the next one of a scalar, and whether that one is visible."""
    if style == "'" and row.startswith("''", column):
        return 2, True
    if style == '"' and row[column] == "\\":
        following = row[column + 1 : column + 2]
        width = {"x": 4, "u": 6, "U": 10}.get(following, 2)
        if width > 2:
            digits = row[column + 2 : column + width]
            code = int(digits, 16) if re.fullmatch(r"[0-9a-fA-F]+", digits) else 0x20
            return width, not chr(min(code, 0x10FFFF)).isspace()
        return 2, following not in _BLANK_ESCAPES
    return 1, True
