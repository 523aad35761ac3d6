"""What another job does: a contestant of the kind `outside` measures itself, on a site of ours.

It could not do THE JOB within bearable time, so it is told apart from the others. It prints a JSON object with
`events`, `events_per_second` and `what` these are.
"""

from __future__ import annotations

import json
from typing import Any

from bench.contestants import Entry
from bench.processes import ContestantFailed, started
from bench.site import Site

PATIENCE = 900.0


def measure(site: Site, entry: Entry) -> dict[str, Any]:
    """Have it measure itself once."""
    with started(entry.launch, site.folder / "worker.out") as running:
        running.wait(PATIENCE)
    found = [line for line in running.lines() if line.startswith("{")]
    if not found:
        raise ContestantFailed(f"it told no figures: {running.said()}")
    told = json.loads(found[-1])
    return {
        "events": told["events"],
        "events_per_second": told["events_per_second"],
        "what": told["what"],
        "cpu_us": None,
        "broker_cpu_us": None,
        "database_cpu_us": None,
        "peak_mb": running.tree.peak_mb,
        "processes": running.tree.size,
        "workers": 1,
    }
