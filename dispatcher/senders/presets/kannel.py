"""Kannel's smsbox: the `sendsms` interface of the open source SMS gateway.

Facts: Kannel 1.4.5 and 1.5.0 User's Guide, "Using the HTTP interface to send SMS messages" (CGI variables, responses),
and the replies in gw/smsbox.c.
"""

from __future__ import annotations

from pydantic import Field, SecretStr

from dispatcher.plugins.services import Text
from dispatcher.senders.exchange import HttpRequest
from dispatcher.senders.gateway import GatewaySender
from dispatcher.senders.replies import ReplyRules
from dispatcher.text.segments import segments

_RULES = ReplyRules(
    # Answered with 202. The first lines are all there is to tell by; some versions add the id of the message.
    accepted_pattern=r"^(?:0: Accepted for delivery|3: Queued for later delivery|Sent\.)",
    id_pattern=r"^[03]: [^:]*: (\S+)",
    # Both "not routable" and bad credentials come as 403: the number's fault, and the account's.
    code_pattern=r"^Authorization failed",
    not_yet_codes=("Authorization failed",),
    # 503 "Temporal failure, try again later.": no SMSC took the message.
    busy=(429, 503),
)


class KannelSender(GatewaySender):
    """Sends through Kannel's `sendsms`.

    Kannel knows no idempotency keys. With `dlr_url`, where `{message_id}` stands for the message's id, Kannel
    reports there what becomes of the text.
    """

    base_url: str = Field(description='Where the smsbox listens, such as "http://kannel.example:13013".')
    path: str = Field(default="/cgi-bin/sendsms", description="The path of its sendsms interface.")
    username: str = Field(description="The name of the sendsms-user.")
    password: SecretStr = Field(description="The password of the sendsms-user.")
    smsc: str | None = Field(default=None, description="The id of the SMSC to route through.")
    dlr_mask: int = Field(default=31, ge=0, le=63, description="Which delivery reports to ask for, with dlr_url.")
    dlr_url: str | None = Field(default=None, description="Where to send delivery reports.")

    def request(self, text: Text) -> HttpRequest:
        """Ask for the text to be sent; what does not fit the GSM alphabet goes as UCS-2."""
        reports = self.dlr_url is not None
        return HttpRequest(
            method="GET",
            url=f"{self.base_url}/{self.path.lstrip('/')}",
            query={
                "username": self.username,
                "password": self.password.get_secret_value(),
                "from": text.from_addr,
                "to": text.to_addr,
                "text": text.content,
                "charset": "UTF-8",
                "coding": 2 if segments(text.content).encoding == "UCS-2" else 0,
                "smsc": self.smsc,
                "dlr-mask": self.dlr_mask if reports else None,
                "dlr-url": (self.dlr_url or "").replace("{message_id}", text.message_id) if reports else None,
            },
        )

    def rules(self) -> ReplyRules:
        """Tell Kannel's lines apart."""
        return _RULES
