"""`dispatcher events`: what came in, and what became of it."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import typer

from dispatcher.cli.access import administrator, moment, reading
from dispatcher.cli.columns import DEAD_LETTERS, EVENTS, MESSAGES
from dispatcher.cli.listing import tell_change, write_fields, write_listing, write_rows
from dispatcher.cli.options import AccountOption, JsonOption, LimitOption, SinceOption, StoreOption, new_app
from dispatcher.cli.output import say, write_json
from dispatcher.cli.stories import write_runs

app = new_app(
    summary="List, show and replay events.",
    examples=(
        "dispatcher events list --state unmatched      # what matched nothing?",
        "dispatcher events show 4f0c2a91d3b7           # the end of an id is enough",
        "dispatcher events replay EVENT                # what did not get done",
        "dispatcher events replay EVENT --again        # all of it, with new keys",
    ),
)

State = Literal["new", "matched", "unmatched", "dead"]
EventArgument = Annotated[str, typer.Argument(metavar="EVENT", help="Its id, or the beginning or end of it.")]
_ELSEWHERE: Final = ("runs", "messages", "dead_letters", "emitted", "crash_count", "weak")


@app.command("list")
def list_(
    *,
    account: AccountOption = None,
    conversation: Annotated[
        str | None, typer.Option("--conversation", metavar="KEY", help="Only of this conversation.")
    ] = None,
    conversation_type: Annotated[
        str | None, typer.Option("--type", metavar="TYPE", help="Only of this conversation type.")
    ] = None,
    event_type: Annotated[
        str | None, typer.Option("--event-type", metavar="TYPE", help="Only of this event type.")
    ] = None,
    state: Annotated[State | None, typer.Option("--state", help="Only in this state.")] = None,
    since: SinceOption = None,
    limit: LimitOption = 50,
    as_json: JsonOption = False,
    store: StoreOption = None,
) -> None:
    """List events, the newest last."""
    after = moment(since)
    with reading(store) as connection:
        from dispatcher.store.queries import list_events  # noqa: PLC0415 - dear to import, see main

        found = list_events(
            connection,
            account=account,
            conversation=conversation,
            conversation_type=conversation_type,
            event_type=event_type,
            state=state,
            since=after,
            limit=limit,
        )
        write_listing(found, EVENTS, "events", as_json=as_json)


@app.command()
def show(
    event: EventArgument, *, account: AccountOption = None, as_json: JsonOption = False, store: StoreOption = None
) -> None:
    """Tell the story of one event: its runs, their steps, the texts, the dead letters, what it led to."""
    with reading(store) as connection:
        from dispatcher.store.queries import show_event  # noqa: PLC0415 - dear to import, see main

        found = show_event(connection, event, account)
    if as_json:
        write_json(found)
        return
    write_fields(found, leave_out=_ELSEWHERE)
    write_runs(found["runs"])
    write_rows("messages", MESSAGES, found["messages"])
    write_rows("dead letters", DEAD_LETTERS, found["dead_letters"])
    write_rows("led to", EVENTS, found["emitted"])
    match found["state"]:
        case "new":
            say("It waits for its turn; `dispatcher run` is what takes it up.")
        case "unmatched":
            name = found["event_id"]
            say(f"No chain matched: `dispatcher events show {name} --json | dispatcher explain -` says why.")


@app.command()
def replay(
    event: EventArgument,
    *,
    again: Annotated[
        bool, typer.Option("--again", help="Do everything once more, with new keys: texts are sent twice.")
    ] = False,
    account: AccountOption = None,
    as_json: JsonOption = False,
    store: StoreOption = None,
) -> None:
    """Resume what an event did not finish: steps that are done are not done again.

    An event that matched no chain, or was parked, is matched anew. With --again all of its chains run once more.
    """
    told = administrator(store).request("events.replay", event=event, account=account, again=again)
    tell_change(told, as_json=as_json)
