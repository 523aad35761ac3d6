"""How the rows of the store look to people: a line each in a list; all fields of one; and what a verb changed."""

from __future__ import annotations

import base64
import json
import shutil
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import typer

from dispatcher.cli import exits
from dispatcher.cli.columns import Column, Row
from dispatcher.cli.output import plain, say, write, write_json, write_json_rows

if TYPE_CHECKING:
    from dispatcher.store.queries import Listing

_WIDTH: Final = 80
_GAP: Final = "  "
_NARROWEST: Final = 6
_LONGEST_BODY: Final = 4_000
_SHOWN: Final = 10


def write_listing(listing: Listing, columns: Sequence[Column], what: str, *, as_json: bool) -> None:
    """Print a list: a JSON document, or a table on stdout and what is not in it on stderr."""
    if as_json:
        write_json_rows(listing.rows)
        return
    rows = list(listing.rows)
    if not rows:
        say(f"no {what}")
        return
    write_table(columns, rows)
    if listing.total > len(rows):
        of = f"{'more than ' if listing.more else ''}{listing.total:,}"
        say(f"the newest {len(rows):,} of {of} {what}; --limit says how many, 0 for all")


def write_table(columns: Sequence[Column], rows: Iterable[Row], *, indent: str = "") -> None:
    """Print rows under their columns, a line each, cut to the width of the terminal, or to 80 columns in a pipe."""
    rows = list(rows)
    columns = [column for column in columns if not column.rare or any(column.cell(row) for row in rows)]
    cells = [[_one_line(column.cell(row)) for column in columns] for row in rows]
    widths = _widths(columns, cells, shutil.get_terminal_size((_WIDTH, 0)).columns - len(indent))
    for line in ([column.title for column in columns], *cells):
        fitted = [_fitted(cell, width) for cell, width in zip(line, widths, strict=True)]
        write(indent + _GAP.join(fitted).rstrip())


def write_fields(row: Row, *, leave_out: Sequence[str] = ()) -> None:
    """Print what a row holds, a line for each field; fields that hold nothing are left out."""
    shown = {name: value for name, value in row.items() if value not in (None, "", [], {}) and name not in leave_out}
    width = max(map(len, shown), default=0)
    for name, value in shown.items():
        if isinstance(value, dict | list):
            value = _pretty(value, _WIDTH - width - len(_GAP))  # noqa: PLW2901 - the same, as text
        first, *rest = str(value).split("\n")
        write(f"{name:<{width}}{_GAP}{first}")
        for line in rest:
            write(f"{'':<{width}}{_GAP}{line}")


def write_rows(title: str, columns: Sequence[Column], rows: Sequence[Row]) -> None:
    """Print rows that belong to what is shown, if there are any."""
    if rows:
        write()
        write(title)
        write_table(columns, rows, indent="  ")


def write_body(body: str, encoding: str | None) -> None:
    """Print the body of a dead letter, as much of it as people read; what is no text as escapes."""
    if encoding is not None:
        body = base64.b64decode(body).decode("utf-8", "backslashreplace")
    write()
    write("body")
    for line in body[:_LONGEST_BODY].split("\n"):
        write(f"  {line}")
    if len(body) > _LONGEST_BODY:
        write(f"  … and {len(body) - _LONGEST_BODY:,} more characters: --json prints all")


def tell_change(told: Mapping[str, Any], *, as_json: bool) -> None:
    """Tell what a verb changed, and what it left alone and why; the exit code is 1 when it left something."""
    left = told["left"]
    if as_json:
        named = [{"id": name, "reason": why} for name, why in left]
        write_json({"changed": told["changed"], "ids": told["ids"], "message": told["message"], "left": named})
    else:
        write(told["message"])
    if not left:
        return
    say(f"{len(left):,} left alone:")
    for name, why in left[:_SHOWN]:
        say(f"  {name}: {_WHY.get(why, why)}")
    if len(left) > _SHOWN:
        say("  …")
    raise typer.Exit(exits.PROBLEMS)


def confirmed(question: str, *, yes: bool) -> bool:
    """Ask whoever sits at a terminal; a script has said what it wants."""
    return yes or not _asks() or typer.confirm(question, err=True)


def _asks() -> bool:
    return sys.stdin.isatty()


_WHY: Final = {
    "unknown": "nobody knows whether its step had its effect; `dispatcher runs resolve` tells",
    "erased": "its person was erased",
}


def _pretty(value: Any, room: int) -> str:
    line = json.dumps(value, ensure_ascii=False)
    return line if len(line) <= room else json.dumps(value, ensure_ascii=False, indent=2)


def _widths(columns: Sequence[Column], cells: Sequence[Sequence[str]], room: int) -> list[int]:
    widths = [
        max([len(column.title), *(_width_of(line[index]) for line in cells)]) for index, column in enumerate(columns)
    ]
    room -= len(_GAP) * (len(columns) - 1)
    # What does not fit is taken from the widest of those that may be cut, bit by bit.
    while sum(widths) > room:
        cuttable = [index for index, column in enumerate(columns) if column.flexible and widths[index] > _NARROWEST]
        if not cuttable:
            break
        widths[max(cuttable, key=widths.__getitem__)] -= 1
    return widths


def _one_line(value: Any) -> str:
    return "" if value is None else " ".join(plain(str(value)).split())


def _fitted(text: str, width: int) -> str:
    taken = _width_of(text)
    if taken <= width:
        return text + " " * (width - taken)
    kept, taken = "", 0
    for character in text:
        taken += _width_of(character)
        if taken > width - 1:
            break
        kept += character
    return kept + "…" + " " * (width - 1 - _width_of(kept))


def _width_of(text: str) -> int:
    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return len(text) + wide - sum(unicodedata.combining(character) > 0 for character in text)
