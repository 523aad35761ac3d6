"""From deliveries to stored events: decoded, told apart, and refused with a reason and their raw bytes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import blake2b
from typing import Literal

from pydantic_core import to_json

from dispatcher.engine.records import Changes, StoredEvent, as_text
from dispatcher.engine.unit import Overlay
from dispatcher.events.event import Event
from dispatcher.events.identity import canonical_hash, uuid7
from dispatcher.events.limits import Limits, Refusal
from dispatcher.events.wire import Envelope, decode

# What refused deliveries are remembered under; no event has an empty account.
_REFUSED = ""
# In this time a broker has surely noticed that a connection ended, whatever its heartbeat.
_NOTICED_WITHIN = timedelta(hours=1)
_MOST_EPOCHS = 256
# No channel numbers its deliveries as far as this.
_ALL = 2**62

_to_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


@dataclass(slots=True)
class Delivery:
    """One hand-over by a source. `message_id` is the identity that the source's envelope carries.

    `kind` tells an event from what a Vumi transport reports of a text. A broker knows a delivery by the `epoch` of the
    channel that it came through and its `tag` there, and marks as `redelivered` what it has handed out before.
    """

    body: bytes
    source: str = "embedded"
    message_id: str | None = None
    redelivered: bool = False
    kind: Literal["event", "transport_event"] = "event"
    queue: str | None = None
    epoch: str | None = None
    tag: int = 0


@dataclass(slots=True)
class Receipt:
    """What became of a delivery: the event stored, found to be a duplicate, or refused with a code."""

    kind: Literal["stored", "duplicate", "refused"]
    event_id: str | None = None
    code: str | None = None
    detail: str | None = None
    stored: StoredEvent | None = None


class Intake:
    """Admits deliveries into a batch."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._epochs: dict[str, datetime] = {}
        # The epoch of each queue, and the one before it.
        self._current: dict[str, str] = {}
        self._previous: dict[str, str] = {}

    def admit(self, deliveries: Iterable[Delivery], overlay: Overlay) -> list[Receipt]:
        """Return a receipt for each delivery, in order; rows for what is new or refused go into the changes."""
        opened = [(delivery, self._open(delivery)) for delivery in deliveries]
        overlay.previous = self._previous
        known = overlay.reads.known_events(
            [
                (envelope.account_key, envelope.event_id)
                for _, envelope in opened
                if isinstance(envelope, Envelope) and envelope.event_id is not None
            ]
        )
        receipts = []
        for delivery, envelope in opened:
            if delivery.queue is not None and delivery.epoch is not None:
                self._follow(delivery.queue, delivery.epoch)
            if isinstance(envelope, Refusal):
                receipts.append(refuse(overlay, delivery, envelope.code, envelope.detail))
                continue
            body_hash = canonical_hash(
                envelope.account_key,
                envelope.conversation_key,
                envelope.conversation_type,
                envelope.event_type,
                envelope.data,
            )
            if envelope.event_id is not None:
                key = (envelope.account_key, envelope.event_id)
                earlier = known.get(key)
                if earlier == body_hash:
                    receipts.append(Receipt("duplicate", event_id=envelope.event_id))
                    continue
                if earlier is not None:
                    detail = "an event with this id and another content was seen before"
                    receipts.append(refuse(overlay, delivery, "id_conflict", detail, envelope))
                    continue
                known[key] = body_hash
            else:
                repeated = find_repetition(overlay, delivery, envelope.account_key, body_hash)
                if repeated is not None:
                    receipts.append(repeated)
                    continue
            stored = self._store(envelope, delivery, body_hash, overlay)
            if envelope.event_id is None:
                self._forget_past(delivery, overlay)
                remember(overlay, delivery, envelope.account_key, body_hash, stored.event.event_id)
            receipts.append(Receipt("stored", event_id=stored.event.event_id, stored=stored))
        return receipts

    def _open(self, delivery: Delivery) -> Envelope | Refusal:
        try:
            envelope = decode(delivery.body, self._limits)
        except Refusal as refusal:
            if refusal.code == "too_large" and len(delivery.body) == 2 * self._limits.body_bytes:
                # The source cuts what is far too large, as no memory is made for that.
                return Refusal(refusal.code, f"{refusal.detail}; of this one the first {len(delivery.body)} are kept")
            return refusal
        if delivery.message_id:
            # The source's own envelope is the stronger identity: it is what the broker would deliver again.
            if "\0" in delivery.message_id:
                return Refusal("wrong_type", "message_id: a text without NUL is needed")
            envelope.event_id = delivery.message_id
        return envelope

    def _follow(self, queue: str, epoch: str) -> None:
        """Note which channel a queue's deliveries come through, and which one they came through before."""
        current = self._current.get(queue)
        if current != epoch:
            self._current[queue] = epoch
            if current is not None:
                self._previous[queue] = current

    def _forget_past(self, delivery: Delivery, overlay: Overlay) -> None:
        """Forget deliveries of earlier epochs once their acks must have arrived, though no answer ever said so.

        What an ended channel left unacked goes to the head of its queue (rabbit_fifo: returned messages before others;
        classic queues: to their old places). So when a new channel is old enough for the broker to have noticed the end
        of the one before, and brings something for the first time, nothing of the earlier ones is left to come again.
        """
        epoch = delivery.epoch
        if epoch is None or delivery.queue is None or delivery.redelivered:
            return
        since = self._epochs.get(epoch)
        if since is None or overlay.now - since > _NOTICED_WITHIN:
            while len(self._epochs) >= _MOST_EPOCHS:
                del self._epochs[next(iter(self._epochs))]
            self._epochs[epoch] = overlay.now
            if since is not None:
                overlay.changes.unacked_past.append((delivery.queue, epoch))

    def _store(self, envelope: Envelope, delivery: Delivery, body_hash: bytes, overlay: Overlay) -> StoredEvent:
        weak = envelope.event_id is None
        event_id = envelope.event_id or uuid7(overlay.now_ms)
        event = Event(
            event_id=event_id,
            account_key=envelope.account_key,
            conversation_key=envelope.conversation_key,
            conversation_type=envelope.conversation_type,
            event_type=envelope.event_type,
            data=envelope.data,
            timestamp=envelope.timestamp or overlay.now,
            subject=envelope.subject,
            root_id=envelope.root_id or event_id,
            parent_id=envelope.parent_id,
            hops=envelope.hops,
            source=delivery.source,
            traceparent=envelope.traceparent,
            extra=envelope.extra,
        )
        return add_event(event, overlay, body_hash=body_hash, weak=weak)


def add_event(event: Event, overlay: Overlay, *, body_hash: bytes, weak: bool = False) -> StoredEvent:
    """Put a new event, with its row in the dedupe table, into the batch."""
    seq = overlay.reads.reserve("events")
    now_text = overlay.now_text
    day = now_text[:10]
    changes: Changes = overlay.changes
    # A list, as matching fills in the state if it comes in the same batch; the order is EVENT_COLUMNS.
    changes.events[seq] = [
        seq,
        event.event_id,
        event.account_key,
        event.conversation_key,
        event.conversation_type,
        event.event_type,
        to_json(event.data).decode(),  # within the limits of events, which is what a quick encoder asks for
        now_text if event.timestamp is overlay.now else as_text(event.timestamp),
        now_text,
        day,
        event.source,
        event.subject,
        event.root_id,
        event.parent_id,
        event.hops,
        event.traceparent,
        _to_json(event.extra) if event.extra else None,
        weak,
        "new",
        None,
        None,
    ]
    changes.event_ids.append((event.account_key, event.event_id, seq, body_hash, day))
    return StoredEvent(seq, event, now_text)


def refuse(overlay: Overlay, delivery: Delivery, code: str, detail: str, envelope: Envelope | None = None) -> Receipt:
    """Park the delivery with its raw bytes; the others go on."""
    body_hash = blake2b(delivery.body, digest_size=16).digest()
    event_id = envelope.event_id if envelope else delivery.message_id
    if find_repetition(overlay, delivery, _REFUSED, body_hash) is not None:
        return Receipt("refused", event_id=event_id, code=code, detail=detail)
    remember(overlay, delivery, _REFUSED, body_hash, None)
    overlay.changes.dead_letters.append(
        (
            uuid7(overlay.now_ms),
            "delivery",
            code,
            detail,
            envelope.account_key if envelope else None,
            event_id,
            None,
            delivery.body,
            overlay.now_text,
        )
    )
    return Receipt("refused", event_id=event_id, code=code, detail=detail)


def find_repetition(overlay: Overlay, delivery: Delivery, account_key: str, body_hash: bytes) -> Receipt | None:
    """Say of a delivery without an id whether the broker brings it again; None when it is new.

    Two equal votes are two events, so only what the broker marks as redelivered may be a repetition. Each delivery
    whose ack the broker may not have got absorbs one. What a channel left unacked comes again in its order: so what
    stands there before a delivery that is absorbed was acked, and all of it before one that was never taken in.
    """
    if not delivery.redelivered or delivery.epoch is None or delivery.queue is None:
        return None
    previous = overlay.previous.get(delivery.queue)
    found = overlay.reads.unacked(delivery.queue, account_key, body_hash, delivery.epoch)
    for epoch, tag, event_id in sorted(found, key=lambda entry: entry[0] != previous):
        if tag > overlay.acked.get(epoch, 0):
            overlay.acked[epoch] = tag
            # It stands for the new delivery from now on: that one may come again too.
            overlay.changes.unacked_moved.append((delivery.epoch, delivery.tag, overlay.now_text[:10], epoch, tag))
            overlay.changes.acked.append((epoch, tag))
            return Receipt("duplicate", event_id=event_id)
    if previous is not None and overlay.acked.get(previous, 0) < _ALL:
        overlay.acked[previous] = _ALL
        overlay.changes.acked.append((previous, _ALL))
    return None


def remember(overlay: Overlay, delivery: Delivery, account_key: str, body_hash: bytes, event_id: str | None) -> None:
    """Remember a delivery without an id until the broker surely has its ack."""
    if delivery.epoch is not None and delivery.queue is not None:
        overlay.changes.unacked.append(
            (delivery.epoch, delivery.tag, delivery.queue, account_key, body_hash, event_id, overlay.now_text[:10])
        )
