"""A vhost of one test's own: on the private node, or the one that DISPATCHER_TEST_AMQP_URL names."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

import pika
import pika.exceptions
import pytest
from pika.adapters.blocking_connection import BlockingChannel

from tests.harness.external import NEEDS_NODE, VARIABLE
from tests.harness.rabbit import Node

# What the dispatcher makes or is told to use, and what tests therefore leave behind where no vhost can be dropped.
KNOWN_QUEUES = ("vumi.event", "vumi.event.dead")
KNOWN_EXCHANGES = ("vumi", "vumi.dead", "vumi.events")

_numbers = itertools.count(1)


@dataclass
class Vhost:
    """A vhost, and what can be done there without naming it each time."""

    name: str
    url: str
    user: str
    password: str
    port: int
    host: str = "127.0.0.1"
    administrator_url: str = field(default="", repr=False)
    private: Node | None = None
    made: list[str] = field(default_factory=list)

    @property
    def node(self) -> Node:
        """The private node; skips the test where there is none."""
        if self.private is None:
            pytest.skip(NEEDS_NODE)
        return self.private

    # What AMQP can do, on any server

    @contextmanager
    def channel(self) -> Iterator[BlockingChannel]:
        """A channel of the administrator's, whatever the vhost's user may do just now."""
        connection = pika.BlockingConnection(pika.URLParameters(self.administrator_url or self.url))
        try:
            yield connection.channel()
        finally:
            if connection.is_open:
                connection.close()

    def declare_queue(
        self,
        queue: str,
        *,
        kind: str | None = "quorum",
        arguments: Mapping[str, Any] | None = None,
        exchange: str | None = None,
        routing_key: str | None = None,
    ) -> None:
        """Declare a durable queue (`kind` None: without x-queue-type) and bind it to a direct durable exchange."""
        table = ({"x-queue-type": kind} if kind else {}) | dict(arguments or {})
        with self.channel() as channel:
            channel.queue_declare(queue, durable=True, arguments=table)
            self.made.append(queue)
            if exchange is not None:
                channel.exchange_declare(exchange, exchange_type="direct", durable=True)
                channel.queue_bind(queue, exchange, routing_key or queue)

    def delete_queue(self, queue: str) -> None:
        """Delete a queue and all that is in it, consumers or not."""
        if self.private is not None:
            self.private.await_dead_lettering(self.name)
        with self.channel() as channel:
            channel.queue_delete(queue)

    def delete_exchange(self, exchange: str) -> None:
        """Delete an exchange, bound or not."""
        with self.channel() as channel:
            channel.exchange_delete(exchange)

    def purge_queue(self, queue: str) -> None:
        """Take away what is ready in a queue."""
        with self.channel() as channel:
            channel.queue_purge(queue)

    # What only the node itself can

    def queue_depth(self, queue: str) -> tuple[int, int]:
        """See Node.queue_depth."""
        return self.node.queue_depth(self.name, queue)

    def queue_arguments(self, queue: str) -> dict[str, Any]:
        """See Node.queue_arguments."""
        return self.node.queue_arguments(self.name, queue)

    def queues(self) -> list[str]:
        """See Node.queues."""
        return self.node.queues(self.name)

    def consumers(self) -> list[dict[str, Any]]:
        """See Node.consumers."""
        return self.node.consumers(self.name)

    def connections(self) -> list[dict[str, Any]]:
        """See Node.connections: those to this vhost."""
        return self.node.connections(self.name)

    def set_permissions(self, configure: str = ".*", write: str = ".*", read: str = ".*") -> None:
        """Say what the vhost's user may do."""
        self.node.set_permissions(self.user, self.name, configure, write, read)

    def clear_permissions(self) -> None:
        """Shut the vhost's user out."""
        self.node.clear_permissions(self.user, self.name)

    def change_password(self, password: str) -> None:
        """Change the password of the vhost's user; `url` keeps the old one."""
        self.node.change_password(self.user, password)


@contextmanager
def vhost_on(node: Node) -> Iterator[Vhost]:
    """Make a vhost and its user on a private node, and delete both after."""
    name = f"test-{next(_numbers)}"
    user, password = f"{name}-user", f"{name}-password"
    node.add_vhost(name)
    node.add_user(user, password)
    node.set_permissions(user, name)
    try:
        yield Vhost(
            name=name,
            url=node.url(name, user=user, password=password),
            user=user,
            password=password,
            port=node.port,
            administrator_url=node.url(name),
            private=node,
        )
    finally:
        node.mend()
        node.delete_vhost(name)
        node.delete_user(user)


@contextmanager
def external_vhost(url: str) -> Iterator[Vhost]:
    """Use the vhost of a URL; what tests made there is deleted before and after."""
    parts = urlsplit(url)
    vhost = Vhost(
        name=unquote(parts.path.removeprefix("/")) or "/",
        url=url,
        user=unquote(parts.username or "guest"),
        password=unquote(parts.password or "guest"),
        host=parts.hostname or "localhost",
        port=parts.port or 5672,
    )
    if "test" not in vhost.name:
        pytest.fail(f'{VARIABLE} names vhost "{vhost.name}": its queues would be deleted, so its name must hold "test"')
    _empty(vhost)
    try:
        yield vhost
    finally:
        _empty(vhost)


def _empty(vhost: Vhost) -> None:
    with vhost.channel() as channel:
        for queue in {*KNOWN_QUEUES, *vhost.made}:
            channel.queue_delete(queue)
        for exchange in KNOWN_EXCHANGES:
            channel.exchange_delete(exchange)
