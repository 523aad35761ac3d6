"""`dispatcher run`: the worker."""

from __future__ import annotations

from typing import Annotated

import typer

from dispatcher.cli.options import AmqpOption, HttpOption, RulebookOption, StoreOption, new_app, read_settings

app = new_app(
    examples=(
        "dispatcher run               # until SIGTERM or Ctrl-C; both drain first",
        "dispatcher run --drain       # work off what is there and due, then end",
        "dispatcher run --store sqlite:////var/lib/dispatcher/store.db",
        "dispatcher run --amqp amqp://vumi:PASSWORD@broker/vumi --http 127.0.0.1:9464",
        "dispatcher run --workers 4 --store postgresql://dispatcher@db/dispatcher",
        "kill -HUP PID                # read the rulebook again; a bad one is refused",
    )
)


@app.command()
def run(
    *,
    drain: Annotated[bool, typer.Option("--drain", help="End when nothing is left that is due.")] = False,
    workers: Annotated[
        int | None,
        typer.Option("--workers", metavar="N", help="How many processes; more than one needs PostgreSQL."),
    ] = None,
    store: StoreOption = None,
    rulebook: RulebookOption = None,
    amqp: AmqpOption = None,
    http: HttpOption = None,
    log_level: Annotated[
        str | None, typer.Option("--log-level", metavar="LEVEL", help="debug, info, warning or error.")
    ] = None,
    log_format: Annotated[
        str | None, typer.Option("--log-format", metavar="FORMAT", help="json, console or auto.")
    ] = None,
) -> None:
    """Take events and run their chains, until told to stop.

    SIGTERM and SIGINT drain: nothing more is taken, calls under way are waited for, then the worker ends with 0. A
    second one, or DISPATCHER_DRAIN_SECONDS, ends it with 75; what was under way goes on at the next start.

    With --workers, one process starts N workers, starts again those that end, and passes signals on to them.
    """
    settings = read_settings(
        store=store,
        rulebook=rulebook,
        amqp_url=amqp,
        http=http,
        log_level=log_level,
        log_format=log_format,
        workers=workers,
    )
    from dispatcher import failpoints, telemetry  # noqa: PLC0415 - see main
    from dispatcher.settings import process_environ  # noqa: PLC0415
    from dispatcher.worker.signals import LIFELINE  # noqa: PLC0415

    json = {"json": True, "console": False, "auto": None}[settings.log_format]
    lifeline = process_environ().get(LIFELINE)
    # Who is alone needs no number; nor does a supervisor, which names the worker that it tells of.
    telemetry.configure(json=json, level=settings.log_level, **({"worker": settings.worker} if lifeline else {}))
    failpoints.arm(settings.failpoints)
    if settings.workers > 1:
        from dispatcher.worker.supervisor import supervise  # noqa: PLC0415

        raise typer.Exit(supervise(settings, drain=drain))
    from dispatcher.worker.start import run_worker  # noqa: PLC0415

    raise typer.Exit(run_worker(settings, drain=drain, lifeline=int(lifeline) if lifeline else None))
