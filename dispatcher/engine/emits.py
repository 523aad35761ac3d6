"""Emitted events and published messages: derived ids, the loop guard, and the outbox rows of one step."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from dispatcher.engine.intake import add_event
from dispatcher.engine.ports import Key
from dispatcher.engine.records import (
    EVENT_EXCHANGE,
    EVENT_STATE,
    LONGEST_NAME,
    OutboxRow,
    Run,
    StoredEvent,
    destination_of,
)
from dispatcher.engine.unit import Overlay
from dispatcher.events.event import Event
from dispatcher.events.identity import canonical_hash, derived_uuid7, uuid7
from dispatcher.events.limits import Limits, Refusal, plain_json
from dispatcher.events.wire import decode, encode
from dispatcher.plugins.outcomes import Emit, Publish
from dispatcher.rules.plan import Step

_to_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


@dataclass(frozen=True, slots=True)
class LoopGuard:
    """How far events may beget events."""

    max_hops: int = 8
    max_events_per_root: int = 1000


class Emitter:
    """Turns what a step emits into events of the same batch."""

    def __init__(self, overlay: Overlay, limits: Limits, guard: LoopGuard) -> None:
        self._overlay = overlay
        self._limits = limits
        self._guard = guard
        self._families: dict[str, tuple[int, bool]] = {}

    def build(self, run: Run, step: Step, emits: Sequence[Emit]) -> list[Event]:
        """Return the events that these emits stand for. Raises Refusal where one breaks a limit of events."""
        parent = run.stored.event
        events = []
        for index, emit in enumerate(emits):
            event = Event(
                event_id=derived_uuid7(self._overlay.now_ms, run.run_id, step.id, index, repr(run.cursor)),
                account_key=emit.account_key or parent.account_key,
                conversation_key=emit.conversation_key or parent.conversation_key,
                conversation_type=emit.conversation_type or parent.conversation_type,
                event_type=emit.event_type,
                data=plain_json(emit.event_data, self._limits),
                timestamp=self._overlay.now,
                root_id=parent.root_id,
                parent_id=parent.event_id,
                hops=parent.hops + 1,
                source="emitted",
                traceparent=parent.traceparent,
            )
            # One gate for all events: what a step emits obeys what is asked of those from outside.
            decode(_to_json(encode(event)).encode(), self._limits)
            if emit.publish and len(_key(event).encode()) > LONGEST_NAME:
                detail = f"conversation_type and event_type make a routing key of more than {LONGEST_NAME} bytes"
                raise Refusal("too_large", detail)
            events.append(event)
        return events

    def add(self, events: Sequence[Event], emits: Sequence[Emit], run: Run, step: Step) -> list[StoredEvent]:
        """Put the events into the batch and return those that may go on; the loop guard stops the others."""
        going_on = []
        for event, emit in zip(events, emits, strict=True):
            stored = self.descend(event, f"chain {run.chain.name!r} emitted", run_id=run.run_id)
            if stored is None:
                continue
            going_on.append(stored)
            if emit.publish:
                body = _to_json(encode(event))
                self._outbox(
                    run, step, to=(EVENT_EXCHANGE, _key(event)), body=body, message_id=event.event_id, lane="",
                    on_unknown="resend",
                )  # fmt: skip
        return going_on

    def descend(
        self, event: Event, cause: str, *, run_id: str | None = None, body_hash: bytes | None = None
    ) -> StoredEvent | None:
        """Put an event into the batch that another event led to; None when the loop guard stops it."""
        if body_hash is None:
            body_hash = canonical_hash(
                event.account_key, event.conversation_key, event.conversation_type, event.event_type, event.data
            )
        count, looped = self._family(event)
        stored = add_event(event, self._overlay, body_hash=body_hash)
        over = event.hops > self._guard.max_hops or count >= self._guard.max_events_per_root
        self._families[event.root_id] = (count + 1, looped or over)
        if not over:
            return stored
        self._overlay.changes.events[stored.seq][EVENT_STATE] = "dead"
        if not looped:
            self._park(event, cause, run_id, count)
        return None

    def publish(self, publishes: Sequence[Publish], bodies: Sequence[str], run: Run, step: Step) -> None:
        """Put messages for a broker into the outbox; `bodies` are theirs, as JSON."""
        connection = step.settled.connection if step.settled is not None else None
        lane = connection or ""
        for index, (message, body) in enumerate(zip(publishes, bodies, strict=True)):
            message_id = message.message_id or derived_uuid7(
                self._overlay.now_ms, run.run_id, step.id, "publish", index, repr(run.cursor)
            )
            on_unknown = "resend" if message.keyed else step.on_unknown
            self._outbox(
                run, step, to=(message.exchange, message.routing_key), body=body, message_id=message_id, lane=lane,
                on_unknown=on_unknown,
            )  # fmt: skip

    def _outbox(
        self,
        run: Run,
        step: Step,
        *,
        to: tuple[str, str],
        body: str,
        message_id: str,
        lane: str,
        on_unknown: Literal["hold", "resend", "fail"],
    ) -> None:
        overlay, event = self._overlay, run.stored.event
        overlay.changes.outbox.append(
            OutboxRow(
                overlay.reads.reserve("outbox"), destination_of(*to), body, message_id, "ready", 0,
                overlay.now_text, lane, on_unknown, event.account_key, event.event_id, run.run_id, step.id,
                overlay.now_text,
            )
        )  # fmt: skip

    def prefetch_families(self, roots: Iterable[Key]) -> None:
        """Read in one go how large these families are."""
        unknown = {key for key in roots if key[1] not in self._families and key[1] not in self._overlay.roots}
        if unknown:
            self._families |= self._overlay.reads.families(unknown)

    def _family(self, event: Event) -> tuple[int, bool]:
        root_id = event.root_id
        known = self._families.get(root_id)
        if known is None:
            # A root that came in with this batch has no descendants yet.
            self.prefetch_families([(event.account_key, root_id)])
            known = self._families.setdefault(root_id, (0, False))
        return known

    def _park(self, event: Event, cause: str, run_id: str | None, count: int) -> None:
        """One dead letter tells of the whole loop; the events that it stopped are stored as dead, each."""
        detail = (
            f"{cause} {event.event_type!r} at hop {event.hops} "
            f"(at most {self._guard.max_hops}), event {count + 1} of its root {event.root_id} "
            f"(at most {self._guard.max_events_per_root}); nothing further runs from here"
        )
        self._overlay.changes.dead_letters.append(
            (
                uuid7(self._overlay.now_ms),
                "event",
                "loop",
                detail,
                event.account_key,
                event.event_id,
                run_id,
                _to_json(encode(event)).encode(),
                self._overlay.now_text,
            )
        )


def _key(event: Event) -> str:
    """Return what a published event is routed by."""
    return f"{event.conversation_type or 'unknown'}.{event.event_type}"
