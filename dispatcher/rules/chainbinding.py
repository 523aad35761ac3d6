"""Bind one chain: its trigger, its condition, its steps, and the names that they use."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping as AnyMapping
from datetime import timedelta
from functools import lru_cache
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from dispatcher.plugins.registry import BrokenPlugin
from dispatcher.rules.catalogue import HandlerSpec
from dispatcher.rules.chains import BoundChain, Chain, RetryPolicy, Step, pack
from dispatcher.rules.comments import Source, note_swallowed_text
from dispatcher.rules.expressions import Expression, Path, TemplateProblem, compile_expression
from dispatcher.rules.names import KnownNames, note_misnomer
from dispatcher.rules.nodes import Broken, Mapping, Node, Scalar, Sequence, described, shown
from dispatcher.rules.parambinding import note_template
from dispatcher.rules.problems import nearest
from dispatcher.rules.reading import keys_of, place_of, read
from dispatcher.rules.shape import (
    RETRY_INITIAL,
    RETRY_LONGEST,
    RETRY_WITHIN,
    ChainHead,
    HandlerStep,
    StopStep,
    TriggerShape,
    WaitStep,
)
from dispatcher.text.durations import format_duration

if TYPE_CHECKING:
    from dispatcher.rules.binding import Binder

_KINDS: AnyMapping[str, type[HandlerStep | WaitStep | StopStep]] = {
    "handler": HandlerStep,
    "wait": WaitStep,
    "stop": StopStep,
}
_STEP_KEYS = frozenset(key for model in _KINDS.values() for key in keys_of(model))
_CONTROL_TIMEOUT = timedelta(seconds=30)
_CONTROL_RETRY = RetryPolicy(RETRY_WITHIN, RETRY_INITIAL, RETRY_LONGEST, None)
_canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode


class ChainBinding:
    """The binding of one chain."""

    def __init__(self, binder: Binder, node: Mapping, source: Source) -> None:
        self._binder = binder
        self._rulebook = binder.rulebook
        self._problems = binder.problems
        self._node = node
        self._source = source
        self._used_vars: set[str | None] = set()
        self._broken: BrokenPlugin | None = None
        self._broken_noted = 0
        self._regions: tuple[str | None, ...] = ()
        self._names = KnownNames(None, None)

    def bind(self) -> BoundChain | None:
        """Bind it, or note what is wrong with it."""
        before = self._problems.errors
        head = read(ChainHead, self._node, self._source.name, self._problems, name="", steps=[None])
        if head is None:
            return None
        self._check_name(head.name)
        description = self._node.get("description")
        if description is not None:
            note_swallowed_text(description, self._source, self._problems)
        trigger = self._trigger(head.on)
        self._regions = self._binder.regions_of(trigger)
        self._names.fields = self._binder.fields_of(trigger)
        self._names.vars = self._rulebook.vars if self._rulebook.complete else None
        self._names.in_condition = True
        when = self._expression(self._node.get("when"))
        self._names.in_condition = False
        steps, documents = self._bind_steps(self._node.get("steps"))
        if self._problems.errors - before > self._broken_noted:
            return None
        chain = self._finished(head, trigger, when, steps, documents)
        return BoundChain(chain, self._broken)

    def _check_name(self, name: str) -> None:
        node = self._node.get("name")
        if not name or type(node) is not Scalar:
            return
        known = self._binder.names.setdefault(name, (self._source.name, node.line))
        if known != (self._source.name, node.line):
            message = f"there is a chain {shown(name)} already, in {known[0]}, line {known[1]}"
            self._note(place_of(node), "duplicate_name", message)

    def _trigger(self, on: TriggerShape) -> TriggerShape:
        """Return the trigger within the account of the file."""
        scope = self._rulebook.file_accounts.get(self._source.name)
        if scope is None:
            return on
        if on.account is not None and set(on.account) != {scope}:
            where = self._node.members["on"][1].get("account")
            message = f"this file is scoped to the account {shown(scope)} (`account:` at its top), which does not fit"
            self._note(place_of(where), "bad_value", message, scope)
        return on.model_copy(update={"account": (scope,)})

    def _expression(self, node: Node) -> Expression | None:
        if type(node) is not Scalar or node.is_null or not node.text:
            return None
        try:
            expression = compile_expression(node.text)
        except TemplateProblem as problem:
            note_template(node, problem, self._source, self._problems)
            return None
        for path in expression.paths:
            self._check_path(node, path)
        return expression

    def _check_path(self, scalar: Scalar, path: Path) -> None:
        if path.parts[0] == "vars":
            name = path.parts[1] if len(path.parts) > 1 else None
            self._used_vars.add(None if name is None else str(name))
        note_misnomer(scalar, path, self._names, self._source, self._problems)

    def _bind_steps(self, node: Node) -> tuple[list[Step], list[dict[str, Any]]]:
        items = node.items if type(node) is Sequence else []
        ids = self._ids(items)
        steps, documents = [], []
        for position, item in enumerate(items):
            self._names.here = ids[position]
            self._names.later = tuple(ids[position + 1 :])
            bound = self._bind_step(position, ids[position], item)
            if bound is not None:
                step, document = bound
                steps.append(step)
                documents.append(document)
            self._names.steps.setdefault(ids[position], None)
        return steps, documents

    def _ids(self, items: list[Node]) -> list[str]:
        """Give every step an id: its own, or its handler's name, numbered where that is taken."""
        own: dict[str, int] = {}
        for item in items:
            node = item.get("id") if type(item) is Mapping else None
            unreadable = type(item) is not Mapping or item.partial or type(node) is Broken
            if unreadable or (
                node is None and any(nearest(name, ("id",)) for name in item.members.keys() - _STEP_KEYS)
            ):
                self._names.unsure = True
            if type(node) is not Scalar or node.is_null:
                continue
            if node.text in own:
                message = f"there is a step {shown(node.text)} already, in line {own[node.text]}"
                self._note(place_of(node), "duplicate_name", message)
            own.setdefault(node.text, node.line)
        taken = set(own)
        ids = []
        for item in items:
            name = _own_id(item)
            if name is None:
                base = _kind_name(item)
                name = base
                number = 2
                while name in taken:
                    name, number = f"{base}_{number}", number + 1
                taken.add(name)
            ids.append(name)
        return ids

    def _bind_step(self, position: int, step_id: str, item: Node) -> tuple[Step, dict[str, Any]] | None:
        if type(item) is not Mapping:
            if type(item) is not Broken:
                message = f"a step is a mapping, such as `handler: send_sms`, found {described(item)}"
                self._note(place_of(item), "wrong_type", message)
            return None
        kind, node = self._kind(item)
        shape = read(_KINDS[kind], node, self._source.name, self._problems)
        when = self._expression(node.get("when"))
        if kind == "handler":
            name = node.get("handler")
            if type(name) is not Scalar or name.is_null or not name.text:
                return None
            return self._bind_handler(position, step_id, node, shape, when)  # type: ignore[arg-type]
        self._names.steps[step_id] = ()
        stop = self._expression(node.get("stop")) if kind == "stop" else None
        if shape is None:
            return None
        document: dict[str, Any] = {"id": step_id}
        if when is not None:
            document["when"] = when.source
        wait = shape.wait if isinstance(shape, WaitStep) else None
        document[kind] = format_duration(wait) if wait is not None else getattr(stop, "source", "")
        step = Step(
            position=position,
            id=step_id,
            kind=kind,  # type: ignore[arg-type]  # one of the keys of _KINDS
            handler_name=kind,
            when=when,
            handler=None,
            params=None,
            number_params=(),
            settled=None,
            timeout=_CONTROL_TIMEOUT,
            retry=_CONTROL_RETRY,
            on_error="stop",
            on_unknown="hold",
            wait=wait,
            stop=stop,
        )
        return step, document

    def _kind(self, item: Mapping) -> tuple[str, Mapping]:
        """Tell what kind of step this is meant to be, and return it without what belongs to another kind."""
        kinds = [name for name in item.members if name in _KINDS]
        if len(kinds) == 1:
            return kinds[0], item
        if kinds:
            message = f"a step is one thing: it has `{kinds[0]}`, so `{kinds[1]}` belongs in a step of its own"
            self._note(place_of(item.key(kinds[1])), "bad_value", message)
            return kinds[0], item.without(*kinds[1:])
        if HandlerStep.reserved & item.members.keys():
            return "handler", Mapping(item.members, item.line, item.column, partial=True)
        near = (nearest(name, _KINDS) for name in item.members if name not in _STEP_KEYS)
        return next((kind for kind in near if kind is not None), "handler"), item

    def _bind_handler(
        self, position: int, step_id: str, node: Mapping, shape: HandlerStep | None, when: Expression | None
    ) -> tuple[Step, dict[str, Any]] | None:
        name: Scalar = node.members["handler"][1]
        spec = self._spec(name)
        bound = self._binder.params.bind(spec, node.get("with"), node, self._source, self._regions)
        for scalar, path in bound.paths:
            self._check_path(scalar, path)
        self._names.steps[step_id] = spec.offers if spec is not None else None
        self._broken = self._broken or bound.broken
        if shape is None:
            return None
        retry = self._binder.retry_for(shape.retry)
        defaults = self._rulebook.defaults
        timeout = shape.timeout or defaults.timeout or (spec.target.timeout if spec else _CONTROL_TIMEOUT)
        on_unknown = shape.on_unknown or defaults.on_unknown or "hold"
        key = (step_id, name.text, position, when, retry, timeout, shape.on_error, on_unknown, repr(bound.written))
        step = Step(
            position=position,
            id=sys.intern(step_id),
            kind="handler",
            handler_name=sys.intern(name.text),
            when=when,
            handler=spec.target if spec else None,
            params=bound.params,
            number_params=spec.number_params if spec else (),
            settled=bound.settled,
            timeout=timeout,
            retry=retry,
            on_error=shape.on_error,
            on_unknown=on_unknown,
            wait=None,
            stop=None,
        )
        document = {
            "id": step_id,
            "handler": name.text,
            "with": bound.written,
            "retry": _retry_document(retry),
            "on_error": shape.on_error,
            "on_unknown": on_unknown,
        }
        own_timeout = shape.timeout or defaults.timeout
        if own_timeout is not None:
            document["timeout"] = format_duration(own_timeout)
        if when is not None:
            document["when"] = when.source
        return self._binder.shared_step(key, step), document

    def _spec(self, name: Scalar) -> HandlerSpec | None:
        found = self._binder.catalogue.handler(name.text)
        if isinstance(found, HandlerSpec):
            return found
        if isinstance(found, BrokenPlugin):
            self._broken = found
            self._broken_noted += 1
            message = f"the handler {shown(name.text)} is installed, but broken: {found}"
            self._note(place_of(name), "broken_handler", message)
            return None
        names = self._binder.catalogue.handler_names()
        message = f"no handler {shown(name.text)} is installed; `dispatcher handlers` lists those that are"
        if name.text in _KINDS or name.text in HandlerStep.reserved:
            message = f"{shown(name.text)} is no handler, but a step of its own: `{name.text}: …`"
        near = nearest(name.text, names)
        self._note(place_of(name), "unknown_handler", message, near)
        if near is not None:
            self._names.steps.setdefault(near, None)  # the name by which later steps may call this one
        return None

    def _finished(
        self,
        head: ChainHead,
        trigger: TriggerShape,
        when: Expression | None,
        steps: list[Step],
        documents: list[dict[str, Any]],
    ) -> Chain:
        used = None if None in self._used_vars else frozenset(str(name) for name in self._used_vars)
        variables = self._binder.vars_for(used)
        shared = self._binder.shared_texts
        on = {name: shared(texts) for name, texts in trigger if texts is not None}
        document: dict[str, Any] = {"name": head.name, "on": on, "steps": documents, "vars": variables}
        if when is not None:
            document["when"] = when.source
        if head.default:
            document["default"] = True
        text = _canonical(document).encode()
        return Chain(
            name=head.name,
            digest=sha256(text).hexdigest(),
            packed_text=pack(text),
            description=head.description,
            account=on.get("account"),
            conversation=on.get("conversation"),
            conversation_type=on.get("conversation_type"),
            event_type=on.get("event_type"),
            when=when,
            default=head.default,
            steps=tuple(steps),
            vars=variables,
            order=self._binder.order,
            file=self._source.name,
            line=self._node.line,
        )

    def _note(self, place: tuple[int, int], code: str, message: str, suggestion: str | None = None) -> None:
        self._problems.add(self._source.name, place, code, message, suggestion=suggestion)


def _own_id(item: Node) -> str | None:
    node = item.get("id") if type(item) is Mapping else None
    return node.text if type(node) is Scalar and not node.is_null else None


def _kind_name(item: Node) -> str:
    """Return what a step without an id is called by: its handler or its control."""
    if type(item) is Mapping:
        handler = item.get("handler")
        if type(handler) is Scalar and handler.text:
            return str(handler.text)
        for kind in ("wait", "stop"):
            if kind in item.members:
                return kind
    return "step"


@lru_cache(1024)
def _retry_document(policy: RetryPolicy) -> dict[str, Any]:
    document: dict[str, Any] = {
        "for": format_duration(policy.within),
        "initial": format_duration(policy.initial),
        "max": format_duration(policy.longest),
    }
    if policy.attempts is not None:
        document["attempts"] = policy.attempts
    return document
