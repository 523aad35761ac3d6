"""The border to other people's code: the one place that catches whatever it raises, SystemExit included.

A plugin must not take the worker down. What escapes from it becomes a value; the caller says what that means: an
outcome for a step, a broken plugin for an import, a log line for a connection that cannot be closed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Escaped:
    """What a plugin raised."""

    error: BaseException


def contained(call: Callable[[], T]) -> T | Escaped:
    """Call a plugin's code; return what it returns, or what escaped from it. Raises KeyboardInterrupt alone."""
    try:
        return call()
    except KeyboardInterrupt:
        raise  # the person's doing, not the plugin's
    except BaseException as error:  # noqa: BLE001 - the border
        return Escaped(error)


async def contained_later(awaitable: Awaitable[T]) -> T | Escaped:
    """Wait for a plugin's coroutine; what escapes, a SystemExit too, would end the loop of all calls."""
    try:
        return await awaitable
    except BaseException as error:  # noqa: BLE001 - the border
        return Escaped(error)
