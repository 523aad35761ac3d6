"""Write a parsed expression back as text: the clause that `explain` names, the part that a failure points at."""

from __future__ import annotations

import json
from typing import Any

from jinja2 import nodes

_SYMBOLS = {"eq": "==", "ne": "!=", "gt": ">", "gteq": ">=", "lt": "<", "lteq": "<=", "in": "in", "notin": "not in"}

# How tightly each kind of expression holds together, loosest first; the order of Jinja's grammar.
_CHOICE, _OR, _AND, _NOT, _COMPARE, _ADD, _CONCAT, _MULTIPLY, _POWER, _FILTER, _UNARY, _POSTFIX = range(12)

_BINARY: dict[type[nodes.Expr], tuple[int, str]] = {
    nodes.Or: (_OR, "or"),
    nodes.And: (_AND, "and"),
    nodes.Add: (_ADD, "+"),
    nodes.Sub: (_ADD, "-"),
    nodes.Mul: (_MULTIPLY, "*"),
    nodes.Div: (_MULTIPLY, "/"),
    nodes.FloorDiv: (_MULTIPLY, "//"),
    nodes.Mod: (_MULTIPLY, "%"),
    nodes.Pow: (_POWER, "**"),
}


def written(node: nodes.Expr) -> str:
    """Write `node` as an expression that parses back to the same."""
    return _write(node)[0]


def _hold(node: nodes.Expr, tightness: int) -> str:
    text, own = _write(node)
    return text if own >= tightness else f"({text})"


def _write(node: nodes.Expr) -> tuple[str, int]:
    """Return the text of `node` and how tightly it holds together."""
    match node:
        case nodes.Const():
            return constant(node.value), _POSTFIX
        case nodes.Name():
            return node.name, _POSTFIX
        case nodes.Getattr():
            return f"{_hold(node.node, _POSTFIX)}.{node.attr}", _POSTFIX
        case nodes.Getitem():
            return f"{_hold(node.node, _POSTFIX)}[{written(node.arg)}]", _POSTFIX
        case nodes.Slice():
            parts = [node.start, node.stop, *([node.step] if node.step else [])]
            return ":".join(written(part) if part else "" for part in parts), _POSTFIX
        case nodes.List():
            return f"[{_listed(node.items)}]", _POSTFIX
        case nodes.Tuple():
            return f"({_listed(node.items)}{',' if len(node.items) == 1 else ''})", _POSTFIX
        case nodes.Dict():
            pairs = (f"{written(pair.key)}: {written(pair.value)}" for pair in node.items)
            return "{" + ", ".join(pairs) + "}", _POSTFIX
        case nodes.Filter() | nodes.Test():
            return _filter_or_test(node), _FILTER
        case nodes.Not(node=nodes.Test() as test):
            return _filter_or_test(test, negated=True), _FILTER
        case nodes.Not():
            return f"not {_hold(node.node, _NOT)}", _NOT
        case nodes.Neg() | nodes.Pos():
            return f"{node.operator}{_hold(node.node, _UNARY)}", _UNARY
        case nodes.Compare():
            text = _hold(node.expr, _ADD)
            for operand in node.ops:
                text += f" {_SYMBOLS[operand.op]} {_hold(operand.expr, _ADD)}"
            return text, _COMPARE
        case nodes.Concat():
            return " ~ ".join(_hold(part, _MULTIPLY) for part in node.nodes), _CONCAT
        case nodes.CondExpr():
            text = f"{_hold(node.expr1, _OR)} if {_hold(node.test, _OR)}"
            return text + (f" else {_hold(node.expr2, _CHOICE)}" if node.expr2 else ""), _CHOICE
        case nodes.BinExpr() if type(node) in _BINARY:
            tightness, symbol = _BINARY[type(node)]
            return f"{_hold(node.left, tightness)} {symbol} {_hold(node.right, tightness + 1)}", tightness
    return f"<{type(node).__name__}>", _POSTFIX


def constant(value: Any) -> str:
    """Write a literal in Jinja's spelling."""
    if value is None:
        return "none"
    if isinstance(value, str) and '"' in value and "'" not in value and "\\" not in value and value.isprintable():
        return f"'{value}'"
    if isinstance(value, str | int | float | bool):
        return json.dumps(value, ensure_ascii=False)
    return repr(value)


def _listed(items: list[nodes.Expr]) -> str:
    return ", ".join(map(written, items))


def _filter_or_test(node: nodes.Filter | nodes.Test, *, negated: bool = False) -> str:
    given = [*map(written, node.args), *(f"{pair.key}={written(pair.value)}" for pair in node.kwargs)]
    arguments = f"({', '.join(given)})" if given else ""
    if isinstance(node, nodes.Filter):
        return f"{_hold(node.node, _FILTER) if node.node else ''} | {node.name}{arguments}"
    # Jinja refuses a test of a test without brackets.
    tested = _hold(node.node, _UNARY if isinstance(node.node, nodes.Test | nodes.Not) else _FILTER)
    return f"{tested} is {'not ' if negated else ''}{node.name}{arguments}"
