"""Who takes part: ours in its settings, and each folder in bench/peers. Says how one is started, fed and looked at.

A contestant enters a site once for each run, and what it needs there (a store, a database) is made for that run.
"""

from __future__ import annotations

import sys
import tempfile
import tomllib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

from bench import environments, job
from bench.environments import ROOT, Environment, Unavailable
from bench.ours import PostgresDatabase, SqliteFile, Store, check, count
from bench.processes import ContestantFailed, Launch, started, wait_until
from bench.site import QUEUES, Lab, Message, Site
from tests.harness.postgres import NoPostgres

PEERS = ROOT / "bench" / "peers"
SCRIPT = Path(sys.executable).with_name("dispatcher")
CAPTURE_PATIENCE = 600.0
SETTLE_PATIENCE = 30.0

BROKERED = frozenset({"throughput", "latency", "startup"})
UNBROKERED = frozenset({"throughput"})
OUTSIDE = "outside"


class Entry(Protocol):
    """A contestant on the site of one run."""

    @property
    def launch(self) -> Launch:
        """How its worker is started."""
        ...

    def settle(self) -> None:
        """Wait until the worker has nothing in hand. Raises ContestantFailed when that does not come."""
        ...

    def check(self, events: int) -> None:
        """See that of so many events each came out once. Raises ContestantFailed when that is not so."""
        ...


@dataclass(kw_only=True)
class Contestant(ABC):
    """What the table tells of everybody, and where its events and texts are."""

    name: str
    title: str
    kind: str
    note: str = ""
    queue_type: str = "quorum"
    incoming: str = QUEUES[0]
    outgoing: str = QUEUES[1]
    declare: Sequence[str] = QUEUES
    workers: int = 1
    needs_database: bool = False
    measures: frozenset[str] = BROKERED
    rounds: int | None = None  # in how many it takes part; in all, if None

    def prepare(self, lab: Lab) -> dict[str, str]:
        """Make ready what it runs on; return the versions to be told. Raises Unavailable."""
        if self.needs_database:
            try:
                _ = lab.server
            except NoPostgres as missing:
                raise Unavailable(str(missing)) from None
        return {}

    @abstractmethod
    def enter(self, site: Site) -> Entry:
        """Come to a site, with what has to be there before the worker."""

    def capture(self, lab: Lab, events: int) -> Sequence[Message] | None:
        """Return the first events as its own client publishes them; None when it takes plain JSON."""
        return None

    def described(self) -> dict[str, str]:
        """Return what the results tell of it."""
        told = ("name", "title", "kind", "queue_type", "note")
        return {name: getattr(self, name) for name in told}


@dataclass
class OursEntry:
    """One of ours on a site."""

    contestant: Ours
    site: Site
    store: Store

    @property
    def environ(self) -> dict[str, str]:
        """The settings of its processes."""
        environ = {
            "DISPATCHER_STORE": self.store.url,
            "DISPATCHER_RULEBOOK": str(self.site.folder / "rulebook.yaml"),
            "DISPATCHER_LOG_FORMAT": "json",
        }
        return environ if self.contestant.embedded else {**environ, "DISPATCHER_AMQP_URL": self.site.url}

    def dispatch(self, *arguments: str) -> Launch:
        """Return how to start the console script."""
        return Launch([str(SCRIPT), *arguments], self.site.folder, self.environ)

    @property
    def launch(self) -> Launch:
        """How its worker is started."""
        drain = ["--drain"] if self.contestant.embedded else []
        workers = ["--workers", str(self.contestant.workers)] if self.contestant.workers > 1 else []
        return self.dispatch("run", *drain, *workers)

    def settle(self) -> None:
        """Wait until the last confirms are on record, and the last events acknowledged."""
        wait_until(lambda: count(self.store, "outbox") == 0, SETTLE_PATIENCE, "an empty outbox")
        if not self.contestant.embedded:
            wait_until(lambda: self.site.depth(self.contestant.incoming) == 0, SETTLE_PATIENCE, "an empty queue")

    def check(self, events: int) -> None:
        """See that the store has all that there should be, and the outgoing queue no text twice."""
        check(self.store, events, "queued" if self.contestant.embedded else "sent")
        if not self.contestant.embedded:
            _check_queues(self.site, self.contestant, events)


@dataclass(kw_only=True)
class Ours(Contestant):
    """The dispatcher, between two queues or embedded."""

    kind: str = "ours"
    embedded: bool = False

    def enter(self, site: Site) -> OursEntry:
        """Write the rulebook, and find a place for the store."""
        (site.folder / "rulebook.yaml").write_text(job.rulebook(job.TO_OUTBOX if self.embedded else job.TO_VUMI))
        store: Store = PostgresDatabase(site.database()) if self.needs_database else SqliteFile(site.store_file)
        return OursEntry(self, site, store)


@dataclass
class PeerEntry:
    """A peer on a site."""

    peer: Peer
    site: Site
    launch: Launch

    def settle(self) -> None:
        """Wait until its last events are acknowledged."""
        wait_until(lambda: self.site.depth(self.peer.incoming) == 0, SETTLE_PATIENCE, "an empty queue")

    def check(self, events: int) -> None:
        """See that nothing is left, and nothing came twice."""
        _check_queues(self.site, self.peer, events)


@dataclass(kw_only=True)
class Peer(Contestant):
    """One of bench/peers: a worker in an environment of its own."""

    folder: Path
    command: Sequence[str]
    packages: Sequence[str] = ()
    fill: Sequence[str] = ()
    environ: Mapping[str, str] = field(default_factory=dict)
    needs: Sequence[str] = ()
    environment: Environment | None = None

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read a peer.toml."""
        told: dict[str, Any] = tomllib.loads((folder / "peer.toml").read_text())
        stores = [value for value in told.get("environ", {}).values() if "{store_url}" in value]
        told["needs_database"] = bool(stores) or folder.name.endswith("_postgresql")
        if told["kind"] == OUTSIDE:  # it measures itself, and no ratio is taken
            told.update(measures=UNBROKERED, rounds=1)
        return cls(name=folder.name, folder=folder, **told)

    def prepare(self, lab: Lab) -> dict[str, str]:
        """Make its environment; return the versions in it."""
        super().prepare(lab)
        environments.demand(self.needs)
        self.environment = environments.ensure(self.folder)
        found = self.environment.versions(self.packages)
        # A framework gives its title its version; a loop is nobody's, and names all that it uses.
        own = found.pop(next(iter(found))) if self.kind != "loop" and found else ""
        others = ", ".join(f"{name} {version}" for name, version in found.items())
        return {self.title: f"{own} ({others})" if own and others else own or others}

    def _launch(self, site: Site, command: Sequence[str], *arguments: str) -> Launch:
        assert self.environment is not None
        places = {"python": self.environment.python, "bin": self.environment.bin}
        store = site.database() if self.needs_database else str(site.store_file)
        stores = {"store": str(site.store_file), "store_url": store}
        environ = {name: value.format(**stores) for name, value in self.environ.items()}
        return Launch(
            [part.format(**places) for part in command] + [*arguments],
            self.folder,
            {"BENCH_AMQP_URL": site.url, "BENCH_STORE": store, **environ},
        )

    def enter(self, site: Site) -> PeerEntry:
        """Have a framework declare the queues that it wants to declare itself."""
        if self.fill:
            self._publish(site, [])
        return PeerEntry(self, site, self._launch(site, self.command))

    def capture(self, lab: Lab, events: int) -> Sequence[Message] | None:
        """Have the framework's own client publish the events, once; every run gets these."""
        if not self.fill:
            return None
        with lab.site(self.name, self.declare) as site:
            self._publish(site, list(job.events(events)))
            messages = site.capture(self.incoming)
        if len(messages) != events:
            raise ContestantFailed(f"its client published {len(messages)} of {events} events")
        return messages

    def _publish(self, site: Site, events: Sequence[bytes]) -> None:
        with tempfile.NamedTemporaryFile(dir=site.folder) as file:
            file.writelines(event + b"\n" for event in events)
            file.flush()
            launch = self._launch(site, self.fill, str(len(events)))
            launch = Launch(launch.command, launch.folder, launch.environ, Path(file.name))
            with started(launch, site.folder / "fill.out") as running:
                running.wait(CAPTURE_PATIENCE)


def _check_queues(site: Site, contestant: Contestant, events: int) -> None:
    left, came = site.depth(contestant.incoming), site.depth(contestant.outgoing)
    if (left, came) != (0, events):
        raise ContestantFailed(f"{events} events gave {came} texts, and {left} are left")


class Feed:
    """The events that contestants get: the same in each run, made once for each kind of envelope."""

    def __init__(self, lab: Lab, most: int) -> None:
        self._lab, self._most = lab, most
        self._plain: Sequence[Message] = [Message(event) for event in job.events(most)]
        self._captured: dict[str, Sequence[Message]] = {}

    def messages(self, contestant: Contestant, events: int) -> Sequence[Message]:
        """Return the first events as this contestant takes them."""
        if contestant.name not in self._captured:
            self._captured[contestant.name] = contestant.capture(self._lab, self._most) or self._plain
        return self._captured[contestant.name][:events]


def ours() -> list[Contestant]:
    """Return the dispatcher in all its settings."""
    between, embedded = "RabbitMQ to RabbitMQ", "publish of a file, then run --drain; the store is the queue"
    return [
        Ours(name="ours-sqlite", title="dispatcher, SQLite", note=f"{between}, synchronous=FULL"),
        Ours(
            name="ours-postgresql", title="dispatcher, PostgreSQL", note=f"{between}, synchronous_commit on",
            needs_database=True,
        ),
        Ours(
            name="ours-postgresql-2", title="dispatcher, PostgreSQL, 2 workers",
            note=f"{between}, synchronous_commit on", needs_database=True, workers=2,
        ),
        Ours(
            name="ours-embedded", title="dispatcher embedded, SQLite", note=embedded, queue_type="none",
            embedded=True, measures=UNBROKERED,
        ),
        Ours(
            name="ours-embedded-postgresql", title="dispatcher embedded, PostgreSQL", note=embedded, queue_type="none",
            embedded=True, measures=UNBROKERED, needs_database=True,
        ),
        Ours(
            name="ours-embedded-postgresql-2", title="dispatcher embedded, PostgreSQL, 2 workers", note=embedded,
            queue_type="none", embedded=True, measures=UNBROKERED, needs_database=True, workers=2,
        ),
    ]  # fmt: skip


def peers() -> list[Contestant]:
    """Return the hand-written loops, then the frameworks, each sorted by name."""
    found = [Peer.read(file.parent) for file in sorted(PEERS.glob("*/peer.toml"))]
    return sorted(found, key=lambda peer: (peer.kind != "loop", peer.name))


def choose(only: Iterable[str], without: Iterable[str]) -> list[Contestant]:
    """Return all contestants, or those that are named, less those that are not wanted. Raises SystemExit."""
    everyone = [*ours(), *peers()]
    known, only, without = {one.name for one in everyone}, set(only), set(without)
    if unknown := sorted((only | without) - known):
        raise SystemExit(f"There is no {', no '.join(unknown)}. There are: {', '.join(one.name for one in everyone)}.")
    return [one for one in everyone if (not only or one.name in only) and one.name not in without]
