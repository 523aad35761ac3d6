"""How fast events go from a queue of RabbitMQ to texts on another, everything journaled and confirmed.

A private RabbitMQ node, a quorum queue with events waiting, and the real worker: create_contact and send_sms by a
`vumi` sender, on a store with synchronous=FULL. Measured from outside, by what reaches the outbound queue; start-up and
the first tenth are left out. Then the latency at a steady rate, from the publish of an event to its text.

    .venv/bin/python bench/broker.py --events 20000 --runs 3 --folder /var/tmp
    .venv/bin/python bench/broker.py --backlog 1000000        # and how much memory that takes
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pika

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tests.harness.rabbit import Node  # noqa: E402

SCRIPT = Path(sys.executable).with_name("dispatcher")
PATIENCE = 600.0
RULEBOOK = """\
version: 1
accounts: {acc1: {region: ZA}}
senders: {default: {type: vumi, transport_name: sms, from_addr: "+27820000000"}}
chains:
  - name: welcome
    on: {conversation_type: vxpolls, event_type: poll_complete}
    when: data.consent == "yes"
    steps:
      - id: contact
        handler: create_contact
        with: {msisdn: "{{ data.msisdn }}", name: "{{ data.name | title }}"}
      - handler: send_sms
        with: {to: "{{ steps.contact.msisdn }}", text: "Thanks {{ steps.contact.name }}!"}
"""


def an_event(number: int) -> bytes:
    """An event of about 400 bytes, with a random id, as a poll publishes it."""
    return json.dumps(
        {
            "event_id": str(uuid.uuid4()),
            "account_key": "acc1",
            "conversation_key": "a6a20571e77f4aa89a8b10a771b005bc",
            "conversation_type": "vxpolls",
            "event_type": "poll_complete",
            "event_data": {
                "msisdn": f"+2782{number % 10_000_000:07d}",
                "name": "thandi dlamini",
                "consent": "yes",
                "language": "en",
                "answers": {"age": "25-34", "visited": "yes", "again": "no", "clinic": "Kwa-Zenzele"},
            },
        }
    ).encode()


class Bench:
    """One vhost with its queues, in a folder of its own."""

    def __init__(self, node: Node, folder: Path, name: str) -> None:
        self.node, self.folder, self.vhost = node, folder, name
        folder.mkdir()
        node.add_vhost(name)
        self.url = node.url(name)
        (folder / "rulebook.yaml").write_text(RULEBOOK)
        self.environ = {key: value for key, value in os.environ.items() if not key.startswith("DISPATCHER_")} | {
            "DISPATCHER_STORE": "sqlite:///store.db",
            "DISPATCHER_RULEBOOK": "rulebook.yaml",
            "DISPATCHER_AMQP_URL": self.url,
            "DISPATCHER_LOG_FORMAT": "json",
        }
        with self.channel() as channel:
            channel.exchange_declare("vumi", exchange_type="direct", durable=True)
            for queue in ("vumi.event", "sms.outbound"):
                channel.queue_declare(queue, durable=True, arguments={"x-queue-type": "quorum"})
                channel.queue_bind(queue, "vumi", queue)

    @contextmanager
    def channel(self) -> Iterator[pika.adapters.blocking_connection.BlockingChannel]:
        """A channel on the vhost."""
        with closing(pika.BlockingConnection(pika.URLParameters(self.url))) as connection:
            yield connection.channel()

    def fill(self, events: int) -> None:
        """Put events into the queue, and wait until the broker has all of them."""
        properties = pika.BasicProperties(delivery_mode=2)
        with self.channel() as channel:
            for number in range(events):
                channel.basic_publish("vumi", "vumi.event", an_event(number), properties)
        while self.node.queue_depth(self.vhost, "vumi.event")[0] < events:
            time.sleep(0.05)

    def outbound(self) -> int:
        """How many texts have come out."""
        return sum(self.node.queue_depth(self.vhost, "sms.outbound"))

    @contextmanager
    def worker(self) -> Iterator[subprocess.Popen[bytes]]:
        """The worker, stopped in order at the end."""
        with (self.folder / "stderr").open("w") as stderr:
            process = subprocess.Popen([str(SCRIPT), "run"], cwd=self.folder, env=self.environ, stderr=stderr)
            try:
                yield process
                process.send_signal(signal.SIGTERM)
                if process.wait(60) != 0:
                    raise SystemExit(f"the worker ended with {process.returncode}: {self.said()}")
            finally:
                process.kill()
                process.wait()

    def said(self) -> str:
        """The end of what the worker logged."""
        return (self.folder / "stderr").read_text()[-2000:]

    def count(self, rows: str) -> int:
        """How many rows of a kind the store has."""
        with closing(sqlite3.connect(f"file:{self.folder / 'store.db'}?mode=ro", uri=True)) as store:
            return int(store.execute(f"SELECT count(*) FROM {rows}").fetchone()[0])

    def check(self, events: int) -> None:
        """Every event matched, every run done, every text sent, nothing left."""
        found = {
            rows: self.count(rows)
            for rows in ("events WHERE state = 'matched'", "runs WHERE state = 'done'", "contacts",
                         "messages WHERE state = 'sent'", "outbox", "dead_letters")
        }  # fmt: skip
        if list(found.values()) != [events] * 4 + [0, 0]:
            raise SystemExit(f"not what there should be: {found}")


def throughput(bench: Bench, events: int) -> dict[str, float]:
    """Drain a full queue; events/s between the first tenth and the last event."""
    bench.fill(events)
    with bench.worker() as process:
        deadline = time.monotonic() + PATIENCE
        began = first = None
        while (done := bench.outbound()) < events:
            now = time.perf_counter()
            if done >= events // 10 and began is None:
                began, first = now, done
            if time.monotonic() > deadline or process.poll() is not None:
                raise SystemExit(f"{done} of {events} came out: {bench.said()}")
            time.sleep(0.01)
        ended = time.perf_counter()
        wait_for_quiet(bench)
        cpu = cpu_seconds(process.pid)
        peak = peak_mb(process.pid)
    bench.check(events)
    return {"events_per_second": (events - first) / (ended - began), "cpu_us": cpu / events * 1e6, "peak_mb": peak}


def wait_for_quiet(bench: Bench) -> None:
    """Wait until the last confirms are on record."""
    while bench.count("outbox"):
        time.sleep(0.02)


def cpu_seconds(pid: int) -> float:
    """CPU seconds that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_mb(pid: int) -> float:
    """The peak of a process's memory."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1000


def latency(bench: Bench, per_second: int, seconds: float) -> dict[str, float]:
    """Publish at a steady rate and time each text from its event's publish, in milliseconds."""
    total = int(per_second * seconds)
    published: dict[str, float] = {}
    came: dict[str, float] = {}
    ready = threading.Event()

    def collect() -> None:
        with bench.channel() as channel:
            channel.basic_qos(prefetch_count=1000)
            ready.set()
            for _, _, body in channel.consume("sms.outbound", auto_ack=True, inactivity_timeout=10):
                if body is None:
                    return
                came[json.loads(body)["to_addr"]] = time.perf_counter()
                if len(came) == total + 1:
                    return

    thread = threading.Thread(target=collect)
    thread.start()
    ready.wait()
    with bench.worker(), bench.channel() as channel:
        properties = pika.BasicProperties(delivery_mode=2)
        channel.basic_publish("vumi", "vumi.event", an_event(9_999_999), properties)
        while not came:
            time.sleep(0.01)
        began = time.perf_counter()
        for number in range(total):
            due = began + number / per_second
            while (now := time.perf_counter()) < due:
                time.sleep(min(0.001, due - now))
            published[f"+2782{number:07d}"] = time.perf_counter()
            channel.basic_publish("vumi", "vumi.event", an_event(number), properties)
        thread.join()
    skipped = per_second  # the first second
    times = sorted((came[key] - at) * 1000 for number, (key, at) in enumerate(published.items()) if number >= skipped)
    return {
        "p50_ms": statistics.median(times), "p99_ms": times[int(len(times) * 0.99)], "max_ms": times[-1],
    }  # fmt: skip


def main() -> None:
    """Measure and print."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--events", type=int, default=20_000)
    arguments.add_argument("--runs", type=int, default=3)
    arguments.add_argument("--rate", type=int, default=500, help="events/s of the latency run; 0 leaves it out")
    arguments.add_argument("--seconds", type=float, default=10.0)
    arguments.add_argument("--backlog", type=int, default=0, help="also drain so many, and tell the memory")
    arguments.add_argument("--folder", type=Path, default=None)
    given = arguments.parse_args()
    node = Node()
    node.start()
    try:
        with tempfile.TemporaryDirectory(dir=given.folder) as folder:
            for run in range(given.runs):
                print(json.dumps(throughput(Bench(node, Path(folder) / f"t{run}", f"t{run}"), given.events)))
            if given.rate:
                print(json.dumps(latency(Bench(node, Path(folder) / "l", "l"), given.rate, given.seconds)))
            if given.backlog:
                print(json.dumps(throughput(Bench(node, Path(folder) / "b", "b"), given.backlog)))
    finally:
        node.end()
    print(f"peak of this script: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000:.0f} MB")


if __name__ == "__main__":
    main()
