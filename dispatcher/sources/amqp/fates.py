"""What is handed over to be published, and what became of it. Values only; the publisher says which is which."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Fate = Literal[
    "confirmed",  # a queue has it
    "unroutable",  # the exchange had no queue for it; the broker gave it back
    "refused",  # the broker said no, or would: it surely was not taken
    "unknown",  # written, and the answer never came: it may have been taken or not
    "unsent",  # surely never written to the connection
]


@dataclass(slots=True)
class Outgoing:
    """A message for an exchange; `seq` is the caller's own name for it and comes back in `Published`."""

    seq: int
    exchange: str
    routing_key: str
    body: bytes
    message_id: str


@dataclass(slots=True)
class Published:
    """What became of the message `seq`; unless it was confirmed, `reason` says why in the broker's words or ours."""

    seq: int
    fate: Fate
    reason: str | None = None
