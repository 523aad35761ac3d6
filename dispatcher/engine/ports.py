"""What the engine asks of the world around it, as protocols: bulk reads, keys, call slots, the crash guard."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Protocol

from dispatcher.engine.records import Remembered, Texted
from dispatcher.plugins.context import Contact, Message
from dispatcher.plugins.services import Sender, Service

if TYPE_CHECKING:
    from dispatcher.rules.plan import Chain

Key = tuple[str, str]  # (account_key, number) or (account_key, event_id)


class Reads(Protocol):
    """Bulk reads within the batch's transaction. Keys that name nothing are absent from the answer."""

    @property
    def shared(self) -> bool:
        """Whether other workers write the same store, and consume the same queues."""
        ...

    def lock_contacts(self, keys: Iterable[Key]) -> set[Key]:
        """Keep other workers from these contacts until the transaction ends, whether they exist or not.

        The first call of a transaction waits for whoever has them. Later ones do not, as two that wait for each other
        would do so for ever: they return the keys that another worker has.
        """
        ...

    def take_turns(self, queues: Mapping[str, bool]) -> None:
        """Order the transaction among those that take in deliveries without an id from these queues, until it ends.

        For stores that are shared. True stands beside the queues of which some come again: what another transaction is
        about to remember of these is on record when this returns, and none remembers more before this one ends.
        """
        ...

    def left(self, queue: str, epoch: str) -> list[str]:
        """Return the other epochs of this queue of which something is remembered, and whose channel has ended.

        For stores that are shared.
        """
        ...

    def repeated(self, queue: str, epoch: str, digest: bytes) -> Remembered | None:
        """Take away and return a remembered delivery of this queue, with this digest, of a channel that has ended.

        For stores that are shared. None when there is none. Raises Contended when there is one, of a channel which a
        live worker holds open as far as anybody knows.
        """
        ...

    def known_events(self, keys: Iterable[Key]) -> dict[Key, bytes]:
        """Return the body hash of each (account, event id) that was seen before."""
        ...

    def contacts(self, keys: Iterable[Key]) -> dict[Key, Contact]:
        """Return the contacts with these (account, number) keys."""
        ...

    def contact_number(self, account_key: str, contact_key: str) -> str | None:
        """Return the number of the contact with this key, or None."""
        ...

    def opt_outs(self, keys: Iterable[Key]) -> dict[Key, str]:
        """Return the reason for each (account, number) that is opted out."""
        ...

    def message(self, message_id: str) -> Message | None:
        """Return one message, or None."""
        ...

    def families(self, roots: Iterable[Key]) -> dict[str, tuple[int, bool]]:
        """Return for each root how many events descend from it, and whether the loop guard stopped one of them.

        The keys are (account, event id); the account is a hint where the root is.
        """
        ...

    def texted(self, message_ids: Iterable[str]) -> dict[str, Texted]:
        """Return what is known of texts that went out; ids that are none of ours are absent."""
        ...

    def unacked(self, queue: str, epoch: str) -> list[Remembered]:
        """Return the deliveries of a queue's other epochs whose ack the broker may not have got.

        The youngest epoch comes first, and each epoch's deliveries in their order.
        """
        ...

    def reserve(self, table: str) -> int:
        """Return a fresh `seq` for a row of `events`, `runs` or `outbox`."""
        ...


class Connections(Protocol):
    """The open senders and services, by name."""

    @property
    def senders(self) -> Mapping[str, Sender]:
        """The senders."""
        ...

    @property
    def services(self) -> Mapping[str, Service]:
        """The services."""
        ...


class Slots(Protocol):
    """Room for calls: each lane (connection) has its own bound and rate."""

    def reserve(self, lane: str) -> bool:
        """Take a slot in this lane, if one is free now."""
        ...

    def release(self, lane: str) -> None:
        """Give back a slot that was reserved and not used."""
        ...


class Guard(Protocol):
    """Knows which event is being advanced, so that a crash or a hang can be laid at its door."""

    def enter(self, event_seq: int, what: str) -> None:
        """A handler is about to run for this event."""
        ...

    def leave(self) -> None:
        """No handler is running."""
        ...


class Chains(Protocol):
    """Where pinned chains come from: the plan in force, else the text stored with the run."""

    def chain(self, digest: str) -> Chain | str:
        """Return the chain with this digest, or why it can no longer be bound."""
        ...
