"""One HTTP request and what came of it: a reply, or an outcome that says whether the request can have been acted upon.

The difference matters more than the error itself. A refused connection, an unknown host or a failed TLS handshake means
that nothing was sent: try again, uncharged. Once bytes may have left, silence means that nobody can tell: with a key
that the other side honours try again, without one the outcome is Unknown.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit

from dispatcher.clock import Clock, SystemClock
from dispatcher.events.limits import Limits, Refusal, read_json
from dispatcher.plugins.outcomes import Failed, RetryLater, Unknown
from dispatcher.text.numbers import mask_number

if TYPE_CHECKING:
    import httpx

REPLY_LIMIT = 64 * 1024

# A reply that takes longer to arrive than a person waits is not worth a connection; the step's own timeout is 30 s.
CONNECT_TIMEOUT = timedelta(seconds=10)

# Servers close idle connections, and a request that meets the closing is lost in a way that cannot be told from one
# that was acted upon. So connections are reused in a stream of calls, never after a pause.
_IDLE_SECONDS = 2.0

# A reply becomes part of a step's result, which obeys the limits of events.
_REPLY_LIMITS = Limits(body_bytes=REPLY_LIMIT, depth=28)
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

_LONGEST_WAIT = timedelta(days=1)
_SHORTEST_WAIT = timedelta(seconds=1)
_MOST_REDIRECTS = 5
_NUMBERS = re.compile(r"\+?\d{7,15}")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")
# The scheme, and a host that ends before any template does begin.
_LITERAL_HOST = re.compile(r"https?://[^/?#@\\{}\s]+(?=[/?#]|\Z)", re.IGNORECASE)

NotReplied = RetryLater | Failed | Unknown


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A request to make. A `body` that is an object or a list goes as JSON, text as it is; `form` goes url-encoded."""

    method: str
    url: str
    query: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    form: Mapping[str, Any] | None = None
    body: Any = None


@dataclass(frozen=True, slots=True)
class HttpReply:
    """A reply: its status, its headers by lower-case name, and its content, cut off at 64 KiB.

    `retry_after` is how long the other side asks to be left alone, within reason: a second to a day.
    """

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes = b""
    truncated: bool = False
    retry_after: timedelta | None = None

    @property
    def text(self) -> str:
        """The content as text; what is not UTF-8 or cannot be stored is replaced."""
        return self.content.decode("utf-8", errors="replace").replace("\0", "\ufffd")

    def json(self) -> Any:
        """Return the content as JSON, within the limits of an event; None when it is not that."""
        try:
            return read_json(self.content.removeprefix(_BYTE_ORDER_MARK), _REPLY_LIMITS)
        except Refusal:
            return None

    def body(self) -> Any:
        """Return the content as a step can offer it: JSON where it is that, else text, and None for nothing."""
        found = None if self.truncated else self.json()
        return found if found is not None else self.text or None


def has_literal_host(url: str) -> bool:
    """Tell whether scheme and host of a url stand there in full, whatever templates stand behind them."""
    found = _LITERAL_HOST.match(url)
    if found is None:
        return False
    try:
        parts = urlsplit(found[0])
        return bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, or one beyond 65535
        return False


def presentable(said: str) -> str:
    """Return what the other side said as one short line without people's numbers."""
    line = _UNPRINTABLE.sub(" ", said).strip()
    return _NUMBERS.sub(lambda found: mask_number(found[0]), line)[:200]


class HttpClient:
    """A pool of connections and the rules of talking over them. Safe for threads."""

    def __init__(self, *, concurrency: int, timeout: timedelta, clock: Clock | None = None) -> None:
        import httpx  # noqa: PLC0415  (a tenth of a second, which only those who call out should pay)

        self._clock = clock or SystemClock()
        self._timeout = timeout.total_seconds()
        self._client = httpx.Client(
            trust_env=False,
            follow_redirects=False,
            timeout=httpx.Timeout(self._timeout, connect=min(self._timeout, CONNECT_TIMEOUT.total_seconds())),
            limits=httpx.Limits(max_connections=concurrency, keepalive_expiry=_IDLE_SECONDS),
            headers={"User-Agent": "event-dispatcher", "Accept-Encoding": "identity"},
            cookies=_no_cookies(),
        )

    def close(self) -> None:
        """Close all connections."""
        self._client.close()

    def exchange(self, request: HttpRequest, *, keyed: bool) -> HttpReply | NotReplied:
        """Make a request and wait for its reply. `keyed` tells whether making it again is harmless.

        GET and HEAD follow redirects within their host; every other redirect is Failed.
        """
        import httpx  # noqa: PLC0415  (see above)

        try:
            built = self._built(request)
        except (httpx.InvalidURL, ValueError, TypeError) as error:
            return Failed(f"the request cannot be written as HTTP: {type(error).__name__}")
        host = built.url.host
        deadline = self._clock.monotonic() + self._timeout
        try:
            for _ in range(_MOST_REDIRECTS + 1):
                reply, onward = self._sent(built, deadline)
                if onward is None:
                    return reply
                if built.method not in ("GET", "HEAD"):
                    return Failed(f"{host} answers {reply.status}, a redirect, which only GET and HEAD follow")
                if not _is_same_place(built.url, onward.url):
                    return Failed(f"{host} redirects to {onward.url.host}, and redirects to other hosts are refused")
                built = onward
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            return RetryLater(reason=f"{host} cannot be reached: {_said(error)}", counts=False)
        except (httpx.UnsupportedProtocol, httpx.LocalProtocolError) as error:
            return Failed(f"the request cannot be written as HTTP: {_said(error)}")
        except (httpx.HTTPError, _TooSlow) as error:
            return lost(f"{host} was sent the request, and its reply was lost: {_said(error)}", keyed=keyed)
        return Failed(f"{host} redirects more than {_MOST_REDIRECTS} times")

    def _built(self, request: HttpRequest) -> httpx.Request:
        import httpx  # noqa: PLC0415  (see above)

        headers = dict(request.headers)
        names = {name.lower() for name in headers}
        content: bytes | None = None
        if request.form is not None:
            content = urlencode(_as_pairs(request.form), doseq=True).encode()
            kind = "application/x-www-form-urlencoded"
        elif isinstance(request.body, str):
            content, kind = request.body.encode(), "text/plain; charset=utf-8"
        elif request.body is not None:
            content = json.dumps(
                request.body, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_unveiled
            ).encode()
            kind = "application/json"
        if content is not None and "content-type" not in names:
            headers["Content-Type"] = kind
        url = httpx.URL(request.url)
        query = _as_pairs(request.query)
        return self._client.build_request(
            request.method, url.copy_merge_params(query) if query else url, headers=headers, content=content
        )

    def _sent(self, request: httpx.Request, deadline: float) -> tuple[HttpReply, httpx.Request | None]:
        response = self._client.send(request, stream=True)
        content, truncated = bytearray(), False
        try:
            for chunk in response.iter_bytes():
                content += chunk
                if len(content) > REPLY_LIMIT:
                    truncated = True
                    break
                if self._clock.monotonic() > deadline:
                    raise _TooSlow(f"it took longer than {self._timeout:g} s")
        finally:
            response.close()
        headers = {name.lower(): value for name, value in response.headers.items()}
        wait = _wait_asked(headers.get("retry-after", ""), self._clock.now())
        reply = HttpReply(response.status_code, headers, bytes(content[:REPLY_LIMIT]), truncated, wait)
        return reply, response.next_request


class _TooSlow(Exception):
    """The reply trickles in, each piece in time, the whole too late."""


def lost(reason: str, *, keyed: bool) -> RetryLater | Unknown:
    """Return the outcome of a call of which nobody can tell whether it was acted upon."""
    return RetryLater(reason=reason) if keyed else Unknown(reason)


def _wait_asked(header: str, now: datetime) -> timedelta | None:
    """Read a Retry-After: seconds, or a date."""
    asked = header.strip()
    if asked.isascii() and asked.isdigit() and len(asked) < 10:
        wait = timedelta(seconds=int(asked))
    else:
        try:
            until = parsedate_to_datetime(asked)
        except ValueError:
            return None
        wait = until.replace(tzinfo=until.tzinfo or UTC) - now
    return min(max(wait, _SHORTEST_WAIT), _LONGEST_WAIT)


def _as_pairs(values: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Write query or form fields as text, leaving out those without a value; a list repeats its field."""
    pairs = []
    for name, value in values.items():
        items = value if isinstance(value, (list, tuple)) else [value]
        pairs += [(name, _as_text(item)) for item in items if item is not None]
    return pairs


def _as_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


def _unveiled(value: Any) -> Any:
    """Return what a read-only view shows, for JSON."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence):
        return list(value)
    raise TypeError(type(value).__name__)


def _is_same_place(one: httpx.URL, other: httpx.URL) -> bool:
    # From http to https of the same host is no other place; the way back would give the content away.
    upgraded = (one.scheme, one.port, other.scheme, other.port) == ("http", None, "https", None)
    return one.host == other.host and ((one.scheme, one.port) == (other.scheme, other.port) or upgraded)


def _no_cookies() -> Any:
    from http.cookiejar import CookieJar, DefaultCookiePolicy  # noqa: PLC0415  (goes with httpx)

    return CookieJar(DefaultCookiePolicy(allowed_domains=[]))


def _said(error: Exception) -> str:
    return presentable(str(error)) or type(error).__name__
