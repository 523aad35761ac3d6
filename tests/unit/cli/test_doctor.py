"""`doctor`: what is wrong, what is worth a look, and when it says so by its exit code."""

from __future__ import annotations

import json
import socket
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from dispatcher.cli import database, doctor
from dispatcher.engine.records import as_text
from dispatcher.store.postgres import migrate
from dispatcher.store.sqlite.lock import socket_path
from dispatcher.store.sqlite.store import SqliteStore
from dispatcher.worker.control import ControlServer
from tests.unit.cli.conftest import an_event


def finding(said, area):
    return next(found for found in said.document["findings"] if found["area"] == area)


def test_before_the_first_run_nothing_is_wrong(dispatcher):
    said = dispatcher("doctor", "--json")
    assert said.code == 0
    assert said.document["healthy"] is True
    assert finding(said, "store")["level"] == "look"
    assert finding(said, "rulebook")["level"] == "ok"


def test_a_store_is_counted_and_found_sound(dispatcher):
    dispatcher("publish", stdin=json.dumps(an_event(event_id=None)).encode() + b"\n{\n")
    said = dispatcher("doctor", "--json")
    assert said.code == 0
    assert said.document["counts"]["events"] == {"new": 1}
    assert said.document["counts"]["dead_letters"] == {"bad_json": 1}
    assert finding(said, "store")["message"].endswith("sound")
    assert finding(said, "weak events")["level"] == "look"
    assert "dispatcher dead list" in finding(said, "dead letters")["hint"]


def test_people_see_marks_and_areas(dispatcher):
    said = dispatcher("doctor")
    assert "ok     worker" in said.out
    assert max(len(line) for line in said.out.splitlines()) <= 80


ONE_WAITS = "1 message (the oldest since 2026-11-21 00:00:00 UTC) waits"


@pytest.fixture
def waiting_message(dispatcher, here):
    """A message in the outbox of the store."""
    dispatcher("publish", stdin=json.dumps(an_event()).encode())
    with closing(sqlite3.connect(here / "store.db")) as connection:
        connection.execute(
            "INSERT INTO outbox (destination, body, message_id, state, not_before, at)"
            " VALUES ('amqp:vumi/sms.outbound', '{}', 'm1', 'ready', '2026-11-21', '2026-11-21')"
        )
        connection.commit()


def test_messages_for_a_broker_wait_as_long_as_none_is_configured(dispatcher, waiting_message):
    waits = finding(dispatcher("doctor", "--json"), "outbox")
    assert waits["level"] == "look"
    assert waits["message"] == f"{ONE_WAITS} for a broker, and none is configured"
    assert "DISPATCHER_AMQP_URL" in waits["hint"]


def test_with_a_broker_they_wait_for_it(dispatcher, waiting_message):
    said = dispatcher("doctor", "--json", "--amqp", "amqp://127.0.0.1:1")
    assert said.code == 1
    assert finding(said, "outbox")["message"] == f"{ONE_WAITS} to be published"
    assert finding(said, "broker")["level"] == "wrong"


def test_what_the_broker_does_not_take_and_what_is_held_is_told(dispatcher, waiting_message, here):
    with closing(sqlite3.connect(here / "store.db")) as connection:
        connection.execute("UPDATE outbox SET error = 'unroutable: 312 NO_ROUTE'")
        connection.execute(
            "INSERT INTO outbox (destination, body, message_id, state, not_before, at)"
            " VALUES ('amqp:vumi/sms.outbound', '{}', 'm2', 'held', '2026-11-21', '2026-11-21')"
        )
        connection.commit()
    document = dispatcher("doctor", "--json").document
    told = [found["message"] for found in document["findings"] if found["area"] == "outbox"]
    assert told[1:] == [
        "1 is not taken by the broker: amqp:vumi/sms.outbound: unroutable: 312 NO_ROUTE",
        "1 may have been published or not; a person is to say",
    ]
    hint = next(found["hint"] for found in document["findings"] if "not taken" in found["message"])
    assert hint.startswith("No queue is bound to the exchange vumi with the key sms.outbound: the Vumi transport")
    assert document["counts"]["outbox_held"] == 1
    assert document["counts"]["outbox_refused"] == {"amqp:vumi/sms.outbound: unroutable: 312 NO_ROUTE": 1}


def test_a_damaged_store_is_wrong(dispatcher, here):
    (here / "store.db").write_bytes(b"this is no database, whatever its name says" * 100)
    said = dispatcher("doctor", "--json")
    assert said.code == 1
    assert finding(said, "store")["level"] == "wrong"


def test_a_broken_rulebook_is_wrong(dispatcher, here):
    (here / "rulebook.yaml").write_text("version: 1\nchain: []\n")
    said = dispatcher("doctor", "--json")
    assert said.code == 1
    assert "unknown_key" in finding(said, "rulebook")["message"]


def test_a_misspelt_variable_is_wrong(dispatcher, monkeypatch):
    monkeypatch.setenv("DISPATCHER_STOER", "x")
    said = dispatcher("doctor", "--json")
    assert said.code == 1
    assert "DISPATCHER_STORE" in finding(said, "settings")["message"]


def test_too_little_room_is_wrong(dispatcher, monkeypatch):
    monkeypatch.setenv("DISPATCHER_MIN_FREE_MB", "999999999")
    assert finding(dispatcher("doctor", "--json"), "disk")["level"] == "wrong"


def test_the_quick_examination_wants_a_worker(dispatcher):
    said = dispatcher("doctor", "--quick")
    assert said.code == 1
    assert "none runs" in said.out


@pytest.mark.parametrize("answers", [True, False])
def test_a_worker_must_answer(dispatcher, here, monkeypatch, answers):
    monkeypatch.setattr(doctor, "_PATIENCE", 0.05)
    store = SqliteStore.open(here / "store.db")
    server = ControlServer(socket_path(here / "store.db"), lambda request: request.reply({}) if answers else None)
    server.start()
    said = dispatcher("doctor", "--quick")
    server.stop()
    store.close()
    assert said.code == (0 if answers else 1)


def test_a_process_that_holds_the_store_without_listening_is_named(dispatcher, here):
    store = SqliteStore.open(here / "store.db")
    said = dispatcher("doctor", "--json")
    store.close()
    assert said.code == 0
    assert finding(said, "worker")["level"] == "look"


# A store in PostgreSQL.


@pytest.fixture
def shared(postgres, monkeypatch):
    """A store in a database, and what writes to it."""
    migrate.upgrade(postgres)
    monkeypatch.setenv("DISPATCHER_STORE", postgres)
    with psycopg.connect(postgres, autocommit=True) as connection:
        yield connection


def join(connection, name, host, seen_ago):
    seen = datetime.now(UTC) - timedelta(seconds=seen_ago)
    connection.execute(
        "INSERT INTO workers (name, host, pid, started_at, seen_at) VALUES (%s, %s, 7, %s, %s)",
        (name, host, as_text(seen), as_text(seen)),
    )


def test_before_the_first_run_a_database_is_only_worth_a_look(dispatcher, postgres, monkeypatch):
    monkeypatch.setenv("DISPATCHER_STORE", postgres)
    said = dispatcher("doctor", "--json")
    assert said.code == 0
    assert finding(said, "store")["level"] == "look"
    assert "there is none yet" in finding(said, "store")["message"]


def test_a_store_in_a_database_is_counted_and_its_server_examined(dispatcher, shared):
    join(shared, "north", "elsewhere", 1)
    join(shared, "south", "elsewhere", 3600)
    said = dispatcher("doctor", "--json")
    assert said.document["store"]["server_version"] == shared.info.parameter_status("server_version")
    assert [worker["name"] for worker in said.document["store"]["workers"]] == ["north", "south"]
    told = [found["message"] for found in said.document["findings"] if found["area"] == "worker"]
    assert told[0].startswith("1 alive: north (elsewhere, pid 7, seen ")
    assert told[1].startswith("silent for too long: south (elsewhere, pid 7, seen 60 min ago)")
    assert finding(said, "partitions")["level"] == "ok"
    assert finding(said, "connections")["level"] == "ok"
    assert finding(said, "clock")["level"] == "ok"
    assert said.document["counts"]["events"] == {}


def test_a_server_that_loses_commits_in_a_crash_is_wrong(dispatcher, shared):
    (fsync,) = shared.execute("SHOW fsync").fetchone()
    said = dispatcher("doctor", "--json")
    # The tests' own server is such a one.
    assert finding(said, "server")["level"] == ("wrong" if fsync == "off" else "ok")
    assert ("fsync off" in finding(said, "server")["message"]) is (fsync == "off")
    assert said.code == (1 if fsync == "off" else 0)


def test_days_without_a_partition_are_wrong(dispatcher, shared):
    for (name,) in shared.execute("SELECT relname FROM pg_class WHERE relname LIKE 'steps\\_p%' AND relkind = 'r'"):
        shared.execute(f"DROP TABLE {name}")
    found = finding(dispatcher("doctor", "--json"), "partitions")
    assert found["level"] == "wrong"
    assert found["message"].count("steps_p") == 2
    assert "events_p" not in found["message"]


def test_a_transaction_that_somebody_left_open_is_told(dispatcher, shared, postgres, monkeypatch):
    monkeypatch.setattr(database, "_LONG_IDLE_SECONDS", 0)
    with psycopg.connect(postgres) as other:
        other.execute("SELECT 1")
        said = dispatcher("doctor", "--json")
    assert "has been idle for" in finding(said, "transactions")["message"]


def test_a_health_check_wants_a_worker_on_its_own_machine(dispatcher, shared):
    join(shared, "north", "elsewhere", 1)
    said = dispatcher("doctor", "--quick")
    assert said.code == 1
    assert "none runs on this machine" in said.out
    join(shared, "south", socket.gethostname(), 61)
    assert dispatcher("doctor", "--quick").code == 1
    join(shared, "here", socket.gethostname(), 1)
    said = dispatcher("doctor", "--quick")
    assert (said.code, said.out.split()[:3]) == (0, ["ok", "worker", "here"])


@pytest.mark.parametrize("arguments", [["--json"], ["--json", "--quick"]])
def test_a_server_that_cannot_be_reached_is_wrong_and_no_password_is_shown(dispatcher, arguments):
    said = dispatcher("doctor", *arguments, "--store", "postgresql://me:s3cret@127.0.0.1:1/db")
    assert said.code == 1
    assert finding(said, "store")["message"].startswith("the store postgresql://me:***@127.0.0.1:1/db cannot be used")
    assert "s3cret" not in said.out + said.err


def test_where_workers_keep_their_notes_must_be_a_folder(dispatcher, shared, monkeypatch, here):
    assert finding(dispatcher("doctor", "--json"), "state")["level"] == "ok"
    (here / "notes").touch()
    monkeypatch.setenv("DISPATCHER_STATE", "notes")
    found = finding(dispatcher("doctor", "--json"), "state")
    assert (found["level"], found["hint"]) == ("wrong", "DISPATCHER_STATE names the folder.")


def test_the_disk_of_a_server_is_its_own_business(dispatcher, shared, monkeypatch):
    monkeypatch.setenv("DISPATCHER_MIN_FREE_MB", "999999999")
    assert "disk" not in [found["area"] for found in dispatcher("doctor", "--json").document["findings"]]
