"""How verbs speak: results on stdout, talk on stderr; tables for people, JSON for programs, progress on terminals."""

from __future__ import annotations

import json
import re
import shutil
import sys
import textwrap
import time
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Self

_WIDTH = 80
# What moves a terminal's cursor, changes its state, or turns the direction of a line.
_HARMFUL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def write_json(document: Any) -> None:
    """Print one JSON document on stdout."""
    sys.stdout.write(_json(document) + "\n")


def write_json_rows(rows: Iterable[Any]) -> None:
    """Print one JSON document, a list, row by row: it may be longer than what fits in memory."""
    first = True
    for row in rows:
        sys.stdout.write(("[\n" if first else ",\n") + textwrap.indent(_json(row), "  "))
        first = False
    sys.stdout.write("[]\n" if first else "\n]\n")


def _json(document: Any) -> str:
    ascii_only = (sys.stdout.encoding or "").lower().replace("-", "") != "utf8"
    text = json.dumps(document, ensure_ascii=ascii_only, indent=2)
    # Only within strings can such characters stand, where an escape means the same.
    return _HARMFUL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def write(text: str = "") -> None:
    """Print a line of a result on stdout."""
    sys.stdout.write(plain(text) + "\n")


def write_wrapped(text: str, *, indent: str = "", first: str | None = None) -> None:
    """Print a paragraph of a result on stdout, no wider than people like to read; `first` begins its first line."""
    width = min(_WIDTH, shutil.get_terminal_size((_WIDTH, 0)).columns)
    write(
        textwrap.fill(
            " ".join(text.split()), width, initial_indent=indent if first is None else first, subsequent_indent=indent
        )
    )


def say(text: str) -> None:
    """Tell something on stderr. Never fails: whoever closed stderr does not want to hear."""
    try:
        sys.stderr.write(plain(text) + "\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        return


def plain(text: str) -> str:
    """Escape what text of strangers could do to a terminal."""
    if text.isascii() and text.isprintable():
        return text
    return _HARMFUL.sub(lambda found: ascii(found[0])[1:-1], text)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, right: Collection[str] = ()) -> None:
    """Print rows under their columns on stdout, as wide as the terminal, or 80 columns; `right` aligns numbers."""
    from rich.console import Console  # noqa: PLC0415 - 60 ms that JSON and errors need not pay
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    console = Console(file=sys.stdout, highlight=False, markup=False, width=None if sys.stdout.isatty() else _WIDTH)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(plain("" if cell is None else str(cell)).replace("\n", " ")) for cell in row))
    with console.capture() as capture:
        console.print(table)
    sys.stdout.writelines(f"{line.rstrip()}\n" for line in capture.get().splitlines())


class Progress:
    """One line on a terminal's stderr that tells how far long work has come; nothing in a pipe."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._shown = False
        self._next = time.monotonic() + 0.3
        self._wanted = sys.stderr.isatty()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

    def reached(self, count: int) -> None:
        """Show how many are done, ten times a second at most."""
        if self._wanted and time.monotonic() >= self._next:
            self._next = time.monotonic() + 0.1
            self._shown = True
            sys.stderr.write(f"\r\x1b[K{count:,} {self._what} …")
            sys.stderr.flush()
