"""`log_event`: leave a line in the log."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from dispatcher import AtLoad, Context, Done, Effect, Event, Handler, Outcome, log


class LogEvent(Handler):
    """Write one line about the event to the log: what it is, where it came from, never what it tells.

    Emits nothing.

    Run twice = two lines: a batch that has to be done again logs again. The journal has the step once.
    """

    effect = Effect.PURE

    level: Annotated[Literal["debug", "info", "warning", "error"], AtLoad()] = Field(
        default="info", description="How loud the line is."
    )
    message: str | None = Field(default=None, description="Words to find the line by; keep people's data out.")

    class Result(BaseModel):
        """The level that was used."""

        level: str

    def run(self, event: Event, context: Context) -> Outcome:
        """Write the line."""
        getattr(log, self.level)(
            "event.logged",
            event_id=event.event_id,
            account_key=event.account_key,
            conversation_key=event.conversation_key,
            conversation_type=event.conversation_type,
            event_type=event.event_type,
            chain=context.chain,
            run_id=context.run_id,
            message=self.message,
        )
        return Done({"level": self.level})
