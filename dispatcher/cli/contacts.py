"""`dispatcher contacts`: the people of an account, and how one of them is forgotten."""

from __future__ import annotations

from typing import Annotated

import typer

from dispatcher.cli.access import administrator, default_region, reading
from dispatcher.cli.columns import CONTACTS, MESSAGES
from dispatcher.cli.listing import confirmed, tell_change, write_fields, write_listing, write_rows
from dispatcher.cli.options import AccountOption, JsonOption, LimitOption, StoreOption, YesOption, new_app
from dispatcher.cli.output import write_json

app = new_app(
    summary="List, show and erase contacts.",
    examples=(
        "dispatcher contacts list --account acc1 --limit 0 --json",
        "dispatcher contacts show 0821234567           # in any spelling, or a key",
        "dispatcher contacts erase +27821234567 --yes",
    ),
)

ContactArgument = Annotated[str, typer.Argument(metavar="NUMBER|KEY", help="The number in any spelling, or the key.")]


@app.command("list")
def list_(
    *,
    account: AccountOption = None,
    msisdn: Annotated[
        str | None, typer.Option("--msisdn", metavar="NUMBER", help="Only with this number, in any spelling.")
    ] = None,
    limit: LimitOption = 50,
    as_json: JsonOption = False,
    store: StoreOption = None,
) -> None:
    """List contacts, the newest last."""
    with reading(store) as connection:
        from dispatcher.store.queries import list_contacts  # noqa: PLC0415 - dear to import, see main

        found = list_contacts(connection, account=account, msisdn=msisdn, limit=limit)
        write_listing(found, CONTACTS, "contacts", as_json=as_json)


@app.command()
def show(
    contact: ContactArgument, *, account: AccountOption = None, as_json: JsonOption = False, store: StoreOption = None
) -> None:
    """Tell all of one contact: whether the number is opted out, and what texts there are."""
    with reading(store) as connection:
        from dispatcher.store.queries import show_contact  # noqa: PLC0415 - dear to import, see main

        found = show_contact(connection, contact, account)
    if as_json:
        write_json(found)
        return
    write_fields(found, leave_out=("messages",))
    write_rows("messages", MESSAGES, found["messages"])


@app.command()
def erase(
    contact: ContactArgument,
    *,
    account: AccountOption = None,
    yes: YesOption = False,
    as_json: JsonOption = False,
    store: StoreOption = None,
) -> None:
    """Erase a person of an account: the contact, the texts, and every trace of the number, in the file too.

    What the person's events held is gone for good. That the number must not be texted is remembered without it. With
    --account also somebody is erased who is in events only. Only a terminal is asked.
    """
    if not confirmed(f"Erase {contact} for good?", yes=yes):
        raise typer.Abort
    told = administrator(store).request(
        "contacts.erase", contact=contact, account=account, region=default_region(store)
    )
    tell_change(told, as_json=as_json)
