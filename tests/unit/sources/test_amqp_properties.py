"""No properties of a message break the connection; the message id is read where there is a way to it."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pika.spec import BasicProperties

from dispatcher.sources.amqp.properties import TolerantProperties

HUGE_TIME = b"\x01tT" + b"\x7f" * 8


def with_headers(headers: bytes, **properties) -> bytes:
    """The frame of properties whose headers are these bytes."""
    encoded = BasicProperties(headers={}, **properties).encode()
    return b"".join(encoded).replace(b"\0\0\0\0", struct.pack(">I", len(headers)) + headers, 1)


def test_sound_properties_are_read_as_pika_reads_them():
    sound = BasicProperties(
        content_type="application/json",
        headers={"a": 1, "b": ["x", None]},
        message_id="m1",
        delivery_mode=2,
        app_id="x",
    )

    assert TolerantProperties().decode(b"".join(sound.encode())) == sound


@pytest.mark.parametrize(
    "headers",
    [
        HUGE_TIME,
        b"\x01dd" + struct.pack(">d", float("nan")),
        b"\x01dd" + struct.pack(">d", float("inf")),
        b"\x01k?",
        b"\x01nF\x00\x00\xff\xff",
        b"\xff",
        (b"A\x00\x00\x00\x05" * 20_000).join((b"\x01a", b"V")),
    ],
    ids=["time", "nan", "infinity", "unknown kind", "table too long", "name too long", "nested"],
)
@pytest.mark.parametrize(
    "others",
    [
        {},
        {"content_type": "application/json", "content_encoding": "utf-8", "delivery_mode": 2, "priority": 1},
        {"correlation_id": "c", "reply_to": "r", "expiration": "60000", "app_id": "a", "delivery_mode": 1},
    ],
)
def test_headers_that_cannot_be_read_are_left_out_and_the_message_id_is_found_behind_them(headers, others):
    read = TolerantProperties().decode(with_headers(headers, message_id="m1", **others))

    assert (read.message_id, read.headers) == ("m1", None)


def test_a_message_without_an_id_has_none_behind_headers_that_cannot_be_read():
    assert TolerantProperties().decode(with_headers(HUGE_TIME)).message_id is None


def test_an_id_that_is_no_text_is_none():
    encoded = with_headers(HUGE_TIME, message_id="m1").replace(b"\x02m1", b"\x02\xff\xfe")

    assert TolerantProperties().decode(encoded).message_id is None


@given(st.binary(max_size=60), st.integers(0, 2**16 - 1))
def test_whatever_the_bytes_are_nothing_is_raised(rest, flags):
    read = TolerantProperties().decode(struct.pack(">H", flags) + rest)

    assert read.message_id is None or isinstance(read.message_id, str | bytes)
