"""Time as an argument: the wall clock for what is recorded, the monotonic clock for what is measured."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Where the time comes from; `dispatcher.testing.FrozenClock` is the one for tests."""

    def now(self) -> datetime:
        """Return the wall-clock time, aware, in UTC."""
        ...

    def monotonic(self) -> float:
        """Return seconds on a clock that never goes back; only differences mean something."""
        ...


class SystemClock:
    """The machine's own clocks."""

    def now(self) -> datetime:
        """Return the wall-clock time, aware, in UTC."""
        return datetime.now(UTC)

    # Seconds on the machine's monotonic clock; the function itself, as a batch asks for it a thousand times.
    monotonic = staticmethod(time.monotonic)
