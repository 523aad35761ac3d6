"""What can go wrong with an expression: at load (`TemplateProblem`) and when it is evaluated (`ExpressionError`)."""

from __future__ import annotations

from typing import Literal

from dispatcher.errors import DispatcherError

ProblemCode = Literal["template_syntax", "unsafe_template"]


class TemplateProblem(DispatcherError):
    """A source that is refused at load; `offset` counts characters of the source from 0."""

    def __init__(self, code: ProblemCode, message: str, offset: int = 0, suggestion: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.offset = offset
        self.suggestion = suggestion


_SHOWN = 120


def _shown(where: str) -> str:
    return where if len(where) <= _SHOWN else where[: _SHOWN - 1] + "…"


class ExpressionError(DispatcherError):
    """An expression that has no value for this scope; the message never holds people's data, only names and kinds."""


class UndefinedValue(ExpressionError):
    """A name that is not there: `path` as it was written, the reason behind it."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{_shown(path)}: {reason}" if path else reason)
        self.path = path
        self.reason = reason

    def at(self, path: str) -> UndefinedValue:
        """Say what was asked for, unless that has been said already."""
        return self if self.path else UndefinedValue(path, self.reason)


class EvaluationFailed(ExpressionError):
    """An operation that has no meaning for these values, or whose result would be too large."""

    def __init__(self, message: str, *, where: str | None = None) -> None:
        super().__init__(f"{_shown(where)}: {message}" if where else message)
        self.is_located = where is not None

    def at(self, where: str) -> EvaluationFailed:
        """Say which part of the source failed, unless an inner part has said so already."""
        return self if self.is_located else EvaluationFailed(self.message, where=where)
