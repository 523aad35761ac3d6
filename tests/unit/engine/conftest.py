"""A small world for the engine: a rulebook in text, a real store, a clock that stands, handlers that do as told."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import ClassVar

import pytest

from dispatcher import Context, Done, Effect, Event, Handler, Msisdn
from dispatcher.engine.call import CallReturn
from dispatcher.engine.emits import LoopGuard
from dispatcher.engine.intake import Delivery
from dispatcher.engine.machine import Budget, Engine
from dispatcher.engine.records import OPEN_LANE, as_text
from dispatcher.events.limits import Limits
from dispatcher.plugins.registry import Installed, load_registry
from dispatcher.rules.plan import load_plan
from dispatcher.store import migrate
from dispatcher.worker.connections import OpenConnections, PinnedChains
from tests.harness.stores import PostgresPlace, SqlitePlace, in_order, migrated


class Scripted(Handler):
    """Do what the test wrote down: each entry is an outcome to return or an exception to raise."""

    effect = Effect.TRANSACTION

    say: str = ""
    number: Msisdn | None = None

    class Result(Handler.Result):
        """Whatever the script returns."""

    script: ClassVar[list] = []
    seen: ClassVar[list] = []

    def run(self, event: Event, context: Context):
        type(self).seen.append((event, self.say, context.idempotency_key, context.attempt, context.cursor))
        if self.number:
            context.contacts.create(self.number, name="from the script")
        act = type(self).script.pop(0) if type(self).script else Done({"said": self.say})
        if isinstance(act, BaseException):
            raise act
        return act(event, context) if callable(act) else act


class ScriptedCall(Scripted):
    """The same as a call; its outcome is given by the test as what the call brought back."""

    effect = Effect.CALL


class Slots:
    """As many call slots as the test allows."""

    def __init__(self):
        self.free = 100

    def reserve(self, lane):
        if self.free:
            self.free -= 1
            return True
        return False

    def release(self, lane):
        self.free += 1


class Guard:
    """Notes whom the engine lays at whose door."""

    def __init__(self):
        self.entered = []

    def enter(self, seq, what):
        self.entered.append((seq, what))

    def leave(self):
        self.entered.append(None)


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory):
    """A migrated store without a row, to copy: migrating takes a third of a second."""
    path = tmp_path_factory.mktemp("store") / "empty.db"
    migrate.upgrade(path)
    return path


@pytest.fixture(scope="session")
def emptied_databases(postgres_databases):
    """The database that one test leaves to the next: emptying it takes a millisecond, making one twenty."""
    template = migrated(postgres_databases)
    left = []
    yield template, left
    for place in left:
        place.drop()
    postgres_databases.drop(template)


@pytest.fixture
def sqlite_place(tmp_path, empty_store):
    """A store of its own in a file."""
    place = SqlitePlace(tmp_path, empty_store)
    yield place
    place.close()


@pytest.fixture
def postgres_place(postgres_databases, emptied_databases):
    """A store of its own in a PostgreSQL."""
    template, left = emptied_databases
    place = (left.pop().again() if left else None) or PostgresPlace(postgres_databases, template)
    yield place
    place.leave()
    left.append(place)


@pytest.fixture(params=["sqlite", "postgres"])
def place(request):
    """Where the store is: each test of a world runs on both. A module that is about one of them says so by its own."""
    return request.getfixturevalue(f"{request.param}_place")


@pytest.fixture
def registry():
    found = load_registry()
    Scripted.script, Scripted.seen = [], []
    for name, handler in (("scripted", Scripted), ("scripted_call", ScriptedCall)):
        found.handlers.add(Installed(name, "tests", "1", handler))
    return found


class World:
    """One engine over one store; `turn` is a batch."""

    def __init__(self, tmp_path, registry, place):
        self.folder, self.registry, self.place = tmp_path, registry, place
        self.store, self.clock = place.open(), place.clock
        self.slots, self.guard = Slots(), Guard()
        self.engine = None
        self.calls = []
        self.script, self.seen = Scripted.script, Scripted.seen

    def rules(self, text, **options):
        path = self.folder / "rules.yaml"
        senders = options.get("senders", "senders: {default: {type: outbox}}\n")
        path.write_text("version: 1\n" + senders + text)
        plan = load_plan(path, self.registry, default_region="ZA", environ={})
        self.chains = PinnedChains(plan, self.store.chain_text)
        self.engine = Engine(
            plan=plan,
            chains=self.chains,
            connections=OpenConnections(plan),
            slots=self.slots,
            guard=self.guard,
            clock=self.clock,
            installation="tests",
            limits=Limits(),
            budget=options.get("budget", Budget()),
            loop_guard=options.get("loop_guard", LoopGuard()),
        )
        return self

    def publish(self, *events, **event):
        """Take events in, and advance them with the same batch; return the receipts."""
        bodies = [*events, *([event] if event else [])]
        full = [
            body
            if isinstance(body, bytes)
            else json.dumps(
                {"account_key": "acc", "conversation_key": "conv", "conversation_type": "poll", "event_type": "done",
                 "event_data": {}, **body}
            ).encode()
            for body in bodies
        ]  # fmt: skip
        return self.turn(deliveries=[Delivery(body) for body in full])

    def turn(self, deliveries=(), *, after=timedelta(0), intake=True):
        """Run one batch over the deliveries and whatever is new or due after the time given."""
        self.clock.advance(after)
        now = as_text(self.clock.now())
        with self.store.transaction() as transaction:
            batch = self.engine.begin(transaction)
            receipts = batch.admit(deliveries)
            if intake:
                batch.start(transaction.take_new(256))
            due = transaction.take_due(OPEN_LANE, now, 256)
            for lane in self.store.queued_calls():
                due += transaction.take_due(lane, now, 256)
            batch.resume(due)
            batch.advance()
            transaction.flush(batch.overlay.changes)
            transaction.commit()
        transaction.flushed(batch.overlay.changes)
        self.calls += batch.calls
        self.batch = batch
        return receipts

    def bring_back(self, outcome, index=0):
        """Let a call that was started come back with an outcome."""
        call = self.calls.pop(index)
        self.slots.release(call.lane)
        with self.store.transaction() as transaction:
            batch = self.engine.begin(transaction)
            batch.finish(transaction.runs([call.run_key]), [CallReturn(call, outcome)])
            batch.advance()
            transaction.flush(batch.overlay.changes)
            transaction.commit()
        self.calls += batch.calls

    def recover(self):
        """Do what a worker does first when the last one was killed."""
        self.calls.clear()
        with self.store.transaction() as transaction:
            batch = self.engine.begin(transaction)
            batch.recover(transaction.take_running())
            batch.advance()
            transaction.flush(batch.overlay.changes)
            transaction.commit()
        self.calls += batch.calls

    def sql(self, statement, *values):
        """Execute what both stores understand, with a `?` for each value, beside the store; return the rows."""
        return self.place.query(statement, *values)[1]

    def rows(self, table, *columns):
        """Return a table's rows in order: dicts, or tuples of the columns named."""
        names, rows = self.place.query(in_order(table))
        found = [dict(zip(names, row, strict=True)) for row in rows]
        return [tuple(row[name] for name in columns) for row in found] if columns else found

    def reopen(self):
        """Close the store and open it again; return it."""
        self.place.close()
        self.store = self.place.open()
        return self.store


@pytest.fixture
def world(tmp_path, registry, place):
    return World(tmp_path, registry, place)
