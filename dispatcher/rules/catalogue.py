"""What the installed handlers, senders and services take and offer, as far as a rulebook needs to know it.

The models are the truth: which params there are, which of them are read at load, which are numbers or free-form, what
a step's result offers, is all told by their fields.
"""

from __future__ import annotations

import types
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from dispatcher.plugins.handler import AtLoad, Handler, Msisdn, PeoplesText
from dispatcher.plugins.registry import HANDLERS, BrokenPlugin, Group, Registry
from dispatcher.plugins.services import Service
from dispatcher.rules.nodes import Node, core_value, text_value
from dispatcher.text.durations import Rate

_NUMBER = get_args(Msisdn)[1]


@dataclass(frozen=True, slots=True)
class Param:
    """One param of a handler, or one setting of a sender or service.

    `at_load` params take no template; `names` says what such a param must name. `free` values are typed by YAML,
    others by the model. `is_number` is a phone number, `is_peoples_text` something that people will read.
    """

    name: str
    attribute: str
    required: bool
    default: Any
    at_load: bool
    names: str | None
    free: bool
    is_number: bool
    is_peoples_text: bool

    def value(self, node: Node) -> Any:
        """Return what a node means as a value of this param, before the model has typed it."""
        return core_value(node) if self.free else text_value(node)


@dataclass(frozen=True, slots=True)
class HandlerSpec:
    """A handler as a step sees it.

    `offers` are the names of its result, None when it may offer any; `number_params` the fields that are phone numbers.
    """

    name: str
    target: type[Handler]
    params: dict[str, Param]
    offers: tuple[str, ...] | None
    number_params: tuple[str, ...]


class Catalogue:
    """The installed handlers and connections by name, described once."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self._handlers: dict[str, HandlerSpec | BrokenPlugin | None] = {}
        self._connections: dict[type[BaseModel], dict[str, Param]] = {}

    def handler(self, name: str) -> HandlerSpec | BrokenPlugin | None:
        """Describe a handler; say what is broken about it; None when none of that name is installed."""
        if name not in self._handlers:
            self._handlers[name] = self._described(name)
        return self._handlers[name]

    def handler_names(self) -> list[str]:
        """Return the names of all handlers, the broken ones too."""
        broken = {name for group, name in self.registry.broken if group == HANDLERS}
        return sorted(broken.union(names_of(self.registry.handlers)))

    def settings(self, target: type[Service]) -> dict[str, Param]:
        """Describe the settings of a sender or service."""
        if target not in self._connections:
            self._connections[target] = params_of(target)
        return self._connections[target]

    def _described(self, name: str) -> HandlerSpec | BrokenPlugin | None:
        installed = self.registry.handlers.get(name)
        if installed is None:
            return self.registry.broken.get((HANDLERS, name))
        target = installed.target
        assert issubclass(target, Handler)
        params = params_of(target)
        numbers = tuple(param.attribute for param in params.values() if param.is_number)
        return HandlerSpec(name, target, params, _offers_of(target), numbers)


def names_of(group: Group) -> list[str]:
    """Return the names of a group without loading what bears them."""
    return group.names() if isinstance(group, Group) else sorted(group)


def params_of(model: type[BaseModel]) -> dict[str, Param]:
    """Describe the fields of a model, by the names under which they are written."""
    found = {}
    for attribute, field in model.model_fields.items():
        marks = list(_marks(field))
        reads_at_load = next((mark for mark in marks if isinstance(mark, AtLoad)), None)
        kinds = set(_leaves(field.annotation))
        name = field.alias or attribute
        found[name] = Param(
            name=name,
            attribute=attribute,
            required=field.is_required(),
            default=None if field.is_required() else field.get_default(),
            at_load=reads_at_load is not None or bool(kinds & {timedelta, Rate}),
            names=reads_at_load.names if reads_at_load else None,
            free=bool(kinds & {Any, object, dict, list}),
            is_number=_NUMBER in marks,
            is_peoples_text=any(isinstance(mark, PeoplesText) for mark in marks),
        )
    return found


def _offers_of(target: type[Handler]) -> tuple[str, ...] | None:
    result = target.Result
    if result.model_config.get("extra") == "allow":
        return None
    return tuple(field.alias or name for name, field in result.model_fields.items())


def _marks(field: FieldInfo) -> Iterable[Any]:
    """Go through everything that annotates a field, inside of `X | None` too, but not inside of lists."""
    yield from field.metadata
    yield from _marks_within(field.annotation)


def _marks_within(annotation: Any) -> Iterable[Any]:
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *marks = get_args(annotation)
        yield from marks
        yield from _marks_within(inner)
    elif origin in (Union, types.UnionType):
        for member in get_args(annotation):
            yield from _marks_within(member)


def _leaves(annotation: Any) -> Iterable[Any]:
    """Go through the types that an annotation is made of, down to those of a list's or a mapping's values."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        yield from _leaves(args[0])
    elif origin in (Union, types.UnionType):
        for member in args:
            yield from _leaves(member)
    elif args and origin in (list, tuple, set, frozenset):
        yield from _leaves(args[0])
    elif len(args) > 1 and isinstance(origin, type) and hasattr(origin, "keys"):
        yield from _leaves(args[1])
    elif origin is None:
        try:
            hash(annotation)
        except TypeError:
            return
        yield annotation
