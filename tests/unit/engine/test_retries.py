"""Backoff: exponential, bounded, jittered, the same on every worker."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.engine.retries import next_attempt_at
from dispatcher.plugins.outcomes import RetryLater
from dispatcher.rules.plan import RetryPolicy

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)


def a_policy(**changes: object) -> RetryPolicy:
    facts = {
        "within": timedelta(hours=24),
        "initial": timedelta(seconds=2),
        "longest": timedelta(minutes=10),
        "attempts": None,
    }
    return RetryPolicy(**{**facts, **changes})


def pause(policy: RetryPolicy, attempt: int, outcome: RetryLater | None = None, **facts: object) -> timedelta | None:
    at = next_attempt_at(
        policy,
        outcome or RetryLater(reason="busy"),
        attempt=attempt,
        first_at=facts.get("first_at", NOON),
        now=NOON,
        salt=facts.get("salt", "run"),
    )
    return None if at is None else at - NOON


@pytest.mark.parametrize(("attempt", "least", "most"), [(1, 1, 2), (2, 2, 4), (3, 4, 8), (9, 256, 512), (40, 300, 600)])
def test_the_pause_doubles_up_to_the_longest(attempt: int, least: float, most: float) -> None:
    found = pause(a_policy(), attempt)
    assert found is not None
    assert least <= found.total_seconds() <= most


def test_runs_that_failed_together_do_not_come_back_together() -> None:
    assert len({pause(a_policy(), 3, salt=f"run-{number}") for number in range(50)}) > 40


@given(st.integers(1, 10_000), st.text())
def test_every_worker_computes_the_same_pause(attempt: int, salt: str) -> None:
    assert pause(a_policy(), attempt, salt=salt) == pause(a_policy(), attempt, salt=salt)


def test_attempts_bound_the_calls_in_all() -> None:
    policy = a_policy(attempts=3)
    assert pause(policy, 2) is not None
    assert pause(policy, 3) is None


def test_the_time_allowed_is_counted_from_the_first_attempt() -> None:
    policy = a_policy(within=timedelta(minutes=5))
    assert pause(policy, 2, first_at=NOON - timedelta(minutes=4)) is not None
    assert pause(policy, 2, first_at=NOON - timedelta(minutes=5)) is None


def test_what_the_other_side_asks_for_is_kept_to() -> None:
    asked = RetryLater(after=timedelta(seconds=90), reason="429")
    assert pause(a_policy(), 1, asked) == timedelta(seconds=90)


def test_what_the_other_side_asks_for_does_not_outlive_the_policy() -> None:
    asked = RetryLater(after=timedelta(hours=25), reason="429")
    assert pause(a_policy(), 1, asked) is None


def test_attempts_that_do_not_count_never_use_up_the_attempts() -> None:
    assert pause(a_policy(attempts=1), 1, RetryLater(reason="refused", counts=False)) is not None


def test_attempts_that_do_not_count_back_off_with_the_time_since_the_first() -> None:
    refused = RetryLater(reason="refused", counts=False)
    soon = pause(a_policy(), 1, refused)
    later = pause(a_policy(), 1, refused, first_at=NOON - timedelta(minutes=10))
    assert soon is not None
    assert later is not None
    assert soon <= timedelta(seconds=2)
    assert timedelta(minutes=2.5) <= later <= timedelta(minutes=5)


def test_backoff_of_days_never_outgrows_what_time_can_hold() -> None:
    policy = a_policy(initial=timedelta(days=1), longest=timedelta(days=1), within=timedelta(days=366))
    assert timedelta(hours=12) <= pause(policy, 60) <= timedelta(days=1)
