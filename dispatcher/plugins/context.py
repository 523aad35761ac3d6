"""What a handler may reach: contacts, opt-outs and messages through the batch's own layer, connections by name.

Protocols and values only; the engine and `dispatcher.testing` provide the real thing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, Protocol

from dispatcher.plugins.services import Sender, Service

MessageState = Literal["queued", "sent", "acked", "nacked", "delivered", "failed", "held"]


@dataclass(frozen=True, slots=True)
class Contact:
    """A person of an account, known by a number: one contact per (account, number), however it was spelt."""

    contact_key: str
    account_key: str
    msisdn: str
    created_at: datetime
    updated_at: datetime
    name: str | None = None
    surname: str | None = None
    email_address: str | None = None
    language: str | None = None
    groups: tuple[str, ...] = ()
    subscription: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Message:
    """One text to a person, sent or not, and what became of it."""

    message_id: str
    account_key: str
    to_addr: str
    from_addr: str | None
    content: str
    segments: int
    encoding: str
    sender: str
    state: MessageState
    at: datetime
    gateway_id: str | None = None
    error: str | None = None


class Contacts(Protocol):
    """The contacts of the event's account. Writes become visible to later steps, and durable with the batch."""

    def get(self, msisdn: str) -> Contact | None:
        """Return the contact with this number (E.164), or None."""
        ...

    def by_key(self, contact_key: str) -> Contact | None:
        """Return the contact with this key, or None. Read one by one: prefer the number."""
        ...

    def create(self, msisdn: str, **fields: Any) -> Contact:
        """Create the contact with this number; `fields` are those of `Contact`. The number must be free."""
        ...

    def update(self, msisdn: str, **fields: Any) -> Contact:
        """Replace the given fields of the contact with this number, which must exist."""
        ...


class OptOuts(Protocol):
    """The numbers of the event's account that must not be texted."""

    def reason(self, msisdn: str) -> str | None:
        """Return why this number (E.164) is opted out, or None when it may be texted."""
        ...

    def add(self, msisdn: str, reason: str) -> None:
        """Opt this number out; an earlier opt-out keeps its reason and its time."""
        ...

    def remove(self, msisdn: str) -> None:
        """Opt this number in again."""
        ...


class Messages(Protocol):
    """The texts of the event's account. A step writes at most one: its own, under an id that no attempt changes.

    What is recorded stays, however the attempt ends: every text, sent or not, is told.
    """

    def mine(self) -> Message | None:
        """Return the message that an earlier attempt of this step recorded, or None."""
        ...

    def record(
        self,
        *,
        to_addr: str,
        content: str,
        sender: str,
        state: MessageState,
        from_addr: str | None = None,
        gateway_id: str | None = None,
        error: str | None = None,
    ) -> Message:
        """Write this step's message, or overwrite what an earlier attempt wrote. Segments are counted here."""
        ...


class Context(Protocol):
    """What a handler gets beside the event. `CALL` handlers may not touch contacts, opt-outs or messages in `run`."""

    @property
    def account_key(self) -> str:
        """Whose traffic this is."""
        ...

    @property
    def region(self) -> str | None:
        """The region in which this account's numbers without "+" are read, such as "ZA"."""
        ...

    @property
    def now(self) -> datetime:
        """The time of this batch; the same for everything in it."""
        ...

    @property
    def run_id(self) -> str:
        """The run that this step belongs to."""
        ...

    @property
    def chain(self) -> str:
        """The name of the chain."""
        ...

    @property
    def step_id(self) -> str:
        """The step's id in its chain."""
        ...

    @property
    def attempt(self) -> int:
        """Which attempt this is, from 1."""
        ...

    @property
    def idempotency_key(self) -> str:
        """The same for every attempt of this step for this event, and for nothing else."""
        ...

    @property
    def message_id(self) -> str:
        """The id of the message that this step records, whether it has yet or not; known to calls too."""
        ...

    @property
    def cursor(self) -> Any:
        """What the last call returned as `Done.more`; None on the first call."""
        ...

    @property
    def contacts(self) -> Contacts:
        """The account's contacts."""
        ...

    @property
    def opt_outs(self) -> OptOuts:
        """The account's opted-out numbers."""
        ...

    @property
    def messages(self) -> Messages:
        """The account's messages."""
        ...

    def service(self, name: str) -> Service:
        """Return the open service of that name. Raises KeyError when the rulebook has none."""
        ...

    def sender(self, name: str) -> Sender:
        """Return the open sender of that name. Raises KeyError when the rulebook has none."""
        ...
