"""`create_contact`: make sure that a person is in the contacts."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from dispatcher import AtLoad, Contact, Context, Done, Effect, Event, Failed, Handler, Msisdn, Outcome


class CreateContact(Handler):
    """Create the contact with this number, or update the one there is.

    There is one contact per account and number, however the number is spelt. When it exists, `if_exists` decides:
    `update` replaces the fields that are given, adds the groups and merges `extra`; `keep` changes nothing; `fail`
    fails the step.

    Emits nothing.

    Run twice = once: the contact is written in the same transaction as the journal, and a replay finds it there.
    """

    effect = Effect.TRANSACTION

    msisdn: Msisdn = Field(description="The person's number.")
    name: str | None = Field(default=None, description="First name.")
    surname: str | None = Field(default=None, description="Family name.")
    email_address: str | None = Field(default=None, description="Where mail reaches the person.")
    language: str | None = Field(default=None, description="The person's language, such as `en` or `zu`.")
    groups: tuple[str, ...] = Field(default=(), description="Groups that the person belongs to from now on.")
    extra: dict[str, Any] = Field(default_factory=dict, description="Anything else to keep, by name.")
    if_exists: Annotated[Literal["update", "keep", "fail"], AtLoad()] = Field(
        default="update", description="What to do when the number has a contact already."
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
        created: bool

    def run(self, event: Event, context: Context) -> Outcome:
        """Look the number up, then create, update or leave alone."""
        known = context.contacts.get(self.msisdn)
        if known is None:
            created = context.contacts.create(
                self.msisdn,
                name=self.name,
                surname=self.surname,
                email_address=self.email_address,
                language=self.language,
                groups=tuple(dict.fromkeys(self.groups)),
                extra=self.extra,
            )
            return _done(created, created=True)
        if self.if_exists == "fail":
            return Failed(f"the number has a contact already: {known.contact_key}")
        changes = {} if self.if_exists == "keep" else self._changes(known)
        return _done(context.contacts.update(self.msisdn, **changes) if changes else known, created=False)

    def _changes(self, known: Contact) -> dict[str, Any]:
        given = {
            "name": self.name,
            "surname": self.surname,
            "email_address": self.email_address,
            "language": self.language,
            "groups": tuple(dict.fromkeys((*known.groups, *self.groups))),
            "extra": {**known.extra, **self.extra},
        }
        return {field: value for field, value in given.items() if value not in (None, getattr(known, field))}


def _done(contact: Contact, *, created: bool) -> Done:
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
            "created": created,
        }
    )
