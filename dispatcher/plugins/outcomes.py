"""How an attempt of a step ended. Outcomes are values: a handler returns one, and raises only by accident."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from pydantic import BaseModel


@dataclass(frozen=True, slots=True)
class Emit:
    """An event that a step produces; what is not given is taken from the event that the step handles.

    With `publish`, the event also goes out to the broker.
    """

    event_type: str
    event_data: Mapping[str, Any] = field(default_factory=dict)
    conversation_type: str | None = None
    conversation_key: str | None = None
    account_key: str | None = None
    publish: bool = False


@dataclass(frozen=True, slots=True)
class Publish:
    """A message for a broker: it goes into the outbox with the step's own commit and is relayed after it.

    `message_id` is what the broker is told that it is called; left out, one is derived from the step. With `keyed`,
    whoever gets it knows a repetition by that id: one whose fate is unknown is published again, whatever
    `on_unknown` says.
    """

    exchange: str
    routing_key: str
    body: Mapping[str, Any]
    message_id: str | None = None
    keyed: bool = False


@dataclass(frozen=True, slots=True)
class Done:
    """The attempt succeeded.

    `result` is what `steps.<id>` offers to later steps. With `skipped`, nothing was done, for the reason given,
    and the step is recorded as skipped. With `more`, what was done so far is committed and the handler is called
    again with `context.cursor` set to that value: the way to page through work too large for one commit.
    """

    result: BaseModel | Mapping[str, Any] | None = None
    emits: Sequence[Emit] = ()
    publishes: Sequence[Publish] = ()
    skipped: str | None = None
    more: Any = None


@dataclass(frozen=True, slots=True)
class RetryLater:
    """The attempt failed in a way that may pass. `after` overrides the backoff of the step's retry policy.

    With `counts` false the attempt is not charged to the policy: a refused connection or a "slow down" says
    nothing about the work itself.
    """

    after: timedelta | None = None
    reason: str = ""
    counts: bool = True


@dataclass(frozen=True, slots=True)
class Failed:
    """The attempt failed for good; trying again would not help."""

    reason: str


@dataclass(frozen=True, slots=True)
class Unknown:
    """Whether the outside effect happened cannot be told (a reply was lost). The step's `on_unknown` decides."""

    reason: str


Outcome = Done | RetryLater | Failed | Unknown
