"""What people do to runs and events: retry, cancel, resolve, replay. Each leaves a row in `audit`.

Written in SQLAlchemy Core, within a transaction of the writer. Nothing here runs a chain: a run that is to go on is
made due, and a worker takes it up like any other. A step whose outcome nobody knows is never tried again on the
way: that takes a person who says what happened (`resolve_run`). What is changed is taken first (see `taking`), and
judged by what it is then.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Select, insert, select, update

from dispatcher.engine.records import OPEN_LANE, as_text
from dispatcher.errors import NotFound, NotPossible, UsageError
from dispatcher.store.lookup import EventRef, find_event, find_run
from dispatcher.store.publishes import settle_held, withdraw_waiting
from dispatcher.store.schema import audit, dead_letters, events, messages, runs, steps
from dispatcher.store.standing import Standing, here, standing_of
from dispatcher.store.taking import Row, may_reopen, rows, take, take_runs

RETRYABLE: Final = ("failed", "held", "retrying", "waiting", "cancelled")
_ENDED: Final = ("done", "failed", "cancelled")
_RESUMABLE: Final = ("failed", "held", "cancelled")
_CANCELLED_CALL: Final = "cancelled while the call was under way"

# What `events.note` says of an event whose person was erased: it can never run again.
ERASED_NOTE: Final = "erased"
# How many rows one transaction of a bulk operation takes: the worker stands still meanwhile.
PAGE: Final = 200


@dataclass(frozen=True, slots=True)
class Page:
    """Where a bulk operation stands: it walks up the rows behind `after`, to the last one there was at its start."""

    after: int = 0
    up_to: int | None = None


@dataclass(frozen=True, slots=True)
class Changed:
    """What an operation did: the ids changed, those left alone and why, and a sentence for whoever asked."""

    ids: Sequence[str]
    message: str
    left: Sequence[tuple[str, str]] = ()
    next_page: Page | None = None

    def as_json(self) -> dict[str, Any]:
        """Return it as it goes over the control socket."""
        return {
            "changed": len(self.ids),
            "ids": list(self.ids),
            "message": self.message,
            "left": [list(entry) for entry in self.left],
            "next": None if self.next_page is None else [self.next_page.after, self.next_page.up_to],
        }


class Operations:
    """The operations of one transaction, by one actor."""

    def __init__(self, connection: Connection, actor: str, now: datetime) -> None:
        self.connection = connection
        self._actor = actor
        self._now = as_text(now)
        may_reopen(connection)

    # Runs.

    def retry_run(self, text: str) -> Changed:
        """Make a run due now: a failed step is tried again under its old keys, a wait or a pause is over.

        Raises NotPossible where there is nothing to retry, or where only `resolve_run` is safe.
        """
        row = self._run(find_run(self.connection, text))
        run_id, standing = row["run_id"], standing_of(self.connection, row)
        if row["state"] not in RETRYABLE:
            raise NotPossible(f"run {run_id} is {row['state']}: there is nothing to retry.", hint=_HINTS[row["state"]])
        self._refuse_erased(row)
        # `on_unknown: fail` has decided already: such a step is `unknown`, its run `failed`.
        decided = row["state"] in ("failed", "retrying") and standing.step_state == "unknown"
        if standing.unknown and not decided:
            raise _not_known(row, standing)
        self._retry(row, standing)
        self.note("runs.retry", run_id)
        doubt = f"; nobody knows whether step {row['step']} had an effect before" if decided else ""
        return Changed([run_id], f"run {run_id} is due now{doubt}")

    def retry_runs(self, *, chain: str | None, state: str, account: str | None, page: Page) -> Changed:
        """Make runs of a state due now, of one chain or account or of all; those that need a person are left alone."""
        if state not in RETRYABLE:
            raise UsageError(f"runs that are {state} cannot be retried; those of {', '.join(RETRYABLE)} can.")
        found, next_page = self._page_of_runs(state, chain, account, page)
        retried, left = [], []
        for row in found:
            standing = standing_of(self.connection, row)
            if (standing.unknown and state != "retrying") or self._is_erased(row):
                left.append((row["run_id"], "unknown" if standing.unknown else "erased"))
            else:
                self._retry(row, standing)
                retried.append(row["run_id"])
        target = f"state={state} chain={chain or '*'} account={account or '*'}"
        self.note("runs.retry", target, f"{len(retried)} runs")
        return Changed(retried, f"{counted(len(retried), 'run')} due now", left, next_page)

    def cancel_run(self, text: str) -> Changed:
        """End a run as cancelled. What a call under way brings back is dropped, though it may have acted."""
        row = self._run(find_run(self.connection, text))
        run_id = row["run_id"]
        withdrawn = withdraw_waiting(self.connection, run_id, f"cancelled by {self._actor}")
        if row["state"] in _ENDED:
            if not withdrawn:
                raise NotPossible(f"run {run_id} is {row['state']} already, and nothing of it waits to be published.")
            self.note("runs.cancel", run_id, f"{withdrawn} withdrawn")
            return Changed([run_id], f"run {run_id}: {counted(withdrawn, 'message')} withdrawn that waited")
        self._update_run(
            row,
            state="cancelled",
            due_at=None,
            lane=OPEN_LANE,
            lease_token=None,
            finished_at=self._now,
            error=f"by {self._actor}",
        )
        if row["state"] == "running":
            self._doubt_call(row)
        self._close_run_letters(row, "discarded")
        self.note("runs.cancel", run_id)
        acted = "; its call was under way and may have acted" if row["state"] == "running" else ""
        return Changed([run_id], f"run {run_id} is cancelled{acted}")

    def resolve_run(self, text: str, *, sent: bool) -> Changed:
        """Settle an unknown outcome: the step did happen, and the run goes on behind it; or did not: it is tried again.

        Raises NotPossible when the run does not stand at a step whose outcome is unknown.
        """
        row = self._run(find_run(self.connection, text))
        run_id, standing = row["run_id"], standing_of(self.connection, row)
        if not standing.published and (row["state"] not in _RESUMABLE or not standing.unknown):
            cause = f": {row['error']}" if row["state"] == "held" else ""
            raise NotPossible(
                f"run {run_id} is {row['state']}{cause}; no outcome of it is unknown.",
                hint="`dispatcher dead list --reason unknown` lists what can be resolved.",
            )
        if not standing.published:
            self._refuse_erased(row)
        told = self._resolve(row, standing, sent=sent)
        self.note("runs.resolve", run_id, "sent" if sent else "not sent")
        return Changed([run_id], f"run {run_id}: {told}")

    def resolve_runs(self, *, sent: bool, chain: str | None, account: str | None, page: Page) -> Changed:
        """Settle the unknown outcomes of all held runs, of one chain or account or of all, in the same way."""
        found, next_page = self._page_of_runs("held", chain, account, page)
        resolved, left = [], []
        for row in found:
            standing = standing_of(self.connection, row)
            if not standing.unknown:
                left.append((row["run_id"], str(row["error"]).partition(":")[0]))
            elif not standing.published and self._is_erased(row):
                left.append((row["run_id"], "erased"))
            else:
                self._resolve(row, standing, sent=sent)
                resolved.append(row["run_id"])
        target = f"state=held chain={chain or '*'} account={account or '*'}"
        self.note("runs.resolve", target, f"{len(resolved)} runs {'sent' if sent else 'not sent'}")
        return Changed(resolved, f"{counted(len(resolved), 'run')} resolved", left, next_page)

    def _resolve(self, row: Row, standing: Standing, *, sent: bool) -> str:
        if standing.published:
            return settle_held(self.connection, row, standing.published, self._now, sent=sent)
        fresh: dict[str, Any] = {"attempt": standing.last_attempt + 1, "step_started_at": None}
        self._revive(row, state="ready", resolution="sent" if sent else "not_sent", **({} if sent else fresh))
        outcome = "was sent: the run goes on behind it" if sent else "was not sent: it is tried again"
        return f"step {row['step']} {outcome}"

    # Events.

    def replay_event(self, text: str, account: str | None, *, again: bool) -> Changed:
        """Resume what an event did not finish, under the same keys; with `again`, run its chains anew, with new ones.

        Raises NotPossible where there is nothing to resume, or where the event is still being worked on.
        """
        ref = find_event(self.connection, text, account)
        row, known = self.take_event(ref)
        if row["note"] == ERASED_NOTE:
            raise _erased()
        if row["state"] == "new":
            raise NotPossible(f"event {ref.event_id} is new: it waits for its turn.")
        changed = self._again(ref, row, known) if again else self._resume(ref, row, known)
        self.note("events.replay", ref.event_id, "again" if again else None)
        return changed

    def _again(self, ref: EventRef, row: Row, known: Sequence[Row]) -> Changed:
        if any(run["state"] not in _ENDED for run in known):
            raise NotPossible(
                f"event {ref.event_id} is still being worked on: its runs are {_states(known)}.",
                hint="Let them end, or cancel them: `dispatcher events show` lists them.",
            )
        for run in known:
            if (standing := standing_of(self.connection, run)).published:
                raise _not_known(run, standing)
            # What has not gone out yet must not go beside what is made anew.
            withdraw_waiting(self.connection, run["run_id"], "replayed before it went out")
        generation = row["generation"] + 1
        self._match_anew(ref, row, generation)
        for run in known:
            self._close_run_letters(run, "replayed")
        return Changed([ref.event_id], f"event {ref.event_id} is matched anew, as generation {generation}")

    def _resume(self, ref: EventRef, row: Row, known: Sequence[Row]) -> Changed:
        current = [run for run in known if run["generation"] == row["generation"]]
        if not current:
            self._match_anew(ref, row, row["generation"])
            return Changed([ref.event_id], f"event {ref.event_id} is matched anew")
        resumed, left = [], []
        for run in current:
            if run["state"] not in _RESUMABLE:
                continue
            standing = standing_of(self.connection, run)
            if standing.unknown:
                left.append((run["run_id"], "unknown"))
            else:
                self._retry(run, standing)
                resumed.append(run["run_id"])
        if not resumed and left:
            first = next(run for run in current if run["run_id"] == left[0][0])
            raise _not_known(first, standing_of(self.connection, first))
        if not resumed:
            raise NotPossible(
                f"event {ref.event_id} has nothing to resume: its runs are {_states(current)}.",
                hint="`--again` runs its chains once more, as a new generation with new keys.",
            )
        self._close_event_letters(ref)
        return Changed(resumed, f"{counted(len(resumed), 'run')} of event {ref.event_id} due now", left)

    def _match_anew(self, ref: EventRef, row: Row, generation: int) -> None:
        this = (events.c.seq == ref.seq, events.c.received_on == row["received_on"])
        self.connection.execute(
            update(events).where(*this).values(state="new", generation=generation, crash_count=0, note=None)
        )
        self._close_event_letters(ref)

    # What the operations share.

    def note(self, verb: str, target: str, detail: str | None = None) -> None:
        """Record who did what."""
        self.connection.execute(
            insert(audit).values(at=self._now, actor=self._actor, verb=verb, target=target, detail=detail)
        )

    def page(self, statement: Select[Any], seq: Any, page: Page) -> tuple[list[Row], Page | None]:
        """Return the next rows of a bulk operation, and where to go on; None behind the last."""
        up_to = page.up_to
        if up_to is None:
            # Rows that come into being by what is done here are not of this operation.
            newest = statement.with_only_columns(seq).order_by(seq.desc()).limit(1)
            up_to = self.connection.execute(newest).scalar() or 0
        found = rows(self.connection, statement.where(seq > page.after, seq <= up_to).order_by(seq).limit(PAGE))
        return found, Page(found[-1]["seq"], up_to) if len(found) == PAGE else None

    def take_runs(self, run_ids: Sequence[str]) -> list[Row]:
        """Take runs and their events, for a change of something that belongs to them."""
        return take_runs(self.connection, rows(self.connection, select(runs).where(runs.c.run_id.in_(run_ids))))

    def take_event(self, ref: EventRef) -> tuple[Row, list[Row]]:
        """Take an event and its runs."""
        found = take(self.connection, events, events.c.seq == ref.seq)
        if not found:  # its dedupe row outlives it, or it was forgotten a moment ago
            raise NotFound(f"event {ref.event_id} is not kept any more.")
        of_event = (runs.c.event_seq == ref.seq, runs.c.received_on == found[0]["received_on"])
        return found[0], take(self.connection, runs, *of_event)

    def _run(self, run_id: str) -> Row:
        found = self.take_runs([run_id])
        if not found:
            raise NotFound(f"run {run_id} is not kept any more.")
        return found[0]

    def _page_of_runs(
        self, state: str, chain: str | None, account: str | None, page: Page
    ) -> tuple[list[Row], Page | None]:
        wanted = {runs.c.state: state, runs.c.chain: chain, runs.c.account_key: account}
        conditions: list[ColumnElement[bool]] = [
            column == value for column, value in wanted.items() if value is not None
        ]
        seen, next_page = self.page(select(runs).where(*conditions), runs.c.seq, page)
        return take_runs(self.connection, seen, *conditions), next_page

    def _retry(self, row: Row, standing: Standing) -> None:
        if row["state"] in ("waiting", "retrying"):
            self._update_run(row, due_at=self._now, lane=OPEN_LANE)
        elif standing.waits:
            self._revive(row, state="waiting")
        elif standing.step_state in ("failed", "unknown"):
            # The retry policy counts from the first attempt and from its time, so both begin anew. What was tried
            # before moves below the first attempt, where the journal keeps it.
            span = standing.last_attempt - standing.first_attempt + 1
            beyond = steps.c.attempt - max(span, standing.last_attempt)
            self.connection.execute(update(steps).where(*here(row)).values(attempt=beyond))
            self._revive(row, state="ready", attempt=1, step_started_at=None)
        else:
            self._revive(row, state="ready", step_started_at=None)

    def _revive(self, row: Row, **values: Any) -> None:
        """Make a run due that had ended or was held; the letters that told of it are answered."""
        self._update_run(row, due_at=self._now, lane=OPEN_LANE, finished_at=None, error=None, **values)
        self._close_run_letters(row, "replayed")
        # An event that was parked as crashed lives again with its runs.
        self.connection.execute(
            update(events)
            .where(*_event_of(row), events.c.state == "dead")
            .values(state="matched", crash_count=0, note=None)
        )

    def _update_run(self, row: Row, **values: Any) -> None:
        this = (runs.c.seq == row["seq"], runs.c.received_on == row["received_on"])
        self.connection.execute(update(runs).where(*this).values(**values))

    def _doubt_call(self, row: Row) -> None:
        """Journal that the call of a cancelled run, and the text it may have sent, are unknown."""
        doubt = {"state": "unknown", "error": _CANCELLED_CALL, "finished_at": self._now}
        self.connection.execute(update(steps).where(*here(row), steps.c.state == "started").values(**doubt))
        mine = (messages.c.run_id == row["run_id"], messages.c.step == row["step"], messages.c.state == "queued")
        # No text of a run is older than it.
        since = messages.c.received_on >= row["started_at"][:10]
        self.connection.execute(update(messages).where(*mine, since).values(state="held", error=_CANCELLED_CALL))

    def _close_run_letters(self, row: Row, state: str) -> None:
        table = dead_letters
        of_run = (table.c.event_id == row["event_id"], table.c.run_id == row["run_id"], table.c.kind == "run")
        self.connection.execute(update(table).where(*of_run, table.c.state == "open").values(state=state))

    def _close_event_letters(self, ref: EventRef) -> None:
        table = dead_letters
        of_event = (
            table.c.event_id == ref.event_id, table.c.account_key == ref.account_key, table.c.kind == "event",
        )  # fmt: skip
        self.connection.execute(update(table).where(*of_event, table.c.state == "open").values(state="replayed"))

    def _is_erased(self, row: Row) -> bool:
        return self.connection.execute(select(events.c.note).where(*_event_of(row))).scalar() == ERASED_NOTE

    def _refuse_erased(self, row: Row) -> None:
        if self._is_erased(row):
            raise _erased()


def _event_of(row: Row) -> tuple[ColumnElement[bool], ...]:
    return events.c.seq == row["event_seq"], events.c.received_on == row["received_on"]


def _erased() -> NotPossible:
    return NotPossible("the person whom this event was about was erased, and its content with them.")


_HINTS: Final = {
    "ready": "It is due already.",
    "running": "Its call is under way; `dispatcher runs cancel` gives it up.",
    "done": "`dispatcher events replay EVENT --again` runs an event's chains anew.",
}


def counted(number: int, what: str) -> str:
    """Write "1 run", "2 runs"."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def _states(rows: Sequence[Row]) -> str:
    return ", ".join(f"{number} {state}" for state, number in sorted(Counter(row["state"] for row in rows).items()))


def _not_known(row: Row, standing: Standing) -> NotPossible:
    step = ", ".join(standing.published) or row["step"]
    return NotPossible(
        f"run {row['run_id']} is {row['state']}, and nobody knows whether its step {step} had its effect.",
        hint=f"`dispatcher runs resolve {row['run_id']} --sent` or `--not-sent` tells, and lets it go on.",
    )
