"""The console script `dispatcher`: its verbs, and the one place where errors become a line on stderr and an exit code.

A verb's module is imported when that verb is used, so that no verb pays for the others.
"""

from __future__ import annotations

import gc
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup

from dispatcher.cli import exits
from dispatcher.cli.options import AmqpOption, RulebookOption, StoreOption, examples_text
from dispatcher.errors import (
    BrokerUnreachable,
    CannotStart,
    DispatcherError,
    RulebookRefused,
    SettingsRefused,
    UsageError,
)

# Each verb is the module of its name in this package.
VERBS: Final = {
    "run": "Take events and run their chains, until told to stop.",
    "check": "Check rulebooks: every problem with its line and what was meant.",
    "explain": "Say which chains an event would start, and why not the others.",
    "publish": "Hand in events from a file or from stdin.",
    "events": "List, show and replay events.",
    "runs": "List, show, retry, cancel and resolve runs.",
    "dead": "List, show, replay and discard dead letters.",
    "contacts": "List, show and erase contacts.",
    "messages": "List and show texts to people, sent or not.",
    "handlers": "List what is installed; with a name, its manual.",
    "schema": "Print the JSON Schema of the rulebook, for editors.",
    "doctor": "Examine store, broker, rulebook, plugins and settings.",
    "demo": "Watch it work: a store of its own, a gateway, 200 events.",
    "migrate": "Bring the store to the schema of this version.",
}
_EXAMPLES: Final = (
    "dispatcher demo                       # see it work, in a folder of its own",
    "dispatcher check                      # is config/handlers.yaml sound?",
    "dispatcher explain event.json         # why does (not) this do anything?",
    "dispatcher publish events.jsonl       # one event a line",
    "dispatcher run --drain                # work off what is there, then end",
    "dispatcher runs list --state failed   # what went wrong",
)
_MORE: Final = """

\b
Settings: flags over DISPATCHER_* variables over defaults, such as
  DISPATCHER_STORE=sqlite:///dispatcher.db
  DISPATCHER_RULEBOOK=config/handlers.yaml

\b
Exit codes: 0 ok, 1 problems found or nothing matched, 2 usage,
  3 cannot start (settings, rulebook, store), 4 broker unreachable,
  75 gave up, to be started again.
"""
_GLOBAL: Final = ("store", "rulebook", "amqp")

# What a start makes stays, and what an event makes dies with it: a collection for each 700 objects, Python's default,
# finds nothing, and takes a twentieth of the time that a worker needs to start.
_GC_THRESHOLD: Final = 50_000


class _Verbs(TyperGroup):
    """The verbs, each loaded when it is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Name the verbs in the order of the manual."""
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Load one verb."""
        if cmd_name not in VERBS:
            self.commands = dict.fromkeys(VERBS)  # type: ignore[assignment]  # what "did you mean" chooses from
            return None
        app = importlib.import_module(f"dispatcher.cli.{cmd_name}").app
        command = typer.main.get_command(app)
        command.name = cmd_name
        if isinstance(app.info.epilog, str):
            command.epilog = app.info.epilog
        # Flags that stand before the verb are defaults of the verb, and of its sub-verbs.
        given = {name: ctx.params.get(name) for name in _GLOBAL if ctx.params.get(name) is not None}
        ctx.default_map = {cmd_name: {**given, **dict.fromkeys(getattr(command, "commands", ()), given)}}
        return command

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """List the verbs without loading them."""
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))


_app = typer.Typer(
    cls=_Verbs,
    epilog=f"{examples_text(_EXAMPLES)}{_MORE}",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:  # noqa: FBT001 - a callback of typer
    if wanted:
        from importlib.metadata import version  # noqa: PLC0415 - takes 20 ms

        typer.echo(f"dispatcher {version('event-dispatcher')}")
        raise typer.Exit


@_app.callback()
def _dispatcher(
    store: StoreOption = None,
    rulebook: RulebookOption = None,
    amqp: AmqpOption = None,
    *,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Run chains of handlers for the events of messaging programmes: durable, explained, accounted for."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave with its exit code."""
    gc.set_threshold(_GC_THRESHOLD)
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; expected errors are told on stderr, without a traceback."""
    _prepare_streams()
    try:
        code = _invoke(arguments)
        sys.stdout.flush()
    except DispatcherError as error:
        code = _tell(error)
    except KeyboardInterrupt:
        code = exits.INTERRUPTED
    except BrokenPipeError:
        # The reader (`head`, say) has what it wanted.
        _drop_output()
        code = exits.PROBLEMS
    except OSError as error:
        # A full disk or a file that went away, where no verb could say more of it.
        _drop_output()
        where = f" ({error.filename})" if error.filename else ""
        code = _tell(CannotStart(f"the operating system refused: {error.strerror or error}{where}."))
    return code


def _prepare_streams() -> None:
    """Make sure that there is something to write to, and that no character can take the process down."""
    if sys.stdout is None:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - for as long as the process lives
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - as above
    for stream in (sys.stdout, sys.stderr):
        # A terminal of another encoding shows escapes.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def _drop_output() -> None:
    """Let go of what stdout could not take: Python would complain once more when it closes it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _invoke(arguments: Sequence[str] | None) -> int:
    try:
        typer.main.get_command(_app)(args=arguments, prog_name="dispatcher")
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else exits.OK
    return exits.OK


def _tell(error: DispatcherError) -> int:
    """Tell an expected error on stderr and return its exit code."""
    from dispatcher.cli.output import say  # noqa: PLC0415 - only who errs pays for it

    match error:
        case RulebookRefused():
            for problem in error.problems:
                say(str(problem))
            say(f"error: {error.message}")
        case SettingsRefused():
            for message in error.messages:
                say(f"error: {message}")
        case _:
            say(f"error: {error.message}")
            if error.hint:
                say(error.hint)
    match error:
        case UsageError():
            return exits.USAGE
        case CannotStart():
            return exits.CANNOT_START
        case BrokerUnreachable():
            return exits.BROKER_UNREACHABLE
        case _:
            return exits.PROBLEMS
