"""Vonage (once Nexmo) SMS API.

Facts: Vonage API Documentation, "SMS API reference" (POST https://rest.nexmo.com/sms/json) and "API Errors: SMS API".
"""

from __future__ import annotations

from pydantic import Field, SecretStr

from dispatcher.plugins.services import Text
from dispatcher.senders.exchange import HttpRequest
from dispatcher.senders.gateway import GatewaySender, digits
from dispatcher.senders.http_service import basic_auth
from dispatcher.senders.replies import ReplyRules
from dispatcher.text.segments import segments

_RULES = ReplyRules(
    # Answered with 200 whatever happened; the status of the first part tells.
    accepted={"messages.0.status": ("0",)},
    id="messages.0.message-id",
    error=("messages.0.error-text", "error-text"),
    code=("messages.0.status", "status"),
    # 1 throttled, 10 too many binds.
    busy_codes=("1", "10"),
    # 4 credentials, 8 account barred, 9 no credit, 13 communication failed, not submitted, 14 signature.
    not_yet_codes=("4", "8", "9", "13", "14"),
    # 5 internal error while the message was being processed.
    unsure_codes="5",
)


class VonageSender(GatewaySender):
    """Sends through Vonage's SMS API.

    The message carries our id as its `client-ref`, which reports repeat; that is no idempotency key.
    """

    base_url: str = Field(default="https://rest.nexmo.com", description="The API.")
    api_key: str = Field(description="The API key.")
    api_secret: SecretStr = Field(description="The API secret.")
    from_addr: str = Field(description="The number or name that the text comes from; Vonage insists on one.")
    callback: str | None = Field(default=None, description="Where Vonage sends delivery receipts.")

    def request(self, text: Text) -> HttpRequest:
        """Post the message; what does not fit the GSM alphabet goes as unicode."""
        return HttpRequest(
            method="POST",
            url=f"{self.base_url}/sms/json",
            headers={"Authorization": basic_auth(self.api_key, self.api_secret)},
            form={
                "from": digits(text.from_addr),
                "to": digits(text.to_addr),
                "text": text.content,
                "type": "unicode" if segments(text.content).encoding == "UCS-2" else "text",
                "client-ref": text.message_id,
                "callback": self.callback,
            },
        )

    def rules(self) -> ReplyRules:
        """Look at the status of the message, not at the reply's."""
        return _RULES
