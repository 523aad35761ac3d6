"""`subscribe`: the historic subscription of a contact to a campaign."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import BaseModel, Field

from dispatcher import Bindings, Context, Done, Effect, Event, Failed, Handler, Msisdn, Outcome


class Subscribe(Handler):
    """Subscribe a contact to a campaign, or unsubscribe it, as Vumi Go's subscription handler did.

    The contact is named by `contact_id`, as in the historic event, or by `msisdn`. Its `subscription` remembers
    `subscribed` or `unsubscribed` for each campaign.

    Emits nothing.

    Run twice = once: the subscription is written in the same transaction as the journal, and writing it again changes
    nothing.
    """

    effect = Effect.TRANSACTION

    contact_id: str | None = Field(default=None, description="The key of the contact; give this or `msisdn`.")
    msisdn: Msisdn | None = Field(default=None, description="The person's number; give this or `contact_id`.")
    campaign_name: str = Field(min_length=1, description="The campaign.")
    operation: Literal["subscribe", "unsubscribe"] = Field(
        default="subscribe", description="`subscribe` or `unsubscribe`; may be a template."
    )

    class Result(BaseModel):
        """How the contact stands towards the campaign after the step."""

        contact_key: str
        msisdn: str
        campaign_name: str
        subscription: str
        changed: bool

    @classmethod
    def check_params(cls, params: Mapping[str, Any], bindings: Bindings) -> Iterable[tuple[str, str]]:
        """Ask for exactly one way to name the contact."""
        if ("contact_id" in params) == ("msisdn" in params):
            yield "contact_id", "give either contact_id or msisdn"

    def run(self, event: Event, context: Context) -> Outcome:
        """Find the contact and note the campaign."""
        if self.contact_id is not None:
            contact = context.contacts.by_key(self.contact_id)
        elif self.msisdn is not None:
            contact = context.contacts.get(self.msisdn)
        else:
            return Failed("neither contact_id nor msisdn has a value")
        if contact is None:
            return Failed("there is no such contact; create_contact makes one")
        wanted = f"{self.operation}d"
        changed = contact.subscription.get(self.campaign_name) != wanted
        if changed:
            subscription = {**contact.subscription, self.campaign_name: wanted}
            context.contacts.update(contact.msisdn, subscription=subscription)
        return Done(
            {
                "contact_key": contact.contact_key,
                "msisdn": contact.msisdn,
                "campaign_name": self.campaign_name,
                "subscription": wanted,
                "changed": changed,
            }
        )
