"""Knows which event is being advanced: for the next worker after a crash, and for the watchdog during a hang.

The event's `seq` stands in a small memory-mapped file while a handler runs for it. The page outlives the process,
however it ends (SIGKILL, segfault, `os.abort`), and writing it costs no system call.
"""

from __future__ import annotations

import mmap
import os
import signal
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from dispatcher.clock import Clock
from dispatcher.errors import StoreUnusable
from dispatcher.telemetry import log

EXIT_RESTART = 75
_MOMENT = 0.5

_SLOT = struct.Struct("<q")


class CrashGuard:
    """The slot file of one store: slot 0 for the batch, the others for calls in threads."""

    def __init__(self, path: Path, calls: int, clock: Clock, *, warn_after: float) -> None:
        self._clock = clock
        self._warn_after = warn_after
        self._size = _SLOT.size * (calls + 1)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _no_slots(path, error) from error
        try:
            # Never shorter than what an earlier worker left: its slots name the suspects.
            self._size = max(self._size, os.fstat(descriptor).st_size)
            # Blocks of its own, now: a write to a page that a full disk has no block for would be a SIGBUS.
            os.ftruncate(descriptor, self._size)
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(descriptor, 0, self._size)
            self._map = mmap.mmap(descriptor, self._size)
        except OSError as error:
            raise _no_slots(path, error) from error
        finally:
            os.close(descriptor)
        self._free = list(range(calls, 0, -1))
        self._lock = threading.Lock()
        # What runs now, read by the watchdog: one tuple, replaced as a whole, so that no lock is needed.
        self.current: tuple[int, str, float] | None = None

    def suspects(self) -> list[int]:
        """Return the `seq` of each event that was in hand when the last worker ended, and forget them."""
        found = _read(self._map)
        self._map[:] = bytes(self._size)
        return found

    # The batch.

    def enter(self, event_seq: int, what: str) -> None:
        """A handler is about to run for this event, in the batch."""
        now = self._clock.monotonic()
        if self.current is not None and now - self.current[2] > self._warn_after:
            self._report(now)
        _SLOT.pack_into(self._map, 0, event_seq)
        self.current = (event_seq, what, now)

    def leave(self) -> None:
        """No handler runs in the batch."""
        self._report(self._clock.monotonic())
        _SLOT.pack_into(self._map, 0, 0)
        self.current = None

    def _report(self, now: float) -> None:
        if self.current is not None and now - self.current[2] > self._warn_after:
            seq, what, since = self.current
            log.warning("handler.slow", event_seq=seq, handler=what, took_ms=round((now - since) * 1000))

    # Calls.

    def enter_call(self, event_seq: int) -> int:
        """A call for this event is about to run in a thread; returns the slot to leave."""
        with self._lock:
            slot = self._free.pop() if self._free else 0
        if slot:
            _SLOT.pack_into(self._map, slot * _SLOT.size, event_seq)
        return slot

    def leave_call(self, slot: int) -> None:
        """The call is over."""
        if slot:
            _SLOT.pack_into(self._map, slot * _SLOT.size, 0)
            with self._lock:
                self._free.append(slot)

    def close(self, *, orderly: bool = True) -> None:
        """Let go of the file; an orderly end leaves it empty."""
        if orderly:
            self._map[:] = bytes(self._size)
        self._map.close()


def slots_of(path: Path) -> list[int]:
    """Return the `seq` of each event that a worker which is gone noted in its slot file."""
    try:
        return _read(path.read_bytes())
    except FileNotFoundError:
        return []


def _read(slots: bytes | mmap.mmap) -> list[int]:
    whole = len(slots) - len(slots) % _SLOT.size
    return sorted({seq for at in range(0, whole, _SLOT.size) if (seq := _SLOT.unpack_from(slots, at)[0])})


def _no_slots(path: Path, error: OSError) -> StoreUnusable:
    return StoreUnusable(
        f"cannot write {path} beside the store: {error.strerror or error}.",
        hint="The folder must be writable for the user that runs the dispatcher, and the disk must have room.",
    )


class Watchdog:
    """Ends the process when a handler hangs inside a batch: nothing else could, as the batch is one thread.

    It looks from a thread, and by a timer's signal from within the hang itself: a regular expression that runs away
    lets no other thread run, but looks for signals now and then.
    """

    def __init__(
        self,
        guard: CrashGuard,
        clock: Clock,
        *,
        hang_after: float,
        end: Callable[[int], None],
        impatient: Callable[[], bool] = lambda: False,
    ) -> None:
        """Watch `guard`; `impatient` tells that whoever asked the worker to stop waits no longer."""
        self._impatient = impatient
        self._guard = guard
        self._clock = clock
        self._hang_after = hang_after
        self._end = end
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._every = min(1.0, hang_after / 4)
        self._before: signal.Handlers | Callable[[int, FrameType | None], Any] | int | None = None

    def start(self) -> None:
        """Begin to watch. The signal is for the main thread alone, which is where a worker runs."""
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGALRM, lambda _number, _frame: self._look())
            # What the handler waits for is waited for on; the signal is no reason for an error.
            signal.siginterrupt(signal.SIGALRM, False)
            signal.setitimer(signal.ITIMER_REAL, self._every, self._every)
        self._thread.start()

    def stop(self) -> None:
        """Watch no more, if it was begun."""
        self._stopped.set()
        if self._before is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, self._before)
            self._before = None
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        while not self._stopped.wait(self._every):
            self._look()

    def _look(self) -> None:
        current = self._guard.current
        if current is None or self._stopped.is_set():
            return
        seq, what, since = current
        took = self._clock.monotonic() - since
        # A moment is granted to a handler even then: most are behind it before anybody could look again.
        if took > self._hang_after or (took > _MOMENT and self._impatient()):
            self._stopped.set()
            try:
                log.error(
                    "handler.hung", event_seq=seq, handler=what, took_seconds=round(took, 1), exit_code=EXIT_RESTART
                )
            finally:
                self._end(EXIT_RESTART)
