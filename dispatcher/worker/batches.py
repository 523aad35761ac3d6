"""Take work, advance it, commit it, then let the world know: one turn of the worker's loop.

The order is the guarantee: nothing is acknowledged and no call starts before the commit has returned.
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from dispatcher import failpoints
from dispatcher.clock import Clock
from dispatcher.engine.batch import Batch
from dispatcher.engine.call import CallReturn
from dispatcher.engine.counts import Counts
from dispatcher.engine.intake import Delivery, Receipt
from dispatcher.engine.machine import Engine
from dispatcher.engine.records import OPEN_LANE, Changes, RunKey, RunRow, as_text
from dispatcher.errors import Contended, DispatcherError, RowsRefused
from dispatcher.events.identity import uuid7
from dispatcher.store.ports import Store, Transaction
from dispatcher.telemetry import log
from dispatcher.worker.calls import Calls
from dispatcher.worker.inbox import Inbox
from dispatcher.worker.work import Taken, Work

if TYPE_CHECKING:
    from dispatcher.sources.amqp.consumer import Consumer
    from dispatcher.worker.relay import Relay

# A batch is to stay below its time budget by its size; this is how fast the estimate follows what is measured, and how
# much of the budget is planned with: what does not fit after all is written as due, and read again at once.
_SMOOTHING = 0.2
_PLANNED = 0.8
# How long deliveries are left alone, in seconds, when another worker was faster for the second time, and at the most.
_FIRST_CONTENTION = 0.02
_LONGEST_CONTENTION = 1.0
_LONGEST_WAIT = 0.2
_MOST_ABANDONED = 128
# How often acks are recorded where nothing else is to be, in seconds.
_TELL_EVERY = 1.0


class Batches:
    """Runs the batches of one worker over one store."""

    def __init__(self, store: Store, engine: Engine, calls: Calls, inbox: Inbox, clock: Clock) -> None:
        self._store = store
        self._engine = engine
        self._calls = calls
        self._inbox = inbox
        self._clock = clock
        self._seconds_each = 0.0
        self.totals = Counts()
        self._queued: dict[str, int] | None = None
        # What ties the worker to a broker, when it has one.
        self.consumer: Consumer | None = None
        self.relay: Relay | None = None
        # Up to where the broker has the acks of each epoch, as far as that is not on record yet.
        self.acked: dict[str, int] = {}
        self._published_last = False
        # Runs whose call was under way in a worker that is gone, to be settled.
        self.abandoned: deque[RunKey] = deque()
        # How often in a row another worker was faster, and until when deliveries are left alone for that.
        self._contended = 0
        self._no_deliveries_until = 0.0
        self._next_telling = 0.0

    @property
    def room(self) -> int:
        """How many things the next batch should take to stay within its time."""
        budget = self._engine.budget
        if not self._seconds_each:
            return budget.events
        return max(8, min(budget.events, int(_PLANNED * budget.seconds / self._seconds_each)))

    @property
    def queued(self) -> dict[str, int]:
        """How many calls wait in the store for a slot, by lane; counted when asked for, once they may have changed.

        Not right after the commit: whoever waits for it must not hear that it failed because the count did.
        """
        if self._queued is None:
            self._queued = self._store.queued_calls()
        return self._queued

    def count_anew(self) -> None:
        """Somebody else changed what waits."""
        self._queued = None
        if self.relay is not None:
            self.relay.look_anew()

    def turn(self, *, intake: bool, due: bool) -> bool:
        """Run one batch; False when there was nothing to do. `intake` and `due` say what may be taken."""
        room = self.room
        returns = self._calls.returns(room)
        if returns:
            failpoints.reach("call.after_return")
        # Who publishes through the socket and what the broker delivers take turns.
        broker_waits = self.consumer is not None and self._published_last and self.consumer.has_deliveries
        publishing = self._inbox.next_publish() if intake and not broker_waits else None
        self._published_last = publishing is not None
        told = self.relay is not None and self.relay.wants_turn()
        if publishing is None and not returns and not told and not (intake or due):
            return False
        taken = Taken(publishing.deliveries if publishing else (), from_broker=publishing is None)
        try:
            worked = self._take(room, taken, returns, intake=intake, due=due)
        except DispatcherError as error:
            # Any other exception ends the worker, as a crash does: its event stays in the slot, and is isolated.
            self._engine.guard.leave()
            if publishing is not None:
                publishing.fail(error)
            elif self.consumer is not None:
                # Halves of a refused batch may have been committed before the store failed: those are done.
                done = len(taken.receipts)
                if done:
                    self.consumer.ack(taken.deliveries[:done])
                self.consumer.put_back(taken.deliveries[done:])
            if not isinstance(error, Contended) or publishing is not None:
                raise
            self._was_contended(error, deliveries=bool(taken.deliveries))
            return True
        self._contended = 0
        if not worked and publishing is None:
            return False
        if publishing is not None:
            publishing.reply(taken.receipts)
        elif self.consumer is not None and taken.deliveries:
            failpoints.reach("delivery.before_ack")
            self.consumer.ack(taken.deliveries)
        for returned in returns:
            self._calls.release(returned.call.lane)
        self._calls.forget(len(returns))
        return True

    def store_first(self, seconds: float) -> None:
        """For so long, let no batch advance what it stores: each event is known before it is in hand."""
        self._engine.store_first_until = self._clock.monotonic() + seconds

    def alone(self, take: Callable[[Transaction], Work]) -> bool:
        """Run a batch with nothing else in it than what `take` takes; False when that is nothing."""
        while True:
            work = Work()
            try:
                with self._transaction() as transaction:
                    work = take(transaction)
                    if work.size:
                        self._run(transaction, work)
            except RowsRefused as refused:
                self._seek_culprit(work, refused, [])
            except Contended as contended:
                self._engine.guard.leave()
                self._was_contended(contended, deliveries=False)
                continue
            return bool(work.size)

    @contextmanager
    def _transaction(self) -> Iterator[Transaction]:
        """Open a transaction of the store; the relay learns of one that was rolled back."""
        try:
            with self._store.transaction() as transaction:
                yield transaction
        except BaseException:
            if self.relay is not None:
                self.relay.rolled_back()
            raise

    def _was_contended(self, contended: Contended, *, deliveries: bool) -> None:
        """Another worker was faster: what was taken is taken anew. Deliveries wait for a moment, if they are the cause.

        Whoever met another one again and again has work that the other one is at; the rest need not wait for that.
        """
        self.totals.contended += 1
        self._contended += 1
        log.debug("batch.contended", in_a_row=self._contended, reason=str(contended))
        if self._contended < 2:
            return
        pause = min(_LONGEST_CONTENTION, _FIRST_CONTENTION * 2.0 ** min(self._contended, 16))
        pause *= random.uniform(0.5, 1.0)  # noqa: S311 - jitter, no secret
        if deliveries:
            self._no_deliveries_until = self._clock.monotonic() + pause
        else:
            time.sleep(min(pause, _LONGEST_WAIT))

    def _take(self, room: int, taken: Taken, returns: Sequence[CallReturn], *, intake: bool, due: bool) -> bool:
        """Run one batch over what was handed in, what the sources bring and what the store has; False for nothing."""
        work, abandoned = Work(), self._next_abandoned() if due else []
        try:
            with self._kept(abandoned), self._transaction() as transaction:
                settled = self._settle(transaction, room, due=due)
                # Turns by weight: what came back goes first, then half of the room for what is due, a quarter at
                # least for what is stored as new and for what comes in; what one input leaves free is the next one's.
                rows = self._due(transaction, max(1, room // 2)) if due else []
                left = max(room // 4, room - len(returns) - len(rows) - len(taken.deliveries))
                events = transaction.take_new(left) if intake else []
                if intake and taken.from_broker and self.consumer is not None and self._may_take:
                    taken.deliveries = self.consumer.take(max(room // 4, left - len(events)))
                left_behind = self._take_abandoned(transaction, abandoned)
                work = Work(taken.deliveries, events, rows, returns, left_behind)
                if work.size:
                    taken.receipts = self._run(transaction, work)
                elif settled:
                    transaction.commit()
                    self._relayed()
                if work.size or settled:
                    self.acked.clear()
                return bool(work.size or settled)
        except RowsRefused as refused:
            with self._kept(abandoned):
                self._seek_culprit(work, refused, taken.receipts)
            return True

    @contextmanager
    def _kept(self, abandoned: Sequence[RunKey]) -> Iterator[None]:
        """Put these runs back where something kept them from being settled; those that were settled run no more."""
        try:
            yield
        except BaseException:
            self.abandoned.extendleft(reversed(abandoned))
            raise

    @property
    def _may_take(self) -> bool:
        return not self._no_deliveries_until or self._clock.monotonic() >= self._no_deliveries_until

    def _next_abandoned(self) -> list[RunKey]:
        return [self.abandoned.popleft() for _ in range(min(_MOST_ABANDONED, len(self.abandoned)))]

    def _take_abandoned(self, transaction: Transaction, keys: Sequence[RunKey]) -> list[RunRow]:
        """Take runs whose call was under way in a worker that is gone, and is not under way here again by now."""
        if not keys:
            return []
        here = self._calls.runs_under_way
        rows = transaction.runs(key for key in keys if key[0] not in here)
        return [row for row in rows if row.values["state"] == "running"]

    def _settle(self, transaction: Transaction, room: int, *, due: bool) -> bool:
        """Record what the broker has told since the last batch, and claim what is due to be handed to it."""
        if self.consumer is not None:
            self.acked.update(self.consumer.surely_acked())
        # Others may wait to hear of them, so they are recorded when there is nothing else to record, too.
        told = bool(self.acked) and self._store.shared and self._clock.monotonic() >= self._next_telling
        if told:
            self._next_telling = self._clock.monotonic() + _TELL_EVERY
        settled = int(told)
        if self.acked or (self.relay is not None and self.relay.wants_turn()):
            with transaction.together():
                for epoch, tag in self.acked.items():
                    transaction.forget_acked(epoch, tag)
                if self.relay is not None:
                    settled += self.relay.settle(transaction, room)
        if self.relay is None:
            return told
        return bool(self.relay.take_due(transaction, room) if due else 0) or settled > 0

    def _relayed(self) -> None:
        """The commit has returned: what the broker told is on record, and what was claimed may go."""
        if self.relay is not None:
            self.relay.committed(self._store.prove)

    def _due(self, transaction: Transaction, room: int) -> list[RunRow]:
        now = as_text(self._clock.now())
        rows: list[RunRow] = []
        # Calls that wait go before runs that may come to a call, or those would take every slot that comes free.
        for lane in self.queued:
            free = min(self._calls.free(lane), room)
            if free:
                rows += transaction.take_due(lane, now, free)
        return rows + transaction.take_due(OPEN_LANE, now, room)

    def _run(self, transaction: Transaction, work: Work) -> list[Receipt]:
        began = self._clock.monotonic()
        batch = self._engine.begin(transaction)
        try:
            # What is stored goes before what is handed in, or busy publishers would take every turn.
            batch.start(work.events)
            receipts = batch.admit(work.deliveries) if work.deliveries else []
            if work.due:
                batch.resume(work.due)
            if work.returns:
                rows = transaction.runs([returned.call.run_key for returned in work.returns])
                batch.finish(rows, work.returns)
            if work.abandoned:
                batch.recover(work.abandoned)
            batch.advance()
            advanced = self._clock.monotonic()
            if self.relay is not None and batch.overlay.changes.outbox:
                self.relay.claim(batch.overlay.changes.outbox)
            transaction.flush(batch.overlay.changes)
            self._prove_channels(work.deliveries)
            transaction.commit()
        except BaseException:
            batch.abandon()
            raise
        transaction.flushed(batch.overlay.changes)
        self._after_commit(batch, work)
        self.totals.committed(work.size, self._clock.monotonic() - began)
        each = (advanced - began) / max(1, batch.counts.events + len(work.due) + len(work.returns))
        self._seconds_each += _SMOOTHING * (each - self._seconds_each) if self._seconds_each else each
        return receipts

    def _prove_channels(self, deliveries: Sequence[Delivery]) -> None:
        """Raise Contended when a channel has ended that brought one of these: another worker may have it by now."""
        if self._store.shared and self.consumer is not None:
            epochs = self.consumer.epochs
            if any(delivery.epoch is not None and delivery.epoch not in epochs for delivery in deliveries):
                raise Contended("the channel ended that brought a part of the batch: that part comes again.")

    def _after_commit(self, batch: Batch, work: Work) -> None:
        self._relayed()
        for call in batch.calls:
            failpoints.reach("call.before_start")
            self._store.prove()
            self._calls.start(call)
        if batch.queued_calls or work.due or work.abandoned:
            self._queued = None
        batch.counts.wrote(batch.overlay.changes)
        self.totals.add(batch.counts)

    # A batch that the store refuses: halve, repeat, down to the culprit.

    def _seek_culprit(self, work: Work, refused: RowsRefused, receipts: list[Receipt]) -> None:
        log.error("batch.refused", size=work.size, error=str(refused))
        self._halve(work, receipts)

    def _halve(self, work: Work, receipts: list[Receipt]) -> None:
        """Commit what can be; `receipts` grows with each commit, so that it tells how far that went."""
        if work.size == 1:
            receipts += self._park(work)
            return
        for half in work.halves():
            try:
                with self._transaction() as transaction:
                    told = self._run(transaction, _still_there(transaction, half))
            except RowsRefused:
                self._halve(half, receipts)
            else:
                receipts += told

    def _park(self, work: Work) -> list[Receipt]:
        """Make a dead letter of the one thing whose rows the store refuses."""
        now = self._clock.now()
        at = as_text(now)
        changes = Changes()
        detail = "the store refuses what this leads to; the worker's log tells what the database says"
        receipts: list[Receipt] = []
        account, event_id, run_id, body = None, None, None, None
        with self._transaction() as transaction:
            work = _still_there(transaction, work)
            if not work.size:
                return receipts  # another worker has it by now
            if work.deliveries:
                kind, body = "delivery", work.deliveries[0].body
                receipts.append(Receipt("refused", code="failed", detail=detail))
            elif work.events:
                stored, kind = work.events[0], "event"
                event = stored.event
                account, event_id = event.account_key, event.event_id
                changes.event_states.append(
                    (
                        "dead",
                        self._engine.plan.digest,
                        event.conversation_type,
                        event.subject,
                        detail,
                        stored.seq,
                        stored.received_on,
                    )
                )
            else:
                rows = [*work.due, *work.abandoned]
                rows += transaction.runs([returned.call.run_key for returned in work.returns])
                values, kind = rows[0].values, "run"
                account, event_id, run_id = values["account_key"], values["event_id"], values["run_id"]
                changes.unbound_runs.append(("failed", detail, at, values["seq"], values["received_on"]))
            self.totals.parked("failed")
            dead_id = uuid7(int(now.timestamp() * 1000))
            changes.dead_letters.append((dead_id, kind, "failed", detail, account, event_id, run_id, body, at))
            transaction.flush(changes)
            transaction.commit()
        return receipts


def _still_there(transaction: Transaction, work: Work) -> Work:
    """Return what of the work nobody else has taken since the transaction that took it was rolled back."""
    return Work(
        work.deliveries,
        transaction.still_new(work.events),
        transaction.still_there(work.due),
        work.returns,
        transaction.still_there(work.abandoned),
    )
