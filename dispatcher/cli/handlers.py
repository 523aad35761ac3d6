"""`dispatcher handlers`: what is installed, whose it is, what is broken and why; with a name, its manual."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from dispatcher.cli.options import JsonOption, new_app
from dispatcher.cli.output import print_table, write, write_json, write_wrapped
from dispatcher.errors import NotFound, NotPossible, UsageError
from dispatcher.text.durations import format_duration

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from dispatcher.plugins.registry import BrokenPlugin, Group, Installed, Registry

app = new_app(
    examples=(
        "dispatcher handlers                  # every handler, broken ones with why",
        "dispatcher handlers create_contact   # its params, and what later steps get",
        "dispatcher handlers --kind sender    # what may stand under `senders:`",
    )
)

Kind = Literal["handler", "sender", "service"]
_GROUPS: Final[Mapping[str, Kind]] = {
    "dispatcher.handlers": "handler",
    "dispatcher.senders": "sender",
    "dispatcher.services": "service",
}


@app.command()
def handlers(
    name: Annotated[str | None, typer.Argument(help="Whose manual to print.", show_default=False)] = None,
    kind: Annotated[
        str | None,
        typer.Option("--kind", metavar="KIND", help="handler (default), sender, service or all.", show_default=False),
    ] = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """List the handlers that are installed, with their effect and where they come from; or print one's manual."""
    if kind not in (None, "all", *_GROUPS.values()):
        raise UsageError(f"there is no kind {kind!r}.", hint="It is handler, sender, service or all.")
    from dispatcher.plugins.registry import load_registry  # noqa: PLC0415 - see main

    registry = load_registry()
    registry.load_all()
    if name is not None:
        _show(registry, name, kind, as_json=as_json)
        return
    entries = list(_entries(registry, kind or "handler"))
    if as_json:
        write_json(entries)
        return
    print_table(
        ("name", "kind", "effect", "from"),
        [
            (entry["name"], entry["kind"], entry["effect"], f"{entry['distribution']} {entry['version']}")
            for entry in entries
            if entry["broken"] is None
        ],
    )
    broken = [entry for entry in entries if entry["broken"] is not None]
    if broken:
        write()
        write("Broken, and refused by name; chains that use other names are not affected:")
    for entry in broken:
        write(f"  {entry['name']} ({entry['kind']} of {entry['distribution']} {entry['version']}): {entry['broken']}")


def _entries(registry: Registry, kind: str) -> Iterator[dict[str, Any]]:
    for group, group_kind in _GROUPS.items():
        if kind not in ("all", group_kind):
            continue
        for installed in _group(registry, group_kind).values():
            yield _entry(installed, group_kind)
        for (broken_group, _), plugin in sorted(registry.broken.items()):
            if broken_group == group:
                yield _broken_entry(plugin, group_kind)


def _entry(installed: Installed, kind: Kind) -> dict[str, Any]:
    return {
        "name": installed.name,
        "kind": kind,
        "effect": _effect(installed),
        "distribution": installed.distribution,
        "version": installed.version,
        "summary": _manual(installed).partition("\n")[0],
        "broken": None,
    }


def _broken_entry(plugin: BrokenPlugin, kind: Kind) -> dict[str, Any]:
    return {
        "name": plugin.name,
        "kind": kind,
        "effect": None,
        "distribution": plugin.distribution,
        "version": plugin.version,
        "summary": None,
        "broken": plugin.reason,
    }


def _group(registry: Registry, kind: Kind) -> Group:
    return {"handler": registry.handlers, "sender": registry.senders, "service": registry.services}[kind]


def _effect(installed: Installed) -> str | None:
    effect = getattr(installed.target, "effect", None)
    return effect.value if effect is not None else None


def _manual(installed: Installed) -> str:
    return inspect.cleandoc(installed.target.__doc__ or "")


def _show(registry: Registry, name: str, kind: str | None, *, as_json: bool) -> None:
    """Print the manual of one name."""
    wanted: list[Kind] = [k for k in _GROUPS.values() if kind in (None, "all", k)]
    found = [(k, installed) for k in wanted if (installed := _group(registry, k).get(name)) is not None]
    if not found:
        raise _no_such(registry, name, wanted)
    if len(found) > 1 and as_json:
        kinds = " and a ".join(k for k, _ in found)
        raise UsageError(f"{name} is a {kinds}.", hint="Say which one by --kind.")
    for index, (found_kind, installed) in enumerate(found):
        document = _document(installed, found_kind)
        if as_json:
            write_json(document)
            return
        if index:
            write()
        _print_manual(installed, document)


def _no_such(registry: Registry, name: str, kinds: list[Kind]) -> NotFound | NotPossible:
    for (group, broken), plugin in registry.broken.items():
        if broken == name and _GROUPS[group] in kinds:
            return NotPossible(f"{name} is broken: {plugin.distribution} {plugin.version}: {plugin.reason}")
    if name in ("wait", "stop"):
        hint = "`wait: 1d` pauses a run; `stop: EXPRESSION` ends it, as done, if the expression holds."
        return NotFound(f"{name} is a control of the rulebook, not a handler.", hint=hint)
    known = [known for kind in kinds for known in _group(registry, kind)]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"Did you mean {near[0]}?" if near else "`dispatcher handlers --kind all` lists what is."
    return NotFound(f"{name} is not installed.", hint=hint)


def _document(installed: Installed, kind: Kind) -> dict[str, Any]:
    document = _entry(installed, kind)
    document["manual"] = _manual(installed)
    document["params"] = installed.target.model_json_schema()
    result = getattr(installed.target, "Result", None)
    document["result"] = result.model_json_schema() if result is not None else None
    return document


def _print_manual(installed: Installed, document: dict[str, Any]) -> None:
    effect = f", effect {document['effect']}" if document["effect"] else ""
    write(f"{document['name']}: {document['kind']}{effect}, from {document['distribution']} {document['version']}")
    for paragraph in document["manual"].split("\n\n"):
        write()
        write_wrapped(paragraph)
    definitions = document["params"].get("$defs", {})
    write()
    write("Params:")
    for name, field in document["params"].get("properties", {}).items():
        default = _default(installed.target.model_fields[name])
        write(f"  {name}: {type_text(field, definitions)}{default}")
        if field.get("description"):
            write_wrapped(field["description"], indent="      ")
    offered = (document["result"] or {}).get("properties", {})
    if offered:
        write()
        write("Offers to later steps:")
    for name, field in offered.items():
        write(f"  steps.<id>.{name}: {type_text(field, document['result'].get('$defs', {}))}")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return ", required"
    value = field.get_default(call_default_factory=True)
    if value is None or value in ((), [], {}):
        return ""
    if isinstance(value, timedelta):
        return f", {format_duration(value)} if left out"
    return f", {str(value).lower() if isinstance(value, bool) else value} if left out"


_PLAIN_TYPES: Final = {
    "string": "text",
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "object": "mapping",
    "array": "list",
    "null": "nothing",
}


def type_text(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """Say the type that a JSON Schema describes, in words of the manual."""
    if "$ref" in schema:
        schema = definitions.get(schema["$ref"].rpartition("/")[2], {})
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    if "const" in schema:
        return str(schema["const"])
    if "anyOf" in schema:
        kinds = [type_text(choice, definitions) for choice in schema["anyOf"] if choice.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    match schema.get("type"), schema.get("format"):
        case "string", "msisdn":
            return "phone number"
        case "string", "password":
            return "secret"
        case "array", _ if schema.get("items"):
            return f"list of {type_text(schema['items'], definitions)}"
        case kind, _:
            return _PLAIN_TYPES.get(str(kind), "anything")
