"""What a Vumi transport reports of a text: it moves the text's row, and becomes an event for chains.

An ack, a nack or a delivery report descends from the event that caused the text, so that the loop guard holds for a
chain that answers reports with texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from dispatcher.engine.emits import Emitter
from dispatcher.engine.intake import Delivery, Receipt, refuse
from dispatcher.engine.records import Texted
from dispatcher.engine.unit import Overlay
from dispatcher.events.event import Event
from dispatcher.events.identity import canonical_hash
from dispatcher.events.limits import Limits, Refusal
from dispatcher.events.transport import TransportEvent, read_transport_event

CONVERSATION_TYPE: Final = "sms"

# How far along a text is: a report never moves it back. What was held is known to have left, once it is reported on.
_RANKS: Final = {"queued": 0, "held": 0, "sent": 1, "acked": 2, "nacked": 2, "delivered": 3, "failed": 3}


class Reports:
    """Admits the reports of one batch."""

    def __init__(self, overlay: Overlay, emitter: Emitter, limits: Limits) -> None:
        self._overlay = overlay
        self._emitter = emitter
        self._limits = limits
        self._known: dict[tuple[str, str], bytes] = {}
        self._moved: dict[str, str] = {}

    def admit(self, deliveries: Sequence[Delivery]) -> list[Receipt]:
        """Return what became of each report; their rows go into the changes of the batch."""
        reads = self._overlay.reads
        read = [self._read(delivery) for delivery in deliveries]
        reports = [report for report in read if isinstance(report, TransportEvent)]
        texts = reads.texted({report.message_id for report in reports})
        known = [
            (texts[report.message_id].account_key, report.event_id) for report in reports if report.message_id in texts
        ]
        self._known |= reads.known_events(known)
        self._emitter.prefetch_families((text.account_key, text.root_id or text.event_id) for text in texts.values())
        return [
            refuse(self._overlay, delivery, report.code, report.detail)
            if isinstance(report, Refusal)
            else self._admit(delivery, report, texts.get(report.message_id))
            for delivery, report in zip(deliveries, read, strict=True)
        ]

    def _read(self, delivery: Delivery) -> TransportEvent | Refusal:
        try:
            return read_transport_event(delivery.body, self._limits)
        except Refusal as refusal:
            return refusal

    def _admit(self, delivery: Delivery, report: TransportEvent, text: Texted | None) -> Receipt:
        overlay = self._overlay
        if text is None:
            detail = f"a transport reports on the message {report.message_id}, which this store has never sent"
            return refuse(overlay, delivery, "unknown_message", detail)
        event = _event_of(report, text, overlay.now, delivery.source)
        body_hash = canonical_hash(
            event.account_key, event.conversation_key, event.conversation_type, event.event_type, event.data
        )
        key = (event.account_key, event.event_id)
        earlier = self._known.get(key)
        if earlier == body_hash:
            return Receipt("duplicate", event_id=event.event_id)
        if earlier is not None:
            return refuse(overlay, delivery, "id_conflict", "an event with this id and another content was seen before")
        self._known[key] = body_hash
        self._move(report, text)
        stored = self._emitter.descend(event, f"the transport of sender {text.sender!r} reported", body_hash=body_hash)
        return Receipt("stored", event_id=event.event_id, stored=stored)

    def _move(self, report: TransportEvent, text: Texted) -> None:
        state, error = _state_of(report)
        current = self._moved.get(report.message_id, text.state)
        changes = self._overlay.changes
        if current != "failed" and _RANKS[state] >= _RANKS.get(current, 0):
            self._moved[report.message_id] = state
            changes.message_states.append((state, report.gateway_id, error, report.message_id))
        elif report.gateway_id is not None:
            # It came late, and still is the one that tells what the gateway calls the text.
            changes.message_states.append((None, report.gateway_id, None, report.message_id))


def _state_of(report: TransportEvent) -> tuple[str, str | None]:
    """Return the state that a report brings a text to, and the error with it."""
    if report.event_type == "ack":
        return "acked", None
    if report.event_type == "nack":
        return "nacked", f"nacked: {report.reason or 'no reason given'}"
    if report.delivery_status == "delivered":
        return "delivered", None
    if report.delivery_status == "failed":
        return "failed", "delivery failed"
    # It is pending: it has left, at least.
    return "sent", None


def _event_of(report: TransportEvent, text: Texted, now: datetime, source: str) -> Event:
    return Event(
        event_id=report.event_id,
        account_key=text.account_key,
        conversation_key=text.conversation_key or text.sender,
        conversation_type=CONVERSATION_TYPE,
        event_type=report.event_type,
        data={**report.data, "msisdn": text.to_addr, "sender": text.sender},
        timestamp=report.timestamp or now,
        subject=text.to_addr,
        root_id=text.root_id or text.event_id,
        parent_id=text.event_id,
        hops=text.hops + 1,
        source=source,
        traceparent=text.traceparent,
    )
