"""A value of the rulebook that may hold `{{ }}`, `{% if %}` and `{# #}`; without any of them it is a literal.

A value that is exactly one `{{ expression }}` keeps the type of the expression; anything else becomes text.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any, cast

from jinja2 import nodes

from dispatcher.rules.expressions.analysis import asked_for, refused
from dispatcher.rules.expressions.closures import Constant, Where, text_joined
from dispatcher.rules.expressions.compiler import Compiler
from dispatcher.rules.expressions.expression import vars_in
from dispatcher.rules.expressions.faults import EvaluationFailed, TemplateProblem
from dispatcher.rules.expressions.parsing import MAX_DEPTH, check_source, parse_template
from dispatcher.rules.expressions.paths import Evaluator, Path, Scope, specialised
from dispatcher.rules.expressions.values import MAX_BUILT, fits, kind
from dispatcher.rules.expressions.wording import constant, written

_CACHED = 32_768
_MOST_SEGMENTS = 100  # above it the parser's own limits decide
_PLAIN_PATH = re.compile(r"\s*(data|event|run|steps|vars)((?:\.[A-Za-z_][A-Za-z0-9_]*)+)\s*\Z")
_BUILDERS = (nodes.List, nodes.Tuple, nodes.Dict, nodes.Add)


class Template:
    """A compiled value; it never changes, so one object serves every rule with the same source.

    `render(scope)` gives the value, and raises an ExpressionError when there is none. What data holds is never
    rendered again. `literal` is the value of a template that no event can change.
    """

    __slots__ = ("is_literal", "literal", "paths", "render", "source")

    def __init__(self, source: str, render: Evaluator, paths: tuple[Path, ...]) -> None:
        self.source = source
        self.render: Evaluator = render
        self.paths = paths
        self.is_literal = isinstance(render, Constant)
        self.literal: Any = render.value if isinstance(render, Constant) else None

    def __repr__(self) -> str:
        return f"Template({self.source!r})"

    @property
    def roots(self) -> frozenset[str]:
        """The first names of all paths."""
        return frozenset(str(path.parts[0]) for path in self.paths)

    @property
    def vars_used(self) -> frozenset[str] | None:
        """The keys of `vars` that are read; None if only the event decides which."""
        return vars_in(self.paths)


@lru_cache(_CACHED)
def compile_template(value: str) -> Template:
    """Compile a value, or raise TemplateProblem."""
    if "{{" not in value and "{%" not in value and "{#" not in value:
        check_source(value)
        return Template(value, Constant(value), ())
    return _from_segments(value) or _from_whole(value)


class _Segment:
    """One `{{ ... }}`: its evaluator, paths with offsets from its first brace, and its source for messages."""

    __slots__ = ("evaluate", "native", "paths", "where")

    def __init__(self, evaluate: Evaluator, native: Evaluator, paths: tuple[Path, ...], where: Where) -> None:
        self.evaluate = evaluate
        self.native = native
        self.paths = paths
        self.where = where


@lru_cache(_CACHED)
def _segment(inner: str) -> _Segment | None:
    """Compile what stands between `{{` and `}}`; None if it has a problem, or is not one expression alone."""
    plain = _PLAIN_PATH.match(inner)
    if plain and "__" not in inner and inner.count(".") <= MAX_DEPTH:
        root, keys = plain.group(1), plain.group(2)[1:].split(".")
        evaluate = specialised(root, keys)
        path = Path((root, *keys), 2 + plain.start(1))
        return _Segment(evaluate, evaluate, (path,), partial(str.strip, inner))
    try:
        body = parse_template("{{" + inner + "}}").body
        node = _only_expression(body)
        if node is None:
            return None
        compiler = Compiler()
        evaluate = compiler.evaluator(node)
    except TemplateProblem:
        return None
    return _Segment(evaluate, _native(node, evaluate), tuple(compiler.paths), partial(written, node))


def _from_segments(source: str) -> Template | None:
    """Compile texts around `{{ ... }}` without parsing each text anew: expressions recur, the texts around them do not.

    It handles only what cannot be read in two ways: no blocks, no comments, no brace inside the braces. A part that is
    cut in two by `}}` in a quoted text is no expression by itself, so Jinja's parser gets the whole.
    """
    if "{%" in source or "{#" in source or "\r" in source or source.count("{{") > _MOST_SEGMENTS:
        return None
    check_source(source)
    parts: list[str | Evaluator] = []
    places: list[Where] = []
    paths: list[Path] = []
    position = 0
    while (start := source.find("{{", position)) >= 0:
        end = source.find("}}", start + 2)
        inner = source[start + 2 : end]
        if end < 0 or "{" in inner or inner[:1] in ("-", "+") or inner[-1:] == "-":
            return None
        segment = _segment(inner)
        if segment is None:
            return None
        if start == 0 and end + 2 == len(source):
            return Template(source, segment.native, segment.paths)
        _append_text(parts, places, source[position:start])
        parts.append(segment.evaluate)
        places.append(segment.where)
        paths += [replace(path, offset=path.offset + start) for path in segment.paths]
        position = end + 2
    _append_text(parts, places, source[position:])
    return Template(source, _text(parts, places), tuple(paths))


def _from_whole(source: str) -> Template:
    body = parse_template(source).body
    compiler = Compiler()
    node = _only_expression(body)
    evaluate = _block(compiler, body) if node is None else _native(node, compiler.evaluator(node))
    return Template(source, evaluate, tuple(compiler.paths))


def _only_expression(body: list[nodes.Node]) -> nodes.Expr | None:
    """Return the expression of a template that is nothing else."""
    if len(body) == 1 and isinstance(body[0], nodes.Output) and len(body[0].nodes) == 1:
        node = body[0].nodes[0]
        return None if isinstance(node, nodes.TemplateData) else node
    return None


def _native(node: nodes.Expr, evaluate: Evaluator) -> Evaluator:
    """Bound what an expression builds; what it passes on from the event is as large as it is."""
    if not isinstance(node, _BUILDERS) and next(node.find_all(_BUILDERS), None) is None:
        return evaluate

    def bounded(scope: Scope) -> Any:
        value = evaluate(scope)
        if isinstance(value, list | dict) and not fits(value, MAX_BUILT):
            raise EvaluationFailed(f"the {kind(value)} would be larger than an event may be")
        return value

    return bounded


def _block(compiler: Compiler, body: list[nodes.Node]) -> Evaluator:
    """Compile texts, values and `{% if %}` to one text."""
    parts: list[str | Evaluator] = []
    places: list[Where] = []
    for statement in body:
        if isinstance(statement, nodes.Output):
            for node in statement.nodes:
                if isinstance(node, nodes.TemplateData):
                    _append_text(parts, places, node.data)
                else:
                    parts.append(compiler.evaluator(node))
                    places.append(partial(written, node))
        elif isinstance(statement, nodes.If):
            parts.append(_condition(compiler, statement))
            places.append(partial(constant, "{% if %}"))
        else:
            raise refused(statement)
    return _text(parts, places)


def _condition(compiler: Compiler, statement: nodes.If) -> Evaluator:
    branches: list[tuple[Evaluator, Evaluator]] = []
    there: frozenset[Any] = frozenset()
    compiler.deeper(statement)
    for branch in (statement, *statement.elif_):
        condition = cast("nodes.Expr", branch.test)
        with compiler.knowing(there):
            test = compiler.evaluator(condition)
            with compiler.knowing(asked_for(condition, holds=True)):
                branches.append((test, _block(compiler, branch.body)))
        there |= asked_for(condition, holds=False)
    with compiler.knowing(there):
        otherwise = _block(compiler, statement.else_)
    compiler.shallower()

    def choose(scope: Scope) -> Any:
        for test, text in branches:
            if test(scope):
                return text(scope)
        return otherwise(scope)

    return choose


def _append_text(parts: list[str | Evaluator], places: list[Where], text: str) -> None:
    if text:
        parts.append(text)
        places.append(str)


def _text(parts: list[str | Evaluator], places: list[Where]) -> Evaluator:
    render = text_joined(tuple(parts), tuple(places))
    if all(isinstance(part, str | Constant) for part in parts):
        try:
            return Constant(render({}))
        except EvaluationFailed as error:
            raise TemplateProblem("unsafe_template", f"this always fails: {error.message}") from None
    return render
