"""What can be told of a parsed expression before it is compiled: its paths, its operands, and why it is refused."""

from __future__ import annotations

from difflib import get_close_matches

from jinja2 import nodes

from dispatcher.rules.expressions.faults import TemplateProblem
from dispatcher.rules.expressions.filters import FILTERS
from dispatcher.rules.expressions.paths import Key

_SAID_AS: dict[type[nodes.Node], str] = {
    nodes.Call: "a call",
    nodes.For: "a loop",
    nodes.Macro: "a macro",
    nodes.CallBlock: "a call",
    nodes.FilterBlock: "a filter block",
    nodes.Assign: "set",
    nodes.AssignBlock: "set",
    nodes.Include: "include",
    nodes.Import: "import",
    nodes.FromImport: "import",
    nodes.Block: "a block",
    nodes.Extends: "extends",
    nodes.With: "with",
    nodes.ScopedEvalContextModifier: "autoescape",
}


def refused(node: nodes.Node, why: str | None = None, suggestion: str | None = None) -> TemplateProblem:
    """Say that a part of a source is not offered."""
    what = why or f"{_SAID_AS.get(type(node), type(node).__name__)} is not offered in expressions and texts"
    while isinstance(node, nodes.BinExpr):
        node = node.left
    return TemplateProblem("unsafe_template", what, node.lineno or 0, suggestion)


def literal_path(node: nodes.Expr) -> tuple[Key, ...] | None:
    """Return the parts of a path of names and literal subscripts, None for anything else."""
    keys: list[Key] = []
    while isinstance(node, nodes.Getattr | nodes.Getitem):
        key = node.attr if isinstance(node, nodes.Getattr) else getattr(node.arg, "value", None)
        if isinstance(key, bool) or not isinstance(key, str | int):
            return None
        keys.append(key)
        node = node.node
    return (node.name, *reversed(keys)) if isinstance(node, nodes.Name) else None


def asked_for(condition: nodes.Expr, *, holds: bool) -> frozenset[tuple[Key, ...]]:
    """Return the paths that are surely there when `condition` holds (or does not), by its `is defined`."""
    match condition:
        case nodes.Test(name="defined" | "undefined") if (condition.name == "defined") == holds:
            path = literal_path(condition.node)
            return frozenset([path]) if path else frozenset()
        case nodes.Not():
            return asked_for(condition.node, holds=not holds)
        case nodes.And() | nodes.Or() if isinstance(condition, nodes.And) == holds:
            return asked_for(condition.left, holds=holds) | asked_for(condition.right, holds=holds)
    return frozenset()


def is_slice(node: nodes.Getattr | nodes.Getitem) -> bool:
    """Whether a subscript cuts a piece out instead of naming an item."""
    return isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice)


def only_texts(keys: tuple[Key, ...]) -> bool:
    """Whether all keys are literal texts."""
    return all(isinstance(key, str) for key in keys)


def spine(node: nodes.BinExpr) -> list[nodes.Expr]:
    """List the operands of a chain of one operation: a + b + c is (a + b) + c to the parser."""
    operands: list[nodes.Expr] = []
    left: nodes.Expr = node
    while type(left) is type(node) and isinstance(left, nodes.BinExpr):
        operands.append(left.right)
        left = left.left
    return [left, *reversed(operands)]


def is_surely_not_number(node: nodes.Expr) -> bool:
    """Whether an operand can be seen, without any event, to be no number."""
    if isinstance(node, nodes.Const):
        return not isinstance(node.value, int | float)
    if isinstance(node, nodes.Filter):
        return node.name in FILTERS and FILTERS[node.name].gives_text
    return isinstance(node, nodes.Concat | nodes.List | nodes.Tuple | nodes.Dict)


def unknown(what: str, node: nodes.Filter | nodes.Test, names: tuple[str, ...]) -> TemplateProblem:
    """Refuse a filter or a test that is not offered, naming the nearest that is."""
    near = get_close_matches(node.name, names, n=1, cutoff=0.7)
    return refused(node, f'there is no {what} "{node.name}" here', near[0] if near else None)
