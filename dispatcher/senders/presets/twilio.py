"""Twilio Programmable Messaging.

Facts: Twilio Docs, "Messages resource" (POST /2010-04-01/Accounts/{AccountSid}/Messages.json), "Twilio API responses"
(code, message, more_info, status) and "Error and Warning Dictionary".
"""

from __future__ import annotations

from pydantic import Field, SecretStr, model_validator

from dispatcher.plugins.services import Text
from dispatcher.senders.exchange import HttpRequest
from dispatcher.senders.gateway import GatewaySender
from dispatcher.senders.http_service import basic_auth
from dispatcher.senders.replies import ReplyRules

_RULES = ReplyRules(
    id="sid",
    accepted={"status": ("accepted", "scheduled", "queued", "sending", "sent", "delivered")},
    # On a message that was made `error_code` and `error_message`; on a request that failed `code` and `message`.
    error=("error_message", "message"),
    code=("error_code", "code"),
    # Too many requests; the queue of the number is full.
    busy_codes=("20429", "21611"),
    # Bad credentials, account not active.
    not_yet_codes=("20003", "20005", "10001"),
)


class TwilioSender(GatewaySender):
    """Sends through Twilio, from a number or through a messaging service.

    Twilio's messages know no idempotency keys: after a 500 a message may have been sent (error 20500), so it is held.
    """

    base_url: str = Field(default="https://api.twilio.com", description="Twilio's API.")
    account_sid: str = Field(pattern=r"^AC\w+$", description="The account's SID, which begins with AC.")
    api_key_sid: str | None = Field(default=None, description="The SID of an API key; left out: the account itself.")
    auth_token: SecretStr = Field(description="The account's auth token, or the secret of the API key.")
    messaging_service_sid: str | None = Field(default=None, description="The messaging service; or give from_addr.")
    status_callback: str | None = Field(default=None, description="Where Twilio reports what becomes of the text.")

    @model_validator(mode="after")
    def _has_an_origin(self) -> TwilioSender:
        if self.from_addr is None and self.messaging_service_sid is None:
            raise ValueError("give from_addr or messaging_service_sid")
        return self

    def request(self, text: Text) -> HttpRequest:
        """Create a message."""
        return HttpRequest(
            method="POST",
            url=f"{self.base_url}/2010-04-01/Accounts/{self.account_sid}/Messages.json",
            headers={"Authorization": basic_auth(self.api_key_sid or self.account_sid, self.auth_token)},
            form={
                "To": text.to_addr,
                "From": text.from_addr,
                "MessagingServiceSid": self.messaging_service_sid,
                "Body": text.content,
                "StatusCallback": self.status_callback,
            },
        )

    def rules(self) -> ReplyRules:
        """Tell messages that were made from those that were not."""
        return _RULES
