"""What a worker tells of itself while it runs: the pulse of its loop, what is wrong since when, and who may ask."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dispatcher.clock import Clock
from dispatcher.errors import StoreUnusable
from dispatcher.settings import Settings
from dispatcher.store.gauges import Gauges, fresh_gauges
from dispatcher.store.ports import Store
from dispatcher.worker.batches import Batches
from dispatcher.worker.calls import Calls
from dispatcher.worker.health import Pulse, Snapshot, is_live, is_ready
from dispatcher.worker.rulebooks import Rulebooks

if TYPE_CHECKING:
    from dispatcher.worker.broker import Broker
    from dispatcher.worker.listener import Listener


class Status:
    """The loop writes, the listener's threads read: each value is replaced as a whole, so that no lock is needed."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        clock: Clock,
        *,
        batches: Batches,
        calls: Calls,
        rulebooks: Rulebooks,
        broker: Broker | None,
    ) -> None:
        self._address = settings.http_address
        self._clock = clock
        self._batches = batches
        self._calls = calls
        self._rulebooks = rulebooks
        self._broker = broker
        self._gauges = fresh_gauges(settings, clock)
        self._listener: Listener | None = None
        self._started_at = clock.monotonic()
        self._draining_since: float | None = None
        self._paused: tuple[str, float] | None = None
        self._unusable: tuple[str, float] | None = None
        self.pulse = Pulse(clock)

    def start(self) -> None:
        """Answer on the address of the settings, if there is one. Raises CannotStart when it is taken."""
        if self._address is None:
            return
        from importlib.metadata import version  # noqa: PLC0415 - only who is scraped pays for these

        from dispatcher.worker.listener import Listener  # noqa: PLC0415
        from dispatcher.worker.metrics import Metrics, Sources  # noqa: PLC0415

        sources = Sources(self._batches.totals, self._gauges.read, self.snapshot, version("event-dispatcher"))
        metrics = Metrics(sources, self._clock)
        self._listener = Listener(
            self._address,
            # Whether the loop turns is not to depend on whether a server answers.
            live=lambda: is_live(self.snapshot(count=False)),
            ready=lambda: is_ready(self.snapshot()),
            metrics=metrics.render,
        )
        self._listener.start()

    def stop(self) -> None:
        """Answer no more."""
        if self._listener is not None:
            self._listener.stop()

    # What the loop tells.

    def drains(self) -> None:
        """Nothing more is taken."""
        self._draining_since = self._clock.monotonic()

    def pauses(self, reason: str | None) -> None:
        """The sources are paused for this reason; None: they are not."""
        self._paused = self._since(self._paused, reason)

    def store_fails(self, reason: str | None) -> None:
        """The store cannot be used for this reason; None: it can."""
        if reason is not None or self._unusable is not None:
            self._unusable = self._since(self._unusable, reason)

    def _since(self, before: tuple[str, float] | None, reason: str | None) -> tuple[str, float] | None:
        if reason is None:
            return None
        return reason, self._clock.monotonic() if before is None else before[1]

    # What others ask.

    def snapshot(self, *, count: bool = True) -> Snapshot:
        """Return how the worker is now; any thread. Without `count`, nothing is asked of the store."""
        paused, unusable, broker = self._paused, self._unusable, self._broker
        due, stuck = self._outbox_ages() if count else (None, None)
        return Snapshot(
            now=self._clock.monotonic(),
            at=self._clock.now(),
            started_at=self._started_at,
            turn_due=self.pulse.due,
            calls=self._calls.under_way,
            draining_since=self._draining_since,
            paused=paused and paused[0],
            paused_since=paused and paused[1],
            store_unusable=unusable and unusable[0],
            store_unusable_since=unusable and unusable[1],
            consumer=broker.consumer.status if broker is not None else None,
            publisher=broker.publisher.status if broker is not None else None,
            oldest_outbox_due_seconds=due,
            outbox_stuck_seconds=stuck,
        )

    def _outbox_ages(self) -> tuple[float | None, float | None]:
        """Return for how long a row has been due, and waited in vain; what a rate holds back is no fault."""
        try:
            found: Gauges = self._gauges.read()
        except StoreUnusable:
            return None, None
        rated = {name for name, service in self._rulebooks.connections.by_lane.items() if service.rate is not None}
        due = [seconds for lane, seconds in found.outbox_due_seconds.items() if lane not in rated]
        waiting = [seconds for lane, seconds in found.outbox_ready_seconds.items() if lane not in rated]
        stuck = None
        if waiting and self._broker is not None:
            confirmed_at = self._broker.relay.confirmed_at or self._started_at
            stuck = min(max(waiting), self._clock.monotonic() - confirmed_at)
        return max(due, default=None), stuck
