"""`dispatcher messages`: the texts to people, sent or not, and what the gateways said."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from dispatcher.cli.access import moment, reading
from dispatcher.cli.columns import MESSAGES, Row, full_time
from dispatcher.cli.listing import write_fields, write_listing
from dispatcher.cli.options import AccountOption, JsonOption, LimitOption, SinceOption, StoreOption, new_app
from dispatcher.cli.output import write, write_json, write_wrapped
from dispatcher.cli.refusals import meaning_of

app = new_app(
    summary="List and show texts to people, sent or not.",
    examples=(
        "dispatcher messages list --state failed --since 1d",
        "dispatcher messages list --to 0821234567 --json",
        "dispatcher messages show 4f0c2a91d3b7         # the end of an id is enough",
    ),
)

State = Literal["queued", "sent", "acked", "nacked", "delivered", "failed", "held"]


@app.command("list")
def list_(
    *,
    account: AccountOption = None,
    to: Annotated[
        str | None, typer.Option("--to", metavar="NUMBER", help="Only to this number, in any spelling.")
    ] = None,
    state: Annotated[State | None, typer.Option("--state", help="Only in this state.")] = None,
    sender: Annotated[str | None, typer.Option("--sender", metavar="NAME", help="Only by this sender.")] = None,
    since: SinceOption = None,
    limit: LimitOption = 50,
    as_json: JsonOption = False,
    store: StoreOption = None,
) -> None:
    """List messages, the newest last."""
    after = moment(since)
    with reading(store) as connection:
        from dispatcher.store.queries import list_messages  # noqa: PLC0415 - dear to import, see main

        found = list_messages(connection, account=account, to=to, state=state, sender=sender, since=after, limit=limit)
        write_listing(found, MESSAGES, "messages", as_json=as_json)


@app.command()
def show(
    message: Annotated[str, typer.Argument(metavar="MESSAGE", help="Its id, or the beginning or end of it.")],
    *,
    as_json: JsonOption = False,
    store: StoreOption = None,
) -> None:
    """Tell all of one message: its text, its parts, the gateway's id and error, and why it waits if it does."""
    with reading(store) as connection:
        from dispatcher.store.queries import show_message  # noqa: PLC0415 - dear to import, see main

        found = show_message(connection, message)
    if as_json:
        write_json(found)
        return
    write_fields(found, leave_out=("outbox",))
    if found["outbox"] is not None:
        write()
        write_wrapped(_why_it_waits(found["outbox"]))


def _why_it_waits(row: Row) -> str:
    """Say of what is in the outbox where it goes, since when it waits, and what keeps it."""
    since = f"since {full_time(row['at'])} UTC"
    where = row["destination"].removeprefix("amqp:")
    error = f": {row['error']}" if row["error"] else ""
    if row["state"] == "held":
        who = f"`dispatcher runs resolve {row['run_id']} --sent`, or `--not-sent`, ends the hold"
        return f"Nobody knows whether it was published to {where} {since}{error}. {who}."
    if not error:
        return f"Waits {since} to be published to {where}; the worker does that when the broker takes it."
    return f"Waits {since} to be published to {where}{error}. {meaning_of(row['destination'] + error)}"
