"""Read a node against a model of the rulebook's shape: every mistake becomes a problem at its key or value.

Pydantic judges the values; this module gives its verdicts a place, a code and words for rulebook authors. What is
wrong is left out and the rest is read all the same, so that one mistake does not hide the next.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from dispatcher.rules.nodes import Broken, Mapping, Node, Scalar, Sequence, described
from dispatcher.rules.problems import Problems, nearest
from dispatcher.rules.shape import Shape

Place = tuple[int, int]
S = TypeVar("S", bound=Shape)

_EXPECTED = {
    "string_type": "a text",
    "list_type": "a list",
    "tuple_type": "a text or a list of texts",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
}
_SCALARS = frozenset(("int_type", "int_parsing", "bool_type", "bool_parsing", "string_type", "bad_duration"))


def place_of(node: Node) -> Place:
    """Return where a node begins."""
    return node.line, node.column


def read(model: type[S], node: Node, file: str, problems: Problems, **instead: Any) -> S | None:
    """Read a node as `model` and note what is wrong with it.

    Returns what could be read of it; `instead` gives values for required keys that are missing or wrong. None when
    too little is left.
    """
    if type(node) is Broken:
        return None
    unknown: set[str] = set()
    data = _data_of(node, model, file, problems, unknown)
    try:
        return model.model_validate(data)
    except ValidationError as error:
        found = error.errors(include_url=False)
    _report(found, model, node, file, problems, unknown)
    return _read_rest(model, data, found, instead)


def _read_rest(model: type[S], data: Any, found: list[ErrorDetails], instead: dict[str, Any]) -> S | None:
    if not isinstance(data, dict):
        return None
    for _ in range(4):
        # From the last to the first, so that the indexes of a list's earlier items stay what they were.
        for detail in reversed(found):
            _prune(data, detail)
        for name, value in instead.items():
            data.setdefault(name, value)
        try:
            return model.model_validate(data)
        except ValidationError as error:
            found = error.errors(include_url=False)
    return None


def _prune(data: Any, detail: ErrorDetails) -> None:
    """Take what an error complains of out of the data; what lacks a key goes as a whole."""
    path: list[Any] = [part for part in detail["loc"] if part != "[key]"]
    if detail["type"] == "missing":
        path.pop()
    holder: Any = None
    last: Any = None
    for part in path:
        if not ((isinstance(data, dict) and part in data) or (isinstance(data, list) and part in range(len(data)))):
            break
        holder, last, data = data, part, data[part]
    if isinstance(holder, dict):
        holder.pop(last, None)
    elif isinstance(holder, list):
        del holder[last]


def _data_of(node: Node, model: Any, file: str, problems: Problems, unknown: set[str]) -> Any:
    """Return a node as plain data; keys without a value are noted and left out, those of `free` keys not looked at."""
    kind = type(node)
    if kind is Scalar:
        return node.text
    if kind is Sequence:
        items = []
        for item in node.items:
            if type(item) is Scalar and item.is_null:
                problems.add(file, place_of(item), "wrong_type", "this item of the list has no value")
            elif type(item) is not Broken:
                items.append(_data_of(item, None, file, problems, unknown))
        return items
    free = model.free if model is not None else ()
    data: dict[str, Any] = {}
    for name, (key, value) in node.members.items():
        if type(value) is Broken:
            unknown.add(name)
        elif name in free:
            _take_free(name, value, data)
        elif type(value) is Scalar and value.is_null:
            unknown.add(name)
            problems.add(file, place_of(key), "wrong_type", f"`{name}` has no value; leave the key out, or give it one")
        else:
            data[name] = _data_of(value, None, file, problems, unknown)
    return data


def _take_free(name: str, value: Node, data: dict[str, Any]) -> None:
    if type(value) is Mapping:
        data[name] = {}
    elif type(value) is Sequence:
        data[name] = [None] * len(value.items)
    elif not value.is_null:
        data[name] = value.text


def _report(  # noqa: PLR0917  # one function in two halves, before and behind a failed validation
    found: list[ErrorDetails], model: type[BaseModel], node: Node, file: str, problems: Problems, unknown: set[str]
) -> None:
    meant: set[tuple[tuple[int | str, ...], str | None]] = set()
    for detail in found:
        if detail["type"] == "extra_forbidden":
            meant.add((detail["loc"][:-1], _report_unknown(detail["loc"], model, node, file, problems)))
    for detail in found:
        kind, loc = detail["type"], detail["loc"]
        if kind == "extra_forbidden":
            continue
        target, _ = locate(node, loc)
        if kind == "missing":
            # A misspelt key is one mistake, not two; nor does a key lack that could not be read.
            name = str(loc[-1])
            if (loc[:-1], name) not in meant and name not in unknown and not getattr(target, "partial", False):
                problems.add(file, place_of(target), "missing_key", f"`{name}` is missing here")
            continue
        if type(target) is Broken:
            continue
        code, message, suggestion = judge(detail, target, literals_at(model, loc))
        problems.add(file, place_of(target), code, f"{_named(loc)}{message}", suggestion=suggestion)


def _named(loc: tuple[int | str, ...]) -> str:
    names = [part for part in loc if isinstance(part, str) and part != "[key]"]
    return f"`{names[-1]}`: " if names else ""


def judge(detail: ErrorDetails, target: Node, allowed: list[str]) -> tuple[str, str, str | None]:
    """Return code, message and suggestion for one of pydantic's errors about a value."""
    kind = detail["type"]
    context = detail.get("ctx") or {}
    if kind in _SCALARS and type(target) is not Scalar:
        expected = _EXPECTED.get(kind, "a text")
        return "wrong_type", f"expected {expected}, found {described(target)}", None
    if kind in _EXPECTED:
        return "wrong_type", f"expected {_EXPECTED[kind]}, found {described(target)}", None
    if kind == "bad_duration":
        return "bad_duration", str(context["reason"]), None
    if kind == "literal_error":
        if type(target) is not Scalar:
            return "wrong_type", f"expected one of {', '.join(allowed)}, found {described(target)}", None
        message = f"{described(target)} is not one of {', '.join(allowed)}"
        return "bad_value", message, nearest(target.text, allowed)
    if kind in ("too_short", "string_too_short"):
        return "bad_value", "there must be at least one" if kind == "too_short" else "the text is empty", None
    if kind in ("too_long", "string_too_long"):
        return "bad_value", f"longer than {context.get('max_length')}, the most that is allowed", None
    if kind == "string_pattern_mismatch":
        return "bad_value", f"{described(target)} {_pattern_rule(str(context.get('pattern')))}", None
    if kind in ("greater_than_equal", "less_than_equal", "greater_than", "less_than"):
        bound = {"greater_than_equal": "at least", "less_than_equal": "at most"}.get(kind, kind.replace("_", " "))
        return "bad_value", f"must be {bound} {next(iter(context.values()))}", None
    return "bad_value", detail["msg"].removeprefix("Value error, "), None


def _pattern_rule(pattern: str) -> str:
    if pattern.startswith("^[A-Za-z_]"):
        return "is not an id: letters, digits and underscores, not a digit first"
    if "x00" in pattern:
        return "has a line break or a control character in it"
    return f"does not have the form {pattern}"


def _report_unknown(
    loc: tuple[int | str, ...], model: type[BaseModel], node: Node, file: str, problems: Problems
) -> str | None:
    name = str(loc[-1])
    holder, _ = locate(node, loc[:-1])
    key = holder.key(name) if type(holder) is Mapping and name in holder.members else holder
    owner = model_at(model, loc[:-1])
    if owner is not None and name in getattr(owner, "reserved", ()):
        message = f"`{name}` is reserved for a later version and not available in this one"
        problems.add(file, place_of(key), "unknown_key", message)
        return None
    names = keys_of(owner) if owner is not None else []
    suggestion = nearest(name, [other for other in names if other not in getattr(holder, "members", ())])
    message = f"`{name}` is not a key that may stand here; possible are {', '.join(names)}"
    problems.add(file, place_of(key), "unknown_key", message, suggestion=suggestion)
    return suggestion


def keys_of(model: type[BaseModel]) -> list[str]:
    """Return the keys of a model as they are written."""
    return [field.alias or name for name, field in model.model_fields.items()]


def locate(node: Node, loc: Iterable[int | str]) -> tuple[Node, bool]:
    """Go down to the node that one of pydantic's locations names, as far as there is one; say if it was reached."""
    parts = list(loc)
    for position, part in enumerate(parts):
        if part == "[key]" and position:
            continue
        if type(node) is Mapping and part in node.members:
            if position + 1 < len(parts) and parts[position + 1] == "[key]":
                return node.key(str(part)), True
            node = node.members[str(part)][1]
        elif type(node) is Sequence and isinstance(part, int) and part < len(node.items):
            node = node.items[part]
        else:
            return node, False
    return node, True


def model_at(model: type[BaseModel] | None, loc: Iterable[int | str]) -> type[BaseModel] | None:
    """Return the model that describes the mapping at this location."""
    current: Any = model
    for part in loc:
        current = _inside(current, part)
        if current is None:
            return None
    return next(_models(current), None)


def literals_at(model: type[BaseModel], loc: Iterable[int | str]) -> list[str]:
    """Return the words that a value at this location may be; none when it is not one of a few."""
    current: Any = model
    for part in loc:
        current = _inside(current, part)
    return [str(value) for value in _literals(current)]


def _inside(annotation: Any, part: int | str) -> Any:
    for found in _models(annotation):
        for name, field in found.model_fields.items():
            if part in (name, field.alias):
                return field.annotation
    for plain in _plain(annotation):
        origin, args = get_origin(plain), get_args(plain)
        if origin in (list, tuple) and args:
            return args[0]
        if origin is dict:
            return args[1]
    return None


def _plain(annotation: Any) -> Iterator[Any]:
    """Go through the members of a union, without what annotates them."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _plain(get_args(annotation)[0])
    elif origin in (Union, types.UnionType):
        for member in get_args(annotation):
            yield from _plain(member)
    else:
        yield annotation


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    for plain in _plain(annotation):
        if isinstance(plain, type) and issubclass(plain, BaseModel):
            yield plain


def _literals(annotation: Any) -> Iterator[Any]:
    for plain in _plain(annotation):
        if get_origin(plain) is Literal:
            yield from get_args(plain)
