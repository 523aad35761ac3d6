"""A worker on a broker, traffic that is not ours, and a ledger: what was confirmed in, and what came out.

Nothing here asks the dispatcher what it did but the store, read with sqlite3: what went in is known from the broker's
confirms to kombu, what came out from queues of the test's own.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import kombu
import pika

from tests.acceptance import chaos
from tests.acceptance.conftest import SCRIPT, Folder, an_event
from tests.harness.administration import NoSuchQueue
from tests.harness.control import EvaluationFailed
from tests.harness.waiting import wait_until

EVENTS_QUEUE = "vumi.event"
TEXTS = "test.texts"  # the test's own queue of what leaves for the transport
EMITTED = "test.emitted"  # and of what is emitted
RECOVERY_SECONDS = 20.0  # the bar is 5 s after the return of the broker; a machine that does other things gets more

# What ends a connection is told once, and once more when its reason changes: closed, refused, then shutting down.
REASONS_PER_FAULT = 3

RULEBOOK = """\
version: 1
accounts: {acc1: {region: ZA}}
conversations: {c-historic: vxpolls}
senders:
  default: {type: vumi, transport_name: sms_transport, from_addr: "+27821230000"}
chains:
  - name: welcome
    on: {conversation_type: vxpolls, event_type: poll_complete}
    when: data.consent == "yes"
    steps:
      - id: contact
        handler: create_contact
        with: {msisdn: "{{ data.msisdn }}", name: "{{ data.name | title }}"}
      - id: text
        handler: send_sms
        with: {to: "{{ steps.contact.msisdn }}", text: "Thanks {{ steps.contact.name }}!"}
      - id: tell
        handler: emit_event
        with: {event_type: welcome_sent, publish: true, event_data: {msisdn: "{{ steps.contact.msisdn }}"}}
"""

_SLOW_PLUGIN = """
import time
from dispatcher import Done, Effect, Handler

class Slow(Handler):
    \"\"\"Take the time that the event asks for, within the batch.\"\"\"
    effect = Effect.TRANSACTION
    def run(self, event, context):
        time.sleep(event.data.get("seconds", 0))
        return Done()
"""


def install_slow(folder: Folder) -> None:
    """Have the chain begin with a handler that takes its time, so that a fault meets events in hand."""
    plugins = folder.path / "plugins"
    info = plugins / "slow-1.dist-info"
    info.mkdir(parents=True)
    (plugins / "slow.py").write_text(_SLOW_PLUGIN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: slow\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[dispatcher.handlers]\nslow = slow:Slow\n")
    folder.environ["PYTHONPATH"] = str(plugins)
    rulebook = folder.path / "rulebook.yaml"
    rulebook.write_text(rulebook.read_text().replace("steps:\n", "steps:\n      - {id: slowly, handler: slow}\n", 1))


def some_events(count: int, first: int = 0, **fields: Any) -> list[dict[str, Any]]:
    """Events of as many people as there are events."""
    return [an_event(number, **fields) for number in range(first, first + count)]


class Traffic:
    """Publishes events with kombu, pipelined, until each is confirmed; goes on where it was after any fault.

    An event has its `event_id` as message id; what lacks one is published without, and must not be met by a fault.
    """

    WINDOW = 100
    PATIENCE = 0.05

    def __init__(
        self,
        url: str,
        events: Iterable[dict[str, Any]],
        *,
        per_second: float | None = None,
        exchange: str = "vumi",
        routing_key: str = EVENTS_QUEUE,
    ) -> None:
        self._url = url
        self._to = {"exchange": exchange, "routing_key": routing_key}
        self._todo = collections.deque(enumerate(events))
        self._events = dict(self._todo)
        self._in_flight: dict[int, int] = {}
        self._returned: set[str] = set()
        self._tag = 0
        self._interval = self.WINDOW / 10 / per_second if per_second else 0.0
        self._ending = threading.Event()
        self.confirmed: set[int] = set()
        self.retries = 0
        self._thread = threading.Thread(target=self._run, name="traffic", daemon=True)
        self._thread.start()

    @property
    def confirmed_ids(self) -> set[str]:
        """The ids of what the broker has confirmed."""
        return {self._events[number]["event_id"] for number in self.confirmed if "event_id" in self._events[number]}

    @property
    def done(self) -> bool:
        """Whether everything is confirmed."""
        return len(self.confirmed) == len(self._events)

    def finish(self) -> None:
        """Wait until everything is confirmed."""
        wait_until(lambda: self.done or not self._thread.is_alive(), "the confirms of all events")
        assert self.done, "the traffic's thread died"

    def end(self) -> None:
        """Publish no more; what is not confirmed is not owed."""
        self._ending.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ending.is_set() and not self.done:
            connection = kombu.Connection(self._url, connect_timeout=2)
            faults = (
                *connection.recoverable_connection_errors,
                *connection.channel_errors,
                kombu.exceptions.OperationalError,
                OSError,
            )
            with contextlib.suppress(*faults), connection:
                self._publish_on(connection)
            if not self.done:
                self.retries += 1
                self._todo.extendleft((number, self._events[number]) for number in reversed(self._in_flight.values()))
                self._in_flight.clear()
                self._ending.wait(self.PATIENCE)

    def _publish_on(self, connection: kombu.Connection) -> None:
        channel = connection.default_channel
        channel.confirm_select()
        channel.events["basic_ack"].add(self._acked)
        channel.events["basic_return"].add(self._give_back)
        producer = kombu.Producer(channel)
        self._tag = 0
        while not self._ending.is_set() and not self.done:
            for _ in range(self.WINDOW // 10 if self._interval else self.WINDOW):
                if not self._todo or len(self._in_flight) >= self.WINDOW:
                    break
                number, event = self._todo.popleft()
                self._tag += 1
                self._in_flight[self._tag] = number
                identity = {"message_id": event["event_id"]} if "event_id" in event else {}
                body = json.dumps(event)
                producer.publish(
                    body, **self._to, content_type="text/plain", mandatory=True, delivery_mode=2, **identity
                )
            if self._interval:
                self._ending.wait(self._interval)
            with contextlib.suppress(TimeoutError, socket.timeout):
                connection.drain_events(timeout=0.001 if self._interval else 0.05)

    def _give_back(self, _error: Exception, _exchange: str, _routing_key: str, message: Any) -> None:
        self._returned.add(message.properties.get("message_id", ""))

    def _acked(self, tag: int, multiple: bool) -> None:
        for each in [each for each in self._in_flight if each <= tag] if multiple else [tag]:
            number = self._in_flight.pop(each)
            identity = self._events[number].get("event_id", "")
            if identity in self._returned:  # no queue had it: the ack of a mandatory message says no more than that
                self._returned.discard(identity)
                self._todo.append((number, self._events[number]))
            else:
                self.confirmed.add(number)


@dataclass
class Worker:
    """A worker process and what it logged."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def lines(self) -> list[dict[str, Any]]:
        """What was logged; every line must be JSON, so that a traceback is found."""
        text = self.log.read_bytes()
        return [json.loads(line) for line in text[: text.rfind(b"\n") + 1].splitlines()]

    def said(self, event: str, **fields: Any) -> list[dict[str, Any]]:
        """The lines of one kind."""
        return [line for line in self.lines if line["event"] == event and fields.items() <= line.items()]

    @property
    def cpu_seconds(self) -> float:
        """The processor time that it has used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def ended(self) -> int:
        """Wait for the end; the exit code."""
        wait_until(lambda: self.process.poll() is not None, "the worker to end")
        return self.process.returncode

    def stop(self) -> int:
        """Ask it to end, and wait; the exit code."""
        self.process.terminate()
        return self.ended()

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait()


@dataclass
class Site:
    """A folder with a rulebook for a broker, a vhost, and the ledger."""

    folder: Folder
    vhost: Any
    url: str = ""
    workers: list[Worker] = field(default_factory=list)
    traffic: list[Traffic] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.url = self.url or self.vhost.url
        self.write_rulebook(RULEBOOK)
        self.folder.environ |= {"DISPATCHER_AMQP_URL": self.url, "DISPATCHER_LOG_FORMAT": "json"}
        self.declare_collectors()

    def write_rulebook(self, text: str) -> None:
        """Have the next worker go by this rulebook."""
        (self.folder.path / "rulebook.yaml").write_text(text)

    def declare_collectors(self) -> None:
        """Have queues of our own take what comes out, as a transport and a subscriber would."""
        with self.vhost.channel() as channel:
            channel.exchange_declare("vumi", exchange_type="direct", durable=True)
            channel.exchange_declare("vumi.events", exchange_type="topic", durable=True)
            for queue in (TEXTS, EMITTED):
                channel.queue_declare(queue, durable=True)
                self.vhost.made.append(queue)
            channel.queue_bind(TEXTS, "vumi", "sms_transport.outbound")
            channel.queue_bind(EMITTED, "vumi.events", "#")

    def tell(self) -> Iterator[str]:
        """Say how things stand, for whoever looks into a failure."""
        yield f"confirmed: {[len(traffic.confirmed) for traffic in self.traffic]}"
        for worker in self.workers:
            yield f"worker, ended with {worker.process.poll()}:"
            yield from worker.log.read_text().splitlines()[-40:]
        if self.has_store:
            for table in ("events", "runs", "outbox", "messages", "dead_letters"):
                yield f"{table}: {self.query(f'SELECT state, count(*) FROM {table} GROUP BY 1')}"
            yield f"outbox: {self.query('SELECT DISTINCT destination, state, attempt, error FROM outbox LIMIT 10')}"
        with contextlib.suppress(EvaluationFailed):
            yield f"consumers: {self.vhost.consumers()}"
            yield f"queues: { {queue: self.depth(queue) for queue in self.vhost.queues()} }"

    # The worker.

    def start(self, *arguments: str, consuming: bool = True, **settings: object) -> Worker:
        """Start a worker, and wait until it consumes."""
        log = self.folder.path / f"worker-{len(self.workers) + 1}.log"
        environ = self.folder.environ | {f"DISPATCHER_{name.upper()}": str(value) for name, value in settings.items()}
        with log.open("wb") as stderr:
            process = subprocess.Popen(
                [SCRIPT, "run", *arguments], cwd=self.folder.path, env=environ, stdout=subprocess.DEVNULL, stderr=stderr
            )
        self.folder.started.append(process)
        worker = Worker(process, log)
        self.workers.append(worker)
        if consuming:
            wait_until(lambda: self.consuming or process.poll() is not None, "the worker to consume")
            assert process.poll() is None, log.read_text()
        return worker

    @property
    def consuming(self) -> bool:
        """Whether the broker counts one consumer of each queue that the worker should have."""
        found = collections.Counter(consumer["queue"] for consumer in self.vhost.consumers())
        return found == {EVENTS_QUEUE: 1, "sms_transport.event": 1}

    def consumes_again(self) -> None:
        """Wait until the worker consumes, at most for as long as it may take after the broker's return."""
        wait_until(lambda: self.consuming, "consumers", RECOVERY_SECONDS)

    # What goes in.

    def publish(self, events: Iterable[dict[str, Any]], **options: Any) -> Traffic:
        """Begin to publish events."""
        # By the administrator: what the worker's user may not do any more is no concern of whoever publishes.
        traffic = Traffic(self.vhost.administrator_url or self.vhost.url, events, **options)
        self.traffic.append(traffic)
        return traffic

    @property
    def owed(self) -> set[str]:
        """The ids of the events that the broker has confirmed."""
        return set().union(*(traffic.confirmed_ids for traffic in self.traffic))

    # What became of it.

    def query(self, statement: str) -> list[Any]:
        """Read the store beside the worker."""
        return chaos.query(self.folder, statement)

    def count(self, what: str) -> int:
        """Count rows beside the worker."""
        return self.query(f"SELECT count(*) FROM {what}")[0][0]

    @property
    def has_store(self) -> bool:
        """Whether a worker has made the store by now."""
        return (self.folder.path / "store.db").exists()

    @property
    def whole(self) -> bool:
        """Whether the store's own check finds nothing wrong with it."""
        return self.query("PRAGMA integrity_check") == [("ok",)]

    @property
    def stored(self) -> int:
        """How many events came in so far."""
        return self.count("events WHERE hops = 0") if self.has_store else 0

    def wait_for(self, count: int) -> None:
        """Wait until so many events came in."""
        wait_until(lambda: self.stored >= count, f"{count} events in the store")

    @property
    def terminal(self) -> set[str]:
        """The ids of the events that are done with."""
        return {
            row[0]
            for row in self.query(
                "SELECT event_id FROM events e WHERE hops = 0 AND state IN ('matched', 'unmatched', 'dead') AND NOT "
                "EXISTS (SELECT 1 FROM runs r WHERE r.event_seq = e.seq AND r.state NOT IN "
                "('done', 'failed', 'cancelled', 'held'))"
            )
        }

    @property
    def settled(self) -> bool:
        """Whether everything that is owed is done with, and nothing waits to go out or to be acked."""
        # In the order in which an event goes through: what is past one question cannot turn up before it again.
        return (
            self.depth(EVENTS_QUEUE) == (0, 0)
            and self.count("events WHERE state = 'new'") == 0
            and self.owed <= self.terminal
            and self.count("outbox WHERE state <> 'held'") == 0
        )

    def settle(self, seconds: float = 30.0) -> None:
        """Wait until all traffic is confirmed and done with."""
        for traffic in self.traffic:
            traffic.finish()
        wait_until(lambda: self.settled, "all events to be done with", seconds)

    def depth(self, queue: str) -> tuple[int, int]:
        """How many messages of a queue are ready, and how many unacknowledged."""
        with contextlib.suppress(NoSuchQueue):
            return self.vhost.queue_depth(queue)
        return (0, 0)

    def collected(self, queue: str) -> collections.Counter[str]:
        """Take all out of a queue of ours: how often each message id came."""
        return collections.Counter(message_id for message_id, _ in self.take(queue))

    def look_into(self, queue: str) -> list[str]:
        """The message ids of what is ready in a queue, which stays there."""
        found = []
        with self.vhost.channel() as channel:
            while (answer := channel.basic_get(queue))[0] is not None:
                found.append(answer[1].message_id)
        return found

    def put_back(self, queue: str, messages: Iterable[tuple[str, dict[str, Any]]]) -> None:
        """Put into a queue of ours what was taken out of another."""
        with self.vhost.channel() as channel:
            for message_id, body in messages:
                properties = pika.BasicProperties(message_id=message_id, delivery_mode=2)
                channel.basic_publish("", queue, json.dumps(body), properties)

    def take(self, queue: str) -> list[tuple[str, dict[str, Any]]]:
        """Take all out of a queue of ours: message ids and bodies."""
        taken = []
        with self.vhost.channel() as channel:
            while True:
                method, properties, body = channel.basic_get(queue, auto_ack=True)
                if method is None:
                    return taken
                assert properties.delivery_mode == 2
                taken.append((properties.message_id, json.loads(body)))


@contextlib.contextmanager
def a_site(folder: Folder, vhost: Any, make: type[Site] = Site, **options: Any) -> Iterator[Site]:
    """A site whose traffic ends with the test; what it was at is shown with a failure."""
    site = make(folder, vhost, **options)
    try:
        yield site
    finally:
        print(*site.tell(), sep="\n")  # noqa: T201 - pytest shows it when the test failed
        for traffic in site.traffic:
            traffic.end()


# The oracle.


def nothing_is_lost_or_doubled(
    site: Site, *, letters: Iterable[tuple[str, str]] = (), resent: bool = False
) -> dict[str, int]:
    """Compare what went in with the store, and the store with what came out; assert that nobody was forgotten.

    `letters`: (reason, event id) of the dead letters that there must be, besides one `unknown` for each text of which
    nobody knows. `resent`: such texts go again, so that one may be out twice. Returns figures, for a closer look.
    """
    assert site.whole
    expected = set(letters)
    dead_events = {event_id for _, event_id in expected}
    in_store = [row[0] for row in site.query("SELECT event_id FROM events WHERE hops = 0")]
    assert site.owed - site.terminal == set(), "lost"
    assert len(in_store) == len(set(in_store)), "an event was taken twice"

    rows = site.query("SELECT message_id, event_id, state, run_id, to_addr FROM messages")
    texts = collections.Counter(row[1] for row in rows)
    assert set(texts) == site.owed - dead_events, "each event has its text"
    assert set(texts.values()) <= {1}, "a text was written twice"
    contacts = [row[0] for row in site.query("SELECT msisdn FROM contacts")]
    assert len(contacts) == len(set(contacts))
    assert set(contacts) == {row[4] for row in rows}
    figures = everything_stored_came_out(site, letters=expected, resent=resent)
    return figures | {"events": len(site.owed), "retries": sum(traffic.retries for traffic in site.traffic)}


def everything_stored_came_out(
    site: Site, *, letters: Iterable[tuple[str, str]] = (), resent: bool = False
) -> dict[str, int]:
    """Compare the store with what came out; assert that each text that may or may not be out is told of."""
    rows = site.query("SELECT message_id, state, run_id FROM messages")
    outbound = site.collected(TEXTS)
    states = collections.defaultdict(set)
    for message_id, state, _ in rows:
        states[state].add(message_id)
    assert set(states) <= {"sent", "held"}, f"texts in limbo: { {state: len(ids) for state, ids in states.items()} }"
    assert states["sent"] - set(outbound) == set(), "sent, and not to be found"
    assert set(outbound) - states["sent"] - states["held"] == set(), "out, and not in the store"
    twice = {message_id for message_id, times in outbound.items() if times > 1}
    assert resent or not twice, "texts that went out twice"
    assert not (resent and states["held"])

    open_letters = site.query("SELECT reason, event_id, run_id FROM dead_letters WHERE state = 'open'")
    held_runs = {run_id for _, state, run_id in rows if state == "held"}
    assert {row[2] for row in open_letters if row[0] == "unknown"} == held_runs, "each held text has its dead letter"
    others = [(reason, event_id) for reason, event_id, _ in open_letters if reason != "unknown"]
    assert sorted(others) == sorted(letters)

    emitted = {row[0] for row in site.query("SELECT event_id FROM events WHERE event_type = 'welcome_sent'")}
    told = site.collected(EMITTED)
    assert len(emitted) == len(rows)
    assert emitted - set(told) == set(), "emitted, and not told"
    assert set(told) - emitted == set(), "told, and never emitted"
    assert site.count("runs WHERE state NOT IN ('done', 'held')") == len(
        [reason for reason, _ in letters if reason == "failed"]
    )
    return {
        "held": len(states["held"]),
        "held and out": len(states["held"] & set(outbound)),
        "texts twice": len(twice),
        "told twice": sum(times > 1 for times in told.values()),
    }


def faults_were_told_once(worker: Worker, faults: int) -> None:
    """Assert that the log tells of each change of a connection or queue, and not of each attempt."""
    for connection in ("consumer", "publisher"):
        lost = worker.said("amqp.disconnected", connection=connection)
        assert len(lost) <= REASONS_PER_FAULT * faults, lost
        assert len(worker.said("amqp.connected", connection=connection)) <= faults + 1
    assert len(worker.said("queue.lost")) <= 2 * REASONS_PER_FAULT * faults, worker.said("queue.lost")
    assert worker.said("amqp.faulted") == []


def end(site: Site, worker: Worker, faults: int = 1, **options: Any) -> dict[str, int]:
    """Let everything come to its end, stop the worker, and look at the books; return their figures."""
    site.settle()
    assert worker.stop() == 0
    figures = nothing_is_lost_or_doubled(site, **options)
    print(figures)  # noqa: T201 - shown when it fails
    faults_were_told_once(worker, faults)
    return figures


def hold_calmly(worker: Worker, condition: Callable[[], object] = lambda: True) -> None:
    """Hold a fault for two seconds; the condition must hold, and the worker wait and not try as fast as it can."""
    before = worker.cpu_seconds
    hold(2, condition)
    assert worker.cpu_seconds - before < 1


def hold(seconds: float, condition: Callable[[], object] = lambda: True) -> None:
    """Hold a fault for a stated time, in which the condition must hold."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert condition()
        time.sleep(0.02)
