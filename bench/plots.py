"""Draws the plots of docs/benchmarks.md, PNG and SVG, from a results document.

It needs matplotlib, and is the only one who does: bench/report.py runs it in an environment of its own. The same
results give the same bytes. Colours are those of Okabe and Ito, told apart by people who do not see red or green, and
the ground is white, so that it stays legible on a dark page.

    python -m bench.plots docs/benchmarks/results.json docs/benchmarks
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, NullLocator

from bench.report_figures import LOOP, OURS, PEER, PLOTTED, SERIES, Line, Results, Row, Spread, setup

BLUE, ORANGE, GREEN, VERMILION, PURPLE, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#8C8C8C"
KINDS = {OURS: (BLUE, "the dispatcher"), LOOP: (GREY, "loops written by hand"), PEER: (ORANGE, "peers")}
PARTS = {"cpu_us": (BLUE, "worker"), "broker_cpu_us": (ORANGE, "broker"), "database_cpu_us": (GREEN, "database")}
POINTS = {"p50_ms": (BLUE, "o", "p50"), "p99_ms": (VERMILION, "D", "p99"), "max_ms": (GREY, "^", "longest")}
LINES = ((BLUE, "o"), (VERMILION, "s"), (GREEN, "^"), (PURPLE, "D"))
P99_BAR = 8.0
WIDTH = 9.0  # inches

STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"],
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#DDDDDD",
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "legend.frameon": False,
    # Text stays text, and ids do not depend on the process: small files that change only with the figures.
    "svg.fonttype": "none",
    "svg.hashsalt": "bench",
}


def draw(document: dict[str, object], folder: Path) -> None:
    """Draw every plot that the results have figures for; one that they have none for is empty, and says so."""
    mpl.rcParams.update(STYLE)
    results = Results(document)
    for name, figure in (
        ("throughput", throughput(results)),
        ("cost", cost(results)),
        ("latency", latency(results)),
        ("series", series(results)),
    ):
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None, "Creator": None})
        figure.savefig(folder / f"{name}.png", dpi=130, metadata={"Software": None})


def throughput(results: Results) -> Figure:
    """Bars of events/s, with whiskers from the least to the most."""
    rows = measured(results, "throughput", "events_per_second")
    figure, axes = sheet(rows, "Events per second", "events/s, median (whiskers: least, most)")
    for place, (each, found) in enumerate(rows):
        reach = [[found.middle - found.least], [found.most - found.middle]]
        axes.barh(
            place, found.middle, color=KINDS[each["kind"]][0], xerr=reach, ecolor="#222222", capsize=3, height=0.7
        )
        axes.annotate(f"{found.middle:,.0f}", (found.most, place), (6, 0), textcoords="offset points", va="center")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlim(0, max((found.most for _, found in rows), default=1) * 1.12)
    legend(axes, [Patch(color=colour, label=label) for colour, label in KINDS.values()])
    return figure


def cost(results: Results) -> Figure:
    """Bars of processor time an event, worker and broker and database on top of each other."""
    rows = measured(results, "throughput", "cpu_us")
    figure, axes = sheet(rows, "Processor time of an event", "µs of processor an event, medians")
    ends = []
    for place, (each, _) in enumerate(rows):
        left = 0.0
        for field, (colour, _) in PARTS.items():
            if found := results.spread("throughput", each["name"], field):
                axes.barh(place, found.middle, left=left, color=colour, edgecolor="white", height=0.7)
                left += found.middle
        axes.annotate(f"{left:,.0f}", (left, place), (6, 0), textcoords="offset points", va="center")
        ends.append(left)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlim(0, max(ends, default=1) * 1.1)
    legend(axes, [Patch(color=colour, label=label) for colour, label in PARTS.values()])
    return figure


def latency(results: Results) -> Figure:
    """Dots of p50, p99 and the longest, on a logarithmic axis: they lie far apart."""
    rows = measured(results, "latency", "p50_ms")
    rates = results.distinct("latency", "rate")
    title = f"From event to text at {' or '.join(map(str, rates)) or 'a steady rate of'} events/s"
    figure, axes = sheet(rows, title, "ms, logarithmic; medians, and the longest of all rounds")
    axes.set_xscale("log")
    for place, (each, _) in enumerate(rows):
        found = {field: results.spread("latency", each["name"], field) for field in POINTS}
        at = {field: one.most if field == "max_ms" else one.middle for field, one in found.items() if one}
        axes.plot([min(at.values()), max(at.values())], [place, place], color="#BBBBBB", linewidth=1, zorder=1)
        for field, x in at.items():
            axes.plot(x, place, POINTS[field][1], color=POINTS[field][0], markersize=7, zorder=2)
    axes.axvline(P99_BAR, color=VERMILION, linewidth=1, linestyle="--", zorder=0)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:g}")
    marks = [
        *(axes.plot([], [], mark, color=colour, label=label)[0] for colour, mark, label in POINTS.values()),
        *axes.plot([], [], "--", color=VERMILION, linewidth=1, label=f"bar for our p99: {P99_BAR:g} ms"),
    ]
    legend(axes, marks)
    return figure


def series(results: Results) -> Figure:
    """For each series, processor time an event above and events/s below, against the size."""
    figure = Figure(figsize=(1.5 * WIDTH, 6.4), layout="constrained")
    figure.suptitle("As things grow: what an event costs, and events/s", fontweight="bold")
    grid = figure.subplots(2, len(PLOTTED), squeeze=False)
    everything = [line for name in PLOTTED for line in results.lines(name)]
    names = list(dict.fromkeys(setup(line, everything) for line in everything))
    styles = {name: LINES[place % len(LINES)] for place, name in enumerate(names)}
    for column, name in enumerate(PLOTTED):
        title, what = SERIES[name]
        for axes, field in zip(grid[:, column], ("cost_us", "events_per_second"), strict=True):
            for line in results.lines(name):
                curve(axes, line, field, styles[setup(line, everything)])
            against_sizes(axes, [size for line in results.lines(name) for size in line.sizes])
            axes.set_xlabel(what)
        grid[0, column].set_title(title)
    grid[0, 0].set_ylabel("µs of processor an event,\nworker and database")
    grid[1, 0].set_ylabel("events/s")
    if names:
        marks = [Line2D([], [], color=colour, marker=mark) for colour, mark in styles.values()]
        figure.legend(marks, names, loc="outside lower center", ncols=len(names))
    return figure


def curve(axes: Axes, line: Line, field: str, style: tuple[str, str]) -> None:
    """Draw one set-up's medians over the sizes, with whiskers from the least to the most."""
    found = [(at(size), one) for size in line.sizes if (one := line.spread(size, field))]
    reach = [[one.middle - one.least for _, one in found], [one.most - one.middle for _, one in found]]
    places, middles = [place for place, _ in found], [one.middle for _, one in found]
    axes.errorbar(places, middles, yerr=reach, color=style[0], marker=style[1], markersize=5)


def at(size: int) -> float:
    """Return where a size stands on a logarithmic axis, which has no 0: that stands far to the left of the others."""
    return float(size or 1000)


def against_sizes(axes: Axes, sizes: list[int]) -> None:
    """Set the axes up: below, the sizes that were measured; on the left from 0, so that what is level looks level."""
    axes.set_xscale("log")
    ticks = sorted(set(sizes))
    axes.set_xticks([at(size) for size in ticks], [short(size) for size in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.margins(y=0.12)
    axes.set_ylim(bottom=0)


def short(size: int) -> str:
    """Write a size in a few letters."""
    for unit, letter in ((1_000_000, "M"), (1_000, "k")):
        if size >= unit:
            return f"{size / unit:g}{letter}"
    return str(size)


def measured(results: Results, measure: str, field: str) -> list[tuple[Row, Spread]]:
    """Return the contestants that have this figure, the last one first: axes count from below."""
    found = ((each, results.spread(measure, each["name"], field)) for each in results.contestants(OURS, LOOP, PEER))
    return [(each, one) for each, one in found if one][::-1]


def sheet(rows: list[tuple[Row, Spread]], title: str, unit: str) -> tuple[Figure, Axes]:
    """Return axes with a line for each contestant."""
    figure = Figure(figsize=(WIDTH, 1.6 + 0.36 * len(rows)), layout="constrained")
    figure.suptitle(title, fontweight="bold")
    axes = figure.subplots()
    axes.set_yticks(range(len(rows)), [each["title"] for each, _ in rows])
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.set_ylim(-0.6, max(len(rows), 1) - 0.4)
    axes.set_xlabel(unit if rows else "not measured")
    return figure, axes


def legend(axes: Axes, marks: list[object]) -> None:
    """Put the legend above the axes, where no bar is."""
    axes.legend(handles=marks, loc="lower left", bbox_to_anchor=(0, 1), ncols=len(marks), borderaxespad=0.2)


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text("utf-8")), Path(sys.argv[2]))
