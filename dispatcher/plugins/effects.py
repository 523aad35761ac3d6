"""What a handler's work touches; the engine's guarantee follows from it."""

from __future__ import annotations

import enum


class Effect(enum.Enum):
    """Where a handler's effect happens. There is no default: each handler says it.

    PURE computes and emits. TRANSACTION also writes contacts, opt-outs, messages or the outbox: once, with the
    journal. CALL reaches outside, from a thread or the call loop: at least once with one key, or at most once
    where the other side knows no keys.
    """

    PURE = "pure"
    TRANSACTION = "transaction"
    CALL = "call"
