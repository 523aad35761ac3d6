"""Leases on a real PostgreSQL: who counts as dead, who takes over, and that who was taken over writes nothing."""

from __future__ import annotations

from contextlib import contextmanager
from datetime import timedelta

import psycopg
import pytest

from dispatcher.engine.records import as_text
from dispatcher.errors import LeaseLost, StoreUnusable
from dispatcher.store.postgres.store import PostgresStore
from tests.harness.waiting import wait_until

NO_MERCY = 3600.0


@pytest.fixture
def url(postgres):
    PostgresStore.open(postgres).close()
    return postgres


@pytest.fixture
def join(url):
    """Open the store as one more worker."""
    stores = []

    def join(*, lease_seconds=NO_MERCY):
        store = PostgresStore.open(url, lease_seconds=lease_seconds)
        stores.append(store)
        store.join(f"worker {len(stores)}", look_pause=0.0)
        return store

    yield join
    for store in stores:
        store.close()


@pytest.fixture
def sql(url):
    with psycopg.connect(url, autocommit=True) as connection:
        yield lambda statement, *values: connection.execute(statement, values or None).fetchall()


@contextmanager
def something_written(store):
    """A transaction of a worker, with something in it that is not committed yet."""
    with store.transaction() as transaction:
        transaction.connection.execute("INSERT INTO audit (at, actor, verb, target) VALUES ('', 'test', 'test', '')")
        yield transaction


def written(sql):
    return sql("SELECT count(*) FROM audit")[0][0]


def take_over(store, surely=()):
    return store.take_over(list(surely), None)


def test_every_worker_gets_a_number_that_none_had_before(join):
    first = join()
    before = first.lease.number
    first.lease.resign(clean=True)
    assert before < join().lease.number < join().lease.number


def test_a_worker_that_works_is_not_dead(join):
    first, second = join(), join()
    assert take_over(second) == ([], [])
    with something_written(first) as transaction:
        transaction.commit()
    assert take_over(second) == ([], [])


def test_a_worker_that_is_surely_dead_is_taken_over_at_once(join):
    first, second = join(), join()
    number = first.lease.number
    assert take_over(second, [number]) == ([number], [])
    assert take_over(second, [number]) == ([], [])


def test_a_worker_that_was_taken_over_commits_nothing(join, sql):
    first, second = join(), join()
    with something_written(first) as frozen:
        take_over(second, [first.lease.number])
        with pytest.raises(LeaseLost, match="another one has taken its work over"):
            frozen.commit()
    assert written(sql) == 0


def test_a_batch_that_is_being_committed_is_waited_for_and_not_taken_over(join, sql):
    first, second = join(), join()
    with something_written(first) as transaction:
        first.lease.prove(transaction.connection)
        assert take_over(second, [first.lease.number]) == ([], [])
        transaction.commit()
    assert written(sql) == 1


def test_a_silent_worker_whose_session_lasts_has_the_whole_lease(join, sql):
    frozen, second = join(), join(lease_seconds=600.0)
    second.session.connected_at -= 600.0  # it has been there for long
    silent_for(sql, frozen, seconds=300)
    assert take_over(second) == ([], [])
    silent_for(sql, frozen, seconds=601)
    assert take_over(second) == ([frozen.lease.number], [])


def test_a_worker_whose_session_has_ended_has_a_sixth_of_it(join, sql):
    killed, second = join(), join(lease_seconds=600.0)
    second.session.connected_at -= 600.0
    killed.session.close()
    silent_for(sql, killed, seconds=50)
    assert take_over(second) == ([], [])
    silent_for(sql, killed, seconds=101)
    wait_until(lambda: take_over(second)[0] == [killed.lease.number], 10)


def test_who_has_just_come_back_after_an_outage_takes_nobody_for_dead(join, sql):
    """All lose their connections at once, and come back one after the other."""
    other, back = join(), join(lease_seconds=600.0)
    silent_for(sql, other, seconds=10_000)
    back.session.close()
    back.lease.beat()
    assert take_over(back) == ([], [])


def test_a_worker_that_left_with_work_unsettled_is_taken_over_by_the_next_that_looks(join):
    first, second = join(), join()
    number = first.lease.number
    first.lease.resign(clean=False)
    assert take_over(second) == ([number], [])


def test_runs_that_were_under_way_go_to_who_takes_over(join, sql):
    first, second = join(), join()
    sql_run(sql, seq=1, state="running", token=first.lease.number)
    sql_run(sql, seq=2, state="waiting", token=None)
    _, runs = take_over(second, [first.lease.number])
    assert [seq for seq, _ in runs] == [1]
    assert sql("SELECT lease_token FROM runs WHERE seq = 1") == [(second.lease.number,)]


def test_runs_of_a_worker_that_is_in_no_list_are_found_all_the_same(join, sql):
    worker = join()
    sql_run(sql, seq=1, state="running", token=9_999)
    assert take_over(worker) == ([], [(1, "2026-11-21")])


def test_commit_whose_answer_was_lost_is_found_to_be_done(join, sql):
    worker = join()
    with something_written(worker) as transaction:
        lose_the_answer(worker, sql, committed=True)
        transaction.commit()
    assert written(sql) == 1


def test_commit_that_did_not_get_through_is_told(join, sql):
    worker = join()
    with something_written(worker) as transaction:
        lose_the_answer(worker, sql, committed=False)
        with pytest.raises(StoreUnusable, match="nothing of it was kept"):
            transaction.commit()
    assert written(sql) == 0
    with something_written(worker) as transaction:
        transaction.commit()
    assert written(sql) == 1


def test_who_is_told_to_wait_no_longer_does_not_know_and_says_so(join, sql):
    worker = join()
    worker.session.patience = lambda reason: False
    with something_written(worker) as transaction:
        lose_the_answer(worker, sql, committed=True)
        with pytest.raises(LeaseLost, match="nobody knows"):
            transaction.commit()


def test_a_worker_that_was_frozen_before_it_acted_does_not_act(join):
    """Between the commit that says so and the call that it is about, a machine may sleep for an hour."""
    frozen, second = join(), join()
    with something_written(frozen) as transaction:
        transaction.commit()
    frozen.prove()  # a moment later that is still true
    take_over(second, [frozen.lease.number])
    frozen.lease._beaten_at -= NO_MERCY
    with pytest.raises(LeaseLost, match="another one has taken its work over"):
        frozen.prove()


def test_a_worker_that_cannot_prove_its_lease_does_not_act_either(join, mocker):
    worker = join()
    worker.lease._beaten_at -= NO_MERCY
    mocker.patch.object(worker.session, "begin", side_effect=StoreUnusable("the server is away."))
    with pytest.raises(LeaseLost, match="nobody can tell"):
        worker.prove()


def test_time_is_the_databases(join, sql):
    worker = join()
    worker.clock._told -= timedelta(hours=5)  # as on a machine whose clock is wrong
    with worker.transaction():
        pass
    told = sql("SELECT clock_timestamp()")[0][0]
    assert abs(worker.clock.now() - told) < timedelta(seconds=30)


def silent_for(sql, store, *, seconds):
    (now,) = sql("SELECT clock_timestamp()")[0]
    ago = as_text(now - timedelta(seconds=seconds))
    sql("UPDATE workers SET seen_at = %s WHERE number = %s RETURNING number", ago, store.lease.number)


def sql_run(sql, *, seq, state, token):
    sql(
        "INSERT INTO runs (seq, run_id, event_seq, event_id, account_key, chain, chain_digest, generation, started_at, "
        "received_on, state, position, attempt, lane, lease_token) VALUES "
        "(%s, %s, %s, 'e', 'acc', 'chain', 'digest', 1, '', %s, %s, 0, 1, '', %s) RETURNING seq",
        seq, f"run-{seq}", seq, "2026-11-21", state, token,
    )  # fmt: skip


def lose_the_answer(store, sql, *, committed):
    """Cut the connection at the commit: before the server has it, or behind."""
    raw = store.session.connection
    execute, pid = raw.execute, raw.info.backend_pid

    class Cut:
        """The connection, with its last answer lost."""

        def __getattr__(self, name):
            return getattr(raw, name)

        def execute(self, statement, *args):
            if statement != "COMMIT":
                return execute(statement, *args)
            if committed:
                execute("COMMIT")
            sql("SELECT pg_terminate_backend(%s)", pid)
            return execute("SELECT 1")

    store.session._connection = Cut()
