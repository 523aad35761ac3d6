"""Writes docs/benchmarks.md and its plots from the results of one run.

What the page says of figures is computed here; what limits a figure is for a person to know and stands in
docs/benchmarks/remarks.md, which this includes. `python -m bench.report` writes the page anew from the results that
lie beside it, after a change of those remarks.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from bench import report_tables as tables
from bench.report_bars import BARS, verdicts
from bench.report_figures import OUTSIDE, SERIES, Results
from bench.report_text import AFTER, ASKED, BEFORE, BETWEEN, COMMANDS, COSTS, GROWTH, LATENCIES, SETUPS, TAKEN

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
REMARKS = DOCS / "benchmarks" / "remarks.md"
PINS = ROOT / "requirements" / "plots.txt"
INSTALL_PATIENCE = 900.0

# Headings of the remarks: those below a part of the page are always shown, those on a bar where it falls short.
PLACES = ("contestants", "setups", *SERIES)
PREFIX = "after "

PLOTS = {
    "throughput": "Events/s of all contestants, each bar with the least and the most of its rounds",
    "cost": "Processor time of an event: worker, broker and database",
    "latency": "Latency at a steady rate: p50, p99 and the longest",
    "series": "Processor time of an event and events/s against the number of chains, backlog, archive and timers",
}


class BadRemarks(Exception):
    """The remarks have a heading that nothing asks for, so that nobody would read what stands below it."""


def write(results: Mapping[str, Any], folder: Path, remarks: Path = REMARKS) -> None:
    """Write benchmarks.md, and benchmarks/ with the plots and the results, into a folder of documents."""
    text = page(results, read_remarks(remarks.read_text("utf-8") if remarks.exists() else ""))
    beside = folder / "benchmarks"
    beside.mkdir(parents=True, exist_ok=True)
    document = beside / "results.json"
    document.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", "utf-8")
    command = [str(_python_with_matplotlib()), "-m", "bench.plots", str(document.resolve()), str(beside.resolve())]
    subprocess.run(command, cwd=ROOT, check=True, timeout=INSTALL_PATIENCE)
    (folder / "benchmarks.md").write_text(text, "utf-8")


def read_remarks(text: str) -> dict[str, str]:
    """Return the remarks by their headings. Raises BadRemarks for one that has no place."""
    parts = re.split(r"^## (.*)$", re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL), flags=re.MULTILINE)
    found = {name.strip(): body.strip() for name, body in zip(parts[1::2], parts[2::2], strict=True)}
    known = {*BARS, *(PREFIX + place for place in PLACES)}
    if strange := sorted(found.keys() - known):
        raise BadRemarks(f"no place for {', '.join(strange)}: headings are {', '.join(sorted(known))}")
    return {name: body for name, body in found.items() if body}


def page(document: Mapping[str, Any], remarks: Mapping[str, str]) -> str:
    """Write the page."""
    results = Results(document)

    def after(place: str) -> str:
        return remarks.get(PREFIX + place, "")

    parts = [
        BEFORE,
        "## The contestants",
        _wrap(BETWEEN, rounds=_rounds(results), events=_either(results, "throughput", "events")),
        tables.speeds(results),
        after("contestants"),
        _plot("throughput"),
        "### What an event costs",
        COSTS,
        tables.costs(results),
        _plot("cost"),
        "### How long a text takes",
        _wrap(LATENCIES, rate=_either(results, "latency", "rate"), seconds=_either(results, "latency", "seconds")),
        tables.latencies(results),
        _plot("latency"),
        "## The bars",
        *_bars(results, remarks),
        "## The same job on other set-ups",
        SETUPS,
        tables.setups(results),
        after("setups"),
        *_growth(results, after),
        "## How each is set up",
        _notes(results),
        *_missing(results),
        *_outside(results),
        "## The machine",
        _taken(document),
        tables.machine(results),
        "## To repeat it",
        COMMANDS,
        AFTER,
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _rounds(results: Results) -> str:
    count = len(results.distinct("throughput", "round"))
    return f"{count} rounds" if count != 1 else "One round"


def _either(results: Results, measure: str, field: str) -> str:
    return " or ".join(f"{value:,.0f}" for value in results.distinct(measure, field)) or "no"


def _plot(name: str) -> str:
    return f"![{PLOTS[name]}](benchmarks/{name}.svg)\n\n[The same as PNG](benchmarks/{name}.png)"


def _wrap(template: str, **figures: str) -> str:
    """Fill a paragraph in, and break its lines anew."""
    return textwrap.fill(template.format(**figures), 120, break_long_words=False, break_on_hyphens=False)


def _item(text: str) -> str:
    return textwrap.fill(
        text, 120, initial_indent="- ", subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )


def _bars(results: Results, remarks: Mapping[str, str]) -> list[str]:
    """Write the bars, and what limits those that fall short."""
    short = dict.fromkeys(each.key for each in verdicts(results) if each.short)
    limits = [f"**{BARS[key]}.** {remarks.get(key, 'What limits it has not been found out yet.')}" for key in short]
    return [ASKED, tables.bars(results), *(["What limits those that fall short:"] if short else []), *limits]


def _growth(results: Results, after: Callable[[str], str]) -> list[str]:
    parts = []
    for name, (title, what) in SERIES.items():
        if lines := results.lines(name):
            parts += [f"### {title}", f"Size: {what}.", tables.series(lines), after(name)]
    return ["## As things grow", GROWTH, *parts, _plot("series")] if parts else []


def _notes(results: Results) -> str:
    told = [each for each in results.document["contestants"] if each["kind"] != OUTSIDE and each.get("note")]
    return "\n".join(_item(f"**{each['title']}** (`{each['name']}`): {each['note']}") for each in told)


def _missing(results: Results) -> list[str]:
    found = results.document.get("missing", ())
    return (
        [
            "## Missing, or not there to the end",
            "\n".join(_item(f"**{each['title']}**: {each['why']}") for each in found),
        ]
        if found
        else []
    )


def _outside(results: Results) -> list[str]:
    found = results.contestants(OUTSIDE)
    items = [_item(f"**{each['title']}**: {tables.outside(each, results)}. {each.get('note', '')}") for each in found]
    head = "These do not read a broker, or do another job, so that no ratio is drawn to them."
    return ["## Measured outside the job", head, "\n".join(items)] if found else []


def _taken(document: Mapping[str, Any]) -> str:
    day = datetime.fromisoformat(document["taken_at"]).date().isoformat()
    return _wrap(TAKEN, day=day, commit=document["commit"][:12])


def _python_with_matplotlib() -> Path:
    """Return the Python of an environment that has what plots need, made anew when its pins are others than before."""
    folder = ROOT / ".venv-bench" / "plots"
    python, stamp = folder / "bin" / "python", folder / "made-from"
    digest = hashlib.sha256(PINS.read_bytes()).hexdigest()
    if not (python.exists() and stamp.exists() and stamp.read_text() == digest):
        install = ("-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input", "install", "--require-hashes")
        for command in (
            [sys.executable, "-m", "venv", "--clear", str(folder)],
            [str(python), *install, "-r", str(PINS)],
        ):
            subprocess.run(command, check=True, timeout=INSTALL_PATIENCE)
        stamp.write_text(digest)
    return python


if __name__ == "__main__":
    write(json.loads((DOCS / "benchmarks" / "results.json").read_text("utf-8")), DOCS)
