from __future__ import annotations

import os
import signal
import threading

import pytest

from dispatcher.worker.signals import Signals, Wakeup
from tests.harness.waiting import wait_until

PATIENCE = 3600.0


@pytest.fixture
def wake():
    wake = Wakeup()
    yield wake
    wake.close()


@pytest.fixture
def lifeline():
    """A pipe as a supervisor makes one: its read end, and a function that closes or writes the other."""
    read, write = os.pipe()
    ends = [write]

    def tell(text=None):
        if text is None:
            os.close(ends.pop())
        else:
            os.write(write, text)

    yield read, tell
    for end in ends:
        os.close(end)
    # Whoever listens must have heard of that before the number is another pipe's.
    wait_until(nobody_listens)
    os.close(read)


def nobody_listens():
    return not any(thread.name == "lifeline" for thread in threading.enumerate())


@pytest.fixture
def supervised(wake, lifeline):
    signals = Signals(wake, lifeline=lifeline[0])
    signals.install()
    yield signals
    signals.restore()


def test_a_second_signal_ends_the_patience(wake):
    signals = Signals(wake)
    signals.install()
    try:
        signal.raise_signal(signal.SIGTERM)
        assert (signals.stops, signals.exceeds(PATIENCE)) == (1, False)
        signal.raise_signal(signal.SIGINT)
        assert (signals.stops, signals.exceeds(PATIENCE)) == (2, True)
    finally:
        signals.restore()


def test_a_worker_with_a_supervisor_drains_however_many_signals_come(supervised):
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
        signal.raise_signal(number)

    assert (supervised.stops, supervised.exceeds(PATIENCE)) == (1, False)


def test_a_byte_from_the_supervisor_ends_the_patience(supervised, lifeline):
    signal.raise_signal(signal.SIGTERM)
    lifeline[1](b"!")

    wait_until(lambda: supervised.exceeds(PATIENCE))


def test_the_end_of_the_supervisor_is_a_request_to_stop(supervised, lifeline):
    lifeline[1]()

    wait_until(lambda: supervised.stops)
    assert (supervised.stops, supervised.exceeds(PATIENCE)) == (1, False)


def test_the_end_of_the_supervisor_changes_nothing_for_a_worker_that_drains(supervised, lifeline):
    signal.raise_signal(signal.SIGTERM)
    lifeline[1]()

    wait_until(nobody_listens)
    assert supervised.stops == 1


def test_the_lifeline_is_not_handed_on_to_what_a_handler_starts(supervised, lifeline):
    assert not os.get_inheritable(lifeline[0])


def test_what_comes_after_the_worker_has_ended_is_ignored(wake, lifeline):
    signals = Signals(wake, lifeline=lifeline[0])
    signals.install()
    signals.restore()
    lifeline[1]()

    wait_until(nobody_listens)
    assert signals.stops == 0
