"""The event: an immutable fact that happened in a conversation. Knows nothing of wire forms or stores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

# What JSON can hold: None, bool, int, float, str, list and dict of such. A recursive alias costs mypy
# more than it proves, as the values come from outside and are checked where they enter.
JsonValue = Any
JsonObject = dict[str, Any]


class ReadOnlyList(Sequence[JsonValue]):
    """A read-only view of a JSON array; what it holds is viewed read-only too."""

    __slots__ = ("_items",)

    def __init__(self, items: list[JsonValue]) -> None:
        self._items = items

    def __getitem__(self, index: Any) -> Any:
        found = self._items[index]
        return ReadOnlyList(found) if isinstance(index, slice) else read_only(found)

    def __len__(self) -> int:
        return len(self._items)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, ReadOnlyList):
            return self._items == other._items
        return self._items == other

    __hash__ = None  # type: ignore[assignment]  # a view of something mutable has no stable hash

    def __repr__(self) -> str:
        return repr(self._items)


class ReadOnlyObject(Mapping[str, JsonValue]):
    """A read-only view of a JSON object; what it holds is viewed read-only too."""

    __slots__ = ("_members",)

    def __init__(self, members: JsonObject) -> None:
        self._members = members

    def __getitem__(self, key: str) -> Any:
        return read_only(self._members[key])

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, ReadOnlyObject):
            return self._members == other._members
        return self._members == other

    __hash__ = None  # type: ignore[assignment]  # a view of something mutable has no stable hash

    def __repr__(self) -> str:
        return repr(self._members)


def read_only(value: JsonValue) -> Any:
    """Return `value` so that nobody can change it: objects and arrays as views, the rest as it is."""
    if isinstance(value, dict):
        return ReadOnlyObject(value)
    if isinstance(value, list):
        return ReadOnlyList(value)
    return value


@dataclass(frozen=True, slots=True)
class Event:
    """An immutable fact that happened in a conversation; `subject` names the person it is about.

    `conversation_type` is None for an event whose type nobody knows (the historic Vumi Go form).
    `data` is the JSON object as parsed, for the engine, which never changes it; handlers read `event_data`.
    """

    event_id: str
    account_key: str
    conversation_key: str
    conversation_type: str | None
    event_type: str
    data: JsonObject
    timestamp: datetime
    subject: str | None = None
    root_id: str = ""
    parent_id: str | None = None
    hops: int = 0
    source: str = "embedded"
    traceparent: str | None = None
    extra: JsonObject = field(default_factory=dict)

    @property
    def event_data(self) -> Mapping[str, Any]:
        """The payload as a read-only view."""
        return ReadOnlyObject(self.data)


# The names that `event.<name>` offers to expressions, in the order they are documented.
ENVELOPE = (
    "event_id",
    "account_key",
    "conversation_key",
    "conversation_type",
    "event_type",
    "event_data",
    "timestamp",
    "subject",
    "root_id",
    "parent_id",
    "hops",
    "source",
    "traceparent",
)
