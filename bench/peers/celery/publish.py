"""Sends the events of standard input as Celery's tasks."""

import json
import sys

from worker import app, handle_event

# The harness counts what has arrived, so that nobody need wait for each confirm.
app.conf.broker_transport_options = {}

with app.producer_pool.acquire(block=True) as producer:
    for line in sys.stdin:
        handle_event.apply_async((json.loads(line),), producer=producer)
