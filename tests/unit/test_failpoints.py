"""Failpoints: how they are armed, and what reaching one does."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from dispatcher import failpoints
from dispatcher.errors import CannotStart


@pytest.fixture(autouse=True)
def disarmed():
    yield
    failpoints.arm("")


@pytest.mark.parametrize("name", failpoints.NAMES)
def test_a_point_that_is_not_armed_does_nothing(name):
    failpoints.reach(name)


@pytest.mark.parametrize("name", failpoints.NAMES)
def test_a_point_armed_to_raise_raises_once(name):
    failpoints.arm(f"{name}:raise")

    with pytest.raises(failpoints.FailpointReached, match=name):
        failpoints.reach(name)
    failpoints.reach(name)


def test_a_point_acts_when_it_is_reached_for_the_nth_time():
    failpoints.arm("batch.before_commit:raise@3")

    failpoints.reach("batch.before_commit")
    failpoints.reach("batch.after_commit")
    failpoints.reach("batch.before_commit")
    with pytest.raises(failpoints.FailpointReached):
        failpoints.reach("batch.before_commit")


def test_several_points_are_armed_at_once_and_the_last_arming_counts():
    failpoints.arm("batch.before_commit:raise")
    failpoints.arm("batch.before_flush:raise, call.before_start:raise@2")

    failpoints.reach("batch.before_commit")
    failpoints.reach("call.before_start")
    with pytest.raises(failpoints.FailpointReached):
        failpoints.reach("batch.before_flush")


@pytest.mark.parametrize(("action", "code"), [("kill", -signal.SIGKILL), ("exit", failpoints.EXIT_CODE)])
def test_a_point_ends_the_process_without_a_farewell(action, code):
    script = (
        "import atexit; from dispatcher import failpoints; atexit.register(print, 'farewell')\n"
        f"failpoints.arm('call.after_return:{action}'); failpoints.reach('call.after_return'); print('alive')"
    )

    ended = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=False)

    assert (ended.returncode, ended.stdout) == (code, "")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("batch.before_comit:kill", "There are: intake.before_commit, batch.before_flush"),
        ("batch.before_commit", "does not say what to do"),
        ("batch.before_commit:die", "one of kill, raise, exit"),
        ("batch.before_commit:kill@0", "does not say what to do"),
        ("batch.before_commit:kill@often", "does not say what to do"),
    ],
)
def test_a_mistake_is_refused_and_leaves_everything_as_it_was(text, said):
    failpoints.arm("batch.after_commit:raise")

    with pytest.raises(CannotStart, match=said):
        failpoints.arm(f"batch.before_flush:raise,{text}")

    failpoints.reach("batch.before_flush")
    with pytest.raises(failpoints.FailpointReached):
        failpoints.reach("batch.after_commit")
