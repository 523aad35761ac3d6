"""Infobip SMS.

Facts: Infobip API reference, "Send SMS messages" (POST /sms/3/messages), and "Response status and error codes" (the
groups 0 OK, 1 PENDING, 2 UNDELIVERABLE, 3 DELIVERED, 4 EXPIRED, 5 REJECTED).
"""

from __future__ import annotations

from typing import Any

from pydantic import Field, SecretStr

from dispatcher.plugins.services import Text
from dispatcher.senders.exchange import HttpRequest
from dispatcher.senders.gateway import GatewaySender, digits, without_blanks
from dispatcher.senders.replies import ReplyRules

_RULES = ReplyRules(
    accepted={"messages.0.status.groupId": ("0", "1", "3")},
    id="messages.0.messageId",
    error=("messages.0.status.description", "requestError.serviceException.text", "description"),
    code=("messages.0.status.name", "requestError.serviceException.messageId", "errorCode"),
    not_yet=(401, 402, 403, 407),
    not_yet_codes="REJECTED_NOT_ENOUGH_CREDITS",
)


class InfobipSender(GatewaySender):
    """Sends through Infobip.

    The message carries our id as its `messageId`, which reports repeat; that is no idempotency key.
    """

    base_url: str = Field(description='The base URL of the account, such as "https://xyz12.api.infobip.com".')
    api_key: SecretStr = Field(description="The API key.")
    notify_url: str | None = Field(default=None, description="Where Infobip posts delivery reports.")

    def request(self, text: Text) -> HttpRequest:
        """Post one message to one destination."""
        message: dict[str, Any] = {
            "sender": digits(text.from_addr),
            "destinations": [{"to": digits(text.to_addr), "messageId": text.message_id}],
            "content": {"text": text.content},
        }
        if self.notify_url is not None:
            message["webhooks"] = {"delivery": {"url": self.notify_url}, "contentType": "application/json"}
        return HttpRequest(
            method="POST",
            url=f"{self.base_url}/sms/3/messages",
            headers={"Authorization": f"App {self.api_key.get_secret_value()}", "Accept": "application/json"},
            body={"messages": [without_blanks(message)]},
        )

    def rules(self) -> ReplyRules:
        """Look at the group of the message's status."""
        return _RULES
