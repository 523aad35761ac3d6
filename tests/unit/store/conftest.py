"""The small world of the engine's tests, for what people do to the rows that an engine wrote."""

from __future__ import annotations

from tests.unit.engine.conftest import (
    emptied_databases,
    empty_store,
    place,
    postgres_place,
    registry,
    sqlite_place,
    world,
)

__all__ = ["emptied_databases", "empty_store", "place", "postgres_place", "registry", "sqlite_place", "world"]
