"""What bounds the traffic of one connection, calls and texts alike: how many at once, and how many in a time."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Lane:
    """How many may be under way at once, and how many may start in a time."""

    concurrency: int
    per_second: float | None
    taken: int = 0
    allowance: float = 1.0
    counted_at: float = 0.0

    def room(self, now: float) -> int:
        """How many may start now."""
        free = self.concurrency - self.taken
        if self.per_second is not None:
            # A tenth of a second's worth may start at once, so that a rate of hundreds needs no wake-up for each.
            burst = max(1.0, self.per_second / 10)
            self.allowance = min(burst, self.allowance + (now - self.counted_at) * self.per_second)
            self.counted_at = now
            free = min(free, int(self.allowance))
        return max(0, free)

    def take(self) -> None:
        """Count one that starts."""
        self.taken += 1
        if self.per_second is not None:
            self.allowance -= 1.0

    def pause(self, now: float) -> float | None:
        """Return in how many seconds the rate allows the next start; None when only one that ends makes room."""
        if self.taken >= self.concurrency or self.per_second is None:
            return None
        return 0.0 if self.room(now) else (1.0 - self.allowance) / self.per_second
