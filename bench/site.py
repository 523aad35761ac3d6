"""Where things are measured: a private RabbitMQ and a private PostgreSQL on one disk, and for each run a site on them.

A site is a vhost with its queues, a folder, and databases if it asks for any; all of it is gone when the run is over.
The servers are the tests' private ones, but what they confirm is on the disk.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self

import pika
import psycopg
from pika.adapters.blocking_connection import BlockingChannel

from bench.processes import ContestantFailed, Tree
from tests.harness.administration import NoSuchQueue
from tests.harness.postgres import Server
from tests.harness.rabbit import Node

EXCHANGE = "vumi"
QUEUES = ("vumi.event", "sms.outbound")
QUORUM = {"x-queue-type": "quorum"}
FILL_ATTEMPTS = 3
FILL_PATIENCE = 10.0  # seconds in which nothing comes

# PostgreSQL as one would set it up on a machine of this kind. With the least WAL level, millions of rows that a measure
# needs beforehand are filled in within bearable time; the WAL of ordinary transactions is the same.
DURABLE = """
fsync = on
full_page_writes = on
synchronous_commit = on
wal_level = minimal
max_wal_senders = 0
shared_buffers = {buffers}
max_wal_size = 8GB
checkpoint_timeout = 5min
effective_cache_size = 8GB
"""


def plain_json() -> pika.BasicProperties:
    """Return the properties of a persistent JSON document."""
    return pika.BasicProperties(delivery_mode=2, content_type="application/json")  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class Message:
    """What lies in a queue: a body, and the properties that a framework's own client gave it."""

    body: bytes
    properties: pika.BasicProperties = field(default_factory=plain_json)


class DurableServer(Server):
    """A private PostgreSQL whose commits are on the disk."""

    def __init__(self, *, buffers: str = "1GB") -> None:
        super().__init__()
        self._buffers = buffers

    @property
    def version(self) -> str:
        """Its version."""
        with psycopg.connect(self.url()) as connection:
            return str(connection.info.parameter_status("server_version"))

    def _prepare(self) -> None:
        super()._prepare()
        with (self.folder / "data" / "postgresql.conf").open("a") as configuration:
            configuration.write(DURABLE.format(buffers=self._buffers))


@dataclass
class Site:
    """One vhost and one folder on the lab's servers."""

    lab: Lab
    vhost: str
    folder: Path
    databases: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        """The AMQP URL of its vhost."""
        return self.lab.node.url(self.vhost)

    @property
    def store_file(self) -> Path:
        """A path for a SQLite file of its own."""
        return self.folder / "store.db"

    @contextmanager
    def channel(self) -> Iterator[BlockingChannel]:
        """Open a channel on the vhost."""
        with closing(pika.BlockingConnection(pika.URLParameters(self.url))) as connection:
            yield connection.channel()

    def declare(self, queues: Sequence[str]) -> None:
        """Declare the exchange, and queues that are bound to it by their names."""
        with self.channel() as channel:
            channel.exchange_declare(EXCHANGE, exchange_type="direct", durable=True)
            for queue in queues:
                channel.queue_declare(queue, durable=True, arguments=QUORUM)
                channel.queue_bind(queue, EXCHANGE, queue)

    def fill(self, messages: Sequence[Message], queue: str = QUEUES[0]) -> None:
        """Put messages into an empty queue. Raises ContestantFailed when the broker does not take them.

        To wait for each confirm would take minutes, and a quorum queue may lose what comes without: of a channel that
        is closed too soon, or while the queue has no leader yet. So the channel stays open until all of them are there,
        and where that does not come, all are published anew.
        """
        with self.channel() as channel:
            for _ in range(FILL_ATTEMPTS):
                channel.queue_purge(queue)
                for message in messages:
                    channel.basic_publish("", queue, message.body, message.properties)
                if self._reaches(queue, len(messages)):
                    return
        raise ContestantFailed(f"{queue} has {self.depth(queue)} of {len(messages)} messages")

    def _reaches(self, queue: str, wanted: int) -> bool:
        there, since = -1, time.monotonic()
        while (now := self.depth(queue)) < wanted and time.monotonic() < since + FILL_PATIENCE:
            if now > there:
                there, since = now, time.monotonic()
            time.sleep(0.05)
        return now >= wanted

    def depth(self, queue: str) -> int:
        """Return how many messages a queue holds, ready and unacknowledged; none when there is no such queue yet."""
        try:
            return sum(self.lab.node.queue_depth(self.vhost, queue))
        except NoSuchQueue:
            return 0

    def capture(self, queue: str) -> list[Message]:
        """Take all that is in a queue."""
        wanted, taken = self.depth(queue), list[Message]()
        if not wanted:
            return taken
        with self.channel() as channel:
            for _, properties, body in channel.consume(queue, auto_ack=True, inactivity_timeout=10):
                if body is None or properties is None:  # nothing came for a while
                    break
                taken.append(Message(body, properties))
                if len(taken) == wanted:
                    break
        return taken

    def database(self) -> str:
        """Make an empty database; return its URL."""
        url = self.lab.server.databases.create()
        self.databases.append(url)
        return url


class Lab:
    """The servers, and the folder in which they and all sites have their files. The servers end with it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stack = ExitStack()
        self._sites = 0

    def __enter__(self) -> Self:
        self.folder.chmod(0o711)  # PostgreSQL does not run as root, and has its folder in this one
        with _temporary_files_in(self.folder):
            self.node = Node()
        self._stack.callback(self.node.end)
        try:
            self.node.start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    @cached_property
    def server(self) -> DurableServer:
        """PostgreSQL, started when first asked for. Raises NoPostgres where there is none."""
        with _temporary_files_in(self.folder):
            server = DurableServer()
        self._stack.callback(server.end)
        server.start()
        return server

    @cached_property
    def broker_tree(self) -> Tree:
        """The processes of RabbitMQ."""
        return Tree(int(self.node.eval("os:getpid()").strip('"')))

    @property
    def database_tree(self) -> Tree:
        """The processes of PostgreSQL."""
        return Tree(self.server.pid)

    @contextmanager
    def site(self, name: str, declare: Sequence[str] = QUEUES) -> Iterator[Site]:
        """Make a site with these queues; take it away at the end."""
        self._sites += 1
        name = f"{name}-{self._sites}"
        folder = self.folder / name
        folder.mkdir()
        with ExitStack() as stack:
            stack.callback(shutil.rmtree, folder, ignore_errors=True)  # stores can be large
            self.node.add_vhost(name)
            stack.callback(self.node.delete_vhost, name)
            site = Site(self, name, folder)
            stack.callback(self._drop, site)
            site.declare(declare)
            yield site

    def _drop(self, site: Site) -> None:
        for url in site.databases:
            self.server.databases.drop(url)

    def versions(self) -> Mapping[str, str]:
        """Return the versions of the servers."""
        found = {
            "RabbitMQ": self.node.eval("list_to_binary(rabbit_misc:version())"),
            "Erlang": self.node.eval("list_to_binary(erlang:system_info(otp_release))"),
        }
        if "server" in self.__dict__:
            found["PostgreSQL"] = self.server.version
        return found


@contextmanager
def _temporary_files_in(folder: Path) -> Iterator[None]:
    """Have the harness make its folders in this one: it asks Python for temporary ones, which may lie in memory."""
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before
