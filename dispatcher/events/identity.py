"""How an event is told from another: the hash of what it means, and ids that sort by time."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import blake2b

from dispatcher.events.event import JsonObject
from dispatcher.events.limits import canonical_json

_HEX_DIGITS = 32
_RANDOM_BITS = 74
_RANDOM_MASK = (1 << _RANDOM_BITS) - 1
_TIME_MASK = (1 << 48) - 1
_LOW_MASK = (1 << 62) - 1
_LAST_MASK = (1 << 48) - 1
_VERSION = 7 << 76
_VARIANT = 2 << 62


def canonical_hash(
    account_key: str, conversation_key: str, conversation_type: str | None, event_type: str, data: JsonObject
) -> bytes:
    """Return 16 bytes that are the same for the same five fields, in whatever order keys were written.

    `1`, `1.0` and `true` make three hashes; see `canonical_json`.
    """
    written = canonical_json([account_key, conversation_key, conversation_type, event_type, data])
    return blake2b(written.encode("ascii"), digest_size=16).digest()


def uuid7(now_ms: int) -> str:
    """Return a new UUIDv7 for this time in milliseconds since 1970: 36 characters, lower case.

    Within a process each is greater than the one before, even when the clock goes back. From any thread.
    """
    return _written(_sequence.following(now_ms))


def derived_uuid7(ms: int, *parts: str | int) -> str:
    """Return the UUIDv7 that follows from its arguments: the same ones, the same id, in every process."""
    # Kind and length before each part: ("ab", "c") and ("a", "bc"), 1 and "1" must not meet.
    told_apart = ""
    for part in parts:
        if type(part) is str:
            told_apart += f"s{len(part)}:{part}"
        else:
            told_apart += f"{'i' if isinstance(part, int) else 's'}{len(str(part))}:{part}"
    digest = blake2b(told_apart.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    low = int.from_bytes(digest[6:])
    # As `_written` writes it, with the half that is the time's written once for all that is of one time.
    return f"{_time_written(ms)}{low >> 62 & 0xFFF:03x}-{(low & _LOW_MASK) >> 48 | 0x8000:x}-{low & _LAST_MASK:012x}"


def to_hex(uuid: str) -> str:
    """Return the id as Vumi writes ids: 32 hexadecimal digits, no dashes."""
    return uuid.replace("-", "")


@dataclass(slots=True)
class _Sequence:
    """The last id given, as time and randomness in one number; the next one is greater.

    Within a millisecond ids are consecutive, from a random start: that keeps them unique between processes and
    next to each other in an index.
    """

    last: int = -1
    process: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def following(self, now_ms: int) -> int:
        with self.lock:
            if self.process != os.getpid():
                # A forked child must not go on counting where its parent does.
                self.process = os.getpid()
                self.last = -1
            earliest = _time_bits(now_ms)
            if earliest > self.last:
                # The top bit stays free, so that counting on never runs into the next millisecond.
                self.last = earliest | int.from_bytes(os.urandom(10)) & (_RANDOM_MASK >> 1)
            else:
                self.last += 1
            return self.last


_sequence = _Sequence()


def _time_bits(ms: int) -> int:
    return (max(ms, 0) & _TIME_MASK) << _RANDOM_BITS


@lru_cache(maxsize=16)
def _time_written(ms: int) -> str:
    digits = f"{max(ms, 0) & _TIME_MASK:012x}"
    return f"{digits[:8]}-{digits[8:]}-7"


def _written(number: int) -> str:
    """Write 48 bits of time and 74 others as a UUID, with version and variant set between them."""
    whole = (number >> _RANDOM_BITS) << 80 | _VERSION | ((number >> 62) & 0xFFF) << 64 | _VARIANT | number & _LOW_MASK
    digits = f"{whole:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def day_of(identifier: str) -> str | None:
    """Return the day (UTC, `YYYY-MM-DD`) that a UUIDv7 bears in it, written either way; None for any other id."""
    digits = identifier.replace("-", "")
    if len(digits) != _HEX_DIGITS or digits[12] != "7":
        return None
    try:
        return datetime.fromtimestamp(int(digits[:12], 16) / 1000, UTC).strftime("%Y-%m-%d")
    except (ValueError, OverflowError, OSError):
        return None
