"""Put values from the environment and from files into the settings of senders and services.

`${NAME}`, `${NAME:default}` and `{file: path}` are read here and nowhere else; `$${NAME}` stays `${NAME}`. What came
in is remembered, so that no message repeats it. A variable set to nothing counts as not set.
"""

from __future__ import annotations

import re
from collections.abc import Mapping as Env
from pathlib import Path

from dispatcher.rules.nodes import Broken, Mapping, Node, Scalar, Sequence, place_in
from dispatcher.rules.problems import Problems
from dispatcher.rules.rulefile import RuleFile

_VARIABLE = re.compile(r"\$(?P<escaped>\$)?\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::(?P<default>[^}]*))?\}")
_LARGEST_SECRET = 64 * 1024
_SHORTEST_SECRET = 4


class Secrets:
    """Resolves references, and masks in messages whatever they brought in."""

    def __init__(self, environ: Env[str, str], problems: Problems) -> None:
        self._environ = environ
        self._problems = problems
        self._values: set[str] = set()

    def resolved(self, node: Node, file: RuleFile) -> Node:
        """Return the node with every reference replaced; what cannot be resolved is noted and becomes Broken."""
        kind = type(node)
        if kind is Scalar:
            return self._substituted(node, file) if "${" in node.text else node
        if kind is Sequence:
            return Sequence([self.resolved(item, file) for item in node.items], node.line, node.column)
        if kind is Mapping:
            inner = node.get("file")
            if len(node.members) == 1 and type(inner) is Scalar:
                return self._content(inner, file)
            members = {name: (key, self.resolved(value, file)) for name, (key, value) in node.members.items()}
            return Mapping(members, node.line, node.column, partial=node.partial)
        return node

    def masked(self, message: str) -> str:
        """Return the message without any value that a reference brought in."""
        for value in sorted(self._values, key=len, reverse=True):
            message = message.replace(value, "***")
        return message

    def _substituted(self, node: Scalar, file: RuleFile) -> Node:
        broken = False

        def value_of(found: re.Match[str]) -> str:
            nonlocal broken
            if found["escaped"]:
                return found.group()[1:]
            value = self._environ.get(found["name"]) or found["default"]
            if value is None:
                broken = True
                message = f"the environment variable {found['name']} is not set, and there is no default behind a colon"
                place = place_in(node, found.start(), file.lines(node.line, node.end_line))
                self._problems.add(file.name, place, "env_missing", message)
                return ""
            self._remember(value)
            return value

        text = _VARIABLE.sub(value_of, node.text)
        rest = _VARIABLE.sub("", node.text)
        if "${" in rest:
            message = "this is no reference to a variable: write ${NAME} or ${NAME:default}; $${ stays as it is"
            if "$${" not in rest:
                self._problems.add(file.name, (node.line, node.column), "bad_value", message)
                broken = True
        if broken:
            return Broken(node.line, node.column)
        return Scalar(text, node.line, node.column, node.end_line, node.end_column, node.style or '"')

    def _content(self, node: Scalar, file: RuleFile) -> Node:
        path = file.path.parent / node.text
        try:
            with Path(path).open(encoding="utf-8") as stream:
                text = stream.read(_LARGEST_SECRET + 1)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "it is no UTF-8 text"
            message = f"the file {path} cannot be read: {reason}"
            self._problems.add(file.name, (node.line, node.column), "env_missing", message)
            return Broken(node.line, node.column)
        if len(text) > _LARGEST_SECRET:
            message = f"the file {path} is larger than {_LARGEST_SECRET >> 10} KiB"
            self._problems.add(file.name, (node.line, node.column), "bad_value", message)
            return Broken(node.line, node.column)
        value = text.rstrip("\r\n")
        self._remember(value)
        return Scalar(value, node.line, node.column, node.end_line, node.end_column, '"')

    def _remember(self, value: str) -> None:
        if len(value) >= _SHORTEST_SECRET:
            self._values.add(value)
