"""Check the names in expressions against what there is: envelope, declared fields, vars, results of earlier steps.

A path that stands before `default(...)` or in `is defined` may miss its last names, as that is what it asks; but a
root or a step that does not exist is a mistake all the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from dispatcher.events.event import ENVELOPE
from dispatcher.rules.comments import Source
from dispatcher.rules.expressions import ROOTS, Path
from dispatcher.rules.nodes import Scalar, place_in
from dispatcher.rules.problems import Problems, nearest

_RUN = ("id", "started_at")
# Fields of these types hold nothing that a further dot could name.
_SIMPLE = frozenset(("text", "number", "integer", "boolean", "timestamp"))


class Misnomer(NamedTuple):
    """A name that means nothing here."""

    code: str
    message: str
    suggestion: str | None


@dataclass(slots=True)
class KnownNames:
    """What an expression at one place may name.

    `fields` are those of `data` with their types, None when not known; `vars` likewise. `steps` are the earlier steps
    with what they offer, None for anything; `later` are the ids from this step on; `here` is this step's id. With
    `unsure` the ids of some steps could not be read.
    """

    fields: Mapping[str, str] | None
    vars: Mapping[str, Any] | None
    steps: dict[str, tuple[str, ...] | None] = field(default_factory=dict)
    later: tuple[str, ...] = ()
    here: str | None = None
    in_condition: bool = False
    unsure: bool = False

    def judge(self, path: Path) -> Misnomer | None:
        """Return what is wrong with the names of a path, if anything is."""
        root, *rest = path.parts
        match root:
            case "data":
                return None if path.guarded else self._judge_data("data", rest)
            case "steps" if not self.in_condition:
                return self._judge_step(rest, guarded=path.guarded)
            case "vars":
                return None if path.guarded or self.vars is None else _judge_value("vars", self.vars, rest)
            case "event":
                return None if path.guarded else self._judge_event(rest)
            case "run" if not self.in_condition:
                return None if path.guarded else _judge_plain("run", _RUN, rest)
            case "steps" | "run":
                message = f"`{root}` is not known in the condition of a chain, which is asked before anything has run"
                return Misnomer("undefined_name", message, None)
        return self._judge_root(str(root))

    def _judge_root(self, root: str) -> Misnomer:
        roots = ("data", "event", "vars") if self.in_condition else ROOTS
        suggestion = nearest(root, roots)
        if self.fields and root in self.fields:
            suggestion = f"data.{root}"
        elif root in ENVELOPE:
            suggestion = f"event.{root}"
        elif root in self.steps and not self.in_condition:
            suggestion = f"steps.{root}"
        elif self.vars and root in self.vars:
            suggestion = f"vars.{root}"
        message = f"there is no name `{root}`; names begin with {', '.join(roots)}, and a text needs quotes"
        return Misnomer("undefined_name", message, suggestion)

    def _judge_data(self, holder: str, rest: list[Any]) -> Misnomer | None:
        if self.fields is None or not rest or not isinstance(rest[0], str):
            return None
        name = rest[0]
        if name not in self.fields:
            message = f"the events of this chain have no field `{name}` (see `events:`)"
            near = nearest(name, self.fields)
            return Misnomer("undefined_name", message, f"{holder}.{near}" if near else None)
        if len(rest) > 1 and self.fields[name] in _SIMPLE:
            message = f"`{holder}.{name}` is of the type {self.fields[name]} (see `events:`) and has no parts"
            return Misnomer("undefined_name", message, None)
        return None

    def _judge_event(self, rest: list[Any]) -> Misnomer | None:
        found = _judge_plain("event", ENVELOPE, rest)
        if found is None and rest and rest[0] == "event_data":
            return self._judge_data("event.event_data", rest[1:])
        return found

    def _judge_step(self, rest: list[Any], *, guarded: bool) -> Misnomer | None:
        if not rest or not isinstance(rest[0], str):
            return None
        name = rest[0]
        if name not in self.steps:
            if self.unsure:
                return None
            return self._judge_unknown_step(name)
        offers = self.steps[name]
        if guarded or offers is None or len(rest) < 2 or not isinstance(rest[1], str):
            return None
        if rest[1] in offers or rest[1] == "state":
            return None
        names = [*offers, *(("state",) if "state" not in offers else ())]
        near = nearest(rest[1], names)
        message = f"the step `{name}` has no `{rest[1]}`; it offers {', '.join(names)}"
        return Misnomer("undefined_name", message, f"steps.{name}.{near}" if near else None)

    def _judge_unknown_step(self, name: str) -> Misnomer:
        if name == self.here:
            return Misnomer("unknown_step", f"`steps.{name}` is this step itself, which has no result yet", None)
        if name in self.later:
            return Misnomer("unknown_step", f"the step `{name}` comes later, so it has no result here", None)
        near = nearest(name, self.steps)
        known = f"before it come {', '.join(self.steps)}" if self.steps else "no step comes before this one"
        return Misnomer("unknown_step", f"there is no step `{name}`; {known}", f"steps.{near}" if near else None)


def _judge_plain(root: str, names: tuple[str, ...], rest: list[Any]) -> Misnomer | None:
    if not rest or not isinstance(rest[0], str) or rest[0] in names:
        return None
    near = nearest(rest[0], names)
    message = f"`{root}` has no `{rest[0]}`; it has {', '.join(names)}"
    return Misnomer("undefined_name", message, f"{root}.{near}" if near else None)


def _judge_value(holder: str, value: Any, rest: list[Any]) -> Misnomer | None:
    """Follow a path through a constant as far as load can tell."""
    for part in rest:
        if part is None:
            return None
        if isinstance(value, Mapping):
            name = str(part)
            if name not in value:
                near = nearest(name, value)
                return Misnomer("undefined_name", f"`{holder}` has no `{name}`", f"{holder}.{near}" if near else None)
            value, holder = value[name], f"{holder}.{name}"
        elif isinstance(value, list):
            if not isinstance(part, int) or not -len(value) <= part < len(value):
                return Misnomer("undefined_name", f"`{holder}` is a list of {len(value)}, without an item {part}", None)
            value, holder = value[part], f"{holder}[{part}]"
        else:
            message = f"`{holder}` is a constant without parts, so there is no `{part}` in it"
            return Misnomer("undefined_name", message, None)
    return None


def note_misnomer(scalar: Scalar, path: Path, known: KnownNames, source: Source, problems: Problems) -> None:
    """Note what is wrong with the names of a path, at its very character."""
    found = known.judge(path)
    if found is not None:
        place = place_in(scalar, path.offset, source.lines(scalar.line, scalar.end_line))
        problems.add(source.name, place, found.code, found.message, suggestion=found.suggestion)
