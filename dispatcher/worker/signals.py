"""Signals and wake-ups for a loop that sleeps in `select`: handlers only note a number and write a byte."""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from contextlib import suppress
from types import FrameType
from typing import Final

# The variable by which a supervisor tells a worker its lifeline. Not one of DISPATCHER_*: it is nobody's to set.
LIFELINE: Final = "_DISPATCHER_LIFELINE"


class Wakeup:
    """A pipe that ends a sleep from any thread or signal handler. A byte too many does no harm."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)

    def set(self) -> None:
        """End the sleep, or keep the next one from beginning."""
        try:
            os.write(self._write, b"\0")
        except BlockingIOError:
            return  # the pipe is full of wake-ups already

    def wait(self, seconds: float | None, also: int | None = None) -> None:
        """Sleep until `set` is called or the descriptor `also` has something to read, at most `seconds`."""
        ready, _, _ = select.select([self._read] if also is None else [self._read, also], [], [], seconds)
        if self._read in ready:
            os.read(self._read, 4096)

    def forget(self) -> None:
        """Let what was set until now keep no sleep from beginning: whoever calls this looks at everything after it."""
        with suppress(BlockingIOError):
            os.read(self._read, 4096)

    def close(self) -> None:
        """Close the pipe."""
        os.close(self._read)
        os.close(self._write)


class Signals:
    """Counts the requests to stop and notes the requests to reload, from `install` to `restore`.

    A worker with a supervisor has a `lifeline`, the read end of a pipe. A byte in it means to give up, and its end
    that the supervisor is gone: then the worker drains. Signals alone never make such a worker give up, for a service
    manager may signal every process of its group, and the supervisor passes the same request on.
    """

    def __init__(self, wake: Wakeup, *, lifeline: int | None = None) -> None:
        self._wake = wake
        self._lifeline = lifeline
        self._before: dict[int, object] = {}
        # Requests to stop by signals, and by the lifeline: each is written by one thread only.
        self._signalled = 0
        self._bidden = 0
        # When the first request to stop came, on the monotonic clock.
        self.stopped_at: float | None = None
        self.reload = False

    @property
    def stops(self) -> int:
        """How often a stop was asked for; more than once means to wait for nothing."""
        return max(self._signalled, self._bidden)

    def install(self) -> None:
        """Take over SIGTERM, SIGINT and SIGHUP."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            self._before[number] = signal.signal(number, self._note)
        if self._lifeline is not None:
            os.set_inheritable(self._lifeline, False)
            threading.Thread(target=self._follow, args=(self._lifeline,), name="lifeline", daemon=True).start()

    def exceeds(self, patience_seconds: float) -> bool:
        """Whether a stop was asked for twice, or so long ago."""
        if self.stopped_at is None:
            return False
        return self.stops > 1 or time.monotonic() - self.stopped_at > patience_seconds

    def restore(self) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before.clear()

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            self.reload = True
        else:
            self._signalled = self._signalled + 1 if self._lifeline is None else 1
            self._begin()
        self._wake.set()

    def _follow(self, lifeline: int) -> None:
        """Heed the supervisor until it is gone."""
        while True:
            gone = not os.read(lifeline, 1)
            if not self._before:
                return  # restored: the wake-up's pipe may be closed by now
            self._bidden = max(self._bidden, 1) if gone else 2
            self._begin()
            self._wake.set()
            if gone:
                return

    def _begin(self) -> None:
        if self.stopped_at is None:
            self.stopped_at = time.monotonic()
