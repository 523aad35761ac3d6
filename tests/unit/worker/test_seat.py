"""A worker's seat: one lock each, and the number of whoever died in it is found."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from dispatcher.errors import CannotStart
from dispatcher.worker.seat import Seat


def test_a_worker_gets_the_seat_that_it_wants(tmp_path):
    seat = Seat(tmp_path, "store", 3)
    assert seat.index == 3
    assert seat.slots == tmp_path / "dispatcher-store-3.slots"
    assert seat.died == []
    seat.leave(clean=True)


def test_two_workers_that_want_one_seat_get_two(tmp_path):
    first, second = Seat(tmp_path, "store", 1), Seat(tmp_path, "store", 1)
    assert (first.index, second.index) == (1, 2)
    first.leave(clean=True)
    second.leave(clean=True)


def test_the_number_of_a_worker_that_left_clean_is_forgotten(tmp_path):
    seat = Seat(tmp_path, "store", 1)
    seat.note(17)
    seat.leave(clean=True)
    again = Seat(tmp_path, "store", 1)
    assert again.died == []
    again.leave(clean=True)


def test_a_killed_worker_is_named_to_the_next_one_in_its_seat(tmp_path):
    killed(tmp_path, seat=1, number=17)
    seat = Seat(tmp_path, "store", 1)
    assert seat.died == [17]
    assert seat.slots_left == []  # what it had in hand is in this seat's own file
    seat.note(18)
    seat.leave(clean=True)


def test_workers_killed_in_seats_that_nobody_takes_are_found_too(tmp_path):
    # As two leave them that are killed at once.
    (tmp_path / "dispatcher-store-2.seat").write_text("5\n")
    (tmp_path / "dispatcher-store-7.seat").write_text("6\n")
    seat = Seat(tmp_path, "store", 1)
    assert sorted(seat.died) == [5, 6]
    assert seat.slots_left == [tmp_path / "dispatcher-store-2.slots", tmp_path / "dispatcher-store-7.slots"]
    seat.note(8)
    seat.free_left()
    seat.leave(clean=True)
    again = Seat(tmp_path, "store", 1)
    assert again.died == []
    again.leave(clean=True)


def test_what_was_not_taken_over_is_named_again(tmp_path):
    """Whoever takes over may die before it has: the next one finds both."""
    killed(tmp_path, seat=2, number=5)
    Seat(tmp_path, "store", 1).leave(clean=False)
    seat = Seat(tmp_path, "store", 1)
    assert seat.died == [5]
    seat.leave(clean=False)


def test_the_seats_of_another_store_are_not_looked_at(tmp_path):
    killed(tmp_path, seat=2, number=5, store="other")
    seat = Seat(tmp_path, "store", 1)
    assert seat.died == []
    seat.leave(clean=True)


def test_a_folder_that_is_not_there_is_told_with_its_setting(tmp_path):
    with pytest.raises(CannotStart, match="DISPATCHER_STATE"):
        Seat(tmp_path / "missing", "store", 1)


def killed(folder, *, seat, number, store="store"):
    code = (
        "import sys, time; from pathlib import Path; from dispatcher.worker.seat import Seat; "
        f"Seat(Path(sys.argv[1]), {store!r}, {seat}).note({number}); print('taken', flush=True); time.sleep(60)"
    )
    # The seat must outlive its object, as it does in a worker.
    code = code.replace("Seat(Path", "seat = Seat(Path").replace(".note(", "; seat.note(")
    process = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"taken\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
