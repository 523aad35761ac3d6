"""The embedded source: events come in through the store itself. Here they are cut out of a stream and admitted.

The worker's loop admits what reaches it over the control socket; `dispatcher publish` admits by itself where no one
process holds the store. Knows nothing of sockets and command lines.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from io import BufferedReader
from typing import TYPE_CHECKING, Final

from dispatcher import failpoints
from dispatcher.engine.intake import Delivery, Intake, Receipt
from dispatcher.engine.unit import Overlay

if TYPE_CHECKING:
    from dispatcher.store.ports import Store

SOURCE: Final = "embedded"
# How many events are admitted in one commit at most.
CHUNK_BODIES: Final = 1024
_READ_BYTES: Final = 256 * 1024

# A body with the number of its line.
Numbered = tuple[int, bytes]


def chunks(stream: BufferedReader, *, longest: int) -> Iterator[list[Numbered]]:
    """Yield the lines of a stream that are not blank, with their numbers from 1, as they come in.

    What one read brings goes on at once: a pipe that somebody types into is not kept waiting for more. Of a line
    longer than `longest` only so much is kept; memory stays the same however much comes.
    """
    number = 0
    rest = b""
    while read := stream.read1(_READ_BYTES):
        *whole, rest = (rest + read).split(b"\n") if b"\n" in read else (_cut(rest, read, longest),)
        chunk = []
        for line in whole:
            number += 1
            if line and not line.isspace():
                chunk.append((number, line.removesuffix(b"\r")[:longest]))
                if len(chunk) == CHUNK_BODIES:
                    yield chunk
                    chunk = []
        if chunk:
            yield chunk
    if rest and not rest.isspace():
        yield [(number + 1, rest.removesuffix(b"\r")[:longest])]


def _cut(rest: bytes, read: bytes, longest: int) -> bytes:
    """Add to a line that has not ended yet, unless it is too long already."""
    return rest + read if len(rest) <= longest else rest


def admit(store: Store, intake: Intake, bodies: Sequence[bytes], now: datetime | None = None) -> list[Receipt]:
    """Store what can be read and park what cannot; when this returns, both are durable.

    They are received `now`, which is the store's own time if not given. Raises Contended, with nothing stored, when
    another process is just storing one of these events; LeaseLost when nobody can tell whether they are stored.
    """
    with store.transaction() as transaction:
        # Not before: with a transaction a store that is shared tells the time.
        overlay = Overlay(transaction, now or store.clock.now())
        receipts = intake.admit([Delivery(body, SOURCE) for body in bodies], overlay)
        transaction.flush(overlay.changes)
        failpoints.reach("intake.before_commit")
        transaction.commit()
        transaction.flushed(overlay.changes)
    return receipts
