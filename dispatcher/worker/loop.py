"""The worker: one loop that takes turns, sleeps when there is nothing to do, drains when asked, and reports."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, cast

from dispatcher.clock import Clock
from dispatcher.engine.emits import LoopGuard
from dispatcher.engine.machine import Budget, Engine
from dispatcher.engine.records import as_time
from dispatcher.errors import Contended, DispatcherError, LeaseLost, StoreUnusable
from dispatcher.events.limits import Limits
from dispatcher.rules.plan import Plan
from dispatcher.settings import Settings
from dispatcher.store.ports import Store
from dispatcher.store.retention import Keep, Retention
from dispatcher.store.sqlite.lock import slot_path, socket_path
from dispatcher.telemetry import log
from dispatcher.worker.administration import answer
from dispatcher.worker.batches import Batches
from dispatcher.worker.calls import Calls
from dispatcher.worker.control import ControlServer, WorkerStopping
from dispatcher.worker.guard import EXIT_RESTART, CrashGuard, Watchdog
from dispatcher.worker.inbox import Inbox
from dispatcher.worker.pace import Pace
from dispatcher.worker.recovery import Recovery
from dispatcher.worker.remarks import Remarks
from dispatcher.worker.room import Room
from dispatcher.worker.rulebooks import Rulebooks, tell_disabled
from dispatcher.worker.signals import Signals, Wakeup
from dispatcher.worker.status import Status
from dispatcher.worker.warmup import warm_up

if TYPE_CHECKING:
    from dispatcher.store.postgres.store import PostgresStore
    from dispatcher.worker.broker import Broker
    from dispatcher.worker.membership import Membership

_REPORT_EVERY = 10.0
_CHECK_ROOM_EVERY = 1.0
_PAUSE_AFTER_STORE_ERROR = 1.0
_RETENTION_EVERY = 3600.0
_LONGEST_SLEEP = 30.0
# Where others write the store too: how often a worker with nothing to do looks whether there is something that nobody
# told of, and how often the busy ones count what waits.
_LOOK_EVERY = 1.0
_SHORTEST_SLEEP = 0.05
_COUNT_ANEW_EVERY = 1.0
# While it drains: how often the broker is asked whether anything is left.
_ASK_BROKER_EVERY = 0.05
# The last of a drain: how long acks and confirms that are on their way may take.
_FAREWELL_SECONDS = 2.0


class Worker:
    """One worker over one store. `load` makes a new plan when a reload is asked for."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        plan: Plan,
        *,
        load: Callable[[], Plan],
        clock: Clock | None = None,
        lifeline: int | None = None,
    ) -> None:
        self._settings = settings
        self._store = store
        self._clock = clock or store.clock
        self._wakeup = Wakeup()
        self._pace = Pace(self._clock, self._wakeup)
        self._signals = Signals(self._wakeup, lifeline=lifeline)
        self._membership: Membership | None = None
        if settings.store_kind == "postgresql":
            from dispatcher.worker.membership import Membership  # noqa: PLC0415 - only for who shares its store

            self._membership = Membership(settings, cast("PostgresStore", store), self._clock)
        self._guard = CrashGuard(
            slot_path(settings.store_path) if self._membership is None else self._membership.slots,
            settings.call_threads,
            self._clock,
            warn_after=settings.handler_warn_ms / 1000,
        )
        self._calls = Calls(threads=settings.call_threads, clock=self._clock, guard=self._guard, wake=self._wakeup.set)
        self._rulebooks = Rulebooks(plan, load=load, stored_text=store.chain_text, wake=self._wakeup.set)
        self._inbox = Inbox(self._pace.hurry)
        self._engine = Engine(
            plan=plan,
            chains=self._rulebooks.chains,
            connections=self._rulebooks.connections,
            slots=self._calls,
            guard=self._guard,
            clock=self._clock,
            installation=store.facts["installation"],
            limits=Limits(body_bytes=settings.max_event_bytes, depth=settings.max_depth),
            budget=Budget(settings.batch_events, settings.batch_steps, settings.batch_ms / 1000),
            loop_guard=LoopGuard(settings.max_hops, settings.max_events_per_root),
        )
        self._batches = Batches(store, self._engine, self._calls, self._inbox, self._clock)
        self._broker: Broker | None = None
        if settings.amqp_url is not None:
            from dispatcher.worker.broker import Broker  # noqa: PLC0415 - brings pika, which not every worker needs

            self._broker = Broker(
                settings, plan, self._clock, totals=self._batches.totals, wake=self._wakeup.set, shared=store.shared
            )
        keep = Keep(
            done=settings.keep_done_days,
            failed=settings.keep_failed_days,
            skipped=settings.keep_skipped_days,
            dedupe=settings.dedupe_days,
        )
        self._retention = Retention(store, keep)
        self._forgetting = False
        # Commands write to a shared store by themselves.
        self._control: ControlServer | None = None
        if not store.shared:
            self._control = ControlServer(socket_path(settings.store_path), self._inbox.submit)
        self._room = Room(settings, disk=None if store.shared else settings.store_path.parent)
        self._paused: str | None = None
        # Whether another worker has taken this one's work over.
        self._fenced = False
        self._status = Status(
            settings, store, self._clock, batches=self._batches, calls=self._calls, rulebooks=self._rulebooks,
            broker=self._broker,
        )  # fmt: skip
        self._remarks = Remarks(self._clock)
        self._next: dict[str, float] = {}

    def run(self, *, drain: bool) -> int:
        """Run until told to stop, or with `drain` until nothing is left that is due; return the exit code."""
        unexpected = True
        watchdog = Watchdog(
            self._guard,
            self._clock,
            hang_after=self._settings.handler_hang_seconds,
            end=os._exit,
            impatient=lambda: self._signals.exceeds(self._settings.drain_seconds),
        )
        try:
            self._rulebooks.connections.open()
            self._calls.configure(self._rulebooks.connections.by_lane)
            self._signals.install()
            if self._control is not None:
                self._control.start()
            self._status.start()
            watchdog.start()
            plan = self._engine.plan
            log.info("worker.started", store=self._store.shown, chains=len(plan.chains), rulebook=plan.digest[:12])
            tell_disabled(plan)
            warm_up()
            self._recover(drain=drain)
            if self._broker is not None:
                self._broker.start(self._store, self._batches, self._rulebooks.connections.by_lane)
            code = self._loop(drain=drain)
            unexpected = False
        except LeaseLost as lost:
            log.error("lease.lost", reason=lost.message, exit_code=EXIT_RESTART)
            code, unexpected, self._fenced = EXIT_RESTART, False, True
        except DispatcherError:
            unexpected = False
            raise
        finally:
            watchdog.stop()
            self._close(orderly=not unexpected)
        totals = self._batches.totals
        log.info("worker.stopped", exit_code=code, events=totals.events, runs=totals.runs, steps=totals.steps)
        return code

    # The loop.

    def _loop(self, *, drain: bool) -> int:
        stopping_since: float | None = None
        while True:
            self._pace.rest()
            if self._signals.stops and stopping_since is None:
                stopping_since = self._clock.monotonic()
                # A call that starts now may outlast the patience of whoever asked, and then nobody knows its outcome.
                self._calls.hold()
                self._status.drains()
                if self._broker is not None:
                    self._broker.consumer.hold()
                log.info("worker.draining", calls=self._calls.under_way)
            if self._calls.exhausted:
                log.error("calls.exhausted", threads=self._settings.call_threads, exit_code=EXIT_RESTART)
                return EXIT_RESTART
            began = self._clock.monotonic()
            worked = self._turn(stopping=stopping_since is not None, drain=drain)
            if worked:
                self._pace.worked(began)
                if self._membership is not None:
                    self._membership.goes_on()
                continue
            idle = not self._calls.under_way and not self._calls.has_returns
            idle = idle and (self._broker is None or self._broker.relay.in_flight == 0)
            if stopping_since is not None:
                if idle:
                    return 0
                waited = self._clock.monotonic() - stopping_since
                if waited > self._settings.drain_seconds or self._signals.stops > 1:
                    log.warning("worker.gave_up", calls=self._calls.under_way, exit_code=EXIT_RESTART)
                    return EXIT_RESTART
            elif drain and idle and not self._batches.queued:
                if self._paused is not None:
                    raise StoreUnusable(f"nothing new is taken: {self._paused}.", hint="Events stay where they are.")
                may_end = self._membership is None or self._membership.may_end()
                if may_end and (self._broker is None or self._broker.drained(self._store)):
                    return 0
            self._sleep(stopping_since, drain=drain)

    def _turn(self, *, stopping: bool, drain: bool) -> bool:
        """Do one round of everything that is to be done; False when there was nothing."""
        self._status.pulse.turned()
        self._calls.expire()
        self._reload()
        try:
            if self._membership is not None:
                self._membership.tick()
                if self._every("anew", _COUNT_ANEW_EVERY):
                    self._batches.count_anew()
            if not stopping:
                self._check_room()
            worked = self._administer(stopping=stopping)
            worked |= self._batches.turn(intake=not stopping and self._paused is None, due=not stopping)
            if not stopping:
                self._forget()
        except Contended as contended:
            # What is not a batch, such as taking over: it is due again at once.
            log.debug("batch.contended", reason=str(contended))
            return True
        except StoreUnusable as error:
            if drain:
                raise
            self._remarks.fault("store.unusable", error=str(error))
            self._status.store_fails(error.message)
            self._status.pulse.sleeps(_PAUSE_AFTER_STORE_ERROR)
            self._wakeup.wait(_PAUSE_AFTER_STORE_ERROR)
            return not stopping  # when it stops, the grace runs out all the same
        self._status.store_fails(None)
        self._remarks.over("store.unusable", "store.usable")
        if worked:
            self._remarks.refused(self._batches.totals)
        if self._every("report", _REPORT_EVERY) and worked:
            totals = self._batches.totals
            log.info("worker.progressed", events=totals.events, unmatched=totals.unmatched, **totals.outcomes)
        return worked

    def _forget(self) -> None:
        """Forget a chunk of what is old, once an hour as often as there is more."""
        if self._forgetting or self._every("retention", _RETENTION_EVERY):
            self._forgetting = self._retention.step(self._clock.now())

    def _administer(self, *, stopping: bool) -> bool:
        if stopping:
            self._inbox.refuse_all(WorkerStopping("the worker is stopping.", hint="Try again in a moment."))
            return False
        if not answer(self._inbox, self._store, self._clock, limits=self._engine.limits):
            return False
        self._batches.count_anew()
        return True

    def _check_room(self) -> None:
        """Pause the sources when there is no room for more; resume by itself."""
        # While paused at each turn: a drain must not take a reason for pausing that is over for one that holds.
        if self._paused is None and not self._every("room", _CHECK_ROOM_EVERY):
            return
        reason = self._room.lacks(sum(self._batches.queued.values()))
        if reason is not None:
            self._remarks.fault("sources.paused", reason=reason)
        elif self._paused is not None:
            log.info("sources.resumed")
        self._paused = reason
        self._status.pauses(reason)

    def _sleep(self, stopping_since: float | None, *, drain: bool) -> None:
        pauses = [self._calls.next_deadline(), self._calls.next_start(self._queued())]
        if stopping_since is None:
            pauses += [self._next_due(), 0.0 if self._forgetting else None]
            if self._broker is not None:
                pauses += [self._broker.relay.next_due(self._store), _ASK_BROKER_EVERY if drain else None]
            pauses.append(_CHECK_ROOM_EVERY if self._paused else _RETENTION_EVERY)
            if self._membership is not None:
                pauses += [self._membership.next_tick, _LOOK_EVERY]
        else:
            pauses.append(max(0.0, self._settings.drain_seconds - (self._clock.monotonic() - stopping_since)) + 0.01)
        # A due time is a wall-clock time: a look now and then notices when that clock was set.
        pause = min(pause for pause in [*pauses, _LONGEST_SLEEP] if pause is not None)
        if self._membership is not None:
            # What is due and was not taken, another worker has in hand.
            pause = max(pause, _SHORTEST_SLEEP)
        self._status.pulse.sleeps(pause)
        if self._membership is None:
            self._wakeup.wait(pause)
        else:
            self._wakeup.wait(pause, self._membership.descriptor)
            if self._membership.heard():
                self._batches.count_anew()

    def _queued(self) -> Mapping[str, int]:
        """Return how many calls wait, by lane; none while the store cannot say."""
        try:
            return self._batches.queued
        except StoreUnusable:
            return {}

    def _next_due(self) -> float | None:
        """Return in how many seconds the next run falls due."""
        try:
            due = self._store.next_due()
        except StoreUnusable:
            return _PAUSE_AFTER_STORE_ERROR  # the next turn tells of it, or finds it mended
        return None if due is None else max(timedelta(0), as_time(due) - self._clock.now()).total_seconds()

    # Around it.

    def _recover(self, *, drain: bool) -> None:
        died_elsewhere: list[int] = []
        if self._membership is not None:
            if self._broker is not None:
                self._membership.relay, self._membership.consumer = self._broker.relay, self._broker.consumer
            self._membership.abandoned = self._batches.abandoned
            self._membership.patience = self._is_patient
            died_elsewhere = self._membership.join(drain=drain)

        def wait_for_calls() -> None:
            while (self._calls.under_way or self._calls.has_returns) and not self._signals.stops:
                self._calls.expire()
                if self._membership is not None:
                    self._membership.tick()
                if not self._batches.turn(intake=False, due=False):
                    self._wakeup.wait(min(self._calls.next_deadline() or 0.0, _LOOK_EVERY))

        Recovery(
            self._store,
            self._batches,
            self._guard,
            self._clock,
            max_crashes=self._settings.max_crashes,
            wait_for_calls=wait_for_calls,
        ).run(died_elsewhere)
        if self._membership is not None:
            self._membership.recovered()

    def _is_patient(self, reason: str) -> bool:
        """Whether to wait on for a store that was lost in the middle of a commit; called now and then meanwhile."""
        self._remarks.fault("store.unusable", error=reason)
        self._status.store_fails(reason)
        self._status.pulse.sleeps(_PAUSE_AFTER_STORE_ERROR)
        return not self._signals.exceeds(self._settings.drain_seconds)

    def _reload(self) -> None:
        """Swap the plan when a new one is ready."""
        if self._signals.reload:
            self._signals.reload = False  # first: a signal that comes meanwhile asks for another one
            if not self._rulebooks.load():
                self._signals.reload = True
        if not self._rulebooks.replace(lambda: self._calls.flights):
            return
        self._engine.plan = self._rulebooks.plan
        self._engine.connections = self._rulebooks.connections
        self._calls.configure(self._rulebooks.connections.by_lane)
        if self._broker is not None:
            self._broker.reloaded(self._rulebooks.plan, self._rulebooks.connections.by_lane)

    def _every(self, what: str, seconds: float) -> bool:
        now = self._clock.monotonic()
        if now < self._next.get(what, 0.0):
            return False
        self._next[what] = now + seconds
        return True

    def _close(self, *, orderly: bool) -> None:
        if self._control is not None:
            self._control.stop()
        self._status.stop()
        self._inbox.refuse_all(WorkerStopping("the worker has stopped.", hint="Try again."))
        settled = orderly and not self._fenced and not self._calls.under_way and not self._calls.has_returns
        self._calls.close()
        if self._broker is not None:
            self._broker.stop(_FAREWELL_SECONDS)
            if orderly and not self._fenced:
                self._broker.settle(self._store)
        self._rulebooks.close()
        # Calls that are still out are told by the journal (`started`); the slots only name crash suspects. What
        # nobody expected is one: it would come again with the same event, for ever.
        self._guard.close(orderly=orderly)
        if self._membership is not None:
            settled = settled and (self._broker is None or self._broker.relay.in_flight == 0)
            self._membership.leave(clean=settled)
        self._signals.restore()
        self._store.close()
        self._wakeup.close()
