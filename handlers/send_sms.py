"""`send_sms`: text a person, unless that person asked not to be texted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

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
    Message,
    MessageState,
    Msisdn,
    Outcome,
    PeoplesText,
    RetryLater,
    Settled,
    Text,
    Unknown,
)

_DEFAULT_SENDER = "default"
_SENT: frozenset[MessageState] = frozenset({"sent", "acked", "delivered"})


class SendSms(Handler):
    """Send a text to one person, through the sender that the step names.

    A number that is opted out is not texted: the step is skipped, with the reason. Every text, sent or not, is a row
    in `messages`.

    Emits nothing.

    Run twice = once, where the sender works within the store (`outbox`, `vumi`) or its gateway honours idempotency
    keys. With any other gateway a lost reply leaves the message `held` and the step unknown, for `on_unknown` to
    decide: it is not sent again unless the rule says `resend`.
    """

    # What a call may do is the most that it can be; the sender settles it.
    effect = Effect.CALL

    to: Msisdn = Field(description="The person's number.")
    text: Annotated[str, PeoplesText()] = Field(description="What the person reads.")
    sender: Annotated[str, AtLoad(names="sender")] = Field(
        default=_DEFAULT_SENDER, description="The sender to go through."
    )
    from_addr: str | None = Field(default=None, description="The number or name it comes from; left out: the sender's.")
    max_segments: Annotated[int, AtLoad()] = Field(
        default=10, ge=1, le=255, description="The most parts a text may take; a longer one fails, unsent."
    )

    class Result(BaseModel):
        """What became of the message so far."""

        message_id: str
        to: str
        segments: int
        encoding: str
        sender: str
        state: str
        gateway_id: str | None

    @classmethod
    def settle(cls, params: Mapping[str, Any], bindings: Bindings) -> Settled:
        """Take the effect of the sender."""
        name = params.get("sender", _DEFAULT_SENDER)
        sender = bindings.senders[name]
        return Settled(sender.effect, connection=f"sender:{name}", keyed=sender.keyed)

    @classmethod
    def check_params(cls, params: Mapping[str, Any], bindings: Bindings) -> Iterable[tuple[str, str]]:
        """Refuse a text that is written blank."""
        text = params.get("text")
        if isinstance(text, str) and not text.strip():
            yield "text", "the text is blank"

    def prepare(self, event: Event, context: Context) -> Outcome | None:
        """Record the message as queued before the call; or say why it is not to be sent, or that it was."""
        earlier = context.messages.mine()
        if earlier is not None and earlier.state in _SENT:
            return Done(_result(earlier))
        admitted = self._admit(context)
        return None if isinstance(admitted, Message) else admitted

    def run(self, event: Event, context: Context) -> Outcome:
        """Call the gateway; or, with a sender that works within the store, do everything here."""
        sender = context.sender(self.sender)
        text = Text(
            message_id=context.message_id,
            to_addr=self.to,
            from_addr=self.from_addr or sender.from_addr,
            content=self.text,
            idempotency_key=context.idempotency_key,
            conversation_type=event.conversation_type,
            conversation_key=event.conversation_key,
        )
        if sender.effect is Effect.CALL:
            return sender.send(text)
        admitted = self._admit(context)
        if not isinstance(admitted, Message):
            return admitted
        outcome = sender.queue(text, context)
        if not isinstance(outcome, Done):
            return self.conclude(event, context, outcome)
        return Done(_result(admitted), emits=outcome.emits, publishes=outcome.publishes)

    def conclude(self, event: Event, context: Context, outcome: Outcome) -> Outcome:
        """Record what became of the message."""
        match outcome:
            case Done(result=result):
                gateway_id = result.get("gateway_id") if isinstance(result, Mapping) else None
                message = self._record(context, "sent", gateway_id=gateway_id)
                return Done(_result(message), emits=outcome.emits, publishes=outcome.publishes)
            case RetryLater(reason=reason):
                self._record(context, "queued", error=reason or None)
            case Failed(reason=reason):
                self._record(context, "failed", error=reason)
            case Unknown(reason=reason):
                self._record(context, "held", error=reason)
        return outcome

    def _admit(self, context: Context) -> Message | Outcome:
        """Record the message as queued, unless it is not to be sent."""
        opted_out = context.opt_outs.reason(self.to)
        if opted_out is not None:
            message = self._record(context, "failed", error=f"opted_out: {opted_out}")
            return Done(_result(message), skipped=f"opted out: {opted_out}")
        message = self._record(context, "queued")
        if not self.text.strip():
            refused = "the text is blank"
        elif message.segments > self.max_segments:
            refused = f"the text takes {message.segments} parts, more than max_segments allows ({self.max_segments})"
        else:
            return message
        self._record(context, "failed", error=refused)
        return Failed(refused)

    def _record(
        self, context: Context, state: MessageState, *, gateway_id: str | None = None, error: str | None = None
    ) -> Message:
        return context.messages.record(
            to_addr=self.to,
            content=self.text,
            sender=self.sender,
            state=state,
            from_addr=self.from_addr or context.sender(self.sender).from_addr,
            gateway_id=gateway_id,
            error=error,
        )


def _result(message: Message) -> dict[str, Any]:
    return {
        "message_id": message.message_id,
        "to": message.to_addr,
        "segments": message.segments,
        "encoding": message.encoding,
        "sender": message.sender,
        "state": message.state,
        "gateway_id": message.gateway_id,
    }
