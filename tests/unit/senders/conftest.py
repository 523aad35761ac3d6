"""A gateway on the loopback interface that can accept, refuse, fail after accepting, reset, hang and trickle."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from dispatcher.plugins.services import Text


@dataclass
class Received:
    """One request as the gateway saw it."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    content: bytes

    @property
    def form(self) -> dict[str, str]:
        return {name: values[0] for name, values in parse_qs(self.content.decode(), keep_blank_values=True).items()}

    @property
    def json(self) -> Any:
        return json.loads(self.content)


@dataclass
class Answer:
    """How the gateway reacts: with a reply, or by what `acts` names: reset, hang or trickle."""

    status: int = 200
    body: Any = ""
    headers: dict[str, str] = field(default_factory=dict)
    acts: str = "reply"

    @property
    def content(self) -> bytes:
        if isinstance(self.body, bytes):
            return self.body
        return self.body.encode() if isinstance(self.body, str) else json.dumps(self.body).encode()


class FakeGateway:
    """Answers each request with the next answer; the last one stays. Without any it answers 200."""

    def __init__(self) -> None:
        self.received: list[Received] = []
        self.answers: deque[Answer] = deque()
        self.released = threading.Event()
        gateway = self

        class Handling(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                gateway.handle(self)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = handle_any  # noqa: N815

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass

        self.server = Server(("127.0.0.1", 0), Handling)
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    @property
    def port(self) -> int:
        return self.server.server_address[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def answer(self, status: int = 200, body: Any = "", *, acts: str = "reply", **headers: str) -> None:
        self.answers.append(
            Answer(status, body, {name.replace("_", "-"): value for name, value in headers.items()}, acts)
        )

    def handle(self, handling: BaseHTTPRequestHandler) -> None:
        content = handling.rfile.read(int(handling.headers.get("content-length", 0)))
        parts = urlsplit(handling.path)
        query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        headers = {name.lower(): value for name, value in handling.headers.items()}
        self.received.append(Received(handling.command, parts.path, query, headers, content))
        if not self.answers:
            self.answers.append(Answer())
        answer = self.answers.popleft() if len(self.answers) > 1 else self.answers[0]
        if answer.acts == "reset":
            handling.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            handling.connection.close()
            handling.close_connection = True
            return
        if answer.acts == "hang":
            self.released.wait(10)
            handling.close_connection = True
            return
        handling.send_response(answer.status)
        for name, value in answer.headers.items():
            handling.send_header(name, value)
        handling.send_header("Content-Length", str(len(answer.content)))
        handling.end_headers()
        if answer.acts == "trickle":
            for byte in answer.content:
                handling.wfile.write(bytes([byte]))
                handling.wfile.flush()
                if self.released.wait(0.02):
                    return
        elif handling.command != "HEAD":
            handling.wfile.write(answer.content)

    def close(self) -> None:
        self.released.set()
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def gateway() -> Iterator[FakeGateway]:
    fake = FakeGateway()
    yield fake
    fake.close()


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def text() -> Text:
    return Text(
        message_id="0198c0de0000700080000000000000aa",
        to_addr="+27821234567",
        from_addr="+27821230000",
        content="Thank you, Thandi!",
        idempotency_key="key-1",
    )
