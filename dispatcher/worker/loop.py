"""The worker: one loop that takes turns, sleeps when there is nothing to do, drains when asked, and reports."""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING

from dispatcher.clock import Clock, SystemClock
from dispatcher.engine.emits import LoopGuard
from dispatcher.engine.machine import Budget, Engine
from dispatcher.engine.records import as_time
from dispatcher.errors import DispatcherError, StoreUnusable
from dispatcher.events.limits import Limits
from dispatcher.rules.plan import Plan
from dispatcher.settings import Settings
from dispatcher.sources.embedded import SOURCE as EMBEDDED
from dispatcher.store.retention import Keep, Retention
from dispatcher.store.sqlite.lock import slot_path, socket_path
from dispatcher.store.sqlite.store import SqliteStore
from dispatcher.telemetry import log
from dispatcher.text.numbers import normalise_number
from dispatcher.worker.administration import perform
from dispatcher.worker.batches import Batches
from dispatcher.worker.calls import Calls
from dispatcher.worker.control import ControlServer, WorkerStopping
from dispatcher.worker.guard import EXIT_RESTART, CrashGuard, Watchdog
from dispatcher.worker.inbox import Inbox
from dispatcher.worker.recovery import Recovery
from dispatcher.worker.rulebooks import Rulebooks, read_plan, tell_disabled
from dispatcher.worker.signals import Signals, Wakeup
from dispatcher.worker.status import Status

if TYPE_CHECKING:
    from dispatcher.worker.broker import Broker

_REPORT_EVERY = 10.0
_CHECK_ROOM_EVERY = 1.0
_PAUSE_AFTER_STORE_ERROR = 1.0
_SAY_AGAIN_AFTER = 60.0
_RETENTION_EVERY = 3600.0
_LONGEST_SLEEP = 30.0
# While it drains: how often the broker is asked whether anything is left.
_ASK_BROKER_EVERY = 0.05
# The last of a drain: how long acks and confirms that are on their way may take.
_FAREWELL_SECONDS = 2.0
# Objects that a batch makes die with it; a collection for each 700 of them, Python's default, finds nothing.
_GC_THRESHOLD = 50_000


def run_worker(settings: Settings, *, drain: bool, lifeline: int | None = None) -> int:
    """Run a worker until it is told to stop, or with `drain` until nothing is left that is due; return the exit code.

    `lifeline` is the descriptor by which it hears of its supervisor, where it has one.
    Raises CannotStart (RulebookRefused, StoreInUse, StoreUnusable) before anything was done.
    """
    plan = read_plan(settings)
    worker = Worker(
        settings, SqliteStore.open(settings.store_path), plan, load=lambda: read_plan(settings), lifeline=lifeline
    )
    return worker.run(drain=drain)


class Worker:
    """One worker over one store. `load` makes a new plan when a reload is asked for."""

    def __init__(
        self,
        settings: Settings,
        store: SqliteStore,
        plan: Plan,
        *,
        load: Callable[[], Plan],
        clock: Clock | None = None,
        lifeline: int | None = None,
    ) -> None:
        self._settings = settings
        self._store = store
        self._clock = clock or SystemClock()
        self._wakeup = Wakeup()
        self._signals = Signals(self._wakeup, lifeline=lifeline)
        self._guard = CrashGuard(
            slot_path(store.path),
            settings.call_threads,
            self._clock,
            warn_after=settings.handler_warn_ms / 1000,
        )
        self._calls = Calls(threads=settings.call_threads, clock=self._clock, guard=self._guard, wake=self._wakeup.set)
        self._rulebooks = Rulebooks(plan, load=load, stored_text=store.chain_text, wake=self._wakeup.set)
        self._inbox = Inbox(self._wakeup.set)
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

            self._broker = Broker(settings, plan, self._clock, totals=self._batches.totals, wake=self._wakeup.set)
        keep = Keep(
            done=settings.keep_done_days,
            failed=settings.keep_failed_days,
            skipped=settings.keep_skipped_days,
            dedupe=settings.dedupe_days,
        )
        self._retention = Retention(store, keep)
        self._forgetting = False
        self._control = ControlServer(socket_path(store.path), self._inbox.submit)
        self._paused: str | None = None
        self._status = Status(
            settings, store, self._clock, batches=self._batches, calls=self._calls, rulebooks=self._rulebooks,
            broker=self._broker,
        )  # fmt: skip
        self._said: dict[str, float] = {}
        self._refused = 0
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
            self._control.start()
            self._status.start()
            watchdog.start()
            plan = self._engine.plan
            log.info("worker.started", store=str(self._store.path), chains=len(plan.chains), rulebook=plan.digest[:12])
            tell_disabled(plan)
            # The plan is as large as the rulebook and never garbage; collections need not walk over it.
            gc.collect()
            gc.freeze()
            gc.set_threshold(_GC_THRESHOLD)
            # Reading the first number loads the tables for all: not while an event is in hand.
            normalise_number("+27821230000", None)
            self._recover()
            if self._broker is not None:
                self._broker.start(self._store, self._batches, self._rulebooks.connections.by_lane)
            code = self._loop(drain=drain)
            unexpected = False
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
            worked = self._turn(stopping=stopping_since is not None, drain=drain)
            if worked:
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
                if self._broker is None or self._broker.drained(self._store):
                    return 0
            self._sleep(stopping_since, drain=drain)

    def _turn(self, *, stopping: bool, drain: bool) -> bool:
        """Do one round of everything that is to be done; False when there was nothing."""
        self._status.pulse.turned()
        self._calls.expire()
        self._reload()
        try:
            if not stopping:
                self._check_room()
            worked = self._administer(stopping=stopping)
            worked |= self._batches.turn(intake=not stopping and self._paused is None, due=not stopping)
            if not stopping:
                self._forget()
        except StoreUnusable as error:
            if drain:
                raise
            self._say_once("store.unusable", error=str(error))
            self._status.store_fails(error.message)
            self._status.pulse.sleeps(_PAUSE_AFTER_STORE_ERROR)
            self._wakeup.wait(_PAUSE_AFTER_STORE_ERROR)
            return not stopping  # when it stops, the grace runs out all the same
        self._status.store_fails(None)
        if worked:
            self._tell_refused()
        if self._every("report", _REPORT_EVERY) and worked:
            totals = self._batches.totals
            log.info("worker.progressed", events=totals.events, unmatched=totals.unmatched, **totals.outcomes)
        return worked

    def _tell_refused(self) -> None:
        """Tell of deliveries that became dead letters, once a minute: nobody else tells whoever published them."""
        refused = sum(
            number
            for (source, kind), number in self._batches.totals.deliveries.items()
            if kind == "refused" and source != EMBEDDED
        )
        now = self._clock.monotonic()
        if refused > self._refused and now >= self._said.get("deliveries.refused", 0.0):
            self._said["deliveries.refused"] = now + _SAY_AGAIN_AFTER
            log.warning("deliveries.refused", deliveries=refused - self._refused)
            self._refused = refused

    def _forget(self) -> None:
        """Forget a chunk of what is old, once an hour as often as there is more."""
        if self._forgetting or self._every("retention", _RETENTION_EVERY):
            self._forgetting = self._retention.step(self._clock.now())

    def _administer(self, *, stopping: bool) -> bool:
        if stopping:
            self._inbox.refuse_all(WorkerStopping("the worker is stopping.", hint="Try again in a moment."))
            return False
        worked = False
        while (request := self._inbox.next_verb()) is not None:
            worked = True
            try:
                result = perform(self._store, request.verb, request.args, self._clock.now(), limits=self._engine.limits)
                request.reply(result)
            except DispatcherError as error:
                request.fail(error)
            self._batches.count_anew()
        return worked

    def _check_room(self) -> None:
        """Pause the sources when the disk is nearly full or too many calls wait; resume by itself."""
        # While paused at each turn: a drain must not take a reason for pausing that is over for one that holds.
        if self._paused is None and not self._every("room", _CHECK_ROOM_EVERY):
            return
        free_mb = shutil.disk_usage(self._store.path.parent).free // 2**20
        waiting = sum(self._batches.queued.values())
        reason = None
        if free_mb < self._settings.min_free_mb:
            reason = f"{free_mb} MB free on the disk, {self._settings.min_free_mb} MB wanted"
        elif waiting >= self._settings.max_ready:
            reason = f"{waiting} calls wait, at most {self._settings.max_ready} may"
        if reason is not None:
            self._say_once("sources.paused", reason=reason)
        elif self._paused is not None:
            log.info("sources.resumed")
        self._paused = reason
        self._status.pauses(reason)

    def _sleep(self, stopping_since: float | None, *, drain: bool) -> None:
        pauses = [self._calls.next_deadline(), self._calls.next_start(self._batches.queued)]
        if stopping_since is None:
            pauses += [self._next_due(), 0.0 if self._forgetting else None]
            if self._broker is not None:
                pauses += [self._broker.relay.next_due(self._store), _ASK_BROKER_EVERY if drain else None]
            pauses.append(_CHECK_ROOM_EVERY if self._paused else _RETENTION_EVERY)
        else:
            pauses.append(max(0.0, self._settings.drain_seconds - (self._clock.monotonic() - stopping_since)) + 0.01)
        # A due time is a wall-clock time: a look now and then notices when that clock was set.
        pause = min(pause for pause in [*pauses, _LONGEST_SLEEP] if pause is not None)
        self._status.pulse.sleeps(pause)
        self._wakeup.wait(pause)

    def _next_due(self) -> float | None:
        """Return in how many seconds the next run falls due."""
        try:
            due = self._store.next_due()
        except StoreUnusable:
            return _PAUSE_AFTER_STORE_ERROR  # the next turn tells of it, or finds it mended
        return None if due is None else max(timedelta(0), as_time(due) - self._clock.now()).total_seconds()

    # Around it.

    def _recover(self) -> None:
        def wait_for_calls() -> None:
            while (self._calls.under_way or self._calls.has_returns) and not self._signals.stops:
                self._calls.expire()
                if not self._batches.turn(intake=False, due=False):
                    self._wakeup.wait(self._calls.next_deadline())

        Recovery(
            self._store,
            self._batches,
            self._guard,
            self._clock,
            max_crashes=self._settings.max_crashes,
            wait_for_calls=wait_for_calls,
        ).run()

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

    def _say_once(self, event: str, **facts: object) -> None:
        """Log a lasting fault once a minute, not once a turn."""
        now = self._clock.monotonic()
        if now >= self._said.get(event, 0.0):
            self._said[event] = now + _SAY_AGAIN_AFTER
            log.error(event, **facts)

    def _close(self, *, orderly: bool) -> None:
        self._control.stop()
        self._status.stop()
        self._inbox.refuse_all(WorkerStopping("the worker has stopped.", hint="Try again."))
        self._calls.close()
        if self._broker is not None:
            self._broker.stop(_FAREWELL_SECONDS)
            if orderly:
                self._broker.settle(self._store)
        self._rulebooks.close()
        # Calls that are still out are told by the journal (`started`); the slots only name crash suspects. What
        # nobody expected is one: it would come again with the same event, for ever.
        self._guard.close(orderly=orderly)
        self._signals.restore()
        self._store.close()
        self._wakeup.close()
