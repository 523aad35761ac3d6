"""What people do to a run's messages in the outbox: say whether those of unknown fate went out, or take them back.

Written in SQLAlchemy Core, within a transaction of the writer, for `operations`, which has taken the run. What the
relay has in hand is no business of people: a row that it claims meanwhile is not among those that are taken here.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, delete, or_, update

from dispatcher.store.schema import dead_letters, messages, outbox, runs
from dispatcher.store.taking import Row, take


def held_steps(connection: Connection, run_id: str) -> tuple[str, ...]:
    """Return the steps of a run that published what may have gone out or not, and waits for a person to say."""
    return tuple(sorted({row["step"] for row in _held(connection, run_id)}))


def settle_held(connection: Connection, run: Row, held: Sequence[str], now: str, *, sent: bool) -> str:
    """Settle what may have been published: it was, and is dropped; or was not, and goes again. Return what to tell."""
    run_id = run["run_id"]
    mine = _held(connection, run_id)
    these = outbox.c.seq.in_([row["seq"] for row in mine])
    if sent:
        connection.execute(delete(outbox).where(these))
    else:
        again = {"state": "ready", "not_before": now, "error": None, "lease_token": None}
        connection.execute(update(outbox).where(these).values(**again))
    texts = (messages.c.message_id.in_([row["message_id"] for row in mine]), messages.c.state == "held")
    connection.execute(update(messages).where(*texts).values(state="sent" if sent else "queued", error=None))
    if run["state"] == "held" and run["finished_at"] is not None:
        this = (runs.c.seq == run["seq"], runs.c.received_on == run["received_on"])
        connection.execute(update(runs).where(*this).values(state="done", error=None))
    # Another step of the run may be unknown too; its letter stays.
    table = dead_letters
    told = (table.c.run_id == run_id, table.c.reason == "unknown", table.c.state == "open")
    of_steps = or_(*(table.c.detail.startswith(f"step {step}: ", autoescape=True) for step in held))
    connection.execute(update(table).where(*told, of_steps).values(state="replayed"))
    steps = ", ".join(f"step {step}" for step in held)
    return f"{steps} {'was published' if sent else 'was not published: it is published again'}"


def withdraw_waiting(connection: Connection, run_id: str, reason: str) -> int:
    """Take back what a run has in the outbox and no broker has seen; its texts count as failed. Return how much."""
    mine = take(connection, outbox, outbox.c.run_id == run_id, outbox.c.state == "ready")
    if mine:
        connection.execute(delete(outbox).where(outbox.c.seq.in_([row["seq"] for row in mine])))
        texts = (messages.c.message_id.in_([row["message_id"] for row in mine]), messages.c.state == "queued")
        connection.execute(update(messages).where(*texts).values(state="failed", error=reason))
    return len(mine)


def _held(connection: Connection, run_id: str) -> list[Row]:
    return take(connection, outbox, outbox.c.run_id == run_id, outbox.c.state == "held")
