"""What all senders over HTTP share: one request for each text, its reply judged by the gateway's rules."""

from __future__ import annotations

from abc import abstractmethod
from datetime import timedelta
from typing import Any, ClassVar

from pydantic import Field, PrivateAttr, field_validator

from dispatcher.plugins.effects import Effect
from dispatcher.plugins.outcomes import Failed, Outcome
from dispatcher.plugins.services import Sender, Text
from dispatcher.senders.exchange import HttpClient, HttpReply, HttpRequest, has_literal_host
from dispatcher.senders.replies import ReplyRules, judge
from dispatcher.text.durations import Duration


class GatewaySender(Sender):
    """Sends each text as one HTTP request. A subclass says how the request looks and what its reply means."""

    effect: ClassVar[Effect] = Effect.CALL

    timeout: Duration = Field(default=timedelta(seconds=20), description="How long a reply may take.")

    _client: HttpClient | None = PrivateAttr(default=None)

    @abstractmethod
    def request(self, text: Text) -> HttpRequest | Failed:
        """Return the request that sends this text, or why there can be none."""

    @abstractmethod
    def rules(self) -> ReplyRules:
        """Return what this gateway's replies mean."""

    @field_validator("base_url", check_fields=False)
    @classmethod
    def _is_a_base(cls, value: str) -> str:
        if not has_literal_host(value):
            raise ValueError("write scheme, host and perhaps a path, such as https://gateway.example")
        return value.rstrip("/")

    def open(self) -> None:
        """Make the pool of connections."""
        self._client = HttpClient(concurrency=self.concurrency, timeout=self.timeout)

    def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def send(self, text: Text) -> Outcome:
        """Make the request and judge the reply."""
        if self._client is None:
            raise RuntimeError("the sender is not open; the worker opens it before the first step")
        request = self.request(text)
        if isinstance(request, Failed):
            return request
        reply = self._client.exchange(request, keyed=self.keyed)
        if not isinstance(reply, HttpReply):
            return reply
        return judge(reply, self.rules(), keyed=self.keyed)


def digits(number: str | None) -> str | None:
    """Return a number without its "+", for gateways that want none; a sender's name stays as it is."""
    return None if number is None else number.removeprefix("+")


def without_blanks(values: dict[str, Any]) -> dict[str, Any]:
    """Leave out what has no value, for gateways that take an empty field for a value."""
    return {name: value for name, value in values.items() if value is not None}
