"""The forms that an event has on the wire: the design note's, the historic one of Vumi Go, and CloudEvents 1.0.

`decode` reads all three, `encode` writes the first two as one. Knows nothing of brokers, stores or rulebooks: whether
an id is new, and what type a conversation has, is found out by others.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from dispatcher.events.event import Event, JsonObject, JsonValue
from dispatcher.events.limits import Limits, Refusal, canonical_json, found, read_json

# Ids and keys are indexed by the store; what is longer is no key but a mistake.
LONGEST_KEY = 200

_REQUIRED = ("account_key", "conversation_key", "event_type")
_KEYS = (
    "account_key",
    "conversation_key",
    "conversation_type",
    "event_type",
    "event_id",
    "subject",
    "root_id",
    "parent_id",
)
# `__cache__` is scratch space that Vumi's Python puts into messages and never stores.
_KNOWN = frozenset({*_KEYS, "event_data", "content", "timestamp", "hops", "traceparent", "__cache__"})

_CLOUD_REQUIRED = ("id", "source", "type", "subject")
_CLOUD_KNOWN = frozenset(
    {"specversion", "id", "source", "type", "subject", "time", "traceparent"}
    | {"data", "data_base64", "datacontenttype", "dataschema"}
)

_AUTHORITY = re.compile(r"(?:[A-Za-z][A-Za-z0-9+.-]*:)?//[^/]*")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_MOST_HOPS = 2**31 - 1


@dataclass(slots=True)
class Envelope:
    """What a body says of an event, in any of the three forms. None is what it does not say.

    `timestamp` is aware, in UTC. `extra` keeps the top-level keys that no form knows.
    """

    account_key: str
    conversation_key: str
    event_type: str
    data: JsonObject
    conversation_type: str | None = None
    event_id: str | None = None
    timestamp: datetime | None = None
    subject: str | None = None
    root_id: str | None = None
    parent_id: str | None = None
    hops: int = 0
    traceparent: str | None = None
    extra: JsonObject = field(default_factory=dict)


def decode(body: bytes, limits: Limits) -> Envelope:
    """Read one event. Raises Refusal with the first code that applies, and nothing else, whatever the body is."""
    return read_envelope(read_json(body, limits))


def read_envelope(value: JsonValue) -> Envelope:
    """Read an event from JSON that is within the limits. Raises Refusal from `not_an_object` on.

    A null is as good as an absent key, but not as the only payload: there it is one that got lost. An empty text is
    of the wrong type, as is a key or id of more than 200 characters: neither names anything.
    """
    if not isinstance(value, dict):
        raise Refusal("not_an_object", f"an event is an object, {found(value)} was found")
    if "specversion" in value:
        return _read_cloud_event(value)
    return _read_own_form(value)


def encode(event: Event) -> JsonObject:
    """Return what goes out to a broker: `content` for historic readers beside `event_data`, and an ISO timestamp.

    Read back by `decode` it is the same event. What the event does not have is left out; `extra` is not repeated.
    """
    written: JsonObject = {
        "event_id": event.event_id,
        "account_key": event.account_key,
        "conversation_key": event.conversation_key,
        "event_type": event.event_type,
        "event_data": event.data,
        "content": event.data,
        "timestamp": format_timestamp(event.timestamp),
        "root_id": event.root_id or event.event_id,
        "hops": event.hops,
    }
    for name in ("conversation_type", "subject", "parent_id", "traceparent"):
        value = getattr(event, name)
        if value is not None:
            written[name] = value
    return written


def parse_timestamp(text: str) -> datetime | None:
    """Read a date and time of Vumi ("2026-11-21 03:41:54.767900", in UTC) or of ISO 8601; None if it is neither."""
    if len(text) < 16 or text[10] not in "Tt ":
        return None
    try:
        read = datetime.fromisoformat(text)
        return read.replace(tzinfo=UTC) if read.tzinfo is None else read.astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def format_timestamp(moment: datetime) -> str:
    """Write an aware time as ISO 8601 in UTC, such as "2026-11-21T03:41:54.767900Z"."""
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat() + "Z"


def _read_own_form(fields: JsonObject) -> Envelope:
    get = fields.get
    require(fields, _REQUIRED)
    for name in _KEYS:
        value = get(name)
        if value is not None and (type(value) is not str or not 0 < len(value) <= LONGEST_KEY):
            raise wrong_key(name, value)
    event_data = _object_or_none(fields, "event_data")
    content = _object_or_none(fields, "content")
    timestamp = read_timestamp(fields, "timestamp")
    hops = get("hops")
    if hops is None:
        hops = 0
    elif type(hops) is not int or not 0 <= hops <= _MOST_HOPS:
        raise Refusal("wrong_type", f"hops: a whole number from 0 is needed, {_found_number(hops)} was found")
    if event_data is None and content is None and ("event_data" in fields or "content" in fields):
        name = "event_data" if "event_data" in fields else "content"
        raise Refusal("wrong_type", f"{name}: an object is needed, null was found")
    if event_data is not None and content is not None and not _same(event_data, content):
        raise Refusal("conflicting_payload", "event_data and content are both there and differ; send one of them")
    return Envelope(
        account_key=fields["account_key"],
        conversation_key=fields["conversation_key"],
        event_type=fields["event_type"],
        data=event_data if event_data is not None else content if content is not None else {},
        conversation_type=get("conversation_type"),
        event_id=get("event_id"),
        timestamp=timestamp,
        subject=get("subject"),
        root_id=get("root_id"),
        parent_id=get("parent_id"),
        hops=hops,
        traceparent=_traceparent(get("traceparent")),
        extra=_rest(fields, _KNOWN),
    )


def _read_cloud_event(fields: JsonObject) -> Envelope:
    require(fields, ("specversion", *_CLOUD_REQUIRED))
    if fields["specversion"] != "1.0":
        raise Refusal("wrong_type", 'specversion: "1.0" is needed, another version was found')
    for name in ("id", "subject"):
        value = fields[name]
        if type(value) is not str or not 0 < len(value) <= LONGEST_KEY:
            raise wrong_key(name, value)
    account_key = _account_of(fields["source"])
    conversation_type, event_type = _types_of(fields["type"])
    if fields.get("data_base64") is not None:
        raise Refusal("wrong_type", "data_base64: event data is a JSON object, in `data`; binary data was found")
    data = _object_or_none(fields, "data")
    return Envelope(
        account_key=account_key,
        conversation_key=fields["subject"],
        event_type=event_type,
        data=data if data is not None else {},
        conversation_type=conversation_type,
        event_id=fields["id"],
        timestamp=read_timestamp(fields, "time"),
        traceparent=_traceparent(fields.get("traceparent")),
        extra=_rest(fields, _CLOUD_KNOWN),
    )


def _account_of(source: Any) -> str:
    """Return the last segment of the path in a URI reference: "acc1" of "https://crm.example/accounts/acc1"."""
    if type(source) is not str or not source:
        raise wrong_key("source", source)
    path = source.partition("#")[0].partition("?")[0]
    authority = _AUTHORITY.match(path)
    if authority is not None:
        path = path[authority.end() :]
    account_key = path.rstrip("/").rpartition("/")[2]
    if not 0 < len(account_key) <= LONGEST_KEY:
        raise Refusal("wrong_type", "source: its path ends in no segment that could be an account's key")
    return account_key


def _types_of(written: Any) -> tuple[str | None, str]:
    """Split "vxpolls.poll_complete" at its last dot; without a dot the type of the conversation stays open."""
    if type(written) is not str or not written:
        raise wrong_key("type", written)
    conversation_type, dot, event_type = written.rpartition(".")
    if not event_type or (dot and not conversation_type):
        raise Refusal("wrong_type", "type: one side of its last dot is empty")
    if max(len(conversation_type), len(event_type)) > LONGEST_KEY:
        raise wrong_key("type", written)
    return conversation_type or None, event_type


def require(fields: JsonObject, names: tuple[str, ...]) -> None:
    """Raise Refusal, naming all that are missing, unless each of these keys has a value."""
    for name in names:
        if fields.get(name) is None:
            missing = [name for name in names if fields.get(name) is None]
            raise Refusal("missing_field", f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing")


def _object_or_none(fields: JsonObject, name: str) -> JsonObject | None:
    value = fields.get(name)
    if value is not None and type(value) is not dict:
        raise Refusal("wrong_type", f"{name}: an object is needed, {found(value)} was found")
    return value


def read_timestamp(fields: JsonObject, name: str) -> datetime | None:
    """Return the time of that key, aware, in UTC; None when it has none. Raises Refusal for what is no time."""
    value = fields.get(name)
    if value is None:
        return None
    if type(value) is not str:
        raise Refusal("wrong_type", f"{name}: a date and time as text is needed, {found(value)} was found")
    moment = parse_timestamp(value)
    if moment is None:
        raise Refusal("wrong_type", f'{name}: a date and time such as "2026-11-21T03:41:54Z" is needed')
    return moment


def _traceparent(value: JsonValue) -> str | None:
    # An unusable trace is dropped, as W3C says: it is about us and no reason to lose what is about a person.
    return value if type(value) is str and _TRACEPARENT.fullmatch(value) is not None else None


def _same(one: JsonObject, other: JsonObject) -> bool:
    # Python's == holds 1 and true for equal, so the texts decide where it says yes.
    return one == other and canonical_json(one) == canonical_json(other)


def _rest(fields: JsonObject, known: frozenset[str]) -> JsonObject:
    if known.issuperset(fields):
        return {}
    return {name: value for name, value in fields.items() if name not in known}


def wrong_key(name: str, value: JsonValue) -> Refusal:
    """Return the refusal of something that cannot be a key or an id."""
    seen = f"a text of {len(value)}" if type(value) is str and value else found(value)
    return Refusal("wrong_type", f"{name}: a text of 1 to {LONGEST_KEY} characters is needed, {seen} was found")


def _found_number(value: JsonValue) -> str:
    if type(value) is int:
        return "a negative number" if value < 0 else "a larger one"
    return "a fraction" if type(value) is float else found(value)
