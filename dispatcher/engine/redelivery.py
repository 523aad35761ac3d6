"""Deliveries without an id that a broker brings again: told from equal ones that are new by the order they come in.

A broker forgets what it gets an ack for, and a batch is acked by one ack: so it forgets a whole batch or none of it.
What a channel left behind comes again in its order, marked as redelivered. So what comes again of a channel begins with
the first delivery of one of its batches, goes on without a gap to the last one that was taken in, and then come those
that were handed out and never taken in. What does not fit in is new, however equal it is.

Several beginnings may fit for a while. The one that leaves most to come is taken for true until something does not
fit it; of the others those are kept that fit as well. Each is looked at as far ahead as the present batch reaches.

Where several workers consume a queue there is no such order: what one channel left comes again through several, between
what other channels left. There a delivery that comes again is matched by its content alone, with what channels that
have ended left; each of these stands for one delivery.

Deliveries with an id take no part in this, but where they were refused for it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from itertools import groupby
from operator import attrgetter, itemgetter
from typing import TYPE_CHECKING, Final

from dispatcher.engine.records import Remembered
from dispatcher.events.limits import Refusal

if TYPE_CHECKING:
    from dispatcher.engine.intake import Delivery
    from dispatcher.engine.unit import Overlay

# How many deliveries are looked at to see whether a beginning fits.
_AHEAD: Final = 64


class Past:
    """What earlier channels may have left behind in a row, and how far what comes again has come in it.

    Where some of what one channel left had come again through the next when that ended too, the rest follows on what
    the next one left.
    """

    __slots__ = ("_beginnings", "_rows", "trail")

    def __init__(self, rows: Sequence[Remembered]) -> None:
        self._rows = rows
        # Of a channel that has begun to come again the rest may follow from anywhere: what fitted before may be false.
        begun = rows[0].tag != rows[0].batch
        self._beginnings = tuple(
            at for at, row in enumerate(rows) if row.tag == row.batch or at == 0 or begun or row.epoch != rows[0].epoch
        )
        # After which delivery of the present channel which of the rows may be next, by what fits so far. It is kept
        # from step to step, as a batch that is rolled back never was.
        self.trail: list[tuple[int, tuple[int, ...]]] = []

    def rewind(self, tag: int) -> None:
        """Forget what was concluded from this delivery on."""
        while self.trail and self.trail[-1][0] >= tag:
            self.trail.pop()

    def follow(self, tag: int, digest: bytes, ahead: Iterable[tuple[int, bytes, bool]]) -> int | None:
        """Return the place of the row that the delivery repeats, None when it does not fit in."""
        rows = self._rows
        fitting = [
            at for at in self._next() if at < len(rows) and rows[at].body_hash == digest and self._fits(at, ahead)
        ]
        if not fitting:
            return None
        self.trail.append((tag, tuple(at + 1 for at in fitting)))
        return fitting[0]

    def conclude(self, tag: int) -> int:
        """Conclude from a delivery that did not fit in; return how many of the rows do not come again."""
        expected = self._next()
        rest: tuple[int, ...] = ()
        if self.trail and expected and len(self._rows) not in expected:
            # It began, and broke off. One worker's queue does not do that, but others may have got their share of it.
            rest = tuple(at for at in self._beginnings if at >= min(expected))
        if not self.trail or rest != expected:
            self.trail.append((tag, rest))
        return rest[0] if rest else len(self._rows)

    def row(self, at: int) -> Remembered:
        """Return a row by its place, as it is to be remembered."""
        return self._rows[at]._replace(origin=self._rows[-1].epoch)

    def until(self, at: int) -> dict[str, int]:
        """Return which is the last row of each channel before a place: none of these comes again."""
        return {row.epoch: row.tag for row in self._rows[:at]}

    def _next(self) -> tuple[int, ...]:
        return self.trail[-1][1] if self.trail else self._beginnings

    def _fits(self, at: int, ahead: Iterable[tuple[int, bytes, bool]]) -> bool:
        epoch = self._rows[at].epoch
        at += 1
        for _, digest, has_row in ahead:
            if at == len(self._rows) or self._rows[at].epoch != epoch:
                break
            if self._rows[at].body_hash == digest:
                at += 1
            elif has_row:
                return False
        return True


class Walk:
    """What earlier channels of a queue may have left behind, as of when its present channel first brought any of it."""

    __slots__ = ("_pasts", "epoch")

    def __init__(self, epoch: str, rows: Iterable[Remembered]) -> None:
        self.epoch = epoch
        # The youngest first: what it left is the first to come, unless an older one was given up late.
        linked: list[tuple[set[str], list[Remembered]]] = []
        for name, group in groupby(rows, attrgetter("epoch")):
            those = list(group)
            names = {name, *(row.origin for row in those if row.origin is not None)}
            before = next((entry for entry in linked if entry[0] & names), None)
            if before is None:
                linked.append((names, those))
            else:
                before[0].update(names)
                before[1].extend(those)
        self._pasts = [Past(those) for _, those in linked]

    def find(self, overlay: Overlay, delivery: Delivery, digest: bytes) -> Remembered | None:
        """Return what the delivery repeats, None when it is new; what is known by that not to come is forgotten."""
        if not self._pasts:
            return None
        acked, tag = overlay.changes.acked, delivery.tag
        ahead = _ahead(overlay, delivery)
        for past in self._pasts:
            past.rewind(tag)
        for past in self._pasts:
            at = past.follow(tag, digest, ahead)
            if at is not None:
                # What stands before it was acked; and it stands for the new delivery from now on.
                acked.update(past.until(at + 1))
                return past.row(at)
        begun = [past for past in self._pasts if past.trail]
        past = max(begun, key=lambda past: past.trail[-1][0]) if begun else self._pasts[0]
        acked.update(past.until(past.conclude(tag)))
        return None


def take_turns(overlay: Overlay) -> None:
    """See to it that what a batch of another worker is about to remember is not taken for new by this one.

    A broker notices the end of a connection at once, and hands out again what came on it while the commit of that very
    batch may still be on its way to the disk. So a batch to which anything comes again waits for all that is under way.
    """
    if overlay.reads.shared:
        queues: dict[str, bool] = {}
        for delivery, envelope in overlay.opened:
            if delivery.epoch is None or delivery.queue is None:
                continue
            if isinstance(envelope, Refusal) or envelope.event_id is None:
                queues[delivery.queue] = queues.get(delivery.queue, False) or delivery.redelivered
        overlay.reads.take_turns(queues)


def find_repetition(overlay: Overlay, delivery: Delivery) -> Remembered | None:
    """Say of a delivery without an id whether the broker brings it again: return what it was then; None, it is new.

    One that is found is remembered in its new place: it may come again from there.
    """
    if not delivery.redelivered or delivery.epoch is None or delivery.queue is None:
        return None
    if overlay.reads.shared:
        # The order is lost: what one channel left comes again through several. Each row absorbs one of them.
        found = overlay.reads.repeated(delivery.queue, delivery.epoch, _digest(delivery))
        if found is not None:
            remember(overlay, delivery, found.event_id, found.origin)
        return found
    walk = overlay.walks.get(delivery.queue)
    if walk is None or walk.epoch != delivery.epoch:
        walk = Walk(delivery.epoch, overlay.reads.unacked(delivery.queue, delivery.epoch))
        overlay.walks[delivery.queue] = walk
    found = walk.find(overlay, delivery, _digest(delivery))
    if found is not None:
        remember(overlay, delivery, found.event_id, found.origin)
    return found


def remember(overlay: Overlay, delivery: Delivery, event_id: str | None, origin: str | None = None) -> None:
    """Remember a delivery without an id until the broker surely has its ack; `origin` is that of what it repeats."""
    epoch, tag = delivery.epoch, delivery.tag
    if epoch is not None and delivery.queue is not None:
        batch = overlay.firsts.setdefault(epoch, tag)
        day = overlay.now_text[:10]
        overlay.changes.unacked.append((epoch, tag, batch, origin, delivery.queue, _digest(delivery), event_id, day))


def _digest(delivery: Delivery) -> bytes:
    """Return what a body is known by: to the byte, as a broker changes none."""
    return blake2b(delivery.body, digest_size=16).digest()


def _ahead(overlay: Overlay, delivery: Delivery) -> list[tuple[int, bytes, bool]]:
    """Return what the batch brings again after this delivery: tags, digests, and whether it is surely remembered."""
    epoch = delivery.epoch
    assert epoch is not None
    again = overlay.again.get(epoch)
    if again is None:
        again = overlay.again[epoch] = [
            (other.tag, _digest(other), isinstance(envelope, Refusal) or envelope.event_id is None)
            for other, envelope in overlay.opened
            if other.redelivered and other.epoch == epoch
        ]
    at = bisect_right(again, delivery.tag, key=itemgetter(0))
    return again[at : at + _AHEAD]
