"""How long a text takes at a steady rate: from the publish of an event to its text at a consumer.

The probe shares the machine, so it is kept light: this process publishes, another one collects, and nothing is worked
out before the end. The first second is left out.
"""

from __future__ import annotations

import multiprocessing
import signal
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import pika
from pika.adapters.blocking_connection import BlockingChannel

from bench.contestants import Contestant
from bench.job import number_in
from bench.processes import ContestantFailed, Running, started
from bench.site import Lab, Message, Site

START_PATIENCE = 60.0
END_PATIENCE = 30.0
WARM_UP = 1  # second
PREFETCH = 1000

# When the text of each event came, by the event's number; of time.perf_counter, which processes share.
Arrivals = Mapping[int, float]


def measure(lab: Lab, contestant: Contestant, rate: int, seconds: float, messages: Sequence[Message]) -> dict[str, Any]:
    """Publish at a steady rate once; `messages` is one more than that takes. Raises ContestantFailed."""
    with lab.site(contestant.name, contestant.declare) as site:
        entry = contestant.enter(site)
        first, *steady = messages
        site.fill([first], contestant.incoming)  # its text tells that the worker is there
        with (
            collecting(site, contestant.outgoing, len(steady) + 1) as collector,
            started(entry.launch, site.folder / "worker.out") as running,
            site.channel() as channel,  # open to the end: what one that is closed has not passed on may be lost
        ):
            collector.wait_for_first(running)
            used, began = running.tree.cpu_seconds(), time.perf_counter()
            published = _publish(channel, contestant.incoming, steady, rate)
            came = collector.wait_for_all(running)
            share = (running.tree.cpu_seconds() - used) / (time.perf_counter() - began)
            running.stop()
    # The first event was number 0.
    waits = sorted((came[n] - at) * 1000 for n, at in enumerate(published, 1) if n > rate * WARM_UP)
    return {
        "rate": rate,
        "seconds": seconds,
        "p50_ms": statistics.median(waits),
        "p99_ms": waits[int(len(waits) * 0.99)],
        "max_ms": waits[-1],
        "cpu_percent": share * 100,
    }


def _publish(channel: BlockingChannel, queue: str, messages: Sequence[Message], rate: int) -> list[float]:
    """Publish each when it is due; return when each was."""
    published: list[float] = []
    began = time.perf_counter()
    for number, message in enumerate(messages):
        while (ahead := began + number / rate - time.perf_counter()) > 0:
            time.sleep(ahead)
        published.append(time.perf_counter())
        channel.basic_publish("", queue, message.body, message.properties)
    return published


@dataclass(frozen=True)
class Collector:
    """The process at the other end, as it is spoken to."""

    pipe: Connection
    wanted: int

    def wait_for_first(self, running: Running) -> float:
        """Wait for the first text; return when it came."""
        self._wait(running, START_PATIENCE, "no text came")
        return float(self.pipe.recv())

    def wait_for_all(self, running: Running) -> Arrivals:
        """Wait for all of them; return when each came."""
        self._wait(running, END_PATIENCE, f"not all of {self.wanted} texts came")
        came: Arrivals = self.pipe.recv()
        if len(came) != self.wanted:
            raise ContestantFailed(f"{len(came)} of {self.wanted} texts came: {running.said()}")
        return came

    def _wait(self, running: Running, patience: float, otherwise: str) -> None:
        deadline = time.monotonic() + patience
        while not self.pipe.poll(0.2):
            if running.ended() or time.monotonic() > deadline:
                raise ContestantFailed(f"{otherwise}: {running.said()}")


@contextmanager
def collecting(site: Site, queue: str, wanted: int) -> Iterator[Collector]:
    """Have another process take so many texts from a queue; it listens when the block begins, and is gone after it."""
    context = multiprocessing.get_context("spawn")
    ours, its = context.Pipe()
    process = context.Process(target=_collect, args=(its, site.url, queue, wanted), daemon=True)
    process.start()
    try:
        if not ours.poll(START_PATIENCE):
            raise ContestantFailed(f"{queue} could not be listened to")
        ours.recv()
        yield Collector(ours, wanted)
    finally:
        process.kill()
        process.join()
        ours.close()


def _collect(pipe: Connection, url: str, queue: str, wanted: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's Ctrl-C is for the parent, who ends this
    came: dict[int, float] = {}
    with closing(pika.BlockingConnection(pika.URLParameters(url))) as connection:
        channel = connection.channel()
        channel.basic_qos(prefetch_count=PREFETCH)
        pipe.send("ready")
        for _, _, body in channel.consume(queue, auto_ack=True):
            at = time.perf_counter()
            if body is None or (number := number_in(body)) is None:
                continue
            came.setdefault(number, at)
            if len(came) == 1:
                pipe.send(at)
            if len(came) == wanted:
                break
    pipe.send(came)
