"""Say in a rulebook author's words what is wrong with a file that YAML cannot read, where, and how to quote.

The parser stops where it is lost, which is often behind the mistake: texts of people are full of what YAML takes for
its own signs. Works on the parser's message and the lines of the file; knows nothing of the YAML library.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

Place = tuple[int, int]
Lines = Callable[[int, int], list[str]]

_KEY = r"\s*(?:-\s+)*(?:[\w.$-]+|\"[^\"]*\"|'[^']*')"
_KEY_ONLY = re.compile(_KEY + r"\s*$")
_KEY_VALUE = re.compile(r"(" + _KEY + r"\s*:\s+|\s*(?:-\s+)+)(?P<value>\S.*)$")
_GLUED = re.compile(r"\s*(?:-\s+)*(?P<key>[A-Za-z_][\w-]*):(?P<value>[^\s/].*)$")
# How many lines back the opening of a bracket is looked for.
_LOOK_BACK = 1000
_QUOTE_IT = "put the whole text in quotes"


class Hint(NamedTuple):
    """Where the mistake most probably is, and what to do about it."""

    line: int
    column: int
    message: str


def explain(problem: str, context: str, at: Place, began: Place | None, lines: Lines) -> Hint:
    """Turn the parser's complaint into a hint.

    `problem` and `context` are the parser's words, `at` is where it stopped, `began` where that what it was reading
    began.
    """
    row = _row(lines, at[0])
    if "cannot start any token" in problem:
        return _at_sign(at, row)
    if "mapping values are not allowed" in problem:
        return _at_colon(at, row, lines)
    if "quoted scalar" in context:
        return _in_quotes(problem, at, began or at)
    if "flow" in context:
        return _in_brackets(at, began or at, row, lines)
    if "block scalar" in context:
        return _at_block_text(began or at, row)
    if "simple key" in context:
        place = began or at
        return Hint(*place, f"this line has no `: ` behind its key: {_row(lines, place[0]).strip()[:60]}")
    if "alias" in context or "anchor" in context or "tag" in context:
        place = began or at
        sign = row[place[1] - 1 : place[1]]
        return Hint(*place, f'a text that begins with "{sign}" must be quoted: {_QUOTE_IT}')
    if "sequence entries are not allowed" in problem:
        return Hint(*at, f'a list begins on a line of its own; for a text that begins with "-", {_QUOTE_IT}')
    if "block" in context:
        return _in_block(context, at, row, lines)
    if "document start" in problem:
        return Hint(*at, "this line is outside of what came before; all top-level keys begin in the first column")
    return Hint(*at, f"YAML cannot read this: {problem}{f', {context}' if context else ''}")


def _row(lines: Lines, number: int) -> str:
    found = lines(number, number)
    return found[0] if found else ""


def _value_column(row: str) -> int:
    """Return the column at which the value of a `key: value` line begins; else that of its first character."""
    found = _KEY_VALUE.match(row)
    return (found.start("value") if found else len(row) - len(row.lstrip())) + 1


def _at_sign(at: Place, row: str) -> Hint:
    line, column = at
    sign = row[column - 1 : column]
    if sign == "\t" or "\t" in row[: len(row) - len(row.lstrip())]:
        return Hint(line, column, "a tab stands here; YAML is indented with spaces")
    start = _value_column(row)
    value = row[start - 1 :]
    if sign == "%" and row[column - 2 : column - 1] == "{":
        start = start if value.startswith("{") else column - 1
        return Hint(line, start, f"a text with `{{%` at its beginning must be quoted: {_QUOTE_IT}")
    if sign in ("@", "`", "%"):
        return Hint(line, column, f'a text cannot begin with "{sign}": {_QUOTE_IT}')
    return Hint(line, column, f'YAML cannot read "{sign}" here; {_QUOTE_IT}')


def _at_colon(at: Place, row: str, lines: Lines) -> Hint:
    line, column = at
    before = row[: column - 1]
    if _KEY_ONLY.match(before):
        number, above = _line_above(line, lines)
        glued = _GLUED.match(above)
        if glued:
            return Hint(number, glued.start("key") + 1, f"a space is missing behind `{glued['key']}:`")
        start = len(row) - len(row.lstrip()) + 1
        message = "this key is indented deeper than the line above it allows, or that line lacks a `:` or a quote"
        return Hint(line, start, message)
    start = _value_column(row)
    if row[start - 1 : start] in ('"', "'"):
        return _behind_quotes(line, start)
    shown = row[start - 1 :].strip()
    return Hint(line, start, f'a text with ": " in it must be quoted: "{shown[:50]}"')


def _line_above(line: int, lines: Lines) -> tuple[int, str]:
    for number in range(line - 1, 0, -1):
        row = _row(lines, number)
        if row.strip() and not row.lstrip().startswith("#"):
            return number, row
    return line, ""


def _in_quotes(problem: str, at: Place, began: Place) -> Hint:
    if "escape" in problem:
        return Hint(*at, "a backslash in double quotes begins an escape; use single quotes, or write it twice")
    if "document indicator" in problem or "end of stream" in problem:
        return Hint(*began, "this quote is never closed")
    return Hint(*began, f"YAML cannot read this quoted text: {problem}")


def _behind_quotes(line: int, column: int) -> Hint:
    return Hint(
        line,
        column,
        "the text goes on behind its closing quote: put all of it in one pair of quotes "
        "(inside of single quotes a ' is written '')",
    )


def _in_brackets(at: Place, began: Place, row: str, lines: Lines) -> Hint:
    rows = lines(began[0], at[0])
    for number, text in enumerate(rows, began[0]):
        comment = re.search(r"\s#", text)
        if comment and not _inside_quotes(text, comment.start()):
            return Hint(
                number, comment.start() + 2, f'" #" begins a comment, which hides the rest of the line; {_QUOTE_IT}'
            )
    first = rows[0][began[1] - 1 :] if rows else ""
    sign = first[:1]
    if at[0] == began[0]:
        braces = re.search(r"\}\}|\{\{", row[began[1] - 1 :])
        if braces:
            return Hint(*at, f"a text with `{{{{ … }}}}` in it must be quoted as a whole: {_QUOTE_IT}")
        if sign in ("{", "["):
            return Hint(*at, f'the "{sign}" of column {began[1]} should be closed here; texts with signs need quotes')
    if sign not in ("{", "["):
        opened = _opened(at, lines)
        if opened is None:
            return Hint(*began, "a bracket is not closed")
        began, sign = opened
    return Hint(*began, f'this "{sign}" is not closed, or a text in it needs quotes; YAML noticed in line {at[0]}')


def _opened(at: Place, lines: Lines) -> tuple[Place, str] | None:
    """Find the last bracket in front of a place that nothing closes; quotes are not looked at."""
    first = max(1, at[0] - _LOOK_BACK)
    closed = 0
    for number, row in reversed(list(enumerate(lines(first, at[0]), first))):
        for column in range(min(len(row), at[1] - 1 if number == at[0] else len(row)), 0, -1):
            sign = row[column - 1]
            if sign in "]}":
                closed += 1
            elif sign in "[{":
                if not closed:
                    return (number, column), sign
                closed -= 1
    return None


def _inside_quotes(row: str, position: int) -> bool:
    before = row[:position]
    return before.count('"') % 2 == 1 or (before.count("'") % 2 == 1 and before.count('"') == 0)


def _at_block_text(began: Place, row: str) -> Hint:
    sign = row[began[1] - 1 : began[1]]
    return Hint(
        *began, f'behind "{sign}" a text begins on the next line; for a text that begins with "{sign}", {_QUOTE_IT}'
    )


def _in_block(context: str, at: Place, row: str, lines: Lines) -> Hint:
    line, column = at
    before = row[: column - 1]
    number, above = _line_above(line, lines)
    opened = _value_column(above)
    quote = above[opened - 1 : opened]
    if quote in ('"', "'") and above.count(quote) % 2 == 1:
        return Hint(number, opened, "this quote is not closed on its line")
    if before.strip() in ("", "-"):
        if "collection" in context or "sequence" in context:
            return Hint(line, column, "the items of a list all begin with `- `, in the same column")
        return Hint(line, column, "this line is not indented like the lines it belongs to")
    start = _value_column(row)
    value = row[start - 1 :]
    if value.startswith("{"):
        return Hint(
            line, start, f"a text that begins with \"{{\" must be quoted: {_QUOTE_IT}, such as '{value.strip()[:60]}'"
        )
    if value.startswith("["):
        return Hint(line, start, f'a text that begins with "[" must be quoted: {_QUOTE_IT}')
    if value[:1] in ('"', "'"):
        return _behind_quotes(line, start)
    return Hint(line, column, f"YAML expects a key of the mapping here; perhaps {_QUOTE_IT}")
