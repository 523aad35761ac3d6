"""`publish`: what is taken, what is told, and where it goes."""

from __future__ import annotations

import json
import sqlite3
import threading
from contextlib import closing

import pytest

from dispatcher.cli import publish
from dispatcher.store.sqlite.lock import StoreLock, socket_path
from dispatcher.store.sqlite.store import SqliteStore
from dispatcher.worker.control import ControlServer, WorkerStopping
from tests.unit.cli.conftest import an_event


def lines(*events) -> bytes:
    return b"".join(event if isinstance(event, bytes) else json.dumps(event).encode() + b"\n" for event in events)


def stored(here, query="SELECT event_id FROM events ORDER BY seq"):
    with closing(sqlite3.connect(here / "store.db")) as connection:
        return [row[0] for row in connection.execute(query)]


def test_a_jsonl_file_is_one_event_a_line(dispatcher, here):
    (here / "events.jsonl").write_bytes(lines(an_event(event_id="a"), b"\n", b"  \r\n", an_event(event_id="b")))
    said = dispatcher("publish", "events.jsonl")
    assert said.code == 0
    assert said.err == "2 stored, 0 duplicates, 0 refused\n"
    assert stored(here) == ["a", "b"]


def test_any_other_file_is_one_event(dispatcher, here):
    (here / "event.json").write_text(json.dumps(an_event(), indent=2))
    assert dispatcher("publish", "event.json").code == 0
    assert stored(here) == ["e1"]


@pytest.mark.parametrize("arguments", [[], ["-"]], ids=["no file", "-"])
def test_stdin_is_one_event_a_line(dispatcher, here, arguments):
    assert dispatcher("publish", *arguments, stdin=lines(an_event(), an_event(event_id="e2"))).code == 0
    assert stored(here) == ["e1", "e2"]


def test_a_last_line_without_its_end_counts(dispatcher, here):
    assert dispatcher("publish", stdin=lines(an_event()).rstrip()).code == 0
    assert stored(here) == ["e1"]


def test_what_cannot_be_read_is_told_by_line_and_code_and_the_rest_is_taken(dispatcher, here):
    said = dispatcher("publish", stdin=lines(an_event(), b"{\n", b"\n", b"\xff\n", an_event(event_id="e2")))
    assert said.code == 1
    assert [line.split(": ")[:2] for line in said.err.splitlines()[:2]] == [
        ["line 2", "bad_json"],
        ["line 4", "bad_utf8"],
    ]
    assert stored(here) == ["e1", "e2"]
    assert stored(here, "SELECT body FROM dead_letters ORDER BY seq") == [b"{", b"\xff"]


def test_json_counts_and_names_what_was_refused(dispatcher):
    said = dispatcher("publish", "--json", stdin=lines(an_event(), an_event(), an_event(event_data={}), b"[]\n"))
    assert said.code == 1
    document = said.document
    assert (document["stored"], document["duplicates"]) == (1, 1)
    assert [(entry["line"], entry["code"]) for entry in document["refused"]] == [
        (3, "id_conflict"),
        (4, "not_an_object"),
    ]


def test_publishing_again_stores_nothing_twice(dispatcher, here):
    dispatcher("publish", stdin=lines(an_event()))
    said = dispatcher("publish", stdin=lines(an_event()))
    assert said.code == 0
    assert "0 stored, 1 duplicates" in said.err
    assert stored(here) == ["e1"]


def test_an_empty_file_is_a_refused_event(dispatcher, here):
    (here / "event.json").write_bytes(b"")
    said = dispatcher("publish", "event.json")
    assert said.code == 1
    assert said.err.startswith("event.json: bad_json: ")


def test_a_body_of_exactly_the_limit_passes_and_one_byte_more_does_not(dispatcher, here):
    event = an_event()
    event["event_data"]["filler"] = ""
    event["event_data"]["filler"] = "x" * (1_048_576 - len(json.dumps(event)))
    (here / "event.json").write_text(json.dumps(event))
    assert dispatcher("publish", "event.json").code == 0
    (here / "event.json").write_text(json.dumps(event) + " ")
    said = dispatcher("publish", "event.json", "--json")
    assert [entry["code"] for entry in said.document["refused"]] == ["too_large"]
    assert stored(here, "SELECT length(body) FROM dead_letters") == [1_048_577]


@pytest.mark.parametrize("name", ["nowhere.jsonl", "."])
def test_what_is_no_file_is_a_usage_error(dispatcher, name):
    assert dispatcher("publish", name).code == 2


def test_a_store_in_a_folder_that_is_not_there_cannot_start(dispatcher):
    said = dispatcher("publish", "--store", "sqlite:///nowhere/store.db", stdin=lines(an_event()))
    assert said.code == 3


class Worker:
    """A process that holds the store, as far as `publish` can tell: first it stops, then it takes."""

    def __init__(self, here):
        self.store = SqliteStore.open(here / "store.db")
        self.asked = []
        self.refusals = 1
        self.server = ControlServer(socket_path(here / "store.db"), self.submit)

    def submit(self, request):
        if self.refusals:
            self.refusals -= 1
            request.fail(WorkerStopping("the worker is stopping."))
            return
        self.asked.append(request)
        request.reply({"receipts": [["stored", "x", None, None] for _ in request.args["bodies"]]})

    def __enter__(self):
        self.server.start()
        return self

    def __exit__(self, *_):
        self.server.stop()
        self.store.close()


def test_with_a_worker_events_go_through_its_socket_and_a_stopping_one_is_asked_again(dispatcher, here):
    with Worker(here) as worker:
        said = dispatcher("publish", stdin=lines(*(an_event(event_id=str(n)) for n in range(600))))
    assert said.code == 0
    assert "600 stored" in said.err
    assert [len(request.args["bodies"]) for request in worker.asked] == [256, 256, 88]


def test_another_process_that_only_holds_the_store_is_waited_for(dispatcher, here):
    SqliteStore.open(here / "store.db").close()
    lock = StoreLock(here / "store.db")
    lock.acquire()
    threading.Timer(0.05, lock.release).start()
    assert dispatcher("publish", stdin=lines(an_event())).code == 0


def test_one_that_never_lets_go_is_told(dispatcher, here, monkeypatch):
    monkeypatch.setattr(publish, "_PATIENCE", 0.05)
    lock = StoreLock(here / "store.db")
    lock.acquire()
    said = dispatcher("publish", stdin=lines(an_event()))
    lock.release()
    assert said.code == 3
    assert "another process holds the store" in said.err
