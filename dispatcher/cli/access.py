"""How verbs reach the store: to read it beside whoever writes, and to have something done by whoever holds it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from dispatcher.cli.options import read_settings
from dispatcher.errors import UsageError

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from dispatcher.worker.administration import Administrator


@contextmanager
def reading(store: str | None) -> Iterator[Connection]:
    """Open the store for reading. Raises StoreUnusable where there is none."""
    settings = read_settings(store=store)
    from dispatcher.store.reading import open_reader  # noqa: PLC0415 - dear to import, and `--help` needs none

    with open_reader(settings.store_url()) as connection:
        yield connection


def administrator(store: str | None) -> Administrator:
    """Return who has things done to the store: through the worker that holds it, or without one."""
    settings = read_settings(store=store)
    from dispatcher.events.limits import Limits  # noqa: PLC0415 - see above
    from dispatcher.worker.administration import Administrator  # noqa: PLC0415

    place = settings.store_path if settings.store_kind == "sqlite" else settings.store_url()
    return Administrator(place, Limits(body_bytes=settings.max_event_bytes, depth=settings.max_depth))


def default_region(store: str | None) -> str | None:
    """Return the region in which this process reads numbers without "+"."""
    return read_settings(store=store).default_region


def moment(text: str | None, now: datetime | None = None) -> datetime | None:
    """Read `--since`: a date, a date and time, or a duration before now. Raises UsageError."""
    if text is None:
        return None
    from dispatcher.text.durations import BadDuration, parse_duration  # noqa: PLC0415 - see above

    try:
        return (now or datetime.now(UTC)) - parse_duration(text)
    except BadDuration:
        pass
    try:
        read = datetime.fromisoformat(text)
        return read.replace(tzinfo=UTC) if read.tzinfo is None else read.astimezone(UTC)
    except (ValueError, OverflowError):
        raise UsageError(
            f'--since {text!r} is no time; write "2h", "2026-11-21" or "2026-11-21T03:41" (in UTC).'
        ) from None


def summed(pages: Iterator[dict[str, Any]], what: str, done: str) -> dict[str, Any]:
    """Return what a verb did over all its pages as if it had been one; `what` are the rows, `done` what was done."""
    ids, left = [], []
    for page in pages:
        ids += page["ids"]
        left += page["left"]
    message = f"{len(ids):,} {what}{'' if len(ids) == 1 else 's'} {done}"
    return {"changed": len(ids), "ids": ids, "message": message, "left": left}
