"""`dispatcher migrate`: bring the store to the schema of this version, at a time of one's own choosing.

Every verb that writes does it too when it finds an older store; a large one may take a while.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dispatcher.cli.options import JsonOption, StoreOption, new_app, read_settings
from dispatcher.cli.output import say, write_json

if TYPE_CHECKING:
    from pathlib import Path

app = new_app(
    examples=(
        "dispatcher migrate",
        "dispatcher migrate --store sqlite:////var/lib/dispatcher/store.db",
        "dispatcher migrate --store postgresql://dispatcher@db.example.org/dispatcher",
    )
)


@app.command()
def migrate(*, store: StoreOption = None, as_json: JsonOption = False) -> None:
    """Make the store, or bring it to the schema of this version. Workers of an earlier version must have ended."""
    settings = read_settings(store=store)
    from dispatcher.store.migrate import HEAD  # noqa: PLC0415 - see main

    shared = settings.store_kind == "postgresql"
    before = _migrate_database(settings.store_url()) if shared else _migrate_file(settings.store_path)
    if as_json:
        write_json({"store": settings.store_shown if shared else settings.store, "before": before, "after": HEAD})
    elif before == HEAD:
        say(f"{settings.store_shown} has schema {HEAD}, which is that of this version: nothing to do.")
    else:
        done = f"was brought from schema {before} to {HEAD}" if before else f"was made, with schema {HEAD}"
        say(f"{settings.store_shown} {done}.")


def _migrate_file(path: Path) -> str | None:
    from dispatcher.store.migrate import version_at  # noqa: PLC0415 - see main
    from dispatcher.store.sqlite.store import SqliteStore  # noqa: PLC0415

    with SqliteStore.refusals(path):
        before = version_at(path)
    SqliteStore.open(path).close()
    return before


def _migrate_database(url: str) -> str | None:
    from dispatcher.store.postgres.migrate import upgrade, version_at  # noqa: PLC0415 - see main

    before = version_at(url)
    upgrade(url)
    return before
