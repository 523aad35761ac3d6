"""`dispatcher migrate`: bring the store to the schema of this version, at a time of one's own choosing.

Every verb that writes does it too when it finds an older store; a large one may take a while.
"""

from __future__ import annotations

from dispatcher.cli.options import JsonOption, StoreOption, new_app, read_settings
from dispatcher.cli.output import say, write_json

app = new_app(examples=("dispatcher migrate", "dispatcher migrate --store sqlite:////var/lib/dispatcher/store.db"))


@app.command()
def migrate(*, store: StoreOption = None, as_json: JsonOption = False) -> None:
    """Make the store, or bring it to the schema of this version. No worker may be running."""
    settings = read_settings(store=store)
    from dispatcher.store.migrate import HEAD, version_at  # noqa: PLC0415 - see main
    from dispatcher.store.sqlite.store import SqliteStore  # noqa: PLC0415

    path = settings.store_path
    with SqliteStore.refusals(path):
        before = version_at(path)
    SqliteStore.open(path).close()
    if as_json:
        write_json({"store": settings.store, "before": before, "after": HEAD})
    elif before == HEAD:
        say(f"{path} has schema {HEAD}, which is that of this version: nothing to do.")
    else:
        done = f"was brought from schema {before} to {HEAD}" if before else f"was made, with schema {HEAD}"
        say(f"{path} {done}.")
