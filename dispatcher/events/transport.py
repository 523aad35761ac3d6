"""What a Vumi transport reports of a text: ack, nack, delivery_report. Knows neither the texts nor who wrote them.

Facts: `TransportEvent` of vumi 0.6.19 and `Event` of vumi2 0.3, read in source. vumi2 writes `sent_message_id`,
`nack_reason` and `delivery_status` always, as null where they say nothing; vumi's Python writes those it was given.
Vumi's Python looks at hardly any type, so a gateway's id may be a number and a reason an object: they are kept as text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, TypeVar, get_args

from dispatcher.events.event import JsonObject
from dispatcher.events.limits import Limits, Refusal, canonical_json, found, read_json
from dispatcher.events.wire import LONGEST_KEY, read_timestamp, require, wrong_key

TransportEventType = Literal["ack", "nack", "delivery_report"]
DeliveryStatus = Literal["pending", "failed", "delivered"]

_Name = TypeVar("_Name", bound=str)

_TYPES: tuple[TransportEventType, ...] = get_args(TransportEventType)
_STATUSES: tuple[DeliveryStatus, ...] = get_args(DeliveryStatus)

# Ids are written as 32 hexadecimal digits; some write the same uuid with dashes.
_UUID = re.compile(r"[0-9a-f]{8}-?(?:[0-9a-f]{4}-?){3}[0-9a-f]{12}", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class TransportEvent:
    """One report of a transport; None is what it does not say.

    `message_id` is the text's own id, 32 hexadecimal digits wherever it is a uuid; `gateway_id` the one that the
    gateway gave it. `reason` is why it was not taken. `delivery_status` is never None in a delivery report.
    """

    event_id: str
    event_type: TransportEventType
    message_id: str
    gateway_id: str | None = None
    reason: str | None = None
    delivery_status: str | None = None
    delivery_state: str | None = None
    timestamp: datetime | None = None
    transport_name: str | None = None

    @property
    def data(self) -> JsonObject:
        """What chains see of the report, under the names that Vumi uses. `delivery_state` is there only if given."""
        data: JsonObject = {
            "message_id": self.message_id,
            "event_type": self.event_type,
            "sent_message_id": self.gateway_id,
            "nack_reason": self.reason,
            "delivery_status": self.delivery_status,
            "transport_name": self.transport_name,
        }
        if self.delivery_state is not None:
            data["delivery_state"] = self.delivery_state
        return data


def read_transport_event(body: bytes, limits: Limits) -> TransportEvent:
    """Read one report, whatever content type it came with. Raises Refusal with the first code that applies.

    `message_version` is not looked at: vumi2 does not either, there has only ever been one, and an ack is worth more
    than the number of its format. What is needed of the format is looked at key by key.
    """
    fields = read_json(body, limits)
    if not isinstance(fields, dict):
        raise Refusal("not_an_object", f"a transport's event is an object, {found(fields)} was found")
    require(fields, ("user_message_id", "event_id", "event_type"))
    for name in ("user_message_id", "event_id"):
        value = fields[name]
        if type(value) is not str or not 0 < len(value) <= LONGEST_KEY:
            raise wrong_key(name, value)
    if fields.get("message_type") not in (None, "event"):
        raise Refusal("wrong_type", 'message_type: "event" is needed, another kind of message was found')
    event_type = _one_of(fields, "event_type", _TYPES)
    delivery_status = _text(fields, "delivery_status")
    if event_type == "delivery_report":
        require(fields, ("delivery_status",))
        delivery_status = _one_of(fields, "delivery_status", _STATUSES)
    return TransportEvent(
        event_id=_hex(fields["event_id"]),
        event_type=event_type,
        message_id=_hex(fields["user_message_id"]),
        gateway_id=_text(fields, "sent_message_id"),
        reason=_text(fields, "nack_reason"),
        delivery_status=delivery_status,
        delivery_state=_text(fields, "delivery_state"),
        timestamp=read_timestamp(fields, "timestamp"),
        transport_name=_text(fields, "transport_name"),
    )


def _one_of(fields: JsonObject, name: str, known: tuple[_Name, ...]) -> _Name:
    value = fields[name]
    for each in known:
        if value == each:
            return each
    seen = "another text" if type(value) is str and value else found(value)
    raise Refusal("wrong_type", f"{name}: {', '.join(known[:-1])} or {known[-1]} is needed, {seen} was found")


def _text(fields: JsonObject, name: str) -> str | None:
    """Return what is there as text; an empty one says as little as none."""
    value = fields.get(name)
    if value is None or type(value) is str:
        return value or None
    return canonical_json(value)


def _hex(written: str) -> str:
    return written.replace("-", "").lower() if _UUID.fullmatch(written) is not None else written
