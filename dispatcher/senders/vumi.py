"""The `vumi` sender: texts leave as TransportUserMessages, for a Vumi transport to take from RabbitMQ.

It writes messages and knows no broker: they go into the outbox with the journal's own commit, and on from there.

Facts: vumi 0.6.19 (`vumi.message`, `vumi.connectors`) and vumi2 0.3 (`vumi2.messages`), read in source. What vumi2
reads as a text must be one: it makes "None" of a null.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, ClassVar

from pydantic import Field, field_validator

from dispatcher.plugins.context import Context
from dispatcher.plugins.effects import Effect
from dispatcher.plugins.outcomes import Done, Outcome, Publish
from dispatcher.plugins.services import Sender, Text
from dispatcher.text.durations import Rate

# The only version there has ever been; Vumi's own Python refuses every other.
MESSAGE_VERSION = "20110921"

_SUFFIX = ".outbound"
_LONGEST_ROUTING_KEY = 255


class VumiSender(Sender):
    """Hands texts to a Vumi transport over RabbitMQ: a TransportUserMessage each, to `<transport_name>.outbound`.

    The message has the id of its row in `messages`. Nothing in Vumi knows a repetition by it: a text of which nobody
    can tell whether the broker took it follows the step's `on_unknown`.
    """

    effect: ClassVar[Effect] = Effect.TRANSACTION

    concurrency: int = Field(default=1000, ge=1, le=1000, description="How many texts may be unconfirmed at once.")
    rate: Rate | None = Field(default=None, description='How many texts may leave in a time, such as "30/s".')
    transport_name: str = Field(
        min_length=1, description="The transport, in lower case; texts go to <transport_name>.outbound."
    )
    transport_type: str = Field(default="sms", description="The kind of transport, such as sms or ussd.")
    to_addr_type: str = Field(default="msisdn", description="The kind of address a person has there.")
    from_addr_type: str | None = Field(default=None, description="The kind of address that texts come from.")
    provider: str | None = Field(default=None, description="The network, where the transport wants to know it.")
    endpoint: str = Field(default="default", description="The endpoint in the routing metadata.")
    helper_metadata: dict[str, Any] = Field(default_factory=dict, description="What Vumi Go's workers look for.")
    exchange: str = Field(default="vumi", min_length=1, description="The exchange that the transport's queue is on.")
    reports: bool = Field(
        default=True,
        description="Whether to read <transport_name>.event, where the transport reports on texts; `false` where "
        "another worker reads it.",
    )

    @field_validator("transport_name")
    @classmethod
    def _can_be_routed(cls, value: str) -> str:
        if value != value.lower():
            raise ValueError("a transport's name is written in lower case: Vumi uses no other routing keys")
        if len(value.encode()) > _LONGEST_ROUTING_KEY - len(_SUFFIX):
            raise ValueError("too long for a routing key, which has at most 255 bytes")
        return value

    def queue(self, text: Text, context: Context) -> Outcome:
        """Publish the text with the commit of the step."""
        body = {
            "message_version": MESSAGE_VERSION,
            "message_type": "user_message",
            "timestamp": vumi_date(context.now),
            "message_id": text.message_id,
            "to_addr": text.to_addr,
            "from_addr": text.from_addr or "",
            "content": text.content,
            "transport_name": self.transport_name,
            "transport_type": self.transport_type,
            "to_addr_type": self.to_addr_type,
            "from_addr_type": self.from_addr_type,
            "in_reply_to": None,
            "session_event": None,
            "group": None,
            "provider": self.provider,
            "transport_metadata": {},
            "helper_metadata": self._helper_metadata(text, context),
            "routing_metadata": {"endpoint_name": self.endpoint},
        }
        routing_key = self.transport_name + _SUFFIX
        return Done(publishes=(Publish(self.exchange, routing_key, body, message_id=text.message_id),))

    def _helper_metadata(self, text: Text, context: Context) -> dict[str, Any]:
        """Return what the rulebook gives, with whose text it is below it, as Vumi Go's workers write it."""
        go: dict[str, Any] = {"user_account": context.account_key}
        if text.conversation_type is not None:
            go["conversation_type"] = text.conversation_type
        if text.conversation_key is not None:
            go["conversation_key"] = text.conversation_key
        given = self.helper_metadata
        if not given:
            return {"go": go}
        given_go = given.get("go", {})
        return {**given, "go": {**go, **given_go} if isinstance(given_go, Mapping) else given_go}


@lru_cache(maxsize=16)
def vumi_date(moment: datetime) -> str:
    """Write an aware time as Vumi does, such as "2026-11-21 03:41:54.767900": in UTC, always with microseconds.

    Cached: all texts of a batch are of the batch's own time.
    """
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(" ", "microseconds")
