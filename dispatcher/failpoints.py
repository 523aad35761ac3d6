"""Named points at which a test makes this process die or fail, to prove what the store holds afterwards.

The text that arms them is `name:action` or `name:action@nth`, several with commas between them: the point `name`
does `action` when it is reached for the nth time (the first, if not given). `kill` sends SIGKILL, as a crash;
`raise` raises FailpointReached; `exit` leaves at once with code 70. Unarmed, a point costs one test of a dict.
"""

from __future__ import annotations

import os
import signal
from typing import Final, Literal, NoReturn, get_args

from dispatcher.errors import CannotStart

Name = Literal[
    "intake.before_commit",  # events taken in by `publish` or the control socket, not yet durable
    "batch.before_flush",  # a batch advanced in memory, nothing written
    "batch.before_commit",  # a batch written, not committed
    "batch.after_commit",  # a batch durable, nothing acked, no call started
    "delivery.before_ack",  # a broker's deliveries durable, not acked
    "outbox.before_publish",  # messages recorded as being published, not handed to the publisher
    "outbox.before_record",  # messages confirmed by the broker, that not recorded
    "call.before_start",  # a call recorded as started, not yet made
    "call.after_return",  # a call made, its outcome not yet recorded
    "recovery.before_commit",  # what a crash left behind, put right but not committed
]
Action = Literal["kill", "raise", "exit"]

NAMES: Final[tuple[str, ...]] = get_args(Name)
ACTIONS: Final[tuple[str, ...]] = get_args(Action)
EXIT_CODE: Final = 70

_armed: Final[dict[str, tuple[str, int]]] = {}  # what each armed point does, and how often it is yet to be reached


class FailpointReached(RuntimeError):
    """A point armed with `raise` was reached. Not a DispatcherError: nothing may expect it."""


def reach(name: Name) -> None:
    """Do what the point is armed with, if it is."""
    if _armed:
        _reach(name)


def arm(text: str) -> None:
    """Arm the points that `text` names and disarm all others; an empty text disarms everything.

    Raises CannotStart, naming what there is, if a point or an action does not exist.
    """
    armed = dict(_parse(part.strip()) for part in text.split(",") if part.strip())
    _armed.clear()
    _armed.update(armed)


def _parse(part: str) -> tuple[str, tuple[str, int]]:
    name, _, rest = part.partition(":")
    action, _, nth = rest.partition("@")
    if name not in NAMES:
        raise CannotStart(
            f"DISPATCHER_FAILPOINTS: there is no failpoint {name!r}.", hint=f"There are: {', '.join(NAMES)}."
        )
    if action not in ACTIONS or not (nth or "1").isdecimal() or int(nth or 1) < 1:
        raise CannotStart(
            f"DISPATCHER_FAILPOINTS: {part!r} does not say what to do.",
            hint=f'Write "{name}:ACTION" or "{name}:ACTION@NTH", with one of {", ".join(ACTIONS)}.',
        )
    return name, (action, int(nth or 1))


def _reach(name: str) -> None:
    if name not in _armed:
        return
    action, left = _armed[name]
    if left > 1:
        _armed[name] = (action, left - 1)
        return
    del _armed[name]
    if action == "raise":
        raise FailpointReached(f"failpoint {name}")
    _die(action)


def _die(action: str) -> NoReturn:
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    os._exit(EXIT_CODE)
