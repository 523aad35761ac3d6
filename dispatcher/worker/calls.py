"""Calls to the outside: bounded by connection and in all, run in threads or on one event loop, timed out, counted.

A thread cannot be ended from outside. A call that is past its timeout is abandoned: its run goes on without it, what
it brings back later is dropped, and when all slots are lost that way the worker asks to be restarted. A coroutine is
cancelled, and its slot is lost only as long as it resists.
"""

from __future__ import annotations

import asyncio
import inspect
import queue
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from dispatcher.clock import Clock
from dispatcher.engine.attempt import awaited, guarded
from dispatcher.engine.call import Call, CallReturn
from dispatcher.plugins.outcomes import Outcome, RetryLater, Unknown
from dispatcher.plugins.services import Service
from dispatcher.telemetry import log
from dispatcher.worker.guard import CrashGuard
from dispatcher.worker.lanes import Lane

_PATIENCE_AT_CLOSE = 1.0


@dataclass(slots=True)
class _Flight:
    call: Call
    deadline: float
    slot: int
    began: float
    settled: bool = False
    on_loop: bool = False
    task: asyncio.Task[Outcome] | None = None


class Calls:
    """The pool. `reserve` and `release` are the engine's `Slots`; only the worker's own thread uses the rest."""

    def __init__(self, *, threads: int, clock: Clock, guard: CrashGuard, wake: Callable[[], None]) -> None:
        self._clock = clock
        self._guard = guard
        self._wake = wake
        self._threads = threads
        self._lanes: dict[str, Lane] = {}
        self._taken = 0
        self._flights: dict[int, _Flight] = {}
        self._abandoned = 0
        self._lock = threading.Lock()
        self._returned: deque[CallReturn] = deque()
        self._jobs: queue.SimpleQueue[_Flight | None] = queue.SimpleQueue()
        self._started_threads = 0
        self._idle_threads = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_thread: threading.Thread | None = None
        self._closed = False
        self._holding = False

    def configure(self, connections: Mapping[str, Service]) -> None:
        """Set the bounds of each lane; `connections` are keyed as `Settled.connection` names them."""
        lanes = {
            name: Lane(service.concurrency, service.rate.per_second if service.rate else None)
            for name, service in connections.items()
        }
        lanes["calls"] = Lane(self._threads, None)
        for name, lane in lanes.items():
            known = self._lanes.get(name)
            if known is not None:
                lane.taken = known.taken
            self._lanes[name] = lane

    # Slots.

    def hold(self) -> None:
        """Let no more calls start: what comes to one waits in the store."""
        self._holding = True

    def reserve(self, lane: str) -> bool:
        """Take a slot in this lane, if one is free now."""
        if self._full:
            return False
        if lane not in self._lanes:
            self._lanes[lane] = Lane(self._threads, None)
        if not self._lanes[lane].room(self._clock.monotonic()):
            return False
        self._lanes[lane].take()
        self._taken += 1
        return True

    def release(self, lane: str) -> None:
        """Give a slot back."""
        self._lanes[lane].taken -= 1
        self._taken -= 1

    def free(self, lane: str) -> int:
        """Return how many calls of this lane could start now."""
        if self._full:
            return 0
        room = self._threads - self._taken - self._abandoned
        if lane in self._lanes:
            room = min(room, self._lanes[lane].room(self._clock.monotonic()))
        return room

    def next_start(self, lanes: Mapping[str, int]) -> float | None:
        """Return in how many seconds a rate lets the next waiting call start; None when none is held by its rate."""
        if self._full:
            return None  # whatever the rates allow, a call must come back first
        now = self._clock.monotonic()
        pauses = [self._lanes[lane].pause(now) for lane in lanes if lane in self._lanes]
        known = [pause for pause in pauses if pause is not None]
        return min(known) if known else None

    @property
    def _full(self) -> bool:
        return self._holding or self._taken + self._abandoned >= self._threads

    # Flights.

    @property
    def flights(self) -> frozenset[int]:
        """What tells the calls under way from those that start later."""
        return frozenset(self._flights)

    @property
    def runs_under_way(self) -> set[int]:
        """The `seq` of each run whose call is under way, or came back and is not committed."""
        returned = {returned.call.run_seq for returned in list(self._returned)}
        return returned | {flight.call.run_seq for flight in list(self._flights.values())}

    @property
    def under_way(self) -> int:
        """How many calls are under way."""
        return len(self._flights)

    @property
    def exhausted(self) -> bool:
        """Whether every slot was lost to a call that never came back."""
        return self._abandoned >= self._threads

    @property
    def has_returns(self) -> bool:
        """Whether a call came back that the batch has not seen."""
        return bool(self._returned)

    def start(self, call: Call) -> None:
        """Start a call whose start is committed."""
        slot = self._guard.enter_call(call.stored.seq)
        now = self._clock.monotonic()
        flight = _Flight(call, now + call.timeout.total_seconds(), slot, now)
        self._flights[id(flight)] = flight
        if inspect.iscoroutinefunction(call.handler.run):
            self._on_loop(flight, None)
            return
        with self._lock:
            if self._idle_threads == 0 and self._started_threads < self._threads:
                self._started_threads += 1
                threading.Thread(target=self._serve, name=f"call-{self._started_threads}", daemon=True).start()
            else:
                self._idle_threads -= 1
        self._jobs.put(flight)

    def returns(self, limit: int) -> list[CallReturn]:
        """Return calls that came back, the oldest first; they stay until `forget`."""
        return [self._returned[index] for index in range(min(limit, len(self._returned)))]

    def forget(self, count: int) -> None:
        """Drop the oldest returns: they are committed."""
        for _ in range(count):
            self._returned.popleft()

    def expire(self) -> None:
        """Settle what is past its timeout: nobody knows whether it acted, unless its key makes that harmless."""
        now = self._clock.monotonic()
        # A copy made in one step: call threads take flights out meanwhile.
        for flight in list(self._flights.values()):
            if flight.deadline > now:
                continue
            call = flight.call
            reason = f"no answer within {call.timeout.total_seconds():g} s"
            outcome: Outcome = RetryLater(reason=reason) if call.keyed else Unknown(reason)
            if self._settle(flight, outcome, abandon=True):
                log.warning("call.timed_out", chain=call.chain, step=call.step_id, event=call.stored.event.event_id)
                if flight.on_loop:
                    self._event_loop().call_soon_threadsafe(self._cancel, flight)

    def next_deadline(self) -> float | None:
        """Return in how many seconds the next call times out."""
        flights = list(self._flights.values())
        if not flights:
            return None
        return max(0.0, min(flight.deadline for flight in flights) - self._clock.monotonic())

    def close(self) -> None:
        """End the idle threads and the event loop; what still runs is left to the process's end, and unheard."""
        with self._lock:
            self._closed = True
        for _ in range(self._started_threads):
            self._jobs.put(None)
        if self._loop is not None and self._loop_thread is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._loop_thread.join(_PATIENCE_AT_CLOSE)

    # In the call threads.

    def _serve(self) -> None:
        while (flight := self._jobs.get()) is not None:
            call = flight.call
            event = call.stored.event
            returned = guarded(lambda: call.handler.run(event, call.context), call.handler, event.event_type)  # noqa: B023
            if inspect.isawaitable(returned):
                self._on_loop(flight, returned)
            else:
                self._settle(flight, returned)
            with self._lock:
                self._idle_threads += 1

    def _on_loop(self, flight: _Flight, awaitable: Awaitable[object] | None) -> None:
        call = flight.call
        event = call.stored.event
        with self._lock:
            flight.on_loop = not flight.settled
        if not flight.on_loop:
            if inspect.iscoroutine(awaitable):
                awaitable.close()
            self._settle(flight, Unknown("its thread came back too late"))
            return

        async def run() -> Outcome:
            returned = awaitable or guarded(
                lambda: call.handler.run(event, call.context), call.handler, event.event_type
            )
            return await awaited(returned, call.handler, event.event_type)

        def begin() -> None:
            flight.task = loop.create_task(run())
            flight.task.add_done_callback(done)

        def done(task: asyncio.Task[Outcome]) -> None:
            # One that was cancelled before it began is past its timeout, and settled.
            self._settle(flight, Unknown("cancelled") if task.cancelled() else task.result())

        loop = self._event_loop()
        loop.call_soon_threadsafe(begin)

    @staticmethod
    def _cancel(flight: _Flight) -> None:
        if flight.task is not None:
            flight.task.cancel()

    def _event_loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._loop_thread = threading.Thread(
                    target=_run_loop, args=(self._loop,), name="call-loop", daemon=True
                )
                self._loop_thread.start()
            return self._loop

    def _settle(self, flight: _Flight, outcome: Outcome, *, abandon: bool = False) -> bool:
        """Hand an outcome to the batch; False when the call was settled before, and only its slot comes back now."""
        with self._lock:
            if self._closed:
                return False  # nobody listens, and what there was to wake may be gone
            if flight.settled:
                self._abandoned -= 1
                return False
            flight.settled = True
            self._abandoned += abandon
            self._returned.append(CallReturn(flight.call, outcome, self._clock.monotonic() - flight.began))
            del self._flights[id(flight)]
            self._guard.leave_call(flight.slot)
            self._wake()
        return True


def _run_loop(loop: asyncio.AbstractEventLoop) -> None:
    """Run the loop of all coroutines until it is stopped; then end those that are left, and close it."""

    async def end() -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    loop.run_forever()
    loop.run_until_complete(end())
    loop.close()
