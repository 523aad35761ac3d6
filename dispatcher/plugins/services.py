"""Services and senders: named, configured connections to the outside, opened and closed by the worker.

A service is a frozen pydantic model: its fields are the keys that the rulebook gives it, beside `type`.
Secrets are `pydantic.SecretStr`, so that no dump or log shows them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from dispatcher.plugins.effects import Effect
from dispatcher.plugins.outcomes import Failed
from dispatcher.text.durations import Rate

if TYPE_CHECKING:
    from dispatcher.plugins.context import Context
    from dispatcher.plugins.outcomes import Outcome


class Service(BaseModel):
    """A connection that calls reach the outside through. Subclass it, add fields, override `open` and `close`."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    concurrency: int = Field(default=8, ge=1, le=1000, description="How many calls may be under way at once.")
    rate: Rate | None = Field(default=None, description='How many calls may start in a time, such as "30/s".')

    def open(self) -> None:
        """Make ready for use; called once, by the worker, before the first step. Raises OSError if it cannot."""

    def close(self) -> None:
        """Let go of what `open` took; called once, when the worker stops."""


@dataclass(frozen=True, slots=True)
class Text:
    """A text on its way to one person. `message_id` is that of its row in `messages`, whichever attempt this is.

    `conversation_type` and `conversation_key` are those of the event that the text answers.
    """

    message_id: str
    to_addr: str
    from_addr: str | None
    content: str
    idempotency_key: str
    conversation_type: str | None = None
    conversation_key: str | None = None


class Sender(Service):
    """A service that delivers texts to people.

    A sender that reaches a gateway has the effect CALL and overrides `send`; one that leaves the text in the store,
    for a relay to hand on, has the effect TRANSACTION and overrides `queue`. `send_sms` writes the row in `messages`.
    """

    effect: ClassVar[Effect] = Effect.CALL

    from_addr: str | None = Field(default=None, description="The number or name that the text comes from.")

    @property
    def keyed(self) -> bool:
        """Whether sending the same idempotency key twice delivers one text."""
        return False

    def send(self, text: Text) -> Outcome:
        """Hand one text to the gateway, in a thread of the call pool.

        `Done.result` is a mapping with `gateway_id`, or None where the gateway gives no id. Unknown says that the
        text may have been sent; what surely was not is RetryLater or Failed.
        """
        return Failed(f"sender {type(self).__name__} makes no calls")

    def queue(self, text: Text, context: Context) -> Outcome:
        """Queue one text within the batch's transaction."""
        return Failed(f"sender {type(self).__name__} cannot queue")
