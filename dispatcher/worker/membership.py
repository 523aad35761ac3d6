"""A worker among others that share a store: it shows that it is alive, and takes over from those that are not."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

from dispatcher.clock import Clock
from dispatcher.engine.records import RunKey
from dispatcher.errors import DispatcherError
from dispatcher.settings import Settings
from dispatcher.telemetry import log
from dispatcher.worker.guard import slots_of
from dispatcher.worker.seat import Seat

if TYPE_CHECKING:
    from dispatcher.sources.amqp.consumer import Consumer
    from dispatcher.store.postgres.session import Patience
    from dispatcher.store.postgres.store import PostgresStore
    from dispatcher.worker.relay import Relay

# After a look that found nothing new or due, how long the next one is spared, in seconds.
_LOOK_PAUSE = 0.02
# How soon a drain looks again for a silent worker that it may take over from by then, in seconds.
_LOOK_AGAIN = 1.0


class Membership:
    """This worker's seat and lease.

    `relay` is told what dead workers were publishing, once there is one; `consumer` is asked which channels are open.
    """

    def __init__(self, settings: Settings, store: PostgresStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._seat = Seat(settings.state, store.facts["installation"][:8], settings.worker)
        self._name = f"worker {self._seat.index}"
        self._next_look = 0.0
        self.relay: Relay | None = None
        self.consumer: Consumer | None = None
        self._epochs: frozenset[str] = frozenset()
        # Runs whose call was under way in a worker that is gone: this worker's now, and yet to be settled.
        self.abandoned: deque[RunKey] = deque()

    @property
    def slots(self) -> Path:
        """Where the crash guard notes what this worker has in hand."""
        return self._seat.slots

    @property
    def patience(self) -> Patience | None:
        """Asked while the fate of a commit is being found out: whether to go on; see `Session.patience`."""
        return self._store.session.patience

    @patience.setter
    def patience(self, patience: Patience) -> None:
        self._store.session.patience = patience

    def join(self, *, drain: bool) -> list[int]:
        """Enter the workers, and take over from those that died on this machine.

        Return the `seq` of each event that those of other seats had in hand; `recovered` says that they are dealt with.
        """
        suspects = [seq for path in self._seat.slots_left for seq in slots_of(path)]
        # A drain ends at the first look that finds nothing, so it spares none.
        number = self._store.join(self._name, look_pause=0.0 if drain else _LOOK_PAUSE)
        self._take_over(self._seat.died)
        self._seat.note(number)
        log.info("lease.held", number=number, seat=self._seat.index)
        return suspects

    def recovered(self) -> None:
        """What those had in hand that died on this machine is dealt with: their seats are free."""
        self._seat.free_left()

    def may_end(self) -> bool:
        """Whether a drain that finds nothing more may end; if not, it is to look again.

        It must have looked into all days, and a worker that seems dead must have been taken over from.
        """
        if self._store.look_everywhere():
            return False
        silent = self._store.anyone_silent()
        if silent:
            self._next_look = min(self._next_look, self._clock.monotonic() + _LOOK_AGAIN)
        return not silent

    def goes_on(self) -> None:
        """There was something to do: what is left is most likely of the same days."""
        self._store.look_narrowly()

    def tick(self) -> None:
        """Show that this worker is alive, and look for dead ones, when it is time. Raises LeaseLost, StoreUnusable."""
        self._store.lease.beat()
        if self.consumer is not None and (epochs := self.consumer.epochs) != self._epochs:
            # Others may be waiting to hear that a channel has ended, to which what they got again belongs.
            self._store.keep_channels(epochs)
            self._epochs = epochs
        if self._clock.monotonic() >= self._next_look:
            self._take_over([])

    @property
    def next_tick(self) -> float:
        """In how many seconds there is something to do at the latest."""
        return min(self._store.lease.beat_every, max(0.0, self._next_look - self._clock.monotonic()))

    @property
    def descriptor(self) -> int | None:
        """Where something can be read once another process has written what workers are to take."""
        return self._store.descriptor

    def heard(self) -> bool:
        """Whether another process has done so since this was asked last."""
        return self._store.heard()

    def leave(self, *, clean: bool) -> None:
        """Leave the workers; what is not settled is taken over by the next one that looks."""
        clean = clean and not self.abandoned
        try:
            self._store.lease.resign(clean=clean)
        except DispatcherError as error:
            # The lease runs out by itself.
            log.warning("lease.not_returned", error=str(error))
            clean = False
        self._seat.leave(clean=clean)

    def _take_over(self, surely: list[int]) -> None:
        self._next_look = self._clock.monotonic() + self._store.lease.look_every
        settle = self.relay.settle_left if self.relay is not None else None
        dead, runs = self._store.take_over(surely, settle)
        self.abandoned.extend(runs)
        if dead or runs:
            log.warning("worker.taken_over", workers=dead, calls=len(runs))
