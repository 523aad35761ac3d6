"""The worker on a broker dies at every point where that could lose or double something."""

from __future__ import annotations

import pytest

from dispatcher import failpoints
from tests.acceptance import brokers
from tests.acceptance.brokers import some_events
from tests.acceptance.test_crashes import BROKERS, KILLED

EVENTS = 60


def test_points_of_a_broker_are_points():
    assert set(BROKERS) < set(failpoints.NAMES)


@pytest.mark.parametrize("action", ["kill", "raise"])
@pytest.mark.parametrize("point", [*BROKERS, "batch.before_flush", "batch.before_commit", "batch.after_commit"])
def test_worker_that_dies_at_a_failpoint_loses_and_doubles_nothing(site, point, action):
    site.start(consuming=False, failpoints=f"{point}:{action}@2")
    site.publish(some_events(EVENTS), per_second=200)
    assert site.workers[-1].ended() == (KILLED if action == "kill" else 1)
    worker = site.start()
    site.settle()
    assert worker.stop() == 0
    brokers.nothing_is_lost_or_doubled(site)


def test_texts_that_may_have_been_published_go_again_where_the_rule_says_so(site):
    site.write_rulebook(brokers.RULEBOOK.replace("with: {to:", "on_unknown: resend\n        with: {to:"))
    site.start(consuming=False, failpoints="outbox.before_record:kill")
    site.publish(some_events(EVENTS), per_second=200)
    assert site.workers[-1].ended() == KILLED
    worker = site.start()
    site.settle()
    assert worker.stop() == 0
    brokers.nothing_is_lost_or_doubled(site, resent=True)
