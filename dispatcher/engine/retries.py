"""Backoff arithmetic: exponential, bounded, jittered, and decided by what is journaled alone. Pure."""

from __future__ import annotations

from datetime import datetime
from hashlib import blake2b

from dispatcher.plugins.outcomes import RetryLater
from dispatcher.rules.plan import RetryPolicy


def next_attempt_at(
    policy: RetryPolicy, outcome: RetryLater, *, attempt: int, first_at: datetime, now: datetime, salt: str
) -> datetime | None:
    """Return when to try again, or None when the policy is used up.

    The pause before attempt n+1 is `initial * 2**(n-1)`, at most `longest`, and of that a part between a half and
    the whole, fixed by `salt` and the attempt: the same on every worker, and different for runs that failed
    together. Attempts that do not count grow with the time since the first one instead. What the other side asked
    for (`after`) is kept to, unless it lies beyond the policy's end.
    """
    if outcome.counts and policy.attempts is not None and attempt >= policy.attempts:
        return None
    pause = outcome.after
    if pause is None:
        # Past 2**30 every policy is at its longest; the bound keeps the product within what timedelta holds.
        grown = policy.initial * (2 ** min(attempt - 1, 30)) if outcome.counts else (now - first_at) / 2
        grown = max(grown, policy.initial)
        pause = min(grown, policy.longest) * (0.5 + 0.5 * _fraction(salt, attempt))
    at = now + pause
    return None if at - first_at > policy.within else at


def _fraction(salt: str, attempt: int) -> float:
    digest = blake2b(f"{salt}|{attempt}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") / 2**32
