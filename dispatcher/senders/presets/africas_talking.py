"""Africa's Talking bulk SMS.

Facts: Africa's Talking Docs, "Send SMS" (POST /version1/messaging: username, to, message, from, enqueue; the reply's
SMSMessageData and the statusCode of each recipient).
"""

from __future__ import annotations

from pydantic import Field, SecretStr

from dispatcher.plugins.services import Text
from dispatcher.senders.exchange import HttpRequest
from dispatcher.senders.gateway import GatewaySender
from dispatcher.senders.replies import ReplyRules

_RECIPIENT = "SMSMessageData.Recipients.0"
_RULES = ReplyRules(
    # Answered with 201 whether or not the text was taken: 100 Processed, 101 Sent, 102 Queued.
    accepted={f"{_RECIPIENT}.statusCode": ("100", "101", "102")},
    id=f"{_RECIPIENT}.messageId",
    # Without recipients the message alone says why, such as InvalidSenderId.
    error=(f"{_RECIPIENT}.status", "SMSMessageData.Message"),
    code=f"{_RECIPIENT}.statusCode",
    # 405 InsufficientBalance.
    not_yet_codes="405",
    # 401 RiskHold may be let go later; after 500 InternalServerError and 501 GatewayError nobody can tell.
    unsure_codes=("401", "500", "501"),
)


class AfricasTalkingSender(GatewaySender):
    """Sends through Africa's Talking.

    Its SMS interface knows no idempotency keys. For the sandbox set `base_url` to
    `https://api.sandbox.africastalking.com` and `username` to `sandbox`.
    """

    base_url: str = Field(default="https://api.africastalking.com", description="The API, or its sandbox.")
    username: str = Field(description="The name of the application.")
    api_key: SecretStr = Field(description="The API key of the application.")
    enqueue: bool = Field(default=False, description="Whether it may answer before it has the operator's answer.")

    def request(self, text: Text) -> HttpRequest:
        """Post the message to its one recipient."""
        return HttpRequest(
            method="POST",
            url=f"{self.base_url}/version1/messaging",
            headers={"apiKey": self.api_key.get_secret_value(), "Accept": "application/json"},
            form={
                "username": self.username,
                "to": text.to_addr,
                "message": text.content,
                "from": text.from_addr,
                "enqueue": "1" if self.enqueue else None,
            },
        )

    def rules(self) -> ReplyRules:
        """Look at the recipient's status code, not at the reply's."""
        return _RULES
