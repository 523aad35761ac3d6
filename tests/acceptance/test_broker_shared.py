"""Several workers share a store in PostgreSQL and consume one queue of events without ids, and some are killed.

Only from the broker's word that it hands something out again, and from what others have on record, can they tell what
was taken in already from what is equal and new.
"""

from __future__ import annotations

import collections

import psycopg
import pytest

from tests.acceptance import brokers
from tests.acceptance.brokers import EVENTS_QUEUE, Site
from tests.acceptance.test_broker import historic
from tests.harness.waiting import wait_until

WORKERS = 3


class SharedSite(Site):
    """A site whose store is read by SQL of PostgreSQL, and whose queues have as many consumers as it has workers."""

    def query(self, statement):
        with psycopg.connect(self.folder.environ["DISPATCHER_STORE"], autocommit=True) as connection:
            return connection.execute(statement).fetchall()

    @property
    def has_store(self):
        return True

    @property
    def consuming(self):
        running = sum(worker.process.poll() is None for worker in self.workers)
        found = collections.Counter(consumer["queue"] for consumer in self.vhost.consumers())
        return found == {EVENTS_QUEUE: running, "sms_transport.event": running}


@pytest.fixture
def site(folder, vhost, postgres):
    folder.environ["DISPATCHER_STORE"] = postgres
    with brokers.a_site(folder, vhost, SharedSite) as site:
        yield site


@pytest.mark.parametrize("fault", ["closed connections", "kills"])
def test_each_event_without_an_id_is_taken_in_once_whoever_dies(site, rabbit, chance, fault):
    brokers.install_slow(site.folder)
    workers = [site.start(amqp_prefetch=50) for _ in range(WORKERS)]
    events, faults = 900, 4
    site.publish([historic(number) for number in range(events)]).finish()
    for part in range(1, faults + 1):
        site.wait_for(part * events // (faults + 2))
        if fault == "kills":
            at = chance.randrange(WORKERS)
            workers[at].kill()
            workers[at] = site.start(amqp_prefetch=50)
        else:
            rabbit.close_all_connections()
            wait_until(lambda: len(site.vhost.consumers()) == 2 * WORKERS, "all workers to be back")
    site.settle(60)
    # One that has just been started would not listen yet.
    wait_until(lambda: all(worker.said("lease.held") for worker in workers), "all workers to have started")
    assert [worker.stop() for worker in workers] == [0] * WORKERS
    texts = collections.Counter(number for (number,) in site.query("SELECT to_addr FROM messages"))
    assert texts == collections.Counter(f"+2782555{number:04d}" for number in range(events))
    assert site.stored == events
    brokers.everything_stored_came_out(site)
