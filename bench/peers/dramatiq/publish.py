"""Sends the events of standard input as Dramatiq's messages, and declares its queues, which it insists on."""

import json
import sys

from worker import broker, handle_event, send_sms

# The worker consumes one of them alone, and would declare the other with its first text.
for actor in (handle_event, send_sms):
    broker.declare_queue(actor.queue_name, ensure=True)

for line in sys.stdin:
    handle_event.send(json.loads(line))

broker.close()
