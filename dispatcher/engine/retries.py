"""Backoff arithmetic: exponential, bounded, jittered, and decided by what is journaled alone. Pure."""

from __future__ import annotations

from datetime import datetime, timedelta
from hashlib import blake2b

from dispatcher.plugins.outcomes import RetryLater
from dispatcher.rules.plan import RetryPolicy

# "Try again after 0 seconds" is no leave to try again without end.
_SHORTEST = timedelta(seconds=1)


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
    if outcome.after is not None:
        pause = max(outcome.after, min(policy.initial, _SHORTEST))
    else:
        factor = 2 ** min(attempt - 1, 40)
        if not outcome.counts:
            grown = max((now - first_at) / 2, policy.initial)
        elif factor > policy.longest / policy.initial:
            grown = policy.longest  # asked first, as the product may be more than a timedelta holds
        else:
            grown = policy.initial * factor
        pause = min(grown, policy.longest) * (0.5 + 0.5 * _fraction(salt, attempt))
    # Compared as pauses: what the other side asked for may lie beyond the last year there is.
    return None if pause > policy.within - (now - first_at) else now + pause


def _fraction(salt: str, attempt: int) -> float:
    digest = blake2b(f"{salt}|{attempt}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") / 2**32
