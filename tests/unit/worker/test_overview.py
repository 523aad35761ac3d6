"""One answer for several workers: what they are asked over real sockets, and what is made of it."""

from __future__ import annotations

import socket
from datetime import timedelta

import pytest
from prometheus_client.parser import text_string_to_metric_families

from dispatcher.testing import FrozenClock
from dispatcher.worker import overview as module
from dispatcher.worker.exposition import merged
from dispatcher.worker.health import LOOP_SECONDS, Pulse, Readiness
from dispatcher.worker.listener import Listener
from dispatcher.worker.overview import Overview
from dispatcher.worker.probes import ask
from dispatcher.worker.supervisor import Seat

WELL = Readiness(ready=True)


class Running:
    """As much of a process as is asked for here."""

    def __init__(self, pid):
        self.pid = pid


class House:
    """Two seats whose workers answer on sockets in a folder."""

    def __init__(self, folder):
        self.folder = folder
        self.clock = FrozenClock()
        self.pulse = Pulse(self.clock)
        self.pulse.turned()
        self.seats = [Seat(number, process=Running(100 + number), resume_at=None, starts=1) for number in (1, 2)]
        self.overview = Overview(self.seats, self.socket_of, self.pulse, self.clock)
        self.listeners = {}

    def socket_of(self, number):
        return self.folder / f"{number}.sock"

    def open(self, number, *, live=WELL, ready=WELL, metrics=b""):
        self.close(number)
        listener = Listener(self.socket_of(number), live=lambda: live, ready=lambda: ready, metrics=lambda: metrics)
        listener.start()
        self.listeners[number] = listener

    def close(self, number):
        if number in self.listeners:
            self.listeners.pop(number).stop()

    def after(self, seconds):
        self.clock.advance(timedelta(seconds=seconds))
        self.pulse.turned()

    def metrics(self):
        families = text_string_to_metric_families(self.overview.metrics().decode())
        samples = [sample for each in families for sample in each.samples]
        return {(sample.name, *sorted(sample.labels.items())): sample.value for sample in samples}


@pytest.fixture
def house(tmp_path):
    house = House(tmp_path)
    yield house
    for number in list(house.listeners):
        house.close(number)


@pytest.fixture
def deaf(house, monkeypatch):
    """The second worker takes connections and says nothing."""
    monkeypatch.setattr(module, "PROBE_SECONDS", 0.05)
    monkeypatch.setattr(module, "METRICS_SECONDS", 0.05)
    house.open(1)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(house.socket_of(2)))
        listener.listen()
        yield house


# Ready.


def test_all_are_ready_when_each_is(house):
    house.open(1)
    house.open(2)

    assert house.overview.ready() == WELL


def test_each_reason_is_told_with_the_number_of_its_worker(house):
    house.open(1)
    house.open(2, ready=Readiness(ready=False, reasons=("draining", "the store cannot be used")))

    assert house.overview.ready().reasons == ("worker 2: draining", "worker 2: the store cannot be used")


def test_a_worker_that_does_not_listen_yet_is_starting(house):
    house.open(1)

    assert house.overview.ready().reasons == ("worker 2: starting",)


def test_a_worker_that_answered_before_and_does_no_more_is_told_so(house):
    house.open(1)
    house.open(2)
    house.overview.ready()
    house.close(2)

    assert house.overview.ready().reasons == ("worker 2: it does not answer",)


@pytest.mark.parametrize(
    ("code", "resume_at", "told"),
    [
        (75, 9.0, "it ended (exit code 75), and is started again"),
        (-9, 9.0, "it ended (signal 9), and is started again"),
        (None, 9.0, "it could not be started, and is tried again"),
        (0, None, "it has ended"),
    ],
)
def test_a_worker_that_is_not_there_is_told_with_how_it_ended(house, code, resume_at, told):
    house.open(1)
    house.seats[1].process, house.seats[1].code, house.seats[1].resume_at = None, code, resume_at

    assert house.overview.ready().reasons == (f"worker 2: {told}",)


def test_a_worker_that_says_nothing_costs_a_moment_and_hides_no_other(deaf):
    deaf.open(1, ready=Readiness(ready=False, reasons=("draining",)))

    assert deaf.overview.ready().reasons == ("worker 1: draining", "worker 2: starting")


# Live.


def test_a_worker_that_starts_or_waits_to_be_started_again_is_no_reason_to_end_all(house):
    house.open(1)
    house.overview.live()
    house.after(10 * LOOP_SECONDS)
    assert house.overview.live() == WELL

    house.seats[1].process, house.seats[1].resume_at = None, 9.0
    assert house.overview.live() == WELL


def test_a_worker_whose_loop_stands_is_a_reason(house):
    house.open(1)
    house.open(2, live=Readiness(ready=False, reasons=("the worker's loop has stopped turning",)))

    assert house.overview.live().reasons == ("worker 2: the worker's loop has stopped turning",)


def test_a_worker_that_is_silent_for_long_is_a_reason_until_it_answers_again(house):
    house.open(1)
    house.open(2)
    house.overview.live()
    house.close(2)
    house.after(600)  # nobody asked meanwhile
    assert house.overview.live() == WELL
    house.after(LOOP_SECONDS + 1)
    assert house.overview.live().reasons == ("worker 2: it has not answered for 31 s",)

    house.open(2)
    assert house.overview.live() == WELL


def test_the_process_that_took_the_place_of_a_silent_one_begins_anew(house):
    house.open(1)
    house.open(2)
    house.overview.live()
    house.close(2)
    house.overview.live()
    house.seats[1].process = Running(999)
    house.after(LOOP_SECONDS + 1)

    assert house.overview.live() == WELL


def test_a_supervisor_that_stands_is_a_reason(house):
    house.open(1)
    house.open(2)
    house.clock.advance(timedelta(seconds=LOOP_SECONDS + 1))

    assert house.overview.live().reasons == ("the supervisor's loop has stopped turning, 31 s ago",)


# Metrics.

FIRST = b"""\
# HELP dispatcher_steps_total Attempts.
# TYPE dispatcher_steps_total counter
dispatcher_steps_total 3.0
# HELP dispatcher_batch_size Things.
# TYPE dispatcher_batch_size histogram
dispatcher_batch_size_bucket{le="1.0"} 1.0
dispatcher_batch_size_bucket{le="+Inf"} 2.0
dispatcher_batch_size_count 2.0
dispatcher_batch_size_sum 9.0
"""
SECOND = b"""\
# HELP dispatcher_steps_total Attempts.
# TYPE dispatcher_steps_total counter
dispatcher_steps_total 4.0
# HELP dispatcher_queue_unacked Deliveries.
# TYPE dispatcher_queue_unacked gauge
dispatcher_queue_unacked{queue="a } b\\"c"} 7.0
"""


def test_the_numbers_of_all_are_told_with_the_number_of_each(house):
    house.open(1, metrics=FIRST)
    house.open(2, metrics=SECOND)
    numbers = house.metrics()

    assert numbers["dispatcher_steps_total", ("worker", "1")] == 3
    assert numbers["dispatcher_steps_total", ("worker", "2")] == 4
    assert numbers["dispatcher_batch_size_bucket", ("le", "+Inf"), ("worker", "1")] == 2
    assert numbers["dispatcher_queue_unacked", ("queue", 'a } b"c'), ("worker", "2")] == 7


def test_a_family_comes_once_with_the_samples_of_all_behind_its_heading():
    lines = merged({1: FIRST.decode(), 2: SECOND.decode()}).splitlines()

    assert lines[:4] == [
        "# HELP dispatcher_steps_total Attempts.",
        "# TYPE dispatcher_steps_total counter",
        'dispatcher_steps_total{worker="1"} 3.0',
        'dispatcher_steps_total{worker="2"} 4.0',
    ]
    assert len([line for line in lines if line.startswith("# TYPE")]) == 3


def test_empty_braces_are_labels_too():
    assert merged({3: "up{} 1\n"}) == 'up{worker="3"} 1\n'


def test_the_supervisor_tells_of_its_processes(house):
    house.open(1)
    house.seats[0].starts = 4
    house.seats[1].process, house.seats[1].resume_at = None, 9.0
    numbers = house.metrics()

    assert [numbers["dispatcher_workers", ("state", state)] for state in ("running", "waiting", "ended")] == [1, 1, 0]
    assert [numbers["dispatcher_worker_restarts_total", ("worker", number)] for number in "12"] == [3, 0]
    assert [numbers["dispatcher_worker_answered", ("worker", number)] for number in "12"] == [1, 0]


def test_a_worker_that_says_nothing_does_not_keep_the_numbers_of_the_others(deaf):
    deaf.open(1, metrics=FIRST)
    numbers = deaf.metrics()

    assert numbers["dispatcher_steps_total", ("worker", "1")] == 3
    assert numbers["dispatcher_worker_answered", ("worker", "2")] == 0


def test_a_large_answer_is_taken_as_a_whole(house):
    house.open(1, metrics=b"x 1.0\n" * 500_000)

    assert len(ask({1: house.socket_of(1)}, "/metrics", 30.0)[1][1]) == 3_000_000


def test_what_is_no_answer_counts_as_none(tmp_path):
    from threading import Thread

    path = tmp_path / "odd.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def answer():
            connection, _ = listener.accept()
            connection.sendall(b"hello\r\n\r\n")
            connection.close()

        thread = Thread(target=answer)
        thread.start()
        assert ask({1: path}, "/live", 30.0) == {}
        thread.join()
