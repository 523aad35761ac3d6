"""How the journal says that the step stands at which a run is: tried how often, waiting, or of unknown outcome."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, select

from dispatcher.store.publishes import held_steps
from dispatcher.store.schema import steps
from dispatcher.store.taking import Row, rows


@dataclass(frozen=True, slots=True)
class Standing:
    """How the step stands at which a run is."""

    step_state: str | None = None
    is_wait: bool = False
    first_attempt: int = 1
    last_attempt: int = 0
    # Steps that published what may have gone out or not: it waits in the outbox for a person to say.
    published: tuple[str, ...] = ()

    @property
    def unknown(self) -> bool:
        """Whether a call or a publish was made, or may have been, and nobody knows with what effect."""
        started = self.step_state == "started" and not self.is_wait
        return bool(self.published) or self.step_state == "unknown" or started

    @property
    def waits(self) -> bool:
        """Whether the step is a wait that has begun."""
        return self.step_state == "started" and self.is_wait


def standing_of(connection: Connection, run: Row) -> Standing:
    """Return how a run stands, which the caller has taken; what it published and nobody knows of is taken too."""
    tried = rows(connection, select(steps).where(*here(run)).order_by(steps.c.attempt))
    published = held_steps(connection, run["run_id"])
    if not tried:
        return Standing(published=published)
    last = tried[-1]
    return Standing(last["state"], last["handler"] == "wait", tried[0]["attempt"], last["attempt"], published)


def here(run: Row) -> tuple[ColumnElement[bool], ...]:
    """Return the condition that a step is the one at which a run stands."""
    of_run = (steps.c.run_seq == run["seq"], steps.c.received_on == run["received_on"])
    return *of_run, steps.c.position == run["position"]
