"""Take work, advance it, commit it, then let the world know: one turn of the worker's loop.

The order is the guarantee: nothing is acknowledged and no call starts before the commit has returned.
"""

from __future__ import annotations

from collections.abc import Sequence

from dispatcher import failpoints
from dispatcher.clock import Clock
from dispatcher.engine.batch import Batch, CallReturn, Counts
from dispatcher.engine.intake import Delivery, Receipt
from dispatcher.engine.machine import Engine
from dispatcher.engine.records import OPEN_LANE, Changes, RunRow, as_text
from dispatcher.errors import DispatcherError, RowsRefused
from dispatcher.events.identity import uuid7
from dispatcher.store.sqlite import SqliteStore, SqliteTransaction
from dispatcher.telemetry import log
from dispatcher.worker.calls import Calls
from dispatcher.worker.inbox import Inbox
from dispatcher.worker.work import Work

# A batch is to stay below its time budget by its size; this is how fast the estimate follows what is measured.
_SMOOTHING = 0.2


class Batches:
    """Runs the batches of one worker over one store."""

    def __init__(self, store: SqliteStore, engine: Engine, calls: Calls, inbox: Inbox, clock: Clock) -> None:
        self._store = store
        self._engine = engine
        self._calls = calls
        self._inbox = inbox
        self._clock = clock
        self._seconds_each = 0.0
        self.totals = Counts()
        self._queued: dict[str, int] | None = None

    @property
    def room(self) -> int:
        """How many things the next batch should take to stay within its time."""
        budget = self._engine.budget
        if not self._seconds_each:
            return budget.events
        return max(8, min(budget.events, int(budget.seconds / self._seconds_each)))

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

    def turn(self, *, intake: bool, due: bool) -> bool:
        """Run one batch; False when there was nothing to do. `intake` and `due` say what may be taken."""
        room = self.room
        returns = self._calls.returns(room)
        if returns:
            failpoints.reach("call.after_return")
        publishing = self._inbox.next_publish() if intake else None
        if publishing is None and not returns and not (intake or due):
            return False
        deliveries = publishing.deliveries if publishing else ()
        try:
            receipts = self._take(room, deliveries, returns, intake=intake, due=due)
        except DispatcherError as error:
            # Any other exception ends the worker, as a crash does: its event stays in the slot, and is isolated.
            self._engine.guard.leave()
            if publishing is not None:
                publishing.fail(error)
            raise
        if receipts is None:
            return False
        if publishing is not None:
            publishing.reply(receipts)
        for returned in returns:
            self._calls.release(returned.call.lane)
        self._calls.forget(len(returns))
        return True

    def store_first(self, seconds: float) -> None:
        """For so long, let no batch advance what it stores: each event is known before it is in hand."""
        self._engine.store_first_until = self._clock.monotonic() + seconds

    def alone(self, work: Work) -> None:
        """Run a batch with nothing else in it."""
        try:
            with self._store.transaction() as transaction:
                self._run(transaction, work)
        except RowsRefused as refused:
            self._seek_culprit(work, refused)

    def _take(
        self, room: int, deliveries: Sequence[Delivery], returns: Sequence[CallReturn], *, intake: bool, due: bool
    ) -> list[Receipt] | None:
        """Run one batch over what was handed in and what the store has; None when there was nothing."""
        work = Work()
        try:
            with self._store.transaction() as transaction:
                # Turns by weight: what came back goes first, then half of the room for what is due, a quarter at
                # least for what is new; what one input leaves free is the next one's.
                rows = self._due(transaction, max(1, room // 2)) if due else []
                left = max(room // 4, room - len(returns) - len(rows) - len(deliveries))
                events = transaction.take_new(left) if intake else []
                work = Work(deliveries, events, rows, returns)
                return self._run(transaction, work) if work.size else None
        except RowsRefused as refused:
            return self._seek_culprit(work, refused)

    def _due(self, transaction: SqliteTransaction, room: int) -> list[RunRow]:
        now = as_text(self._clock.now())
        rows: list[RunRow] = []
        # Calls that wait go before runs that may come to a call, or those would take every slot that comes free.
        for lane in self.queued:
            free = min(self._calls.free(lane), room)
            if free:
                rows += transaction.take_due(lane, now, free)
        return rows + transaction.take_due(OPEN_LANE, now, room)

    def _run(self, transaction: SqliteTransaction, work: Work) -> list[Receipt]:
        began = self._clock.monotonic()
        batch = self._engine.begin(transaction)
        try:
            # What is stored goes before what is handed in, or busy publishers would take every turn.
            batch.start(work.events)
            receipts = batch.admit(work.deliveries) if work.deliveries else []
            if work.due:
                batch.resume(work.due)
            if work.returns:
                rows = transaction.runs([returned.call.run_seq for returned in work.returns])
                batch.finish(rows, work.returns)
            if work.abandoned:
                batch.recover(work.abandoned)
            batch.advance()
            transaction.flush(batch.overlay.changes)
            transaction.commit()
        except BaseException:
            batch.abandon()
            raise
        transaction.flushed(batch.overlay.changes)
        self._after_commit(batch, work)
        each = (self._clock.monotonic() - began) / max(1, batch.counts.events + len(work.due) + len(work.returns))
        self._seconds_each += _SMOOTHING * (each - self._seconds_each) if self._seconds_each else each
        return receipts

    def _after_commit(self, batch: Batch, work: Work) -> None:
        for call in batch.calls:
            failpoints.reach("call.before_start")
            self._calls.start(call)
        if batch.queued_calls or work.due or work.abandoned:
            self.count_anew()
        counts, totals = batch.counts, self.totals
        totals.events += counts.events
        totals.unmatched += counts.unmatched
        totals.runs += counts.runs
        totals.steps += counts.steps
        for kind, number in counts.outcomes.items():
            totals.outcomes[kind] = totals.outcomes.get(kind, 0) + number

    # A batch that the store refuses: halve, repeat, down to the culprit.

    def _seek_culprit(self, work: Work, refused: RowsRefused) -> list[Receipt]:
        log.error("batch.refused", size=work.size, error=str(refused))
        return self._halve(work)

    def _halve(self, work: Work) -> list[Receipt]:
        if work.size == 1:
            return self._park(work)
        receipts: list[Receipt] = []
        for half in work.halves():
            try:
                with self._store.transaction() as transaction:
                    receipts += self._run(transaction, half)
            except RowsRefused:
                receipts += self._halve(half)
        return receipts

    def _park(self, work: Work) -> list[Receipt]:
        """Make a dead letter of the one thing whose rows the store refuses."""
        now = self._clock.now()
        at = as_text(now)
        changes = Changes()
        detail = "the store refuses what this leads to; the worker's log tells what SQLite says"
        receipts: list[Receipt] = []
        account, event_id, run_id, body = None, None, None, None
        with self._store.transaction() as transaction:
            if work.deliveries:
                kind, body = "delivery", work.deliveries[0].body
                receipts.append(Receipt("refused", code="failed", detail=detail))
            elif work.events:
                stored, kind = work.events[0], "event"
                event = stored.event
                account, event_id = event.account_key, event.event_id
                changes.event_states.append(
                    ("dead", self._engine.plan.digest, event.conversation_type, event.subject, detail, stored.seq)
                )
            else:
                rows = [*work.due, *work.abandoned]
                rows += transaction.runs([returned.call.run_seq for returned in work.returns])
                values, kind = rows[0].values, "run"
                account, event_id, run_id = values["account_key"], values["event_id"], values["run_id"]
                changes.unbound_runs.append(("failed", detail, at, values["seq"]))
            dead_id = uuid7(int(now.timestamp() * 1000))
            changes.dead_letters.append((dead_id, kind, "failed", detail, account, event_id, run_id, body, at))
            transaction.flush(changes)
            transaction.commit()
        return receipts
