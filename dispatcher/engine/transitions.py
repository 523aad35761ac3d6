"""What an outcome does to a run: the one place that moves a run from state to state and journals its steps."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, assert_never

from pydantic import BaseModel

from dispatcher.engine.emits import Emitter
from dispatcher.engine.records import OPEN_LANE, Run, RunRow, RunState, StepState, StoredEvent, as_text, as_time
from dispatcher.engine.retries import next_attempt_at
from dispatcher.engine.unit import Layer, Overlay
from dispatcher.events.event import Event
from dispatcher.events.identity import uuid7
from dispatcher.events.limits import Limits, Refusal, plain_json, quickly_plain
from dispatcher.plugins.outcomes import Done, Failed, Outcome, RetryLater, Unknown
from dispatcher.rules.plan import Chain, Step

_AT_ONCE = timedelta(0)
# An integer beyond 64 bits has 19 digits at least.
_LONG_NUMBER = re.compile(r"[:,\[]-?\d{19}")
_from_json = json.JSONDecoder().decode
# What later steps see of a step that is behind the run; `on_unknown: fail` makes a failure of what nobody knows.
_BEHIND = {"done": "done", "skipped": "skipped", "failed": "failed", "unknown": "failed"}
_to_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


class Transitions:
    """Moves the runs of one batch."""

    def __init__(self, overlay: Overlay, emitter: Emitter, limits: Limits) -> None:
        self._overlay = overlay
        self._changes = overlay.changes
        self._emitter = emitter
        self._limits = limits

    # Into the batch and out of it.

    def load(self, row: RunRow, chain: Chain) -> Run:
        """Return the run as it was stored, with the results of the steps that are behind it."""
        values = row.values
        run = Run(
            seq=values["seq"],
            run_id=values["run_id"],
            stored=row.stored,
            chain=chain,
            generation=values["generation"],
            started_at=values["started_at"],
            state=values["state"],
            position=values["position"],
            attempt=values["attempt"],
            error=values["error"],
            cursor=json.loads(values["cursor"]) if values["cursor"] is not None else None,
            step_started_at=values["step_started_at"],
            resolution=values["resolution"],
        )
        for step in row.steps:
            if step["position"] < run.position and step["finished_at"]:
                run.arrived_at = max(run.arrived_at, step["finished_at"])
            if step["position"] < run.position and step["state"] in _BEHIND:
                result = json.loads(step["result"]) if step["result"] else {}
                run.results[step["step"]] = {**result, "state": _BEHIND[step["state"]]}
        return run

    def cannot_bind(self, row: RunRow, reason: str) -> None:
        """Hold a run whose chain no longer fits the installed handlers."""
        values = row.values
        self._changes.unbound_runs.append(
            ("held", f"cannot_bind: {reason}", None, values["seq"], values["received_on"])
        )
        self._dead_letter("cannot_bind", reason, values["account_key"], row.stored.event.event_id, values["run_id"])

    def park(self, run: Run, pause: timedelta = _AT_ONCE) -> None:
        """Commit the run as due now, or after a pause: it goes on with a later batch."""
        due_at = as_text(self._overlay.now + pause) if pause else self._overlay.now_text
        run.state, run.due_at, run.lane = "ready", due_at, OPEN_LANE

    def finish(self, run: Run, state: RunState, error: str | None = None) -> None:
        """End the run."""
        run.state, run.error, run.finished_at, run.due_at = state, error, self._overlay.now_text, None

    # Steps that are no attempts.

    def skip(self, run: Run, step: Step, reason: str) -> None:
        """Pass over a step whose condition does not hold."""
        self._journal(run, step, "skipped", error=reason)
        run.results[step.id] = {"state": "skipped"}
        self._move_on(run)

    def wait(self, run: Run, step: Step) -> None:
        """Let the run wait; the wait is a row with its due time."""
        assert step.wait is not None
        run.step_started_at = self._overlay.now_text
        run.state, run.due_at, run.lane = "waiting", as_text(self._overlay.now + step.wait), OPEN_LANE
        self._journal(run, step, "started")

    def end_wait(self, run: Run) -> None:
        """The wait that the run stands at is over."""
        step = run.chain.steps[run.position]
        self._journal(run, step, "done")
        run.results[step.id] = {"state": "done"}
        self._move_on(run)

    def stop(self, run: Run, step: Step, *, ends: bool) -> None:
        """A `stop` was evaluated: the run ends as done, or goes on."""
        self._journal(run, step, "done", result=_to_json({"stopped": ends}))
        run.results[step.id] = {"state": "done", "stopped": ends}
        self._move_on(run)
        if ends:
            for later in run.chain.steps[run.position :]:
                run.position = later.position
                self._journal(run, later, "skipped", error=f"stopped by step {step.id}")
            run.position = len(run.chain.steps)

    # Calls.

    def queue_call(self, run: Run, step: Step, lane: str) -> None:
        """No slot is free: the call waits in the store, in its connection's lane."""
        run.state, run.due_at, run.lane = "ready", self._overlay.now_text, lane
        run.step_started_at = run.step_started_at or self._overlay.now_text
        self._journal(run, step, "ready")

    def start_call(self, run: Run, step: Step) -> None:
        """The call starts once this is committed; should the worker die, the row tells that it may have acted."""
        run.state, run.due_at, run.lane = "running", None, OPEN_LANE
        run.step_started_at = run.step_started_at or self._overlay.now_text
        self._journal(run, step, "started")

    # Outcomes.

    def exhausted(self, run: Run, step: Step, outcome: RetryLater) -> Failed | None:
        """Return the failure that an outcome comes to when the retry policy is used up, else None."""
        if self._next_attempt_at(run, step, outcome) is not None:
            return None
        return Failed(f"no attempts left after {run.attempt}: {outcome.reason}")

    def settle(
        self, run: Run, step: Step, outcome: Outcome, layer: Layer | None, *, exhausted: bool = False
    ) -> list[StoredEvent]:
        """Apply the outcome of an attempt; return the events it emitted."""
        if layer is not None:
            layer.keep_message(run, step)
        if isinstance(outcome, Done):
            return self._done(run, step, outcome, layer)
        if isinstance(outcome, RetryLater):
            self._retry(run, step, outcome, state="failed")
        elif isinstance(outcome, Failed):
            self._failed(run, step, outcome.reason, "exhausted" if exhausted else "failed")
        elif isinstance(outcome, Unknown):
            self._unknown(run, step, outcome)
        else:
            assert_never(outcome)
        return []

    def _done(self, run: Run, step: Step, outcome: Done, layer: Layer | None) -> list[StoredEvent]:
        try:
            result, text = self._result(outcome.result)
            events: list[Event] = self._emitter.build(run, step, outcome.emits) if outcome.emits else []
            bodies = [self._text(publish.body) for publish in outcome.publishes]
            cursor = None if outcome.more is None else _to_json(outcome.more)
        except (Refusal, ValueError, TypeError, RecursionError) as error:
            said = f"{error.code}: {error.detail}" if isinstance(error, Refusal) else str(error)
            self._failed(run, step, f"what the step returned breaks the limits of events: {said}", "failed")
            return []
        if layer is not None:
            layer.merge()
        emitted = self._emitter.add(events, outcome.emits, run, step) if events else []
        if outcome.publishes:
            self._emitter.publish(outcome.publishes, bodies, run, step)
        if cursor is not None:
            self._journal(run, step, "ready", result=text)
            run.cursor, run.attempt, run.step_started_at = outcome.more, 1, None
            self.park(run)
            return emitted
        state: StepState = "skipped" if outcome.skipped is not None else "done"
        self._journal(run, step, state, result=text, error=outcome.skipped)
        result["state"] = state
        run.results[step.id] = result
        self._move_on(run)
        return emitted

    def _result(self, result: BaseModel | Mapping[str, Any] | None) -> tuple[dict[str, Any], str | None]:
        """Return a result as plain JSON and as text. Raises ValueError or Refusal where it breaks the limits."""
        if result is None:
            return {}, None
        value = result.model_dump(mode="json") if isinstance(result, BaseModel) else result
        plain = quickly_plain(value, self._limits)
        if plain is None:
            text = self._carefully(value)
            # Later steps see what the journal holds, now as after a restart.
            plain = _from_json(text), text
        return plain

    def _text(self, value: Mapping[str, Any]) -> str:
        """Return JSON as text. Raises ValueError or Refusal where it breaks the limits of events."""
        plain = quickly_plain(value, self._limits)
        return self._carefully(value) if plain is None else plain[1]

    def _carefully(self, value: Mapping[str, Any]) -> str:
        text = None
        if type(value) is dict:
            try:
                text = _to_json(value)
            except (TypeError, ValueError):
                text = None  # a read-only view in it, or a mistake; the careful way tells which
        if text is None or not _surely_plain(text, self._limits):
            text = _to_json(plain_json(value, self._limits))
        if len(text) > self._limits.body_bytes:
            raise Refusal("too_large", f"{len(text)} characters")
        return text

    def _next_attempt_at(self, run: Run, step: Step, outcome: RetryLater) -> datetime | None:
        now = self._overlay.now
        first_at = as_time(run.step_started_at) if run.step_started_at else now
        return next_attempt_at(step.retry, outcome, attempt=run.attempt, first_at=first_at, now=now, salt=run.run_id)

    def _retry(self, run: Run, step: Step, outcome: RetryLater, *, state: StepState) -> None:
        at = self._next_attempt_at(run, step, outcome)
        run.step_started_at = run.step_started_at or self._overlay.now_text
        if at is None:
            # Where the last attempt is unknown its step says so: a person who tries again is to know the risk.
            self._failed(run, step, f"no attempts left after {run.attempt}: {outcome.reason}", "exhausted", state)
            return
        self._journal(run, step, state, error=outcome.reason)
        run.state, run.due_at, run.lane, run.error = "retrying", as_text(at), OPEN_LANE, outcome.reason
        if outcome.counts:
            run.attempt += 1

    def _failed(self, run: Run, step: Step, reason: str, why: str, state: StepState = "failed") -> None:
        self._journal(run, step, state, error=reason)
        if step.on_error == "continue":
            run.results[step.id] = {"state": "failed"}
            self._move_on(run)
            return
        first_line = reason.partition("\n")[0]
        self.finish(run, "failed", f"{step.id}: {first_line}")
        event = run.stored.event
        self._dead_letter(why, f"{run.chain.name}, step {step.id}: {first_line}", event.account_key,
                          event.event_id, run.run_id)  # fmt: skip

    def _unknown(self, run: Run, step: Step, outcome: Unknown) -> None:
        if step.on_unknown == "resend":
            self._retry(run, step, RetryLater(reason=outcome.reason), state="unknown")
        elif step.on_unknown == "fail":
            self._failed(run, step, outcome.reason, "unknown", "unknown")
        else:
            self._journal(run, step, "unknown", error=outcome.reason)
            run.state, run.error, run.due_at = "held", f"{step.id}: unknown: {outcome.reason}", None
            event = run.stored.event
            detail = (
                f"{run.chain.name}, step {step.id}: {outcome.reason}; "
                f"`dispatcher runs resolve {run.run_id} --sent` or `--not-sent` ends the hold"
            )
            self._dead_letter("unknown", detail, event.account_key, event.event_id, run.run_id)

    def _move_on(self, run: Run) -> None:
        run.position += 1
        run.arrived_at = self._overlay.now_text
        run.attempt, run.step_started_at, run.cursor, run.error = 1, None, None, None

    def _journal(
        self, run: Run, step: Step, state: StepState, *, result: str | None = None, error: str | None = None
    ) -> None:
        now = self._overlay.now_text
        finished = None if state in ("ready", "started") else now
        self._changes.steps.append(
            (
                run.seq, step.position, run.attempt, step.id, step.handler_name, state, result, error,
                run.step_started_at or now, finished, run.stored.received_at[:10],
            )
        )  # fmt: skip

    def _dead_letter(self, reason: str, detail: str, account_key: str, event_id: str, run_id: str) -> None:
        self._changes.dead_letters.append(
            (
                uuid7(self._overlay.now_ms), "run", reason, detail, account_key, event_id, run_id, None,
                self._overlay.now_text,
            )
        )  # fmt: skip


def _surely_plain(text: str, limits: Limits) -> bool:
    """Whether a JSON text breaks none of the limits of events, as far as a glance can tell."""
    return (
        text.isascii()
        and text.count("{") + text.count("[") <= limits.depth
        and "\\u0000" not in text
        and _LONG_NUMBER.search(text) is None
    )
