"""One batch: what came in is matched and advanced in waves, in memory, until each run is done, waits or must call.

Nothing is durable before the store has committed `overlay.changes`, and nothing outside has happened: the calls
that the batch asks for start after the commit. A batch that cannot be committed is abandoned as a whole.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Awaitable, Iterable, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from dispatcher.engine.attempt import Attempt, bind, concluded, guarded, prepared, scope_of
from dispatcher.engine.call import Call, CallReturn
from dispatcher.engine.counts import Counts
from dispatcher.engine.emits import Emitter
from dispatcher.engine.intake import Delivery, Receipt
from dispatcher.engine.matching import start_runs
from dispatcher.engine.ports import Connections, Reads
from dispatcher.engine.records import OPEN_LANE, Run, RunRow, StoredEvent
from dispatcher.engine.reports import Reports
from dispatcher.engine.transitions import Transitions
from dispatcher.engine.unit import CallContext, Layer, Overlay, StepContext
from dispatcher.plugins.effects import Effect
from dispatcher.plugins.handler import Handler
from dispatcher.plugins.outcomes import Done, Failed, Outcome, RetryLater, Unknown
from dispatcher.rules.expressions import ExpressionError
from dispatcher.rules.plan import Chain, Step
from dispatcher.telemetry import log

if TYPE_CHECKING:
    from dispatcher.engine.machine import Engine

_CRASHED = "the worker stopped while the call was under way"


# When to look again for a contact that another worker has in hand.
_BUSY = timedelta(milliseconds=200)


class Batch:
    """A batch in the making; one per transaction."""

    def __init__(self, engine: Engine, reads: Reads, now: datetime) -> None:
        self.engine = engine
        self.overlay = Overlay(reads, now)
        self.calls: list[Call] = []
        self.counts = Counts()
        self.queued_calls = 0
        self._began = engine.clock.monotonic()
        self._emitter = Emitter(self.overlay, engine.limits, engine.loop_guard)
        self._reports = Reports(self.overlay, self._emitter, engine.limits)
        self._transitions = Transitions(self.overlay, self._emitter, engine.limits)
        self._fresh: deque[StoredEvent] = deque()
        self._active: list[Run] = []
        self._regions: dict[str, str | None] = {}

    # What comes in.

    def admit(self, deliveries: Iterable[Delivery]) -> list[Receipt]:
        """Take deliveries; what is new is advanced with this batch."""
        deliveries = list(deliveries)
        events = [delivery for delivery in deliveries if delivery.kind == "event"]
        receipts = self.engine.intake.admit(events, self.overlay)
        if len(events) < len(deliveries):
            reports = self._reports.admit([delivery for delivery in deliveries if delivery.kind != "event"])
            admitted, reported = iter(receipts), iter(reports)
            receipts = [next(admitted if delivery.kind == "event" else reported) for delivery in deliveries]
        self.counts.received(deliveries, receipts)
        # What the broker hands out again may have taken a worker down: it is stored first, and advanced by name.
        self._go_on_with(
            receipt.stored
            for delivery, receipt in zip(deliveries, receipts, strict=True)
            if receipt.stored is not None and not delivery.redelivered
        )
        return receipts

    def start(self, events: Iterable[StoredEvent]) -> None:
        """Take events that are stored as new."""
        self._fresh.extend(events)

    def resume(self, rows: Iterable[RunRow]) -> None:
        """Take runs that are due: ready, waiting, retrying, or released from a hold."""
        for row in rows:
            run = self._load(row)
            if run is None:
                continue
            run.due_at, run.lane = None, OPEN_LANE
            if run.state == "waiting":
                self._transitions.end_wait(run)
            run.state = "ready"
            if run.resolution == "sent":
                run.resolution = None
                self._conclude(run, Done())
            run.resolution = None
            if run.state == "ready":
                self._active.append(run)

    def finish(self, rows: Iterable[RunRow], returns: Iterable[CallReturn]) -> None:
        """Take calls that came back. A run that is no longer at that attempt keeps its state: it was taken over."""
        by_seq = {row.values["seq"]: row for row in rows}
        returns = list(returns)
        self._prefetch_numbers(
            (returned.call.handler, returned.call.stored, returned.call.numbers) for returned in returns
        )
        for returned in returns:
            call = returned.call
            row = by_seq.get(call.run_seq)
            current = row and (row.values["state"], row.values["position"], row.values["attempt"])
            if row is None or current != ("running", call.position, call.attempt):
                log.warning("call.fenced", chain=call.chain, step=call.step_id, event=call.stored.event.event_id)
                continue
            chain = self.engine.chains.chain(row.values["chain_digest"])
            bound = not isinstance(chain, str)
            # What is known is told, though the run cannot go on: it is held when it is taken up next.
            run = self._enter(row, call.pinned if isinstance(chain, str) and call.pinned is not None else chain)
            if run is None:
                continue
            run.state = "ready"
            self.counts.observe(run.chain.steps[run.position].handler_name, returned.seconds)
            self._conclude(run, returned.outcome, self.engine.connections if bound else call.context.connections)
            if run.state == "ready" and bound:
                self._active.append(run)
            elif run.state == "ready":
                self._put_off(run)

    def recover(self, rows: Iterable[RunRow]) -> None:
        """Take runs whose call was under way when a worker died: keyed ones go again, of the others nobody knows."""
        for row in rows:
            run = self._load(row)
            if run is None:
                continue
            run.state = "ready"
            settled = run.chain.steps[run.position].settled
            if settled is None or not settled.keyed:
                self._conclude(run, Unknown(_CRASHED))
            if run.state == "ready":
                self._active.append(run)

    def _load(self, row: RunRow) -> Run | None:
        return self._enter(row, self.engine.chains.chain(row.values["chain_digest"]))

    def _enter(self, row: RunRow, chain: Chain | str) -> Run | None:
        if isinstance(chain, str):
            self._transitions.cannot_bind(row, chain)
            return None
        run = self._transitions.load(row, chain)
        self.overlay.changes.changed_runs[run.seq] = run
        return run

    def _go_on_with(self, events: Iterable[StoredEvent]) -> None:
        """Advance events that this batch stores along with it, unless they are to be stored first."""
        if self._began >= self.engine.store_first_until:
            self._fresh.extend(events)

    # The waves.

    def advance(self) -> None:
        """Advance everything that was taken, wave by wave, as far as the batch's budget reaches."""
        while self._fresh or self._active:
            self._match()
            if not self._active:
                break  # nothing more started: the budget for events is spent, or nothing matched
            wave = [attempt for run in self._active if (attempt := self._next(run)) is not None]
            self._prefetch(wave)
            self._active = []
            for attempt in wave:
                if self.counts.steps and self._spent():
                    self._transitions.park(attempt.run)
                    continue
                if self.overlay.busy and self._is_busy(attempt):
                    self._transitions.park(attempt.run, _BUSY)
                    continue
                self._execute(attempt)
                if attempt.run.state == "ready" and attempt.run.due_at is None:
                    self._active.append(attempt.run)
            if self._spent():
                break
        for run in self._active:
            self._put_off(run)
        self._active = []
        self.engine.guard.leave()

    def _is_busy(self, attempt: Attempt) -> bool:
        """Whether another worker has the contact in hand that the attempt is about."""
        account = attempt.run.stored.event.account_key
        return any(
            (account, getattr(attempt.handler, name)) in self.overlay.busy for name in attempt.step.number_params
        )

    def _put_off(self, run: Run) -> None:
        """Leave a run that may go on to a later batch."""
        if run.position < len(run.chain.steps):
            self._transitions.park(run)
        else:
            self._transitions.finish(run, "done")

    @property
    def left_over(self) -> bool:
        """Whether events were taken that the budget did not reach; they are in the store as new."""
        return bool(self._fresh)

    def abandon(self) -> None:
        """Give back the call slots: the batch will not be committed."""
        for call in self.calls:
            self.engine.slots.release(call.lane)

    def _spent(self) -> bool:
        budget = self.engine.budget
        return self.counts.steps >= budget.steps or self.engine.clock.monotonic() - self._began > budget.seconds

    def _match(self) -> None:
        while self._fresh and self.counts.events < self.engine.budget.events:
            # The first event is always taken: a batch that makes no progress would repeat itself for ever.
            if self.counts.events and self._spent():
                return
            stored = self._fresh.popleft()
            self.engine.guard.enter(stored.seq, "matching")
            runs = start_runs(stored, self.engine.plan, self.overlay)
            self.counts.events += 1
            self.counts.matched(stored.event, len(runs))
            self._active.extend(runs)

    def _next(self, run: Run) -> Attempt | None:
        """Walk over controls and skipped steps to the next handler; None when the run ended, waits or failed."""
        steps = run.chain.steps
        while run.state == "ready":
            if run.position >= len(steps):
                self._transitions.finish(run, "done")
                return None
            step = steps[run.position]
            try:
                if step.when is not None and not step.when.test(scope_of(run)):
                    self._transitions.skip(run, step, f"when: {step.when.source}")
                    continue
                if step.kind == "wait":
                    self._transitions.wait(run, step)
                    return None
                if step.kind == "stop":
                    assert step.stop is not None
                    self._transitions.stop(run, step, ends=step.stop.test(scope_of(run)))
                    continue
            except ExpressionError as error:
                self._transitions.settle(run, step, Failed(str(error)), None)
                continue
            self.engine.guard.enter(run.stored.seq, step.handler_name)
            bound = bind(run, step, self._region(run))
            if isinstance(bound, Attempt):
                return bound
            self._transitions.settle(run, step, bound, None)
        return None

    def _prefetch(self, wave: list[Attempt]) -> None:
        self.engine.guard.leave()  # no handler runs while another worker, or the database, is waited for
        self._prefetch_numbers((attempt.handler, attempt.run.stored, attempt.step.number_params) for attempt in wave)

    def _prefetch_numbers(self, opened: Iterable[tuple[Handler, StoredEvent, Sequence[str]]]) -> None:
        """Read in bulk what handlers are known to open, by the numbers among their params."""
        contacts, opt_outs = [], []
        for handler, stored, names in opened:
            asked = self.engine.asked.get(type(handler))
            if not asked:
                continue
            account = stored.event.account_key
            for name in names:
                number = getattr(handler, name)
                if number is not None:
                    if "contacts" in asked:
                        contacts.append((account, number))
                    if "opt_outs" in asked:
                        opt_outs.append((account, number))
        if contacts:
            self.overlay.prefetch_contacts(contacts)
        if opt_outs:
            self.overlay.prefetch_opt_outs(opt_outs)

    def _execute(self, attempt: Attempt) -> None:
        run, step, handler = attempt.run, attempt.step, attempt.handler
        assert step.settled is not None
        self.counts.steps += 1
        self.engine.guard.enter(run.stored.seq, handler.__class__.__name__)
        layer = Layer(self.overlay)
        context = self._context(run, step, handler, layer)
        if step.settled.effect is Effect.CALL:
            self._call(attempt, layer, context)
            return
        event = run.stored.event
        began = self.engine.clock.monotonic()
        outcome = guarded(lambda: handler.run(event, context), handler, event.event_type)
        self.counts.observe(step.handler_name, self.engine.clock.monotonic() - began)
        self._settle(run, step, outcome if isinstance(outcome, Done) else _within(outcome, handler), layer)

    def _call(self, attempt: Attempt, layer: Layer, context: StepContext) -> None:
        run, step = attempt.run, attempt.step
        assert step.settled is not None
        lane = step.settled.connection or "calls"
        if not self.engine.slots.reserve(lane):
            self.queued_calls += 1
            self._transitions.queue_call(run, step, lane)
            return
        early = prepared(attempt, context)
        if early is not None:
            self.engine.slots.release(lane)
            self._settle(run, step, early, layer)
            return
        layer.merge()
        layer.keep_message(run, step)
        self._transitions.start_call(run, step)
        self.calls.append(
            Call(
                run_seq=run.seq,
                position=run.position,
                attempt=run.attempt,
                lane=lane,
                handler=attempt.handler,
                stored=run.stored,
                context=CallContext(context, self.engine.connections),
                timeout=step.timeout,
                keyed=step.settled.keyed,
                chain=run.chain.name,
                step_id=step.id,
                pinned=run.chain,
                numbers=step.number_params,
            )
        )

    def _conclude(self, run: Run, outcome: Outcome, connections: Connections | None = None) -> None:
        """Settle the step that the run stands at with what its call brought back."""
        step = run.chain.steps[run.position]
        self.engine.guard.enter(run.stored.seq, step.handler_name)
        bound = bind(run, step, self._region(run))
        layer = Layer(self.overlay)
        final = self._transitions.exhausted(run, step, outcome) if isinstance(outcome, RetryLater) else None
        outcome = final or outcome
        if isinstance(bound, Attempt):
            context = self._context(run, step, bound.handler, layer, connections)
            outcome, complete = concluded(bound, context, outcome)
            if complete:
                # What became of a call is told whatever the outcome: a failed text is a row in messages too.
                layer.merge()
        self._settle(run, step, outcome, layer, exhausted=final is not None)

    def _settle(self, run: Run, step: Step, outcome: Outcome, layer: Layer, *, exhausted: bool = False) -> None:
        final = self._transitions.exhausted(run, step, outcome) if isinstance(outcome, RetryLater) else None
        if final is not None:
            outcome, exhausted = final, True
        if isinstance(outcome, Failed):
            layer.fail_message(outcome.reason.partition("\n")[0])
        kind = type(outcome).__name__
        self.counts.outcomes[kind] = self.counts.outcomes.get(kind, 0) + 1
        self._go_on_with(self._transitions.settle(run, step, outcome, layer, exhausted=exhausted))

    def _context(
        self, run: Run, step: Step, handler: Handler, layer: Layer, connections: Connections | None = None
    ) -> StepContext:
        engine = self.engine
        asked = engine.asked.get(type(handler))
        if asked is None:
            asked = engine.asked[type(handler)] = set()
        return StepContext(
            run, step, layer, connections or engine.connections, region=self._region(run),
            installation=engine.installation, asked=asked,
        )  # fmt: skip

    def _region(self, run: Run) -> str | None:
        account = run.stored.event.account_key
        if account not in self._regions:
            self._regions[account] = self.engine.plan.region(account)
        return self._regions[account]


def _within(outcome: Outcome | Awaitable[Any], handler: Handler) -> Outcome:
    """Return the outcome of a handler that runs within the batch, where some may not be."""
    if isinstance(outcome, Unknown):
        return Failed(f"only calls may end unknown: {outcome.reason}")
    if isinstance(outcome, RetryLater | Failed):
        return outcome
    if inspect.iscoroutine(outcome):
        outcome.close()
    return Failed(f"{type(handler).__name__}.run is a coroutine, which only CALL handlers may be")
