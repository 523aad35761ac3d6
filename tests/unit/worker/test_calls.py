"""The pool of calls: bounded by lane and in all, timed out by the clock, its returns kept until they are committed."""

from __future__ import annotations

import asyncio
import threading
import time
from datetime import timedelta

import pytest

from dispatcher import Done, Effect, Failed, Handler, Rate, RetryLater, Service, Unknown
from dispatcher.engine.call import Call
from dispatcher.engine.records import StoredEvent
from dispatcher.testing import FrozenClock, an_event
from dispatcher.worker.calls import Calls
from dispatcher.worker.guard import CrashGuard


class Act(Handler):
    """Do what the test says."""

    effect = Effect.CALL

    def run(self, event, context):
        return context()


class ActAsync(Act):
    """The same on the event loop."""

    async def run(self, event, context):
        return await context()


class Pool:
    """A pool with a clock that stands, and a way to wait for what comes back."""

    def __init__(self, path, threads):
        self.clock = FrozenClock()
        self.guard = CrashGuard(path, threads, self.clock, warn_after=1.0)
        self.woken = threading.Event()
        self.calls = Calls(threads=threads, clock=self.clock, guard=self.guard, wake=self.woken.set)
        self.calls.configure({})

    def start(self, act, *, handler=None, lane="calls", keyed=False, timeout=30, seq=1):
        assert self.calls.reserve(lane)
        stored = StoredEvent(seq, an_event(), "2026-01-01T12:00:00.000000Z")
        self.calls.start(
            Call(
                run_seq=seq,
                position=0,
                attempt=1,
                lane=lane,
                handler=handler or Act(),
                stored=stored,
                context=act,
                timeout=timedelta(seconds=timeout),
                keyed=keyed,
                chain="chain",
                step_id="step",
            )
        )

    def start_async(self, act, **given):
        self.start(act, handler=ActAsync(), **given)

    def outcomes(self, count=1):
        """Return the outcomes of so many calls, waiting for them, and forget them as a committed batch does."""
        eventually(lambda: len(self.calls.returns(count)) == count)
        found = self.calls.returns(count)
        for returned in found:
            self.calls.release(returned.call.lane)
        self.calls.forget(count)
        return [returned.outcome for returned in found]

    def expire(self, seconds=31):
        self.clock.advance(timedelta(seconds=seconds))
        self.calls.expire()


def eventually(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.fixture
def make_pool(tmp_path):
    made = []

    def make(threads=4):
        made.append(Pool(tmp_path / f"slot{len(made)}", threads))
        return made[-1]

    yield make
    for pool in made:
        pool.calls.close()
        pool.guard.close()


@pytest.fixture
def pool(make_pool):
    return make_pool()


@pytest.fixture
def hung():
    """A call that hangs until the test is over."""
    released = threading.Event()

    def hang():
        assert released.wait(10)
        return Done({"late": True})

    hang.release = released.set
    yield hang
    released.set()


def test_outcome_comes_back_and_wakes_the_loop(pool):
    pool.start(lambda: Done({"id": "42"}))
    assert pool.woken.wait(10)
    assert pool.outcomes() == [Done({"id": "42"})]
    assert pool.calls.under_way == 0


def test_outcome_of_a_coroutine_comes_back(pool):
    async def act():
        await asyncio.sleep(0)
        return Failed("no")

    pool.start_async(act)
    assert pool.outcomes() == [Failed("no")]


def test_plain_handler_may_return_an_awaitable(pool):
    async def act():
        return Done({"id": "42"})

    pool.start(act)
    assert pool.outcomes() == [Done({"id": "42"})]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ConnectionRefusedError("closed"), RetryLater),
        (TimeoutError("slow"), RetryLater),
        (ValueError("wrong"), Failed),
        (SystemExit(3), Failed),
        (asyncio.CancelledError("gave up"), Failed),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_what_escapes_from_a_coroutine_is_an_outcome_and_the_next_one_runs(pool, error, kind):
    async def act():
        raise error

    async def sound():
        return Done()

    pool.start_async(act)
    (outcome,) = pool.outcomes()
    assert type(outcome) is kind
    assert type(error).__name__ in outcome.reason
    pool.start_async(sound)
    assert pool.outcomes() == [Done()]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ConnectionRefusedError("closed"), RetryLater),
        (ValueError("wrong"), Failed),
        (SystemExit(3), Failed),
        (asyncio.CancelledError("gave up"), Failed),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_what_escapes_in_a_thread_is_an_outcome_and_the_thread_goes_on(make_pool, error, kind):
    pool = make_pool(threads=1)

    def act():
        raise error

    pool.start(act)
    (outcome,) = pool.outcomes()
    assert type(outcome) is kind
    assert type(error).__name__ in outcome.reason
    pool.start(Done)
    assert pool.outcomes() == [Done()]


@pytest.mark.parametrize("start", ["start", "start_async"])
def test_what_is_no_outcome_fails(pool, start):
    async def act_async():
        return None

    getattr(pool, start)(act_async if start == "start_async" else lambda: None)
    (outcome,) = pool.outcomes()
    assert isinstance(outcome, Failed)
    assert "NoneType" in outcome.reason


# Bounds.


def test_no_more_calls_than_threads_are_let_in(make_pool):
    calls = make_pool(threads=2).calls
    assert [calls.reserve("calls") for _ in range(3)] == [True, True, False]
    calls.release("calls")
    assert calls.reserve("calls")


def test_lane_has_the_concurrency_of_its_connection_and_leaves_room_to_others(pool):
    pool.calls.configure({"sender:slow": Service(concurrency=2), "sender:other": Service()})
    assert [pool.calls.reserve("sender:slow") for _ in range(3)] == [True, True, False]
    assert pool.calls.free("sender:slow") == 0
    assert pool.calls.free("sender:other") == 2
    assert pool.calls.reserve("sender:other")


def test_rate_lets_calls_start_one_by_one_as_time_goes_on(pool):
    pool.calls.configure({"sender:a": Service(rate=Rate(2, 1))})
    assert [pool.calls.reserve("sender:a") for _ in range(2)] == [True, False]
    assert pool.calls.next_start({"sender:a": 1}) == pytest.approx(0.5)
    pool.clock.advance(timedelta(seconds=0.5))
    assert pool.calls.next_start({"sender:a": 1}) == 0.0
    assert pool.calls.reserve("sender:a")
    assert not pool.calls.reserve("sender:a")


def test_rate_that_was_not_used_is_not_saved_up(pool):
    pool.calls.configure({"sender:a": Service(rate=Rate(2, 1))})
    pool.clock.advance(timedelta(hours=1))
    assert [pool.calls.reserve("sender:a") for _ in range(2)] == [True, False]


def test_rate_of_hundreds_holds_over_a_second(make_pool):
    pool = make_pool(threads=1000)
    pool.calls.configure({"sender:a": Service(rate=Rate(300, 1), concurrency=1000)})
    started = 0
    for _ in range(100):
        while pool.calls.reserve("sender:a"):
            started += 1
        pool.clock.advance(timedelta(milliseconds=10))
    assert 290 <= started <= 331


def test_lane_without_a_rate_or_without_room_holds_nothing_by_time(pool):
    pool.calls.configure({"sender:a": Service(concurrency=1, rate=Rate(1, 60)), "sender:b": Service()})
    assert pool.calls.reserve("sender:a")
    assert pool.calls.next_start({"sender:a": 3, "sender:b": 3}) is None


def test_reload_keeps_count_of_what_is_under_way(pool):
    pool.calls.configure({"sender:a": Service(concurrency=2)})
    assert pool.calls.reserve("sender:a")
    pool.calls.configure({"sender:a": Service(concurrency=1)})
    assert not pool.calls.reserve("sender:a")
    pool.calls.release("sender:a")
    assert pool.calls.reserve("sender:a")


def test_slot_is_taken_until_the_return_is_committed(make_pool):
    pool = make_pool(threads=1)
    pool.start(Done)
    eventually(lambda: pool.calls.has_returns)
    assert not pool.calls.reserve("calls")
    assert pool.outcomes() == [Done()]
    assert pool.calls.reserve("calls")


def test_returns_stay_until_they_are_forgotten_the_oldest_first(pool):
    for number in range(3):
        pool.start(lambda number=number: Done({"n": number}))
        eventually(lambda number=number: len(pool.calls.returns(9)) == number + 1)
    assert [returned.outcome.result["n"] for returned in pool.calls.returns(2)] == [0, 1]
    assert [returned.outcome.result["n"] for returned in pool.calls.returns(9)] == [0, 1, 2]
    pool.calls.forget(2)
    assert [returned.outcome.result["n"] for returned in pool.calls.returns(9)] == [2]


# Timeouts.


@pytest.mark.parametrize(("keyed", "kind"), [(True, RetryLater), (False, Unknown)])
def test_thread_past_its_timeout_is_given_up_and_its_late_return_dropped(pool, hung, keyed, kind):
    pool.start(hung, keyed=keyed)
    assert pool.calls.next_deadline() == pytest.approx(30)
    pool.expire()
    assert pool.outcomes() == [kind(reason="no answer within 30 s")]
    assert pool.calls.under_way == 0
    assert pool.calls.free("calls") == 3  # its thread is lost for now
    hung.release()
    eventually(lambda: pool.calls.free("calls") == 4)
    assert not pool.calls.has_returns


def test_call_within_its_timeout_is_left_alone(pool, hung):
    pool.start(hung)
    pool.expire(29)
    assert pool.calls.under_way == 1
    assert pool.calls.next_deadline() == pytest.approx(1)


@pytest.mark.parametrize(("keyed", "kind"), [(True, RetryLater), (False, Unknown)])
def test_coroutine_past_its_timeout_is_cancelled_and_costs_no_thread(pool, keyed, kind):
    cancelled, began = threading.Event(), threading.Event()

    async def act():
        began.set()
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    pool.start_async(act, keyed=keyed)
    assert began.wait(10)
    pool.expire()
    assert pool.outcomes() == [kind(reason="no answer within 30 s")]
    assert cancelled.wait(10)
    eventually(lambda: pool.calls.free("calls") == 4)
    assert not pool.calls.exhausted


def test_coroutines_that_block_the_loop_cost_their_slots_until_it_is_free_again(make_pool, hung):
    pool = make_pool(threads=2)

    async def block():
        return hung()

    pool.start_async(block)
    pool.start_async(block, seq=2)
    pool.expire()
    pool.outcomes(2)
    assert pool.calls.exhausted
    hung.release()
    eventually(lambda: pool.calls.free("calls") == 2)


def test_awaitable_that_a_thread_brings_too_late_is_dropped_and_the_thread_is_back(pool, hung):
    ran = threading.Event()

    async def late():
        ran.set()
        return Done()

    def act():
        hung()
        return late()

    pool.start(act)
    pool.expire()
    assert pool.outcomes() == [Unknown("no answer within 30 s")]
    hung.release()
    eventually(lambda: pool.calls.free("calls") == 4)
    assert not ran.is_set()
    assert not pool.calls.has_returns


def test_pool_is_exhausted_when_every_thread_hangs_and_recovers_when_one_comes_back(make_pool, hung):
    pool = make_pool(threads=2)
    pool.start(hung)
    pool.start(hung, seq=2)
    assert not pool.calls.exhausted
    pool.expire()
    pool.outcomes(2)
    assert pool.calls.exhausted
    assert not pool.calls.reserve("calls")
    hung.release()
    eventually(lambda: not pool.calls.exhausted)


def test_slot_file_names_the_events_whose_calls_are_under_way(pool, hung, tmp_path):
    pool.start(hung, seq=7)
    pool.start(Done, seq=8)
    eventually(lambda: pool.calls.has_returns)
    slots = tmp_path / "slot0"
    assert sum(byte != 0 for byte in slots.read_bytes()) == 1
    assert bytes([7]) in slots.read_bytes()
    hung.release()
    eventually(lambda: not any(slots.read_bytes()))


def test_call_that_comes_back_after_the_pool_was_closed_touches_nothing(make_pool, hung):
    pool = make_pool()
    pool.start(hung)
    pool.calls.close()
    pool.woken.clear()
    seen = []
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("call-")]
    pool.guard.leave_call = seen.append
    hung.release()
    for thread in threads:
        thread.join(10)
    assert seen == []
    assert not pool.woken.is_set()
