"""`opt_out`: somebody wants no more texts, or wants them again."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from dispatcher import AtLoad, Context, Done, Effect, Event, Handler, Msisdn, Outcome


class OptOut(Handler):
    """Opt a number out, so that no step texts it from now on; or, with `action: opt_in`, in again.

    Emits nothing.

    Run twice = once: an opt-out that is there already keeps its reason and its time, and opting in somebody who was
    never out changes nothing.
    """

    effect = Effect.TRANSACTION

    msisdn: Msisdn = Field(description="The person's number.")
    reason: str | None = Field(default=None, description="Why, in a few words; left out, the type of the event.")
    action: Annotated[Literal["opt_out", "opt_in"], AtLoad()] = Field(
        default="opt_out", description="Whether the person leaves or comes back."
    )

    class Result(BaseModel):
        """How the number stands after the step, and whether the step changed that."""

        msisdn: str
        opted_out: bool
        reason: str | None
        changed: bool

    def run(self, event: Event, context: Context) -> Outcome:
        """Write the opt-out, or take it away."""
        before = context.opt_outs.reason(self.msisdn)
        if self.action == "opt_in":
            if before is not None:
                context.opt_outs.remove(self.msisdn)
            return Done({"msisdn": self.msisdn, "opted_out": False, "reason": None, "changed": before is not None})
        reason = before
        if reason is None:
            reason = self.reason or event.event_type
            context.opt_outs.add(self.msisdn, reason)
        return Done({"msisdn": self.msisdn, "opted_out": True, "reason": reason, "changed": before is None})
