"""What workers meet outside: a service with a ledger, who publishes, a network that loses answers, and a scrape."""

from __future__ import annotations

import collections
import contextlib
import json
import subprocess
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.acceptance.conftest import SCRIPT, Folder
from tests.harness.external import FULL_SIZE
from tests.harness.proxy import ChaosProxy, Direction
from tests.harness.waiting import DEADLINE, wait_until

PATIENCE = 120.0 if FULL_SIZE else 45.0


class Ledger:
    """A service that notes the path and the key of each call, and answers when it may."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str | None]] = []
        self.answers = threading.Event()
        self.answers.set()
        self._seconds = 2 * PATIENCE
        ledger = self

        class Handling(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                ledger.calls.append((self.path.lstrip("/"), self.headers.get("Idempotency-Key")))
                ledger.answers.wait(ledger._seconds)
                with contextlib.suppress(OSError):  # who is gone hears nothing
                    self.send_response(200)
                    self.send_header("Content-Length", "2")
                    self.end_headers()
                    self.wfile.write(b"ok")

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False
            request_queue_size = 128

            def handle_error(self, *_: object) -> None:
                pass

        self._server = Server(("127.0.0.1", 0), Handling)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def takes(self, seconds: float) -> None:
        """Have each call from now on take so long."""
        self._seconds = seconds
        self.answers.clear()

    @property
    def times(self) -> collections.Counter[str]:
        """How often each path was called."""
        return collections.Counter(path for path, _ in self.calls)

    def close(self) -> None:
        """Answer whoever waits, and end."""
        self.answers.set()
        self._server.shutdown()
        self._server.server_close()


class AnswerThief(ChaosProxy):
    """A way to PostgreSQL on which some answers to COMMIT are lost, with the connection that they came on."""

    _COMMITTED = b"C\x00\x00\x00\x0bCOMMIT\x00"

    def __init__(self, port: int) -> None:
        self.every = 0
        self._seen = 0
        super().__init__(port)

    def _within_budget(self, direction: Direction, data: bytes) -> bytes:
        if direction == "to_client" and self.every and self._COMMITTED in data:
            self._seen += 1
            if self._seen % self.every == 0:
                self._budget[direction] = data.index(self._COMMITTED)
        return super()._within_budget(direction, data)


class Publishing:
    """Publishes events by processes of `dispatcher publish`, a part after the other, each until it is safe."""

    def __init__(self, folder: Folder, events: list[dict[str, Any]], part: int, name: str = "part") -> None:
        self.failures: list[str] = []
        self.published = 0
        self._ending = threading.Event()
        self._folder, self._events, self._part, self._name = folder, events, part, name
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        for at in range(0, len(self._events), self._part):
            body = "\n".join(json.dumps(event) for event in self._events[at : at + self._part]).encode()
            while not self._ending.is_set():
                done = subprocess.run(
                    [SCRIPT, "publish"], cwd=self._folder.path, env=self._folder.environ, input=body,
                    capture_output=True, check=False,
                )  # fmt: skip
                if done.returncode == 0:
                    self.published += self._part
                    break
                self.failures.append(done.stderr.decode())

    @property
    def done(self) -> bool:
        """Whether everything is safe."""
        return not self._thread.is_alive()

    def finish(self) -> None:
        """Wait until everything is safe."""
        wait_until(lambda: self.done, "the publishing of all events", 2 * PATIENCE)

    def end(self) -> None:
        """Publish no more."""
        self._ending.set()
        self._thread.join()


def scraped(port: int) -> dict[str, float]:
    """The numbers of a worker that has no labels."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=DEADLINE) as answer:
        lines = answer.read().decode().splitlines()
    return {name: float(value) for name, _, value in (line.partition(" ") for line in lines if line[:1] != "#")}
