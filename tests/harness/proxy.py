"""A network that misbehaves: a TCP proxy on loopback between a client and a server.

What it does can be changed while connections run, from any thread. It starts by passing everything on.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, Self, TypeVar
from urllib.parse import urlsplit, urlunsplit

from tests.harness.rabbit import free_port

Direction = Literal["to_server", "to_client"]
Mode = Literal["pass", "blackhole", "half_open"]
Answer = TypeVar("Answer")

CHUNK = 65_536
# Small, so that a client whose bytes are not read notices after a few of them and not after megabytes.
RECEIVE_BUFFER = 65_536
RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@dataclass(eq=False)
class Pair:
    """A client's connection and the one made for it to the server; None in a blackhole, where none is made."""

    client: socket.socket
    server: socket.socket | None = None
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def close(self, *, reset: bool) -> None:
        loop = asyncio.get_running_loop()
        for task in self.tasks:
            task.cancel()
        for end in (self.client, self.server):
            if end is not None and end.fileno() != -1:
                # A number that the loop still watches must not go to the next socket.
                loop.remove_reader(end)
                loop.remove_writer(end)
                with contextlib.suppress(OSError):
                    if reset:
                        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
                    end.close()


class ChaosProxy:
    """Listens on `port` of loopback and talks to `target_port`; a context manager, or `close()` it.

    `connections`: how many were accepted so far. `cuts`: how many `cut_after` has cut. `passed`: bytes by direction.
    """

    def __init__(self, target_port: int, *, target_host: str = "127.0.0.1") -> None:
        self.target = (target_host, target_port)
        self.port = free_port()
        self.connections = 0
        self.cuts = 0
        self.passed: dict[Direction, int] = {"to_server": 0, "to_client": 0}
        self._mode: Mode = "pass"
        self._delay_seconds = 0.0
        self._budget: dict[Direction, int] = {}
        self._pairs: set[Pair] = set()
        self._listener: socket.socket | None = None
        self._loop = asyncio.new_event_loop()
        self._changed = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_forever, name="chaos-proxy", daemon=True)
        self._thread.start()
        self._do(self._listen)

    def url(self, url: str) -> str:
        """The same URL, by way of this proxy."""
        parts = urlsplit(url)
        credentials, at, _ = parts.netloc.rpartition("@")
        return urlunsplit(parts._replace(netloc=f"{credentials}{at}127.0.0.1:{self.port}"))

    @property
    def open(self) -> int:
        """How many connections are open just now."""
        return self._do(lambda: len(self._pairs))

    # What it can be told to do

    def pass_on(self) -> None:
        """Be a good network again: listen, pass everything on, at once. What a blackhole swallowed is lost."""
        self._do(self._behave)

    def reset(self) -> None:
        """Reset (RST) every open connection on both sides, now; new ones are treated as before."""
        self._do(self._reset_all)

    def refuse(self) -> None:
        """Reset every connection and refuse new ones until `pass_on`, as a host does where nothing listens."""

        def refuse() -> None:
            self._stop_listening()
            self._reset_all()

        self._do(refuse)

    def cut_after(self, count: int, direction: Direction = "to_server") -> None:
        """Let `count` more bytes through in a direction, then reset the connection that sent them; only once."""

        def limit() -> None:
            self._budget[direction] = count

        self._do(limit)

    def blackhole(self) -> None:
        """Swallow everything in both directions without a FIN or RST; new connections are accepted and not heard."""
        self._do(lambda: self._switch("blackhole"))

    def half_open(self) -> None:
        """Stop reading from clients, whose sockets stay open, until `pass_on`; what the server says still arrives.

        A chunk that is just being read is kept, and passed on after.
        """
        self._do(lambda: self._switch("half_open"))

    def delay(self, seconds: float) -> None:
        """Pass each chunk on only after so long, in both directions; 0 ends it."""

        def slow() -> None:
            self._delay_seconds = seconds

        self._do(slow)

    def close(self) -> None:
        """Close everything (with FIN) and end the thread; again is harmless."""
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # In the proxy's own thread

    def _do(self, action: Callable[[], Answer]) -> Answer:
        async def act() -> Answer:
            return action()

        return asyncio.run_coroutine_threadsafe(act(), self._loop).result(10)

    def _switch(self, mode: Mode) -> None:
        self._mode = mode
        self._changed.set()
        self._changed = asyncio.Event()

    def _behave(self) -> None:
        self._delay_seconds = 0.0
        self._budget.clear()
        self._switch("pass")
        if self._listener is None:
            self._listen()

    def _listen(self) -> None:
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        self._listener.setblocking(False)
        self._listener.bind(("127.0.0.1", self.port))
        self._listener.listen(64)
        self._loop.add_reader(self._listener, self._accept, self._listener)

    def _stop_listening(self) -> None:
        if self._listener is not None:
            self._loop.remove_reader(self._listener)
            self._listener.close()
        self._listener = None

    def _reset_all(self) -> None:
        for pair in list(self._pairs):
            self._drop(pair, reset=True)

    def _drop(self, pair: Pair, *, reset: bool) -> None:
        self._pairs.discard(pair)
        pair.close(reset=reset)

    async def _end(self) -> None:
        self._stop_listening()
        for pair in list(self._pairs):
            self._drop(pair, reset=False)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.gather(*others, return_exceptions=True)

    def _accept(self, listener: socket.socket) -> None:
        try:
            client, _ = listener.accept()
        except OSError:
            return  # whoever knocked has gone
        client.setblocking(False)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.connections += 1
        pair = Pair(client)
        self._pairs.add(pair)
        pair.tasks.append(self._loop.create_task(self._serve(pair)))

    async def _serve(self, pair: Pair) -> None:
        if self._mode == "blackhole":
            await self._swallow(pair)
            return
        pair.server = socket.socket()
        pair.server.setblocking(False)
        pair.server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            await self._loop.sock_connect(pair.server, self.target)
        except OSError:
            self._drop(pair, reset=True)
            return
        pumps: tuple[Direction, ...] = ("to_server", "to_client")
        pair.tasks += [self._loop.create_task(self._pump(pair, direction)) for direction in pumps]

    async def _swallow(self, pair: Pair) -> None:
        with contextlib.suppress(OSError):
            while await self._loop.sock_recv(pair.client, CHUNK):
                pass

    async def _pump(self, pair: Pair, direction: Direction) -> None:
        assert pair.server is not None
        source, sink = (pair.client, pair.server) if direction == "to_server" else (pair.server, pair.client)
        try:
            while True:
                await self._gate(direction)
                data = await self._loop.sock_recv(source, CHUNK)
                if self._delay_seconds:
                    await asyncio.sleep(self._delay_seconds)
                await self._gate(direction)
                if not data:
                    break
                if self._mode == "blackhole":
                    continue
                allowed = self._within_budget(direction, data)
                await self._loop.sock_sendall(sink, allowed)
                self.passed[direction] += len(allowed)
                if len(allowed) < len(data) or self._budget.get(direction) == 0:
                    del self._budget[direction]
                    self.cuts += 1
                    self._drop(pair, reset=True)
                    return
        except OSError:
            if self._mode != "blackhole":
                self._drop(pair, reset=True)
            return
        # The end of a stream is news as well, which a blackhole swallows.
        while self._mode == "blackhole":
            await self._changed.wait()
        self._drop(pair, reset=False)

    async def _gate(self, direction: Direction) -> None:
        while self._mode == "half_open" and direction == "to_server":
            await self._changed.wait()

    def _within_budget(self, direction: Direction, data: bytes) -> bytes:
        budget = self._budget.get(direction)
        if budget is None:
            return data
        allowed = data[:budget]
        self._budget[direction] = budget - len(allowed)
        return allowed


@contextlib.contextmanager
def proxied(url: str) -> Iterator[ChaosProxy]:
    """A proxy to the server of a URL; `proxy.url(url)` is the way through it."""
    parts = urlsplit(url)
    with ChaosProxy(parts.port or 5672, target_host=parts.hostname or "127.0.0.1") as proxy:
        yield proxy
