"""The properties of a message, read so that no message can break the connection.

pika 1.4.4 fails on headers that RabbitMQ lets through: a time beyond the year 9999, a number that is none (NaN). What
fails in mid-read costs the connection; the broker hands the message out again, and nothing behind it ever comes. Such
headers are left out instead. We use none of them.
"""

from __future__ import annotations

import struct
from typing import Final

from pika import spec
from pika.exceptions import AMQPError

# Flags of the properties, and their order, by the specification of AMQP 0-9-1.
_HEADERS: Final = 1 << 13
_MESSAGE_ID: Final = 1 << 7
_SHORT_TEXTS_BEFORE_HEADERS: Final = (1 << 15, 1 << 14)
_OCTETS_BEHIND: Final = (1 << 12, 1 << 11)
_SHORT_TEXTS_BEHIND: Final = (1 << 10, 1 << 9, 1 << 8)


class TolerantProperties(spec.BasicProperties):
    """pika's properties. Of those that it cannot read, the message id is kept."""

    def decode(self, encoded: bytes, offset: int = 0) -> TolerantProperties:
        """Read the properties from a header frame."""
        try:
            super().decode(encoded, offset)  # type: ignore[no-untyped-call]
        except (AMQPError, ArithmeticError, ValueError, TypeError, OSError, struct.error, RecursionError):
            self.headers = None
            self.message_id = _message_id(encoded, offset)
        return self


def read_tolerantly() -> None:
    """Have pika read the properties of all messages this way, in this process."""
    spec.props[spec.BasicProperties.INDEX] = TolerantProperties


def _message_id(encoded: bytes, offset: int) -> str | None:
    """Find the message id behind headers that are not looked into; None when there is none, or no way to it."""
    try:
        (flags,) = struct.unpack_from(">H", encoded, offset)
        if flags & 1 or not flags & _MESSAGE_ID:  # more flags follow: nobody sends that
            return None
        offset += 2
        for flag in _SHORT_TEXTS_BEFORE_HEADERS:
            offset += 1 + encoded[offset] if flags & flag else 0
        offset += 4 + struct.unpack_from(">I", encoded, offset)[0] if flags & _HEADERS else 0
        offset += sum(1 for flag in _OCTETS_BEHIND if flags & flag)
        for flag in _SHORT_TEXTS_BEHIND:
            offset += 1 + encoded[offset] if flags & flag else 0
        text = encoded[offset + 1 : offset + 1 + encoded[offset]]
        return text.decode() if len(text) == encoded[offset] else None
    except (IndexError, struct.error, UnicodeDecodeError):
        return None
