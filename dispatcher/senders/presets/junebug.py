"""Junebug, and vumi2's message API, which speaks the same language.

Facts: Junebug 0.2.0, "HTTP API" documentation and its source; vumi2 0.3, JunebugMessageApi.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field, SecretStr

from dispatcher.plugins.services import Text
from dispatcher.senders.exchange import HttpRequest
from dispatcher.senders.gateway import GatewaySender, without_blanks
from dispatcher.senders.http_service import basic_auth
from dispatcher.senders.replies import ReplyRules

_RULES = ReplyRules(
    # 201 {"status": 201, "code": "Created", "description": "message submitted", "result": {"message_id": …}}
    id="result.message_id",
    # {"result": {"errors": [{"type": …, "message": …}]}}
    error=("result.errors.0.message", "description"),
    code="result.errors.0.type",
    accepted={"status": ("200", "201")},
)
# vumi2 leaves `status`, `code` and `description` out.
_RULES_OF_VUMI2 = _RULES.model_copy(update={"accepted": {}, "error": ("result.errors.0.message",)})


class JunebugSender(GatewaySender):
    """Sends through a channel of Junebug; or, without `channel`, through a vumi2 Junebug message API.

    Junebug knows no idempotency keys.
    """

    base_url: str = Field(description='Where Junebug listens, such as "http://junebug.example:8080".')
    channel: str | None = Field(default=None, description="The id of the channel; left out for vumi2.")
    username: str | None = Field(default=None, description="For Basic authentication.")
    password: SecretStr | None = Field(default=None, description="For Basic authentication.")
    event_url: str | None = Field(default=None, description="Where to post acks and delivery reports.")
    event_auth_token: SecretStr | None = Field(default=None, description="The token to post them with.")

    def request(self, text: Text) -> HttpRequest:
        """Post the message; keys without a value are left out, as both servers take null amiss."""
        body: dict[str, Any] = {
            "to": text.to_addr,
            "from": text.from_addr,
            "content": text.content,
            "event_url": self.event_url,
            "event_auth_token": self.event_auth_token.get_secret_value() if self.event_auth_token else None,
        }
        # Junebug's path ends in a slash; vumi2's has none, and neither forgives the other form.
        path = "/messages" if self.channel is None else f"/channels/{self.channel}/messages/"
        authorization = basic_auth(self.username, self.password) if self.username is not None else None
        return HttpRequest(
            method="POST",
            url=self.base_url + path,
            headers=without_blanks({"Authorization": authorization}),
            body=without_blanks(body),
        )

    def rules(self) -> ReplyRules:
        """Find the message's id, or the first error."""
        return _RULES_OF_VUMI2 if self.channel is None else _RULES
