"""Consumers as the worker's loop uses them, and what to feed them."""

from __future__ import annotations

import threading
import time

import pika
import pytest

from dispatcher.engine.intake import Delivery
from dispatcher.settings import Settings
from dispatcher.sources.amqp.consumer import Consumer, Queue, QueueStatus
from dispatcher.sources.amqp.link import LinkStatus
from dispatcher.sources.amqp.subscription import Subscription
from tests.harness.waiting import wait_until

EVENTS = Queue("vumi.event")


class Worker:
    """A consumer, and the book of what came through it."""

    def __init__(self, url: str, *queues: Queue, shared: bool = False, **settings) -> None:
        self.woken = threading.Event()
        facts = Settings(amqp_url=url, **settings)
        self.consumer = Consumer(facts, queues or (EVENTS,), self.woken.set, shared=shared)
        self.got: list[Delivery] = []
        self.consumer.start()

    def take(self, count: int) -> list[Delivery]:
        """Wait for so many deliveries more."""
        taken: list[Delivery] = []

        def enough():
            taken.extend(self.consumer.take(count - len(taken)))
            return len(taken) == count

        wait_until(enough, f"{count} deliveries")
        self.got += taken
        return taken

    def work(self, *, seconds: float = 30, until) -> None:
        """Take and ack whatever comes, as the worker's loop does, sleeping in between until it is woken."""
        deadline = time.monotonic() + seconds
        while not until():
            assert time.monotonic() < deadline, "the work is not done"
            if taken := self.consumer.take(256):
                self.got += taken
                self.consumer.ack(taken)
            else:
                self.woken.wait(0.05)
                self.woken.clear()

    @property
    def link(self) -> LinkStatus:
        return self.consumer.status.link

    @property
    def subscription(self) -> Subscription:
        """The first queue's."""
        return self.consumer._role.subscriptions[0]

    def queue(self, name: str = EVENTS.name) -> QueueStatus:
        return next(queue for queue in self.consumer.status.queues if queue.name == name)

    def await_consuming(self, name: str = EVENTS.name, seconds: float = 30) -> None:
        def consuming() -> bool:
            return any(queue.consuming for queue in self.consumer.status.queues if queue.name == name)

        wait_until(consuming, f"{name} to be consumed", seconds)

    def await_reason(self, part: str, name: str = EVENTS.name) -> str:
        wait_until(lambda: part in (self.queue(name).reason or ""), f"a reason with {part!r}")
        return self.queue(name).reason or ""

    def bodies(self) -> set[bytes]:
        return {delivery.body for delivery in self.got}


@pytest.fixture
def worker(vhost):
    """Make workers; wait until they consume."""
    workers: list[Worker] = []

    def make(*queues: Queue, url: str | None = None, consuming: bool = True, **settings) -> Worker:
        workers.append(Worker(url or vhost.url, *queues, **settings))
        if consuming:
            for queue in queues or (EVENTS,):
                workers[-1].await_consuming(queue.name)
        return workers[-1]

    yield make
    for each in workers:
        each.consumer.stop(2)


def publish(vhost, *bodies: bytes, queue: str = EVENTS.name, **properties) -> None:
    with vhost.channel() as channel:
        channel.confirm_delivery()
        for body in bodies:
            channel.basic_publish("", queue, body, pika.BasicProperties(delivery_mode=2, **properties), mandatory=True)


def numbered(count: int, *, begin: int = 0) -> list[bytes]:
    return [b"event %d" % number for number in range(begin, begin + count)]


def is_empty(vhost, queue: str = EVENTS.name) -> bool:
    return vhost.queue_depth(queue) == (0, 0)
