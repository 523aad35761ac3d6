"""The pace of batches: what trickles in is gathered, and nothing that happens meanwhile is missed."""

from __future__ import annotations

import select as select_module

import pytest

from dispatcher.worker.pace import LONGEST, SHORTEST, Pace
from dispatcher.worker.signals import Wakeup


class _Clock:
    def __init__(self) -> None:
        self.at = 100.0

    def monotonic(self) -> float:
        return self.at


class _Rests:
    """Stands in for the wake-up pipe, and notes for how long it was asked to rest."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def rest(self, seconds: float) -> None:
        self.seconds.append(seconds)


@pytest.fixture
def clock() -> _Clock:
    return _Clock()


@pytest.fixture
def rests() -> _Rests:
    return _Rests()


@pytest.fixture
def pace(clock, rests) -> Pace:
    return Pace(clock, rests)


def test_the_first_batch_begins_at_once(pace, rests):
    pace.rest(hurried=False)

    assert rests.seconds == []


def test_short_batches_begin_a_few_milliseconds_apart(pace, clock, rests):
    began = clock.at
    clock.at += SHORTEST / 4
    pace.worked(began)

    pace.rest(hurried=False)

    assert rests.seconds == [pytest.approx(SHORTEST * 3 / 4)]


def test_a_worker_whose_batches_take_longer_rests_for_as_long_as_it_worked(pace, clock, rests):
    began = clock.at
    clock.at += SHORTEST * 0.9
    pace.worked(began)

    pace.rest(hurried=False)

    assert rests.seconds == [pytest.approx(SHORTEST * 0.9)]


def test_the_batch_after_a_full_one_begins_at_once(pace, clock, rests):
    began = clock.at
    clock.at += LONGEST * 4
    pace.worked(began)

    pace.rest(hurried=False)

    assert rests.seconds == []


def test_a_worker_that_was_idle_begins_at_once(pace, clock, rests):
    pace.worked(clock.at)
    clock.at += 60

    pace.rest(hurried=False)

    assert rests.seconds == []


def test_whoever_waits_for_a_commit_is_not_kept_waiting(pace, clock, rests):
    pace.worked(clock.at)

    pace.rest(hurried=True)

    assert rests.seconds == []


def test_a_clock_that_went_back_keeps_nobody_waiting_for_longer_than_the_longest_rest(pace, clock, rests):
    pace.worked(clock.at)
    clock.at -= 60

    pace.rest(hurried=False)

    assert rests.seconds == [LONGEST]


def test_a_wake_up_from_before_the_end_of_a_rest_ends_no_later_sleep(mocker):
    select = mocker.spy(select_module, "select")
    wakeup = Wakeup()
    wakeup.set()

    wakeup.rest(0.0)
    wakeup.wait(0.0)

    assert select.spy_return == ([], [], [])
    wakeup.close()


def test_a_wake_up_after_a_rest_ends_the_sleep(mocker):
    wakeup = Wakeup()
    select = mocker.spy(select_module, "select")

    wakeup.rest(0.0)
    wakeup.set()
    wakeup.wait(60.0)

    assert select.spy_return[0]
    wakeup.close()
