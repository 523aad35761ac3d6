"""PostgreSQL goes away, or the connections to it do, also in the middle of a commit: nothing is lost or done twice."""

from __future__ import annotations

import itertools
import os
import signal

import pytest

from tests.acceptance import brokers
from tests.acceptance.databases import (
    all_is_well,
    events_of_few,
    sized,
)
from tests.acceptance.outsiders import PATIENCE, AnswerThief, Publishing
from tests.harness.external import FULL_SIZE
from tests.harness.proxy import proxied
from tests.harness.waiting import wait_until

RESTARTS = sized(3, 12)
BETWEEN_SECONDS = 5 if FULL_SIZE else 0.7
EVENTS = sized(1_000, 20_000)
TERMINATIONS = sized(8, 120)
STOLEN = sized(12, 300)
CUTS = sized(4, 100)


def restart(server, how):
    """Restart as `pg_ctl restart` does: `immediate`, after which it has to recover, or `fast`."""
    if how == "fast":
        os.kill(server.pid, signal.SIGINT)
        wait_until(lambda: not server.alive, "the end of PostgreSQL")
    server.restart()


def restart_again_and_again(server):
    for how in itertools.islice(itertools.cycle(["immediate", "fast"]), RESTARTS):
        brokers.hold(BETWEEN_SECONDS)
        restart(server, how)


def runs_done(workshop, events):
    wait_until(
        lambda: workshop.books.count("runs WHERE state = 'done'") == 2 * events, f"{2 * events} runs", 2 * PATIENCE
    )


def ended_well(workshop, events):
    """Let everything come to its end, and look at the books."""
    runs_done(workshop, events)
    workshop.end()
    all_is_well(workshop.books, events)
    for worker in workshop.workers:
        assert worker.said("lease.lost") == []


def test_postgresql_that_is_restarted_again_and_again_costs_nothing(workshop, postgres_server):
    workshop.starts(2)
    publishing = Publishing(workshop.folder, events_of_few(EVENTS), EVENTS // 5)
    restart_again_and_again(postgres_server)
    publishing.finish()
    ended_well(workshop, EVENTS)


def test_postgresql_that_is_restarted_under_the_traffic_of_a_broker_costs_nothing(shared_site, postgres_server):
    site = shared_site
    workers = site.starts(2)
    site.publish(events_of_few(EVENTS), per_second=350)
    restart_again_and_again(postgres_server)
    site.settle(2 * PATIENCE)
    site.shop.end()
    print(brokers.nothing_is_lost_or_doubled(site))  # noqa: T201
    for worker in workers:
        assert worker.said("lease.lost") == []


# Each commit of a worker proves that it is one of `workers`: so each takes long enough to be met.
SLOW_COMMITS = """
CREATE FUNCTION linger() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.02); RETURN NULL; END';
CREATE CONSTRAINT TRIGGER linger AFTER UPDATE ON workers DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION linger();
"""
END_BUSY = """
SELECT query, pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND state = 'active' AND query LIKE %s
"""


def test_backends_that_are_ended_in_the_middle_of_commits_cost_nothing(workshop):
    workshop.starts(2, batch_events=4)
    workshop.books.query(SLOW_COMMITS)
    publishing = Publishing(workshop.folder, events_of_few(EVENTS), EVENTS // 2)
    ended = []
    wanted = itertools.cycle(["COMMIT%", "COMMIT%", "%"])
    while len(ended) < TERMINATIONS:
        like = next(wanted)
        found = wait_until(lambda like=like: workshop.books.query(END_BUSY, (like,)), "a busy backend", PATIENCE)
        ended += [query[:6] for query, _ in found]
    workshop.books.query("DROP TRIGGER linger ON workers")
    publishing.finish()
    print(f"ended: {len(ended)}, of these in a COMMIT: {ended.count('COMMIT')}")  # noqa: T201
    ended_well(workshop, EVENTS)


@pytest.fixture
def thieves(postgres_server):
    """Two ways to PostgreSQL, one for each worker, on which answers to COMMIT may get lost."""
    with AnswerThief(postgres_server.port) as one, AnswerThief(postgres_server.port) as other:
        yield one, other


def test_commits_whose_answer_was_lost_are_found_out_about(workshop, thieves):
    workers = [
        workshop.start(number, batch_events=16, store=thief.url(workshop.books.url))
        for number, thief in enumerate(thieves, 1)
    ]
    for worker, thief in zip(workers, thieves, strict=True):
        workshop.entered(worker)
        thief.every = 3
    events = 0
    while sum(thief.cuts for thief in thieves) < STOLEN:
        workshop.publish(*events_of_few(200, first=events))
        events += 200
        runs_done(workshop, events)
    for thief in thieves:
        thief.every = 0
    assert all(thief.cuts for thief in thieves)
    ended_well(workshop, events)


def test_connections_that_are_cut_at_any_byte_cost_nothing(workshop, postgres_server, chance):
    with proxied(workshop.books.url) as proxy:
        workshop.starts(2, batch_events=16, store=proxy.url(workshop.books.url))
        events = 0
        while proxy.cuts < CUTS:
            proxy.cut_after(chance.randrange(1, 200_000), "to_server")
            proxy.cut_after(chance.randrange(1, 50_000), "to_client")
            workshop.publish(*events_of_few(200, first=events))
            events += 200
            runs_done(workshop, events)
        proxy.pass_on()
        ended_well(workshop, events)
