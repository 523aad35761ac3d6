"""Events from RabbitMQ, texts and events to RabbitMQ, with the real worker: what goes in comes out, once."""

from __future__ import annotations

import pytest

from tests.acceptance import brokers
from tests.acceptance.brokers import some_events


@pytest.fixture
def site(folder, vhost):
    with brokers.a_site(folder, vhost) as site:
        yield site


def test_every_event_becomes_a_contact_a_text_and_an_event(site):
    worker = site.start()
    site.publish(some_events(500))
    site.settle()
    assert worker.stop() == 0
    figures = brokers.nothing_is_lost_or_doubled(site)
    assert figures["held"] == figures["told twice"] == 0
    brokers.faults_were_told_once(worker, 0)
