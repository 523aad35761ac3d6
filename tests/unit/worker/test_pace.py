"""The pace of batches: what trickles in is gathered, and nothing that happens meanwhile is missed."""

from __future__ import annotations

import select as select_module
import threading
from collections.abc import Iterator

import pytest

from dispatcher.worker.pace import LONGEST, SHORTEST, Pace
from dispatcher.worker.signals import Wakeup


class _Clock:
    def __init__(self) -> None:
        self.at = 100.0

    def monotonic(self) -> float:
        return self.at


class _Noted(threading.Event):
    """Notes for how long it was waited for, and does not wait."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        if not self.is_set():
            self.waits.append(timeout)
        return self.is_set()


@pytest.fixture
def clock() -> _Clock:
    return _Clock()


@pytest.fixture
def wakeup() -> Iterator[Wakeup]:
    wakeup = Wakeup()
    yield wakeup
    wakeup.close()


@pytest.fixture
def rests(mocker) -> list[float]:
    event = _Noted()
    mocker.patch.object(threading, "Event", return_value=event)
    return event.waits


@pytest.fixture
def pace(rests, clock, wakeup) -> Pace:
    return Pace(clock, wakeup)


@pytest.fixture
def select(mocker):
    return mocker.spy(select_module, "select")


def test_the_first_batch_begins_at_once(pace, rests):
    pace.rest()

    assert rests == []


def test_short_batches_begin_a_few_milliseconds_apart(pace, clock, rests):
    began = clock.at
    clock.at += SHORTEST / 4
    pace.worked(began)

    pace.rest()

    assert rests == [pytest.approx(SHORTEST * 3 / 4)]


def test_a_worker_whose_batches_take_longer_rests_for_as_long_as_it_worked(pace, clock, rests):
    began = clock.at
    clock.at += SHORTEST * 0.9
    pace.worked(began)

    pace.rest()

    assert rests == [pytest.approx(SHORTEST * 0.9)]


def test_the_batch_after_a_full_one_begins_at_once(pace, clock, rests):
    began = clock.at
    clock.at += LONGEST * 4
    pace.worked(began)

    pace.rest()

    assert rests == []


def test_a_worker_that_was_idle_begins_at_once(pace, clock, rests):
    pace.worked(clock.at)
    clock.at += 60

    pace.rest()

    assert rests == []


def test_whoever_waits_for_an_answer_is_not_kept_waiting(pace, clock, rests):
    pace.worked(clock.at)
    pace.hurry()

    pace.rest()

    assert rests == []


def test_one_that_was_answered_hurries_nobody_any_more(pace, clock, rests):
    pace.hurry()
    pace.rest()
    pace.worked(clock.at)

    pace.rest()

    assert rests == [pytest.approx(SHORTEST)]


def test_a_clock_that_went_back_keeps_nobody_waiting_for_longer_than_the_longest_rest(pace, clock, rests):
    pace.worked(clock.at)
    clock.at -= 60

    pace.rest()

    assert rests == [LONGEST]


def test_a_wake_up_from_before_the_end_of_a_rest_ends_no_later_sleep(pace, clock, wakeup, select):
    pace.worked(clock.at)
    wakeup.set()

    pace.rest()
    wakeup.wait(0.0)

    assert select.spy_return == ([], [], [])


def test_a_wake_up_after_a_rest_ends_the_sleep(pace, wakeup, select):
    pace.rest()

    wakeup.set()
    wakeup.wait(5.0)

    assert select.spy_return[0]


def test_a_wake_up_where_nothing_was_rested_for_is_kept(pace, wakeup, select):
    wakeup.set()

    pace.rest()
    wakeup.wait(5.0)

    assert select.spy_return[0]
