"""What a worker does before it takes anything: find out what the last one left in hand, and isolate the culprit.

The slot file names the events that were being advanced when the last worker ended without saying so. Each has its
crash counted and runs alone; the one that takes the worker down three times is parked as `crashed`. Calls that
were under way are settled: keyed ones go again, of the others nobody knows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dispatcher import failpoints
from dispatcher.clock import Clock
from dispatcher.engine.records import RunKey, RunRow, as_text
from dispatcher.events.identity import uuid7
from dispatcher.store.ports import Store, Transaction
from dispatcher.telemetry import log
from dispatcher.worker.batches import Batches
from dispatcher.worker.guard import CrashGuard
from dispatcher.worker.work import Work

_CHUNK = 128
# How long a worker looks out for an event that took the last one down before it was stored; it may come again.
_STORE_FIRST_SECONDS = 600.0


class Recovery:
    """Recovers one store; `wait_for_calls` lets the calls of a suspect end before the next suspect runs."""

    def __init__(
        self,
        store: Store,
        batches: Batches,
        guard: CrashGuard,
        clock: Clock,
        *,
        max_crashes: int,
        wait_for_calls: Callable[[], None],
    ) -> None:
        self._store = store
        self._batches = batches
        self._guard = guard
        self._clock = clock
        self._max_crashes = max_crashes
        self._wait_for_calls = wait_for_calls

    def run(self, others: Sequence[int] = ()) -> None:
        """Recover; when this returns, the store is as after an orderly stop.

        `others` are events that workers had in hand that died elsewhere, and that nobody has started again.
        """
        suspects = self._count_crashes(sorted({*self._guard.suspects(), *others}))
        # Taken before any suspect runs: a stop that does not wait for its calls must not find them abandoned.
        with self._store.transaction() as transaction:
            abandoned = [_key(row) for row in transaction.take_running() if row.stored.seq not in suspects]
        for seq in suspects:
            self._run_alone(seq)
        for at in range(0, len(abandoned), _CHUNK):
            keys = abandoned[at : at + _CHUNK]
            self._batches.alone(lambda transaction: Work(abandoned=_running(transaction.runs(keys))))  # noqa: B023
        # They were among those: what was under way in dead workers is settled, whoever died.
        self._batches.abandoned.clear()
        if suspects or abandoned:
            log.info("worker.recovered", suspects=len(suspects), calls=len(abandoned))

    def _count_crashes(self, slots: list[int]) -> list[int]:
        """Count a crash against each event found in a slot; return those that are to run alone."""
        alone: list[int] = []
        now = self._clock.now()
        with self._store.transaction() as transaction:
            for seq in slots:
                counted = transaction.count_crash(seq)
                if counted is None:
                    # It was in a batch that never was committed. What comes again in its place must have a name.
                    self._batches.store_first(_STORE_FIRST_SECONDS)
                    continue
                count, event_id = counted
                log.warning("event.suspected", event=event_id, crashes=count)
                if count < self._max_crashes:
                    alone.append(seq)
                else:
                    self._batches.totals.parked("crashed")
                    transaction.park_crashed(seq, count, as_text(now), uuid7(int(now.timestamp() * 1000)))
            # Suspects of an earlier recovery that was itself cut short.
            alone += [seq for seq in transaction.suspects() if seq not in alone]
            failpoints.reach("recovery.before_commit")
            transaction.commit()
        return alone

    def _run_alone(self, seq: int) -> None:
        def take(transaction: Transaction) -> Work:
            event = transaction.take_event(seq)
            due = transaction.take_due_of_event(seq, as_text(self._clock.now()))
            return Work(events=[event] if event else [], due=due, abandoned=transaction.take_running_of_event(seq))

        if self._batches.alone(take):
            self._wait_for_calls()
        # It did no harm alone: whoever killed the worker, it was not this event, and later crashes count anew.
        with self._store.transaction() as transaction:
            transaction.forget_crashes(seq)
            transaction.commit()


def _key(row: RunRow) -> RunKey:
    return row.values["seq"], row.values["received_on"]


def _running(rows: Sequence[RunRow]) -> list[RunRow]:
    """Return those of the runs that nobody has moved on or cancelled meanwhile."""
    return [row for row in rows if row.values["state"] == "running"]
