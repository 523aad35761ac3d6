"""Several workers under one supervisor, as real processes: what is killed comes again, what is told to stop drains.

Where it matters how a process ends and not what it does, a small program stands in for the worker: it has a worker's
signals and lifeline, and a call under way that takes as long as the test wants.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import psycopg
import pytest

from tests.acceptance.conftest import SCRIPT, an_event
from tests.harness.rabbit import free_port
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


# With workers that work.


class Fleet:
    """`dispatcher run --workers 3` on a PostgreSQL store, with its log in a file and its address for probes."""

    def __init__(self, folder, store, *arguments, workers=3):
        self.folder, self.store = folder, store
        folder.environ |= {"DISPATCHER_STORE": store, "DISPATCHER_LOG_FORMAT": "json"}
        self.port = free_port()
        self.log = folder.path / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [SCRIPT, "run", "--workers", str(workers), "--http", f"127.0.0.1:{self.port}", *arguments],
                cwd=folder.path,
                env=folder.environ,
                stderr=log,
            )
        folder.started.append(self.process)

    def lines(self, event):
        """Return what was logged by that name."""
        whole = self.log.read_bytes().rpartition(b"\n")[0].splitlines()
        said = [json.loads(line) for line in whole if line.startswith(b"{")]
        return [line for line in said if line["event"] == event]

    def pids(self):
        """Return the pid of the last process of each worker."""
        return {line["worker"]: line["pid"] for line in self.lines("process.started")}

    def ask(self, path):
        """Return status and answer; None when nobody listens yet."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        except ConnectionRefusedError:
            return None
        finally:
            connection.close()

    def reasons(self):
        answer = self.ask("/ready")
        return None if answer is None else json.loads(answer[1])["reasons"]

    def wait_until_ready(self):
        wait_until(lambda: self.reasons() == [] or self.process.poll() is not None, "readiness")
        assert self.process.poll() is None, self.log.read_text()

    def publish(self, *events):
        done = self.folder.run("publish", self.folder.write_events(*events))
        assert done.code == 0, done.err

    def texts(self):
        """Return how many texts there are, to how many people."""
        with psycopg.connect(self.store) as connection:
            return connection.execute("SELECT count(*), count(DISTINCT to_addr) FROM messages").fetchone()

    def end(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        return self.process.wait(DEADLINE)


@pytest.fixture(autouse=True)
def _short_temporary_folder(folder):
    """A folder for sockets, whose path is short enough for them, and where a killed supervisor may leave its own."""
    with tempfile.TemporaryDirectory(prefix="crew-", ignore_cleanup_errors=True) as short:
        folder.environ["TMPDIR"] = short
        yield


@pytest.fixture
def fleet(folder, postgres):
    fleet = Fleet(folder, postgres)
    fleet.wait_until_ready()
    yield fleet
    fleet.process.kill()
    wait_until(lambda: all(is_gone(pid) for pid in fleet.pids().values()), "the end of all workers")


def test_work_goes_on_while_a_worker_is_killed_and_comes_again(fleet):
    before = fleet.pids()
    fleet.publish(*(an_event(n) for n in range(300)))
    os.kill(before[2], signal.SIGKILL)
    fleet.publish(*(an_event(n) for n in range(300, 600)))

    wait_until(lambda: fleet.texts() == (600, 600), "600 texts to 600 people")
    fleet.wait_until_ready()
    after = fleet.pids()
    assert after[2] != before[2]
    assert (after[1], after[3]) == (before[1], before[3])
    assert [(line["worker"], line["signal"]) for line in fleet.lines("process.ended")] == [(2, "SIGKILL")]
    assert fleet.end() == 0
    assert [line["exit_code"] for line in fleet.lines("worker.stopped")] == [0, 0, 0]
    assert sorted({line["worker"] for line in fleet.lines("worker.stopped")}) == [1, 2, 3]


def test_readiness_names_the_worker_that_is_not_ready(fleet):
    pid = fleet.pids()[2]
    os.kill(pid, signal.SIGSTOP)
    try:
        assert fleet.ask("/ready")[0] == 503
        assert fleet.reasons() == ["worker 2: it does not answer"]
        assert fleet.ask("/live")[0] == 200
    finally:
        os.kill(pid, signal.SIGCONT)

    fleet.wait_until_ready()


def test_one_scrape_has_the_numbers_of_all(fleet):
    told = fleet.ask("/metrics")[1]

    assert 'dispatcher_workers{state="running"} 3.0' in told
    for number in (1, 2, 3):
        assert f'dispatcher_ready{{worker="{number}"}} 1.0' in told


def test_workers_end_by_themselves_when_their_supervisor_is_killed(fleet):
    fleet.process.kill()

    wait_until(lambda: len(fleet.lines("worker.stopped")) == 3, "the end of all workers")
    assert [line["exit_code"] for line in fleet.lines("worker.stopped")] == [0, 0, 0]


def test_a_reload_reaches_each_worker(fleet):
    fleet.process.send_signal(signal.SIGHUP)

    wait_until(lambda: len(fleet.lines("rulebook.reloaded")) == 3, "three reloads")
    assert sorted(line["worker"] for line in fleet.lines("rulebook.reloaded")) == [1, 2, 3]


def test_events_of_a_broker_are_shared_and_none_is_lost_or_done_twice_when_workers_are_killed(folder, postgres, vhost):
    from tests.acceptance.brokers import Traffic, some_events

    fleet = Fleet(folder, postgres, "--amqp", vhost.url)
    try:
        fleet.wait_until_ready()
        traffic = Traffic(vhost.url, some_events(1000))
        for number in (2, 3):
            enough = 300 * (number - 1)
            wait_until(lambda enough=enough: fleet.texts()[0] >= enough, f"{enough} texts")
            os.kill(fleet.pids()[number], signal.SIGKILL)
        traffic.finish()

        wait_until(lambda: fleet.texts() == (1000, 1000), "1000 texts to 1000 people")
        assert fleet.end() == 0
    finally:
        fleet.process.kill()
        wait_until(lambda: all(is_gone(pid) for pid in fleet.pids().values()), "the end of all workers")


def test_no_password_of_a_flag_is_on_the_command_line_of_a_worker(folder, postgres):
    fleet = Fleet(folder, postgres, "--amqp", "amqp://me:s3cret@127.0.0.1:1/none", workers=2)
    wait_until(lambda: len(fleet.lines("worker.started")) == 2, "two workers")
    commands = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in fleet.pids().values()]

    assert all(command.endswith(b"dispatcher\0run\0") for command in commands)
    assert fleet.end() == 0
    assert "s3cret" not in fleet.log.read_text()


def test_a_drain_by_several_ends_when_all_is_done(folder, postgres):
    folder.environ["DISPATCHER_STORE"] = postgres
    folder.run("publish", folder.write_events(*(an_event(n) for n in range(200))))
    fleet = Fleet(folder, postgres, "--drain", workers=2)

    assert fleet.process.wait(DEADLINE) == 0, fleet.log.read_text()
    assert fleet.texts() == (200, 200)


def test_a_mistake_in_the_rulebook_is_told_once_and_nothing_is_started(folder):
    rulebook = folder.path / "rulebook.yaml"
    rulebook.write_text(rulebook.read_text().replace("create_contact", "create_contract"))
    fleet = Fleet(folder, "postgresql://nobody@127.0.0.1:1/nothing")

    assert fleet.process.wait(DEADLINE) == 3
    assert fleet.log.read_text().count("unknown_handler") == 1
    assert "process.started" not in fleet.log.read_text()


def test_workers_that_cannot_reach_their_store_end_the_supervisor_with_their_code(folder):
    fleet = Fleet(folder, f"postgresql://nobody@127.0.0.1:{free_port()}/nothing")

    assert fleet.process.wait(DEADLINE) == 3
    assert "Connection refused" in fleet.log.read_text()
    assert len(fleet.lines("supervisor.refused")) == 1


def test_an_address_that_is_taken_is_told_before_anything_is_started(folder):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        fleet = Fleet(folder, "postgresql://nobody@127.0.0.1:1/nothing", "--http", address)

        assert fleet.process.wait(DEADLINE) == 3
    assert f"cannot serve health and metrics on {address}" in fleet.log.read_text()
    assert "process.started" not in fleet.log.read_text()


def test_a_store_in_a_file_has_one_worker(folder):
    done = folder.run("run", "--workers", "2")

    assert done.code == 3
    assert b"--workers: one process writes an SQLite file" in done.err
