"""The small world of the engine's tests, for what people do to the rows that an engine wrote."""

from __future__ import annotations

from tests.unit.engine.conftest import empty_store, registry, world

__all__ = ["empty_store", "registry", "world"]
