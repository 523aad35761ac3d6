"""The small HTTP listener for probes and for Prometheus: `/live`, `/ready`, `/metrics`. Reads only, and knows no TLS.

It runs in threads of its own and is bounded in everything: how many connections at once, how long a request may be and
how long it may take. Whoever is slow costs one of those connections, and gives it up to whoever comes when there is no
other. One request a connection, and no log line for it.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from io import BytesIO
from pathlib import Path
from typing import Any, Final, TypeVar

from dispatcher.errors import CannotStart
from dispatcher.plugins.boundary import Escaped, contained
from dispatcher.telemetry import log
from dispatcher.worker.health import Readiness

T = TypeVar("T")

MOST_CONNECTIONS: Final = 16
# For a request to be here as a whole, and for its answer to be taken.
PATIENCE_SECONDS: Final = 5.0
LONGEST_REQUEST: Final = 8 * 1024
_LINGER_SECONDS: Final = 0.5
_MOST_LEFTOVERS: Final = 64 * 1024
_BACKLOG: Final = 64
_PAUSE_SECONDS: Final = 0.1
_FAREWELL_SECONDS: Final = 2.0

JSON_TYPE: Final = "application/json"
TEXT_TYPE: Final = "text/plain; charset=utf-8"
# The text format that every Prometheus reads.
METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

_PATHS: Final = ("/live", "/ready", "/metrics")


class Listener:
    """Answers on one address: host and port, or a file for a Unix socket, which only its owner may use.

    `live` and `ready` give a verdict, `metrics` the exposition; any thread may call them.
    """

    def __init__(
        self,
        address: tuple[str, int] | Path,
        *,
        live: Callable[[], Readiness],
        ready: Callable[[], Readiness],
        metrics: Callable[[], bytes],
    ) -> None:
        self._address = address
        self._live = live
        self._ready = ready
        self._metrics = metrics
        self._listener: socket.socket | None = None
        self._acceptor: threading.Thread | None = None
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        # Those that serve a connection; the first is the one that came first.
        self._serving: dict[socket.socket, threading.Thread] = {}
        # Of these, those whose request is not here yet: they make room when there is none.
        self._silent: dict[socket.socket, None] = {}
        self._said: dict[str, str] = {}

    @property
    def address(self) -> tuple[str, int] | Path:
        """What it listens on; with port 0 asked for, the port that it was given."""
        if self._listener is None or isinstance(self._address, Path):
            return self._address
        host, port, *_ = self._listener.getsockname()
        return str(host), int(port)

    def start(self) -> None:
        """Begin to listen. Raises CannotStart when the address cannot be had."""
        self._listener = listener = _listen(self._address)
        self._acceptor = threading.Thread(target=self._accept, args=(listener,), name="http", daemon=True)
        self._acceptor.start()
        log.info("listener.started", address=_shown(self.address))

    def stop(self) -> None:
        """Listen no more, and let go of whoever is connected."""
        listener = self._listener
        if listener is None or self._stopping.is_set():
            return
        with self._lock:
            self._stopping.set()
            serving = dict(self._serving)
        # `close` alone would leave the threads asleep that accept, read and write.
        for end in (listener, *serving):
            _shut(end)
        listener.close()
        if isinstance(self._address, Path):
            self._address.unlink(missing_ok=True)
        deadline = time.monotonic() + _FAREWELL_SECONDS
        for thread in (self._acceptor, *serving.values()):
            if thread is not None:
                thread.join(max(0.0, deadline - time.monotonic()))

    def _accept(self, listener: socket.socket) -> None:
        while not self._stopping.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                self._stopping.wait(_PAUSE_SECONDS)  # stopped, or out of descriptors, which passes
                continue
            self._admit(connection)

    def _admit(self, connection: socket.socket) -> None:
        thread = threading.Thread(target=self._serve, args=(connection,), name="http-client", daemon=True)
        with self._lock:
            if self._stopping.is_set() or (len(self._serving) >= MOST_CONNECTIONS and not self._make_room()):
                connection.close()
                return
            self._serving[connection] = thread
            self._silent[connection] = None
        try:
            thread.start()
        except RuntimeError:  # no more threads to be had, which passes
            self._forget(connection)

    def _make_room(self) -> bool:
        """Send away the one that has been silent for longest; False when all have asked and are being answered."""
        slowest = next(iter(self._silent), None)
        if slowest is None:
            return False
        del self._silent[slowest], self._serving[slowest]
        _shut(slowest)  # its thread wakes up by that, and closes it
        return True

    def _serve(self, connection: socket.socket) -> None:
        found = contained(lambda: _Exchange(connection, self))
        self._forget(connection)
        # A connection that breaks or is given up is the other side's affair.
        if isinstance(found, Escaped) and not isinstance(found.error, OSError):
            self._tell("", found.error)

    def _forget(self, connection: socket.socket) -> None:
        with self._lock:
            self._serving.pop(connection, None)
            self._silent.pop(connection, None)
        connection.close()

    # For the exchange.

    def heard(self, connection: socket.socket) -> bool:
        """A request is here as a whole; False when the connection was given to somebody else meanwhile."""
        with self._lock:
            self._silent.pop(connection, None)
            return connection in self._serving

    def answer(self, path: str) -> tuple[int, str, bytes]:
        """Return status, type and body for one of the paths."""
        if path == "/metrics":
            body = self._asked(path, self._metrics)
            return (200, METRICS_TYPE, body) if isinstance(body, bytes) else _failed(path, body)
        verdict = self._asked(path, self._live if path == "/live" else self._ready)
        if isinstance(verdict, Escaped):
            return _failed(path, verdict)
        document = {path[1:]: verdict.ready, "reasons": list(verdict.reasons)}
        return 200 if verdict.ready else 503, JSON_TYPE, json.dumps(document).encode() + b"\n"

    def _asked(self, path: str, ask: Callable[[], T]) -> T | Escaped:
        found = contained(ask)
        if isinstance(found, Escaped):
            self._tell(path, found.error)
        else:
            self._said.pop(path, None)
        return found

    def _tell(self, path: str, error: BaseException) -> None:
        """Log a fault of ours: once, not at each scrape."""
        said = type(error).__name__
        if self._said.get(path) != said:
            self._said[path] = said
            log.error("listener.failed", path=path, error=error)


class _Exchange(BaseHTTPRequestHandler):
    """One request and its answer. HTTP/1.0: no connection is kept."""

    server_version = "dispatcher"
    sys_version = ""
    protocol_version = "HTTP/1.0"

    def __init__(self, connection: socket.socket, listener: Listener) -> None:
        self._listener = listener
        self.requestline, self.command = "", ""
        super().__init__(connection, ("", 0), None)  # type: ignore[arg-type]  # it needs no server of the library's

    def setup(self) -> None:
        """Read the request as a whole, before anything of it is looked at."""
        self.connection = self.request
        self.rfile = BytesIO()
        self.wfile = self._answered = BytesIO()  # sent at once, in `finish`
        self._head = self._receive()

    def handle(self) -> None:
        """Answer the request, if there is one."""
        self.close_connection = True
        if self._head is None or not self._listener.heard(self.connection):
            return
        if len(self._head) > LONGEST_REQUEST:
            self.send_error(431)
            return
        self.rfile = BytesIO(self._head)
        self.raw_requestline = self.rfile.readline()
        if not self.parse_request():
            return
        if self.command not in ("GET", "HEAD"):
            self._reply(405, TEXT_TYPE, b"only GET and HEAD\n", Allow="GET, HEAD")
            return
        path = self.path.partition("?")[0]
        if path not in _PATHS:
            self._reply(404, TEXT_TYPE, f"there is {', '.join(_PATHS)}\n".encode())
            return
        self._reply(*self._listener.answer(path))

    def finish(self) -> None:
        """Send the answer, and take what was left unread: closing over it would take the answer back."""
        answer = self._answered.getvalue()
        if not answer:
            return
        self.connection.settimeout(PATIENCE_SECONDS)
        self.connection.sendall(answer)  # its timeout is for all of it
        self.connection.shutdown(socket.SHUT_WR)
        deadline, taken = time.monotonic() + _LINGER_SECONDS, 0
        while taken < _MOST_LEFTOVERS and (left := deadline - time.monotonic()) > 0:
            self.connection.settimeout(left)
            part = self.connection.recv(LONGEST_REQUEST)
            if not part:
                return
            taken += len(part)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer that a request is none, without the library's page."""
        told = message or self.responses.get(code, ("",))[0]
        self._reply(code, TEXT_TYPE, f"{told}\n".encode("utf-8", "replace"))

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the library's name
        """Tell nobody: a probe a second is no news."""

    def version_string(self) -> str:
        """Return who answers."""
        return self.server_version

    def _reply(self, status: int, kind: str, body: bytes, **headers: str) -> None:
        # What cannot be read counts as HTTP/0.9 for the library, and would get an answer without a status.
        self.request_version = self.protocol_version
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self._answered.write(body)

    def _receive(self) -> bytes | None:
        """Return the head of the request, cut when it is too long; None when it does not come in time."""
        head = bytearray()
        deadline = time.monotonic() + PATIENCE_SECONDS
        while len(head) <= LONGEST_REQUEST and b"\r\n\r\n" not in head and b"\n\n" not in head:
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            self.connection.settimeout(left)
            part = self.connection.recv(LONGEST_REQUEST)
            if not part:
                return None
            head += part
        end = max(head.find(b"\r\n\r\n"), head.find(b"\n\n"))
        # A body behind a head of allowed length is not part of it.
        return bytes(head if end < 0 or end > LONGEST_REQUEST else head[: end + 4])


def _failed(path: str, found: Escaped) -> tuple[int, str, bytes]:
    told = f"{path} cannot be told: {type(found.error).__name__}; the worker's log says more\n"
    return 500, TEXT_TYPE, told.encode()


def _listen(address: tuple[str, int] | Path) -> socket.socket:
    where: Any
    try:
        if isinstance(address, Path):
            family, kind, protocol, where = socket.AF_UNIX, socket.SOCK_STREAM, 0, str(address)
            _clear(address)
        else:
            # Whatever family the host has; of several addresses the system's own first.
            found = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)
            family, kind, protocol, _, where = found[0]
        listener = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:  # the latter is what Python says of a name that can be no host's
        raise _cannot_listen(address, error) from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(where)
        if isinstance(address, Path):
            # Before `listen` nobody can connect, so the socket is at no moment open to others.
            address.chmod(0o600)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise _cannot_listen(address, error) from error
    return listener


def _clear(path: Path) -> None:
    """Take away the socket of a process that died; one that is in use stays, and so does anything else."""
    if not path.is_socket():
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(PATIENCE_SECONDS)
        try:
            client.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)


def _shown(address: tuple[str, int] | Path) -> str:
    if isinstance(address, Path):
        return f"unix:{address}"
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _cannot_listen(address: tuple[str, int] | Path, error: OSError | UnicodeError) -> CannotStart:
    said = getattr(error, "strerror", None) or error
    return CannotStart(
        f"cannot serve health and metrics on {_shown(address)}: {said}.",
        hint="Name an address of this machine that is free, with --http HOST:PORT or DISPATCHER_HTTP.",
    )


def _shut(end: socket.socket) -> None:
    try:
        end.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # closed by the other side meanwhile
