"""The consumer: what the worker's loop sees of the queues that it takes events from.

Deliveries wait in one buffer, oldest first, at most the prefetch of each queue. The worker takes some, commits what
they led to, and acks them; the broker hands out again whatever was not acked when a channel ends. Everything that
touches pika happens in the link's thread; here values are exchanged with it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import pika

from dispatcher.engine.intake import Delivery
from dispatcher.settings import Settings
from dispatcher.sources.amqp.link import Link, LinkStatus
from dispatcher.sources.amqp.settling import Ledger
from dispatcher.sources.amqp.subscription import Exchange, QueueStatus, Subscription
from dispatcher.sources.amqp.topology import Queue

__all__ = ["Consumer", "ConsumerStatus", "Queue", "QueueStatus"]

# How often at most the broker is asked how much waits, and when an answer is not waited for any longer.
_ASK_SECONDS: Final = 0.2
_ANSWER_SECONDS: Final = 3.0


@dataclass(frozen=True, slots=True)
class ConsumerStatus:
    """How consuming goes: the connection, each queue, and how much came, waits here, or was acked too late."""

    link: LinkStatus
    queues: tuple[QueueStatus, ...]
    stale_acks: int
    delivered: int
    buffered: int


@dataclass(frozen=True, slots=True)
class _Order:
    """What to ack on one channel; see `Subscription.ack`."""

    subscription: Subscription
    epoch: str
    upto: int | None
    singly: list[int]
    settled: int
    count: int


class _Consuming:
    """The role of the consumer's link: its subscriptions. All in the link's thread."""

    def __init__(self, settings: Settings, queues: Sequence[Queue], wake: Callable[[], None], *, shared: bool) -> None:
        self.wanted = tuple(queues)
        self.exchange = Exchange(wake)
        self.subscriptions: tuple[Subscription, ...] = ()
        self.link = Link("consumer", settings, self)
        self.held = False
        self.delivered_before = 0  # by queues that were given up
        self._settings = settings
        self._shared = shared
        self._connection: pika.SelectConnection | None = None
        self.subscriptions = tuple(self._subscribed(queue) for queue in self.wanted)

    def _subscribed(self, queue: Queue) -> Subscription:
        return Subscription(self._settings, queue, self.link, self.exchange, shared=self._shared)

    def connected(self, connection: pika.SelectConnection) -> None:
        self._connection = connection
        self._regroup()
        for subscription in self.subscriptions:
            subscription.connected(connection)

    def ticked(self) -> None:
        for subscription in self.subscriptions:
            subscription.ticked()

    def disconnected(self, reason: str) -> None:
        self._connection = None
        for subscription in self.subscriptions:
            subscription.disconnected(reason)
        self.exchange.wake()  # what is buffered is of no use any more

    def _regroup(self) -> list[Subscription]:
        """Let go of the queues that are not wanted any more; return those that are new."""
        wanted = dict.fromkeys(self.wanted)
        kept = [subscription for subscription in self.subscriptions if subscription.queue in wanted]
        for subscription in self.subscriptions:
            if subscription not in kept:
                subscription.retire()
                self.delivered_before += subscription.delivered
        known = {subscription.queue for subscription in kept}
        new = [self._subscribed(queue) for queue in wanted if queue not in known]
        self.subscriptions = (*kept, *new)
        return new

    def regroup(self) -> None:
        """Begin on the queues that are new, too."""
        for subscription in self._regroup():
            if self._connection is not None and not self.held:
                subscription.connected(self._connection)

    def hold(self) -> None:
        for subscription in self.subscriptions:
            subscription.hold()

    def ack(self, orders: Sequence[_Order]) -> None:
        for order in orders:
            order.subscription.ack(order.epoch, order.upto, order.singly, order.settled, order.count)

    def ask_depth(self, asked_at: float) -> None:
        """Sum up how much is ready in the queues that are consumed; there is no sum when one of them ends meanwhile."""
        asked = [subscription for subscription in self.subscriptions if subscription.consuming]
        told: list[int] = []
        expected, ended_before = len(asked), self.exchange.epochs_ended

        def tell(ready: int) -> None:
            told.append(ready)
            if len(told) == expected and self.exchange.epochs_ended == ended_before:
                self.exchange.depth = (asked_at, sum(told))
                self.exchange.wake()

        for subscription in asked:
            subscription.ask_depth(tell)


class Consumer:
    """Takes deliveries from queues. Its methods are for one thread, the worker's; `status` for any.

    `wake` ends that thread's sleep; it is called from the link's thread, when the buffer was empty, when the
    connection ended, and when an answer for `waiting` came. `shared`: other programs that consume the same queues are
    welcome, as they write the same store; else a queue that has another consumer is left to it.
    """

    def __init__(
        self, settings: Settings, queues: Sequence[Queue], wake: Callable[[], None], *, shared: bool = False
    ) -> None:
        self._role = _Consuming(settings, queues, wake, shared=shared)
        self._exchange = self._role.exchange
        self._link = self._role.link
        self._ledgers: dict[str, Ledger] = {}
        self._stale_acks = 0
        self._taken_at = time.monotonic()
        self._asked_at: float | None = None

    @property
    def status(self) -> ConsumerStatus:
        """How it goes now; any thread."""
        role, subscriptions = self._role, self._role.subscriptions
        return ConsumerStatus(
            self._link.status,
            tuple(subscription.status for subscription in subscriptions),
            self._stale_acks + self._exchange.stale_acks,
            role.delivered_before + sum(subscription.delivered for subscription in subscriptions),
            len(self._exchange.buffer),
        )

    def start(self) -> None:
        """Begin to connect and to consume; returns at once."""
        self._link.start()

    def stop(self, patience_seconds: float) -> None:
        """Close the channels, which flushes the acks given so far, then the connection; break both off in the end."""
        self._link.stop(patience_seconds)

    @property
    def has_deliveries(self) -> bool:
        """Whether something came that was not taken."""
        return bool(self._exchange.buffer)

    def take(self, limit: int) -> list[Delivery]:
        """Return what came, oldest first, at most `limit`; what belongs to a channel that ended is left out."""
        buffer, live = self._exchange.buffer, self._exchange.live
        if not buffer:
            self._link.revive()
            return []
        taken: list[Delivery] = []
        while buffer and len(taken) < limit:
            delivery = buffer.popleft()
            if delivery.epoch in live and not self._role.held:
                taken.append(delivery)
        if taken:
            self._taken_at = time.monotonic()
        return taken

    def put_back(self, deliveries: Sequence[Delivery]) -> None:
        """Take these back, to the front: they were not handled. Those of a channel that ended come again anyway."""
        if self._role.held:
            return
        live = self._exchange.live
        self._exchange.buffer.extendleft(delivery for delivery in reversed(deliveries) if delivery.epoch in live)

    def ack(self, deliveries: Sequence[Delivery]) -> None:
        """Let the broker forget these: what they led to is committed. Acks of a channel that ended are counted only."""
        orders = []
        for epoch, tags in self._by_epoch(deliveries).items():
            subscription = self._exchange.live.get(epoch)
            if subscription is None:
                self._stale_acks += len(tags)
                continue
            ledger = self._ledgers.setdefault(epoch, Ledger())
            upto, singly = ledger.settle(tags)
            if upto is not None or singly:
                orders.append(_Order(subscription, epoch, upto, singly, ledger.upto, len(tags)))
        if orders and not self._link.call(partial(self._role.ack, orders)):
            self._stale_acks += sum(order.count for order in orders)
        if len(self._ledgers) > len(self._exchange.live):
            self._ledgers = {epoch: ledger for epoch, ledger in self._ledgers.items() if epoch in self._exchange.live}

    @staticmethod
    def _by_epoch(deliveries: Sequence[Delivery]) -> dict[str, list[int]]:
        tags: dict[str, list[int]] = {}
        for delivery in deliveries:
            if delivery.epoch is not None:  # else it came from another source
                tags.setdefault(delivery.epoch, []).append(delivery.tag)
        return tags

    @property
    def epochs(self) -> frozenset[str]:
        """The channels that are open, as far as it is known here; what came on any other comes again, to anybody."""
        return frozenset(self._exchange.live.copy())

    def surely_acked(self) -> list[tuple[str, int]]:
        """Return epochs and numbers up to which the broker has processed all acks, as told since the last call."""
        processed = self._exchange.processed
        newest: dict[str, int] = {}
        while processed:
            epoch, upto = processed.popleft()
            newest[epoch] = upto
        return list(newest.items())

    def hold(self) -> None:
        """Take no more, for good; what was taken may still be acked. The rest goes back to the broker at the end."""
        self._role.held = True
        self._exchange.buffer.clear()
        self._link.call(self._role.hold)

    def replace_queues(self, queues: Sequence[Queue]) -> None:
        """Consume from these queues from now on; those that stay are not disturbed."""
        self._role.wanted = tuple(queues)
        self._link.call(self._role.regroup)

    def waiting(self) -> int | None:
        """Return how much is ready in the queues, as the broker told since the last delivery was taken, else None.

        What other workers have in hand is not ready: it is theirs, and comes here when they end without an ack.
        Asks it as needed, and returns at once; `wake` is called when the answer has come.
        """
        now = time.monotonic()
        depth = self._exchange.depth
        fresh = depth is not None and depth[0] > self._taken_at and not self._exchange.buffer
        patience = _ASK_SECONDS if fresh else _ANSWER_SECONDS
        if self._asked_at is None or self._asked_at < self._taken_at or now - self._asked_at > patience:
            self._asked_at = now
            if not self._link.call(partial(self._role.ask_depth, now)):
                self._asked_at = None
        return depth[1] if depth is not None and fresh else None
