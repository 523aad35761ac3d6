"""The params of a step, compiled: literals once, templates as closures that read the scope of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from dispatcher.rules.expressions import ExpressionError, Path, Template, TemplateProblem, compile_template
from dispatcher.rules.nodes import Broken, Node, Scalar, Sequence, core_scalar

Render = Callable[[dict[str, Any]], Any]
OnProblem = Callable[[Scalar, TemplateProblem], None]


class ParamFailed(ExpressionError):
    """A param whose template has no value for this run; names the param."""

    def __init__(self, param: str, error: ExpressionError) -> None:
        super().__init__(f'param "{param}": {error}')
        self.param = param


class Params:
    """The params of one step. `literal` tells that no run can change them, so that they need rendering only once."""

    __slots__ = ("_constants", "_renders", "literal")

    def __init__(self, constants: dict[str, Any], renders: Iterable[tuple[str, Render]], *, literal: bool) -> None:
        self._constants = constants
        self._renders = tuple(renders)
        self.literal = literal

    def literal_of(self, name: str) -> Any:
        """Return the value of a param if it is a single literal; None if it is not given, or not known at load."""
        return self._constants.get(name)

    def depends(self, name: str) -> bool:
        """Whether a run decides the value of this param."""
        return any(name == rendered for rendered, _ in self._renders)

    def render(self, scope: dict[str, Any]) -> dict[str, Any]:
        """Return the params for a run, as the handler's model reads them. Raises ParamFailed."""
        values = self._constants.copy()
        name = ""
        try:
            for name, render in self._renders:  # told in the error
                values[name] = render(scope)
        except ExpressionError as error:
            raise ParamFailed(name, error) from error
        return values

    def render_each(self, scope: dict[str, Any]) -> tuple[dict[str, Any], dict[str, ExpressionError]]:
        """Return the params that have a value, and of each other one why it has none: for those who only look."""
        values = self._constants.copy()
        missing: dict[str, ExpressionError] = {}
        for name, render in self._renders:
            try:
                values[name] = render(scope)
            except ExpressionError as error:
                missing[name] = error
        return values, missing


class Compiled:
    """One value of the rulebook, compiled: a constant, or something to be rendered.

    `is_template` tells whether a run decides any part of it; `source` is the value as written, typed.
    """

    __slots__ = ("broken", "is_template", "paths", "render", "source")

    def __init__(self) -> None:
        self.render: Render | None = None
        self.source: Any = None
        self.is_template = False
        self.broken = False
        self.paths: list[tuple[Scalar, Path]] = []


def compile_value(node: Node, *, free: bool, on_problem: OnProblem) -> Compiled:
    """Compile a value; `free` ones are typed as YAML 1.2 core does, others stay text for a model to type."""
    found = Compiled()
    found.source, found.render = _compile(node, free, on_problem, found)
    return found


def _compile(node: Node, free: bool, on_problem: OnProblem, found: Compiled) -> tuple[Any, Render | None]:  # noqa: FBT001
    """Return the value as written, and how to render it if it is not simply that."""
    kind = type(node)
    if kind is Scalar:
        text = node.text
        if "{" in text or "}" in text:
            return _compile_text(node, on_problem, found)
        if node.style:
            return text, None
        return (core_scalar(node) if free or node.is_null else text), None
    if kind is Broken:
        found.broken = True
        return None, None
    if kind is Sequence:
        items = [_compile(item, free, on_problem, found) for item in node.items]
        return [source for source, _ in items], _list_of([_renders(item) for item in items])
    members = {name: _compile(value, free, on_problem, found) for name, (_, value) in node.members.items()}
    for name, (key, _) in node.members.items():
        if "{{" in name or "{%" in name:
            on_problem(key, TemplateProblem("template_syntax", "a key is no template; only values are"))
            found.broken = True
    sources = {name: source for name, (source, _) in members.items()}
    return sources, _mapping_of([(name, _renders(member)) for name, member in members.items()])


def _compile_text(node: Scalar, on_problem: OnProblem, found: Compiled) -> tuple[Any, Render | None]:
    try:
        template: Template = compile_template(node.text)
    except TemplateProblem as problem:
        on_problem(node, problem)
        found.broken = True
        return None, None
    if template.is_literal:
        return node.text, None if template.literal == node.text else _constant(template.literal)
    found.is_template = True
    found.paths.extend((node, path) for path in template.paths)
    return node.text, template.render


def _renders(compiled: tuple[Any, Render | None]) -> Render:
    source, render = compiled
    return render or _constant(source)


def _constant(value: Any) -> Render:
    return lambda _: value


# Lists and mappings are made anew for each run, so that no handler can change those of another.
def _list_of(items: list[Render]) -> Render:
    return lambda scope: [render(scope) for render in items]


def _mapping_of(members: list[tuple[str, Render]]) -> Render:
    return lambda scope: {name: render(scope) for name, render in members}
