"""`emit_event`: let a chain produce an event, which other chains may handle."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Field

from dispatcher import AtLoad, Context, Done, Effect, Emit, Event, Handler, Outcome


class EmitEvent(Handler):
    """Emit an event. It keeps the account, conversation and type of the event being handled unless told otherwise.

    Emits one event; with `publish: true` it also goes out to the broker.

    Run twice = once: the event is stored in the same transaction as the journal, under an id derived from the run and
    the step.
    """

    effect = Effect.PURE

    event_type: str = Field(min_length=1, description="The type of the new event.")
    event_data: dict[str, Any] = Field(default_factory=dict, description="What the new event tells.")
    conversation_type: str | None = Field(default=None, min_length=1, description="Left out: the parent's.")
    conversation_key: str | None = Field(default=None, min_length=1, description="Left out: the parent's.")
    account: str | None = Field(default=None, min_length=1, description="The account's key; left out: the parent's.")
    publish: Annotated[bool, AtLoad()] = Field(default=False, description="Whether it goes out to the broker too.")

    class Result(BaseModel):
        """What was emitted."""

        event_type: str
        conversation_type: str | None
        conversation_key: str
        account_key: str

    def run(self, event: Event, context: Context) -> Outcome:
        """Say what to emit; the engine stores it."""
        emit = Emit(
            event_type=self.event_type,
            event_data=self.event_data,
            conversation_type=self.conversation_type,
            conversation_key=self.conversation_key,
            account_key=self.account,
            publish=self.publish,
        )
        return Done(
            {
                "event_type": self.event_type,
                "conversation_type": self.conversation_type or event.conversation_type,
                "conversation_key": self.conversation_key or event.conversation_key,
                "account_key": self.account or event.account_key,
            },
            emits=[emit],
        )
