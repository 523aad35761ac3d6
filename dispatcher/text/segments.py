"""How many SMS a text takes, and in which alphabet: GSM 03.38 with its extension table, or UCS-2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Encoding = Literal["GSM-7", "UCS-2"]

_BASIC = (
    "@£$¥èéùìòÇ\nØø\rÅåΔ_ΦΓΛΩΠΨΣΘΞÆæßÉ !\"#¤%&'()*+,-./0123456789:;<=>?"
    "¡ABCDEFGHIJKLMNOPQRSTUVWXYZÄÖÑÜ§¿abcdefghijklmnopqrstuvwxyzäöñüà"
)
# Each is sent as an escape and a second septet, which must arrive in the same part.
_EXTENSION = "\f^{}\\[~]|€"

_GSM_SINGLE, _GSM_PART = 160, 153
_UCS_SINGLE, _UCS_PART = 70, 67

# Most texts are of Latin-1 letters in the basic table alone: deleting those from the bytes leaves nothing.
_BASIC_LATIN = "".join(letter for letter in _BASIC if ord(letter) < 256).encode("latin-1")
_SEPTETS = dict.fromkeys(_BASIC, 1) | dict.fromkeys(_EXTENSION, 2)
_ASTRAL = 0x10000


@dataclass(frozen=True, slots=True)
class Segments:
    """What a text takes on the air: `units` are septets in GSM-7 and 16-bit units in UCS-2."""

    encoding: Encoding
    segments: int
    units: int


def segments(text: str) -> Segments:
    """Count the SMS that `text` takes. The empty text takes one."""
    try:
        plain = not text.encode("latin-1").translate(None, _BASIC_LATIN)
    except UnicodeEncodeError:
        plain = False
    if plain:
        units = len(text)
        return Segments("GSM-7", 1 if units <= _GSM_SINGLE else -(-units // _GSM_PART), units)
    widths = [_SEPTETS.get(letter, 0) for letter in text]
    if 0 not in widths:
        return Segments("GSM-7", _parts(widths, _GSM_SINGLE, _GSM_PART), sum(widths))
    widths = [2 if ord(letter) >= _ASTRAL else 1 for letter in text]
    return Segments("UCS-2", _parts(widths, _UCS_SINGLE, _UCS_PART), sum(widths))


def _parts(widths: list[int], single: int, part: int) -> int:
    """Count the parts, keeping each character whole within one."""
    total = sum(widths)
    if total <= single:
        return 1
    if total == len(widths):
        return -(-total // part)
    parts, room = 1, part
    for width in widths:
        if width > room:
            parts += 1
            room = part
        room -= width
    return parts
