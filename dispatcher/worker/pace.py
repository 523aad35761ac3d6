"""The pace of batches: what trickles in is gathered for a moment, so that several events share what a batch costs.

A batch has costs of its own, whatever is in it: a dozen statements, a sync, two threads that speak to the broker and
are to be woken. At 500 events/s a batch at once for each event takes twice the processor time of one every 3 ms, and
its texts come later, not sooner: everything waits for everything else.
"""

from __future__ import annotations

from typing import Final

from dispatcher.clock import Clock
from dispatcher.worker.signals import Wakeup

# At the least from the beginning of a batch to that of the next one, in seconds. Less costs more processor time, and
# with more the waiting itself is what one waits for (measured from 1 to 6 ms with bench/latency.py at 500 events/s).
INTERVAL: Final = 0.003


class Pace:
    """When the next batch may begin. A full batch takes longer than the interval, so a busy worker never rests."""

    def __init__(self, clock: Clock, wakeup: Wakeup) -> None:
        self._clock = clock
        self._wakeup = wakeup
        self._earliest = 0.0

    def began(self, at: float) -> None:
        """Note that a batch, with something in it, began at that time of the monotonic clock."""
        self._earliest = at + INTERVAL

    def rest(self, *, hurried: bool) -> None:
        """Return when a batch may begin: at once if somebody is `hurried`, as whoever waits for a commit is.

        What happened until then is not told by a wake-up any more: look at everything after this.
        """
        pause = self._earliest - self._clock.monotonic()
        if pause > 0.0 and not hurried:
            # Never for longer than the interval, whatever became of the clock.
            self._wakeup.rest(min(pause, INTERVAL))
