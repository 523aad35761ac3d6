"""The small world of the engine's tests, for what people do to the rows that an engine wrote."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

_spec = importlib.util.spec_from_file_location("engine_world", Path(__file__).parent.parent / "engine" / "conftest.py")
_engine = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = _engine
_spec.loader.exec_module(_engine)

empty_store, registry, world = _engine.empty_store, _engine.registry, _engine.world
