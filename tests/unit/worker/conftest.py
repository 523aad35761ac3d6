"""The small world of the engine's tests with the worker's own parts around it: batches, calls, slot file, inbox."""

from __future__ import annotations

import base64
import json
import time
from typing import ClassVar

import pytest

from dispatcher import Done, Effect, Handler, Settled
from dispatcher.plugins.registry import Installed
from dispatcher.worker.batches import Batches
from dispatcher.worker.calls import Calls
from dispatcher.worker.control import Request
from dispatcher.worker.guard import CrashGuard
from dispatcher.worker.inbox import Inbox
from dispatcher.worker.recovery import Recovery
from tests.unit.engine.conftest import (
    emptied_databases,
    empty_store,
    place,
    postgres_place,
    registry,
    sqlite_place,
    world,
)

__all__ = ["emptied_databases", "empty_store", "place", "postgres_place", "registry", "sqlite_place", "world"]

THREADS = 4


class Outside(Handler):
    """A call that notes its key; `keyed` says whether it may go again."""

    effect = Effect.CALL
    keyed: bool = False

    keys: ClassVar[list] = []

    @classmethod
    def settle(cls, params, bindings):
        return Settled(cls.effect, keyed=str(params.get("keyed")).lower() == "true")

    def run(self, event, context):
        type(self).keys.append(context.idempotency_key)
        return Done()


class Workshop:
    """One worker's parts over one store. `turn` is what its loop does; `restart` is a worker after a crash."""

    def __init__(self, world):
        self.world, self.store, self.clock = world, world.store, world.clock
        self.rows, self.sql, self.script, self.seen = world.rows, world.sql, world.script, world.seen
        self.slots = world.folder / "slot"
        Outside.keys = self.keys = []
        world.registry.handlers.add(Installed("outside", "tests", "1", Outside))
        self._guards = []

    def rules(self, text, **options):
        self._text, self._options = text, options
        self.guard = CrashGuard(self.slots, THREADS, self.clock, warn_after=1.0)
        self._guards.append(self.guard)
        self.calls = Calls(threads=THREADS, clock=self.clock, guard=self.guard, wake=lambda: None)
        self.calls.configure({})
        self.world.guard, self.world.slots = self.guard, self.calls
        self.world.rules(text, **options)
        self.engine = self.world.engine
        self.inbox = Inbox(lambda: None)
        self.batches = Batches(self.store, self.engine, self.calls, self.inbox, self.clock)
        return self

    def restart(self, *in_hand):
        """Begin anew as after a crash that found these events in hand."""
        self.calls.close()
        self.rules(self._text, **self._options)
        for slot, seq in enumerate(in_hand):
            self.guard._map[slot * 8 : slot * 8 + 8] = seq.to_bytes(8, "little")
        return self

    def recover(self):
        def wait_for_calls():
            while self.calls.under_way or self.calls.has_returns:
                self.calls.expire()
                self.batches.turn(intake=False, due=False)

        Recovery(self.store, self.batches, self.guard, self.clock, max_crashes=3, wait_for_calls=wait_for_calls).run()

    def store_new(self, *events):
        """Put events into the store as `publish` does when no worker runs."""
        from dispatcher.sources.embedded import admit

        return admit(self.store, self.engine.intake, [self.body(event) for event in events], self.clock.now())

    def ask_to_publish(self, *events):
        """Ask as a client of the control socket does; return the request, to see what it is answered."""
        bodies = [base64.b64encode(self.body(event)).decode() for event in events]
        request = Request("publish", {"bodies": bodies})
        self.inbox.submit(request)
        return request

    @staticmethod
    def body(event):
        if isinstance(event, bytes):
            return event
        common = {
            "account_key": "acc",
            "conversation_key": "conv",
            "conversation_type": "poll",
            "event_type": "done",
            "event_data": {},
        }
        return json.dumps(common | event).encode()

    def turn(self, *, intake=True, due=True):
        return self.batches.turn(intake=intake, due=due)

    def work_off(self):
        """Take turns until nothing is left that is due."""
        deadline = time.monotonic() + 10
        while self.turn() or self.calls.under_way or self.calls.has_returns:
            assert time.monotonic() < deadline

    def refuse(self, table, condition):
        """Let the database refuse rows that are inserted into a table."""
        self.world.place.refuse_rows(table, condition)

    def states(self, table="runs"):
        return [row["state"] for row in self.rows(table)]

    def close(self):
        self.calls.close()
        for guard in self._guards:
            guard.close()


@pytest.fixture
def workshop(world):
    workshop = Workshop(world)
    yield workshop
    workshop.close()
