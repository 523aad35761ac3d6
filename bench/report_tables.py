"""The tables of docs/benchmarks.md, in Markdown: contestants, set-ups, series, bars, machine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from bench.report_bars import AT_LEAST, verdicts
from bench.report_figures import (
    BARE_LOOP,
    BASE,
    JOURNALING_LOOP,
    LOOP,
    OURS,
    PEER,
    Line,
    Results,
    Row,
    Spread,
    setup,
)

NOTHING = "\N{EN DASH}"  # as in the other documents
MAIN = (BASE, "ours-postgresql")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in lines)


def number(value: float) -> str:
    """Write a figure with three digits that count, or all of those before the point."""
    size = abs(value)
    return f"{value:,.0f}" if size >= 100 else f"{value:.1f}" if size >= 10 else f"{value:.2f}"


def middle(found: Spread | None, write: Callable[[float], str] = number) -> str:
    """Write a median."""
    return NOTHING if found is None else write(found.middle)


def extremes(found: Spread | None, write: Callable[[float], str] = "{:,.0f}".format) -> str:
    """Write a median with its extremes."""
    if found is None:
        return NOTHING
    if found.count == 1:
        return write(found.middle)
    return f"{write(found.middle)} ({write(found.least)} to {write(found.most)})"


def highest(found: Spread | None, write: Callable[[float], str] = number) -> str:
    """Write the highest of all rounds."""
    return NOTHING if found is None else write(found.most)


def ratio(results: Results, over: str, under: str) -> str:
    """Write what one contestant is to another; of one to itself there is nothing to say."""
    return "1" if over == under else middle(results.ratio(over, under), "{:.2f}".format)


def seconds(microseconds: float) -> str:
    """Write microseconds an event as seconds for 1,000 events."""
    return f"{microseconds / 1000:.3f}"


def compared(results: Results) -> list[Row]:
    """Return those of the main tables: ours on either store, the loops, the peers; but who failed has no figures."""
    ours = [each for each in results.contestants(OURS) if each["name"] in MAIN]
    everybody = (*ours, *results.contestants(LOOP, PEER))
    return [each for each in everybody if results.rounds("throughput", each["name"], "events_per_second")]


def speeds(results: Results) -> str:
    """Write who did how many events/s, and what that is to ours and to the loops."""
    counts = results.distinct("throughput", "events")
    head = ["", "queue", "events/s", "ours is", "of the bare loop", "of the journaling loop"]
    rows = []
    for each in compared(results):
        name = each["name"]
        cells = [
            each["title"],
            each.get("queue_type") or NOTHING,
            extremes(results.spread("throughput", name, "events_per_second")),
            ratio(results, BASE, name),
            ratio(results, name, BARE_LOOP),
            ratio(results, name, JOURNALING_LOOP),
        ]
        rows.append([*cells, *([_events(results, name)] if len(counts) > 1 else [])])
    return table([*head, *(["events"] if len(counts) > 1 else [])], rows)


def _events(results: Results, name: str) -> str:
    return " or ".join(
        f"{events:,.0f}" for events in sorted(set(results.rounds("throughput", name, "events").values()))
    )


def costs(results: Results) -> str:
    """Write what an event costs each: processor time, memory, processes."""
    head = ["", "worker, s", "broker, s", "database, s", "peak, MB", "processes", "first text, s"]
    return table(head, ([each["title"], *_cost(results, each["name"])] for each in compared(results)))


def _cost(results: Results, name: str) -> list[str]:
    return [
        *(
            middle(results.spread("throughput", name, f"{part}cpu_us"), seconds)
            for part in ("", "broker_", "database_")
        ),
        highest(results.spread("throughput", name, "peak_mb"), "{:,.0f}".format),
        highest(results.spread("throughput", name, "processes"), "{:.0f}".format),
        middle(results.spread("startup", name, "first_text_seconds")),
    ]


def latencies(results: Results) -> str:
    """Write how long a text takes at a steady rate."""
    head = ["", "p50, ms", "p99, ms", "max, ms", "of one core, %"]
    rows = []
    for each in compared(results):
        name = each["name"]
        p50, p99, most, cpu = (
            results.spread("latency", name, field) for field in ("p50_ms", "p99_ms", "max_ms", "cpu_percent")
        )
        if p50 is not None:
            write = "{:.1f}".format
            rows.append(
                [each["title"], middle(p50), extremes(p99, write), highest(most, write), middle(cpu, "{:.0f}".format)]
            )
    return table(head, rows)


def setups(results: Results) -> str:
    """Write what the same job does on our other set-ups."""
    head = ["", "workers", "events/s", "to the first row", "worker, s", "broker, s", "database, s", "peak, MB"]
    rows = []
    for each in results.contestants(OURS):
        name = each["name"]
        cells = _cost(results, name)[:4]
        workers = highest(results.spread("throughput", name, "workers"), "{:.0f}".format)
        speed = extremes(results.spread("throughput", name, "events_per_second"))
        rows.append([each["title"], workers, speed, ratio(results, name, BASE), *cells])
    return table(head, rows)


def outside(each: Row, results: Results) -> str:
    """Write what was measured of one that does another job."""
    found = {
        "events": middle(results.spread("throughput", each["name"], "events"), "{:,.0f}".format),
        "events/s": extremes(results.spread("throughput", each["name"], "events_per_second"), number),
        "s of processor for 1,000 events": middle(results.spread("throughput", each["name"], "cpu_us"), seconds),
        "MB": highest(results.spread("throughput", each["name"], "peak_mb"), "{:,.0f}".format),
    }
    return ", ".join(f"{value} {unit}" for unit, value in found.items() if value != NOTHING)


def series(lines: Sequence[Line]) -> str:
    """Write one series: for each set-up and size the figures, and what they are to the smallest size."""
    head = [
        "",
        "size",
        "events/s",
        "to the first",
        "processor, µs an event",
        "to the first",
        "of it the database, µs",
        "peak, MB",
    ]
    return table(head, (row for line in lines for row in _sizes(line, setup(line, lines))))


def _sizes(line: Line, name: str) -> Iterable[list[str]]:
    for size in line.sizes:
        first = size == line.sizes[0]
        speed, cost = (line.to_base(size, field) for field in ("events_per_second", "cost_us"))
        yield [
            name if first else "",
            f"{size:,}",
            extremes(line.spread(size, "events_per_second")),
            "1" if first else middle(speed, "{:.2f}".format),
            middle(line.spread(size, "cost_us")),
            "1" if first else extremes(cost, "{:.2f}".format),
            middle(line.spread(size, "database_cpu_us")),
            highest(line.spread(size, "peak_mb"), "{:,.0f}".format),
        ]


def bars(results: Results) -> str:
    """Write each bar with what was measured."""
    head = ["bar", "asked", "measured", "holds"]
    rows = []
    for each in verdicts(results):
        side = "short" if each.asked.startswith(AT_LEAST) else "over"
        told = NOTHING if each.short is None else "yes" if each.holds else f"**no**, {100 * each.short:.0f} % {side}"
        rows.append([each.what, each.asked, each.measured, told])
    return table(head, rows)


def machine(results: Results) -> str:
    """Write the machine and the versions."""
    found, versions = results.document["machine"], results.document["versions"]
    told = {
        "processor": f"{found['cores']} cores, {found['cpu']}"
        + (", a virtual machine" if found.get("virtual") else ""),
        "memory": f"{found['memory_gb']:.0f} GB",
        "kernel": found["kernel"],
        "disk": f"{found['filesystem']}, {found['fsync_ms']:.2f} ms to sync 4 KiB",
    }
    return table(["", ""], ([name, str(value)] for name, value in {**told, **versions}.items()))
