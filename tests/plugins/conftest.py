"""Put the third-party plugin on the import path as an installation would: its package, and a dist-info beside it."""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path

import pytest

ACME = Path(__file__).parent / "acme"


@pytest.fixture
def acme(tmp_path: Path) -> Path:
    """Return a folder that, on PYTHONPATH, is the plugin installed; no pip and no network needed."""
    project = tomllib.loads((ACME / "pyproject.toml").read_text())["project"]
    site = tmp_path / "site"
    shutil.copytree(ACME / "acme", site / "acme", ignore=shutil.ignore_patterns("__pycache__"))
    info = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    lines = []
    for group, names in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {target}" for name, target in names.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return site
