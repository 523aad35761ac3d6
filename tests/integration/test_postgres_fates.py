"""What became of a commit whose answer was lost, on a real PostgreSQL: kept, not kept, or known to nobody."""

from __future__ import annotations

from contextlib import contextmanager

import psycopg
import pytest

from dispatcher.errors import LeaseLost, StoreUnusable
from dispatcher.store.postgres.store import PostgresStore

NO_MERCY = 3600.0
WRITTEN = "INSERT INTO audit (at, actor, verb, target) VALUES ('', 'test', 'test', '')"
# How often at most a crash is tried before the number of what it undid is given again: nearly always at once.
TRIES = 10


@pytest.fixture
def opened(postgres):
    """Open the store, as a worker or as a command."""
    stores = []

    def opened(*, worker):
        store = PostgresStore.open(postgres, lease_seconds=NO_MERCY)
        stores.append(store)
        if worker:
            store.join(f"worker {len(stores)}", look_pause=0.0)
        return store

    yield opened
    for store in stores:
        store.close()


@pytest.fixture
def lost(monkeypatch, postgres_server):
    """Commit something, with what is to happen between the last statement and the commit."""

    def lost(store, meanwhile):
        with monkeypatch.context() as patched, store.transaction() as transaction:
            commit = store.session.commit

            def commit_late(proof):
                meanwhile(proof)
                commit(proof)

            patched.setattr(store.session, "commit", commit_late)
            transaction.connection.execute(WRITTEN)
            transaction.commit()

    return lost


@contextmanager
def beside(url):
    with psycopg.connect(url, autocommit=True) as connection:
        yield connection


def rows_written(url):
    with beside(url) as connection:
        return connection.execute("SELECT count(*) FROM audit").fetchone()[0]


def given_again(url, xid):
    """Have the server give out numbers of transactions up to this one; whether another one got that very number."""
    with beside(url) as connection:
        number = 0
        while number < xid:
            number = int(connection.execute("SELECT pg_current_xact_id()::text").fetchone()[0])
    return number == xid


def lose_the_answer(store, then=lambda: None):
    """Have the next statement of the store's connection done, and the connection lost before it is told so."""
    connection = store.session.connection
    execute = connection.execute

    def execute_and_lose(statement, *rest):
        execute(statement, *rest)
        connection.close()
        then()
        raise psycopg.OperationalError("the connection was lost")

    connection.execute = execute_and_lose


@pytest.fixture
def crash(lost, postgres, postgres_server):
    """Crash the server before a commit, until another transaction has got the number of the one that was undone."""

    def crash(store, error, message):
        again = []

        def meanwhile(written):
            postgres_server.restart()
            again.append(given_again(postgres, int(written.xid)))

        for _ in range(TRIES):
            # Where the number had been written down before the crash, it is known that nothing was kept.
            with pytest.raises((error, StoreUnusable)) as told:
                lost(store, meanwhile)
            if again[-1]:
                assert message in str(told.value)
                return
        pytest.fail("no number was given again")

    return crash


def test_a_worker_is_not_misled_by_another_transaction_that_got_the_number_of_its_own(opened, crash, postgres):
    crash(opened(worker=True), StoreUnusable, "nothing of it was kept")
    assert rows_written(postgres) == 0


def test_a_command_does_not_know_what_became_of_its_commit_when_the_server_crashed(opened, crash, postgres):
    crash(opened(worker=False), LeaseLost, "nobody knows whether that went through")
    assert rows_written(postgres) == 0


@pytest.mark.parametrize("worker", [True, False], ids=["worker", "command"])
def test_a_number_that_the_server_has_not_given_out_yet_is_of_nothing_that_was_kept(
    opened, lost, postgres, postgres_server, worker
):
    store = opened(worker=worker)
    with pytest.raises(StoreUnusable, match="nothing of it was kept"):
        lost(store, lambda _: postgres_server.restart())
    assert rows_written(postgres) == 0


@pytest.mark.parametrize("worker", [True, False], ids=["worker", "command"])
def test_a_commit_is_known_to_have_gone_through_when_only_its_answer_was_lost(opened, lost, postgres, worker):
    store = opened(worker=worker)
    lost(store, lambda _: lose_the_answer(store))
    assert rows_written(postgres) == 1


@pytest.mark.parametrize("worker", [True, False], ids=["worker", "command"])
def test_a_connection_that_was_found_broken_just_before_the_commit_has_kept_nothing(opened, lost, postgres, worker):
    store = opened(worker=worker)
    with pytest.raises(StoreUnusable, match="nothing of it was kept"):
        lost(store, lambda _: store.session.connection.close())
    assert rows_written(postgres) == 0


def test_a_worker_whose_row_is_gone_after_a_lost_commit_has_lost_its_lease(opened, lost, postgres):
    store = opened(worker=True)

    def bury():
        with beside(postgres) as other:
            other.execute("DELETE FROM workers")

    with pytest.raises(LeaseLost, match="nobody knows whether that went through"):
        lost(store, lambda _: lose_the_answer(store, then=bury))
