"""`update_contact`: change what is known of a person."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from dispatcher import AtLoad, Contact, Context, Done, Effect, Event, Failed, Handler, Msisdn, Outcome


class UpdateContact(Handler):
    """Update the contact with this number, which must exist.

    The fields that are given replace the old ones, `groups` are added, `leave_groups` taken away, `extra` is merged.
    Without a contact, `if_missing` decides: `fail` fails the step, `skip` skips it.

    Emits nothing.

    Run twice = once: the contact is written in the same transaction as the journal, and writing it again changes
    nothing.
    """

    effect = Effect.TRANSACTION

    msisdn: Msisdn = Field(description="The person's number.")
    name: str | None = Field(default=None, description="First name.")
    surname: str | None = Field(default=None, description="Family name.")
    email_address: str | None = Field(default=None, description="Where mail reaches the person.")
    language: str | None = Field(default=None, description="The person's language, such as `en` or `zu`.")
    groups: tuple[str, ...] = Field(default=(), description="Groups that the person belongs to from now on.")
    leave_groups: tuple[str, ...] = Field(default=(), description="Groups that the person leaves.")
    extra: dict[str, Any] = Field(default_factory=dict, description="Anything else to keep, by name.")
    if_missing: Annotated[Literal["fail", "skip"], AtLoad()] = Field(
        default="fail", description="What to do when the number has no contact."
    )

    class Result(BaseModel):
        """The contact as it is after the step."""

        contact_key: str
        msisdn: str
        name: str | None
        surname: str | None
        email_address: str | None
        language: str | None
        groups: list[str]
        extra: dict[str, Any]
        changed: bool

    def run(self, event: Event, context: Context) -> Outcome:
        """Look the number up and write what differs."""
        known = context.contacts.get(self.msisdn)
        if known is None:
            reason = "the number has no contact"
            return Done(skipped=reason) if self.if_missing == "skip" else Failed(reason)
        changes = self._changes(known)
        contact = context.contacts.update(self.msisdn, **changes) if changes else known
        return Done(
            {
                "contact_key": contact.contact_key,
                "msisdn": contact.msisdn,
                "name": contact.name,
                "surname": contact.surname,
                "email_address": contact.email_address,
                "language": contact.language,
                "groups": list(contact.groups),
                "extra": dict(contact.extra),
                "changed": bool(changes),
            }
        )

    def _changes(self, known: Contact) -> dict[str, Any]:
        groups = dict.fromkeys((*known.groups, *self.groups))
        given = {
            "name": self.name,
            "surname": self.surname,
            "email_address": self.email_address,
            "language": self.language,
            "groups": tuple(group for group in groups if group not in self.leave_groups),
            "extra": {**known.extra, **self.extra},
        }
        return {field: value for field, value in given.items() if value not in (None, getattr(known, field))}
