"""The `http` service: a host that steps call, with its credentials, limits and idempotency header."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from datetime import timedelta
from typing import Any
from urllib.parse import unquote, urlsplit

from pydantic import Field, PrivateAttr, SecretStr, field_validator

from dispatcher.plugins.outcomes import Failed
from dispatcher.plugins.services import Service
from dispatcher.senders.exchange import HttpClient, HttpReply, HttpRequest, NotReplied, has_literal_host
from dispatcher.text.durations import Duration

__all__ = ["HttpReply", "HttpService"]

# Doing these twice leaves what doing them once leaves (RFC 9110, 9.2.2).
REPEATABLE = frozenset({"GET", "HEAD", "PUT", "DELETE", "OPTIONS"})


class HttpService(Service):
    """A host that is reached over HTTP, such as `services: {crm: {type: http, base_url: "https://crm.example"}}`.

    Every call carries its idempotency key in `idempotency_header`. That is what makes a lost reply safe to try again;
    for a host that ignores the header, and where doing a thing twice does harm, set it to `none`: then a POST or PATCH
    whose reply is lost becomes unknown instead.
    """

    base_url: str = Field(description='Where the host is, such as "https://crm.example/api".')
    headers: dict[str, SecretStr] = Field(default_factory=dict, description="Headers of every call, such as a token.")
    username: str | None = Field(default=None, description="For Basic authentication.")
    password: SecretStr | None = Field(default=None, description="For Basic authentication.")
    timeout: Duration = Field(default=timedelta(seconds=20), description="How long a reply may take.")
    idempotency_header: str | None = Field(
        default="Idempotency-Key", description="The header that carries the key of a call; `none`: no header."
    )

    _client: HttpClient | None = PrivateAttr(default=None)

    @field_validator("base_url")
    @classmethod
    def _is_a_base(cls, value: str) -> str:
        parts = urlsplit(value)
        if not has_literal_host(value) or parts.query or parts.fragment:
            raise ValueError("write scheme, host and perhaps a path, such as https://crm.example/api")
        return value.rstrip("/")

    @field_validator("idempotency_header")
    @classmethod
    def _may_be_none(cls, value: str | None) -> str | None:
        return None if value is None or value.lower() in ("", "none", "null") else value

    def keeps(self, method: str) -> bool:
        """Tell whether a call with this method may be made again with the same key."""
        return method in REPEATABLE or self.idempotency_header is not None

    def open(self) -> None:
        """Make the pool of connections."""
        self._client = HttpClient(concurrency=self.concurrency, timeout=self.timeout)

    def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def request(
        self,
        method: str,
        path: str = "",
        *,
        key: str,
        query: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        form: Mapping[str, Any] | None = None,
        body: Any = None,
    ) -> HttpReply | NotReplied:
        """Call the host: a reply, or the outcome of a call that brought none. `path` never leaves the host.

        A `body` that is an object or a list goes as JSON, text as it is; a `form` goes url-encoded.
        """
        if self._client is None:
            raise RuntimeError("the service is not open; the worker opens it before the first step")
        if _climbs(path):
            return Failed('the path has a part "." or "..", which could lead anywhere on the host')
        # Between the host and what follows there is always a separator, so that no path becomes part of the host.
        separator = "" if path[:1] in ("", "/", "?") else "/"
        url = f"{self.base_url}{separator}{path}"
        sent = HttpRequest(method, url, query or {}, self._headers(headers or {}, key), form, body)
        return self._client.exchange(sent, keyed=self.keeps(method))

    def _headers(self, given: Mapping[str, str], key: str) -> dict[str, str]:
        headers = {name.lower(): value.get_secret_value() for name, value in self.headers.items()}
        if self.username is not None:
            headers["authorization"] = basic_auth(self.username, self.password)
        headers.update((name.lower(), value) for name, value in given.items())
        if self.idempotency_header is not None:
            headers[self.idempotency_header.lower()] = key
        return headers


def basic_auth(username: str, password: SecretStr | None) -> str:
    """Return the value of the Authorization header for Basic authentication."""
    secret = password.get_secret_value() if password else ""
    return "Basic " + base64.b64encode(f"{username}:{secret}".encode()).decode()


def _climbs(path: str) -> bool:
    plain = path.partition("?")[0].partition("#")[0]
    return any(part in (".", "..") for part in unquote(plain).replace("\\", "/").split("/"))
