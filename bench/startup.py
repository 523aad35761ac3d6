"""How long a start takes: from the start of the process to the first text, with one event waiting.

The store is there, as at every start but the first.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from bench.contestants import Contestant, OursEntry
from bench.latency import collecting
from bench.processes import ContestantFailed, Running, started
from bench.site import Lab, Message

MIGRATE_PATIENCE = 60.0


def measure(lab: Lab, contestant: Contestant, messages: Sequence[Message]) -> dict[str, Any]:
    """Start it once, with one event. Raises ContestantFailed."""
    with lab.site(contestant.name, contestant.declare) as site:
        entry = contestant.enter(site)
        if isinstance(entry, OursEntry):
            with started(entry.dispatch("migrate"), site.folder / "migrate.out") as migrating:
                migrating.wait(MIGRATE_PATIENCE)
        site.fill(messages, contestant.incoming)
        with (
            collecting(site, contestant.outgoing, 1) as collector,
            started(entry.launch, site.folder / "worker.out") as running,
        ):
            first = collector.wait_for_first(running) - running.started_at
            ready = _said_it_started(running) if isinstance(entry, OursEntry) else None
            running.stop()
    return {"first_text_seconds": first, "started_seconds": ready}


def _said_it_started(running: Running) -> float:
    """Return how many seconds after its start a worker of ours said that it had started."""
    for line in running.lines():
        if line.startswith("{") and (entry := json.loads(line))["event"] == "worker.started":
            return datetime.fromisoformat(entry["timestamp"]).timestamp() - running.started_on
    raise ContestantFailed(f"it never said that it had started: {running.said()}")
