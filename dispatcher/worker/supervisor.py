"""`dispatcher run --workers N`: one process that starts N workers, starts again what ends, and stops all of them.

It holds no store, no broker and no plugin, and decides nothing about work: workers that share a store need nobody for
that. A worker that ends, however it does, is started again, after a pause that grows with each end and is forgotten
after a minute of good running. When no worker can start at all, the supervisor ends as one worker would.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from dispatcher.clock import Clock, SystemClock
from dispatcher.settings import Settings
from dispatcher.telemetry import log
from dispatcher.worker.children import Child, Process, worker_command, worker_environ
from dispatcher.worker.health import Pulse
from dispatcher.worker.signals import Signals, Wakeup

if TYPE_CHECKING:
    from dispatcher.worker.listener import Listener

EXIT_RESTART: Final = 75
# What a process ends with that cannot start: usage, settings or rulebook or store, broker.
REFUSALS: Final = (2, 3, 4)
LONGEST_PAUSE: Final = 30.0
GOOD_RUNNING_SECONDS: Final = 60.0
# What a worker has beyond its own patience for ending; then it is killed.
FAREWELL_SECONDS: Final = 5.0
_LONGEST_SLEEP: Final = 5.0
_LONGEST_SOCKET: Final = 90


@dataclass(slots=True)
class Seat:
    """The place of one worker: its process, or when there will be another one. Times are monotonic.

    Others read it while it changes: who has neither a process nor a time to start one has ended for good.
    """

    number: int
    process: Process | None = None
    started_at: float = 0.0
    # When a process is to be started; None while one runs, and when none is to run any more.
    resume_at: float | None = 0.0
    starts: int = 0
    # How often in a row a process ended before it had run well for a while.
    setbacks: int = 0
    # Whether no process here has ever ended otherwise than by not being able to start.
    refused_only: bool = True
    # How the last process ended; None before the first did.
    code: int | None = None


def pause_after(setbacks: int, chance: float) -> float:
    """Return the seconds before a process is started again: none after the first setback, then 0.5 to 1 s, doubling.

    `chance`, from 0 to 1, spreads those that ended together.
    """
    if setbacks <= 1:
        return 0.0
    return min(LONGEST_PAUSE, 2.0 ** min(setbacks - 2, 16)) * (0.5 + chance / 2)


class Supervisor:
    """Keeps `workers` processes running, each made by `start` with its number, which may raise OSError.

    `drain`: they end by themselves when nothing is left to do. `patience_seconds`: how long one may drain.
    """

    def __init__(
        self,
        workers: int,
        start: Callable[[int], Process],
        *,
        drain: bool,
        patience_seconds: float,
        clock: Clock | None = None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.seats = tuple(Seat(number) for number in range(1, workers + 1))
        self._start = start
        self._drain = drain
        self._patience = patience_seconds
        self._clock = clock or SystemClock()
        self._chance = chance
        self._wakeup = Wakeup()
        self.signals = Signals(self._wakeup)
        self.pulse = Pulse(self._clock)
        # How often the workers were told to stop, and when the last of them is killed.
        self._told = 0
        self._deadline = 0.0

    def run(self) -> int:
        """Supervise until all workers have ended for good; return the exit code."""
        self.signals.install()
        before = signal.signal(signal.SIGCHLD, lambda *_: self._wakeup.set())
        log.info("supervisor.started", workers=len(self.seats), pid=os.getpid())
        try:
            while (code := self.turn()) is None:
                pause = self.next_turn()
                self.pulse.sleeps(pause)
                self._wakeup.wait(pause)
        finally:
            # Nobody is left unless this ends by a fault of ours; then no worker stays behind, as they drain by
            # themselves when the lifelines go.
            signal.signal(signal.SIGCHLD, before)
            self.signals.restore()
            self._wakeup.close()
        log.info("supervisor.stopped", exit_code=code)
        return code

    def turn(self) -> int | None:
        """Do what is to be done now; the exit code when all is over, None while it goes on."""
        self.pulse.turned()
        now = self._clock.monotonic()
        self._heed(now)
        for seat in self.seats:
            self._reap(seat, now)
        if self._told:
            self._enforce(now)
        else:
            for seat in self.seats:
                if seat.resume_at is not None and seat.resume_at <= now:
                    self._begin(seat, now)
        return self._verdict()

    def next_turn(self) -> float:
        """Return in how many seconds there is something to do, if nothing happens before."""
        times = [seat.resume_at for seat in self.seats if seat.resume_at is not None]
        if self._told:
            times.append(self._deadline)
        now = self._clock.monotonic()
        return max(0.0, min([_LONGEST_SLEEP, *(time - now for time in times)]))

    # Its parts.

    def _heed(self, now: float) -> None:
        """Pass on what was asked for by signals."""
        running = [seat.process for seat in self.seats if seat.process is not None]
        if self.signals.reload:
            self.signals.reload = False
            for process in running:
                process.reload()
        if self.signals.stops and self._told == 0:
            self._told = 1
            self._deadline = now + self._patience + FAREWELL_SECONDS
            log.info("supervisor.draining", workers=len(running))
            for process in running:
                process.stop()
            for seat in self.seats:
                if seat.resume_at is not None:
                    # How it ended is a worry no more: what it had in hand, whoever starts next takes over.
                    seat.resume_at = seat.code = None
        if self.signals.stops > 1 and self._told == 1:
            self._told = 2
            self._deadline = min(self._deadline, now + FAREWELL_SECONDS)
            for process in running:
                process.give_up()

    def _begin(self, seat: Seat, now: float) -> None:
        seat.started_at = now
        try:
            seat.process = self._start(seat.number)
        except OSError as error:  # no processes or no memory left, which passes
            seat.setbacks += 1
            seat.refused_only = False
            pause = pause_after(seat.setbacks + 1, self._chance())
            seat.resume_at = now + pause
            log.error("process.not_started", worker=seat.number, error=error, pause_seconds=round(pause, 1))
            return
        seat.resume_at = None
        seat.starts += 1
        log.info("process.started", worker=seat.number, pid=seat.process.pid, starts=seat.starts)

    def _reap(self, seat: Seat, now: float) -> None:
        if seat.process is None or (code := seat.process.poll()) is None:
            return
        process = seat.process
        process.close()
        seat.code = code
        how: dict[str, object] = {"exit_code": code} if code >= 0 else {"signal": _signal_name(-code)}
        if self._told or (self._drain and code in (0, *REFUSALS)):
            seat.process = None
            log.info("process.ended", worker=seat.number, pid=process.pid, **how)
            return
        refused = code in REFUSALS
        seat.refused_only = seat.refused_only and refused
        seat.setbacks = 1 if now - seat.started_at >= GOOD_RUNNING_SECONDS else seat.setbacks + 1
        # What cannot start is not mended by trying at once.
        pause = pause_after(seat.setbacks + refused, self._chance())
        seat.resume_at = now + pause
        seat.process = None
        log.warning("process.ended", worker=seat.number, pid=process.pid, **how, pause_seconds=round(pause, 1))

    def _enforce(self, now: float) -> None:
        """Kill what has not ended in its time; it is reaped at the next turn."""
        if now < self._deadline:
            return
        self._deadline = now + FAREWELL_SECONDS
        for seat in self.seats:
            if seat.process is not None:
                log.error("process.killed", worker=seat.number, pid=seat.process.pid)
                seat.process.kill()

    def _verdict(self) -> int | None:
        if any(seat.process is not None for seat in self.seats):
            return None
        if all(seat.resume_at is None for seat in self.seats):
            return _joint_code([seat.code for seat in self.seats if seat.code is not None])
        codes = [seat.code for seat in self.seats if seat.code is not None and seat.refused_only]
        if len(codes) < len(self.seats):
            return None
        # None has ever run: what each of them said of it is on stderr already.
        log.error("supervisor.refused", workers=len(self.seats), exit_code=codes[0])
        return codes[0]


def _joint_code(codes: list[int]) -> int:
    """Return one exit code for all: 0 if all are, else the first that says more than "start me again"."""
    # One that was told to stop before it had begun has nothing in hand, and dies of the signal.
    failed = [code for code in codes if code not in (0, -signal.SIGTERM)]
    return next((code for code in failed if code > 0 and code != EXIT_RESTART), EXIT_RESTART if failed else 0)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)  # a real-time signal


def supervise(settings: Settings, *, drain: bool) -> int:
    """Run `settings.workers` workers until they are told to stop, or with `drain` until all are done.

    Return the exit code. Raises CannotStart when the address for health and metrics cannot be had.
    """
    if code := _check_first(settings):
        return code
    folder = _private_folder() if settings.http is not None else None

    def socket_of(number: int) -> Path | None:
        return None if folder is None else folder / f"{number}.sock"

    def start(number: int) -> Process:
        return Child(worker_command(drain=drain), worker_environ(settings, number, socket_of(number)))

    supervisor = Supervisor(settings.workers, start, drain=drain, patience_seconds=settings.drain_seconds)
    listener: Listener | None = None
    try:
        if settings.http_address is not None and folder is not None:
            from dispatcher.worker.listener import Listener  # noqa: PLC0415 - only who is asked pays for these
            from dispatcher.worker.overview import Overview  # noqa: PLC0415

            overview = Overview(supervisor.seats, lambda number: folder / f"{number}.sock", supervisor.pulse)
            listener = Listener(
                settings.http_address, live=overview.live, ready=overview.ready, metrics=overview.metrics
            )
            listener.start()
        return supervisor.run()
    finally:
        if listener is not None:
            listener.stop()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _check_first(settings: Settings) -> int:
    """Read the rulebook once, so that a mistake is told once and before anything runs; 0 if there is none.

    In a process of its own: plugins and a rulebook that were loaded here would stay in memory for ever.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        from dispatcher.worker.rulebooks import read_plan  # noqa: PLC0415

        read_plan(settings)  # what it raises takes the way of all errors, and ends this process
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code if code >= 0 else EXIT_RESTART


def _private_folder() -> Path:
    """Make a folder that only this user may enter, with a path that is short enough for sockets in it."""
    folder = Path(tempfile.mkdtemp(prefix="dispatcher-"))
    if len(os.fsencode(folder)) <= _LONGEST_SOCKET:
        return folder
    folder.rmdir()
    return Path(tempfile.mkdtemp(prefix="dispatcher-", dir="/tmp"))
