"""How all the workers of one supervisor are: one answer to each probe, and one exposition for Prometheus.

Each worker answers on a Unix socket of its own; here they are asked, with little patience, and what they say is put
together, with the number of the worker that said it.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from dispatcher.clock import Clock, SystemClock
from dispatcher.worker.exposition import family, merged
from dispatcher.worker.health import LOOP_SECONDS, Pulse, Readiness
from dispatcher.worker.probes import ask
from dispatcher.worker.supervisor import Seat

# Probes are asked by those who wait a second; numbers by those who wait ten.
PROBE_SECONDS: Final = 0.8
METRICS_SECONDS: Final = 4.0


class Overview:
    """Answers for all seats; any thread may ask. `socket_of` says where the worker of a number answers."""

    def __init__(
        self,
        seats: Sequence[Seat],
        socket_of: Callable[[int], Path],
        pulse: Pulse,
        clock: Clock | None = None,
    ) -> None:
        self._seats = seats
        self._socket_of = socket_of
        self._pulse = pulse
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        # By pid: who has answered, and since when it does so no more.
        self._heard: set[int] = set()
        self._silent_since: dict[int, float] = {}

    def live(self) -> Readiness:
        """Judge whether the processes should go on: red when only a restart of all helps.

        A worker that starts, or waits to be started again, is no reason for that.
        """
        return _verdict(self._dead())

    def ready(self) -> Readiness:
        """Judge whether all workers are ready; each reason begins with the number of the worker."""
        return _verdict(self._unready())

    def metrics(self) -> bytes:
        """Return the numbers of all workers, each with the label `worker`, and those of the supervisor."""
        seats = self._running()
        answers = ask({number: self._socket_of(number) for number in seats}, "/metrics", METRICS_SECONDS)
        told = {number: body.decode() for number, (status, body) in sorted(answers.items()) if status == 200}
        return (self._own(set(told)) + merged(told)).encode()

    def _running(self) -> dict[int, int]:
        """Return the pid of each worker that runs, by its number."""
        running = ((seat.number, seat.process) for seat in self._seats)
        return {number: process.pid for number, process in running if process is not None}

    def _asked(self, path: str) -> tuple[dict[int, int], dict[int, tuple[int, bytes]]]:
        """Ask all who run; return their pids and their answers, and note who is silent."""
        running = self._running()
        answers = ask({number: self._socket_of(number) for number in running}, path, PROBE_SECONDS)
        now = self._clock.monotonic()
        with self._lock:
            self._heard &= set(running.values())
            self._heard |= {running[number] for number in answers}
            silent = self._heard - {running[number] for number in answers}
            self._silent_since = {pid: self._silent_since.get(pid, now) for pid in silent}
        return running, answers

    def _dead(self) -> Iterator[str]:
        due, now = self._pulse.due, self._clock.monotonic()
        if due is not None and now - due > LOOP_SECONDS:
            yield f"the supervisor's loop has stopped turning, {now - due:.0f} s ago"
        running, answers = self._asked("/live")
        silent_since = self._silent_since
        for number, pid in running.items():
            if number in answers:
                yield from _reasons(number, *answers[number])
            elif (since := silent_since.get(pid)) is not None and now - since > LOOP_SECONDS:
                # One that has never answered is starting.
                yield f"worker {number}: it has not answered for {now - since:.0f} s"

    def _unready(self) -> Iterator[str]:
        running, answers = self._asked("/ready")
        for seat in self._seats:
            number = seat.number
            if number in answers:
                yield from _reasons(number, *answers[number])
            elif number in running:
                told = "it does not answer" if running[number] in self._heard else "starting"
                yield f"worker {number}: {told}"
            else:
                yield f"worker {number}: {_absence(seat)}"

    def _own(self, answered: set[int]) -> str:
        states = {"running": 0, "waiting": 0, "ended": 0}
        for seat in self._seats:
            waits = seat.resume_at is not None
            states["running" if seat.process is not None else "waiting" if waits else "ended"] += 1
        return (
            family(
                "dispatcher_workers", "gauge", "Worker processes by state; waiting is for the next start.",
                {f'state="{state}"': number for state, number in states.items()},
            )
            + family(
                "dispatcher_worker_answered", "gauge", "Whether this worker gave its numbers for this answer.",
                {f'worker="{seat.number}"': seat.number in answered for seat in self._seats},
            )
            + family(
                "dispatcher_worker_restarts_total", "counter", "How often this worker was started again.",
                {f'worker="{seat.number}"': max(0, seat.starts - 1) for seat in self._seats},
            )
        )  # fmt: skip


def _verdict(reasons: Iterator[str]) -> Readiness:
    found = tuple(reasons)
    return Readiness(not found, found)


def _reasons(number: int, status: int, body: bytes) -> Iterator[str]:
    if status == 200:
        return
    try:
        reasons = json.loads(body)["reasons"]
    except (ValueError, KeyError, TypeError):
        reasons = [f"it answers with {status}"]
    for reason in reasons:
        yield f"worker {number}: {reason}"


def _absence(seat: Seat) -> str:
    if seat.resume_at is None:
        return "it has ended"
    if seat.code is None:
        return "it could not be started, and is tried again"
    how = f"exit code {seat.code}" if seat.code >= 0 else f"signal {-seat.code}"
    return f"it ended ({how}), and is started again"
