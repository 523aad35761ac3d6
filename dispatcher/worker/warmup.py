"""What a worker does once, before its first event, so that no event pays for it."""

from __future__ import annotations

import gc

from dispatcher.text.numbers import normalise_number


def warm_up() -> None:
    """Take what was made so far for what stays, and load what the first number would."""
    # Reading the first number loads the library: not while an event is in hand. A country takes a millisecond more.
    normalise_number("+27821230000", None)
    # The plan is as large as the rulebook and never garbage; collections need not walk over it. The few hundred
    # objects of the start that are garbage stay too: to find them takes longer than the start may.
    gc.freeze()
