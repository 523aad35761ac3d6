"""What is open is counted, on both stores alike, and cheaply: by indexes of what is open, and once for all who ask."""

from __future__ import annotations

import os
import socket
import threading
from dataclasses import fields
from datetime import timedelta

import pytest
from sqlalchemy import Boolean, Integer, LargeBinary

from dispatcher.engine.records import as_text
from dispatcher.errors import StoreUnusable
from dispatcher.settings import load_settings
from dispatcher.store import gauges, schema
from dispatcher.store.gauges import FreshGauges, Gauges, gauges_of, read_gauges
from dispatcher.testing import FrozenClock


@pytest.fixture(params=["sqlite", "postgres"])
def place(request):
    return request.getfixturevalue(f"{request.param}_place")


class Shop:
    """A store whose rows are as a test says."""

    def __init__(self, place):
        self.place = place
        if place.kind == "sqlite":
            place.open()
        self.clock = place.clock
        self.made = 0
        self._count = gauges_of(load_settings({}, store=place.setting))

    def put(self, table, count=1, **values):
        for _ in range(count):
            self.made += 1
            row = {column.name: blank(column) for column in schema.metadata.tables[table].columns if required(column)}
            for name in ("dead_id", "run_id", "event_seq", "seq", "number"):
                if name in schema.metadata.tables[table].columns:
                    row[name] = self.made if name in ("event_seq", "seq", "number") else f"{self.made}"
            if "received_on" in row:
                row["received_on"] = self.clock.now().date().isoformat()
            row |= values
            names = ", ".join(f'"{name}"' for name in row)
            self.sql(f"INSERT INTO {table} ({names}) VALUES ({', '.join('?' * len(row))})", *row.values())

    def sql(self, statement, *values):
        return self.place.query(statement, *values)[1]

    def ago(self, seconds):
        return as_text(self.clock.now() - timedelta(seconds=seconds))

    def read(self):
        return self._count(self.clock.now())


def required(column):
    return not column.nullable and column.server_default is None


def blank(column):
    blanks = {Boolean: False, Integer: 0, LargeBinary: b""}
    return next((value for kind, value in blanks.items() if isinstance(column.type, kind)), "")


@pytest.fixture
def shop(place):
    return Shop(place)


def test_an_empty_store_holds_nothing_open(shop):
    read = shop.read()

    assert read.at == shop.clock.now()
    assert read.store_bytes > 0
    assert (read.free_bytes or 1) > 0
    told = {field.name: getattr(read, field.name) for field in fields(Gauges)}
    for name in ("at", "store_bytes", "free_bytes", "lease_held"):
        del told[name]
    assert set(map(repr, told.values())) == {"0", "None", "{}"}


def test_events_that_are_new_wait_and_the_first_of_them_has_an_age(shop):
    shop.put("events", state="matched", received_at=shop.ago(500))
    shop.put("events", 2, state="new", received_at=shop.ago(40))
    shop.put("events", state="new", received_at=shop.ago(10), account_key="a")

    assert (shop.read().events_waiting, shop.read().oldest_event_seconds) == (3, 40.0)


def test_the_outbox_is_counted_with_what_is_due_and_for_how_long_in_each_lane(shop):
    shop.put("outbox", state="ready", not_before=shop.ago(-60), at=shop.ago(700))
    shop.put("outbox", 2, state="ready", not_before=shop.ago(90), at=shop.ago(95))
    shop.put("outbox", state="ready", not_before=shop.ago(300), at=shop.ago(300), lane="sender:bulk")
    shop.put("outbox", state="ready", not_before=shop.ago(-60), at=shop.ago(1), lane="sender:slow")

    read = shop.read()

    assert (read.outbox_ready, read.outbox_due, read.outbox_held) == (5, 3, 0)
    assert read.outbox_due_seconds == {"": 90.0, "sender:bulk": 300.0}
    assert read.outbox_ready_seconds == {"": 700.0, "sender:bulk": 300.0, "sender:slow": 1.0}


def test_the_age_of_the_outbox_is_that_of_the_row_written_first_held_or_not(shop):
    shop.put("outbox", state="held", not_before=shop.ago(900), at=shop.ago(900))
    shop.put("outbox", state="ready", not_before=shop.ago(-60), at=shop.ago(700))

    assert (shop.read().outbox_held, shop.read().oldest_outbox_seconds) == (1, 900.0)
    assert shop.read().outbox_due_seconds == {}


def test_runs_are_counted_by_what_they_stand_at(shop):
    shop.put("runs", 3, state="done")
    shop.put("runs", 2, state="waiting", due_at=shop.ago(5))
    shop.put("runs", state="retrying", due_at=shop.ago(9))
    shop.put("runs", 4, state="waiting", due_at=shop.ago(-60))
    shop.put("runs", 5, state="retrying", due_at=shop.ago(-60))
    shop.put("runs", 6, state="running")
    shop.put("runs", 7, state="held")
    shop.put("runs", 8, state="ready", due_at=shop.ago(20), lane="sender:bulk")

    read = shop.read()

    assert (read.runs_due, read.oldest_run_due_seconds) == (3, 9.0)
    assert (read.runs_waiting, read.runs_retrying, read.runs_running, read.runs_held) == (4, 5, 6, 7)
    assert read.calls_queued == {"sender:bulk": 8}


def test_dead_letters_that_are_open_are_counted_by_reason(shop):
    shop.put("dead_letters", 2, reason="failed")
    shop.put("dead_letters", reason="bad_json", body=b"{")
    shop.put("dead_letters", reason="bad_json", state="discarded")

    assert shop.read().dead_letters == {"failed": 2, "bad_json": 1}


def test_a_store_is_counted_while_its_worker_writes(shop):
    shop.sql("BEGIN")
    shop.put("events", state="new", received_at=shop.ago(0))
    assert shop.read().events_waiting == 0
    shop.sql("COMMIT")

    assert shop.read().events_waiting == 1


def test_a_time_that_is_yet_to_come_gives_no_negative_age(shop):
    shop.put("events", state="new", received_at=shop.ago(-10))

    assert shop.read().oldest_event_seconds == 0.0


def test_a_store_that_cannot_be_read_is_told_so(tmp_path):
    clock = FrozenClock()
    (tmp_path / "none.db").write_bytes(b"this is no database, however long one looks at it" * 100)

    for name in ("none.db", "missing.db"):
        with pytest.raises(StoreUnusable, match=f"{name} cannot be counted"):
            read_gauges(tmp_path / name, clock.now())


def test_counting_makes_no_store(tmp_path):
    with pytest.raises(StoreUnusable):
        read_gauges(tmp_path / "missing.db", FrozenClock().now())

    assert list(tmp_path.iterdir()) == []


def test_a_database_that_cannot_be_counted_is_told_with_its_password_masked(postgres_place):
    url = load_settings({}, store=postgres_place.url + "_none").store_url()

    with pytest.raises(StoreUnusable, match="does not exist") as caught:
        gauges_of(load_settings({}, store=url))(FrozenClock().now())
    assert postgres_place.connection.info.password not in str(caught.value).split()


def test_a_file_knows_of_one_worker_and_a_room_on_its_disk(sqlite_place):
    read = Shop(sqlite_place).read()

    assert (read.workers_alive, read.lease_held) == (None, None)
    assert read.free_bytes > 0


def test_workers_of_a_database_count_as_alive_within_their_lease(postgres_place):
    shop = Shop(postgres_place)
    shop.put("workers", 2, name="w", host="elsewhere", seen_at=shop.ago(59))
    shop.put("workers", name="w", host="elsewhere", seen_at=shop.ago(61))

    assert (shop.read().workers_alive, shop.read().lease_held, shop.read().free_bytes) == (2, False, None)
    shop.put("workers", name="w", host=socket.gethostname(), pid=os.getpid(), seen_at=shop.ago(1))
    assert (shop.read().workers_alive, shop.read().lease_held) == (3, True)
    shop.sql("UPDATE workers SET seen_at = ?", shop.ago(61))
    assert (shop.read().workers_alive, shop.read().lease_held) == (0, False)


STATEMENTS = [("_NEW_EVENTS", 0), ("_OUTBOX_READY", 1), ("_OUTBOX_HELD", 0), ("_SCHEDULED", 1), ("_OPEN_RUNS", 0)]


@pytest.mark.parametrize(("name", "given"), STATEMENTS)
def test_counting_walks_over_an_index_of_what_is_open_and_never_over_a_table(sqlite_place, name, given):
    connection = sqlite_place.open().connection
    plan = connection.execute(f"EXPLAIN QUERY PLAN {getattr(gauges, name)}", [""] * given).fetchall()

    assert plan
    walks = [step[3] for step in plan if step[3].startswith(("SCAN", "SEARCH"))]
    assert [walk for walk in walks if "INDEX" not in walk] == []
    partial = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE sql LIKE '% WHERE %'")}
    assert [walk for walk in walks if walk.split(" INDEX ")[1].split()[0] not in partial] == []


@pytest.mark.parametrize(("name", "given"), STATEMENTS)
def test_counting_a_database_can_do_with_indexes_of_what_is_open(postgres_place, name, given):
    from dispatcher.store.postgres import gauges as of_database

    with postgres_place.connection.transaction():
        # Of tables that are empty it would choose otherwise.
        postgres_place.connection.execute("SET LOCAL enable_seqscan = off")
        rows = postgres_place.connection.execute(f"EXPLAIN {getattr(of_database, name)}", [""] * given).fetchall()

    plan = "\n".join(line for (line,) in rows)
    assert "Index" in plan
    assert "Seq Scan" not in plan
    assert "_pkey" not in plan


# For many who ask.


class Counting:
    """What counts a store, as the test scripts it."""

    def __init__(self, clock, sample):
        self.clock, self.sample, self.times, self.takes, self.broken = clock, sample, 0, 0.0, False

    def __call__(self, now):
        self.times += 1
        self.clock.advance(timedelta(seconds=self.takes))
        if self.broken:
            raise StoreUnusable("it cannot be counted.")
        return self.sample


@pytest.fixture
def shop_of_one(sqlite_place):
    return Shop(sqlite_place)


@pytest.fixture
def counting(shop_of_one):
    return Counting(shop_of_one.clock, shop_of_one.read())


def test_a_store_is_counted_once_for_all_who_ask_within_a_second(shop_of_one, counting):
    fresh = FreshGauges(counting, shop_of_one.clock)

    assert [fresh.read() for _ in range(5)] == [counting.sample] * 5
    assert counting.times == 1
    shop_of_one.clock.advance(timedelta(seconds=1))
    fresh.read()
    assert counting.times == 2


def test_a_store_that_takes_long_to_count_is_counted_less_often(shop_of_one, counting):
    fresh = FreshGauges(counting, shop_of_one.clock)
    counting.takes = 0.5

    fresh.read()
    shop_of_one.clock.advance(timedelta(seconds=9))
    fresh.read()
    assert counting.times == 1
    shop_of_one.clock.advance(timedelta(seconds=1))
    fresh.read()
    assert counting.times == 2


def test_numbers_are_good_for_as_many_times_longer_as_one_says(shop_of_one, counting):
    fresh = FreshGauges(counting, shop_of_one.clock, factor=100)
    counting.takes = 0.5

    fresh.read()
    shop_of_one.clock.advance(timedelta(seconds=49))
    fresh.read()
    assert counting.times == 1
    shop_of_one.clock.advance(timedelta(seconds=1))
    fresh.read()
    assert counting.times == 2


def test_a_store_that_cannot_be_counted_is_asked_again_a_second_later(shop_of_one, counting):
    fresh = FreshGauges(counting, shop_of_one.clock)
    counting.broken = True

    for _ in range(2):
        with pytest.raises(StoreUnusable):
            fresh.read()
    assert counting.times == 1
    counting.broken = False
    shop_of_one.clock.advance(timedelta(seconds=1))
    assert fresh.read() == counting.sample


def test_a_store_that_takes_long_to_fail_is_asked_again_soon(shop_of_one, counting):
    fresh = FreshGauges(counting, shop_of_one.clock, factor=100)
    counting.takes, counting.broken = 3.0, True

    with pytest.raises(StoreUnusable):
        fresh.read()
    counting.broken = False
    shop_of_one.clock.advance(timedelta(seconds=10))
    assert fresh.read() == counting.sample


def test_whoever_asks_while_another_counts_gets_the_numbers_of_before(shop_of_one, counting):
    counts, goes_on = threading.Event(), threading.Event()

    def slowly(now):
        if counting.times:
            counts.set()
            assert goes_on.wait(10)
        return counting(now)

    fresh = FreshGauges(slowly, shop_of_one.clock)
    fresh.read()
    shop_of_one.clock.advance(timedelta(seconds=1))
    other = threading.Thread(target=fresh.read)
    other.start()
    assert counts.wait(10)

    assert fresh.read() == counting.sample
    assert counting.times == 1
    goes_on.set()
    other.join(10)
    assert counting.times == 2
