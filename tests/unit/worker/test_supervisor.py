"""What the supervisor decides, with processes that only note what they are told."""

from __future__ import annotations

import signal
import subprocess
import sys
from datetime import timedelta

import pytest

from dispatcher.testing import FrozenClock
from dispatcher.worker import supervisor as module
from dispatcher.worker.supervisor import FAREWELL_SECONDS, LONGEST_PAUSE, Supervisor, pause_after

PATIENCE = 30.0
CANNOT_START = 3
KILLED = -9
TERMINATED = -15


class Fake:
    """A process that runs until the test says how it ended."""

    def __init__(self, number, pid):
        self.number, self.pid = number, pid
        self.code = None
        self.told = []
        self.closed = False

    def poll(self):
        return self.code

    def stop(self):
        self.told.append("stop")

    def give_up(self):
        self.told.append("give up")

    def reload(self):
        self.told.append("reload")

    def kill(self):
        self.told.append("kill")
        self.code = KILLED

    def close(self):
        self.closed = True


class Bench:
    """A supervisor of fakes on a clock of the test's."""

    def __init__(self, workers=3, *, drain=False):
        self.clock = FrozenClock()
        self.started = []
        self.out_of_processes = False
        self.supervisor = Supervisor(
            workers, self.start, drain=drain, patience_seconds=PATIENCE, clock=self.clock, chance=lambda: 1.0
        )
        assert self.turn() is None

    def start(self, number):
        if self.out_of_processes:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        process = Fake(number, 100 + len(self.started))
        self.started.append(process)
        return process

    def turn(self):
        return self.supervisor.turn()

    def running(self):
        return {seat.number: seat.process for seat in self.supervisor.seats if seat.process is not None}

    def end(self, number, code):
        """The process of this number ends so; return what the supervisor makes of it."""
        self.running()[number].code = code
        return self.turn()

    def after(self, seconds):
        self.clock.advance(timedelta(seconds=seconds))
        return self.turn()

    def stop(self):
        self.supervisor.signals._note(signal.SIGTERM, None)
        return self.turn()


@pytest.fixture
def lines(monkeypatch):
    """What was logged meanwhile."""
    written = []

    class Log:
        def info(self, event, **fields):
            written.append((event, fields))

        warning = error = info

    monkeypatch.setattr(module, "log", Log())
    return written


def of(lines, event):
    return [fields for name, fields in lines if name == event]


# Starting again.


def test_each_worker_is_started_once_and_told_its_number():
    bench = Bench(4)

    assert [process.number for process in bench.started] == [1, 2, 3, 4]
    bench.turn()
    assert len(bench.started) == 4


@pytest.mark.parametrize("code", [75, KILLED, 1, 0, TERMINATED])
def test_a_worker_that_ends_for_whatever_reason_is_started_again_at_once_and_the_others_go_on(code):
    bench = Bench()
    others = {number: process for number, process in bench.running().items() if number != 2}

    assert bench.end(2, code) is None

    bench.turn()
    assert [process.number for process in bench.started] == [1, 2, 3, 2]
    assert {number: process for number, process in bench.running().items() if number != 2} == others
    assert all(process.told == [] for process in bench.started)


def test_what_belonged_to_a_process_that_ended_is_let_go():
    bench = Bench()
    bench.end(1, 75)

    assert [process.closed for process in bench.started[:3]] == [True, False, False]


def test_the_pause_grows_with_each_end_up_to_half_a_minute():
    assert [pause_after(times, 1.0) for times in range(1, 9)] == [0, 1, 2, 4, 8, 16, 30, 30]
    assert pause_after(10**9, 1.0) == LONGEST_PAUSE


def test_the_pause_is_spread_so_that_those_that_ended_together_do_not_start_together():
    assert pause_after(3, 0.0) == 1.0
    assert pause_after(3, 1.0) == 2.0


def test_a_worker_that_ends_again_and_again_is_started_after_the_pause_and_not_before():
    bench = Bench()
    bench.end(2, 1)
    bench.turn()
    bench.end(2, 1)

    assert 2 not in bench.running()
    assert bench.supervisor.next_turn() == 1.0
    bench.after(0.9)
    assert 2 not in bench.running()
    bench.after(0.2)
    assert 2 in bench.running()


def test_a_minute_of_good_running_is_forgiven(lines):
    bench = Bench()
    for _ in range(4):
        bench.end(2, 1)
        bench.after(LONGEST_PAUSE)
    bench.after(60)
    bench.end(2, 1)

    assert [line["pause_seconds"] for line in of(lines, "process.ended")] == [0, 1, 2, 4, 0]


def test_each_end_is_told_with_number_pid_how_and_the_pause(lines):
    bench = Bench()
    bench.end(2, 75)
    bench.end(3, KILLED)

    assert of(lines, "process.ended") == [
        {"worker": 2, "pid": 101, "exit_code": 75, "pause_seconds": 0},
        {"worker": 3, "pid": 102, "signal": "SIGKILL", "pause_seconds": 0},
    ]


def test_a_process_that_the_system_does_not_give_is_tried_for_again(lines):
    bench = Bench()
    bench.out_of_processes = True
    bench.end(1, 75)
    assert bench.turn() is None
    assert of(lines, "process.not_started")[0]["worker"] == 1

    bench.out_of_processes = False
    bench.after(LONGEST_PAUSE)
    assert sorted(bench.running()) == [1, 2, 3]


# What cannot start.


@pytest.mark.parametrize("code", [2, 3, 4])
def test_when_no_worker_can_start_the_supervisor_ends_as_one_worker_would(code):
    bench = Bench()

    assert bench.end(1, code) is None
    assert bench.end(2, code) is None
    assert bench.end(3, code) == code
    assert len(bench.started) == 3


def test_one_that_cannot_start_is_tried_again_with_pauses_while_another_runs():
    bench = Bench(2)
    bench.end(1, CANNOT_START)
    assert 1 not in bench.running()  # not even the first time at once
    for _ in range(20):
        bench.after(LONGEST_PAUSE)
        bench.end(1, CANNOT_START)

    assert len(bench.started) == 2 + 20
    assert bench.running()[2].told == []


def test_workers_that_ran_once_are_tried_for_ever():
    bench = Bench(2)
    bench.end(1, 75)
    bench.turn()
    for _ in range(20):
        bench.end(1, CANNOT_START)
        assert bench.end(2, CANNOT_START) is None
        assert bench.after(LONGEST_PAUSE) is None


# Stopping.


def test_a_stop_is_passed_on_once_and_what_has_drained_stays_ended():
    bench = Bench()
    assert bench.stop() is None
    bench.turn()

    assert [process.told for process in bench.started] == [["stop"]] * 3
    assert bench.end(1, 0) is None
    assert bench.end(2, 0) is None
    assert bench.after(1) is None
    assert bench.end(3, 0) == 0
    assert len(bench.started) == 3


def test_a_second_stop_is_passed_on_and_a_third_changes_nothing():
    bench = Bench()
    for _ in range(3):
        bench.stop()

    assert [process.told for process in bench.started] == [["stop", "give up"]] * 3


def test_two_signals_that_came_together_are_passed_on_as_two():
    bench = Bench(2)
    for number in (signal.SIGTERM, signal.SIGINT):
        bench.supervisor.signals._note(number, None)
    bench.turn()

    assert [process.told for process in bench.started] == [["stop", "give up"]] * 2


@pytest.mark.parametrize(
    ("codes", "joint"),
    [
        ((0, 0, 0), 0),
        ((0, 75, 0), 75),
        ((75, 3, 1), 3),
        ((0, KILLED, 0), 75),
        ((0, TERMINATED, 0), 0),  # told to stop before it had begun
    ],
)
def test_the_exit_code_is_that_of_all(codes, joint):
    bench = Bench()
    bench.stop()
    for number, code in enumerate(codes[:-1], start=1):
        assert bench.end(number, code) is None

    assert bench.end(3, codes[-1]) == joint


def test_a_worker_that_waits_to_be_started_again_is_not_started_for_a_stop():
    bench = Bench(2)
    for _ in range(2):
        bench.end(1, 1)
        bench.turn()
    assert sorted(bench.running()) == [2]
    bench.stop()

    assert bench.end(2, 0) == 0


def test_what_does_not_end_in_its_time_is_killed():
    bench = Bench(2)
    bench.stop()
    bench.end(1, 0)
    assert bench.after(PATIENCE + FAREWELL_SECONDS - 0.1) is None
    assert bench.running()[2].told == ["stop"]
    bench.after(0.2)

    assert bench.started[1].told == ["stop", "kill"]
    assert bench.turn() == 75


def test_after_a_second_stop_there_is_little_time():
    bench = Bench(2)
    bench.stop()
    bench.stop()
    bench.after(FAREWELL_SECONDS)

    assert [process.told for process in bench.started] == [["stop", "give up", "kill"]] * 2


# Reloading, draining.


def test_a_reload_is_passed_on_to_all():
    bench = Bench()
    bench.supervisor.signals.reload = True
    bench.turn()
    bench.turn()

    assert [process.told for process in bench.started] == [["reload"]] * 3


def test_workers_that_drained_are_done_and_so_is_the_supervisor():
    bench = Bench(2, drain=True)

    assert bench.end(1, 0) is None
    assert bench.after(LONGEST_PAUSE) is None
    assert bench.end(2, 0) == 0
    assert len(bench.started) == 2


def test_a_worker_that_gave_up_while_draining_is_started_again():
    bench = Bench(2, drain=True)
    bench.end(1, 75)
    bench.turn()
    assert sorted(bench.running()) == [1, 2]
    bench.end(1, 0)

    assert bench.end(2, 0) == 0


def test_a_drain_that_cannot_go_on_says_why():
    bench = Bench(2, drain=True)
    bench.end(1, 0)

    assert bench.end(2, 4) == 4


# What it is made of.


def test_the_supervisor_checks_the_rulebook_without_keeping_it_or_any_plugin_in_memory(tmp_path):
    (tmp_path / "rulebook.yaml").write_text("version: 1\nchains: [{name: fine, steps: [{handler: log_event}]}]\n")
    program = (
        "import sys\n"
        "from dispatcher.settings import load_settings\n"
        "from dispatcher.worker.supervisor import _check_first\n"
        "import dispatcher.worker.overview, dispatcher.worker.listener\n"
        "settings = load_settings({}, store='postgresql://me@nowhere/x', rulebook='rulebook.yaml', workers=2)\n"
        "assert _check_first(settings) == 0\n"
        "heavy = {'pika', 'sqlalchemy', 'psycopg', 'jinja2', 'yaml', 'httpx', 'handlers', 'prometheus_client'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)

    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_a_worker_starts_without_sqlalchemy_whatever_its_store():
    """Importing it is a fifth of a start, and a tenth of a worker's memory."""
    program = (
        "import sys\n"
        "import dispatcher.worker.start, dispatcher.worker.broker, dispatcher.worker.membership\n"
        "import dispatcher.store.sqlite.retention, dispatcher.store.postgres.retention\n"
        "print('sqlalchemy' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert (done.stdout, done.stderr) == ("False\n", "")
