"""Find a person in texts, bytes and JSON: by the number in any spelling, and by other words that name only them."""

from __future__ import annotations

import json
import re
import sys
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, Final

from dispatcher.text.numbers import split_number

# What people and programs put between digits; not what separates values in JSON.
_BETWEEN: Final = r'(?:[^\w"\[\]{},:;=<>]|_){0,3}'
# A shorter national number, on its own, is any number at all.
_FEWEST_DIGITS: Final = 7
_ESCAPED: Final = re.compile(r"\\u00([23][0-9a-fA-F])")


class Mentions:
    """Finds the number, and `words` such as the key of a contact. `mark` makes what stands there instead."""

    def __init__(self, msisdn: str, words: Sequence[str], mark: Callable[[str], str]) -> None:
        self._mark = mark
        self._words = tuple(word.lower() for word in words if word)
        named = [rf"(?<!\w){re.escape(word)}(?!\w)" for word in self._words]
        code, national = split_number(msisdn)
        # Most texts are ASCII, and the plain classes of digits are several times as fast.
        self._cores = [re.compile(_spelt(national, digits)) for digits in (_PLAIN_DIGITS, _digits())]
        self._patterns = [
            re.compile("|".join((_number(code, national, digits), *named)), re.IGNORECASE)
            for digits in (_PLAIN_DIGITS, _digits())
        ]

    def found_in(self, text: str | None) -> bool:
        """Whether the person is named in a text."""
        if text is None:
            return False
        other = not text.isascii()
        lower = text.lower() if self._words else ""
        if self._cores[other].search(text) is None and not any(word in lower for word in self._words):
            return False
        return self._patterns[other].search(text) is not None

    def found_in_bytes(self, body: bytes | None) -> bool:
        """Whether the person is named in a body, in whatever encoding it came."""
        if body is None:
            return False
        # UTF-16 of digits is UTF-8 with NULs between them.
        text = body.replace(b"\0", b"").decode("utf-8", "replace")
        return self.found_in(text) or self.found_in(_ESCAPED.sub(lambda found: chr(int(found[1], 16)), text))

    def without(self, text: str | None) -> str | None:
        """Return a text with a mark wherever the person was named."""
        if not text or not self.found_in(text):
            return text
        return self._patterns[not text.isascii()].sub(lambda found: self._mark(found[0]), text)

    def without_in_json(self, text: str | None) -> str | None:
        """Return JSON text with a mark for each name and each value that named the person."""
        if not text or not self.found_in(text):
            return text
        return json.dumps(self._cleaned(json.loads(text)), ensure_ascii=False, separators=(",", ":"))

    def _cleaned(self, value: Any) -> Any:
        match value:
            case dict():
                return {self.without(key): self._cleaned(child) for key, child in value.items()}
            case list():
                return [self._cleaned(child) for child in value]
            case str():
                return self.without(value)
            case int() | float() if self.found_in(str(value)):
                return self._mark(str(value))
            case _:
                return value


def _spelt(digits: str, classes: Mapping[str, str]) -> str:
    return _BETWEEN.join(classes[digit] for digit in digits)


def _number(code: str, national: str, classes: Mapping[str, str]) -> str:
    zero, one, eight = classes["0"], classes["1"], classes["8"]
    exits = rf"(?:[+\uff0b]|{zero}{zero}|{zero}{one}{one})?"
    led = rf"{exits}{_BETWEEN}{_spelt(code, classes)}{_BETWEEN}(?:\({zero}\))?{_BETWEEN}"
    # The trunk prefixes of the numbering plans.
    trunk = rf"(?:{zero}\d?|{eight}|{one}){_BETWEEN}"
    alone = f"(?:{trunk})?" if len(national) >= _FEWEST_DIGITS else trunk
    return rf"(?<!\d)(?:{led}|{alone}){_spelt(national, classes)}(?!\d)"


_PLAIN_DIGITS: Final = {str(digit): str(digit) for digit in range(10)}


@cache
def _digits() -> dict[str, str]:
    """Return for each digit a class of all characters that mean it, in any script."""
    found: dict[str, list[str]] = {str(digit): [] for digit in range(10)}
    for code in range(sys.maxunicode + 1):
        value = unicodedata.decimal(chr(code), None)
        if value is not None:
            found[str(value)].append(chr(code))
    return {digit: f"[{''.join(characters)}]" for digit, characters in found.items()}
