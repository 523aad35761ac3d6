"""The story of a run for people: its steps in order, every attempt with its time and reason, and what comes next."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from dispatcher.cli.columns import Row, full_time, short_time
from dispatcher.cli.output import write, write_wrapped

_UNDER_STEP: Final = " " * 7
_LONGEST_RESULT: Final = 300


def write_runs(runs: Iterable[Row]) -> None:
    """Print runs, each with every attempt of its steps."""
    for run in runs:
        write()
        write(f"run {run['run_id']}")
        write(f"  {run['chain']}: {_course_of(run)}")
        _write_steps(run["steps"])
        for line in _end_of(run):
            write_wrapped(line, indent="  ")


def _course_of(run: Row) -> str:
    told = [run["state"]]
    if run["generation"] > 1:
        told.append(f"generation {run['generation']}")
    told.append(f"started {full_time(run['started_at'])}")
    if run["finished_at"]:
        told.append(f"ended {full_time(run['finished_at'])}")
    return ", ".join(told)


def _write_steps(steps: Sequence[Row]) -> None:
    number, before = 0, None
    for step in steps:
        again = step["position"] == before
        number, before = (number if again else number + 1), step["position"]
        handler = "" if step["handler"] == step["step"] else f" ({step['handler']})"
        attempt = f", attempt {step['attempt']}" if step["attempt"] > 1 else ""
        told = f"{step['step']}{handler}: {step['state']}{attempt}, {_when(step)}"
        write_wrapped(told, first=f"{number:>4}. ", indent=_UNDER_STEP)
        if step["error"]:
            write_wrapped(step["error"], indent=_UNDER_STEP)
        if step["result"]:
            text = json.dumps(step["result"], ensure_ascii=False)
            shown = text if len(text) <= _LONGEST_RESULT else f"{text[:_LONGEST_RESULT]} …"
            write_wrapped(shown, indent=_UNDER_STEP)


def _when(step: Row) -> str:
    began, ended = short_time(step["started_at"]), short_time(step["finished_at"])
    if not ended:
        return f"since {began}"
    return ended if ended == began else f"{began} to {ended}"


def _end_of(run: Row) -> Iterator[str]:
    """Say why a run stands where it stands, unless its last step has said so, and what makes it go on."""
    last = run["steps"][-1] if run["steps"] else None
    error, due, name = run["error"], run["due_at"], run["run_id"]
    if error and not (last and last["error"] and last["error"].partition("\n")[0] in error):
        yield error
    match run["state"]:
        case "held" | "failed" | "cancelled" | "done" if published := run["held_publishes"]:
            steps = ", ".join(dict.fromkeys(entry["step"] or "?" for entry in published))
            yield f"Nobody knows whether what {steps} published went out. {_resolved_by(name)}"
        case "held" | "failed" | "cancelled" if last and last["state"] == "unknown":
            yield f"Nobody knows whether this step had its effect. {_resolved_by(name)}"
        case "held" | "failed" | "cancelled":
            yield f"`dispatcher runs retry {name}` resumes it."
        case "waiting" if due:
            yield f"Waits until {full_time(due)}."
        case "retrying" if due:
            yield f"Tried again at {full_time(due)}."
        case "ready" if due:
            yield f"Due since {full_time(due)}; the worker takes it up in its turn."


def _resolved_by(run_id: str) -> str:
    return f"Who finds out says so: `dispatcher runs resolve {run_id} --sent`, or `--not-sent`."
