"""What the verbs share of their command lines: the app of a verb, the options with one meaning, the settings.

Flags win over `DISPATCHER_*`, those over defaults (see `dispatcher.settings`). `--store`, `--rulebook` and `--amqp` may
stand before the verb too: `dispatcher --store sqlite:///x.db events list`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from dispatcher.settings import Settings

StoreOption = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="URL",
        help="The store: sqlite:///FILE, or postgresql://USER@HOST/DATABASE.",
        show_default=False,
    ),
]
RulebookOption = Annotated[
    str | None,
    typer.Option("--rulebook", metavar="FILE", help="The rulebook.", show_default=False),
]
AmqpOption = Annotated[
    str | None,
    typer.Option("--amqp", metavar="URL", help="The broker, amqp://USER:PASSWORD@HOST/VHOST.", show_default=False),
]
HttpOption = Annotated[
    str | None,
    typer.Option("--http", metavar="HOST:PORT", help="Where to serve health and metrics.", show_default=False),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
AccountOption = Annotated[str | None, typer.Option("--account", metavar="KEY", help="Only of this account.")]
SinceOption = Annotated[
    str | None, typer.Option("--since", metavar="TIME", help="Not from before: 2h, 2026-11-21, 2026-11-21T03:41 (UTC).")
]
YesOption = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
LimitOption = Annotated[int, typer.Option("--limit", min=0, metavar="N", help="How many at most; 0 for all.")]


def new_app(*, examples: Sequence[str] = (), summary: str | None = None) -> typer.Typer:
    """Return the app of one verb; its help ends with the examples, lines such as `dispatcher check  # the rulebook`.

    `summary` is the help of a verb with sub-verbs; a verb of one command takes it from its function's docstring.
    """
    return typer.Typer(
        help=summary,
        epilog=examples_text(examples),
        no_args_is_help=summary is not None,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )


def examples_text(examples: Sequence[str]) -> str | None:
    """Lay out worked examples for the end of a help text, where lines stay as they are."""
    return "\b\nExamples:\n" + "\n".join(f"  {example}" for example in examples) if examples else None


def read_settings(**flags: Any) -> Settings:
    """Read the settings of this process; a flag that is None was not given. Raises SettingsRefused."""
    from dispatcher.settings import load_settings  # noqa: PLC0415 - dear to import, and `--help` needs none

    return load_settings(**flags)
