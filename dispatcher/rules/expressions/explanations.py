"""Why an expression holds or not: its clauses, what each of them saw, and the one that decided."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from jinja2 import nodes

from dispatcher.rules.expressions.analysis import spine
from dispatcher.rules.expressions.compiler import Compiler
from dispatcher.rules.expressions.faults import EvaluationFailed, ExpressionError, UndefinedValue
from dispatcher.rules.expressions.parsing import parse_expression
from dispatcher.rules.expressions.paths import Scope
from dispatcher.rules.expressions.values import json_text, kind
from dispatcher.rules.expressions.wording import written

_SHOWN = 60


@dataclass(frozen=True, slots=True)
class Clause:
    """One part of a condition: its source, whether it holds (None: it has no value), what each of its paths was."""

    source: str
    verdict: bool | None
    seen: tuple[tuple[str, str], ...] = ()
    error: str | None = None

    @property
    def sentence(self) -> str:
        """Say it: `data.consent == "yes"` is false: data.consent is "no"."""
        if self.verdict is None:
            return f"{self.source} has no answer: {self.error}"
        told = f"{self.source} is {'true' if self.verdict else 'false'}"
        values = [f"{path} is {value}" for path, value in self.seen]
        if len(values) == 1 and self.seen[0][0] == self.source:
            return values[0]
        return f"{told}: {', '.join(values)}" if values else told


@dataclass(frozen=True, slots=True)
class Explanation:
    """Whether an expression holds, its clauses as far as they were evaluated, and the one that decided if it fails."""

    holds: bool
    clauses: tuple[Clause, ...]
    failed: Clause | None = None
    undefined: bool = field(default=False)

    @property
    def sentence(self) -> str:
        """Say why, in one sentence."""
        if self.failed is not None:
            return self.failed.sentence
        return "; ".join(clause.sentence for clause in self.clauses)


def explain(source: str, scope: Scope) -> Explanation:
    """Evaluate `source` clause by clause."""
    clauses: list[Clause] = []
    decided = _judge(parse_expression(source), scope, clauses)
    if decided.verdict:
        return Explanation(holds=True, clauses=tuple(clauses))
    return Explanation(holds=False, clauses=tuple(clauses), failed=decided, undefined=decided.verdict is None)


def _judge(node: nodes.Expr, scope: Scope, clauses: list[Clause]) -> Clause:
    """Return the verdict on `node` as the clause that decides it, noting every leaf on the way."""
    if isinstance(node, nodes.And | nodes.Or):
        holds_all = isinstance(node, nodes.And)
        judged = []
        for operand in spine(node):
            clause = _judge(operand, scope, clauses)
            if clause.verdict is None or clause.verdict != holds_all:
                return clause
            judged.append(clause)
        seen = tuple(dict.fromkeys(pair for clause in judged for pair in clause.seen))
        return Clause(written(node), holds_all, seen)
    if isinstance(node, nodes.Not) and isinstance(node.node, nodes.And | nodes.Or | nodes.Not):
        inner = _judge(node.node, scope, clauses)
        verdict = None if inner.verdict is None else not inner.verdict
        return Clause(written(node), verdict, inner.seen, inner.error)
    clause = _leaf(node, scope)
    clauses.append(clause)
    return clause


def _leaf(node: nodes.Expr, scope: Scope) -> Clause:
    source = written(node)
    try:
        verdict = bool(Compiler().evaluator(node)(scope))
    except ExpressionError as error:
        return Clause(source, None, _seen(node, scope), error.message)
    return Clause(source, verdict, _seen(node, scope))


def _seen(node: nodes.Expr, scope: Scope) -> tuple[tuple[str, str], ...]:
    seen: dict[str, str] = {}
    for path in _paths(node):
        try:
            seen[written(path)] = shortened(Compiler().evaluator(path)(scope))
        except UndefinedValue:
            seen[written(path)] = "not there"
        except EvaluationFailed as error:
            seen[written(path)] = error.message
    return tuple(seen.items())


def _paths(node: nodes.Node) -> list[nodes.Expr]:
    """List the paths in `node`, each as long as it is written."""
    if isinstance(node, nodes.Name | nodes.Getattr) or (
        isinstance(node, nodes.Getitem) and not isinstance(node.arg, nodes.Slice)
    ):
        inner = [path for child in _subscripts(node) for path in _paths(child)]
        return [node, *inner]
    return [path for child in node.iter_child_nodes() for path in _paths(child)]


def _subscripts(node: nodes.Expr) -> list[nodes.Expr]:
    found: list[nodes.Expr] = []
    while isinstance(node, nodes.Getattr | nodes.Getitem):
        if isinstance(node, nodes.Getitem):
            found.append(node.arg)
        node = node.node
    return found


def shortened(value: Any) -> str:
    """Write a value as JSON of at most 60 characters."""
    if isinstance(value, str):
        value = value if len(value) <= _SHOWN else value[:_SHOWN] + "…"
    try:
        text = json_text(value)
    except EvaluationFailed:
        return f"{kind(value)} of {len(value)} parts"
    return text if len(text) <= _SHOWN + 3 else text[:_SHOWN] + "…"
