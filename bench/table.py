"""The table that a run prints: medians, and ratios of the same round, all contestants below each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bench.report_figures import BARE_LOOP, BASE, JOURNALING_LOOP, LOOP, OURS, OUTSIDE, PEER, Results, Spread

HEAD = (
    "", "events/s", "(least to most)", "ours is", "of loop", "of journal", "cpu us", "broker", "database", "MB",
    "p50 ms", "p99", "max", "first text s", "started",
)  # fmt: skip


def lines(document: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of the table, and who is missing."""
    results = Results(document)
    # Whoever was only measured as things grow has no figures here.
    everybody = [_row(results, each["name"]) for each in results.contestants(OURS, LOOP, PEER)]
    rows = [cells for cells in everybody if any(cells[1:])]
    widths = [max(map(len, column)) for column in zip(HEAD, *rows, strict=True)]
    for row in [HEAD, *rows] if rows else []:
        yield "  ".join(_aligned(row, widths)).rstrip()
    for each in results.contestants(OUTSIDE):
        for row in document["throughput"]:
            if row["contestant"] == each["name"]:
                yield f"outside: {each['name']}: {row['events_per_second']:,.4g} events/s: {row['what']}"
    for each in document["missing"]:
        yield f"missing: {each['name']}: {each['why']}"


def _aligned(row: Sequence[str], widths: Sequence[int]) -> Iterator[str]:
    first, *others = zip(row, widths, strict=True)
    yield first[0].ljust(first[1])
    for cell, width in others:
        yield cell.rjust(width)


def _row(results: Results, name: str) -> list[str]:
    def of(measure: str, field: str, digits: int = 0) -> str:
        return _middle(results.spread(measure, name, field), digits)

    speed = results.spread("throughput", name, "events_per_second")
    return [
        name,
        _middle(speed),
        f"({speed.least:,.0f} to {speed.most:,.0f})" if speed else "",
        *(_middle(results.ratio(*pair), 2) for pair in ((BASE, name), (name, BARE_LOOP), (name, JOURNALING_LOOP))),
        *(of("throughput", f"{part}cpu_us") for part in ("", "broker_", "database_")),
        of("throughput", "peak_mb"),
        *(of("latency", f"{part}_ms", 1) for part in ("p50", "p99", "max")),
        *(of("startup", f"{part}_seconds", 2) for part in ("first_text", "started")),
    ]


def _middle(found: Spread | None, digits: int = 0) -> str:
    return f"{found.middle:,.{digits}f}" if found else ""
