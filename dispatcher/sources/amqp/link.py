"""One connection to the broker, for ever: made, watched, told of, and made again, in a thread of its own.

What is done with the connection is its *role*'s business (the consumer's, the publisher's); the link calls it when
there is one, about once a second while there is, and when there is none any more. Each connection has an I/O loop of
its own, so that nothing scheduled for one connection ever runs on the next.

pika's public API has no way to break off a connection at once: `close` waits for answers that may never come. So the
loop remembers the sockets that pika gives it to watch, and shutting those down makes pika see the end by itself.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, Protocol

import pika
from pika.adapters.select_connection import IOLoop

from dispatcher.plugins.boundary import Escaped, contained
from dispatcher.settings import Settings
from dispatcher.sources.amqp.parameters import connection_parameters, endpoint
from dispatcher.sources.amqp.properties import read_tolerantly
from dispatcher.sources.amqp.reasons import reason_of
from dispatcher.telemetry import log

TICK_SECONDS: Final = 1.0
LONGEST_PAUSE_SECONDS: Final = 4.0
# The broker sends a sign of life each half heartbeat; after three missed ones, found within a tick, nobody is there.
_SILENT_HEARTBEATS: Final = 1.5
# pika tells of the end of a connection at once; should it not, its loop is left.
_BREAK_OFF_SECONDS: Final = 2.0

State = Literal["connecting", "up", "down", "stopped"]


@dataclass(frozen=True, slots=True)
class LinkStatus:
    """How a link is. Times are of the monotonic clock, in seconds; `reason` is for people."""

    state: State
    since: float
    reason: str | None
    reconnects: int
    blocked_since: float | None
    blocked_seconds: float


class Role(Protocol):
    """What a connection is for. All of it is called in the link's own thread."""

    def connected(self, connection: pika.SelectConnection) -> None:
        """Begin on a new connection: open channels."""
        ...

    def ticked(self) -> None:
        """Look for progress; about once a second while the connection is up."""
        ...

    def disconnected(self, reason: str) -> None:
        """Forget the connection. Whatever was in flight is of an old epoch now."""
        ...


class _Loop(IOLoop):
    """pika's I/O loop, which can also break off the connection that it serves."""

    def __init__(self) -> None:
        self._watched: set[int] = set()
        super().__init__()
        self._watched.clear()  # the loop's own descriptor for waking up

    def add_handler(self, fd: int, handler: Callable[[int, int], None], events: int) -> None:
        self._watched.add(fd)
        super().add_handler(fd, handler, events)

    def remove_handler(self, fd: int) -> None:
        self._watched.discard(fd)
        super().remove_handler(fd)

    def sever(self) -> None:
        """End the connection without asking the other side. pika finds its end and closes the socket."""
        for fd in self._watched:
            # Not the descriptor itself, which belongs to pika.
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as shared:
                # Unsent data is dropped and the broker told at once: it gives what was unacked to others.
                shared.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                shared.shutdown(socket.SHUT_RDWR)

    def finish(self) -> None:
        """Release everything; a connection that is left is broken off, and pika given a moment to close it."""
        if self._watched:
            self.sever()
            self.call_later(_BREAK_OFF_SECONDS, self.stop)
            contained(self.start)
        self.close()


class Link:
    """Keeps one connection up. `name` ("consumer", "publisher") is what people see of it, here and in the broker."""

    def __init__(self, name: str, settings: Settings, role: Role) -> None:
        self._name = name
        self._settings = settings
        self._role = role
        self._status = LinkStatus("connecting", time.monotonic(), None, 0, None, 0.0)
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()  # of the thread and the loop, which change together
        self._loop: _Loop | None = None
        # Of the link's thread alone.
        self._making: pika.SelectConnection | None = None
        self._connection: pika.SelectConnection | None = None
        self._ended_by: str | None = None
        self._attempt = 0
        self._up_before = False
        self._heard = (0, 0.0)  # how many bytes had come when it was last looked, and when they were more than before
        self._random = random.Random()  # noqa: S311 - spreads attempts, hides nothing

    @property
    def status(self) -> LinkStatus:
        """How the link is now; any thread. A thread that died is started anew."""
        self.revive()
        status = self._status
        if status.blocked_since is not None:
            return replace(status, blocked_seconds=status.blocked_seconds + time.monotonic() - status.blocked_since)
        return status

    def start(self) -> None:
        """Begin to connect; returns at once."""
        # What pika warns of at each attempt is told once a change by us, in words that hold no credentials.
        logging.getLogger("pika").setLevel(logging.CRITICAL + 1)
        read_tolerantly()
        self._start_thread_after(None)

    def revive(self) -> None:
        """Start the thread anew if it died; any thread."""
        thread = self._thread
        if thread is not None and not thread.is_alive():
            self._start_thread_after(thread)

    def _start_thread_after(self, last: threading.Thread | None) -> None:
        with self._lock:
            if self._thread is last and not self._ending.is_set():
                self._thread = threading.Thread(target=self._run, name=f"amqp-{self._name}", daemon=True)
                self._thread.start()

    def call(self, callback: Callable[[], None]) -> bool:
        """Have `callback` run in the link's thread, in the order of the calls; False when no connection is up.

        It does not run if the connection ends before. Any thread.
        """
        loop = self._loop
        if loop is None or self._status.state != "up":
            self.revive()
            return False
        loop.add_callback_threadsafe(lambda: self._run_on(loop, callback))
        return True

    def call_later(self, seconds: float, callback: Callable[[], None]) -> None:
        """Run `callback` after so many seconds, if this connection is still up then. In the link's thread only."""
        loop = self._loop
        if loop is not None:
            loop.call_later(seconds, lambda: self._run_on(loop, callback))

    def drop(self, reason: str) -> None:
        """Break this connection off and make a new one; any thread."""
        self.call(lambda: self._break_off(reason))

    def stop(self, patience_seconds: float) -> None:
        """Close the connection in order, and join the thread; after the patience, break it off."""
        self._ending.set()
        with self._lock:
            loop, thread = self._loop, self._thread
        if thread is None:
            self._tell("stopped", None)
            return
        if loop is not None:
            loop.add_callback_threadsafe(lambda: self._close(patience_seconds))
        thread.join(patience_seconds + 2 * _BREAK_OFF_SECONDS)

    # The thread.

    def _run(self) -> None:
        if self._connection is not None:
            self._over("the connection's thread died")
        while not self._ending.is_set():
            escaped = contained(self._serve)
            if isinstance(escaped, Escaped) and not self._ending.is_set():
                # An error of ours or of pika's: told in full, and the connection with it is given up.
                log.error("amqp.faulted", connection=self._name, exc_info=escaped.error)
                self._over(f"an error of the dispatcher ({type(escaped.error).__name__})")
            if not self._ending.is_set():
                self._ending.wait(self._pause())
        self._over("stopped")
        self._tell("stopped", None)

    def _pause(self) -> float:
        """Return how long to wait before the next attempt: longer each time, and never the same for two workers."""
        longest = min(LONGEST_PAUSE_SECONDS, 2.0 ** min(self._attempt, 10))
        self._attempt += 1
        return self._random.uniform(0.5, longest)

    def _serve(self) -> None:
        """Make a connection, and stay until it is over."""
        loop = _Loop()
        self._ended_by = None
        try:
            self._making = self._connect(loop)
            if self._making is None:
                return
            with self._lock:
                self._loop = loop
            if self._ending.is_set():  # between the thread's look and the loop that a stop could have spoken to
                loop.call_later(0, lambda: self._close(0.0))
            loop.start()
        finally:
            loop.finish()
            with self._lock:
                self._loop = None
            self._making = None

    def _connect(self, loop: _Loop) -> pika.SelectConnection | None:
        blocked = self._settings.amqp_blocked_seconds if self._name == "publisher" else None
        made = contained(lambda: connection_parameters(self._settings, self._name, blocked_seconds=blocked))
        if isinstance(made, Escaped):
            self._failed(None, made.error)
            return None
        return pika.SelectConnection(
            made,
            on_open_callback=self._opened,
            on_open_error_callback=self._failed,
            on_close_callback=self._failed,
            custom_ioloop=loop,
        )

    def _opened(self, connection: Any) -> None:
        self._connection = connection
        connection.add_on_connection_blocked_callback(lambda *_: self._blocked())
        connection.add_on_connection_unblocked_callback(lambda *_: self._unblocked())
        self._heard = (connection.bytes_received, time.monotonic())
        self._tell("up", None, reconnects=self._status.reconnects + self._up_before)
        self._up_before = True
        log.info("amqp.connected", connection=self._name, broker=endpoint(self._settings))
        self._contain(lambda: self._role.connected(connection))
        self.call_later(TICK_SECONDS, self._tick)

    def _failed(self, _connection: Any, error: BaseException) -> None:
        """Note that the attempt failed, or that the connection ended, and leave the loop."""
        where = contained(lambda: endpoint(self._settings))
        reason = self._ended_by or reason_of(error, "the broker" if isinstance(where, Escaped) else where)
        if self._ending.is_set():
            reason = "stopped"
        self._over(reason)
        if self._loop is not None:
            self._loop.stop()

    def _over(self, reason: str) -> None:
        """Tell everyone that there is no connection. Called twice for one connection, it tells once."""
        was, self._connection = self._connection, None
        if was is not None:
            self._unblocked()
            if time.monotonic() - self._status.since > LONGEST_PAUSE_SECONDS:
                self._attempt = 0  # a connection that held: begin with short pauses
        if not self._ending.is_set() and (self._status.state != "down" or self._status.reason != reason):
            log.warning("amqp.disconnected", connection=self._name, reason=reason)
            self._tell("down", reason)
        if was is not None:
            escaped = contained(lambda: self._role.disconnected(reason))
            if isinstance(escaped, Escaped):
                log.error("amqp.faulted", connection=self._name, exc_info=escaped.error)

    # In the loop.

    def _run_on(self, loop: _Loop, callback: Callable[[], None]) -> None:
        if loop is self._loop and self._connection is not None:
            self._contain(callback)

    def _contain(self, callback: Callable[[], None]) -> None:
        escaped = contained(callback)
        if isinstance(escaped, Escaped):
            log.error("amqp.faulted", connection=self._name, exc_info=escaped.error)
            self._break_off(f"an error of the dispatcher ({type(escaped.error).__name__})")

    def _tick(self) -> None:
        connection = self._connection
        if connection is None or not connection.is_open:
            return
        now = time.monotonic()
        if connection.bytes_received != self._heard[0]:
            self._heard = (connection.bytes_received, now)
        elif now - self._heard[1] > _SILENT_HEARTBEATS * self._settings.amqp_heartbeat:
            # pika looks only every heartbeat + 5 s, so that it may take twice as long.
            self._break_off(f"no answer from {endpoint(self._settings)} within the heartbeat")
            return
        self._role.ticked()
        self.call_later(TICK_SECONDS, self._tick)

    def _break_off(self, reason: str) -> None:
        loop = self._loop
        if loop is None:
            return
        self._ended_by = self._ended_by or reason
        loop.sever()
        loop.call_later(_BREAK_OFF_SECONDS, lambda: self._leave(loop, reason))

    def _leave(self, loop: _Loop, reason: str) -> None:
        self._over(reason)
        loop.stop()

    def _close(self, patience_seconds: float) -> None:
        """Close in order: pika closes the channels first, so that what was acked before is flushed."""
        loop, connection = self._loop, self._connection
        if loop is None:
            return
        closing = connection or self._making
        if closing is not None and not closing.is_closing and not closing.is_closed:
            # pika 1.4.4 may fail over an attempt that is given up in mid-handshake; its loop is left in any case.
            contained(closing.close)
        loop.call_later(patience_seconds if connection else 0.0, lambda: self._break_off("stopped"))

    def _blocked(self) -> None:
        if self._status.blocked_since is None:
            log.warning("amqp.blocked", connection=self._name)
            self._status = replace(self._status, blocked_since=time.monotonic())

    def _unblocked(self) -> None:
        since = self._status.blocked_since
        if since is not None:
            total = self._status.blocked_seconds + time.monotonic() - since
            log.info("amqp.unblocked", connection=self._name)
            self._status = replace(self._status, blocked_since=None, blocked_seconds=total)

    def _tell(self, state: State, reason: str | None, *, reconnects: int | None = None) -> None:
        since = self._status.since if state == self._status.state else time.monotonic()
        self._status = replace(
            self._status,
            state=state,
            since=since,
            reason=reason,
            reconnects=self._status.reconnects if reconnects is None else reconnects,
        )
