"""How a worker ends: a drain leaves nothing that is due, a stop begins nothing new; and what a reload changes."""

from __future__ import annotations

import base64
import os
import signal
import time
from datetime import timedelta
from typing import ClassVar

import pytest

from dispatcher import Done, Effect, Handler, Service
from dispatcher.errors import CannotStart, RulebookRefused
from dispatcher.plugins.registry import Installed
from dispatcher.settings import Settings
from dispatcher.testing import FrozenClock
from dispatcher.worker import loop
from dispatcher.worker.calls import Calls
from dispatcher.worker.connections import OpenConnections, PinnedChains
from dispatcher.worker.control import Request
from dispatcher.worker.guard import CrashGuard
from dispatcher.worker.loop import Worker
from dispatcher.worker.pace import Pace
from tests.unit.worker.conftest import Workshop

TWO_CALLS = """
chains:
  - name: c
    on: {event_type: done}
    steps: [{id: first, handler: calling}, {id: second, handler: calling}]
"""


class Calling(Handler):
    """Call the outside, as the test says."""

    effect = Effect.CALL

    act: ClassVar = staticmethod(lambda: None)

    def run(self, event, context):
        type(self).act()
        return Done()


class Line(Service):
    """A connection that notes whether it is open."""

    state: ClassVar[list] = []

    def open(self):
        self.state.append("open")

    def close(self):
        self.state.append("closed")
        raise RuntimeError("closed in anger")


@pytest.fixture
def make_worker(workshop):
    workshop.world.registry.handlers.add(Installed("calling", "tests", "1", Calling))

    def make(text, **settings):
        workshop.rules(text)
        place = workshop.world.place
        place.close()
        plan = workshop.engine.plan
        settings = Settings(store=place.setting, state=workshop.world.folder, **settings)
        return Worker(settings, place.open(), plan, load=lambda: plan)

    return make


def test_drain_goes_on_when_the_calls_for_which_it_paused_are_done(workshop, make_worker, monkeypatch, capfd):
    # Looked at with every turn, the room is short as soon as calls wait for the one thread.
    monkeypatch.setattr(loop, "_CHECK_ROOM_EVERY", 0.001)
    workshop.rules(TWO_CALLS).store_new(*({"event_id": f"e{n}"} for n in range(6)))
    worker = make_worker(TWO_CALLS, call_threads=1, max_ready=1)
    assert worker.run(drain=True) == 0
    assert "sources.resumed" in capfd.readouterr().err
    workshop.store = workshop.world.reopen()
    assert workshop.rows("runs", "state") == [("done",)] * 6


def test_each_turn_begins_with_a_rest_from_the_last_batch_that_did_something(workshop, make_worker, mocker):
    rest, worked = mocker.spy(Pace, "rest"), mocker.spy(Pace, "worked")
    workshop.rules(TWO_CALLS).store_new({"event_id": "e1"})
    assert make_worker(TWO_CALLS).run(drain=True) == 0
    assert 2 <= worked.call_count < rest.call_count


def test_stop_lets_no_further_call_start(workshop, make_worker):
    workshop.rules(TWO_CALLS).store_new({"event_id": "e1"})
    worker = make_worker(TWO_CALLS)
    Calling.act = staticmethod(lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert worker.run(drain=False) == 0
    workshop.store = workshop.world.reopen()
    assert workshop.rows("runs", "state", "step") == [("ready", "second")]
    assert workshop.rows("steps", "step", "state") == [("first", "done"), ("second", "ready")]


def test_rate_wakes_nobody_while_every_thread_is_taken_or_no_call_may_start(tmp_path):
    clock = FrozenClock()
    guard = CrashGuard(tmp_path / "slot", 1, clock, warn_after=1.0)
    calls = Calls(threads=1, clock=clock, guard=guard, wake=lambda: None)
    calls.configure({"service:slow": Line(rate="10/s"), "service:other": Line()})
    clock.advance(timedelta(seconds=5))
    assert calls.next_start({"service:slow": 3}) == 0.0
    assert calls.reserve("service:other")
    assert calls.next_start({"service:slow": 3}) is None
    calls.release("service:other")
    calls.hold()
    assert calls.next_start({"service:slow": 3}) is None
    assert calls.free("service:slow") == 0
    assert not calls.reserve("service:slow")


class APlan:
    """As much of a plan as pinned chains look at."""

    def __init__(self, restored):
        self.by_digest, self.senders, self.services = {}, {}, {}
        self._restored = restored

    def restore(self, text):
        if isinstance(self._restored, Exception):
            raise self._restored
        return self._restored


def test_chain_that_could_not_be_bound_is_tried_again_with_the_next_plan():
    chains = PinnedChains(APlan(RulebookRefused([])), lambda digest: "text")
    assert isinstance(chains.chain("digest"), str)
    chains.replace(APlan(chain := object()))
    assert chains.chain("digest") is chain


def test_connections_of_an_earlier_rulebook_are_closed_when_no_call_goes_through_them(make_worker):
    worker = make_worker(TWO_CALLS)
    worker._rulebooks.connections._opened.append(Line())
    Line.state.clear()
    reloads = iter(range(3))

    def reload():
        # In the first call: what this call goes through stays open until it is back.
        if next(reloads) == 0:
            os.kill(os.getpid(), signal.SIGHUP)
            deadline = time.monotonic() + 5
            while not worker._rulebooks._replaced and time.monotonic() < deadline:
                time.sleep(0.01)
            assert worker._rulebooks._replaced
            assert Line.state == []

    Calling.act = staticmethod(reload)
    worker._inbox.submit(Request("publish", {"bodies": [base64.b64encode(Workshop.body({"event_id": "e1"})).decode()]}))
    assert worker.run(drain=True) == 0
    assert Line.state == ["closed"]
    assert worker._rulebooks._replaced == []


def test_connection_that_cannot_be_opened_is_named_whatever_it_raises():
    class Odd(Line):
        def open(self):
            raise KeyError("certificate")

    connections = OpenConnections(APlan(None))
    connections.services = {"crm": Odd()}
    with pytest.raises(CannotStart, match="service crm cannot be opened: KeyError: 'certificate'"):
        connections.open()
