"""Writing verbs reach the store: through the process that holds it, or by holding it for a moment."""

from __future__ import annotations

import os
import threading
from datetime import UTC, datetime

import pytest

from dispatcher.errors import NotFound, StoreInUse, StoreUnusable, UsageError
from dispatcher.events.limits import Limits
from dispatcher.store.sqlite.lock import socket_path
from dispatcher.store.sqlite.store import SqliteStore
from dispatcher.worker import administration
from dispatcher.worker.administration import Administrator, perform, user_name
from dispatcher.worker.control import ControlServer, WorkerStopping

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "store.db"
    store = SqliteStore.open(path)
    for number in range(3):
        store.connection.execute(
            "INSERT INTO dead_letters (dead_id, kind, reason, detail, body, at) "
            "VALUES (?, 'delivery', 'bad_json', '', x'7b', '2026-01-01T00:00:00.000000Z')",
            (f"dead-{number}",),
        )
    store.close()
    return path


@pytest.fixture
def administrator(path):
    return Administrator(path, Limits())


def audit(path):
    store = SqliteStore.open(path)
    try:
        return store.connection.execute("SELECT actor, verb, target FROM audit").fetchall()
    finally:
        store.close()


def test_without_a_worker_the_command_does_it_itself(path, administrator):
    assert administrator.request("dead.discard", dead="dead-1")["changed"] == 1
    assert audit(path) == [(user_name(), "dead.discard", "dead-1")]


def test_lock_is_given_back_when_the_verb_fails(path, administrator):
    with pytest.raises(NotFound):
        administrator.request("dead.discard", dead="nothing")
    SqliteStore.open(path).close()


def test_with_a_worker_the_worker_does_it(path, administrator):
    store = SqliteStore.open(path)
    server = ControlServer(
        socket_path(path), lambda request: request.reply(perform(store, request.verb, request.args, NOW))
    )
    server.start()
    assert administrator.request("dead.discard", dead="dead-1")["changed"] == 1
    server.stop()
    store.close()
    assert audit(path) == [(user_name(), "dead.discard", "dead-1")]


def test_worker_that_stops_meanwhile_is_waited_for(path, administrator):
    store = SqliteStore.open(path)
    asked = threading.Event()

    def refuse(request):
        request.fail(WorkerStopping("the worker is stopping."))
        asked.set()

    server = ControlServer(socket_path(path), refuse)
    server.start()

    def end():
        asked.wait(5)
        server.stop()
        store.close()

    ending = threading.Thread(target=end)
    ending.start()
    assert administrator.request("dead.discard", dead="dead-1")["changed"] == 1
    ending.join()


def test_store_that_stays_in_use_is_told(path, administrator, monkeypatch):
    monkeypatch.setattr(administration, "_PATIENCE_SECONDS", 0.0)
    store = SqliteStore.open(path)
    with pytest.raises(StoreInUse, match=f"in use by process {os.getpid()}"):
        administrator.request("dead.discard", dead="dead-1")
    store.close()


def test_verb_over_many_rows_goes_page_by_page(administrator, monkeypatch):
    monkeypatch.setattr("dispatcher.store.operations.PAGE", 2)
    assert [told["changed"] for told in administrator.every_page("dead.discard", reason="bad_json")] == [2, 1]


def test_missing_store_is_not_made(tmp_path):
    with pytest.raises(StoreUnusable, match="there is no store at"):
        Administrator(tmp_path / "none.db", Limits()).request("dead.discard", dead="x")
    assert list(tmp_path.iterdir()) == []


def test_actor_is_the_user_of_the_process_whatever_the_environment_says(monkeypatch):
    monkeypatch.setenv("LOGNAME", "somebody-else")
    assert user_name() != "somebody-else"
    monkeypatch.setattr(os, "getuid", lambda: 54321)
    assert user_name() == "uid 54321"


@pytest.mark.parametrize(
    ("verb", "args"),
    [
        ("runs.retry", {"run": "\udcff"}),
        ("runs.retry", {"run": "a\0b"}),
        ("runs.retry", {"state": "failed", "account": "\udcff"}),
        ("runs.cancel", {"run": "x", "actor": "\udcff"}),
        ("dead.discard", {"dead": "dead-1", "why": "\udcff"}),
        ("contacts.erase", {"contact": "\udcff", "account": "acc"}),
        ("dead.replay", {"page": [10**30, 1]}),
        ("dead.replay", {"page": [0, -1]}),
    ],
)
def test_what_no_store_can_look_for_is_refused_and_takes_no_worker_down(path, verb, args):
    store = SqliteStore.open(path)
    with pytest.raises(UsageError):
        perform(store, verb, args, NOW)
    store.close()
