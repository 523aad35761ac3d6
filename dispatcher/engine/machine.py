"""The engine: what all batches of a worker share. Pure: plan, limits and ports come in, rows and calls go out."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from dispatcher.clock import Clock
from dispatcher.engine.batch import Batch
from dispatcher.engine.emits import LoopGuard
from dispatcher.engine.intake import Intake
from dispatcher.engine.ports import Chains, Connections, Guard, Reads, Slots
from dispatcher.events.limits import Limits
from dispatcher.rules.plan import Plan


@dataclass(frozen=True, slots=True)
class Budget:
    """How much one batch may take on: events, steps, and seconds of work."""

    events: int = 256
    steps: int = 2000
    seconds: float = 0.020


class Engine:
    """The state machine over (event, plan, overlay, time). `plan` may be replaced between batches."""

    def __init__(
        self,
        *,
        plan: Plan,
        chains: Chains,
        connections: Connections,
        slots: Slots,
        guard: Guard,
        clock: Clock,
        installation: str,
        limits: Limits,
        budget: Budget,
        loop_guard: LoopGuard,
    ) -> None:
        self.plan = plan
        self.chains = chains
        self.connections = connections
        self.slots = slots
        self.guard = guard
        self.clock = clock
        self.installation = installation
        self.limits = limits
        self.budget = budget
        self.loop_guard = loop_guard
        self.intake = Intake(limits)
        # Until then (on the monotonic clock) events are stored by one batch and advanced by a later one, so that the
        # crash guard can name each: the last worker died over an event that was stored nowhere.
        self.store_first_until = 0.0
        # Which books each handler class was seen to open: what its next wave prefetches.
        self.asked: dict[type, set[str]] = {}

    def begin(self, reads: Reads, now: datetime | None = None) -> Batch:
        """Open a batch over the reads of one transaction."""
        return Batch(self, reads, now or self.clock.now())
