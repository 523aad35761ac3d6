"""Every exception of the dispatcher, and `Problem`, the value that describes a mistake in a rulebook.

    DispatcherError                 what broke, where, and what to do next
    ├── CannotStart                 a worker or verb cannot begin (exit code 3)
    │   ├── SettingsRefused         flags or DISPATCHER_* variables are wrong; carries all of them
    │   ├── RulebookRefused         the rulebook has problems; carries all of them
    │   ├── StoreInUse              another process holds the store's lock
    │   └── StoreUnusable           unreadable, read-only, newer than this version, full
    ├── BrokerUnreachable           no connection to RabbitMQ (exit code 4)
    ├── RowsRefused                 a row of a batch cannot be stored
    ├── Contended                   another worker was faster; nothing was done, and trying again helps
    ├── LeaseLost                   this worker was taken for dead, and its work taken over (exit code 75)
    ├── NotFound                    an id names nothing in the store
    ├── NotPossible                 the thing named is in a state that does not allow the request
    └── UsageError                  arguments that contradict each other (exit code 2)

Imports nothing, so that every layer may use it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning"]


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake in a rulebook: where it stands, its stable code, what is wrong, and what was probably meant.

    `line` and `column` count from 1 and point at the offending key or value.
    """

    file: str
    line: int
    column: int
    code: str
    message: str
    suggestion: str | None = None
    severity: Severity = "error"

    def __str__(self) -> str:
        """Render as `file:line:column: code: message`, with the suggestion behind it."""
        stop = "" if self.message.endswith((".", "?", "!", "…")) else "."
        hint = f"{stop} Did you mean {self.suggestion!r}?" if self.suggestion else ""
        return f"{self.file}:{self.line}:{self.column}: {self.code}: {self.message}{hint}"


class DispatcherError(Exception):
    """What broke, in a sentence; `hint` says what to do next."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        """Render message and hint as one line."""
        return f"{self.message} {self.hint}" if self.hint else self.message


class CannotStart(DispatcherError):
    """A worker or a verb cannot begin its work."""


class SettingsRefused(CannotStart):
    """At least one flag or `DISPATCHER_*` variable is wrong; `messages` has a line for each."""

    def __init__(self, messages: Sequence[str]) -> None:
        self.messages = tuple(messages)
        super().__init__("\n".join(self.messages))


class RulebookRefused(CannotStart):
    """The rulebook has at least one error; `problems` lists all of them, warnings included."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        errors = sum(problem.severity == "error" for problem in self.problems)
        super().__init__(
            f"the rulebook has {errors} error{'s' if errors != 1 else ''}.",
            hint=f"`dispatcher check` tells {'them' if errors != 1 else 'it'}.",
        )


class StoreInUse(CannotStart):
    """Another process holds the lock of this store."""


class StoreUnusable(CannotStart):
    """The store cannot be opened or written: unreadable, read-only, full, or made by a newer version."""


class BrokerUnreachable(DispatcherError):
    """No connection to the broker can be made: nobody listens, or it lets us not in."""


class RowsRefused(DispatcherError):
    """The database takes a row of a batch for impossible; the batch is halved until the culprit is found."""


class Contended(DispatcherError):
    """Another process has in hand, or has just done, what this one was about to: nothing was done; try again."""


class LeaseLost(DispatcherError):
    """This worker was silent for so long that another has taken its work over: it may write nothing more."""


class NotFound(DispatcherError):
    """An id or a name that the store or the registry does not know."""


class NotPossible(DispatcherError):
    """The thing exists, but its state does not allow what was asked."""


class UsageError(DispatcherError):
    """Arguments that contradict each other or name nothing."""
