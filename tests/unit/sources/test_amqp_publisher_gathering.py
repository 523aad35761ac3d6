"""Frames are gathered into few writes, in order, and pika still has the place where that is done."""

from __future__ import annotations

import pika
import pytest

from dispatcher.sources.amqp.gathering import gathered


class Connection(pika.connection.Connection):
    """pika's connection, with the socket left out."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.bytes_sent = self.frames_sent = 0

    def _adapter_emit_data(self, data):
        self.writes.append(data)


for _name in pika.connection.Connection.__abstractmethods__ - {"_adapter_emit_data"}:
    setattr(Connection, _name, None)
Connection.__abstractmethods__ = frozenset()


@pytest.fixture
def connection():
    return Connection()


def test_many_frames_are_one_write_in_their_order(connection):
    with gathered(connection):
        connection._output_marshaled_frames([b"a", b"b"])
        connection._output_marshaled_frames([b"c"])
        assert connection.writes == []
    assert connection.writes == [b"abc"]


def test_afterwards_frames_are_written_as_before(connection):
    with gathered(connection):
        pass
    connection._output_marshaled_frames([b"a", b"b"])
    assert connection.writes == [b"a", b"b"]


def test_what_was_gathered_is_written_although_something_failed(connection):
    def fail():
        with gathered(connection):
            connection._output_marshaled_frames([b"a"])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert connection.writes == [b"a"]


def test_large_writes_are_not_put_together(connection):
    with gathered(connection):
        for _ in range(5):
            connection._output_marshaled_frames([b"x" * 100_000])
    assert [len(write) for write in connection.writes] == [200_000, 200_000, 100_000]


def test_a_pika_without_that_place_writes_frame_by_frame():
    class Other:
        pass

    with gathered(Other()):
        pass
