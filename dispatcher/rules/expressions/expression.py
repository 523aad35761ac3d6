"""A condition or a value as the rulebook writes it without braces: `data.consent == "yes"`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache

from jinja2 import nodes

from dispatcher.rules.expressions.compiler import Compiler
from dispatcher.rules.expressions.explanations import Explanation, explain
from dispatcher.rules.expressions.faults import TemplateProblem
from dispatcher.rules.expressions.parsing import parse_expression
from dispatcher.rules.expressions.paths import Evaluator, Path, Scope

_CACHED = 32_768
_TRUE_OR_FALSE = (nodes.Compare, nodes.Not, nodes.Test)


class Expression:
    """A compiled expression; it never changes, so one object serves every rule with the same source.

    `evaluate(scope)` gives the value, `test(scope)` whether it holds; both raise an ExpressionError when there is none.
    """

    __slots__ = ("evaluate", "paths", "source", "test")

    def __init__(self, source: str, evaluate: Evaluator, paths: tuple[Path, ...], *, is_boolean: bool) -> None:
        self.source = source
        self.paths = paths
        self.evaluate: Evaluator = evaluate
        self.test: Callable[[Scope], bool] = evaluate if is_boolean else lambda scope: bool(evaluate(scope))

    def __repr__(self) -> str:
        return f"Expression({self.source!r})"

    @property
    def roots(self) -> frozenset[str]:
        """The first names of all paths."""
        return frozenset(str(path.parts[0]) for path in self.paths)

    @property
    def vars_used(self) -> frozenset[str] | None:
        """The keys of `vars` that are read; None if only the event decides which."""
        return vars_in(self.paths)

    def explain(self, scope: Scope) -> Explanation:
        """Tell which clause decides, and what it saw."""
        return explain(self.source, scope)


def vars_in(paths: Iterable[Path]) -> frozenset[str] | None:
    """Return the keys of `vars` that paths read; None if that cannot be known at load."""
    keys = {path.parts[1] if len(path.parts) > 1 else None for path in paths if path.parts[0] == "vars"}
    return None if None in keys else frozenset(map(str, keys))


@lru_cache(_CACHED)
def compile_expression(source: str) -> Expression:
    """Compile an expression, or raise TemplateProblem."""
    inner = source.strip()
    if inner.startswith("{{") and inner.endswith("}}"):
        raise TemplateProblem(
            "template_syntax",
            'an expression stands without "{{" and "}}"',
            source.index("{{"),
            inner[2:-2].strip(" -+\t\r\n"),
        )
    node = parse_expression(source)
    compiler = Compiler()
    evaluate = compiler.evaluator(node)
    return Expression(source, evaluate, tuple(compiler.paths), is_boolean=isinstance(node, _TRUE_OR_FALSE))
