"""The database's time: what several machines agree on, whatever their own clocks say."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class DatabaseClock:
    """Tells the time that the database told last, moved on by this machine's monotonic clock.

    The store sets it with each transaction, so a machine that slept, or whose clock is wrong, decides nothing by it.
    """

    def __init__(self) -> None:
        self._told = datetime.now(UTC)
        self._at = time.monotonic()

    def set(self, epoch_seconds: float) -> None:
        """Take over what the database says: seconds since 1970, in UTC."""
        self._told = _EPOCH + timedelta(seconds=epoch_seconds)
        self._at = time.monotonic()

    def now(self) -> datetime:
        """Return the database's time, aware, in UTC."""
        return self._told + timedelta(seconds=time.monotonic() - self._at)

    # Seconds on the machine's monotonic clock, for what is measured.
    monotonic = staticmethod(time.monotonic)
