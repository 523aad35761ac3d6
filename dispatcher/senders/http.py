"""The generic gateway sender: request and reply are described in the rulebook, with templates for what varies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

from pydantic import Field, PrivateAttr, SecretStr, field_validator, model_validator

from dispatcher.plugins.outcomes import Failed
from dispatcher.plugins.services import Text
from dispatcher.rules.expressions import ExpressionError, Template, TemplateProblem, compile_template
from dispatcher.senders.exchange import HttpRequest, has_literal_host
from dispatcher.senders.gateway import GatewaySender, digits
from dispatcher.senders.http_service import basic_auth
from dispatcher.senders.replies import ReplyRules
from dispatcher.text.segments import segments

_NAMES = (
    "to", "to_digits", "from_addr", "from_digits", "text", "encoding", "message_id", "idempotency_key", "secrets",
)  # fmt: skip

Filling = Callable[[dict[str, Any]], Any]


class HttpSender(GatewaySender):
    """Sends each text as one HTTP request to a gateway that has no sender of its own.

    Url, headers, query, form and body may hold templates over `to` and `from_addr` (as numbers with "+"), `to_digits`
    and `from_digits` (without), `text`, `encoding` (`GSM-7` or `UCS-2`), `message_id`, `idempotency_key` and
    `secrets.<name>`. What has no value is left out. `reply` says what the gateway's answers mean.

    With `idempotency_header` the gateway is taken to honour keys: a text whose reply is lost is sent again under the
    same key. Without, it is held, for a person or the rule's `on_unknown` to decide.
    """

    method: Literal["GET", "POST", "PUT"] = Field(default="POST", description="The method of the request.")
    url: SecretStr = Field(description="Where the gateway is. Scheme and host take no templates.")
    headers: dict[str, SecretStr] = Field(default_factory=dict, description="Headers of the request.")
    query: dict[str, Any] = Field(
        default_factory=dict, repr=False, exclude=True, description="What is added to the url behind the question mark."
    )
    form: dict[str, Any] | None = Field(
        default=None, repr=False, exclude=True, description="The fields of a url-encoded request."
    )
    body: Any = Field(
        default=None, repr=False, exclude=True, description="The body: an object or a list goes as JSON, text as it is."
    )
    username: str | None = Field(default=None, description="For Basic authentication.")
    password: SecretStr | None = Field(default=None, description="For Basic authentication.")
    secrets: dict[str, SecretStr] = Field(default_factory=dict, description="What templates read as `secrets.<name>`.")
    idempotency_header: str | None = Field(default=None, description="The header in which the gateway expects a key.")
    reply: ReplyRules = Field(default_factory=ReplyRules, description="What the gateway's replies mean.")

    _fill: Filling = PrivateAttr()

    @field_validator("url", "headers", "query", "form", "body")
    @classmethod
    def _is_well_written(cls, value: Any) -> Any:
        for _ in _templates(value):
            pass
        return value

    @field_validator("url")
    @classmethod
    def _has_a_literal_host(cls, value: SecretStr) -> SecretStr:
        if not has_literal_host(value.get_secret_value()):
            raise ValueError("write scheme and host in full, without templates, such as https://gateway.example/send")
        return value

    @model_validator(mode="after")
    def _is_whole(self) -> HttpSender:
        if self.form is not None and self.body is not None:
            raise ValueError("give form or body, not both")
        for template in _templates([self.url, self.headers, self.query, self.form, self.body]):
            for path in template.paths:
                if path.parts[0] == "secrets" and (len(path.parts) < 2 or path.parts[1] not in self.secrets):
                    raise ValueError(f"there is no {'.'.join(str(part) for part in path.parts)} in this sender")
        return self

    def model_post_init(self, context: Any, /) -> None:
        """Compile the templates, once."""
        super().model_post_init(context)
        self._fill = _filling(
            {"url": self.url, "headers": self.headers, "query": self.query, "form": self.form, "body": self.body}
        )

    @property
    def keyed(self) -> bool:
        """Whether the gateway is said to honour idempotency keys."""
        return self.idempotency_header is not None

    def request(self, text: Text) -> HttpRequest | Failed:
        """Fill the templates in."""
        try:
            filled = self._fill(self._scope(text))
        except ExpressionError as error:
            return Failed(f"the request cannot be written: {error}")
        headers = {name.lower(): str(value) for name, value in filled["headers"].items()}
        if self.username is not None:
            headers["authorization"] = basic_auth(self.username, self.password)
        if self.idempotency_header is not None:
            headers[self.idempotency_header.lower()] = text.idempotency_key
        return HttpRequest(self.method, filled["url"], filled["query"], headers, filled.get("form"), filled.get("body"))

    def rules(self) -> ReplyRules:
        """Return what the rulebook says about replies."""
        return self.reply

    def _scope(self, text: Text) -> dict[str, Any]:
        return {
            "to": text.to_addr,
            "to_digits": digits(text.to_addr),
            "from_addr": text.from_addr,
            "from_digits": digits(text.from_addr),
            "text": text.content,
            "encoding": segments(text.content).encoding,
            "message_id": text.message_id,
            "idempotency_key": text.idempotency_key,
            "secrets": {name: secret.get_secret_value() for name, secret in self.secrets.items()},
        }


def _templates(value: Any) -> Iterator[Template]:
    """Compile every text within a value. Raises ValueError for one that is wrong."""
    if isinstance(value, dict):
        for item in value.values():
            yield from _templates(item)
    elif isinstance(value, list):
        for item in value:
            yield from _templates(item)
    elif isinstance(value, (str, SecretStr)):
        yield _compiled(value)


def _compiled(value: str | SecretStr) -> Template:
    source = value.get_secret_value() if isinstance(value, SecretStr) else value
    try:
        template = compile_template(source)
    except TemplateProblem as problem:
        raise ValueError(problem.message) from None
    for name in sorted(template.roots.difference(_NAMES)):
        raise ValueError(f"there is no name {name} here; there are {', '.join(_NAMES)}")
    return template


def _filling(value: Any) -> Filling:
    """Return what builds a value from a scope; members that come out as None are left out."""
    if isinstance(value, dict):
        members = [(name, _filling(item)) for name, item in value.items()]
        return lambda scope: {name: filled for name, filling in members if (filled := filling(scope)) is not None}
    if isinstance(value, list):
        items = [_filling(item) for item in value]
        return lambda scope: [filling(scope) for filling in items]
    if isinstance(value, (str, SecretStr)):
        return _compiled(value).render
    return lambda _scope: value
