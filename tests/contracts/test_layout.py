"""How the code is laid out: what the tools of `make lint` cannot say."""

from __future__ import annotations

import ast
import fnmatch
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

TOP_LEVEL = {
    *("dispatcher", "handlers", "config", "tests", "bench", "docs", "requirements"),
    *("pyproject.toml", "README.md", "CHANGELOG.md", "Makefile", "Dockerfile", "LICENSE"),
    *("compose.yaml", "compose.postgresql.yaml"),
}
VAGUE_NAMES = {"base", "common", "helper", "helpers", "misc", "util", "utils"}
LONGEST_MODULE = 400

# Where code of other people is run: the only place that may outlive whatever it raises.
BOUNDARY = "dispatcher/plugins/boundary.py"

# Written with brackets, so that this file does not hold what it looks for.
INDEX_TRACES = re.compile(r"pypi[.]org|python[h]osted|--(extra-)?index[-]url|--find[-]links|/opt[/](wheels|pypi)")
MACHINE_PATHS = re.compile(r"/(work[/](main|shared)|root|home[/]\w+|Users[/]\w+)/")


def tracked_files():
    """Every file that a checkout holds; those not yet committed too, and without a repository whatever is there."""
    if not (ROOT / ".git").exists():
        return sorted(path for name in TOP_LEVEL for path in [ROOT / name, *(ROOT / name).rglob("*")] if path.is_file())
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, capture_output=True, check=True).stdout.decode().split("\0")
    return sorted(ROOT / name for name in listed if name and (ROOT / name).is_file())


def relative(path):
    return path.relative_to(ROOT).as_posix()


FILES = tracked_files()
MODULES = [path for path in FILES if path.suffix == ".py" and relative(path).startswith(("dispatcher/", "handlers/"))]
TREES = {relative(path): ast.parse(path.read_bytes()) for path in MODULES}


def broad_excepts(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            if any(each is None or (isinstance(each, ast.Name) and each.id.endswith("Exception")) for each in caught):
                yield node


def test_the_top_level_holds_what_was_agreed():
    top_level = {relative(path).partition("/")[0] for path in FILES}

    assert {name for name in top_level if not name.startswith(".")} <= TOP_LEVEL


def test_there_are_modules_to_look_at():
    assert len(MODULES) > 50


@pytest.mark.parametrize("module", TREES)
def test_every_module_opens_with_its_charter(module):
    assert ast.get_docstring(TREES[module])


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_no_module_is_too_long_to_be_read_in_one_go(path):
    assert len(path.read_text().splitlines()) <= LONGEST_MODULE


def test_no_file_has_a_name_that_means_everything():
    assert [relative(path) for path in FILES if path.stem in VAGUE_NAMES] == []


def test_every_folder_of_modules_is_a_package_so_that_it_reaches_the_wheel():
    assert [relative(path) for path in MODULES if not path.with_name("__init__.py").exists()] == []


def test_files_beside_the_modules_reach_the_wheel():
    patterns = [f"dispatcher/{pattern}" for pattern in PYPROJECT["tool"]["setuptools"]["package-data"]["dispatcher"]]
    data = [
        relative(path)
        for path in FILES
        if path.suffix != ".py" and path.parts[len(ROOT.parts)] in ("dispatcher", "handlers")
    ]

    assert [name for name in data if not any(fnmatch.fnmatch(name, pattern) for pattern in patterns)] == []


def test_every_handler_is_installed_under_the_name_of_its_file():
    files = {path.stem for path in MODULES if relative(path).startswith("handlers/")} - {"__init__"}
    installed = PYPROJECT["project"]["entry-points"]["dispatcher.handlers"]

    assert {name: target.partition(":")[0] for name, target in installed.items()} == {
        name: f"handlers.{name}" for name in files
    }


def test_what_plugins_raise_is_caught_in_exactly_one_place():
    # Twice: for what a call does, and for what a coroutine does later.
    assert len(list(broad_excepts(TREES[BOUNDARY]))) == 2


def test_elsewhere_whoever_catches_everything_raises_it_again():
    silent = [
        f"{module}:{handler.lineno}"
        for module, tree in TREES.items()
        if module != BOUNDARY
        for handler in broad_excepts(tree)
        if not isinstance(handler.body[-1], ast.Raise)
    ]

    assert silent == []


def test_only_the_settings_read_the_environment():
    readers = {
        module
        for module, tree in TREES.items()
        for node in ast.walk(tree)
        if (isinstance(node, ast.Attribute) and node.attr in ("environ", "environb", "getenv"))
        or (
            isinstance(node, ast.ImportFrom)
            and node.module == "os"
            and {"environ", "getenv"} & {n.name for n in node.names}
        )
    }

    assert readers == {"dispatcher/settings.py"}


@pytest.mark.parametrize("traces", [INDEX_TRACES, MACHINE_PATHS], ids=["index", "machine"])
def test_no_file_betrays_where_it_was_made(traces):
    found = []
    for path in FILES:
        for number, line in enumerate(path.read_bytes().decode(errors="replace").splitlines(), start=1):
            if traces.search(line):
                found.append(f"{relative(path)}:{number}")

    assert found == []
