"""`dispatcher schema`: the JSON Schema of the rulebook, with the params of everything that is installed."""

from __future__ import annotations

from dispatcher.cli.options import new_app
from dispatcher.cli.output import say, write_json

app = new_app(
    examples=(
        "dispatcher schema > .rulebook.schema.json",
        "# and, as the first line of the rulebook, for most editors:",
        "# yaml-language-server: $schema=../.rulebook.schema.json",
    )
)


@app.command()
def schema() -> None:
    """Print the JSON Schema of the rulebook: with it an editor completes and checks while you type."""
    from dispatcher.plugins.registry import load_registry  # noqa: PLC0415 - see main
    from dispatcher.rules.plan import json_schema  # noqa: PLC0415

    registry = load_registry()
    registry.load_all()
    write_json(json_schema(registry))
    for plugin in registry.broken.values():
        say(f"left out, as it is broken: {plugin}")
