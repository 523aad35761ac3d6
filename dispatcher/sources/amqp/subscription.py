"""One queue that is consumed: its channel, made and made again; its deliveries; its acks. All in the link's thread.

Other consumers of the queue are welcome where workers share a store. Where one worker alone has it, it takes all of a
queue's events or none: a queue that somebody else consumes is left until it is free.

Each channel is an *epoch* with a name that is never used again, and greater than those before: delivery numbers begin
at 1 on every channel, so an ack that came too late would be one of another message. After acks an answer is asked for
that says nothing but that they were processed (the prefetch, set to what it is): RabbitMQ handles what comes on a
channel in order.
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import pika
from pika.channel import Channel

from dispatcher.engine.intake import Delivery
from dispatcher.events.identity import to_hex, uuid7
from dispatcher.settings import Settings
from dispatcher.sources.amqp.conversation import Conversation, Refused, Talk
from dispatcher.sources.amqp.link import LONGEST_PAUSE_SECONDS, Link
from dispatcher.sources.amqp.topology import Prepared, Queue, look_after, prepare
from dispatcher.telemetry import log

# A set-up that gets no answer for so long ends the connection: a channel that waits cannot even be closed.
SETUP_SECONDS: Final = 30.0
# How often the binding is made sure of. When an exchange is deleted its bindings go too, and no consumer is told.
REBIND_SECONDS: Final = 3.0
REFUSED_REBIND_SECONDS: Final = 60.0
_CANCELLED: Final = "the broker cancelled the consumer (the queue was deleted or moved, or an event took too long)"
_VANISHED: Final = "the consumer was gone, and nobody had told"
_SHARED: Final = (
    "another program consumes this queue, and each event goes to one of the two: a store that one worker writes takes "
    "all of them or none"
)
_HELD: Final = "held: this worker takes no more"


@dataclass(frozen=True, slots=True)
class QueueStatus:
    """How a queue is served. Times are of the monotonic clock, in seconds; `reason` says why it is not consumed.

    `unacked` counts what came and is not acked yet; `oldest_unacked_since` is right to a second. `created`: by us.
    """

    name: str
    consuming: bool
    reason: str | None
    since: float
    unacked: int
    oldest_unacked_since: float | None
    created: bool


@dataclass(slots=True)
class Exchange:
    """What the link's thread and the worker's hand to each other. One thread writes each; deques serve both."""

    wake: Callable[[], None]
    buffer: deque[Delivery] = field(default_factory=deque)
    live: dict[str, Subscription] = field(default_factory=dict)  # by epoch; written by the link's thread
    processed: deque[tuple[str, int]] = field(default_factory=deque)
    stale_acks: int = 0  # of the link's thread; the worker's counts its own
    depth: tuple[float, int] | None = None  # when it was asked how much is ready, and how much was
    epochs_ended: int = 0


class Subscription:
    """Keeps one queue consumed while there is a connection."""

    def __init__(self, settings: Settings, queue: Queue, link: Link, exchange: Exchange, *, shared: bool) -> None:
        self.queue = queue
        self.attempts = 0  # set-ups begun, ever
        self._settings = settings
        self._link = link
        self._exchange = exchange
        self._shared = shared
        self._random = random.Random()  # noqa: S311 - spreads attempts, hides nothing
        self._connection: pika.SelectConnection | None = None
        self._conversation: Conversation[Prepared] | None = None
        self._channel: Channel | None = None
        self._epoch = ""
        self._consumer_tag = ""
        self._began = 0.0  # when the set-up under way did
        self._retry_at: float | None = None
        self._failures = 0
        self._held = False
        self._created = False
        self._not_bound: str | None = None
        self._bound_at = 0.0
        # For the status, read by other threads: replaced as one.
        self._shown: tuple[bool, str | None, float] = (False, None, time.monotonic())
        # Delivery numbers of this epoch, and the times at which the newest was what.
        self._newest = 0
        self._acked = 0
        self._marks: deque[tuple[int, float]] = deque()
        self._delivered_before = 0
        self._asked_upto: int | None = None  # what the answer under way will say is processed

    # Read by any thread.

    @property
    def delivered(self) -> int:
        """How many deliveries ever came."""
        return self._delivered_before + self._newest

    @property
    def status(self) -> QueueStatus:
        """How the queue is served now."""
        consuming, reason, since = self._shown
        acked, unacked = self._acked, max(0, self._newest - self._acked)
        oldest = None
        if unacked:
            # The last look at which all that had come is acked now: what is unacked came after it.
            oldest = next((at for newest, at in reversed(tuple(self._marks)) if newest <= acked), since)
        return QueueStatus(self.queue.name, consuming, reason, since, unacked, oldest, self._created)

    @property
    def consuming(self) -> bool:
        """Whether deliveries may come."""
        return self._shown[0]

    # From connection to connection.

    def connected(self, connection: pika.SelectConnection) -> None:
        """Begin on a new connection."""
        self._connection = connection
        self._try()

    def disconnected(self, reason: str) -> None:
        """Forget the connection; the link tells of it."""
        self._connection = None
        self._forget()
        self._retry_at = None
        self._show(consuming=False, reason=reason)

    def ticked(self) -> None:
        """See that it is consuming, or about to be."""
        now = time.monotonic()
        if self._conversation is not None and self._channel is None:
            if now - self._began > SETUP_SECONDS:
                self._link.drop(f"no answer to the set-up of the queue {self.queue.name} in {SETUP_SECONDS:.0f} s")
        elif self._channel is not None:
            if not self._channel.is_open or (not self._held and self._consumer_tag not in self._channel.consumer_tags):
                self._lost(_VANISHED)
            else:
                self._mark(now)
                self._rebind(now)
        elif self._retry_at is None or now > self._retry_at + LONGEST_PAUSE_SECONDS:
            self._try()

    def hold(self) -> None:
        """Take no more deliveries; acks go on."""
        self._held = True
        if self._channel is not None and self._channel.is_open and self.consuming:
            self._channel.basic_cancel(self._consumer_tag, callback=lambda _: None)
        self._show(consuming=False, reason=_HELD)

    def retire(self) -> None:
        """Give the queue up: the rulebook names it no more. What was not acked goes back to it."""
        self._held = True
        self._close()
        self._show(consuming=False, reason=_HELD)

    # Setting up.

    def _try(self) -> None:
        self._retry_at = None
        if self._connection is None or not self._connection.is_open or self._held or self._conversation is not None:
            return
        self.attempts += 1
        self._began = time.monotonic()
        self._conversation = Conversation(self._connection, self._talk(), self._consume, self._refused)

    def _talk(self) -> Talk[Prepared]:
        prepared = yield from prepare(self._settings, self.queue)
        self._created = self._created or prepared.created
        if prepared.consumers and not self._shared:
            raise Refused(0, _SHARED)
        prefetch = self._settings.amqp_prefetch
        yield lambda channel, answer: channel.basic_qos(prefetch_count=prefetch, callback=answer)
        epoch = to_hex(uuid7(time.time_ns() // 1_000_000))
        take = self._taker(epoch)
        yield lambda channel, answer: channel.basic_consume(
            self.queue.name,
            take,
            consumer_tag=f"dispatcher-{epoch}",
            callback=partial(self._begin, channel, epoch, answer),
        )
        return prepared

    def _begin(self, channel: Channel, epoch: str, answer: Callable[[Any], None], frame: Any) -> None:
        """Open the epoch: deliveries follow at once, perhaps in the same read of the socket."""
        self._channel = channel
        self._epoch = epoch
        self._consumer_tag = f"dispatcher-{epoch}"
        self._exchange.live[epoch] = self
        channel.add_on_cancel_callback(lambda _: self._lost(_CANCELLED))
        answer(frame)

    def _consume(self, _channel: Channel, prepared: Prepared) -> None:
        self._mark(time.monotonic())
        self._show(consuming=True, reason=None)
        log.info("queue.consuming", queue=self.queue.name, created=prepared.created)
        self._note_binding(prepared.not_bound)

    def _note_binding(self, not_bound: str | None) -> None:
        self._bound_at = time.monotonic()
        if not_bound is not None and not_bound != self._not_bound:
            log.warning(
                "queue.not_bound",
                queue=self.queue.name,
                exchange=self._settings.amqp_exchange,
                reason=not_bound,
            )
        self._not_bound = not_bound

    def _rebind(self, now: float) -> None:
        """Make sure of the binding, and of being alone, now and then: on a channel for that, as a refusal closes it."""
        connection = self._connection
        pause = REBIND_SECONDS if self._not_bound is None else REFUSED_REBIND_SECONDS
        if connection is None or self._held or now - self._bound_at < pause:
            return
        self._bound_at = now

        def looked(channel: Channel, found: Prepared) -> None:
            channel.close()
            self._note_binding(found.not_bound)
            if found.consumers > 1 and self.consuming and not self._shared:
                self._lost(_SHARED)  # one of the two will find the queue free, and stay

        Conversation(connection, look_after(self._settings, self.queue), looked, lambda _: None)

    def _refused(self, refused: Refused) -> None:
        if refused.code == 0:
            self._lost(refused.text)
        elif refused.code == 404 and not self._settings.amqp_declare and not self.consuming:
            self._lost(f"the queue does not exist yet, and DISPATCHER_AMQP_DECLARE is off ({refused})")
        else:
            self._lost(f"the broker refused ({refused})")

    def _lost(self, reason: str) -> None:
        """Give up this channel, and try again after a pause: longer each time, never the same for two workers."""
        if self.consuming and time.monotonic() - self._shown[2] > LONGEST_PAUSE_SECONDS:
            self._failures = 0  # it held: begin with short pauses
        self._close()
        if self._held:
            return
        if self._shown[:2] != (False, reason):
            log.warning("queue.lost", queue=self.queue.name, reason=reason)
        self._show(consuming=False, reason=reason)
        pause = self._random.uniform(0.5, min(LONGEST_PAUSE_SECONDS, 2.0 ** min(self._failures, 10)))
        self._failures += 1
        self._retry_at = time.monotonic() + pause
        self._link.call_later(pause, self._try)

    def _close(self) -> None:
        channel = self._channel
        self._forget()
        if channel is not None and channel.is_open:
            channel.close()

    def _forget(self) -> None:
        """End the epoch. What was unacked is in the queue again, or soon will be."""
        self._exchange.epochs_ended += 1
        self._exchange.depth = None
        if self._conversation is not None:
            self._conversation.abandon()
        self._exchange.live.pop(self._epoch, None)
        self._conversation = self._channel = self._asked_upto = None
        self._epoch = self._consumer_tag = ""
        self._delivered_before += self._newest
        self._newest = self._acked = 0
        self._marks.clear()

    def _show(self, *, consuming: bool, reason: str | None) -> None:
        was, _, since = self._shown
        self._shown = (consuming, reason, since if was == consuming else time.monotonic())

    def _mark(self, now: float) -> None:
        while len(self._marks) > 1 and self._marks[1][0] <= self._acked:
            self._marks.popleft()
        if not self._marks or self._marks[-1][0] != self._newest or self._newest == self._acked:
            self._marks.append((self._newest, now))

    # Deliveries and acks.

    def _taker(self, epoch: str) -> Callable[[Any, Any, Any, bytes], None]:
        """Return what is called for each delivery: as little as can be, thousands of times a second."""
        buffer, wake = self._exchange.buffer, self._exchange.wake
        kind, queue = self.queue.kind, self.queue.name
        longest = 2 * self._settings.max_event_bytes

        def take(_channel: Any, method: Any, properties: Any, body: bytes) -> None:
            message_id = properties.message_id
            if not isinstance(message_id, str) or not message_id:  # bytes, when it is no UTF-8
                message_id = None
            if len(body) > longest:
                body = body[:longest]  # it is refused anyway; enough is kept to see why
            tag = method.delivery_tag
            buffer.append(Delivery(body, "amqp", message_id, method.redelivered, kind, queue, epoch, tag))
            self._newest = tag
            if len(buffer) == 1:  # looked at after the append: a worker that empties it in between needs no waking
                wake()

        return take

    def ack(self, epoch: str, upto: int | None, singly: Sequence[int], settled: int, count: int) -> None:
        """Ack `count` deliveries, after which everything up to `settled` is; of an old epoch they are dropped."""
        channel = self._channel
        if channel is None or epoch != self._epoch or not channel.is_open:
            self._exchange.stale_acks += count
            return
        if upto is not None:
            channel.basic_ack(upto, multiple=True)
        for tag in singly:
            channel.basic_ack(tag)
        self._acked = settled
        if self._asked_upto is None:
            self._ask_whether_processed(channel, epoch)

    def _ask_whether_processed(self, channel: Channel, epoch: str) -> None:
        self._asked_upto = self._acked
        channel.basic_qos(
            prefetch_count=self._settings.amqp_prefetch, callback=lambda _: self._processed(channel, epoch)
        )

    def _processed(self, channel: Channel, epoch: str) -> None:
        upto = self._asked_upto
        if epoch != self._epoch or upto is None:
            return
        self._exchange.processed.append((epoch, upto))
        self._asked_upto = None
        if self._acked > upto and channel.is_open:
            self._ask_whether_processed(channel, epoch)

    def ask_depth(self, answer: Callable[[int], None]) -> None:
        """Ask how much is ready in the queue.

        On the consuming channel: what the queue had sent before its answer arrives before it.
        """
        if self._channel is not None and self._channel.is_open:
            self._channel.queue_declare(
                self.queue.name, passive=True, callback=lambda frame: answer(frame.method.message_count)
            )
