from __future__ import annotations

import subprocess
import sys

import pytest

import dispatcher


def test_every_public_name_is_there_and_sorted():
    assert dispatcher.__all__ == sorted(dispatcher.__all__)
    for name in dispatcher.__all__:
        assert getattr(dispatcher, name) is not None
    assert set(dispatcher.__all__) <= set(dir(dispatcher))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nonsense"):
        dispatcher.nonsense  # noqa: B018


def test_importing_it_imports_nothing_else():
    code = "import sys, dispatcher; print([n for n in sys.modules if n.startswith(('pydantic', 'dispatcher.'))])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_naming_handlers_and_the_outbox_loads_no_http_client():
    code = """
import sys
from dispatcher.plugins.registry import load_registry
registry = load_registry()
for name in registry.handlers: pass
for name in registry.senders: pass
print([name for name in ("httpx", "structlog", "sqlalchemy", "phonenumbers") if name in sys.modules])
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
