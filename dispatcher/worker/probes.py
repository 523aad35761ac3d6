"""Asks several workers the same question at once, each on its Unix socket, and takes what is there in time."""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

_LARGEST_ANSWER: Final = 32 * 1024 * 1024
_PART: Final = 256 * 1024


def ask(sockets: Mapping[int, Path], path: str, seconds: float) -> dict[int, tuple[int, bytes]]:
    """Return each one's status and body for `GET path`; who has not answered within `seconds` is left out."""
    question = f"GET {path} HTTP/1.0\r\n\r\n".encode("ascii")
    parts: dict[int, bytearray] = {}
    answers: dict[int, tuple[int, bytes]] = {}
    deadline = time.monotonic() + seconds
    with selectors.DefaultSelector() as selector:
        try:
            for number, where in sockets.items():
                connection = _connect(where, question)
                if connection is not None:
                    selector.register(connection, selectors.EVENT_READ, number)
                    parts[number] = bytearray()
            while selector.get_map() and (left := deadline - time.monotonic()) > 0:
                for key, _ in selector.select(left):
                    taken = _receive(key.fileobj)
                    if taken:
                        parts[key.data] += taken
                    if not taken or len(parts[key.data]) > _LARGEST_ANSWER:
                        selector.unregister(key.fileobj)
                        key.fileobj.close()  # type: ignore[union-attr]  # it is a socket
                        if (answer := _read(bytes(parts.pop(key.data)))) is not None:
                            answers[key.data] = answer
        finally:
            for key in list(selector.get_map().values()):
                key.fileobj.close()  # type: ignore[union-attr]  # as above
    return answers


def _connect(where: Path, question: bytes) -> socket.socket | None:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.setblocking(False)
        connection.connect(str(where))
        connection.sendall(question)  # as small as it is, the socket takes it at once
    except OSError:  # nobody listens, or too many wait already
        connection.close()
        return None
    return connection


def _receive(connection: object) -> bytes:
    assert isinstance(connection, socket.socket)
    try:
        return connection.recv(_PART)
    except OSError:
        return b""


def _read(answer: bytes) -> tuple[int, bytes] | None:
    head, end, body = answer.partition(b"\r\n\r\n")
    words = head.split(None, 2)
    if not end or len(words) < 2 or not words[1].isdigit():
        return None
    return int(words[1]), body
