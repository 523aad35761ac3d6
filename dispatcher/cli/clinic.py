"""A clinic's own system, as the demo needs one: an HTTP server on the loopback that takes referrals, when it is up."""

from __future__ import annotations

import json
import threading
from collections import Counter
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final, Self

_CLINICS: Final = frozenset({"alexandra", "gugulethu", "khayelitsha", "kibera", "kisumu", "mdantsane", "umlazi"})
# The clinic whose system is down at first, and how many calls it lets fall.
_UNRELIABLE: Final = "gugulethu"
_DOWN_FOR: Final = 2
_LARGEST_BODY: Final = 65_536


class Clinic:
    """Serves from a thread of its own while it is entered; remembers what it was told."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._keys: Counter[str] = Counter()
        self.refusals = 0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="clinic", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        """Where it is to be reached."""
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def referrals(self) -> int:
        """How many different referrals it took."""
        return len(self._keys)

    def refer(self, path: str, key: str) -> tuple[HTTPStatus, dict[str, Any]]:
        """Take a referral that is POSTed to `/clinics/NAME/referrals`."""
        match path.strip("/").split("/"):
            case ["clinics", clinic, "referrals"] if clinic in _CLINICS:
                pass
            case _:
                return HTTPStatus.NOT_FOUND, {"error": "there is no such clinic"}
        with self._lock:
            if clinic == _UNRELIABLE and self.refusals < _DOWN_FOR:
                self.refusals += 1
                return HTTPStatus.SERVICE_UNAVAILABLE, {"error": "down for maintenance"}
            self._keys[key] += 1
            return HTTPStatus.CREATED, {"referral": len(self._keys), "clinic": clinic}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        clinic = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                self.rfile.read(min(int(self.headers.get("Content-Length", 0)), _LARGEST_BODY))
                status, answer = clinic.refer(self.path, self.headers.get("Idempotency-Key", ""))
                body = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
                """Say nothing: the worker's log has it."""

        return Handler
