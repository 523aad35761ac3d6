"""The pace of batches: what trickles in is gathered for a moment, so that several events share what a batch costs.

A batch has costs of its own, whatever is in it: a dozen statements, a sync, two threads that speak to the broker and
are to be woken. At 500 events/s a batch at once for each event takes twice the processor time of one every 3 ms, and
its texts come later, not sooner: everything waits for everything else. Where a batch takes longer by itself, as over a
network, the worker rests for as long as it has worked. docs/decisions/0006-short-batches-rest.md has the figures.
"""

from __future__ import annotations

import threading
from typing import Final

from dispatcher.clock import Clock
from dispatcher.worker.signals import Wakeup

# From the beginning of a batch to that of the next one, in seconds: at the least, and at the most that is rested for.
# Less costs more processor time; with more, the rest itself is what one waits for (measured at 500 events/s, with
# SQLite from 1 to 6 ms, with PostgreSQL from 3 to 10).
SHORTEST: Final = 0.003
LONGEST: Final = 0.006


class Pace:
    """When the next batch may begin. A full batch takes longer than the longest rest, so a busy worker never rests."""

    def __init__(self, clock: Clock, wakeup: Wakeup) -> None:
        self._clock = clock
        self._wakeup = wakeup
        self._earliest = 0.0
        self._hurried = threading.Event()

    def hurry(self) -> None:
        """Wake the worker from whatever it sleeps or rests for: somebody waits for its answer. Any thread."""
        self._hurried.set()
        self._wakeup.set()

    def worked(self, began: float) -> None:
        """Note that a batch, with something in it, that began at that time of the monotonic clock has ended."""
        took = self._clock.monotonic() - began
        self._earliest = began + max(SHORTEST, min(2 * took, LONGEST))

    def rest(self) -> None:
        """Return when a batch may begin.

        What happened until then is not told by a wake-up any more: look at everything after this.
        """
        pause = self._earliest - self._clock.monotonic()
        if pause > 0.0:
            # Never for longer than that, whatever became of the clock.
            self._hurried.wait(min(pause, LONGEST))
            self._wakeup.forget()
        self._hurried.clear()
