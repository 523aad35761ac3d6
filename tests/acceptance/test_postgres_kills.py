"""Workers on PostgreSQL are killed at random, at every failpoint, and asked to stop: the others go on with their work.

Nothing is lost, nothing is done twice, and they do not get into each other's way.
"""

from __future__ import annotations

import json
import re
import signal

import pytest

from dispatcher import failpoints
from tests.acceptance import brokers, chaos
from tests.acceptance.conftest import an_event
from tests.acceptance.databases import (
    KILLED,
    all_is_well,
    events_of_few,
    sized,
)
from tests.acceptance.outsiders import PATIENCE, Publishing, scraped
from tests.acceptance.test_crashes import BROKERS
from tests.harness.rabbit import free_port
from tests.harness.waiting import wait_until

EVENTS = sized(1_200, 20_000)
KILLS = sized(3, 40)
BATCH = 32  # so that there are enough of them to be in each other's way
CALLS = 30
CALLERS_KILLED = sized(2, 20)
# Fewer batches than a hundred tell nothing of one in a hundred.
FORGIVEN = 2


class Mortals:
    """Four workers, of which any may be killed at any moment, and comes again."""

    def __init__(self, shop, chance, **settings):
        self.shop, self.chance, self.settings = shop, chance, settings
        self.commits = 0.0
        self.killed = 0
        self.ports, self.alive = {}, {}
        for number in range(1, 5):
            self.start(number)

    def start(self, number):
        self.ports[number] = free_port()
        http = f"127.0.0.1:{self.ports[number]}"
        self.alive[number] = self.shop.start(number, http=http, log_level="debug", batch_events=BATCH, **self.settings)

    def count_commits(self, number):
        self.commits += scraped(self.ports[number])["dispatcher_commits_total"]

    def choose(self):
        """Return the number of the next one to die."""
        number = self.chance.randrange(1, 5)
        self.shop.entered(self.alive[number])
        return number

    def kill(self, number, *, counting=True):
        if counting:  # which takes a moment
            self.count_commits(number)
        worker = self.alive[number]
        worker.kill()
        self.killed += worker.process.returncode == KILLED
        self.start(number)

    @property
    def contended(self):
        """Why batches were tried again: an entry each."""
        lines = (line for worker in self.shop.workers for line in worker.log.read_text().splitlines())
        return [json.loads(line)["reason"] for line in lines if '"batch.contended"' in line]

    def end(self):
        for number, worker in self.alive.items():
            self.shop.entered(worker)
            self.count_commits(number)
        self.shop.end()

    def were_out_of_each_others_way(self):
        """Assert that less than one batch in a hundred was tried again, and that none was in a deadlock."""
        contended = self.contended
        print(f"{self.commits:.0f} commits, {len(contended)} tried again: {contended[:5]}")  # noqa: T201
        assert len(contended) <= max(FORGIVEN, self.commits / 100), contended[:10]
        assert self.shop.books.deadlocks == 0


def some_moment(chance, part):
    """How many events there are to be behind the workers when the next one is killed."""
    return part * EVENTS // (KILLS + 1) + chance.randrange(1, EVENTS // (KILLS + 1))


def test_four_workers_killed_at_random_lose_nothing_and_repeat_nothing(workshop, chance):
    mortals = Mortals(workshop, chance)
    wait_until(lambda: workshop.books.made, "the tables")
    publishing = Publishing(workshop.folder, events_of_few(EVENTS), EVENTS // 3)
    for part in range(KILLS):
        enough = some_moment(chance, part)
        wait_until(lambda enough=enough: workshop.books.count("messages") >= enough, f"{enough} texts", PATIENCE)
        mortals.kill(mortals.choose())
    publishing.finish()
    assert publishing.failures == []
    done = "runs WHERE state = 'done'"
    wait_until(lambda: workshop.books.count(done) == 2 * EVENTS, "all runs", PATIENCE)
    mortals.end()
    assert mortals.killed == KILLS
    all_is_well(workshop.books, EVENTS)
    mortals.were_out_of_each_others_way()


def test_four_workers_on_a_broker_killed_at_random_lose_nothing_and_repeat_nothing(shared_site, chance):
    site = shared_site
    mortals = Mortals(site.shop, chance, amqp_prefetch=100)
    wait_until(lambda: site.consuming, "consumers", PATIENCE)
    site.publish(events_of_few(EVENTS))
    for part in range(KILLS):
        enough = some_moment(chance, part)
        wait_until(lambda enough=enough: site.count("messages") >= enough, f"{enough} texts", PATIENCE)
        mortals.kill(mortals.choose())
    site.settle(PATIENCE)
    mortals.end()
    print(brokers.nothing_is_lost_or_doubled(site))  # noqa: T201
    assert mortals.killed == KILLS
    mortals.were_out_of_each_others_way()


def test_calls_of_workers_killed_at_random_are_made_again_under_their_key_or_not_at_all(workshop, ledger, chance):
    shop = workshop
    shop.install_calls(ledger.url)
    mortals = Mortals(shop, chance)
    for worker in mortals.alive.values():
        shop.entered(worker)
    ledger.takes(0.3)
    keyed, once = [], []
    for part in range(CALLERS_KILLED):
        names = range(part * CALLS, (part + 1) * CALLS)
        keyed += [f"keyed-{n}" for n in names]
        once += [f"once-{n}" for n in names]
        victim = mortals.choose()
        enough = len(ledger.calls) + chance.randrange(1, CALLS)
        shop.publish(
            *(
                an_event(event_id=f"{kind}-{n}", event_type=event_type, event_data={})
                for n in names
                for kind, event_type in (("keyed", "call"), ("once", "call_once"))
            )
        )
        wait_until(lambda enough=enough: len(ledger.calls) >= enough, f"{enough} calls", PATIENCE)
        mortals.kill(victim, counting=False)
    settled = "runs WHERE state IN ('done', 'held')"
    wait_until(lambda: shop.books.count(settled) == len(keyed + once), "all calls", PATIENCE)
    mortals.end()
    times, keys = ledger.times, dict(ledger.calls)
    assert set(times) >= set(keyed)
    assert len(set(ledger.calls)) == len(keys), "a call that was repeated had another key"
    assert all(times[event_id] <= 1 for event_id in once)
    held = {row[0] for row in shop.books.query("SELECT event_id FROM runs WHERE state = 'held'")}
    letters = {row[0] for row in shop.books.query("SELECT event_id FROM dead_letters WHERE reason = 'unknown'")}
    assert held == letters
    assert held <= set(once)
    assert {event_id for event_id in once if not times[event_id]} <= held
    repeated = sum(times[event_id] > 1 for event_id in keyed)
    print(f"{len(held)} of {len(once)} calls without a key held, {repeated} of {len(keyed)} with one repeated")  # noqa: T201


# Failpoints.


ELSEWHERE = ("intake.before_commit", "recovery.before_commit", *BROKERS)
POLLS = 40


@pytest.mark.parametrize("point", [name for name in failpoints.NAMES if name not in ELSEWHERE])
def test_what_a_worker_had_in_hand_that_died_at_a_failpoint_is_done_by_another(workshop, point):
    chaos.install(workshop.folder)
    calls = [an_event(1000 + n, event_type="call", event_data={}) for n in range(POLLS)]
    workshop.publish(*events_of_few(POLLS, contacts=POLLS), *calls)
    died = workshop.start(1, host="there", failpoints=f"{point}:kill")
    wait_until(lambda: died.process.poll() is not None, "the end of a worker")
    assert died.process.returncode == KILLED
    other = workshop.start(2, lease_seconds=2, handler_hang_seconds=1)
    done = "runs WHERE state = 'done' AND chain IN ('welcome', 'calling')"
    wait_until(lambda: workshop.books.count(done) == 2 * POLLS, "all runs", PATIENCE)
    workshop.alone(other)
    workshop.end()
    made = chaos.calls(workshop.folder)
    assert len({event for event, _ in made}) == len(set(made)) == POLLS, "a call that was repeated had another key"
    all_is_well(workshop.books, POLLS)


def test_recovery_that_dies_is_done_by_another(workshop):
    chaos.install(workshop.folder)
    calls = [an_event(1000 + n, event_type="call", event_data={}) for n in range(POLLS)]
    workshop.publish(*events_of_few(POLLS, contacts=POLLS), *calls)
    for point in ("call.after_return", "recovery.before_commit", "recovery.before_commit"):
        died = workshop.start(1, failpoints=f"{point}:kill")
        wait_until(lambda died=died: died.process.poll() is not None, "the end of a worker")
        assert died.process.returncode == KILLED
    workshop.start(1)
    wait_until(lambda: workshop.books.count("runs WHERE state = 'done'") == 3 * POLLS, "all runs", PATIENCE)
    workshop.end()
    made = chaos.calls(workshop.folder)
    assert len({event for event, _ in made}) == len(set(made)) == POLLS
    all_is_well(workshop.books, POLLS)


def test_publish_that_dies_before_its_commit_has_published_nothing_and_can_be_repeated(workshop):
    events = workshop.folder.write_events(*events_of_few(POLLS, contacts=POLLS))
    workshop.start(1)
    workshop.folder.environ["DISPATCHER_FAILPOINTS"] = "intake.before_commit:kill"
    assert workshop.folder.run("publish", events).code == KILLED
    del workshop.folder.environ["DISPATCHER_FAILPOINTS"]
    assert workshop.books.count("events") == 0
    assert workshop.folder.run("publish", events).code == 0
    wait_until(lambda: workshop.books.count("runs WHERE state = 'done'") == 2 * POLLS, "all runs", PATIENCE)
    workshop.end()
    all_is_well(workshop.books, POLLS)


@pytest.mark.parametrize("point", BROKERS)
def test_what_a_worker_on_a_broker_had_in_hand_that_died_at_a_failpoint_is_done_by_another(shared_site, point):
    site = shared_site
    quick = {"lease_seconds": 2, "handler_hang_seconds": 1}
    died = site.shop.start(1, host="there", failpoints=f"{point}:kill@2", **quick)
    wait_until(lambda: site.consuming, "a consumer", PATIENCE)
    other = site.shop.start(2, **quick)
    site.publish(events_of_few(POLLS * 5), per_second=200)
    wait_until(lambda: died.process.poll() is not None, "the end of a worker")
    assert died.process.returncode == KILLED
    site.settle(PATIENCE)
    site.shop.alone(other)
    site.shop.end()
    print(brokers.nothing_is_lost_or_doubled(site))  # noqa: T201


# Stops.


def test_worker_that_is_asked_to_stop_leaves_nothing_behind_and_the_others_go_on(workshop):
    workshop.publish(*events_of_few(EVENTS))
    stopped, other = workshop.starts(2, batch_events=32)
    wait_until(lambda: workshop.books.count("messages") > 100, "some texts")
    assert stopped.stop() == 0
    assert [row[0] for row in workshop.books.query("SELECT number FROM workers")] == [workshop.number_of(other)]
    wait_until(lambda: workshop.books.count("runs WHERE state = 'done'") == 2 * EVENTS, "all runs", PATIENCE)
    workshop.end()
    assert other.said("worker.taken_over") == []
    all_is_well(workshop.books, EVENTS)


def test_worker_that_is_started_again_takes_its_own_work_over_at_once(workshop, ledger):
    workshop.install_calls(ledger.url)
    ledger.answers.clear()
    bystander = workshop.start(2)
    workshop.entered(bystander)
    bystander.process.send_signal(signal.SIGSTOP)  # it may neither call nor take over
    workshop.publish(*(an_event(n, event_type=f"call{'_once' * (n % 2)}", event_data={}) for n in range(8)))
    died = workshop.start(1)
    wait_until(lambda: len(ledger.calls) == 8, "the calls")
    died.kill()
    again = workshop.start(1)
    ledger.answers.set()
    settled = "runs WHERE state IN ('done', 'held')"
    wait_until(lambda: workshop.books.count(settled) == 8, "the calls to be settled")  # the lease is a minute
    assert again.said("worker.taken_over")[0]["workers"] == [workshop.number_of(died)]
    states = workshop.books.query("SELECT state, count(*) FROM runs GROUP BY 1 ORDER BY 1")
    assert states == [("done", 4), ("held", 4)]
    assert sorted(ledger.times.values()) == [1] * 4 + [2] * 4
    bystander.process.send_signal(signal.SIGCONT)
    workshop.publish(an_event(100))
    wait_until(lambda: workshop.books.count("messages") == 1, "a text")
    workshop.end()
    assert not re.search("lease.lost", bystander.log.read_text())
