"""From deliveries to stored events: decoded, told apart, and refused with a reason and their raw bytes."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from pydantic_core import to_json

from dispatcher.engine.records import Changes, StoredEvent, as_text
from dispatcher.engine.redelivery import Walk, find_repetition, remember, take_turns
from dispatcher.engine.unit import Overlay
from dispatcher.events.event import Event
from dispatcher.events.identity import canonical_hash, uuid7
from dispatcher.events.limits import Limits, Refusal
from dispatcher.events.wire import Envelope, decode

# In this time a broker has surely noticed that a connection ended, whatever its heartbeat.
_NOTICED_WITHIN = timedelta(hours=1)
_MOST_EPOCHS = 256
_ALL_TAGS = 2**63 - 1

_to_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


@dataclass(slots=True)
class Delivery:
    """One hand-over by a source. `message_id` is the identity that the source's envelope carries.

    `kind` tells an event from what a Vumi transport reports of a text. A broker knows a delivery by the `epoch` of the
    channel that it came through and its `tag` there, and marks as `redelivered` what it has handed out before. The
    epochs of a queue are in their order as texts, too.
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
        self._walks: dict[str, Walk] = {}
        self._left: dict[str, deque[list[str]]] = {}

    def admit(self, deliveries: Iterable[Delivery], overlay: Overlay) -> list[Receipt]:
        """Return a receipt for each delivery, in order; rows for what is new or refused go into the changes."""
        opened = [(delivery, self._open(delivery)) for delivery in deliveries]
        overlay.walks, overlay.opened = self._walks, opened
        take_turns(overlay)
        known = overlay.reads.known_events(
            [
                (envelope.account_key, envelope.event_id)
                for _, envelope in opened
                if isinstance(envelope, Envelope) and envelope.event_id is not None
            ]
        )
        receipts = []
        for delivery, envelope in opened:
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
                repeated = find_repetition(overlay, delivery)
                if repeated is not None:
                    receipts.append(Receipt("duplicate", event_id=repeated.event_id))
                    continue
            stored = self._store(envelope, delivery, body_hash, overlay)
            if envelope.event_id is None:
                self._forget_past(delivery, overlay)
                remember(overlay, delivery, stored.event.event_id)
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
            if since is not None and overlay.reads.shared:
                self._forget_left(delivery.queue, epoch, overlay)
            elif since is not None:
                self._walks.pop(delivery.queue, None)
                overlay.changes.unacked_past.append((delivery.queue, epoch))

    def _forget_left(self, queue: str, epoch: str, overlay: Overlay) -> None:
        """Forget what ended channels left, where other workers consume the queue too: in three steps, an hour apart.

        What has ended at the first of them, the broker has noticed by the second; so what comes for the first time then
        shows that all of it was handed out again. By the third nobody has that in hand any more without a commit, for
        no broker and no lease waits so long: what is remembered still, it had the acks of.
        """
        noted = self._left.setdefault(queue, deque(maxlen=2))
        if len(noted) == noted.maxlen:
            overlay.changes.acked.update(dict.fromkeys(noted[0], _ALL_TAGS))
        noted.append(overlay.reads.left(queue, epoch))

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
    if not event.hops:
        overlay.roots.add(event.event_id)
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
    event_id = envelope.event_id if envelope else delivery.message_id
    if find_repetition(overlay, delivery) is not None:
        return Receipt("refused", event_id=event_id, code=code, detail=detail)
    remember(overlay, delivery, None)
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
