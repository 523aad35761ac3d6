"""Clickatell One API.

Facts: Clickatell, "One API" documentation (POST https://platform.clickatell.com/v1/message; `messages` with their
apiMessageId, accepted, to and error; the list of error codes).
"""

from __future__ import annotations

from pydantic import Field, SecretStr

from dispatcher.plugins.services import Text
from dispatcher.senders.exchange import HttpRequest
from dispatcher.senders.gateway import GatewaySender, digits, without_blanks
from dispatcher.senders.replies import ReplyRules

_RULES = ReplyRules(
    # Answered with 202, or with 207 when some messages were not taken.
    accepted={"messages.0.accepted": ("true",)},
    id="messages.0.apiMessageId",
    error=("messages.0.error.description", "error.description"),
    code=("messages.0.error.code", "error.code"),
    # 43 rate limit.
    busy_codes="43",
    # 1 key, 2 account, 3 integration, 7 IP address, 19 internal error, please retry, 20 balance.
    not_yet_codes=("1", "2", "3", "7", "19", "20"),
    # 18 internal error.
    unsure_codes="18",
)


class ClickatellSender(GatewaySender):
    """Sends through Clickatell's One API, over its SMS channel.

    The message carries our id as its `clientMessageId`, which reports repeat; that is no idempotency key. `from_addr`
    is for two-way numbers only.
    """

    base_url: str = Field(default="https://platform.clickatell.com", description="The API.")
    api_key: SecretStr = Field(description="The API key of the integration.")

    def request(self, text: Text) -> HttpRequest:
        """Post one message."""
        message = {
            "channel": "sms",
            "to": digits(text.to_addr),
            "from": digits(text.from_addr),
            "content": text.content,
            "clientMessageId": text.message_id,
        }
        return HttpRequest(
            method="POST",
            url=f"{self.base_url}/v1/message",
            headers={"Authorization": self.api_key.get_secret_value(), "Accept": "application/json"},
            body={"messages": [without_blanks(message)]},
        )

    def rules(self) -> ReplyRules:
        """Look at whether the message was accepted, not at the reply's status."""
        return _RULES
