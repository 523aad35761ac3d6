"""Several workers under one supervisor, as real processes: what is killed comes again, what is told to stop drains.

Where it matters how a process ends and not what it does, a small program stands in for the worker: it has a worker's
signals and lifeline, and a call under way that takes as long as the test wants.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness.waiting import DEADLINE, wait_until

STAND_IN = """
import os, pathlib, sys
from dispatcher.worker.signals import LIFELINE, Signals, Wakeup

folder = pathlib.Path(__file__).parent
wake = Wakeup()
signals = Signals(wake, lifeline=int(os.environ[LIFELINE]))
signals.install()
mark = folder / f"{os.environ['DISPATCHER_WORKER']}.{os.getpid()}.runs"
mark.touch()
while not signals.stops:
    wake.wait(None)
mark.rename(mark.with_suffix(".drains"))
while not (folder / "call-returned").exists() and not signals.exceeds(3600.0):
    wake.wait(0.01)
mark.with_suffix(".drains").rename(mark.with_suffix(".ended"))
sys.exit(75 if signals.exceeds(3600.0) else 0)
"""
SUPERVISOR = """
import os, sys
from dispatcher.worker.children import Child
from dispatcher.worker.supervisor import Supervisor

def start(number):
    return Child([sys.executable, "worker.py"], {**os.environ, "DISPATCHER_WORKER": str(number)})

sys.exit(Supervisor(3, start, drain=False, patience_seconds=3600.0).run())
"""


class Crew:
    """A supervisor with three stand-ins in a folder, which they mark with what they do."""

    def __init__(self, folder):
        self.folder = folder.path
        (self.folder / "worker.py").write_text(STAND_IN)
        self.process = subprocess.Popen(
            [sys.executable, "-c", SUPERVISOR],
            cwd=self.folder,
            env=folder.environ,
            stderr=subprocess.PIPE,
            start_new_session=True,  # a terminal of its own, so to speak
        )
        folder.started.append(self.process)
        wait_until(lambda: len(self.pids("runs")) == 3, "three workers")

    def pids(self, what):
        """Return the pids of those that do so, by number."""
        marks = [path.name.split(".") for path in self.folder.glob(f"*.{what}")]
        return {int(number): int(pid) for number, pid, _ in marks}

    def let_calls_return(self):
        (self.folder / "call-returned").touch()

    def end(self):
        self.process.communicate(timeout=DEADLINE)
        return self.process.returncode


def is_gone(pid):
    """Whether a process is there no more, or has ended and nobody has looked yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("Z")
    except FileNotFoundError:
        return True


@pytest.fixture
def crew(folder):
    crew = Crew(folder)
    yield crew
    crew.process.kill()  # first: it would start others
    crew.let_calls_return()
    for pid in {**crew.pids("runs"), **crew.pids("drains")}.values():
        if not is_gone(pid):
            os.kill(pid, signal.SIGKILL)


def test_a_killed_worker_is_started_again_and_the_others_go_on(crew):
    before = crew.pids("runs")
    os.kill(before[2], signal.SIGKILL)
    (crew.folder / f"2.{before[2]}.runs").unlink()

    wait_until(lambda: 2 in crew.pids("runs"), "the second worker")
    after = crew.pids("runs")
    assert after[2] != before[2]
    assert {**after, 2: None} == {**before, 2: None}


def test_each_stop_drains_all(crew):
    crew.process.send_signal(signal.SIGTERM)
    wait_until(lambda: len(crew.pids("drains")) == 3)
    crew.let_calls_return()

    assert crew.end() == 0
    assert len(crew.pids("ended")) == 3


def test_ctrl_c_which_the_whole_terminal_gets_is_one_request(crew):
    os.killpg(crew.process.pid, signal.SIGINT)
    wait_until(lambda: len(crew.pids("drains")) == 3)
    crew.let_calls_return()

    assert crew.end() == 0


def test_a_service_manager_that_signals_every_process_asks_once_too(crew):
    for pid in [*crew.pids("runs").values(), crew.process.pid]:
        os.kill(pid, signal.SIGTERM)
    wait_until(lambda: len(crew.pids("drains")) == 3)
    for pid in crew.pids("drains").values():
        os.kill(pid, signal.SIGTERM)
    crew.let_calls_return()

    assert crew.end() == 0


def test_a_second_request_to_stop_makes_all_give_up(crew):
    crew.process.send_signal(signal.SIGTERM)
    wait_until(lambda: len(crew.pids("drains")) == 3)
    crew.process.send_signal(signal.SIGTERM)

    assert crew.end() == 75
    assert len(crew.pids("ended")) == 3


def test_workers_drain_when_their_supervisor_is_killed(crew):
    pids = crew.pids("runs")
    crew.process.kill()
    wait_until(lambda: len(crew.pids("drains")) == 3)
    crew.let_calls_return()

    wait_until(lambda: all(is_gone(pid) for pid in pids.values()), "the end of all workers")
    assert len(crew.pids("ended")) == 3


def test_workers_that_drain_are_not_hurried_by_the_end_of_their_supervisor(crew):
    pids = crew.pids("runs")
    crew.process.send_signal(signal.SIGTERM)
    wait_until(lambda: len(crew.pids("drains")) == 3)
    crew.process.kill()
    crew.process.wait(DEADLINE)
    assert crew.pids("drains") == pids
    crew.let_calls_return()

    wait_until(lambda: len(crew.pids("ended")) == 3)
