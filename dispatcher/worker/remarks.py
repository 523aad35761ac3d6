"""What a worker says of faults that last: once a minute, not once a turn."""

from __future__ import annotations

from dispatcher.clock import Clock
from dispatcher.engine.counts import Counts
from dispatcher.sources.embedded import SOURCE as EMBEDDED
from dispatcher.telemetry import log

_AGAIN_AFTER = 60.0


class Remarks:
    """Remembers what was said when."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._said: dict[str, float] = {}
        self._refused = 0
        self._lasting: set[str] = set()

    def fault(self, event: str, **facts: object) -> None:
        """Log a fault as an error, if it was not said within a minute."""
        self._lasting.add(event)
        if self._may_say(event):
            log.error(event, **facts)

    def over(self, event: str, told: str) -> None:
        """Tell that a fault is over, if it was there; the next one is told at once."""
        if event in self._lasting:
            self._lasting.discard(event)
            self._said.pop(event, None)
            log.info(told)

    def refused(self, totals: Counts) -> None:
        """Tell of deliveries that became dead letters: nobody else tells whoever published them."""
        refused = sum(
            number for (source, kind), number in totals.deliveries.items() if kind == "refused" and source != EMBEDDED
        )
        if refused > self._refused and self._may_say("deliveries.refused"):
            log.warning("deliveries.refused", deliveries=refused - self._refused)
            self._refused = refused

    def _may_say(self, event: str) -> bool:
        now = self._clock.monotonic()
        if now < self._said.get(event, 0.0):
            return False
        self._said[event] = now + _AGAIN_AFTER
        return True
