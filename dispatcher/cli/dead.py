"""`dispatcher dead`: deliveries, events and runs that were parked, each with its reason."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import typer

from dispatcher.cli.access import administrator, moment, reading, summed
from dispatcher.cli.columns import DEAD_LETTERS
from dispatcher.cli.listing import confirmed, tell_change, write_body, write_fields, write_listing
from dispatcher.cli.options import (
    AccountOption,
    JsonOption,
    LimitOption,
    SinceOption,
    StoreOption,
    YesOption,
    new_app,
)
from dispatcher.cli.output import write_json
from dispatcher.cli.stories import write_runs
from dispatcher.errors import UsageError

app = new_app(
    summary="List, show, replay and discard dead letters.",
    examples=(
        "dispatcher dead list                          # what is open",
        "dispatcher dead show 4f0c2a91d3b7             # with the body, as it came",
        "dispatcher dead replay --reason failed        # all of them",
        'dispatcher dead discard DEAD --why "a test"',
    ),
)

Kind = Literal["delivery", "event", "run"]
DeadArgument = Annotated[
    str | None, typer.Argument(metavar="[DEAD]", help="Its id, or the beginning or end of it.", show_default=False)
]
ReasonOption = Annotated[str | None, typer.Option("--reason", metavar="CODE", help="Only with this reason.")]
KindOption = Annotated[Kind | None, typer.Option("--kind", help="Only of this kind.")]
AllOption = Annotated[bool, typer.Option("--all", help="All that are open, or that fit the other options.")]
_ELSEWHERE: Final = ("event", "run", "body", "body_encoding")


@app.command("list")
def list_(
    *,
    reason: ReasonOption = None,
    kind: KindOption = None,
    account: AccountOption = None,
    all_: Annotated[bool, typer.Option("--all", help="Also those that were replayed or discarded.")] = False,
    since: SinceOption = None,
    limit: LimitOption = 50,
    as_json: JsonOption = False,
    store: StoreOption = None,
) -> None:
    """List the dead letters that are open, the newest last."""
    after = moment(since)
    with reading(store) as connection:
        from dispatcher.store.queries import list_dead_letters  # noqa: PLC0415 - dear to import, see main

        found = list_dead_letters(
            connection, reason=reason, kind=kind, account=account, since=after, only_open=not all_, limit=limit
        )
        write_listing(found, DEAD_LETTERS, "dead letters", as_json=as_json)


@app.command()
def show(
    dead: Annotated[str, typer.Argument(metavar="DEAD", help="Its id, or the beginning or end of it.")],
    *,
    as_json: JsonOption = False,
    store: StoreOption = None,
) -> None:
    """Tell all of one dead letter: the body as it came, its event and its run."""
    with reading(store) as connection:
        from dispatcher.store.queries import show_dead_letter  # noqa: PLC0415 - dear to import, see main

        found = show_dead_letter(connection, dead)
    if as_json:
        write_json(found)
        return
    write_fields(found, leave_out=_ELSEWHERE)
    write_runs([found["run"]] if found["run"] else [])
    if found["body"] is not None:
        write_body(found["body"], found["body_encoding"])


@app.command()
def replay(
    dead: DeadArgument = None,
    *,
    reason: ReasonOption = None,
    kind: KindOption = None,
    account: AccountOption = None,
    all_: AllOption = False,
    yes: YesOption = False,
    as_json: JsonOption = False,
    store: StoreOption = None,
) -> None:
    """Take up what a dead letter stands for, or all that are open and fit the options.

    A delivery is read once more, an event is resumed, a run retried. Nothing that was done is done again.
    """
    filters = {"reason": reason, "kind": kind, "account": account}
    if _is_one(dead, filters, everything=all_):
        tell_change(administrator(store).request("dead.replay", dead=dead), as_json=as_json)
        return
    if _may_go_on("Replay", filters, store, yes=yes):
        told = summed(administrator(store).every_page("dead.replay", **filters), "dead letter", "replayed")
        tell_change(told, as_json=as_json)


@app.command()
def discard(
    dead: DeadArgument = None,
    *,
    why: Annotated[
        str | None, typer.Option("--why", "-m", metavar="TEXT", help="Kept in the audit beside your name.")
    ] = None,
    reason: Annotated[
        str | None,
        typer.Option("--reason", metavar="CODE", help="Only with this reason; beside an id the same as --why."),
    ] = None,
    kind: KindOption = None,
    account: AccountOption = None,
    all_: AllOption = False,
    yes: YesOption = False,
    as_json: JsonOption = False,
    store: StoreOption = None,
) -> None:
    """Close a dead letter, or all that are open and fit the options, without doing anything about them."""
    if dead is not None and why is None:
        reason, why = None, reason
    filters = {"reason": reason, "kind": kind, "account": account}
    if _is_one(dead, filters, everything=all_):
        tell_change(administrator(store).request("dead.discard", dead=dead, why=why), as_json=as_json)
        return
    if _may_go_on("Discard", filters, store, yes=yes):
        told = summed(administrator(store).every_page("dead.discard", why=why, **filters), "dead letter", "discarded")
        tell_change(told, as_json=as_json)


def _is_one(dead: str | None, filters: dict[str, str | None], *, everything: bool) -> bool:
    """Tell a named letter from a choice of letters. Raises UsageError for neither, or for both."""
    chosen = everything or any(filters.values())
    if dead is not None and chosen:
        raise UsageError("a dead letter is named, or options say which; not both.")
    if dead is None and not chosen:
        raise UsageError("which dead letter?", hint="Name one, or say which: --reason CODE, --kind KIND, --all.")
    return dead is not None


def _may_go_on(what: str, filters: dict[str, str | None], store: str | None, *, yes: bool) -> bool:
    with reading(store) as connection:
        from dispatcher.store.queries import list_dead_letters  # noqa: PLC0415 - dear to import, see main

        total = list_dead_letters(
            connection, reason=filters["reason"], kind=filters["kind"], account=filters["account"], limit=1
        ).total
    if total > 1 and not confirmed(f"{what} {total:,} dead letters?", yes=yes):
        raise typer.Abort
    return True
