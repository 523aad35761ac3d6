"""The unit of work: what a batch has read and is about to write. Handlers see their own step's layer on top of it.

A step's writes stay in its layer until the step is done; a step that fails leaves nothing behind.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from dispatcher.engine.ports import Connections, Key, Reads
from dispatcher.engine.records import Changes, Run, as_text
from dispatcher.errors import Contended
from dispatcher.events.identity import derived_uuid7, to_hex
from dispatcher.plugins.context import Contact, Contacts, Message, Messages, MessageState, OptOuts
from dispatcher.plugins.services import Sender, Service
from dispatcher.text.segments import segments

if TYPE_CHECKING:
    from dispatcher.engine.intake import Delivery
    from dispatcher.engine.redelivery import Walk
    from dispatcher.events.limits import Refusal
    from dispatcher.events.wire import Envelope
    from dispatcher.rules.plan import Step


class Overlay:
    """The batch's picture of contacts, opt-outs and messages: what was read, with what was written over it."""

    def __init__(self, reads: Reads, now: datetime) -> None:
        self.reads = reads
        self.now = now
        self.now_text = as_text(now)
        self.now_ms = int(now.timestamp() * 1000)
        self.changes = Changes()
        self.contacts: dict[Key, Contact | None] = {}
        self.opt_outs: dict[Key, str | None] = {}
        # Events from outside that came in with this batch.
        self.roots: set[str] = set()
        # Contacts that another worker has in hand.
        self.busy: set[Key] = set()
        # For `engine.redelivery`: how far what comes again has come, by queue; what was handed in, and of it what comes
        # again, by epoch; and the first delivery of the batch that is remembered, by epoch.
        self.walks: dict[str, Walk] = {}
        self.opened: Sequence[tuple[Delivery, Envelope | Refusal]] = ()
        self.again: dict[str, list[tuple[int, bytes, bool]]] = {}
        self.firsts: dict[str, int] = {}

    def contact(self, key: Key) -> Contact | None:
        """Return the contact with this key as the batch sees it. Raises Contended while another worker has it."""
        if key not in self.contacts:
            self.prefetch_contacts([key])
        if key in self.busy:
            raise Contended("another worker has a contact of this batch in hand.")
        return self.contacts[key]

    def opt_out(self, key: Key) -> str | None:
        """Return why this number is opted out as the batch sees it, or None."""
        if key not in self.opt_outs:
            self.prefetch_opt_outs([key])
        return self.opt_outs[key]

    def prefetch_contacts(self, keys: Iterable[Key]) -> None:
        """Keep these contacts to the batch and read them in one go, unless it knows them."""
        wanted = {key for key in keys if key not in self.contacts}
        if wanted:
            self.busy |= self.reads.lock_contacts(wanted)
            found = self.reads.contacts(wanted)
            for key in wanted:
                self.contacts[key] = found.get(key)

    def prefetch_opt_outs(self, keys: Iterable[Key]) -> None:
        """Read these opt-outs in one go, unless the batch knows them."""
        wanted = {key for key in keys if key not in self.opt_outs}
        if wanted:
            found = self.reads.opt_outs(wanted)
            for key in wanted:
                self.opt_outs[key] = found.get(key)


class Layer:
    """What one step has written, over the overlay."""

    __slots__ = ("contacts", "message", "opt_outs", "overlay")

    def __init__(self, overlay: Overlay) -> None:
        self.overlay = overlay
        self.contacts: dict[Key, Contact] = {}
        self.opt_outs: dict[Key, str | None] = {}
        self.message: Message | None = None

    def merge(self) -> None:
        """Make what the step wrote part of the batch: the step is done, or its call is accounted for."""
        overlay, changes = self.overlay, self.overlay.changes
        if self.contacts:
            overlay.contacts.update(self.contacts)
            changes.contacts.update(self.contacts)
        for key, reason in self.opt_outs.items():
            overlay.opt_outs[key] = reason
            changes.opt_outs[key] = None if reason is None else (reason, overlay.now_text)

    def fail_message(self, reason: str) -> None:
        """Mark a message as failed that the step left queued when it failed: nothing is left that would send it."""
        if self.message is not None and self.message.state == "queued":
            self.message = replace(self.message, state="failed", error=reason)

    def keep_message(self, run: Run, step: Step) -> None:
        """Keep the message that the step recorded, however its attempt ended: every text, sent or not, is told."""
        if self.message is not None:
            entry = (self.message, run.stored.event.event_id, run.run_id, step.id)
            self.overlay.changes.messages[self.message.message_id] = entry


class StepContext:
    """The context of one attempt: implements `Context`, `Contacts`, `OptOuts` and `Messages` over a layer."""

    __slots__ = (
        "_connections", "_installation", "_key", "_layer", "_message_id", "_run", "_step", "asked", "region",
    )  # fmt: skip

    def __init__(
        self,
        run: Run,
        step: Step,
        layer: Layer,
        connections: Connections,
        *,
        region: str | None,
        installation: str,
        asked: set[str],
    ) -> None:
        self._run = run
        self._step = step
        self._layer = layer
        self._connections = connections
        self._installation = installation
        self._key: str | None = None
        self._message_id: str | None = None
        self.region = region
        self.asked = asked

    # What the step is.

    @property
    def account_key(self) -> str:
        return self._run.stored.event.account_key

    @property
    def now(self) -> datetime:
        return self._layer.overlay.now

    @property
    def run_id(self) -> str:
        return self._run.run_id

    @property
    def chain(self) -> str:
        return self._run.chain.name

    @property
    def step_id(self) -> str:
        return self._step.id

    @property
    def attempt(self) -> int:
        return self._run.attempt

    @property
    def idempotency_key(self) -> str:
        if self._key is None:
            run = self._run
            event = run.stored.event
            # Not the attempt: every attempt must carry the same key, and another generation another one.
            facts = (self._installation, event.account_key, event.event_id, run.chain.name, run.generation)
            cursor = "" if run.cursor is None else json.dumps(run.cursor)
            # No event and no rulebook can hold a NUL, so no two lists of facts make the same text.
            text = "\0".join(map(str, (*facts, self._step.id, cursor)))
            self._key = blake2b(text.encode(), digest_size=16).hexdigest()
        return self._key

    @property
    def cursor(self) -> Any:
        return self._run.cursor

    @property
    def begun_here(self) -> bool:
        return self._run.begun_here

    # Connections.

    def service(self, name: str) -> Service:
        return self._connections.services[name]

    def sender(self, name: str) -> Sender:
        return self._connections.senders[name]

    # The three books. `asked` remembers which of them a handler opens, so that the next wave prefetches for it.

    @property
    def contacts(self) -> Contacts:
        self.asked.add("contacts")
        return _ContactBook(self._layer, self._run.stored.event.account_key)

    @property
    def opt_outs(self) -> OptOuts:
        self.asked.add("opt_outs")
        return _OptOutBook(self._layer, self._run.stored.event.account_key)

    @property
    def messages(self) -> Messages:
        return _MessageBook(self)

    @property
    def message_id(self) -> str:
        # Derived, so that no attempt changes it, and ordered by time.
        if self._message_id is not None:
            return self._message_id
        overlay = self._layer.overlay
        arrived_at = self._run.arrived_at or self._run.started_at
        # A run that came to the step in this batch, as most do, did so at the batch's own time.
        ms = overlay.now_ms if arrived_at == overlay.now_text else _milliseconds(arrived_at)
        self._message_id = to_hex(derived_uuid7(ms, self.idempotency_key))
        return self._message_id


def _milliseconds(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp() * 1000)


class _ContactBook:
    __slots__ = ("_account", "_layer")

    def __init__(self, layer: Layer, account_key: str) -> None:
        self._layer = layer
        self._account = account_key

    def get(self, msisdn: str) -> Contact | None:
        key = (self._account, msisdn)
        return self._layer.contacts.get(key) or self._layer.overlay.contact(key)

    def by_key(self, contact_key: str) -> Contact | None:
        layer, account = self._layer, self._account
        for book in (layer.contacts, layer.overlay.changes.contacts):
            for contact in book.values():
                if contact.contact_key == contact_key and contact.account_key == account:
                    return contact
        msisdn = layer.overlay.reads.contact_number(account, contact_key)
        return None if msisdn is None else self.get(msisdn)

    def create(self, msisdn: str, **fields: Any) -> Contact:
        if self.get(msisdn) is not None:
            raise ValueError("a contact with this number exists; update it instead")
        overlay = self._layer.overlay
        contact = Contact(
            contact_key=to_hex(derived_uuid7(overlay.now_ms, "contact", self._account, msisdn)),
            account_key=self._account,
            msisdn=msisdn,
            created_at=overlay.now,
            updated_at=overlay.now,
            **fields,
        )
        self._layer.contacts[self._account, msisdn] = contact
        return contact

    def update(self, msisdn: str, **fields: Any) -> Contact:
        known = self.get(msisdn)
        if known is None:
            raise ValueError("no contact has this number; create it instead")
        contact = replace(known, **fields, updated_at=self._layer.overlay.now)
        self._layer.contacts[self._account, msisdn] = contact
        return contact


class _OptOutBook:
    __slots__ = ("_account", "_layer")

    def __init__(self, layer: Layer, account_key: str) -> None:
        self._layer = layer
        self._account = account_key

    def reason(self, msisdn: str) -> str | None:
        key = (self._account, msisdn)
        own = self._layer.opt_outs
        return own[key] if key in own else self._layer.overlay.opt_out(key)

    def add(self, msisdn: str, reason: str) -> None:
        if self.reason(msisdn) is None:
            self._layer.opt_outs[self._account, msisdn] = reason

    def remove(self, msisdn: str) -> None:
        if self.reason(msisdn) is not None:
            self._layer.opt_outs[self._account, msisdn] = None


class _MessageBook:
    __slots__ = ("_context",)

    def __init__(self, context: StepContext) -> None:
        self._context = context

    def mine(self) -> Message | None:
        context = self._context
        layer = context._layer  # noqa: SLF001 - the book is a face of the context
        if layer.message is not None:
            return layer.message
        message_id = context.message_id
        written = layer.overlay.changes.messages.get(message_id)
        if written is not None:
            return written[0]
        return None if context.begun_here else layer.overlay.reads.message(message_id)

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
        context = self._context
        layer = context._layer  # noqa: SLF001 - the book is a face of the context
        counted = segments(content)
        message = Message(
            message_id=context.message_id,
            account_key=context.account_key,
            to_addr=to_addr,
            from_addr=from_addr,
            content=content,
            segments=counted.segments,
            encoding=counted.encoding,
            sender=sender,
            state=state,
            at=layer.overlay.now,
            gateway_id=gateway_id,
            error=error,
        )
        layer.message = message
        return message


class CallContext:
    """The context of a CALL while it runs outside the batch: what the step is and its connections, no books."""

    __slots__ = ("_facts", "connections")

    def __init__(self, context: StepContext, connections: Connections) -> None:
        self.connections = connections
        self._facts: Mapping[str, Any] = {
            name: getattr(context, name)
            for name in (
                "account_key", "region", "now", "run_id", "chain", "step_id", "attempt", "idempotency_key",
                "message_id", "cursor",
            )
        }  # fmt: skip

    def __getattr__(self, name: str) -> Any:
        try:
            return self._facts[name]
        except KeyError:
            raise AttributeError(
                f"context.{name} is not at hand while a call runs; use `prepare` and `conclude` for the store"
            ) from None

    def service(self, name: str) -> Service:
        """Return the open service of that name."""
        return self.connections.services[name]

    def sender(self, name: str) -> Sender:
        """Return the open sender of that name."""
        return self.connections.senders[name]
