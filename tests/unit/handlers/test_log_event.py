from __future__ import annotations

import json

from dispatcher.telemetry import configure
from dispatcher.testing import an_event, run_handler
from handlers.log_event import LogEvent


def test_the_line_says_what_the_event_is_and_nothing_that_it_tells(capsys):
    configure(json=True)
    event = an_event(event_data={"msisdn": "+27821234567", "secret": "canary"})
    run = run_handler(LogEvent, {"level": "warning", "message": "nobody listens"}, event)
    line = json.loads(capsys.readouterr().err)
    assert line["level"] == "warning"
    assert line["event_id"] == event.event_id
    assert line["event_type"] == "poll_complete"
    assert line["message"] == "nobody listens"
    assert "canary" not in json.dumps(line)
    assert run.result == {"level": "warning"}
