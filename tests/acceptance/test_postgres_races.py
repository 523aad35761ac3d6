"""Workers on PostgreSQL race for timers, deliveries and events: each has one winner, by the database's clock."""

from __future__ import annotations

import collections

import pytest

from tests.acceptance import brokers
from tests.acceptance.conftest import an_event
from tests.acceptance.databases import (
    CALLS,
    all_is_well,
    events_of_few,
    sized,
)
from tests.acceptance.outsiders import PATIENCE, Publishing
from tests.harness.waiting import wait_until

TIMERS = sized(300, 1_000)
RACERS = sized(4, 8)
EVENTS = sized(600, 20_000)

TIMED = """\
  - name: later
    on: {event_type: later}
    steps:
      - wait: 1d
      - {id: text, handler: send_sms, with: {to: "{{ data.msisdn }}", text: "It is time."}}
      - {id: out, handler: http_request, with: {service: once, method: POST, url: "/{{ event.event_id }}"}}
"""
AT_ONCE = "UPDATE runs SET due_at = to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')"
IN_AN_HOUR = AT_ONCE.replace("clock_timestamp()", "(clock_timestamp() + interval '1 hour')")

# What `sitecustomize` does before anything else is imported: another time of day, for whoever asks Python.
WRONG_CLOCK = """\
import datetime, time, warnings

# Modules written in C know the class that is replaced here, and say so.
warnings.filterwarnings("ignore", "datetime.datetime size changed")
OFF = {hours} * 3600.0
told = time.time
time.time = lambda: told() + OFF
time.time_ns = lambda: int((told() + OFF) * 1e9)
true = datetime.datetime

class Shifted(true):
    @classmethod
    def now(cls, tz=None):
        return true.now(tz) + datetime.timedelta(seconds=OFF)
    @classmethod
    def utcnow(cls):
        return true.utcnow() + datetime.timedelta(seconds=OFF)

datetime.datetime = Shifted
"""


@pytest.fixture
def timing(workshop, ledger):
    """A workshop with a chain that waits for a day, then texts and calls."""
    rulebook = workshop.folder.path / "rulebook.yaml"
    rulebook.write_text(
        rulebook.read_text().replace("chains:\n", CALLS.replace("URL", ledger.url) + "chains:\n") + TIMED
    )
    return workshop


def publish_timers(shop, count):
    """Publish what waits, and wait until all does."""
    events = [an_event(n, event_type="later", event_data={"msisdn": f"082555{n:04d}"}) for n in range(count)]
    shop.publish(*events)
    wait_until(lambda: shop.books.count("runs WHERE state = 'waiting'") == count, "timers", PATIENCE)
    assert shop.books.query("SELECT state, count(*) FROM runs GROUP BY 1") == [("waiting", count)]


def test_each_of_many_timers_that_are_due_at_one_instant_fires_once(timing, ledger):
    shop = timing
    shop.starts(RACERS, batch_events=32)
    publish_timers(shop, TIMERS)
    shop.books.query(AT_ONCE)
    wait_until(lambda: shop.books.count("runs WHERE state = 'done'") == TIMERS, "all timers", PATIENCE)
    shop.end()
    assert ledger.times == {f"e-{n}": 1 for n in range(TIMERS)}
    assert shop.books.query("SELECT count(*), count(DISTINCT event_id) FROM messages") == [(TIMERS, TIMERS)]
    assert shop.books.query("SELECT step, state, attempt, count(*) FROM steps GROUP BY 1, 2, 3 ORDER BY 1") == [
        ("out", "done", 1, TIMERS),
        ("text", "done", 1, TIMERS),
        ("wait", "done", 1, TIMERS),
    ]
    assert shop.books.deadlocks == 0


@pytest.mark.parametrize("hours", [5, -5])
def test_wrong_clock_of_a_machine_changes_nothing_in_when_timers_fire(timing, ledger, hours):
    shop = timing
    path = shop.folder.path / "wrong"
    path.mkdir()
    (path / "sitecustomize.py").write_text(WRONG_CLOCK.format(hours=hours))
    shop.folder.environ["PYTHONPATH"] = str(path)
    worker = shop.start(1)
    shop.entered(worker)
    publish_timers(shop, 10)
    in_a_day = "due_at::timestamptz BETWEEN now() + interval '23 hours' AND now() + interval '25 hours'"
    assert shop.books.count(f"runs WHERE {in_a_day}") == 10
    shop.books.query(IN_AN_HOUR)
    logged = worker.said("lease.held")[0]["timestamp"]
    started = shop.books.query("SELECT started_at FROM workers")[0][0]
    assert (logged[:13] > started[:13]) == (hours > 0), "its clock is wrong"
    # What comes now is done twice over, and with it every look at what is due.
    for number in (100, 101):
        shop.publish(an_event(number))
        wait_until(
            lambda number=number: shop.books.count(f"messages WHERE event_id = 'e-{number}'") == 1, "a text", PATIENCE
        )
    assert shop.books.count("runs WHERE state = 'waiting'") == 10
    shop.books.query(AT_ONCE + " WHERE state = 'waiting'")
    wait_until(lambda: len(ledger.calls) == 10, "all timers", PATIENCE)
    shop.end()
    assert set(ledger.times.values()) == {1}
    assert shop.books.query("SELECT count(*) FROM workers WHERE seen_at > started_at") == [(0,)]


def test_deliveries_that_come_several_times_to_two_workers_have_one_effect_each(shared_site, chance):
    site = shared_site
    site.starts(2, amqp_prefetch=20, batch_events=8)
    events = [event for event in events_of_few(EVENTS) for _ in range(chance.randrange(1, 6))]
    # Near each other, so that both have the same one in hand at once.
    for at in range(0, len(events), 30):
        part = events[at : at + 30]
        chance.shuffle(part)
        events[at : at + 30] = part
    site.publish(events)
    site.settle(2 * PATIENCE)
    site.shop.end()
    print(brokers.nothing_is_lost_or_doubled(site))  # noqa: T201
    both = [worker.said("worker.stopped")[0]["events"] for worker in site.workers]
    print(f"{len(events)} deliveries, events by worker: {both}")  # noqa: T201
    assert all(both)


def test_several_who_publish_the_same_events_at_once_publish_each_once(workshop, chance):
    workshop.starts(2)
    events = events_of_few(EVENTS)
    publishing = []
    for number in range(3):
        some = [event for event in events if int(event["event_id"].removeprefix("e-")) % 3 != number]
        chance.shuffle(some)
        publishing.append(Publishing(workshop.folder, some, max(len(some) // 2, 1)))
    for each in publishing:
        each.finish()
        assert each.failures == []
    wait_until(lambda: workshop.books.count("runs WHERE state = 'done'") == 2 * EVENTS, "all runs", 2 * PATIENCE)
    workshop.end()
    all_is_well(workshop.books, EVENTS)
    taken = collections.Counter(row[0] for row in workshop.books.query("SELECT event_id FROM event_ids"))
    assert set(taken.values()) == {1}
