"""How fast and how far a store on PostgreSQL goes, as its users meet it: real workers on a private server that syncs.

    .venv/bin/python bench/postgres.py broker embedded --folder /var/tmp
    .venv/bin/python bench/postgres.py timers archive drop --folder /var/tmp --json found.json
    .venv/bin/python bench/postgres.py embedded --events 20000 --runs 5 --statements

Each run has a new database; where two things are compared they take turns, so that whatever else the machine does
falls on both. `archive` needs 2.5 KB of disk for each of its events.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
from broker import Bench, latency, wait_for_quiet
from pgfill import fill
from pgsite import DurableServer, Processor, Site, children, machine, seconds_of, statements

from dispatcher.store.postgres import partitions
from dispatcher.store.postgres.retention import PostgresRetention
from dispatcher.store.postgres.store import PostgresStore
from dispatcher.store.retention import Keep
from tests.harness.rabbit import Node

Figures = dict[str, Any]


class SharedBench(Bench):
    """A vhost, and a database for what its worker writes."""

    def __init__(self, node: Node, server: DurableServer, folder: Path, name: str) -> None:
        super().__init__(node, folder, name)
        self.store = server.databases.create()
        self.environ["DISPATCHER_STORE"] = self.store

    def count(self, rows: str) -> int:
        """How many rows of a kind the store has."""
        with psycopg.connect(self.store) as connection:
            return int(connection.execute(f"SELECT count(*) FROM {rows}").fetchone()[0])  # type: ignore[index]


class Postgres:
    """The server with all that is measured on it."""

    def __init__(self, server: DurableServer, folder: Path, given: argparse.Namespace) -> None:
        self._server, self._folder, self._given = server, folder, given
        self._sites = 0
        self._measured: Figures = {}

    def _site(self, name: str) -> Site:
        self._sites += 1
        return Site(self._server, self._folder / f"{name}-{self._sites}")

    def broker(self) -> Figures:
        """One worker between two queues of RabbitMQ; then the latency at a steady rate."""
        before = set(children())
        node = Node()
        node.start()
        erlang = max(set(children()) - before, key=seconds_of)
        try:
            runs = [
                self._through(SharedBench(node, self._server, self._folder / f"b{run}", f"b{run}"), erlang)
                for run in range(self._given.runs)
            ]
            late = SharedBench(node, self._server, self._folder / "late", "late")
            return {"runs": runs, "bytes": self._measured, "latency": latency(late, self._given.rate, 20.0)}
        finally:
            node.end()

    def _through(self, bench: SharedBench, erlang: int) -> Figures:
        events = self._given.events
        bench.fill(events)
        pid: list[int] = []
        [(wal,)] = self._sql("SELECT pg_current_wal_lsn()")
        processor = Processor(
            {
                "worker": lambda: pid[0] if pid else None, "postgresql": lambda: self._server.pid,
                "rabbitmq": lambda: erlang,
            }
        )  # fmt: skip
        began, first = 0.0, 0
        with bench.worker() as process:
            pid.append(process.pid)
            while (done := bench.outbound()) < events:
                if done >= events // 10 and not began:
                    began, first = time.time(), done
                if process.poll() is not None:
                    raise SystemExit(f"{done} of {events} came out: {bench.said()}")
                time.sleep(0.02)
            ended = time.time()
            wait_for_quiet(bench)
            with psycopg.connect(bench.store) as connection:
                (held,) = connection.execute(
                    "SELECT count(*) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
                ).fetchone()  # type: ignore[misc]
        processor.stop()
        bench.check(events)
        [(written,)] = self._sql("SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), %s::pg_lsn)", wal)
        cpu = {f"{name}_us": used / (events - first) * 1e6 for name, used in processor.between(began, ended).items()}
        self._measured = sizes(bench.store, events)
        return {
            "events_per_second": (events - first) / (ended - began), **cpu, "connections": held,
            "wal_bytes": float(written) / events,
        }  # fmt: skip

    def _sql(self, statement: str, *values: object) -> list[Any]:
        with psycopg.connect(self._server.url()) as connection:
            return connection.execute(statement, values or None).fetchall()

    def embedded(self) -> Figures:
        """What `publish` has stored, worked off by one worker and by two, of many people and of few."""
        found: Figures = {}
        for _ in range(self._given.runs):
            for people, name in ((10_000_000, "one each"), (500, "500 people")):
                for workers in (1, 2):
                    site = self._site("embedded")
                    if self._given.statements:
                        site.sql("CREATE EXTENSION pg_stat_statements")
                    published = site.publish(self._given.events * workers, people)
                    if self._given.statements:
                        site.sql("SELECT pg_stat_statements_reset()")
                    drained = {"publish_per_second": published, **site.drain(workers)}
                    site.check(self._given.events * workers)
                    found.setdefault(f"{name}, {workers}", []).append(drained)
                    say(f"{name}, {workers}: {drained}")
                    if self._given.statements:
                        for row in statements(site):
                            say("  ".join(map(str, row)))
                    found["bytes"] = sizes(site.url, self._given.events * workers)
                    self._server.databases.drop(site.url)
        for name in ("one each", "500 people"):
            pairs = zip(found[f"{name}, 2"], found[f"{name}, 1"], strict=True)
            found[f"{name}, ratios"] = [two["events_per_second"] / one["events_per_second"] for two, one in pairs]
        return found

    def timers(self) -> Figures:
        """The hot path of a store with a million runs that wait, beside one that has none."""
        return self._compare({"none": self._site("timers"), "waiting": self._filled(self._given.timers, waiting=True)})

    def archive(self) -> Figures:
        """The hot path of a store with much history, beside one with little."""
        return self._compare({"little": self._filled(10_000), "much": self._filled(self._given.archived)})

    def _filled(self, count: int, *, waiting: bool = False) -> Site:
        site = self._site("filled")
        began = time.perf_counter()
        fill(site, count, 30, waiting=waiting)
        [(size,)] = site.sql("SELECT pg_database_size(current_database())")
        say(f"{count:,} events in {time.perf_counter() - began:.0f} s, {size / count:,.0f} bytes each")
        return site

    def _compare(self, sites: dict[str, Site]) -> Figures:
        found: dict[str, list[dict[str, float]]] = {name: [] for name in sites}
        if self._given.statements:
            for site in sites.values():
                site.sql("CREATE EXTENSION pg_stat_statements")
        for run in range(self._given.pairs + 1):
            for name, site in list(sites.items())[:: 1 if run % 2 else -1]:
                published = site.publish(self._given.events, 10_000_000)
                drained = {"publish_per_second": published, **site.drain()}
                if run:  # the first one warmed the caches
                    found[name].append(drained)
                    say(f"{name}: {drained}")
        if self._given.statements:
            for name, site in sites.items():
                say(name)
                for row in statements(site):
                    say("  ".join(map(str, row)))
        first, second = found.values()
        ratios = {
            figure: statistics.median(b[figure] / a[figure] for a, b in zip(first, second, strict=True))
            for figure in ("events_per_second", "both_us", "worker_us", "postgresql_us", "publish_per_second")
        }
        return {**found, "ratios": ratios}

    def drop(self) -> Figures:
        """A day of many events is forgotten, while a worker is busy."""
        site = self._site("drop")
        old = datetime.now(UTC).date() - timedelta(days=40)
        fill(site, self._given.dropped, 1, last=old)
        site.publish(self._given.events * 4, 10_000_000)
        took: list[tuple[str, float, float]] = []

        def forget() -> None:
            with closing(PostgresStore.open(site.url)) as store:
                retention = PostgresRetention(store, Keep(done=30, failed=30, skipped=30, dedupe=30))
                store.ensure_partitions()
                while True:
                    before, began = partitions.days(store.connection), time.time()
                    if not retention.step(datetime.now(UTC)):
                        break
                    dropped = partitions.days(store.connection) != before
                    took.append(("drop" if dropped else "ids", began, time.time()))

        thread = threading.Thread(target=forget)

        def start() -> None:
            time.sleep(2.0)  # the worker is at it by then
            thread.start()

        drained = site.drain(meanwhile=start)
        thread.join()
        gaps = list(zip(site.moments, site.moments[1:], strict=False))
        began, ended = took[0][1], took[-1][2]
        drops = [(start, end) for kind, start, end in took if kind == "drop"]
        return {
            "events": self._given.dropped,
            "ids_seconds": sum(end - start for kind, start, end in took if kind == "ids"),
            "drop_seconds": [end - start for start, end in drops],
            "busy": [site.moments[0] - began, site.moments[-1] - began],
            "forgot": [began - began, ended - began],
            "longest_pause": max(after - before for before, after in gaps),
            "longest_pause_in_drop": max(
                (b - a for a, b in gaps if any(b >= start and a <= end for start, end in drops)), default=None
            ),
            **drained,
        }


def sizes(url: str, events: int) -> Figures:
    """Return the bytes an event of each table of some size, and of its indexes."""
    with psycopg.connect(url) as connection:
        found = connection.execute(
            "SELECT coalesce(i.inhparent, c.oid)::regclass::text, sum(pg_table_size(c.oid))::float8, "
            "sum(pg_indexes_size(c.oid))::float8 FROM pg_class c LEFT JOIN pg_inherits i ON i.inhrelid = c.oid "
            "WHERE c.relkind = 'r' AND c.relnamespace = current_schema()::regnamespace GROUP BY 1 "
            "HAVING sum(pg_total_relation_size(c.oid)) > 500000 ORDER BY 1"
        ).fetchall()
    return {table: {"rows": rows / events, "indexes": indexes / events} for table, rows, indexes in found}


def say(text: str) -> None:
    """Say how far this is."""
    sys.stderr.write(text + "\n")


def show(value: Any, indent: str = "") -> None:
    """Print figures: of several runs the best, with the median."""
    for name, entry in value.items():
        if isinstance(entry, dict):
            print(f"{indent}{name}:")
            show(entry, indent + "  ")
        elif isinstance(entry, list) and entry and isinstance(entry[0], dict):
            print(f"{indent}{name}, {len(entry)} runs:")
            for figure in entry[0]:
                values = [one[figure] for one in entry]
                print(f"{indent}  {figure}: {min(values):,.1f} to {max(values):,.1f}, {statistics.median(values):,.1f}")
        elif isinstance(entry, list):
            print(f"{indent}{name}: {', '.join(f'{one:,.2f}' for one in entry)}")
        else:
            print(f"{indent}{name}: {entry:,.2f}" if isinstance(entry, float) else f"{indent}{name}: {entry}")


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", choices=("broker", "embedded", "timers", "archive", "drop"))
    parser.add_argument("--events", type=int, default=20_000, help="of one run")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=6, help="of what is compared")
    parser.add_argument("--rate", type=int, default=500, help="events/s while latency is measured")
    parser.add_argument("--timers", type=int, default=1_000_000)
    parser.add_argument("--archived", type=int, default=5_000_000)
    parser.add_argument("--dropped", type=int, default=1_000_000)
    parser.add_argument("--buffers", default="2GB", help="PostgreSQL's shared_buffers")
    parser.add_argument("--statements", action="store_true", help="say what each statement took")
    parser.add_argument("--folder", type=Path, help="where the server's data goes: a disk, on which syncing costs")
    parser.add_argument("--json", type=Path, help="write all figures there, too")
    given = parser.parse_args()

    # What fills millions of rows into new tables need not log them, with the least level.
    level = "minimal" if {"timers", "archive", "drop"} & {*given.what} else "replica"
    server = DurableServer(given.folder, buffers=given.buffers, wal_level=level)
    server.start()
    try:
        with tempfile.TemporaryDirectory(prefix="bench-", dir=given.folder) as folder:
            measured: Figures = {"machine": machine(server, Path(folder))}
            print(measured["machine"])
            postgres = Postgres(server, Path(folder), given)
            parts: dict[str, Callable[[], Figures]] = {name: getattr(postgres, name) for name in given.what}
            for name, part in parts.items():
                measured[name] = part()
                show({name: measured[name]})
                if given.json:
                    given.json.write_text(json.dumps(measured, indent=2))
    finally:
        server.end()


if __name__ == "__main__":
    main()
