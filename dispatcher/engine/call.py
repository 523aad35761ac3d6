"""A call to the outside as a batch asks for it, and what it brought back."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from dispatcher.engine.records import RunKey, StoredEvent
from dispatcher.engine.unit import CallContext
from dispatcher.plugins.handler import Handler
from dispatcher.plugins.outcomes import Outcome
from dispatcher.rules.plan import Chain


@dataclass(frozen=True, slots=True)
class Call:
    """A call to start once the batch is committed."""

    run_seq: int
    position: int
    attempt: int
    lane: str
    handler: Handler
    stored: StoredEvent
    context: CallContext
    timeout: timedelta
    keyed: bool
    chain: str
    step_id: str
    # What the call began with, to settle it by when the rulebook has no room for its chain any more.
    pinned: Chain | None = None
    numbers: tuple[str, ...] = ()

    @property
    def run_key(self) -> RunKey:
        """By what the store knows the run."""
        return self.run_seq, self.stored.received_on


@dataclass(frozen=True, slots=True)
class CallReturn:
    """What a call brought back, and after how many seconds."""

    call: Call
    outcome: Outcome
    seconds: float = 0.0
