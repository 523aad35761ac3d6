"""How fast the embedded path is, as a user meets it: `dispatcher publish` of a file, then `dispatcher run --drain`.

Two steps for each event, create_contact and send_sms by `outbox`, on a store with synchronous=FULL, in real processes
of the console script beside this Python. Each run gets a new store in a temporary folder; the numbers of chains take
turns, so that whatever else the machine does falls on all of them; and each run is checked for what it left.

    make bench
    .venv/bin/python bench/run.py --events 20000 --chains 1,50000 --runs 3 --folder /var/tmp
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

SCRIPT = Path(sys.executable).with_name("dispatcher")
STARTS = 5

CHAIN = """\
  - name: chain-{number}
    on: {{conversation: conversation-{number}, conversation_type: vxpolls, event_type: poll_complete}}
    when: data.consent == "yes"
    steps:
      - id: contact
        handler: create_contact
        with: {{msisdn: "{{{{ data.msisdn }}}}", name: "{{{{ data.name | title }}}}"}}
      - handler: send_sms
        with: {{to: "{{{{ steps.contact.msisdn }}}}", text: "Thanks {{{{ steps.contact.name }}}}!"}}
"""


@dataclass(frozen=True)
class Ended:
    """A process that ended: its wall time, its peak of memory, when it began, and what it wrote to stderr."""

    seconds: float
    peak_mb: float
    began: float
    said: str


@dataclass(frozen=True)
class Measured:
    """One run: events/s of publishing, of draining (the process as a whole, and once it is loaded), of both."""

    chains: int
    publish_per_second: float
    drain_per_second: float
    steady_per_second: float
    both_per_second: float
    load_seconds: float
    peak_mb: float


class Bench:
    """The files of one benchmark, in a folder of its own."""

    def __init__(self, folder: Path, *, events: int, spread: int) -> None:
        self.folder = folder
        self.events = events
        self._environ = {name: value for name, value in os.environ.items() if not name.startswith("DISPATCHER_")}
        self._environ["DISPATCHER_LOG_FORMAT"] = "json"
        with (folder / "events.jsonl").open("w") as file:
            file.writelines(json.dumps(an_event(number, number % spread)) + "\n" for number in range(events))

    def write_rulebook(self, chains: int) -> None:
        """Write the rulebook with so many chains."""
        with (self.folder / f"rulebook-{chains}.yaml").open("w") as file:
            file.write("version: 1\nsenders: {default: {type: outbox}}\nchains:\n")
            file.writelines(CHAIN.format(number=number) for number in range(chains))

    def dispatch(self, *arguments: str, chains: int = 1) -> Ended:
        """Run the console script to its end; whatever it ends with but 0 ends the benchmark."""
        environ = self._environ | {"DISPATCHER_RULEBOOK": f"rulebook-{chains}.yaml"}
        with (self.folder / "stderr").open("w") as stderr:
            began, started = time.time(), time.perf_counter()
            command = [str(SCRIPT), *arguments]
            process = subprocess.Popen(command, cwd=self.folder, env=environ, stdout=stderr, stderr=stderr)
            _, status, usage = os.wait4(process.pid, 0)
            seconds = time.perf_counter() - started
            process.returncode = os.waitstatus_to_exitcode(status)
        said = (self.folder / "stderr").read_text()
        if process.returncode != 0:
            raise SystemExit(f"dispatcher {' '.join(arguments)} ended with {process.returncode}:\n{said[-2000:]}")
        peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return Ended(seconds, peak / 1e6, began, said)

    def _clear(self) -> None:
        for path in self.folder.glob("dispatcher.db*"):
            path.unlink()

    def measure(self, chains: int) -> Measured:
        """Publish and drain once, on a new store."""
        self._clear()
        published = self.dispatch("publish", "events.jsonl")
        drained = self.dispatch("run", "--drain", chains=chains)
        self._check()
        lines = [json.loads(line) for line in drained.said.splitlines() if line.startswith("{")]
        # The first report comes with the first batch: what lies behind it is work alone.
        started, first, stopped = (
            next(line for line in lines if line["event"] == f"worker.{name}")
            for name in ("started", "progressed", "stopped")
        )
        steady = (stopped["events"] - first["events"]) / (at(stopped) - at(first))
        return Measured(
            chains=chains,
            publish_per_second=self.events / published.seconds,
            drain_per_second=self.events / drained.seconds,
            steady_per_second=steady,
            both_per_second=self.events / (published.seconds + drained.seconds),
            load_seconds=at(started) - drained.began,
            peak_mb=drained.peak_mb,
        )

    def _check(self) -> None:
        wanted = ("runs WHERE state = 'done'", "messages WHERE state = 'queued'", "contacts")
        with closing(sqlite3.connect(self.folder / "dispatcher.db")) as store:
            for rows in wanted:
                (count,) = store.execute(f"SELECT count(*) FROM {rows}").fetchone()
                if count != self.events:
                    raise SystemExit(f"{count} {rows} came of {self.events} events")

    def start_times(self) -> dict[str, float]:
        """Return how long it takes to print the help, and to make a store and find nothing to do; in seconds."""
        took: dict[str, list[float]] = {"--help": [], "run --drain": []}
        for _ in range(STARTS + 1):
            self._clear()
            for arguments, seconds in took.items():
                seconds.append(self.dispatch(*arguments.split()).seconds)
        # The first one warmed the caches.
        return {arguments: statistics.median(seconds[1:]) for arguments, seconds in took.items()}

    def sync_ms(self) -> float:
        """Return how long this disk takes to sync 4 KiB: what bounds any store that keeps its word."""
        took = []
        with (self.folder / "sync").open("wb", buffering=0) as file:
            for _ in range(100):
                file.write(bytes(4096))
                started = time.perf_counter()
                os.fsync(file.fileno())
                took.append(time.perf_counter() - started)
        return statistics.median(took) * 1000


def an_event(number: int, chain: int) -> dict[str, Any]:
    """Return an event of some 350 bytes, about a person of its own."""
    return {
        "event_id": f"018f3a5e-{number >> 16 & 0xFFFF:04x}-7{number & 0xFFF:03x}-8000-{number:012x}",
        "account_key": "za-clinics",
        "conversation_key": f"conversation-{chain}",
        "conversation_type": "vxpolls",
        "event_type": "poll_complete",
        "timestamp": "2026-11-21T03:41:54.767900Z",
        "event_data": {
            "msisdn": f"+2782{number:07d}",
            "name": f"thandi {number}",
            "consent": "yes",
            "answers": {"q1": "yes", "q2": "no"},
        },
    }


def at(line: dict[str, Any]) -> float:
    """Return the time of a log line."""
    return datetime.fromisoformat(line["timestamp"]).timestamp()


def spread(values: Sequence[float]) -> str:
    """Write a median with its extremes."""
    return f"{statistics.median(values):,.0f} ({min(values):,.0f} to {max(values):,.0f})"


def rows(found: Sequence[Measured]) -> list[tuple[str, str]]:
    """Return what to print of the runs with one number of chains."""
    columns = {name: [getattr(one, name) for one in found] for name in asdict(found[0])}
    both = statistics.median(columns["both_per_second"])
    return [
        ("publish, events/s", spread(columns["publish_per_second"])),
        ("run --drain, events/s", spread(columns["drain_per_second"])),
        ("run --drain once loaded, events/s", spread(columns["steady_per_second"])),
        ("publish and run --drain, events/s", spread(columns["both_per_second"])),
        ("publish and run --drain, µs an event", f"{1e6 / both:,.0f}"),
        ("start of the process to worker.started, s", f"{statistics.median(columns['load_seconds']):.2f}"),
        ("peak memory of run, MB", f"{max(columns['peak_mb']):,.0f}"),
    ]


def main() -> None:
    """Measure, and print one table."""
    parser = argparse.ArgumentParser(description="Measure the embedded path from end to end.")
    parser.add_argument("--events", type=int, default=20_000)
    parser.add_argument("--chains", default="1,50000", help="how many chains the rulebook has; several, by commas")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--spread", type=int, default=1, help="over how many chains the events are spread")
    parser.add_argument("--folder", type=Path, help="where the stores go: a disk, not a tmpfs, where fsync is free")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    given = parser.parse_args()
    counts = [int(part) for part in given.chains.split(",")]
    if not 1 <= given.spread <= min(counts) or given.events < 1_000 or given.runs < 1:
        parser.error("--spread goes to the smallest of --chains, --events begin at 1000, --runs at 1")

    with tempfile.TemporaryDirectory(prefix="dispatcher-bench-", dir=given.folder) as folder:
        bench = Bench(Path(folder), events=given.events, spread=given.spread)
        for count in {1, *counts}:
            bench.write_rulebook(count)
        load_before = os.getloadavg()[0]
        sync, starts = bench.sync_ms(), bench.start_times()
        found: list[Measured] = []
        for run in range(given.runs):
            for count in counts if run % 2 == 0 else reversed(counts):
                found.append(bench.measure(count))
                sys.stderr.write(f"{count} chains: {found[-1].both_per_second:,.0f} events/s\n")

    machine = f"{os.cpu_count()} x {platform.machine()}, {platform.system()}, Python {platform.python_version()}, "
    machine += f"SQLite {sqlite3.sqlite_version}, fsync {sync:.2f} ms, load before {load_before:.1f}"
    by_count = {count: [one for one in found if one.chains == count] for count in counts}
    steady = {count: statistics.median(one.steady_per_second for one in runs) for count, runs in by_count.items()}
    ratios = {count: steady[count] / steady[counts[0]] for count in counts[1:]}
    if given.json:
        measured = {"starts_seconds": starts, "steady_ratios": ratios, "runs": [asdict(one) for one in found]}
        print(json.dumps({"machine": machine, "events": given.events, **measured}, indent=2))
        return
    print(f"{given.events:,} events, {given.runs} runs, median (least to most); {machine}\n")
    tables = {count: dict(rows(runs)) for count, runs in by_count.items()}
    print("| | " + " | ".join(f"{count:,} chain{'s' * (count != 1)}" for count in counts) + " |")
    print("|---|" + "---|" * len(counts))
    for name in tables[counts[0]]:
        print(f"| {name} | " + " | ".join(table[name] for table in tables.values()) + " |")
    for count, ratio in ratios.items():
        print(f"\nOnce loaded, {count:,} chains run at {ratio:.1%} of the speed of {counts[0]:,}.")
    print("\n" + ", ".join(f"`{name}`: {seconds * 1000:,.0f} ms" for name, seconds in starts.items()) + ".")


if __name__ == "__main__":
    main()
