"""The slot file names whoever was in hand when the worker ended; the watchdog ends a worker that hangs."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from dispatcher.clock import SystemClock
from dispatcher.worker.guard import EXIT_RESTART, CrashGuard, Watchdog


def a_guard(path: Path, calls: int = 4) -> CrashGuard:
    return CrashGuard(path, calls, SystemClock(), warn_after=0.1)


def test_an_orderly_end_leaves_no_suspects(tmp_path: Path) -> None:
    guard = a_guard(tmp_path / "slot")
    guard.enter(7, "handler")
    guard.leave()
    guard.close()
    assert a_guard(tmp_path / "slot").suspects() == []


@pytest.mark.parametrize("end", ["os.abort()", "os.kill(os.getpid(), 9)", "os._exit(1)"])
def test_a_crash_names_the_event_of_the_batch_and_those_of_the_calls(tmp_path: Path, end: str) -> None:
    path = tmp_path / "slot"
    script = (
        "import os, sys; from pathlib import Path; from dispatcher.clock import SystemClock;"
        "from dispatcher.worker.guard import CrashGuard;"
        "guard = CrashGuard(Path(sys.argv[1]), 4, SystemClock(), warn_after=1);"
        "guard.enter(5, 'x'); guard.enter(41, 'x'); guard.enter_call(42);"
        "over = guard.enter_call(43); guard.leave_call(over);" + end
    )
    subprocess.run([sys.executable, "-c", script, str(path)], check=False, capture_output=True)
    guard = a_guard(path)
    assert guard.suspects() == [41, 42]
    assert guard.suspects() == []


def test_a_worker_with_fewer_call_slots_still_finds_the_suspects_of_one_with_more(tmp_path: Path) -> None:
    many = a_guard(tmp_path / "slot", calls=8)
    for seq in range(1, 9):
        many.enter_call(seq)
    assert a_guard(tmp_path / "slot", calls=1).suspects() == [1, 2, 3, 4, 5, 6, 7, 8]


def test_the_watchdog_ends_the_process_when_a_handler_hangs(tmp_path: Path) -> None:
    guard = a_guard(tmp_path / "slot")
    ended: list[int] = []
    called = threading.Event()

    def end(code: int) -> None:
        ended.append(code)
        called.set()

    watchdog = Watchdog(guard, SystemClock(), hang_after=0.02, end=end)
    guard.enter(3, "sleepy")
    watchdog.start()
    assert called.wait(10)
    watchdog.stop()
    assert ended == [EXIT_RESTART]


def test_the_watchdog_leaves_a_worker_alone_that_does_nothing(tmp_path: Path) -> None:
    guard = a_guard(tmp_path / "slot")
    ended: list[int] = []
    watchdog = Watchdog(guard, SystemClock(), hang_after=0.01, end=ended.append)
    guard.enter(3, "quick")
    guard.leave()
    watchdog.start()
    watchdog.stop()
    assert ended == []


def test_the_watchdog_ends_a_process_whose_regular_expression_runs_away(tmp_path: Path) -> None:
    script = (
        "import os, re, sys; from pathlib import Path; from dispatcher.clock import SystemClock;"
        "from dispatcher.worker.guard import CrashGuard, Watchdog;"
        "guard = CrashGuard(Path(sys.argv[1]), 4, SystemClock(), warn_after=1);"
        "Watchdog(guard, SystemClock(), hang_after=0.2, end=os._exit).start();"
        "guard.enter(41, 'greedy'); re.match(r'(a+)+$', 'a' * 40 + 'b')"
    )
    path = tmp_path / "slot"
    ended = subprocess.run([sys.executable, "-c", script, str(path)], check=False, capture_output=True, timeout=30)
    assert ended.returncode == EXIT_RESTART
    assert b"handler.hung" in ended.stderr
    assert a_guard(path).suspects() == [41]


def test_the_watchdog_may_be_stopped_before_it_was_started(tmp_path: Path) -> None:
    Watchdog(a_guard(tmp_path / "slot"), SystemClock(), hang_after=1, end=lambda _code: None).stop()
