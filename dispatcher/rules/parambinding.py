"""Bind the `with` of a step to the params of its handler: names, values, templates, connections."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from dispatcher.plugins.handler import Settled
from dispatcher.plugins.registry import BrokenPlugin
from dispatcher.rules.catalogue import HandlerSpec, Param
from dispatcher.rules.comments import Source, note_swallowed_text
from dispatcher.rules.connections import Connections
from dispatcher.rules.expressions import Path, TemplateProblem
from dispatcher.rules.nodes import Broken, Mapping, Node, Scalar, place_in, shown
from dispatcher.rules.params import Compiled, Params, Render, compile_value
from dispatcher.rules.problems import Problems, nearest
from dispatcher.rules.reading import judge, literals_at, locate, place_of
from dispatcher.rules.shape import HandlerStep


@dataclass(slots=True)
class BoundParams:
    """What became of a step's params. `broken` is a plugin that the step needs and that cannot be used."""

    params: Params
    written: dict[str, Any]
    paths: list[tuple[Scalar, Path]] = field(default_factory=list)
    settled: Settled | None = None
    broken: BrokenPlugin | None = None


class ParamBinder:
    """Binds params for the steps of one rulebook. What it has found about literals it remembers."""

    def __init__(self, connections: Connections, problems: Problems, *, complete: bool) -> None:
        self.connections = connections
        self.problems = problems
        self.complete = complete
        self.judged: dict[tuple[Any, ...], list[ErrorDetails]] = {}
        self.settled: dict[Settled, Settled] = {}

    def bind(
        self, spec: HandlerSpec | None, node: Node, step: Mapping, source: Source, regions: tuple[str | None, ...]
    ) -> BoundParams:
        """Bind what stands under `with`, which may be nothing; without a spec only the templates are looked at."""
        return _Binding(self, spec, node, step, source).bind(regions)


class _Binding:
    """The binding of one step's params."""

    def __init__(
        self, binder: ParamBinder, spec: HandlerSpec | None, node: Node, step: Mapping, source: Source
    ) -> None:
        self._connections = binder.connections
        self._problems = binder.problems
        self._complete = binder.complete
        self._judged = binder.judged
        self._settled = binder.settled
        self._spec = spec
        self._node = node if type(node) is Mapping else Mapping({}, step.line, step.column)
        self._step = step
        self._source = source
        self._unread = type(node) is Broken or self._node.partial or _is_misnamed(step)
        self._handler_key = step.key("handler") if "handler" in step.members else Scalar("", 1, 1, 1, 1, "")
        self._meant: set[str | None] = set()
        self._faulty = self._unread

    def bind(self, regions: tuple[str | None, ...]) -> BoundParams:
        """Bind each param by itself, then what they are together."""
        bound = BoundParams(Params({}, (), literal=True), {})
        constants: dict[str, Any] = {}
        renders: list[tuple[str, Render]] = []
        literals: dict[str, Any] = {}
        templates: set[str] = set()
        for name, (key, value) in self._node.members.items():
            param = self._spec.params.get(name) if self._spec is not None else None
            if param is not None:
                name = param.name  # noqa: PLW2901  # one object for all chains
            elif self._spec is not None:
                self._note_unknown(self._spec, name, key, value)
            compiled = compile_value(value, free=param is None or param.free, on_problem=self._note_template)
            self._warn(param, value)
            bound.paths.extend(compiled.paths)
            if compiled.broken:
                self._faulty = True
                templates.add(name)
                continue
            bound.written[name] = compiled.source
            self._refuse_template(param, name, value, compiled)
            if compiled.render is None:
                constants[name] = compiled.source
            else:
                renders.append((name, compiled.render))
            if compiled.is_template:
                templates.add(name)
            elif param is not None:
                literals[name] = compiled.source if compiled.render is None else compiled.render({})
        bound.params = Params(constants, renders, literal=not templates)
        if self._spec is not None:
            self._check_literals(self._spec, literals, templates, regions)
            bound.broken = self._check_connections(self._spec, literals, templates)
            self._settle(self._spec, bound)
        return bound

    def _note_unknown(self, spec: HandlerSpec, name: str, key: Scalar, value: Node) -> None:
        self._faulty = True
        near = nearest(name, spec.params)
        self._meant.add(near)
        known = f"it takes {', '.join(spec.params)}" if spec.params else "it takes none"
        message = f"{spec.name} has no param `{name}`; {known}"
        if type(value) is Scalar and value.is_null:
            message += "; inside of { } a comma ends a text, unless the text is in quotes"
        self._note(place_of(key), "unknown_param", message, near)

    def _refuse_template(self, param: Param | None, name: str, value: Node, compiled: Compiled) -> None:
        if param is not None and param.at_load and compiled.is_template:
            self._faulty = True
            message = f"`{name}` is read when the rulebook is loaded, so it takes no template"
            self._note(place_of(value), "bad_param", message)

    def _warn(self, param: Param | None, value: Node) -> None:
        """Look for swallowed texts, where the param is not a plain setting."""
        if param is None or not (param.at_load or param.is_number):
            if type(value) is Scalar and value.is_null:
                return
            note_swallowed_text(value, self._source, self._problems)

    def _check_literals(
        self, spec: HandlerSpec, literals: dict[str, Any], templates: set[str], regions: tuple[str | None, ...]
    ) -> None:
        """Let the handler's model judge what no run can change."""
        told: set[tuple[int, int]] = set()
        for region in regions:
            for detail in self._errors(spec, literals, region):
                loc = detail["loc"]
                name = str(loc[0]) if loc else ""
                if name in templates or (not loc and templates):
                    continue
                if detail["type"] == "missing" and len(loc) == 1:
                    self._note_missing(spec, name)
                else:
                    self._note_bad(spec, name, detail, told)

    def _errors(self, spec: HandlerSpec, literals: dict[str, Any], region: str | None) -> list[ErrorDetails]:
        key = (spec.name, repr(literals), region)
        known = self._judged.get(key)
        if known is None:
            try:
                spec.target.model_validate(literals, context={"region": region})
                known = []
            except ValidationError as error:
                known = error.errors(include_url=False)
            self._judged[key] = known
        return known

    def _note_missing(self, spec: HandlerSpec, name: str) -> None:
        if name in self._meant or self._unread:
            return
        self._faulty = True
        self._note(place_of(self._params_key()), "missing_param", f"{spec.name} needs the param `{name}`")

    def _params_key(self) -> Scalar:
        """Return where a param that is not written would stand."""
        return self._step.key("with") if "with" in self._step.members else self._handler_key

    def _note_bad(self, spec: HandlerSpec, name: str, detail: ErrorDetails, told: set[tuple[int, int]]) -> None:
        self._faulty = True
        where, _ = locate(self._node, detail["loc"])
        if where is self._node:
            where = self._node if self._node.members else self._handler_key
        if place_of(where) in told:
            return  # one value may miss each member of a union
        told.add(place_of(where))
        _, message, suggestion = judge(detail, where, literals_at(spec.target, detail["loc"]))
        if type(where) is Scalar and where.is_null and self._source.comment_behind(where):
            message += '; what follows "#" is a comment, so put the text in quotes'
        self._note(place_of(where), "bad_param", f"`{name}`: {message}" if name else message, suggestion)

    def _check_connections(
        self, spec: HandlerSpec, literals: dict[str, Any], templates: set[str]
    ) -> BrokenPlugin | None:
        """Look up the senders and services that params name; the default of a param counts too."""
        broken = None
        for param in spec.params.values():
            if param.names not in ("sender", "service") or param.name in templates:
                continue
            name = literals.get(param.name, param.default)
            if not isinstance(name, str):
                continue
            sender = param.names == "sender"
            built: Iterable[str] = self._connections.senders if sender else self._connections.services
            if name in built:
                continue
            self._faulty = True
            unusable = self._connections.unusable
            key = ("sender", name) if sender else ("service", name)
            if key in unusable:
                broken = unusable[key] or broken
            elif self._complete:
                self._note_unknown_connection(param, name, [*built, *(n for kind, n in unusable if kind == key[0])])
        return broken

    def _note_unknown_connection(self, param: Param, name: str, known: list[str]) -> None:
        written = self._node.get(param.name)
        where = written if written is not None else self._step.get("handler")
        listed = f"there are {', '.join(sorted(known))}" if known else f"the rulebook has no {param.names}s"
        asked = "" if written is not None else " (the one used where a step names none)"
        message = f"there is no {param.names} {shown(name)}{asked}; {listed}"
        suggestion = nearest(name, known) if written is not None else None
        self._note(place_of(where), f"unknown_{param.names}", message, suggestion)

    def _settle(self, spec: HandlerSpec, bound: BoundParams) -> None:
        """Ask the handler what only all params together tell, once each is right by itself."""
        if self._faulty:
            return
        bindings = self._connections.bindings
        for name, message in spec.target.check_params(bound.written, bindings):
            self._faulty = True
            written = self._node.get(name)
            where = written if written is not None else self._params_key()
            self._note(place_of(where), "bad_param", f"`{name}`: {message}")
        if not self._faulty:
            settled = spec.target.settle(bound.written, bindings)
            bound.settled = self._settled.setdefault(settled, settled)

    def _note_template(self, scalar: Scalar, problem: TemplateProblem) -> None:
        note_template(scalar, problem, self._source, self._problems)

    def _note(self, place: tuple[int, int], code: str, message: str, suggestion: str | None = None) -> None:
        self._problems.add(self._source.name, place, code, message, suggestion=suggestion)


def _is_misnamed(step: Mapping) -> bool:
    """Whether the params probably stand under a misspelt key, which has a problem of its own."""
    known = HandlerStep.model_fields
    return "with" not in step.members and any(
        type(value) is Mapping and name not in known for name, (_, value) in step.members.items()
    )


def note_template(scalar: Scalar, problem: TemplateProblem, source: Source, problems: Problems) -> None:
    """Note what is wrong with a template or an expression, at its very character."""
    place = place_in(scalar, problem.offset, source.lines(scalar.line, scalar.end_line))
    problems.add(source.name, place, problem.code, problem.message, suggestion=problem.suggestion)
