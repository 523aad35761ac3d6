"""`http_request`: call something over HTTP."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from dispatcher import (
    AtLoad,
    Bindings,
    Context,
    Done,
    Effect,
    Event,
    Failed,
    Handler,
    HttpReply,
    HttpService,
    Outcome,
    RetryLater,
    Settled,
    Unknown,
)

_ORIGIN = re.compile(r"(https?://[^/?#@\\{}\s]+)(?=[/?#]|\Z)", re.IGNORECASE)


class HttpRequest(Handler):
    """Make one HTTP request: to a service of the rulebook, or to a host that stands in the rule.

    Data may fill the path, the query, the headers and the body, never the host. GET and HEAD follow redirects within
    the host; any other redirect fails. A status of 2xx is a success; 5xx and lost connections are tried again; 429 and
    a refused connection too, uncharged; other statuses fail. `Retry-After` is honoured.

    Emits nothing.

    Run twice = two requests with the same idempotency key, in the header `Idempotency-Key` or the one that the service
    names. A host that ignores it may act twice on a POST or PATCH whose reply was lost. Where that does harm, name a
    service with `idempotency_header: none`: then such a step becomes unknown, and `on_unknown` decides.
    """

    effect = Effect.CALL

    service: Annotated[str | None, AtLoad(names="service")] = Field(
        default=None, description="The service to call; left out, `url` names the host."
    )
    method: Annotated[Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"], AtLoad()] = Field(
        default="GET", description="The method."
    )
    url: str = Field(default="", description="With a service the path on it; else the whole url, its host literal.")
    query: dict[str, Any] = Field(default_factory=dict, description="What goes behind the question mark.")
    headers: dict[str, str] = Field(default_factory=dict, description="Headers; keep secrets in a service.")
    form: dict[str, Any] | None = Field(default=None, description="The fields of a url-encoded body.")
    body: Any = Field(default=None, description="The body: an object or a list goes as JSON, text as it is.")

    class Result(BaseModel):
        """The reply. `body` is the JSON that came, else text; cut off at 64 KiB, `truncated` says whether it was."""

        status: int
        body: Any
        truncated: bool

    @classmethod
    def settle(cls, params: Mapping[str, Any], bindings: Bindings) -> Settled:
        """Take limits and keys of the service."""
        name = params.get("service")
        service = bindings.services.get(name) if name else None
        method = params.get("method", "GET")
        if isinstance(service, HttpService):
            return Settled(cls.effect, connection=f"service:{name}", keyed=service.keeps(method))
        return Settled(cls.effect, keyed=True)

    @classmethod
    def check_params(cls, params: Mapping[str, Any], bindings: Bindings) -> Iterable[tuple[str, str]]:
        """Refuse a host that data could fill."""
        name, url = params.get("service"), params.get("url", "")
        has_origin = isinstance(url, str) and _ORIGIN.match(url) is not None
        if name:
            service = bindings.services.get(name)
            if service is not None and not isinstance(service, HttpService):
                yield "service", "http_request needs a service of the type http"
            if has_origin:
                yield "url", "with a service the url is a path on it, without scheme and host"
        elif not has_origin:
            yield "url", "without a service, scheme and host stand there in full and without templates"
        if params.get("form") is not None and params.get("body") is not None:
            yield "form", "give form or body, not both"

    def run(self, event: Event, context: Context) -> Outcome:
        """Make the request, and say what its reply means."""
        if self.service is not None:
            service = context.service(self.service)
            if not isinstance(service, HttpService):
                return Failed(f"service {self.service} is not of the type http")
            return self._called(service, self.url, context)
        origin = _ORIGIN.match(self.url)
        if origin is None:
            return Failed("the url has no literal host")
        service = HttpService(base_url=origin[1], concurrency=1)
        service.open()
        try:
            return self._called(service, self.url[origin.end() :], context)
        finally:
            service.close()

    def _called(self, service: HttpService, path: str, context: Context) -> Outcome:
        reply = service.request(
            self.method,
            path,
            key=context.idempotency_key,
            query=self.query,
            headers=self.headers,
            form=self.form,
            body=self.body,
        )
        return _judged(reply, keyed=service.keeps(self.method)) if isinstance(reply, HttpReply) else reply


def _judged(reply: HttpReply, *, keyed: bool) -> Outcome:
    said = f"the reply is {reply.status}"
    if 200 <= reply.status < 300:
        return Done({"status": reply.status, "body": reply.body(), "truncated": reply.truncated})
    if reply.status == 429:
        return RetryLater(after=reply.retry_after, reason=said, counts=False)
    if reply.status >= 500 or reply.status in (408, 425):
        return RetryLater(after=reply.retry_after, reason=said) if keyed else Unknown(said)
    return Failed(said)
