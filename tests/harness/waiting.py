"""Wait for a condition, never for a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Found = TypeVar("Found")

DEADLINE = 30.0


def wait_until(condition: Callable[[], Found], what: str = "the condition", seconds: float = DEADLINE) -> Found:
    """Return the first true answer of the condition; AssertionError, naming what was waited for, when none comes."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {seconds:g} s for {what}, in vain"
        time.sleep(0.01)
    return found
