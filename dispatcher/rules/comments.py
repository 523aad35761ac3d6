"""Find comments that swallow the rest of a text: `text: Reply #1 now` says only "Reply"."""

from __future__ import annotations

from typing import Protocol

from dispatcher.rules.nodes import Node, Scalar, scalars_of
from dispatcher.rules.problems import Problems


class Source(Protocol):
    """Where nodes come from: a file, or something that stands in for one."""

    name: str

    def lines(self, first: int, last: int) -> list[str]:
        """Return these lines of it."""
        ...

    def comment_behind(self, scalar: Scalar) -> str | None:
        """Return the comment that ends an unquoted text on its line."""
        ...


def note_swallowed_text(node: Node, source: Source, problems: Problems) -> None:
    """Note every text in a value whose end is probably lost in a comment.

    One word with a spaced comment behind it (`sender: bulk  # the cheap one`) is taken for a setting.
    """
    for scalar in scalars_of(node):
        comment = source.comment_behind(scalar)
        if comment is None:
            continue
        looks_like_text = comment[1:2].strip() != "" or (not scalar.is_null and len(scalar.text.split()) > 1)
        if looks_like_text:
            where = f'"{comment[:30]}" is a comment here, and no part of the text'
            message = f"{where}; put the text in quotes, or the comment on a line of its own"
            problems.add(source.name, (scalar.line, scalar.column), "comment_in_text", message)
