"""What a worker does once, before its first event, so that no event pays for it."""

from __future__ import annotations

import gc

from dispatcher.text.numbers import normalise_number

# Objects that a batch makes die with it; a collection for each 700 of them, Python's default, finds nothing.
_GC_THRESHOLD = 50_000


def warm_up() -> None:
    """Take what was made so far for what stays, and load what the first number would."""
    # The plan is as large as the rulebook and never garbage; collections need not walk over it.
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GC_THRESHOLD)
    # Reading the first number loads the tables for all: not while an event is in hand.
    normalise_number("+27821230000", None)
