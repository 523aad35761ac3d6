"""Rulebooks written in a test: what is wrong with them, or the plan that they make."""

from __future__ import annotations

import pytest

from dispatcher.plugins.registry import HANDLERS, SENDERS, BrokenPlugin, load_registry
from dispatcher.rules.plan import check_rulebook, load_plan


@pytest.fixture(scope="session")
def registry():
    """What is installed here, and one broken handler and sender of somebody else's."""
    found = load_registry()
    for group, name in ((HANDLERS, "acme_broken"), (SENDERS, "acme_gateway")):
        found.broken[group, name] = BrokenPlugin(name, "acme", "1.0", "ImportError: no module named acme_sdk")
    return found


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write files into an empty working folder; return the path of the first."""
    monkeypatch.chdir(tmp_path)

    def write_files(text="", name="rulebook.yaml", **others):
        for path, content in {name: text, **others}.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_bytes(content if isinstance(content, bytes) else content.encode())
        return name

    return write_files


@pytest.fixture
def check(write, registry):
    """Check a rulebook given as text, with other files by name; return its problems."""

    def check_text(text, *, files=None, **options):
        return check_rulebook([write(text, **(files or {}))], registry, **{"environ": {}, **options})

    return check_text


@pytest.fixture
def plan(write, registry):
    """Load a rulebook given as text into a plan."""

    def load_text(text, *, files=None, default_region=None, environ=None):
        return load_plan(write(text, **(files or {})), registry, default_region=default_region, environ=environ or {})

    return load_text
