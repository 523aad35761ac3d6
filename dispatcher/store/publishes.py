"""What people do to a run's messages in the outbox: say whether those of unknown fate went out, or take them back.

Written in SQLAlchemy Core, within a transaction of the writer, for `operations`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, delete, or_, select, update

from dispatcher.store.schema import dead_letters, messages, outbox, runs


def held_steps(connection: Connection, run_id: str) -> tuple[str, ...]:
    """Return the steps of a run that published what may have gone out or not, and waits for a person to say."""
    held = (outbox.c.run_id == run_id, outbox.c.state == "held")
    return tuple(connection.execute(select(outbox.c.step).where(*held).distinct().order_by(outbox.c.step)).scalars())


def settle_held(connection: Connection, run: Mapping[str, Any], held: Sequence[str], now: str, *, sent: bool) -> str:
    """Settle what may have been published: it was, and is dropped; or was not, and goes again. Return what to tell."""
    run_id = run["run_id"]
    mine = (outbox.c.run_id == run_id, outbox.c.state == "held")
    ids = list(connection.execute(select(outbox.c.message_id).where(*mine)).scalars())
    if sent:
        connection.execute(delete(outbox).where(*mine))
    else:
        connection.execute(update(outbox).where(*mine).values(state="ready", not_before=now, error=None))
    texts = (messages.c.message_id.in_(ids), messages.c.state == "held")
    connection.execute(update(messages).where(*texts).values(state="sent" if sent else "queued", error=None))
    if run["state"] == "held" and run["finished_at"] is not None:
        connection.execute(update(runs).where(runs.c.seq == run["seq"]).values(state="done", error=None))
    # Another step of the run may be unknown too; its letter stays.
    table = dead_letters
    told = (table.c.run_id == run_id, table.c.reason == "unknown", table.c.state == "open")
    of_steps = or_(*(table.c.detail.startswith(f"step {step}: ", autoescape=True) for step in held))
    connection.execute(update(table).where(*told, of_steps).values(state="replayed"))
    steps = ", ".join(f"step {step}" for step in held)
    return f"{steps} {'was published' if sent else 'was not published: it is published again'}"


def withdraw_waiting(connection: Connection, run_id: str, reason: str) -> int:
    """Take back what a run has in the outbox and no broker has seen; its texts count as failed. Return how much."""
    mine = (outbox.c.run_id == run_id, outbox.c.state == "ready")
    ids = list(connection.execute(select(outbox.c.message_id).where(*mine)).scalars())
    if ids:
        connection.execute(delete(outbox).where(*mine))
        texts = (messages.c.message_id.in_(ids), messages.c.state == "queued")
        connection.execute(update(messages).where(*texts).values(state="failed", error=reason))
    return len(ids)
