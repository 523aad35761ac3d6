"""Who the people of a filled store are, and whether such a store fits on the disk.

The numbers of the archived are odd, those of new people even, and both are scattered: a new person comes in anywhere
among the others, as in life, and not behind all of them, which would be cheaper for an index.
"""

from __future__ import annotations

import shutil
from pathlib import Path

PEOPLE = 5_000_000
SCATTER = 2_654_435_761
# What must stay free beside a filled store, for what is measured and for everybody else.
RESERVE_BYTES = 8_000_000_000


class NoRoom(Exception):
    """What is asked for does not fit on the disk; says what it would take."""


def new_person(number: int) -> int:
    """Return the last seven digits of the number of a person who is not archived; there are five million."""
    return number * SCATTER % PEOPLE * 2


def archived_person(number: int) -> int:
    """Return the last seven digits of an archived event's person; they come back after five million."""
    return number * SCATTER % PEOPLE * 2 + 1


def refuse_without_room(folder: Path, count: int, bytes_an_event: int, events_a_second: int) -> None:
    """Raise NoRoom where so many events would leave too little of the disk free."""
    needed, free = count * bytes_an_event, shutil.disk_usage(folder).free
    if needed > free - RESERVE_BYTES:
        raise NoRoom(
            f"{count:,} events take about {needed / 1e9:.1f} GB and {count / events_a_second / 60:.0f} minutes; "
            f"{free / 1e9:.1f} GB are free, of which {RESERVE_BYTES / 1e9:.0f} must stay so"
        )
