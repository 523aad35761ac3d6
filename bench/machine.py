"""On what was measured: the machine, its disk, and the versions of everything. Read from /proc, so for Linux."""

from __future__ import annotations

import os
import platform
import sqlite3
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from bench.environments import ROOT

IN_MEMORY = frozenset({"tmpfs", "ramfs", "devtmpfs"})
SYNCS = 100
OURS = ("pika", "pydantic", "Jinja2", "SQLAlchemy", "psycopg")


def described(folder: Path) -> dict[str, object]:
    """Return what the results tell of the machine, and of the disk that holds this folder."""
    return {
        "cpu": next(_told("/proc/cpuinfo", "model name"), platform.machine()),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(int(next(_told("/proc/meminfo", "MemTotal")).split()[0]) * 1024 / 1e9),
        "kernel": platform.release(),
        "filesystem": filesystem(folder),
        "fsync_ms": round(sync_ms(folder), 3),
        "virtual": "hypervisor" in next(_told("/proc/cpuinfo", "flags"), "").split(),
    }


def busy(seconds: float = 1.0) -> float:
    """Return which share of all processors was taken in so many seconds from now."""
    before = _processor_times()
    time.sleep(seconds)
    idle, total = (now - then for now, then in zip(_processor_times(), before, strict=True))
    return 1 - idle / total


def _processor_times() -> tuple[int, int]:
    """Return the ticks in which a processor had nothing to do, and all of them; see proc(5), `cpu` in /proc/stat."""
    ticks = [int(ticks) for ticks in Path("/proc/stat").read_text().partition("\n")[0].split()[1:9]]
    return ticks[3] + ticks[4], sum(ticks)


def _told(file: str, name: str) -> Iterator[str]:
    for line in Path(file).read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            yield value.strip()


def filesystem(folder: Path) -> str:
    """Return the type of the file system that holds a folder."""
    found, best = "unknown", -1
    where = folder.resolve()
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, point, kind, *_ = line.split()
        mounted = Path(point.replace("\\040", " "))
        # Of two at one place the later one is seen.
        if where.is_relative_to(mounted) and len(mounted.parts) >= best:
            found, best = kind, len(mounted.parts)
    return found


def a_disk() -> Path:
    """Return a folder for temporary files that is on a disk, where syncing costs something, rather than in memory."""
    places = [Path(tempfile.gettempdir()), Path("/var/tmp"), ROOT]
    return next((place for place in places if place.is_dir() and filesystem(place) not in IN_MEMORY), ROOT)


def sync_ms(folder: Path) -> float:
    """Return how long this disk takes to sync 4 KiB: what bounds any store that keeps its word."""
    took = []
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        for _ in range(SYNCS):
            file.write(bytes(4096))
            began = time.perf_counter()
            os.fsync(file.fileno())
            took.append(time.perf_counter() - began)
    return statistics.median(took) * 1000


def versions() -> dict[str, str]:
    """Return the versions of what ours runs on; servers and peers tell their own."""
    return {
        "Python": platform.python_version(),
        "SQLite": sqlite3.sqlite_version,
        "dispatcher": version("event-dispatcher"),
        **{name: version(name) for name in OURS},
    }


def commit() -> str:
    """Return the commit that is measured, with a `+` when files differ from it; empty outside a repository."""
    try:
        return _git("rev-parse", "--short=12", "HEAD") + "+" * bool(_git("status", "--porcelain", "--", "dispatcher"))
    except (OSError, subprocess.CalledProcessError):
        return ""


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
