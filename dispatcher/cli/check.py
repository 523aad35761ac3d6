"""`dispatcher check`: all problems of a rulebook at once, each with its place, its code and what was probably meant."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from dispatcher.cli import exits
from dispatcher.cli.options import JsonOption, RulebookOption, new_app, read_settings
from dispatcher.cli.output import say, write, write_json

if TYPE_CHECKING:
    from dispatcher.errors import Problem

app = new_app(
    examples=(
        "dispatcher check                            # the rulebook of the settings",
        "dispatcher check new.yaml --strict          # advice counts as an error too",
        "dispatcher check --json | jq -r '.[].code'  # in CI",
    )
)

_WIDTH: Final = 80


@app.command()
def check(
    files: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[FILES]...", help="Rulebooks; left out, the one of the settings.", show_default=False),
    ] = None,
    *,
    strict: Annotated[bool, typer.Option("--strict", help="Count warnings as errors.")] = False,
    rulebook: RulebookOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check rulebooks and what they include; nothing is started and nothing is written.

    Each problem is a line FILE:LINE:COLUMN: CODE: MESSAGE. The exit code is 1 when there is an error, 0 otherwise;
    warnings are advice, unless --strict.
    """
    settings = read_settings(rulebook=rulebook)
    from dispatcher.plugins.registry import load_registry  # noqa: PLC0415 - see main
    from dispatcher.rules.plan import check_rulebook  # noqa: PLC0415
    from dispatcher.settings import process_environ  # noqa: PLC0415

    registry = load_registry()
    paths = files or [settings.rulebook]
    problems = check_rulebook(
        paths, registry, default_region=settings.default_region, environ=process_environ(), strict=strict
    )
    if as_json:
        write_json([_row(problem) for problem in problems])
    else:
        _print_problems(problems)
    errors = sum(problem.severity == "error" for problem in problems)
    warnings = len(problems) - errors
    say(f"{', '.join(map(str, paths))}: {_counted(errors, 'error')}, {_counted(warnings, 'warning')}")
    if errors:
        raise typer.Exit(exits.PROBLEMS)


def _row(problem: Problem) -> dict[str, object]:
    row = asdict(problem)
    return {name: row[name] for name in ("file", "line", "column", "code", "severity", "message", "suggestion")}


def _print_problems(problems: Sequence[Problem]) -> None:
    lines: dict[str, list[str]] = {}
    for problem in problems:
        write(str(problem) + (" (warning)" if problem.severity == "warning" else ""))
        if _on_terminal():
            _show_place(problem, lines)


def _on_terminal() -> bool:
    return sys.stdout.isatty()


def _show_place(problem: Problem, lines: dict[str, list[str]]) -> None:
    """Show the line of a problem with a mark below the place; a file that cannot be read shows nothing."""
    if problem.file not in lines:
        try:
            text = Path(problem.file).read_text("utf-8-sig", "replace")
        except OSError:
            text = ""
        lines[problem.file] = text.splitlines()
    if problem.line <= len(lines[problem.file]):
        # As much of a long line as fits, with the place in it.
        start = max(0, problem.column - _WIDTH)
        line = lines[problem.file][problem.line - 1].replace("\t", " ")[start : start + _WIDTH + _WIDTH // 4]
        write(f"    {line}")
        write(f"    {' ' * (problem.column - 1 - start)}^")


def _counted(count: int, what: str) -> str:
    return f"{count or 'no'} {what}{'' if count == 1 else 's'}"
