"""How the benchmark ends by a signal: with what it started, wherever the signal meets it, and once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness.waiting import wait_until

ROOT = Path(__file__).parents[3]
PATIENCE = 20.0

# Whoever runs the tests in the background may have them ignore signals.
HEAD = """
import os, signal, subprocess, sys, time
from pathlib import Path
from bench.ending import temporary_folder
from bench.processes import Launch, started
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
"""
# It says the number of a process that it started, and waits to be ended.
USUAL = """
with temporary_folder(Path(sys.argv[1])) as folder:
    with started(Launch(["sleep", "600"], folder), folder / "out") as running:
        print(running.process.pid, flush=True)
        time.sleep(600)
"""
# As if the signal had come before anybody had taken charge of the process, which has a child that nobody knows.
UNATTENDED = """
with temporary_folder(Path(sys.argv[1])) as folder:
    process = subprocess.Popen(["sh", "-c", "sleep 600 & echo $! && wait"], cwd=folder, start_new_session=True)
    time.sleep(600)
"""
# It is at its cleaning up when it speaks, and then sees what cleaning up was to be.
SLOW_END = """
with temporary_folder(Path(sys.argv[1])) as folder:
    try:
        print(os.getpid(), flush=True)
        time.sleep(600)
    finally:
        print("cleaning", flush=True)
        sys.stdin.readline()
        print("clean", flush=True)
        raise ValueError("another error on the way out")
"""


def a_run(body, folder):
    return subprocess.Popen(
        [sys.executable, "-c", HEAD + body, str(folder)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def lives(pid):
    """Return whether a process lives; one that has ended and that nobody waits for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("body", [USUAL, UNATTENDED], ids=["attended", "unattended"])
def test_a_signal_ends_every_process_and_takes_the_folder_away(body, number, tmp_path):
    with a_run(body, tmp_path) as run:
        pid = int(run.stdout.readline())
        assert lives(pid)

        run.send_signal(number)
        _, said = run.communicate(timeout=PATIENCE)

    assert (run.returncode, said) == (128 + number, "")
    wait_until(lambda: not lives(pid), "the process to be gone", PATIENCE)
    assert list(tmp_path.iterdir()) == []


def test_cleaning_up_is_not_cut_short_by_the_same_wish_and_its_errors_do_not_hide_the_end(tmp_path):
    with a_run(SLOW_END, tmp_path) as run:
        run.stdout.readline()
        run.send_signal(signal.SIGTERM)
        assert run.stdout.readline() == "cleaning\n"

        run.send_signal(signal.SIGINT)
        told, said = run.communicate("go on\n", timeout=PATIENCE)

    assert (run.returncode, told, said) == (128 + signal.SIGTERM, "clean\n", "")
    assert list(tmp_path.iterdir()) == []


def test_an_error_that_is_no_end_is_raised_and_leaves_nothing_either(tmp_path):
    with a_run(USUAL.replace("time.sleep(600)", "raise ValueError('of its own')"), tmp_path) as run:
        pid = int(run.stdout.readline())
        _, said = run.communicate(timeout=PATIENCE)

    assert (run.returncode, "ValueError: of its own" in said) == (1, True)
    wait_until(lambda: not lives(pid), "the process to be gone", PATIENCE)
    assert list(tmp_path.iterdir()) == []


def test_a_signal_that_is_ignored_when_it_begins_stays_ignored(tmp_path):
    with a_run("signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + SLOW_END, tmp_path) as run:
        pid = int(run.stdout.readline())
        os.kill(pid, signal.SIGHUP)
        run.send_signal(signal.SIGTERM)
        run.communicate("go on\n", timeout=PATIENCE)

    assert run.returncode == 128 + signal.SIGTERM
