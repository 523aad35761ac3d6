"""Collecting the problems of a rulebook: each once, sorted by place, with the nearest valid name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import replace

from dispatcher.errors import Problem

# Advice on a rulebook that works; `--strict` makes errors of them.
WARNINGS = frozenset(("comment_in_text", "emit_cycle", "unreachable"))


class Problems:
    """The problems found so far, the same one at the same place once. `errors` counts those that are no warnings."""

    def __init__(self) -> None:
        self._found: dict[Problem, None] = {}
        self.errors = 0

    def add(
        self,
        file: str,
        place: tuple[int, int],
        code: str,
        message: str,
        *,
        suggestion: str | None = None,
    ) -> None:
        """Note a problem at a line and column of a file."""
        line, column = place
        severity = "warning" if code in WARNINGS else "error"
        problem = Problem(file, line, column, code, message, suggestion, severity)  # type: ignore[arg-type]
        if problem not in self._found:
            self._found[problem] = None
            self.errors += severity == "error"

    def has(self, file: str, line: int, code: str) -> bool:
        """Whether a problem with this code is noted for this line."""
        return any((p.file, p.line, p.code) == (file, line, code) for p in self._found)

    def __len__(self) -> int:
        return len(self._found)

    def listed(self, *, strict: bool = False, files: Iterable[str] = ()) -> list[Problem]:
        """Return all of them by file, in the order of `files`, then by line. With `strict`, warnings are errors."""
        order = {file: index for index, file in enumerate(files)}
        found = sorted(self._found, key=lambda p: (order.get(p.file, len(order)), p.file, p.line, p.column, p.code))
        return [replace(problem, severity="error") for problem in found] if strict else found


def nearest(name: str, names: Iterable[str]) -> str | None:
    """Return the one of `names` that was probably meant, or None when none is near."""
    candidates = list(names)
    folded = {candidate.casefold(): candidate for candidate in reversed(candidates)}
    found = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.6)
    return folded[found[0]] if found else None
