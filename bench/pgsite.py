"""A private PostgreSQL that keeps its word, workers on it, and how much processor time each of them takes.

The tests' server does not sync; this one does, has memory, and counts its statements where it can.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tests.harness.postgres import Server  # noqa: E402

SCRIPT = Path(sys.executable).with_name("dispatcher")
CONFIGURATION = """
fsync = on
full_page_writes = on
synchronous_commit = on
wal_level = {wal_level}
max_wal_senders = 0
shared_buffers = {buffers}
max_wal_size = 8GB
checkpoint_timeout = 5min
effective_cache_size = 8GB
track_io_timing = off
"""
RULEBOOK = """\
version: 1
accounts: {acc1: {region: ZA}}
senders: {default: {type: outbox}}
chains:
  - name: welcome
    on: {conversation_type: vxpolls, event_type: poll_complete}
    when: data.consent == "yes"
    steps:
      - id: contact
        handler: create_contact
        with: {msisdn: "{{ data.msisdn }}", name: "{{ data.name | title }}"}
      - handler: send_sms
        with: {to: "{{ steps.contact.msisdn }}", text: "Thanks {{ steps.contact.name }}!"}
  - name: reminder
    on: {conversation_type: vxpolls, event_type: poll_started}
    steps:
      - id: contact
        handler: create_contact
        with: {msisdn: "{{ data.msisdn }}", name: "{{ data.name | title }}"}
      - wait: 30d
      - handler: send_sms
        with: {to: "{{ steps.contact.msisdn }}", text: "How are you, {{ steps.contact.name }}?"}
"""


def an_event(number: int, person: int, event_type: str = "poll_complete") -> dict[str, Any]:
    """Return an event of some 400 bytes, with the random id that a poll gives it."""
    return {
        "event_id": str(uuid.uuid4()),
        "account_key": "acc1",
        "conversation_key": "a6a20571e77f4aa89a8b10a771b005bc",
        "conversation_type": "vxpolls",
        "event_type": event_type,
        "event_data": {
            "msisdn": f"+2782{person % 10_000_000:07d}",
            "name": "thandi dlamini",
            "consent": "yes",
            "language": "en",
            "answers": {"age": "25-34", "visited": "yes", "again": "no", "clinic": f"Kwa-Zenzele {number}"},
        },
    }


class DurableServer(Server):
    """A private PostgreSQL whose commits are on the disk, in a folder of one's choice."""

    def __init__(self, folder: Path | None, *, buffers: str, wal_level: str = "replica") -> None:
        tempfile.tempdir = None if folder is None else str(folder)
        super().__init__()
        self._values = {"buffers": buffers, "wal_level": wal_level}

    def _prepare(self) -> None:
        super()._prepare()
        with (self.folder / "data" / "postgresql.conf").open("a") as configuration:
            configuration.write(CONFIGURATION.format(**self._values))
            if list(Path("/usr/share/postgresql").glob("*/extension/pg_stat_statements.control")):
                configuration.write("shared_preload_libraries = 'pg_stat_statements'\n")


class Processor:
    """Samples the processor time of groups of processes; a group is told by its first process."""

    def __init__(self, groups: dict[str, Callable[[], int | None]]) -> None:
        self._groups = groups
        self._ended = threading.Event()
        self._samples: list[tuple[float, dict[str, float]]] = []
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def _sample(self) -> None:
        while not self._ended.wait(0.1):
            self._samples.append((time.time(), {name: _of_family(first()) for name, first in self._groups.items()}))

    def stop(self) -> None:
        """Sample no more."""
        self._ended.set()
        self._thread.join()

    def between(self, first: float, last: float) -> dict[str, float]:
        """Return the seconds that each group took between two times."""
        return {name: self._at(last, name) - self._at(first, name) for name in self._groups}

    def _at(self, moment: float, name: str) -> float:
        index = bisect_left(self._samples, moment, key=lambda sample: sample[0])
        if index == 0 or index == len(self._samples):
            return self._samples[min(index, len(self._samples) - 1)][1][name]
        (before, then), (after, now) = self._samples[index - 1], self._samples[index]
        return then[name] + (now[name] - then[name]) * (moment - before) / (after - before)


def _of_family(pid: int | None) -> float:
    """Return the processor seconds of a process, of those of its children that have ended, and of those that live."""
    if pid is None:
        return 0.0
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        family = children(pid)
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    own = sum(int(field) for field in fields[11:15]) / os.sysconf("SC_CLK_TCK")
    return own + sum(_of_family(child) for child in family)


def seconds_of(pid: int) -> float:
    """Return the processor seconds that a process and its children have taken."""
    return _of_family(pid)


def children(pid: int | None = None) -> list[int]:
    """Return the processes that a process (this one, if None) has started and that live."""
    threads = Path(f"/proc/{pid or os.getpid()}/task").iterdir()
    return [int(child) for thread in threads for child in (thread / "children").read_text().split()]


class Site:
    """One database with workers on it; `folder` is for the worker's files."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.server, self.folder = server, folder
        folder.mkdir(parents=True)
        self.url = server.databases.create()
        (folder / "rulebook.yaml").write_text(RULEBOOK)
        self.environ = {key: value for key, value in os.environ.items() if not key.startswith("DISPATCHER_")} | {
            "DISPATCHER_STORE": self.url,
            "DISPATCHER_RULEBOOK": "rulebook.yaml",
            "DISPATCHER_LOG_FORMAT": "json",
            # Nothing of what is measured may be forgotten meanwhile.
            "DISPATCHER_KEEP_DONE_DAYS": "365",
            "DISPATCHER_KEEP_SKIPPED_DAYS": "365",
            "DISPATCHER_KEEP_FAILED_DAYS": "365",
            "DISPATCHER_DEDUPE_DAYS": "365",
        }
        self._given = 0
        # When the runs of the last drain came to their end, in order.
        self.moments: list[float] = []
        self.dispatch("migrate")

    def sql(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """Run a statement, and return what it finds."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            cursor = connection.execute(statement, values or None)
            return cursor.fetchall() if cursor.description else []

    def dispatch(self, *arguments: str) -> float:
        """Run the console script to its end; return how many seconds that took."""
        began = time.perf_counter()
        with self.process(*arguments) as process:
            process.wait()
        return time.perf_counter() - began

    @contextmanager
    def process(self, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
        """The console script, which must end with 0 by the end of the block."""
        with (self.folder / "stderr").open("w") as stderr:
            process = subprocess.Popen(
                [str(SCRIPT), *arguments], cwd=self.folder, env=self.environ, stdout=stderr, stderr=stderr
            )
            try:
                yield process
                if process.wait(60) != 0:
                    raise SystemExit(f"dispatcher {arguments[0]} ended with {process.returncode}: {self.said()}")
            finally:
                process.kill()
                process.wait()

    def said(self) -> str:
        """The end of what the last process logged."""
        return (self.folder / "stderr").read_text()[-3000:]

    def publish(self, events: int, people: int, event_type: str = "poll_complete") -> float:
        """Publish so many events, about so many people; return events/s of `dispatcher publish`."""
        with (self.folder / "events.jsonl").open("w") as file:
            for number in range(self._given, self._given + events):
                file.write(json.dumps(an_event(number, number % people, event_type)) + "\n")
        self._given += events
        return events / self.dispatch("publish", "events.jsonl")

    def drain(self, workers: int = 1, meanwhile: Callable[[], None] = lambda: None) -> dict[str, float]:
        """Work off what is there; measured are the four fifths in the middle, by when the runs came to their end."""
        [(before,)] = self.sql("SELECT coalesce(max(seq), 0) FROM runs")
        [(wal,)] = self.sql("SELECT pg_current_wal_lsn()")
        pid: list[int] = []
        processor = Processor({"worker": lambda: pid[0] if pid else None, "postgresql": lambda: self.server.pid})
        with self.process("run", "--drain", "--workers", str(workers)) as process:
            pid.append(process.pid)
            meanwhile()
            while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                time.sleep(0.02)
        processor.stop()
        [(written,)] = self.sql("SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), %s::pg_lsn)", wal)
        found = self.sql(
            "SELECT extract(epoch FROM finished_at::timestamptz)::float8 FROM runs "
            "WHERE seq > %s AND state = 'done' ORDER BY finished_at",
            before,
        )
        moments = [moment for (moment,) in found]
        self.moments = moments
        first, last = moments[len(moments) // 10], moments[len(moments) * 9 // 10]
        done = len([moment for moment in moments if first <= moment < last])
        cpu = {f"{name}_us": seconds / done * 1e6 for name, seconds in processor.between(first, last).items()}
        return {
            "events_per_second": done / (last - first), **cpu, "both_us": sum(cpu.values()),
            "cores_busy": sum(cpu.values()) * done / (last - first) / 1e6, "wal_bytes": float(written) / len(moments),
        }  # fmt: skip

    def check(self, events: int) -> None:
        """Every event matched, every run done, a text each, nothing left."""
        found = {
            query: self.sql(f"SELECT count(*) FROM {query}")[0][0]
            for query in ("events WHERE state = 'matched'", "runs WHERE state = 'done'", "messages", "dead_letters")
        }
        if list(found.values()) != [events] * 3 + [0]:
            raise SystemExit(f"not what there should be: {found}")


def machine(server: Server, folder: Path) -> str:
    """Say on what this was measured."""
    took = []
    with (folder / "sync").open("wb", buffering=0) as file:
        for _ in range(100):
            file.write(bytes(4096))
            began = time.perf_counter()
            os.fdatasync(file.fileno())
            took.append(time.perf_counter() - began)
    with psycopg.connect(server.url()) as connection:
        version = connection.info.parameter_status("server_version")
    return (
        f"{os.cpu_count()} x {platform.machine()}, {platform.system()}, Python {platform.python_version()}, "
        f"psycopg {psycopg.__version__}, PostgreSQL {version}, fdatasync {sorted(took)[50] * 1000:.2f} ms, "
        f"load before {os.getloadavg()[0]:.1f}"
    )


def statements(site: Site, limit: int = 25) -> Sequence[tuple[Any, ...]]:
    """Return what the server counted of each statement: calls, milliseconds in all, rows, WAL bytes, its beginning."""
    return site.sql(
        "SELECT calls, round(total_exec_time)::int, round((total_exec_time / calls)::numeric, 3)::float8, rows, "
        "wal_bytes::bigint, left(regexp_replace(query, '\\s+', ' ', 'g'), 110) FROM pg_stat_statements "
        f"WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database()) "
        f"ORDER BY total_exec_time DESC LIMIT {limit}"
    )
