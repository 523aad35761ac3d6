"""`dispatcher runs`: the chains that events started, and what a person can do about one that does not go on."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from dispatcher.cli.access import administrator, moment, reading, summed
from dispatcher.cli.columns import DEAD_LETTERS, MESSAGES, RUNS
from dispatcher.cli.listing import confirmed, tell_change, write_listing, write_rows
from dispatcher.cli.options import (
    AccountOption,
    JsonOption,
    LimitOption,
    SinceOption,
    StoreOption,
    YesOption,
    new_app,
)
from dispatcher.cli.output import write, write_json
from dispatcher.cli.stories import write_runs
from dispatcher.errors import UsageError

app = new_app(
    summary="List, show, retry, cancel and resolve runs.",
    examples=(
        "dispatcher runs list --state failed --since 1d",
        "dispatcher runs retry 4f0c2a91d3b7            # one, by the end of its id",
        "dispatcher runs retry --state failed --chain welcome  # all of them",
        "dispatcher runs resolve RUN --not-sent        # the gateway never got it",
    ),
)

State = Literal["ready", "running", "waiting", "retrying", "held", "done", "failed", "cancelled"]
Retryable = Literal["failed", "held", "retrying", "waiting", "cancelled"]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="Its id, or the beginning or end of it.")]
ChainOption = Annotated[str | None, typer.Option("--chain", metavar="NAME", help="Only of this chain.")]


@app.command("list")
def list_(
    *,
    event: Annotated[str | None, typer.Option("--event", metavar="EVENT", help="Only of this event.")] = None,
    chain: ChainOption = None,
    state: Annotated[State | None, typer.Option("--state", help="Only in this state.")] = None,
    account: AccountOption = None,
    since: SinceOption = None,
    limit: LimitOption = 50,
    as_json: JsonOption = False,
    store: StoreOption = None,
) -> None:
    """List runs, the newest last."""
    after = moment(since)
    with reading(store) as connection:
        from dispatcher.store.queries import list_runs  # noqa: PLC0415 - dear to import, see main

        found = list_runs(connection, event=event, chain=chain, state=state, account=account, since=after, limit=limit)
        write_listing(found, RUNS, "runs", as_json=as_json)


@app.command()
def show(run: RunArgument, *, as_json: JsonOption = False, store: StoreOption = None) -> None:
    """Tell the story of one run: every attempt of its steps, skipped ones too, its texts and dead letters."""
    with reading(store) as connection:
        from dispatcher.store.queries import show_run  # noqa: PLC0415 - dear to import, see main

        found = show_run(connection, run)
    if as_json:
        write_json(found)
        return
    write(f"event {found['event_id']} of account {found['account_key']}")
    write_runs([found])
    write_rows("messages", MESSAGES, found["messages"])
    write_rows("dead letters", DEAD_LETTERS, found["dead_letters"])


@app.command()
def retry(
    run: Annotated[str | None, typer.Argument(metavar="[RUN]", help="Its id, or the beginning or end of it.")] = None,
    *,
    state: Annotated[Retryable | None, typer.Option("--state", help="All in this state.")] = None,
    chain: ChainOption = None,
    account: AccountOption = None,
    yes: YesOption = False,
    as_json: JsonOption = False,
    store: StoreOption = None,
) -> None:
    """Make a run due now, or all that fit the options: `--chain X` alone means those that failed.

    A failed step is tried again under its old keys; steps that are done are not done again; a wait is over. A step of
    which nobody knows whether it had its effect is not tried again: `runs resolve` is for that.
    """
    filters = {"state": state, "chain": chain, "account": account}
    if run is not None:
        if any(filters.values()):
            raise UsageError("a run is named, or options say which runs; not both.")
        tell_change(administrator(store).request("runs.retry", run=run), as_json=as_json)
        return
    if not any(filters.values()):
        raise UsageError("which run?", hint="Name one, or say which: --state failed, --chain NAME, --account KEY.")
    filters["state"] = state or "failed"
    with reading(store) as connection:
        from dispatcher.store.queries import list_runs  # noqa: PLC0415 - dear to import, see main

        total = list_runs(connection, state=filters["state"], chain=chain, account=account, limit=1).total
    if total > 1 and not confirmed(f"Retry {total:,} runs?", yes=yes):
        raise typer.Abort
    told = summed(administrator(store).every_page("runs.retry", **filters), "run", "due now")
    tell_change(told, as_json=as_json)


@app.command()
def cancel(run: RunArgument, *, as_json: JsonOption = False, store: StoreOption = None) -> None:
    """End a run. What a call that is under way brings back is dropped; it may have acted all the same."""
    tell_change(administrator(store).request("runs.cancel", run=run), as_json=as_json)


@app.command()
def resolve(
    run: Annotated[str | None, typer.Argument(metavar="[RUN]", help="Its id, or the beginning or end of it.")] = None,
    *,
    sent: Annotated[
        bool | None, typer.Option("--sent/--not-sent", help="Whether the step had its effect.", show_default=False)
    ] = None,
    state: Annotated[Literal["held"] | None, typer.Option("--state", help="All that are held.")] = None,
    chain: ChainOption = None,
    account: AccountOption = None,
    yes: YesOption = False,
    as_json: JsonOption = False,
    store: StoreOption = None,
) -> None:
    """Say what nobody knew: the step had its effect, and the run goes on; or had none, and it is tried again.

    A run is named, or `--state held` takes all that are held, of one chain or account if so said.
    """
    if sent is None:
        raise UsageError("did the step have its effect?", hint="Say --sent or --not-sent.")
    if run is not None:
        if state or chain or account:
            raise UsageError("a run is named, or options say which runs; not both.")
        tell_change(administrator(store).request("runs.resolve", run=run, sent=sent), as_json=as_json)
        return
    if not (state or chain or account):
        raise UsageError("which run?", hint="Name one, or say which: --state held, --chain NAME, --account KEY.")
    with reading(store) as connection:
        from dispatcher.store.queries import list_runs  # noqa: PLC0415 - dear to import, see main

        total = list_runs(connection, state="held", chain=chain, account=account, limit=1).total
    if total > 1 and not confirmed(f"Resolve {total:,} runs as {'sent' if sent else 'not sent'}?", yes=yes):
        raise typer.Abort
    pages = administrator(store).every_page("runs.resolve", sent=sent, chain=chain, account=account)
    tell_change(summed(pages, "run", "resolved"), as_json=as_json)
