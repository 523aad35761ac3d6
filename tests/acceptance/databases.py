"""Several workers on one PostgreSQL, as real processes: how they are started and broken, and books that must balance.

What went in is known to the test, what was called to an HTTP service of the test's own, what came out to its queues.
The store is read beside the workers with psycopg, over a connection that outlives any restart of the server.
"""

from __future__ import annotations

import collections
import contextlib
import signal
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import psycopg

from dispatcher.store.postgres.leases import SIGN_OF_LIFE
from tests.acceptance.brokers import EVENTS_QUEUE, Site, Worker
from tests.acceptance.conftest import SCRIPT, Folder, an_event
from tests.acceptance.outsiders import PATIENCE
from tests.harness.external import FULL_SIZE
from tests.harness.waiting import wait_until

KILLED = -signal.SIGKILL
FENCED = 75
CONTACTS = 500

# A handler in the batch that says when it has begun, and goes on when it may: a place to freeze a worker at.
_PLUGIN = '''
import os, time
from pathlib import Path
from dispatcher import Done, Effect, Handler

class Linger(Handler):
    """Mark that it has begun, and wait until there is a file named "go"."""
    effect = Effect.TRANSACTION
    def run(self, event, context):
        Path(f"lingers.{os.getpid()}").touch()
        while not Path("go").exists():
            time.sleep(0.01)
        return Done()
'''

TOUCHING = '{handler: create_contact, with: {msisdn: "{{ data.msisdn }}", language: en}}'
CALLS = """\
services:
  keyed: {type: http, base_url: "URL", timeout: 60s, concurrency: 32}
  once: {type: http, base_url: "URL", timeout: 60s, concurrency: 32, idempotency_header: none}
"""
CALLING = """\
  - name: calling
    on: {event_type: call}
    steps: [{id: out, handler: http_request, with: {service: keyed, method: POST, url: "/{{ event.event_id }}"}}]
  - name: calling-once
    on: {event_type: call_once}
    steps: [{id: out, handler: http_request, with: {service: once, method: POST, url: "/{{ event.event_id }}"}}]
  - name: lingering
    on: {event_type: linger}
    steps:
      - {handler: linger}
      - {handler: create_contact, with: {msisdn: "{{ data.msisdn }}"}}
      - {handler: send_sms, with: {to: "{{ data.msisdn }}", text: "Hello!"}}
"""


def sized(usual: int, full: int) -> int:
    """How much to do: as much as there is time for in every run of the tests, or what the full size is."""
    return full if FULL_SIZE else usual


def events_of_few(count: int, first: int = 0, contacts: int = CONTACTS, **fields: Any) -> list[dict[str, Any]]:
    """Events of so many people, each of whom has several."""
    return [
        an_event(number, **fields)
        | {"event_data": {"msisdn": f"082 555 {number % contacts:04d}", "name": "thandi", "consent": "yes"}}
        for number in range(first, first + count)
    ]


class Books:
    """The store, read beside whoever writes it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._connection: psycopg.Connection[Any] | None = None

    def query(self, statement: str, params: Any = None) -> list[Any]:
        """Ask, or change; asked again while the server cannot be reached."""
        return wait_until(lambda: self._asked(statement, params), "an answer of PostgreSQL", PATIENCE)[0]

    def _asked(self, statement: str, params: Any) -> list[list[Any]]:
        try:
            if self._connection is None or self._connection.closed:
                self._connection = psycopg.connect(self.url, autocommit=True, connect_timeout=5)
            cursor = self._connection.execute(statement, params)
            return [cursor.fetchall() if cursor.description else []]
        except psycopg.OperationalError:
            self.close()
            return []

    def close(self) -> None:
        """Let go of the server."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def count(self, what: str) -> int:
        """Count rows."""
        return self.query(f"SELECT count(*) FROM {what}")[0][0]

    @property
    def made(self) -> bool:
        """Whether a worker has made the tables by now."""
        return self.query("SELECT to_regclass('outbox') IS NOT NULL AND to_regclass('channels') IS NOT NULL")[0][0]

    @property
    def deadlocks(self) -> int:
        """How many deadlocks the server has broken here; complete once those who met them have disconnected."""
        return self.query("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")[0][0]

    def snapshot(self) -> dict[str, list[Any]]:
        """Return all that work leaves behind, for a comparison."""
        tables = ("events", "runs", "steps", "contacts", "messages", "outbox", "dead_letters")
        return {table: self.query(f"SELECT t::text FROM {table} t ORDER BY 1") for table in tables}


@dataclass
class Workshop:
    """A folder with a rulebook, a database, and workers. `host` tells machines apart: each has a folder of its own."""

    folder: Folder
    books: Books
    workers: list[Worker] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder.environ |= {"DISPATCHER_STORE": self.books.url, "DISPATCHER_LOG_FORMAT": "json"}
        # What is emitted has an effect of its own, on the contact that other workers have in hand, and not in the log.
        rulebook = self.folder.path / "rulebook.yaml"
        rulebook.write_text(rulebook.read_text().replace("{handler: log_event}", TOUCHING))

    def start(self, number: int = 1, *arguments: str, host: str = "here", **settings: object) -> Worker:
        """Start a worker, and wait for nothing."""
        state = self.folder.path / host
        state.mkdir(exist_ok=True)
        settings = {"worker": number, "state": state, **settings}
        environ = self.folder.environ | {f"DISPATCHER_{name.upper()}": str(value) for name, value in settings.items()}
        log = self.folder.path / f"worker-{len(self.workers) + 1}.log"
        with log.open("wb") as stderr:
            process = subprocess.Popen(
                [SCRIPT, "run", *arguments], cwd=self.folder.path, env=environ, stdout=subprocess.DEVNULL, stderr=stderr
            )
        self.folder.started.append(process)
        self.workers.append(Worker(process, log))
        return self.workers[-1]

    def starts(self, count: int, **settings: object) -> list[Worker]:
        """Start so many workers, and wait until all have entered."""
        workers = [self.start(number, **settings) for number in range(1, count + 1)]
        for worker in workers:
            self.entered(worker)
        return workers

    def entered(self, worker: Worker) -> None:
        """Wait until a worker is one of those that share the store."""
        wait_until(
            lambda: b'"lease.held"' in worker.log.read_bytes() or worker.process.poll() is not None,
            "a worker",
            PATIENCE,
        )
        assert worker.process.poll() is None, worker.log.read_text()

    def alone(self, worker: Worker) -> None:
        """Wait until all others that there were have been taken over."""
        number = self.number_of(worker)
        wait_until(
            lambda: self.books.query("SELECT number FROM workers") == [(number,)],
            "the end of all others' leases",
            PATIENCE,
        )

    def number_of(self, worker: Worker) -> int:
        """Under which number a worker is known to the others."""
        return worker.said("lease.held")[0]["number"]

    def in_transaction(self, worker: Worker) -> bool:
        """Whether a worker has a transaction open: its session is the one that shows its life."""
        return self.books.query(
            "SELECT count(*) > 0 FROM pg_stat_activity a JOIN pg_locks l USING (pid) WHERE l.locktype = 'advisory' "
            "AND l.classid = %s AND l.objid = %s AND a.state LIKE 'idle in transaction%%'",
            (SIGN_OF_LIFE, self.number_of(worker)),
        )[0][0]

    def publish(self, *events: dict[str, Any], name: str = "events.jsonl") -> None:
        """Have a process of its own publish events into the store."""
        done = self.folder.run("publish", self.folder.write_events(*events, name=name))
        assert done.code == 0, done.err.decode()

    def end(self, *, seconds: float = PATIENCE) -> None:
        """Have those workers that live end as they should, which leaves nothing behind."""
        alive = [worker for worker in self.workers if worker.process.poll() is None]
        for worker in alive:
            self.entered(worker)
            worker.process.terminate()
        for worker in alive:
            wait_until(lambda worker=worker: worker.process.poll() is not None, "the end of a worker", seconds)
            assert worker.process.returncode == 0, worker.log.read_text()
        assert self.books.query("SELECT * FROM workers") == []

    def install_lingering(self) -> None:
        """Have the handler `linger`, and the chains that use it and that call the service at `url`."""
        plugins = self.folder.path / "plugins"
        info = plugins / "linger-1.dist-info"
        info.mkdir(parents=True)
        (plugins / "linger.py").write_text(_PLUGIN)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: linger\nVersion: 1\n")
        (info / "entry_points.txt").write_text("[dispatcher.handlers]\nlinger = linger:Linger\n")
        self.folder.environ["PYTHONPATH"] = str(plugins)

    def install_calls(self, url: str) -> None:
        """Give the rulebook chains that call a service, and one that lingers within the batch."""
        self.install_lingering()
        rulebook = self.folder.path / "rulebook.yaml"
        rulebook.write_text(
            rulebook.read_text().replace("chains:\n", CALLS.replace("URL", url) + "chains:\n", 1) + CALLING
        )

    def tell(self) -> Iterator[str]:
        """Say how things stand, for whoever looks into a failure."""
        for worker in self.workers:
            yield f"{worker.log.name}, ended with {worker.process.poll()}:"
            yield from worker.log.read_text().splitlines()[-25:]
        if self.books.made:
            for table in ("events", "runs", "outbox", "messages", "dead_letters"):
                yield f"{table}: {self.books.query(f'SELECT state, count(*) FROM {table} GROUP BY 1')}"
            yield f"workers: {self.books.query('SELECT * FROM workers')}"


@contextlib.contextmanager
def a_workshop(folder: Folder, url: str) -> Iterator[Workshop]:
    """A workshop; what it was at is shown with a failure."""
    with contextlib.closing(Books(url)) as books:
        workshop = Workshop(folder, books)
        try:
            yield workshop
        finally:
            _wake(workshop.workers)
            print(*workshop.tell(), sep="\n")  # noqa: T201 - pytest shows it when the test failed


def _wake(workers: Iterable[Worker]) -> None:
    for worker in workers:
        if worker.process.poll() is None:
            worker.process.send_signal(signal.SIGCONT)


class SharedSite(Site):
    """A site of a broker whose workers share a PostgreSQL."""

    def __init__(self, folder: Folder, vhost: Any, books: Books, **options: Any) -> None:
        self.books = books
        super().__init__(folder, vhost, **options)
        self.shop = Workshop(folder, books, self.workers)

    def query(self, statement: str) -> list[Any]:
        return self.books.query(statement)

    @property
    def has_store(self) -> bool:
        return self.books.made

    @property
    def whole(self) -> bool:
        return True  # PostgreSQL has no such check; its queries fail

    @property
    def consuming(self) -> bool:
        alive = sum(worker.process.poll() is None for worker in self.workers)
        found = collections.Counter(consumer["queue"] for consumer in self.vhost.consumers())
        return found == {EVENTS_QUEUE: alive, "sms_transport.event": alive}

    def starts(self, count: int, **settings: object) -> list[Worker]:
        """Start so many workers, and wait until all consume."""
        workers = [self.shop.start(number, **settings) for number in range(1, count + 1)]
        wait_until(lambda: self.consuming, "consumers of all workers", PATIENCE)
        return workers


@contextlib.contextmanager
def a_shared_site(folder: Folder, vhost: Any, url: str) -> Iterator[SharedSite]:
    """A site whose traffic ends with the test; what it was at is shown with a failure."""
    with contextlib.closing(Books(url)) as books:
        site = SharedSite(folder, vhost, books)
        try:
            yield site
        finally:
            _wake(site.workers)
            print(*site.tell(), sep="\n")  # noqa: T201 - pytest shows it when the test failed
            for traffic in site.traffic:
                traffic.end()


# The oracle, where there is no broker.


def all_is_well(books: Books, events: int, contacts: int = CONTACTS) -> None:
    """Assert that of so many poll_complete events each had its effects once, and nothing is left over."""
    contacts = min(events, contacts)
    query, count = books.query, books.count
    assert query("SELECT event_type, state, count(*) FROM events WHERE event_type IN "
                 "('poll_complete', 'welcome_sent') GROUP BY 1, 2 ORDER BY 1") == [
        ("poll_complete", "matched", events),
        ("welcome_sent", "matched", events),
    ]  # fmt: skip
    assert query(
        "SELECT r.state, count(*) FROM runs r JOIN events e ON e.seq = r.event_seq "
        "WHERE e.event_type IN ('poll_complete', 'welcome_sent') GROUP BY 1"
    ) == [("done", 2 * events)]
    assert count("contacts") == count("(SELECT DISTINCT msisdn FROM contacts) c") == contacts
    polls = "messages WHERE step <> 'linger' AND event_id IN (SELECT event_id FROM events WHERE hops = 0)"
    assert count(polls) == events, "texts"
    assert count(f"(SELECT DISTINCT event_id FROM {polls}) m") == events, "a text was written twice"
    assert count("(SELECT DISTINCT parent_id FROM events WHERE hops = 1) e") == events
    assert count("outbox WHERE state <> 'held'") == 0
    assert books.query("SELECT reason, count(*) FROM dead_letters GROUP BY 1") == []
