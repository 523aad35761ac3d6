"""The results of a run, as a file that is whole after every row, so that a run that is stopped loses none.

`bench/report.py` reads the same document. A run that resumes leaves out the rows that are there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.contestants import Contestant

MEASURES = ("throughput", "latency", "startup")
SERIES = "series"

Row = dict[str, Any]


class Results:
    """One document in one file."""

    def __init__(self, file: Path, earlier: Mapping[str, Any] | None = None) -> None:
        self.file = file
        self.document: dict[str, Any] = {
            "taken_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "commit": "",
            **{name: {} for name in ("options", "machine", "versions")},
            **{name: [] for name in ("contestants", "missing", *MEASURES, SERIES)},
            **(earlier or {}),
        }

    @classmethod
    def resumed(cls, earlier: Path, file: Path) -> Results:
        """Go on with earlier results; who was missing is tried again."""
        return cls(file, {**json.loads(earlier.read_text("utf-8")), "missing": []})

    def describe(self, **told: Any) -> None:
        """Say what is measured and on what; versions come together, of the rest the latest stays."""
        told["versions"] = {**self.document["versions"], **told.get("versions", {})}
        self.document.update(told)
        self.save()

    def enter(self, contestant: Contestant, order: Iterable[str], versions: Mapping[str, str]) -> None:
        """Add somebody who takes part, in the place that `order` gives to names."""
        told = {each["name"]: each for each in self.document["contestants"]}
        told[contestant.name] = contestant.described()
        places = {name: place for place, name in enumerate(order)}
        self.document["contestants"] = sorted(told.values(), key=lambda each: places.get(each["name"], len(places)))
        self.describe(versions=versions)

    def miss(self, contestant: Contestant, why: str) -> None:
        """Say why somebody is missing, or took part no longer."""
        self.document["missing"].append({"name": contestant.name, "title": contestant.title, "why": why})
        self.save()

    def has(self, measure: str, contestant: Contestant, number: int) -> bool:
        """Whether somebody's row of a round is there."""
        return (contestant.name, number) in {(row["contestant"], row["round"]) for row in self.document[measure]}

    def add(self, measure: str, row: Row) -> None:
        """Add a row."""
        self.document[measure].append(row)
        self.save()

    def save(self) -> None:
        """Write the file anew, so that it is whole at any moment."""
        beside = self.file.with_name(self.file.name + ".new")
        beside.write_text(json.dumps(self.document, indent=1, ensure_ascii=False) + "\n", "utf-8")
        beside.replace(self.file)
