"""From parsed nodes to evaluators: the allow-list of what expressions may hold, and a refusal for everything else."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import takewhile
from typing import Any, ClassVar

from jinja2 import nodes

from dispatcher.rules.expressions import closures
from dispatcher.rules.expressions.analysis import (
    asked_for,
    is_slice,
    is_surely_not_number,
    literal_path,
    only_texts,
    refused,
    spine,
    unknown,
)
from dispatcher.rules.expressions.closures import Constant
from dispatcher.rules.expressions.faults import EvaluationFailed, TemplateProblem, UndefinedValue
from dispatcher.rules.expressions.filters import DEFAULT_FILTERS, FILTER_NAMES, FILTERS, REQUIRED
from dispatcher.rules.expressions.parsing import MAX_DEPTH
from dispatcher.rules.expressions.paths import NOT_THERE, Evaluator, Key, Path, Scope, quick, specialised
from dispatcher.rules.expressions.predicates import DEFINED_TESTS, PREDICATES, TEST_NAMES
from dispatcher.rules.expressions.values import add, bounded_number, calculate, power, signed, sliced
from dispatcher.rules.expressions.wording import written

_DEFAULT_PARAMETERS = (("default_value", ""), ("boolean", False))
_FOREIGN_NAMES = {"null": "none", "NULL": "none", "nil": "none", "Null": "none", "TRUE": "true", "FALSE": "false"}


class Compiler:
    """Compiles the expressions of one source; `paths` collects every name they read."""

    def __init__(self) -> None:
        self.paths: list[Path] = []
        self._depth = 0
        self._guarding = False
        self._there: frozenset[tuple[Key, ...]] = frozenset()

    def evaluator(self, node: nodes.Expr) -> Evaluator:
        """Compile one expression."""
        method = self._METHODS.get(type(node))
        if method is None:
            raise refused(node)
        self.deeper(node)
        evaluate: Evaluator = method(self, node)
        self.shallower()
        return evaluate

    def deeper(self, node: nodes.Node) -> None:
        """Note that `node` holds what is compiled next, and refuse what is nested too deep to evaluate."""
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise refused(node, f"this is nested more than {MAX_DEPTH} deep")

    def shallower(self) -> None:
        """Note that a node is done."""
        self._depth -= 1

    @contextmanager
    def knowing(self, there: frozenset[tuple[Key, ...]]) -> Iterator[None]:
        """Compile what is evaluated only after `is defined` has been asked of these paths."""
        before = self._there
        self._there = before | there
        yield
        self._there = before

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        before, self._guarding = self._guarding, True
        yield
        self._guarding = before

    def _folded(self, evaluate: Evaluator, node: nodes.Expr, *operands: Evaluator) -> Evaluator:
        """Evaluate at load what no event can change; what always fails is refused now."""
        if not all(isinstance(operand, Constant) for operand in operands):
            return evaluate
        try:
            return Constant(evaluate({}))
        except EvaluationFailed as error:
            raise refused(node, f"this always fails: {error.message}") from None
        except UndefinedValue:
            return evaluate

    def _constant(self, node: nodes.Const) -> Evaluator:
        value = node.value
        if isinstance(value, int | float):
            try:
                bounded_number(value)
            except EvaluationFailed as error:
                raise refused(node, error.message) from None
        if isinstance(value, str) and any(
            character == "\0" or "\ud800" <= character <= "\udfff" for character in value
        ):
            raise TemplateProblem("template_syntax", "this text holds what cannot be stored or sent", node.lineno)
        return Constant(value)

    def _path(self, node: nodes.Name | nodes.Getattr | nodes.Getitem) -> Evaluator:
        links: list[nodes.Getattr | nodes.Getitem] = []
        base: nodes.Expr = node
        while isinstance(base, nodes.Getattr | nodes.Getitem) and not is_slice(base):
            links.append(base)
            base = base.node
        if len(links) > MAX_DEPTH:
            raise refused(node, f"this reaches more than {MAX_DEPTH} deep")
        links.reverse()
        position, plain = len(self.paths), 0
        if isinstance(base, nodes.Name):
            self._check_name(base, base.name)
            keys = [self._key(link) for link in links]
            parts = (base.name, *(key for key, _ in keys))
            self.paths.insert(position, Path(parts, base.lineno, self._may_be_missing(parts)))
            names = [str(key) for key in takewhile(lambda key: isinstance(key, str), parts[1:])]
            plain = len(names)
            evaluate = specialised(base.name, names)
        else:
            evaluate = self._slice(base) if isinstance(base, nodes.Getitem) else self.evaluator(base)
            keys = [self._key(link) for link in links]
        for link, (_, key) in zip(links[plain:], keys[plain:], strict=True):
            evaluate = closures.step(evaluate, key, partial(written, link), partial(written, link.node))
        return evaluate

    def _key(self, link: nodes.Getattr | nodes.Getitem) -> tuple[Key, Evaluator]:
        if isinstance(link, nodes.Getattr):
            self._check_name(link, link.attr)
            return link.attr, Constant(link.attr)
        compiled = self.evaluator(link.arg)
        if isinstance(compiled, Constant) and isinstance(compiled.value, str | int):
            if isinstance(compiled.value, str):
                self._check_name(link, compiled.value)
            if not isinstance(compiled.value, bool):
                return compiled.value, compiled
        return None, compiled

    def _check_name(self, node: nodes.Expr, name: str) -> None:
        if name.startswith("__") and name.endswith("__"):
            raise refused(node, f'"{name}" is a name of Python; a dot reads a key of an object, nothing else')
        if isinstance(node, nodes.Name) and name in _FOREIGN_NAMES:
            right = _FOREIGN_NAMES[name]
            raise TemplateProblem("template_syntax", f'"{name}" is written "{right}" here', node.lineno, right)

    def _may_be_missing(self, parts: tuple[Key, ...]) -> bool:
        return self._guarding or any(parts[:length] in self._there for length in range(1, len(parts) + 1))

    def _slice(self, node: nodes.Getitem) -> Evaluator:
        cut = node.arg
        assert isinstance(cut, nodes.Slice)
        bounds = [self.evaluator(part) if part else Constant(None) for part in (cut.start, cut.stop, cut.step)]
        operands = [self.evaluator(node.node), *bounds]
        return self._folded(closures.applied(sliced, operands, partial(written, node)), node, *operands)

    def _list(self, node: nodes.List | nodes.Tuple) -> Evaluator:
        items = [self.evaluator(item) for item in node.items]
        return lambda scope: [item(scope) for item in items]

    def _dict(self, node: nodes.Dict) -> Evaluator:
        pairs = [(self.evaluator(pair.key), self.evaluator(pair.value)) for pair in node.items]
        where = partial(written, node)

        def build(scope: Scope) -> dict[str, Any]:
            built = {}
            for key, value in pairs:
                name = key(scope)
                if isinstance(name, int) and not isinstance(name, bool):
                    name = str(name)
                if not isinstance(name, str):
                    raise EvaluationFailed("the keys of an object are text", where=where())
                built[name] = value(scope)
            return built

        return build

    def _and_or(self, node: nodes.And | nodes.Or) -> Evaluator:
        holds = isinstance(node, nodes.And)
        operands = spine(node)
        there = self._there
        compiled = []
        for operand in operands:
            compiled.append(self.evaluator(operand))
            self._there |= asked_for(operand, holds=holds)
        self._there = there
        join = closures.conjunction if holds else closures.disjunction
        return self._folded(join(compiled), node, *compiled)

    def _not(self, node: nodes.Not) -> Evaluator:
        value = self.evaluator(node.node)
        return self._folded(lambda scope: not value(scope), node, value)

    def _choice(self, node: nodes.CondExpr) -> Evaluator:
        condition = self.evaluator(node.test)
        with self.knowing(asked_for(node.test, holds=True)):
            then = self.evaluator(node.expr1)
        if node.expr2 is None:
            return closures.choice(condition, then, None, partial(written, node))
        with self.knowing(asked_for(node.test, holds=False)):
            otherwise = self.evaluator(node.expr2)
        evaluate = closures.choice(condition, then, otherwise, partial(written, node))
        return self._folded(evaluate, node, condition, then, otherwise)

    def _compare(self, node: nodes.Compare) -> Evaluator:
        left = self.evaluator(node.expr)
        where = partial(written, node)
        if len(node.ops) > 1:
            links = [(link.op, self.evaluator(link.expr)) for link in node.ops]
            chain = closures.comparison_chain(left, links, where)
            return self._folded(chain, node, left, *(operand for _, operand in links))
        name, other = node.ops[0].op, node.ops[0].expr
        if name in ("in", "notin") and isinstance(other, nodes.List | nodes.Tuple):
            texts = [getattr(item, "value", None) for item in other.items]
            if all(isinstance(text, str) for text in texts):
                return closures.among(left, frozenset(map(str, texts)), negated=name == "notin")
        right = self.evaluator(other)
        path = literal_path(node.expr)
        if path and isinstance(right, Constant) and isinstance(right.value, str) and only_texts(path[1:]):
            special = closures.path_compared(name, str(path[0]), [str(key) for key in path[1:]], right.value)
            if special:
                return special
        return self._folded(closures.compared(name, left, right, where), node, left, right)

    def _add(self, node: nodes.Add) -> Evaluator:
        operands = [self.evaluator(operand) for operand in spine(node)]
        return self._folded(closures.chained(add, operands, partial(written, node)), node, *operands)

    def _calculation(self, node: nodes.BinExpr) -> Evaluator:
        symbol, operation = _CALCULATIONS[type(node)]
        for operand in (node.left, node.right):
            if is_surely_not_number(operand):
                what = "formatting a text" if symbol == "%" else "repeating a text or a list"
                raise refused(node, f"{symbol} is for numbers: {what} is not offered")
        operands = [self.evaluator(node.left), self.evaluator(node.right)]
        function = partial(calculate, symbol, operation)
        return self._folded(closures.applied(function, operands, partial(written, node)), node, *operands)

    def _sign(self, node: nodes.UnaryExpr) -> Evaluator:
        operation = operator.neg if isinstance(node, nodes.Neg) else operator.pos
        value = self.evaluator(node.node)
        function = partial(signed, node.operator, operation)
        return self._folded(closures.applied(function, [value], partial(written, node)), node, value)

    def _concat(self, node: nodes.Concat) -> Evaluator:
        operands = [self.evaluator(part) for part in node.nodes]
        return self._folded(closures.joined_by_tilde(operands, partial(written, node)), node, *operands)

    def _filter(self, node: nodes.Filter) -> Evaluator:
        if node.node is None:
            raise refused(node, "a filter block is not offered")
        if node.name in DEFAULT_FILTERS:
            return self._default(node, node.node)
        if node.name not in FILTERS:
            raise unknown("filter", node, FILTER_NAMES)
        offered = FILTERS[node.name]
        operands = [self.evaluator(node.node), *self._arguments(node, offered.parameters)]
        evaluate = closures.applied(offered.function, operands, partial(written, node))
        return evaluate if node.name in _BUILDS_LISTS else self._folded(evaluate, node, *operands)

    def _default(self, node: nodes.Filter, value: nodes.Expr) -> Evaluator:
        with self._guarded():
            operand = self.evaluator(value)
        fallback, when_false = self._arguments(node, _DEFAULT_PARAMETERS)
        path = literal_path(value)
        if path and only_texts(path[1:]) and isinstance(when_false, Constant) and not when_false.value:
            return closures.quickly_defaulted(quick(str(path[0]), [str(key) for key in path[1:]]), fallback)
        return closures.defaulted(operand, fallback, when_false)

    def _arguments(self, node: nodes.Filter, parameters: tuple[tuple[str, Any], ...]) -> list[Evaluator]:
        """Bind the arguments of a filter to its parameters, at load."""
        if node.dyn_args or node.dyn_kwargs:
            raise refused(node, "* and ** are not offered")
        names = [name for name, _ in parameters]
        takes = f'"{node.name}" takes ({", ".join(names)})' if names else f'"{node.name}" takes no arguments'
        given: dict[str, nodes.Expr] = dict(zip(names, node.args, strict=False))
        if len(node.args) > len(names):
            raise refused(node, f"too many arguments: {takes}")
        for pair in node.kwargs:
            key = str(pair.key)
            if key not in names or key in given:
                problem = "is given twice" if key in given else "is unknown"
                raise refused(node, f'argument "{key}" {problem}: {takes}')
            given[key] = pair.value
        bound = []
        for name, default in parameters:
            if name not in given and default is REQUIRED:
                raise refused(node, f'argument "{name}" is missing: {takes}')
            bound.append(self.evaluator(given[name]) if name in given else Constant(default))
        return bound

    def _test(self, node: nodes.Test) -> Evaluator:
        if node.dyn_args or node.dyn_kwargs or node.kwargs:
            raise refused(node, f'"is {node.name}" takes plain arguments only')
        if node.name in DEFINED_TESTS:
            if node.args:
                raise refused(node, f'"is {node.name}" takes no arguments')
            with self._guarded():
                value = self.evaluator(node.node)
            path = literal_path(node.node)
            negated = node.name == "undefined"
            if path and only_texts(path[1:]):
                return closures.defined(quick(str(path[0]), [str(key) for key in path[1:]]), NOT_THERE, negated=negated)
            return closures.defined(value, (UndefinedValue,), negated=negated)
        if node.name not in PREDICATES:
            raise unknown("test", node, TEST_NAMES)
        predicate = PREDICATES[node.name]
        if len(node.args) != predicate.arguments:
            count = predicate.arguments
            wants = f"{count or 'no'} argument{'' if count == 1 else 's'}"
            raise refused(node, f'"is {node.name}" takes {wants}')
        operands = [self.evaluator(node.node), *map(self.evaluator, node.args)]
        return self._folded(closures.applied(predicate.function, operands, partial(written, node)), node, *operands)

    def _call(self, node: nodes.Call) -> Evaluator:
        called = node.node
        if isinstance(called, nodes.Getattr) and called.attr in FILTER_NAMES:
            instead = f"{written(called.node)} | {called.attr}"
            raise refused(node, "calls are not offered; filters are", instead)
        raise refused(node, "calls are not offered in expressions and texts")

    _METHODS: ClassVar[dict[type[nodes.Node], Callable[[Any, Any], Evaluator]]] = {
        nodes.Const: _constant,
        nodes.Name: _path,
        nodes.Getattr: _path,
        nodes.Getitem: _path,
        nodes.List: _list,
        nodes.Tuple: _list,
        nodes.Dict: _dict,
        nodes.And: _and_or,
        nodes.Or: _and_or,
        nodes.Not: _not,
        nodes.CondExpr: _choice,
        nodes.Compare: _compare,
        nodes.Add: _add,
        nodes.Sub: _calculation,
        nodes.Mul: _calculation,
        nodes.Div: _calculation,
        nodes.FloorDiv: _calculation,
        nodes.Mod: _calculation,
        nodes.Pow: _calculation,
        nodes.Neg: _sign,
        nodes.Pos: _sign,
        nodes.Concat: _concat,
        nodes.Filter: _filter,
        nodes.Test: _test,
        nodes.Call: _call,
    }


_CALCULATIONS: dict[type[nodes.BinExpr], tuple[str, Callable[[Any, Any], Any]]] = {
    nodes.Sub: ("-", operator.sub),
    nodes.Mul: ("*", operator.mul),
    nodes.Div: ("/", operator.truediv),
    nodes.FloorDiv: ("//", operator.floordiv),
    nodes.Mod: ("%", operator.mod),
    nodes.Pow: ("**", power),
}
_BUILDS_LISTS = ("list", "reverse", "sort", "unique")
