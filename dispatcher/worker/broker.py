"""What ties a worker to its broker: the consumer, the publisher and the relay, started, told of reloads, and stopped.

Only a worker with a broker imports this: pika takes its time to load.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from dispatcher.clock import Clock
from dispatcher.engine.counts import Counts
from dispatcher.errors import BrokerUnreachable, CannotStart, Contended, StoreUnusable
from dispatcher.plugins.services import Service
from dispatcher.rules.plan import Plan
from dispatcher.senders.vumi import VumiSender
from dispatcher.settings import Settings
from dispatcher.sources.amqp.consumer import Consumer, Queue
from dispatcher.sources.amqp.publisher import Publisher
from dispatcher.telemetry import log
from dispatcher.worker.relay import Relay

if TYPE_CHECKING:
    from dispatcher.store.ports import Store
    from dispatcher.worker.batches import Batches

# How long a drain waits for a broker that it cannot reach, or that does not answer how much there is.
_PATIENCE_SECONDS: Final = 15.0
_MOST_RESULTS: Final = 10_000


class Broker:
    """The broker as one worker sees it."""

    def __init__(
        self,
        settings: Settings,
        plan: Plan,
        clock: Clock,
        *,
        totals: Counts,
        wake: Callable[[], None],
        shared: bool = False,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self.consumer = Consumer(settings, queues_of(settings, plan), wake, shared=shared)
        self.publisher = Publisher(settings, wake)
        self.relay = Relay(self.publisher, clock, totals)
        self._kept_since: float | None = None
        self._batches: Batches | None = None

    def start(self, store: Store, batches: Batches, by_lane: Mapping[str, Service]) -> None:
        """Settle what an earlier worker left in flight, then connect."""
        self.relay.configure(by_lane)
        self.relay.recover(store)
        batches.consumer, batches.relay = self.consumer, self.relay
        self._batches = batches
        self.publisher.start()
        self.consumer.start()

    def reloaded(self, plan: Plan, by_lane: Mapping[str, Service]) -> None:
        """Go by another rulebook: other rates, other transports."""
        self.relay.configure(by_lane)
        self.consumer.replace_queues(queues_of(self._settings, plan))

    def drained(self, store: Store) -> bool:
        """Whether nothing is left that could be taken from the broker, or handed to it, now.

        Raises BrokerUnreachable when something has kept the broker from telling for too long.
        """
        to_send = self.relay.has_due(store)
        obstacle = self._obstacle(to_send=to_send)
        if obstacle is None:
            self._kept_since = None
            return self.consumer.waiting() == 0 and not to_send
        now = self._clock.monotonic()
        if self._kept_since is None:
            self._kept_since = now
        if now - self._kept_since > _PATIENCE_SECONDS:
            raise BrokerUnreachable(
                f"the broker at {self._settings.amqp_url_shown} does not serve: {obstacle}.",
                hint="What was taken in is safe in the store.",
            )
        return False

    def _obstacle(self, *, to_send: bool) -> str | None:
        """Say what keeps events from coming in or, where there are any, messages from going out."""
        consumer, publisher = self.consumer.status, self.publisher.status
        if consumer.link.state != "up":
            return consumer.link.reason or "no answer yet"
        for queue in consumer.queues:
            # A transport that has never run has no queue yet.
            if not queue.consuming and queue.name in self._settings.amqp_queue_names:
                return f"queue {queue.name}: {queue.reason or 'not set up yet'}"
        if to_send and publisher.link.state != "up":
            return publisher.link.reason or "no answer yet"
        if to_send and publisher.link.blocked_since is not None:
            return "it is short of memory or disk, and takes no messages"
        return None

    def stop(self, patience_seconds: float) -> None:
        """Close both connections: acks are flushed, and confirms waited for so long."""
        self.consumer.stop(patience_seconds)
        self.publisher.stop(patience_seconds)

    def settle(self, store: Store) -> None:
        """Record what both were told while they stopped: acks that were processed, and fates."""
        acked = dict(self._batches.acked if self._batches is not None else {}) | dict(self.consumer.surely_acked())
        try:
            with store.transaction() as transaction:
                for epoch, tag in acked.items():
                    transaction.forget_acked(epoch, tag)
                transaction.commit()
            while self.relay.wants_turn():
                with store.transaction() as transaction:
                    self.relay.settle(transaction, _MOST_RESULTS)
                    transaction.commit()
                self.relay.committed(store.prove)
        except (Contended, StoreUnusable) as error:
            # The next worker finds rows that are `sending`, and takes their fate for unknown.
            log.error("store.unusable", error=str(error))


def queues_of(settings: Settings, plan: Plan) -> list[Queue]:
    """Return the queues to consume: those of the settings, and the reports of each Vumi sender's transport.

    Raises CannotStart where one queue would be both: of what it brings, nobody could tell which is which.
    """
    queues = [Queue(name, "event") for name in settings.amqp_queue_names]
    senders = [sender for sender in plan.senders.values() if isinstance(sender, VumiSender)]
    transports = {sender.transport_name for sender in senders if sender.reports}
    for name in sorted(transports):
        if f"{name}.event" in settings.amqp_queue_names:
            raise CannotStart(
                f"the queue {name}.event is named for events, and is where the transport {name!r} reports to.",
                hint="Leave it out of DISPATCHER_AMQP_QUEUES, or set `reports: false` on its senders.",
            )
    return [*queues, *(Queue(f"{name}.event", "transport_event") for name in sorted(transports))]
