"""The unix socket beside a store, on which the process that holds it takes verbs from others.

A frame is four bytes of length, big-endian, and that much JSON in UTF-8. A request is `{"verb", "args"}`; its answer
`{"ok": true, "result"}` or `{"ok": false, "error", "hint", "kind"}`, where `kind` is the name of an exception. Requests
of one connection are answered one after the other. The socket is for its owner only (mode 0600).
"""

from __future__ import annotations

import json
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Self

from dispatcher.errors import (
    CannotStart,
    DispatcherError,
    NotFound,
    NotPossible,
    StoreInUse,
    StoreUnusable,
    UsageError,
)
from dispatcher.telemetry import log

# Room for one body far beyond the limit of events: it is parked with its bytes, as any other that is too large.
LARGEST_FRAME: Final = 64 * 2**20
_LENGTH = struct.Struct(">I")
_BACKLOG = 64
_MOST_CONNECTIONS = 64
# A verb may have to compact the file; nothing else takes long.
_PATIENCE_SECONDS = 600.0
_CONNECT_SECONDS = 5.0
_FAREWELL_SECONDS = 2.0


class NoWorker(DispatcherError):
    """Nobody listens on the socket of the store."""


class WorkerStopping(NotPossible):
    """The process that holds the store ends; it has done nothing of what was asked."""


_KINDS: Final[Mapping[str, type[DispatcherError]]] = {
    kind.__name__: kind
    for kind in (CannotStart, NotFound, NotPossible, StoreInUse, StoreUnusable, UsageError, WorkerStopping)
}


class Request:
    """A verb with its arguments, to be answered exactly once: by `reply` or by `fail`, from any thread."""

    def __init__(self, verb: str, args: dict[str, Any]) -> None:
        self.verb = verb
        self.args = args
        self._answer: dict[str, Any] | None = None
        self._answered = threading.Event()

    def reply(self, result: dict[str, Any]) -> None:
        """Answer that it is done."""
        self._settle({"ok": True, "result": result})

    def fail(self, error: DispatcherError) -> None:
        """Answer that it is not done, and why."""
        kind = next((base.__name__ for base in type(error).__mro__ if base.__name__ in _KINDS), "DispatcherError")
        self._settle({"ok": False, "error": error.message, "hint": error.hint, "kind": kind})

    def wait(self) -> dict[str, Any]:
        """Return the answer, once there is one."""
        self._answered.wait()
        assert self._answer is not None
        return self._answer

    def _settle(self, answer: dict[str, Any]) -> None:
        if not self._answered.is_set():
            self._answer = answer
            self._answered.set()


class ControlServer:
    """Listens on the socket and hands each request to `submit`, whose thread is not the one that executes it.

    Whoever starts it holds the store's lock, so a socket that is there already was left by a process that is gone.
    """

    def __init__(self, path: Path, submit: Callable[[Request], None]) -> None:
        self._path = path
        self._submit = submit
        self._listener: socket.socket | None = None
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._connections: dict[socket.socket, threading.Thread] = {}
        self._pending: set[Request] = set()
        self._room = threading.BoundedSemaphore(_MOST_CONNECTIONS)

    def start(self) -> None:
        """Begin to listen. Raises CannotStart where no socket can be made."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._path.unlink(missing_ok=True)
            listener.bind(os.fspath(self._path))
            # Before `listen` nobody can connect, so the socket is at no moment open to others.
            self._path.chmod(0o600)
            listener.listen(_BACKLOG)
        except OSError as error:
            listener.close()
            raise CannotStart(
                f"cannot listen on {self._path}: {error.strerror or error}.",
                hint="The folder must be writable for the user that runs the dispatcher.",
            ) from error
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), name="control", daemon=True).start()

    def stop(self) -> None:
        """Listen no more, and refuse what was not taken up; when this returns, every answer is on its way."""
        with self._lock:
            if self._listener is None or self._stopping.is_set():
                return
            self._stopping.set()
            pending = list(self._pending)
            connections = dict(self._connections)
        self._path.unlink(missing_ok=True)
        # `close` alone would leave the threads asleep that accept and read.
        for end in (self._listener, *connections):
            _shut(end)
        self._listener.close()
        for request in pending:
            request.fail(_stopping())
        deadline = time.monotonic() + _FAREWELL_SECONDS
        for thread in connections.values():
            thread.join(max(0.0, deadline - time.monotonic()))

    def _accept(self, listener: socket.socket) -> None:
        while not self._stopping.is_set():
            self._room.acquire()
            try:
                connection, _ = listener.accept()
            except OSError:
                self._room.release()
                if not self._stopping.wait(0.1):
                    continue  # out of descriptors, say: it passes
                return
            thread = threading.Thread(target=self._serve, args=(connection,), name="control-client", daemon=True)
            with self._lock:
                if self._stopping.is_set():
                    connection.close()
                    return
                self._connections[connection] = thread
                thread.start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            while (frame := _receive(connection)) is not None:
                request = _request(frame)
                if isinstance(request, DispatcherError):
                    refused = Request("", {})
                    refused.fail(request)
                    _send(connection, refused.wait())
                    continue
                self._submit_or_refuse(request)
                answer = request.wait()
                with self._lock:
                    self._pending.discard(request)
                _send(connection, answer)
        except _BadFrameError as problem:
            log.warning("control.refused", reason=str(problem))
        except OSError as problem:
            log.warning("control.lost", reason=str(problem))
        finally:
            with self._lock:
                self._connections.pop(connection, None)
            connection.close()
            self._room.release()

    def _submit_or_refuse(self, request: Request) -> None:
        # Under the lock: a request is refused by `stop`, or refused here, or seen by whoever executes.
        with self._lock:
            if self._stopping.is_set():
                request.fail(_stopping())
            else:
                self._pending.add(request)
                self._submit(request)


class ControlClient:
    """Speaks with the process that holds the store. Connects with the first request, and keeps the connection."""

    def __init__(self, path: Path, *, patience_seconds: float = _PATIENCE_SECONDS) -> None:
        self._path = path
        self._patience_seconds = patience_seconds
        self._connection: socket.socket | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def request(self, verb: str, args: dict[str, Any]) -> dict[str, Any]:
        """Have `verb` done and return its result; what it fails with there is raised here.

        Raises NoWorker when nobody listens, WorkerStopping when nothing was done of it; NotPossible when the answer
        is lost, so that nobody knows; UsageError when it does not fit in a frame.
        """
        connection = self.connect()
        try:
            _send(connection, {"verb": verb, "args": args})
        except OSError as problem:
            # The frame did not get through as a whole, so nobody acted upon it.
            self.close()
            raise WorkerStopping(f"the worker ended before it took `{verb}`.", hint="Ask again.") from problem
        try:
            frame = _receive(connection)
        except (OSError, _BadFrameError) as problem:
            self.close()
            raise _lost(verb, str(problem)) from problem
        if frame is None:
            self.close()
            raise _lost(verb, "it ended")
        answer = json.loads(frame)
        if answer["ok"]:
            result: dict[str, Any] = answer["result"]
            return result
        raise _KINDS.get(answer["kind"], DispatcherError)(answer["error"], hint=answer["hint"])

    def connect(self) -> socket.socket:
        """Connect, unless that is done. Raises NoWorker when nobody listens, CannotStart when we may not speak."""
        if self._connection is None:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.settimeout(_CONNECT_SECONDS)
            try:
                connection.connect(os.fspath(self._path))
            except OSError as problem:
                connection.close()
                if isinstance(problem, PermissionError):
                    raise CannotStart(
                        f"the worker's socket {self._path} is another user's.",
                        hint="Run this command as the user that runs the worker.",
                    ) from problem
                raise NoWorker(f"nobody listens on {self._path}.") from problem
            connection.settimeout(self._patience_seconds)
            self._connection = connection
        return self._connection


class _BadFrameError(Exception):
    """What came is no frame."""


def _lost(verb: str, why: str) -> NotPossible:
    return NotPossible(
        f"the worker did not answer `{verb}`: {why}. It may have been done or not.",
        hint="Look at what the store shows now, then ask again where it is needed.",
    )


def _request(frame: bytes) -> Request | UsageError:
    try:
        asked = json.loads(frame)
        verb, args = asked["verb"], asked["args"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return UsageError("a request is a JSON object with `verb` and `args`.")
    if not isinstance(verb, str) or not isinstance(args, dict):
        return UsageError("`verb` is a text and `args` an object.")
    return Request(verb, args)


def _send(connection: socket.socket, document: dict[str, Any]) -> None:
    body = json.dumps(document).encode("ascii")
    if len(body) > LARGEST_FRAME:
        raise UsageError(f"the request takes {len(body)} bytes, at most {LARGEST_FRAME} can be handed to a worker.")
    connection.sendall(_LENGTH.pack(len(body)) + body)


def _receive(connection: socket.socket) -> bytes | None:
    """Return the next frame, None when the other side has closed between two frames."""
    head = _exactly(connection, _LENGTH.size)
    if not head:
        return None
    if len(head) < _LENGTH.size:
        raise _BadFrameError("the connection ended within a frame")
    (length,) = _LENGTH.unpack(head)
    if length > LARGEST_FRAME:
        raise _BadFrameError(f"a frame of {length} bytes was announced, {LARGEST_FRAME} are allowed")
    body = _exactly(connection, length)
    if len(body) < length:
        raise _BadFrameError("the connection ended within a frame")
    return body


def _exactly(connection: socket.socket, count: int) -> bytes:
    parts = bytearray()
    while len(parts) < count and (part := connection.recv(min(count - len(parts), 2**20))):
        parts += part
    return bytes(parts)


def _stopping() -> WorkerStopping:
    return WorkerStopping("the worker is stopping.", hint="Try again in a moment.")


def _shut(end: socket.socket) -> None:
    try:
        end.shutdown(socket.SHUT_RD)
    except OSError:
        return  # closed by the other side meanwhile
