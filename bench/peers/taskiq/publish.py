"""Publish events as taskiq tasks: reads N of them from standard input, a line of JSON each, and kicks their tasks.

python publish.py 20000 < events
"""

from __future__ import annotations

import asyncio
import sys
from itertools import islice

from worker import Event, broker, on_event

AT_ONCE = 500  # so many confirms are awaited together


async def main(number: int) -> None:
    """Publish so many events, each confirmed."""
    await broker.startup()
    lines = islice(sys.stdin.buffer, number)
    while batch := [Event.model_validate_json(line) for line in islice(lines, AT_ONCE)]:
        await asyncio.gather(*(on_event.kiq(event) for event in batch))
    await broker.shutdown()


asyncio.run(main(int(sys.argv[1])))
