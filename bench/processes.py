"""Processes that are measured: how one is started and ended, and what its whole tree takes of processors and memory.

All of it is read from /proc, so this is for Linux. A tree is a process with all that descends from it, those that ended
and were waited for included; where a process starts others in sessions of their own, they still count and still end.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
STOP_PATIENCE = 60.0
SAID_BYTES = 1500


class ContestantFailed(Exception):
    """A contestant could not do its job; says what it did instead, with the end of what it wrote."""


@dataclass(frozen=True)
class Launch:
    """How to start a process."""

    command: Sequence[str]
    folder: Path
    environ: Mapping[str, str] = field(default_factory=dict)
    stdin: Path = Path(os.devnull)

    def full_environ(self) -> dict[str, str]:
        """Return this process's environment without what would set up one of ours, and with what is wanted."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("DISPATCHER_", "BENCH_"))}
        return {**kept, **self.environ}


@dataclass
class Tree:
    """A process and all that it started, with the most that they ever were when looked at."""

    pid: int
    size: int = 0  # processes
    peak_mb: float = 0.0  # the sum of their peaks, of 1,000,000 bytes; pages that two share count twice

    def members(self) -> list[int]:
        """Return those that live, the first of them first."""
        found, ahead = [], [self.pid]
        while ahead:
            pid = ahead.pop()
            with suppress(FileNotFoundError, ProcessLookupError):
                threads = list(Path(f"/proc/{pid}/task").iterdir())
                found.append(pid)
                for thread in threads:
                    with suppress(FileNotFoundError, ProcessLookupError):
                        ahead += map(int, (thread / "children").read_text().split())
        return found

    def cpu_seconds(self) -> float:
        """Return the processor seconds of all of them so far."""
        return sum(_cpu_ticks(pid) for pid in self.members()) / TICKS

    def look(self) -> None:
        """See how many there are, and how much memory each has taken at its peak."""
        peaks = [_peak_kib(pid) for pid in self.members()]
        self.size = max(self.size, len(peaks))
        self.peak_mb = max(self.peak_mb, sum(peaks) * 1024 / 1e6)

    def kill(self) -> None:
        """End what is left of it at once."""
        for pid in self.members():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def spent_by_children() -> float:
    """Return the processor seconds of all that this process started and that has ended, with what that started."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _cpu_ticks(pid: int) -> int:
    with suppress(FileNotFoundError, ProcessLookupError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:15]))  # its own and its ended children's, in user and in system mode
    return 0


def _peak_kib(pid: int) -> int:
    with suppress(FileNotFoundError, ProcessLookupError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1])
    return 0


@dataclass
class Running:
    """A process that was started, what it writes, and when that was."""

    process: subprocess.Popen[bytes]
    output: Path
    tree: Tree
    started_at: float  # of time.perf_counter, which every process of this machine shares
    started_on: float  # of time.time

    def ended(self) -> bool:
        """Whether it has ended."""
        return self.process.poll() is not None

    def said(self) -> str:
        """Return the end of what it wrote."""
        return self.output.read_text(errors="replace")[-SAID_BYTES:].strip()

    def lines(self) -> list[str]:
        """Return all that it wrote."""
        return self.output.read_text(errors="replace").splitlines()

    def wait(self, patience: float, *, looking: bool = True) -> None:
        """Wait until it ends by itself with 0. Raises ContestantFailed when it does not."""
        deadline = time.monotonic() + patience
        while not self.ended():
            if looking:
                self.tree.look()
            if time.monotonic() > deadline:
                raise ContestantFailed(f"it did not end within {patience:.0f} s: {self.said()}")
            time.sleep(0.02)
        if self.process.returncode:
            raise ContestantFailed(f"it ended with {self.process.returncode}: {self.said()}")

    def stop(self) -> None:
        """Tell it to end in order. Raises ContestantFailed when it does not."""
        self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(STOP_PATIENCE)
        except subprocess.TimeoutExpired:
            raise ContestantFailed(f"SIGTERM did not end it within {STOP_PATIENCE:.0f} s: {self.said()}") from None
        if status not in (0, -signal.SIGTERM, 128 + signal.SIGTERM):
            raise ContestantFailed(f"it ended with {status} after SIGTERM: {self.said()}")


@contextmanager
def started(launch: Launch, output: Path) -> Iterator[Running]:
    """Start a process in a session of its own, so that a terminal's Ctrl-C is ours to pass on; nothing of it is left.

    All that it writes goes to `output`.
    """
    with output.open("wb") as file, launch.stdin.open("rb") as stdin:
        started_at, started_on = time.perf_counter(), time.time()
        process = subprocess.Popen(
            launch.command,
            cwd=launch.folder,
            env=launch.full_environ(),
            stdin=stdin,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    running = Running(process, output, Tree(process.pid), started_at, started_on)
    try:
        yield running
    finally:
        running.tree.kill()
        with suppress(ProcessLookupError):  # of those whose parent ended before them
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_until(done: Callable[[], bool], patience: float, what: str, pause: float = 0.02) -> None:
    """Wait until something is so. Raises ContestantFailed when it takes too long."""
    deadline = time.monotonic() + patience
    while not done():
        if time.monotonic() > deadline:
            raise ContestantFailed(f"{what} was not so within {patience:.0f} s")
        time.sleep(pause)
