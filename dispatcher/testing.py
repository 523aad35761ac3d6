"""What a test of a plugin needs: a context that lives in memory, a frozen clock, an event, and `run_handler`.

No store, no broker, no worker. A handler runs as the engine would run it, with params as a step would hand them over
once its templates are rendered:

    run = run_handler(CreateContact, {"msisdn": "0821234567"}, region="ZA")
    assert run.outcome == Done(...)
    assert run.contacts["+27821234567"].name is None
    again = run_handler(CreateContact, {"msisdn": "0821234567"}, context=run.context)
"""

from __future__ import annotations

import asyncio
import hashlib
import inspect
from collections.abc import Awaitable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from dispatcher.events.event import Event
from dispatcher.plugins.context import Contact, Message, MessageState
from dispatcher.plugins.effects import Effect
from dispatcher.plugins.handler import Bindings, Handler, Settled
from dispatcher.plugins.outcomes import Done, Emit, Outcome, Publish
from dispatcher.plugins.services import Sender, Service
from dispatcher.text.numbers import normalise_number
from dispatcher.text.segments import segments

START = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)

_MOST_PAGES = 10_000
_CONTACT_FIELDS = frozenset(item.name for item in fields(Contact))
_FIXED_CONTACT_FIELDS = frozenset({"contact_key", "account_key", "msisdn", "created_at", "updated_at"})


class FrozenClock:
    """A clock that stands still until it is told to move. Implements `dispatcher.clock.Clock`."""

    def __init__(self, now: datetime = START) -> None:
        self._now = now
        self._monotonic = 0.0

    def now(self) -> datetime:
        """Return the time it was set to."""
        return self._now

    def monotonic(self) -> float:
        """Return the seconds it was moved forward so far."""
        return self._monotonic

    def advance(self, by: timedelta) -> None:
        """Move forward."""
        self._now += by
        self._monotonic += by.total_seconds()


def an_event(**given: Any) -> Event:
    """Return an event with the fields that are given, and plausible ones for the rest.

    `event_data` may be given in place of `data`.
    """
    if "event_data" in given:
        given["data"] = given.pop("event_data")
    values: dict[str, Any] = {
        "event_id": "event-1",
        "account_key": "acc1",
        "conversation_key": "conv1",
        "conversation_type": "vxpolls",
        "event_type": "poll_complete",
        "data": {"msisdn": "+27821234567"},
        "timestamp": START,
    } | given
    values.setdefault("root_id", values["event_id"])
    return Event(**values)


class MemoryContacts:
    """The contacts of one account, in memory, under the rules of the store."""

    def __init__(self, context: MemoryContext) -> None:
        self._context = context
        self.by_msisdn: dict[str, Contact] = {}

    def get(self, msisdn: str) -> Contact | None:
        """Return the contact with this number, or None."""
        self._context.guard("contacts")
        return self.by_msisdn.get(msisdn)

    def by_key(self, contact_key: str) -> Contact | None:
        """Return the contact with this key, or None."""
        self._context.guard("contacts")
        return next((known for known in self.by_msisdn.values() if known.contact_key == contact_key), None)

    def create(self, msisdn: str, **fields: Any) -> Contact:
        """Create the contact with this number, which must be free."""
        if self.get(msisdn) is not None:
            raise ValueError("a contact with this number exists; update it instead")
        _check_fields(fields)
        now = self._context.now
        key = _digest("contact", self._context.account_key, msisdn)
        contact = Contact(key, self._context.account_key, msisdn, created_at=now, updated_at=now, **fields)
        self.by_msisdn[msisdn] = contact
        return contact

    def update(self, msisdn: str, **fields: Any) -> Contact:
        """Replace the given fields of the contact with this number, which must exist."""
        known = self.get(msisdn)
        if known is None:
            raise ValueError("no contact has this number; create it instead")
        _check_fields(fields)
        contact = replace(known, **fields, updated_at=self._context.now)
        self.by_msisdn[msisdn] = contact
        return contact


class MemoryOptOuts:
    """The opt-outs of one account, in memory."""

    def __init__(self, context: MemoryContext) -> None:
        self._context = context
        self.reasons: dict[str, str] = {}

    def reason(self, msisdn: str) -> str | None:
        """Return why this number is opted out, or None."""
        self._context.guard("opt_outs")
        return self.reasons.get(msisdn)

    def add(self, msisdn: str, reason: str) -> None:
        """Opt this number out; an earlier opt-out keeps its reason."""
        self._context.guard("opt_outs")
        self.reasons.setdefault(msisdn, reason)

    def remove(self, msisdn: str) -> None:
        """Opt this number in again."""
        self._context.guard("opt_outs")
        self.reasons.pop(msisdn, None)


class MemoryMessages:
    """The texts of one account, in memory, by id."""

    def __init__(self, context: MemoryContext) -> None:
        self._context = context
        self.by_id: dict[str, Message] = {}

    def mine(self) -> Message | None:
        """Return the message of this step, or None."""
        self._context.guard("messages")
        return self.by_id.get(self._context.message_id)

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
        """Write the message of this step, or overwrite it."""
        self._context.guard("messages")
        counted = segments(content)
        message = Message(
            message_id=self._context.message_id,
            account_key=self._context.account_key,
            to_addr=to_addr,
            from_addr=from_addr,
            content=content,
            segments=counted.segments,
            encoding=counted.encoding,
            sender=sender,
            state=state,
            at=self._context.now,
            gateway_id=gateway_id,
            error=error,
        )
        self.by_id[message.message_id] = message
        return message


class MemoryContext:
    """A `dispatcher.Context` without a store: what a handler writes stays here, for the test to look at.

    Contacts and opt-outs are given as a store would hold them; numbers may be spelt in any way that `region` allows.
    """

    def __init__(
        self,
        *,
        account_key: str = "acc1",
        region: str | None = None,
        contacts: Iterable[Mapping[str, Any]] = (),
        opt_outs: Mapping[str, str] | None = None,
        senders: Mapping[str, Sender] | None = None,
        services: Mapping[str, Service] | None = None,
        clock: FrozenClock | None = None,
        chain: str = "chain",
        run_id: str = "run-1",
        step_id: str = "step",
        idempotency_key: str = "key-1",
    ) -> None:
        self.account_key = account_key
        self.region = region
        self.clock = clock or FrozenClock()
        self.chain = chain
        self.run_id = run_id
        self.step_id = step_id
        self.idempotency_key = idempotency_key
        self.attempt = 1
        self.cursor: Any = None
        self.senders = dict(senders or {})
        self.services = dict(services or {})
        self.calling = False
        self.contacts = MemoryContacts(self)
        self.opt_outs = MemoryOptOuts(self)
        self.messages = MemoryMessages(self)
        for contact in contacts:
            details = dict(contact)
            self.contacts.create(normalise_number(details.pop("msisdn"), region), **details)
        for msisdn, reason in (opt_outs or {}).items():
            self.opt_outs.add(normalise_number(msisdn, region), reason)

    @property
    def now(self) -> datetime:
        """The time of the context's clock."""
        return self.clock.now()

    @property
    def message_id(self) -> str:
        """The id of the step's message: one for each idempotency key."""
        return _digest("message", self.idempotency_key)

    def service(self, name: str) -> Service:
        """Return the service of that name, as the test gave it."""
        return self.services[name]

    def sender(self, name: str) -> Sender:
        """Return the sender of that name, as the test gave it."""
        return self.senders[name]

    def guard(self, book: str) -> None:
        """Refuse the books to the `run` of a CALL, as the engine does: it runs outside every transaction."""
        if self.calling:
            raise AttributeError(f"context.{book} is not at hand while a call runs; use `prepare` and `conclude`")


@dataclass(frozen=True, slots=True)
class HandlerRun:
    """How a handler's run ended, and what it left behind."""

    outcome: Outcome
    context: MemoryContext
    settled: Settled
    emits: tuple[Emit, ...] = ()
    publishes: tuple[Publish, ...] = ()
    results: tuple[Mapping[str, Any], ...] = field(default=())

    @property
    def result(self) -> Mapping[str, Any]:
        """What `steps.<id>` would offer; empty unless the handler gave a result."""
        return self.results[-1] if self.results else {}

    @property
    def contacts(self) -> Mapping[str, Contact]:
        """The contacts after the run, by number."""
        return self.context.contacts.by_msisdn

    @property
    def opt_outs(self) -> Mapping[str, str]:
        """The reasons of the opt-outs after the run, by number."""
        return self.context.opt_outs.reasons

    @property
    def messages(self) -> list[Message]:
        """The messages after the run."""
        return list(self.context.messages.by_id.values())


def run_handler(
    handler_class: type[Handler],
    params: Mapping[str, Any],
    event: Event | None = None,
    *,
    context: MemoryContext | None = None,
    **settings: Any,
) -> HandlerRun:
    """Run one step with this handler and say how it ended and what it left behind.

    `settings` are those of `MemoryContext`: contacts, opt_outs, senders, services, region and so on. With `context`,
    that of an earlier run, this is the next attempt of the same step. A CALL goes through `prepare`, `run` and
    `conclude`; a handler that answers `Done(more=…)` is called again until it does not. What the handler raises
    comes through, as does pydantic's ValidationError for params that do not fit.
    """
    event = event or an_event()
    if context is None:
        context = MemoryContext(**{"account_key": event.account_key, **settings})
    elif settings:
        raise TypeError("give either context or the settings of a new one")
    else:
        context.attempt += 1
    problems = list(handler_class.check_params(params, Bindings(context.senders, context.services)))
    if problems:
        raise ValueError("; ".join(f"{param}: {message}" for param, message in problems))
    settled = handler_class.settle(params, Bindings(context.senders, context.services))
    handler = handler_class.model_validate(dict(params), context={"region": context.region})
    emits: list[Emit] = []
    publishes: list[Publish] = []
    results: list[Mapping[str, Any]] = []
    context.cursor = None
    for _ in range(_MOST_PAGES):
        outcome = _attempt(handler, event, context, settled)
        if isinstance(outcome, Done):
            emits += outcome.emits
            publishes += outcome.publishes
            if outcome.result is not None:
                results.append(_plain(outcome.result))
            if outcome.more is not None:
                context.cursor = outcome.more
                continue
        return HandlerRun(outcome, context, settled, tuple(emits), tuple(publishes), tuple(results))
    raise RuntimeError(f"{handler_class.__name__} asked for more than {_MOST_PAGES} pages")


def _attempt(handler: Handler, event: Event, context: MemoryContext, settled: Settled) -> Outcome:
    if settled.effect is not Effect.CALL:
        outcome = handler.run(event, context)
        if inspect.isawaitable(outcome):
            raise TypeError(f"{type(handler).__name__}.run is async, which only a CALL may be")
        return _checked(handler, outcome)
    stopped = handler.prepare(event, context)
    if stopped is not None:
        return _checked(handler, stopped)
    context.calling = True
    try:
        outcome = handler.run(event, context)
        if inspect.isawaitable(outcome):
            outcome = asyncio.run(_awaited(outcome))
    finally:
        context.calling = False
    return _checked(handler, handler.conclude(event, context, _checked(handler, outcome)))


async def _awaited(outcome: Awaitable[Outcome]) -> Outcome:
    return await outcome


def _checked(handler: Handler, outcome: Any) -> Outcome:
    if not isinstance(outcome, Outcome):
        raise TypeError(f"{type(handler).__name__} returned {type(outcome).__name__} instead of an outcome")
    return outcome


def _plain(result: Any) -> Mapping[str, Any]:
    plain: Mapping[str, Any] = result if isinstance(result, Mapping) else result.model_dump(mode="json")
    return plain


def _check_fields(given: Mapping[str, Any]) -> None:
    wrong = sorted(set(given) - (_CONTACT_FIELDS - _FIXED_CONTACT_FIELDS))
    if wrong:
        raise TypeError(f"a contact has no field {', '.join(wrong)} that may be set")


def _digest(*parts: str) -> str:
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()
