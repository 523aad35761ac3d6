"""Which deliveries of a channel are acked: the arithmetic behind one ack for a whole batch. No I/O, no clock.

RabbitMQ numbers the deliveries of a channel from 1. Acking "up to" a number acks all below it too, so it is safe only
when all below are done; and it is an error that closes the channel when that very number was acked before.
"""

from __future__ import annotations

from collections.abc import Sequence


class Ledger:
    """What has been acked of one channel: everything up to `upto`, and some numbers beyond."""

    __slots__ = ("_beyond", "upto")

    def __init__(self) -> None:
        self.upto = 0
        self._beyond: set[int] = set()

    def settle(self, tags: Sequence[int]) -> tuple[int | None, list[int]]:
        """Count these as acked. Return up to which number to ack at once (None: do not), and which ones singly.

        In the usual order, the oldest first and none left out, a batch is one ack. What is acked already is left out.
        """
        fresh = {tag for tag in tags if tag > self.upto} - self._beyond
        if not fresh:
            return None, []
        self._beyond.update(fresh)
        upto = self.upto
        while upto + 1 in self._beyond:
            upto += 1
            self._beyond.discard(upto)
        self.upto = upto
        covered = [tag for tag in fresh if tag <= upto]
        return max(covered, default=None), sorted(tag for tag in fresh if tag > upto)
