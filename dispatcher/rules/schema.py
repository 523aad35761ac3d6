"""The JSON Schema of a rulebook, with the params of every installed handler, sender and service; for editors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.errors import PydanticInvalidForJsonSchema

from dispatcher.plugins.registry import Group, Registry
from dispatcher.rules.catalogue import Param, params_of
from dispatcher.rules.shape import RulebookShape

_REFERENCE = "#/$defs/{model}"
_TEMPLATE = {"type": "string", "pattern": r"\{\{|\{%", "description": "A template, such as {{ data.msisdn }}."}
_VARIABLE = {"type": "string", "pattern": r"\$\{", "description": "A value from the environment: ${NAME:default}."}
_FILE = {
    "type": "object",
    "properties": {"file": {"type": "string", "description": "The path, relative to the rulebook."}},
    "required": ["file"],
    "additionalProperties": False,
    "description": "A value from a file.",
}


def json_schema(registry: Registry) -> dict[str, Any]:
    """Return the schema (JSON Schema 2020-12) of a rulebook for what is installed here."""
    schema: dict[str, Any] = _without_null(RulebookShape.model_json_schema(by_alias=True, ref_template=_REFERENCE))
    definitions: dict[str, Any] = schema["$defs"]
    definitions["FileReference"] = _FILE
    _describe_handlers(definitions, registry.handlers)
    senders = {name: installed.target for name, installed in registry.senders.items()}
    services = {name: installed.target for name, installed in registry.services.items()}
    del definitions["ConnectionShape"]
    for section, kinds in (("senders", senders), ("services", services)):
        name = section.removesuffix("s").capitalize()
        definitions[name] = _connection(definitions, name, kinds)
        schema["properties"][section]["additionalProperties"] = {"$ref": f"#/$defs/{name}"}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _without_null(schema: Any) -> Any:
    """Take out what pydantic says of optional keys: that they may be null. In a rulebook they are left out."""
    if isinstance(schema, list):
        return [_without_null(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: _without_null(value) for key, value in schema.items()}
    choices = schema.get("anyOf", [])
    if {"type": "null"} in choices:
        choices = [choice for choice in choices if choice != {"type": "null"}]
        rest = {key: value for key, value in schema.items() if key not in ("anyOf", "default")}
        schema = {**rest, **choices[0]} if len(choices) == 1 else {**rest, "anyOf": choices}
    return schema


def _describe_handlers(definitions: dict[str, Any], handlers: Group) -> None:
    """Let the params of a step depend on its handler."""
    step = definitions["HandlerStep"]
    step["properties"]["handler"] = {"enum": list(handlers), "description": "The name of an installed handler."}
    step["allOf"] = []
    for name, installed in handlers.items():
        params = _model(definitions, f"{name}.params", installed.target, [_TEMPLATE])
        then: dict[str, Any] = {"properties": {"with": params}}
        if definitions.get(f"{name}.params", params).get("required"):
            then["required"] = ["with"]
        step["allOf"].append(_when("handler", name, then))


def _connection(definitions: dict[str, Any], kind: str, types: Mapping[str, type[BaseModel]]) -> dict[str, Any]:
    """Describe a sender or service: its settings depend on its type."""
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {"type": {"enum": sorted(types), "description": f"The type of the {kind.lower()}."}},
        "required": ["type"],
        "allOf": [],
    }
    for name, target in sorted(types.items()):
        references = [_VARIABLE, {"$ref": "#/$defs/FileReference"}]
        reference = _model(definitions, f"{name}.{kind.lower()}", target, references)
        settings = definitions[reference["$ref"].removeprefix("#/$defs/")] if "$ref" in reference else reference
        settings.setdefault("properties", {})["type"] = {"const": name}
        schema["allOf"].append(_when("type", name, reference))
    return schema


def _when(key: str, value: str, then: dict[str, Any]) -> dict[str, Any]:
    return {"if": {"properties": {key: {"const": value}}, "required": [key]}, "then": then}


def _model(
    definitions: dict[str, Any], name: str, target: type[BaseModel], besides: list[dict[str, Any]]
) -> dict[str, Any]:
    """Add the schema of a model to the definitions, each property allowing what stands `besides` it too."""
    try:
        schema = target.model_json_schema(by_alias=True, ref_template=_REFERENCE)
    except PydanticInvalidForJsonSchema:
        return {"type": "object"}
    definitions.update(schema.pop("$defs", {}))
    params: dict[str, Param] = params_of(target)
    for key, value in schema.get("properties", {}).items():
        param = params.get(key)
        if besides == [_TEMPLATE] and param is not None and param.at_load:
            continue
        told = {word: value.pop(word) for word in ("description", "default", "title") if word in value}
        schema["properties"][key] = {**told, "anyOf": [value, *besides]}
    schema["title"] = name
    definitions[name] = schema
    return {"$ref": f"#/$defs/{name}"}
