"""What people do to the store: replay, retry, cancel, resolve, discard. Each is one transaction with its audit row.

Written in SQLAlchemy Core on the writer's connection. Nothing here runs a chain: a run that is to go on is made due,
and the worker takes it up like any other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, insert, select, update

from dispatcher.engine.records import as_text
from dispatcher.errors import NotPossible, UsageError
from dispatcher.store.lookup import EventRef, find_dead_letter, find_event, find_run
from dispatcher.store.schema import audit, dead_letters, events, runs

# What can be made to go on, or to go on at once.
_RETRYABLE = ("failed", "held", "retrying", "waiting", "cancelled")
_ENDED = ("done", "failed", "cancelled")


@dataclass(frozen=True, slots=True)
class Done:
    """What an operation changed: the ids, and a sentence for whoever asked."""

    ids: Sequence[str]
    message: str

    def as_json(self) -> dict[str, Any]:
        """Return it as it goes over the control socket."""
        return {"changed": len(self.ids), "ids": list(self.ids), "message": self.message}


class Operations:
    """The operations of one transaction, by one actor."""

    def __init__(self, connection: Connection, actor: str, now: datetime) -> None:
        self._connection = connection
        self._actor = actor
        self._now = as_text(now)

    # Runs.

    def retry_run(self, text: str) -> Done:
        """Make a run due now: a failed or held one tries its step again, a waiting one waits no longer."""
        run_id = find_run(self._connection, text)
        row = self._run(run_id)
        if row["state"] not in _RETRYABLE:
            raise NotPossible(
                f"run {run_id} is {row['state']}.",
                hint="Only failed, held, cancelled, retrying and waiting runs can be retried. "
                "`dispatcher events replay ID --again` runs an event's chains anew.",
            )
        self._retry([row])
        self._note("runs.retry", run_id)
        return Done([run_id], f"run {run_id} is due now")

    def retry_runs(self, *, chain: str | None, state: str, account: str | None) -> Done:
        """Make all runs of a state due now, of one chain or account or of all."""
        if state not in _RETRYABLE:
            raise UsageError(f"runs that are {state} cannot be retried; one of {', '.join(_RETRYABLE)} can.")
        conditions: list[ColumnElement[bool]] = [runs.c.state == state]
        if chain is not None:
            conditions.append(runs.c.chain == chain)
        if account is not None:
            conditions.append(runs.c.account_key == account)
        found = self._rows(select(runs).where(*conditions).order_by(runs.c.seq))
        self._retry(found)
        ids = [row["run_id"] for row in found]
        self._note("runs.retry", f"state={state} chain={chain or '*'} account={account or '*'}", f"{len(ids)} runs")
        return Done(ids, f"{len(ids)} runs are due now")

    def cancel_run(self, text: str) -> Done:
        """End a run as cancelled. What a call under way brings back is dropped, though it may have acted."""
        run_id = find_run(self._connection, text)
        row = self._run(run_id)
        if row["state"] in _ENDED:
            raise NotPossible(f"run {run_id} is {row['state']} already.")
        self._connection.execute(
            update(runs)
            .where(runs.c.seq == row["seq"])
            .values(state="cancelled", due_at=None, lane="", finished_at=self._now, error=f"cancelled by {self._actor}")
        )
        self._close_letters([run_id], "discarded")
        self._note("runs.cancel", run_id)
        acted = "; its call was under way and may have acted" if row["state"] == "running" else ""
        return Done([run_id], f"run {run_id} is cancelled{acted}")

    def resolve_run(self, text: str, *, sent: bool) -> Done:
        """End a hold: the unknown step did happen, and the run goes on behind it; or did not, and it is tried again."""
        run_id = find_run(self._connection, text)
        row = self._run(run_id)
        if row["state"] != "held" or "unknown: " not in (row["error"] or ""):
            raise NotPossible(
                f"run {run_id} is {row['state']}, not held for an unknown outcome.",
                hint="`dispatcher runs list --state held` lists what can be resolved.",
            )
        self._connection.execute(
            update(runs)
            .where(runs.c.seq == row["seq"])
            .values(
                state="ready",
                due_at=self._now,
                lane="",
                resolution="sent" if sent else "not_sent",
                attempt=row["attempt"] + (0 if sent else 1),
                step_started_at=row["step_started_at"] if sent else None,
            )
        )
        self._close_letters([run_id], "replayed")
        self._note("runs.resolve", run_id, "sent" if sent else "not sent")
        return Done([run_id], f"run {run_id} goes on: step {row['step']} was {'' if sent else 'not '}sent")

    # Events.

    def replay_event(self, text: str, account: str | None, *, again: bool) -> Done:
        """Resume what an event did not finish; with `again`, run its chains anew, with new keys."""
        ref = find_event(self._connection, text, account)
        changed = self._again(ref) if again else self._resume(ref)
        self._note("events.replay", ref.event_id, "again" if again else None)
        return changed

    def _again(self, ref: EventRef) -> Done:
        row = self._event(ref)
        open_runs = self._rows(select(runs).where(runs.c.event_seq == ref.seq, runs.c.state.not_in(_ENDED)))
        if open_runs or row["state"] == "new":
            raise NotPossible(
                f"event {ref.event_id} is still being worked on.",
                hint="Wait for its runs to end, or cancel them: `dispatcher events show` lists them.",
            )
        self._connection.execute(
            update(events)
            .where(events.c.seq == ref.seq)
            .values(state="new", generation=row["generation"] + 1, crash_count=0, note=None)
        )
        self._close_event_letters(ref)
        return Done([ref.event_id], f"event {ref.event_id} is matched anew, as generation {row['generation'] + 1}")

    def _resume(self, ref: EventRef) -> Done:
        row = self._event(ref)
        generation = [runs.c.event_seq == ref.seq, runs.c.generation == row["generation"]]
        known = self._rows(select(runs).where(*generation).order_by(runs.c.seq))
        if known:
            unfinished = [run for run in known if run["state"] in ("failed", "held", "cancelled")]
            if not unfinished:
                raise NotPossible(
                    f"event {ref.event_id} has nothing to resume: its runs are {_counted(known)}.",
                    hint="`--again` runs its chains once more, as a new generation with new keys.",
                )
            self._retry(unfinished)
            self._connection.execute(
                update(events).where(events.c.seq == ref.seq).values(state="matched", crash_count=0, note=None)
            )
            self._close_event_letters(ref)
            ids = [run["run_id"] for run in unfinished]
            return Done(ids, f"{len(ids)} run{'s' if len(ids) != 1 else ''} of event {ref.event_id} due now")
        if row["state"] == "new":
            raise NotPossible(f"event {ref.event_id} is new: it waits for its turn.")
        self._connection.execute(
            update(events).where(events.c.seq == ref.seq).values(state="new", crash_count=0, note=None)
        )
        self._close_event_letters(ref)
        return Done([ref.event_id], f"event {ref.event_id} is matched anew")

    # Dead letters.

    def discard_letter(self, text: str) -> Done:
        """Close a dead letter without doing anything about it."""
        dead_id = find_dead_letter(self._connection, text)
        row = self.letter(dead_id)
        if row["state"] != "open":
            raise NotPossible(f"dead letter {dead_id} is {row['state']} already.")
        self.close_letter(dead_id, "discarded")
        self._note("dead.discard", dead_id)
        return Done([dead_id], f"dead letter {dead_id} is discarded")

    def replay_letter(self, dead_id: str) -> Done:
        """Resume what a dead letter of an event or a run stands for. A delivery goes through intake instead."""
        row = self.letter(dead_id)
        if row["state"] != "open":
            raise NotPossible(f"dead letter {dead_id} is {row['state']} already.")
        if row["kind"] == "run":
            changed = self.retry_run(row["run_id"])
        else:
            changed = self.replay_event(row["event_id"], row["account_key"], again=False)
        self.close_letter(dead_id, "replayed")
        self._note("dead.replay", dead_id)
        return changed

    def letter(self, dead_id: str) -> Mapping[str, Any]:
        """Return the row of a dead letter."""
        return self._rows(select(dead_letters).where(dead_letters.c.dead_id == dead_id))[0]

    def open_letters(self, *, reason: str | None, account: str | None) -> list[str]:
        """Return the ids of open dead letters, the oldest first."""
        conditions: list[ColumnElement[bool]] = [dead_letters.c.state == "open"]
        if reason is not None:
            conditions.append(dead_letters.c.reason == reason)
        if account is not None:
            conditions.append(dead_letters.c.account_key == account)
        statement = select(dead_letters.c.dead_id).where(*conditions).order_by(dead_letters.c.seq)
        return [row["dead_id"] for row in self._rows(statement)]

    def close_letter(self, dead_id: str, state: str) -> None:
        """Close a dead letter as replayed or discarded."""
        self._connection.execute(update(dead_letters).where(dead_letters.c.dead_id == dead_id).values(state=state))

    def note_delivery(self, dead_id: str, became: str) -> None:
        """Record that a delivery was taken in once more, and what became of it."""
        self.close_letter(dead_id, "replayed")
        self._note("dead.replay", dead_id, became)

    # Helpers of the above.

    def _retry(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Make runs due now; a step that had ended is tried with a fresh retry policy, under its old keys."""
        for row in rows:
            values: dict[str, Any] = {"due_at": self._now, "lane": "", "finished_at": None, "error": None}
            if row["state"] != "waiting":
                values["state"] = "ready"
            if row["state"] in ("failed", "held", "cancelled"):
                # The journal keeps the attempts that were: this one is counted on.
                values["attempt"] = row["attempt"] + 1
                values["step_started_at"] = None
            self._connection.execute(update(runs).where(runs.c.seq == row["seq"]).values(**values))
        self._close_letters([row["run_id"] for row in rows], "replayed")

    def _close_letters(self, run_ids: Sequence[str], state: str) -> None:
        for run_id in run_ids:
            event_id = self._run(run_id)["event_id"]
            self._connection.execute(
                update(dead_letters)
                .where(
                    dead_letters.c.event_id == event_id,
                    dead_letters.c.run_id == run_id,
                    dead_letters.c.state == "open",
                    dead_letters.c.kind == "run",
                )
                .values(state=state)
            )

    def _close_event_letters(self, ref: EventRef) -> None:
        self._connection.execute(
            update(dead_letters)
            .where(
                dead_letters.c.event_id == ref.event_id,
                dead_letters.c.account_key == ref.account_key,
                dead_letters.c.state == "open",
                dead_letters.c.kind != "delivery",
            )
            .values(state="replayed")
        )

    def _run(self, run_id: str) -> Mapping[str, Any]:
        return self._rows(select(runs).where(runs.c.run_id == run_id))[0]

    def _event(self, ref: EventRef) -> Mapping[str, Any]:
        return self._rows(select(events).where(events.c.seq == ref.seq))[0]

    def _rows(self, statement: Any) -> list[Mapping[str, Any]]:
        return [dict(row) for row in self._connection.execute(statement).mappings()]

    def _note(self, verb: str, target: str, detail: str | None = None) -> None:
        self._connection.execute(
            insert(audit).values(at=self._now, actor=self._actor, verb=verb, target=target, detail=detail)
        )


def _counted(rows: Sequence[Mapping[str, Any]]) -> str:
    counts: dict[str, int] = {}
    for row in rows:
        counts[row["state"]] = counts.get(row["state"], 0) + 1
    return ", ".join(f"{number} {state}" for state, number in sorted(counts.items()))
