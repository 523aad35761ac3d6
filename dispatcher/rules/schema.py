"""The JSON Schema of a rulebook, with the params of every installed handler, sender and service; for editors."""

from __future__ import annotations

from typing import Any

from dispatcher.plugins.registry import Registry


def json_schema(registry: Registry) -> dict[str, Any]:
    """Return the schema (JSON Schema 2020-12)."""
    return {}
