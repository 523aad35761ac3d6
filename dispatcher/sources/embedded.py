"""The embedded source: events come in through the store itself. Here they are cut out of a stream and admitted.

The worker's loop admits what reaches it over the control socket; `dispatcher publish` admits by itself when no worker
holds the store. Knows nothing of sockets and command lines.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import IO, TYPE_CHECKING, Final

from dispatcher import failpoints
from dispatcher.engine.intake import Delivery, Intake, Receipt
from dispatcher.engine.unit import Overlay

if TYPE_CHECKING:
    from dispatcher.store.sqlite import SqliteStore

SOURCE: Final = "embedded"
# What is admitted in one commit, and fits one frame of the control socket.
CHUNK_BODIES: Final = 256
CHUNK_BYTES: Final = 2 * 1024 * 1024

# A body with the number of its line.
Numbered = tuple[int, bytes]


def lines(stream: IO[bytes], *, longest: int) -> Iterator[Numbered]:
    """Yield the lines of a stream that are not blank, with their numbers from 1.

    Of a line longer than `longest`, which is too large to be an event, only that much is read into memory.
    """
    number = 0
    while line := stream.readline(longest):
        number += 1
        if not line.endswith(b"\n"):
            rest = line
            while rest and not rest.endswith(b"\n"):
                rest = stream.readline(longest)
        if line.strip():
            yield number, line.rstrip(b"\r\n")


def chunks(bodies: Iterable[Numbered]) -> Iterator[list[Numbered]]:
    """Gather bodies into chunks, each small enough for one commit and one frame."""
    chunk: list[Numbered] = []
    size = 0
    for number, body in bodies:
        if chunk and (len(chunk) == CHUNK_BODIES or size + len(body) > CHUNK_BYTES):
            yield chunk
            chunk, size = [], 0
        chunk.append((number, body))
        size += len(body)
    if chunk:
        yield chunk


def admit(store: SqliteStore, intake: Intake, bodies: Sequence[bytes], now: datetime) -> list[Receipt]:
    """Store what can be read and park what cannot; when this returns, both are durable."""
    with store.transaction() as transaction:
        overlay = Overlay(transaction, now)
        receipts = intake.admit([Delivery(body, SOURCE) for body in bodies], overlay)
        transaction.flush(overlay.changes)
        failpoints.reach("intake.before_commit")
        transaction.commit()
        transaction.flushed(overlay.changes)
    return receipts
