"""The verbs over what the store holds: lists that fit, stories, JSON, and what is done about what did not go well."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from datetime import UTC, datetime
from typing import get_args

import psycopg
import pytest

from dispatcher.cli import contacts, dead, events, messages, runs
from dispatcher.engine import records
from dispatcher.plugins.context import MessageState
from dispatcher.settings import load_settings
from dispatcher.store import operations
from dispatcher.store.sqlite.lock import socket_path
from dispatcher.store.sqlite.store import SqliteStore
from dispatcher.worker.administration import perform
from dispatcher.worker.control import ControlServer
from tests.unit.cli.conftest import an_event

BAD_NUMBER = {"msisdn": "12", "name": "x", "consent": "yes"}


@pytest.fixture
def drained(dispatcher, here):
    """Publish events and run them; without any: one that goes well, one that fails, and a body that is no event."""

    def drain(*bodies):
        given = bodies or (an_event(), an_event(event_id="e2", event_data=BAD_NUMBER), b"{")
        lines = b"".join(body if isinstance(body, bytes) else json.dumps(body).encode() for body in _lines(given))
        dispatcher("publish", stdin=lines)
        said = dispatcher("run", "--drain")
        assert said.code == 0, said.err
        return dispatcher

    return drain


def _lines(bodies):
    for body in bodies:
        yield from (body, b"\n")


@pytest.fixture(params=["sqlite", "postgres"])
def here(request, here, monkeypatch):
    """The folder that the verbs run in; the store is a file in it, or a database that has a store already."""
    if request.param == "postgres":
        monkeypatch.setenv("DISPATCHER_STORE", request.getfixturevalue("postgres_place").url)
    return here


# What is about the file, or about what only goes with one.
in_a_file = pytest.mark.parametrize("here", ["sqlite"], indirect=True)


@pytest.fixture
def empty(here):
    """See that there is a store, without a row."""
    if load_settings().store_kind == "sqlite":
        SqliteStore.open(here / "store.db").close()


def change(here, statement, *values):
    settings = load_settings()
    if settings.store_kind == "sqlite":
        with closing(sqlite3.connect(here / "store.db", isolation_level=None)) as connection:
            connection.execute(statement, values)
    else:
        with psycopg.connect(settings.store_url(), autocommit=True) as connection:
            connection.execute(statement.replace("?", "%s"), values)


LISTS = ("events list", "runs list", "dead list", "contacts list", "messages list")


@pytest.mark.parametrize("verb", LISTS)
def test_every_list_is_one_json_document_and_a_table_of_80_columns(drained, verb):
    dispatcher = drained()
    document = dispatcher(*verb.split(), "--json").document
    assert isinstance(document, list)
    assert document
    table = dispatcher(*verb.split())
    assert table.code == 0
    lines = table.out.splitlines()
    assert len(lines) == len(document) + 1
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("verb", LISTS)
def test_empty_list_is_an_empty_document_and_a_word_on_stderr(dispatcher, empty, verb):
    assert dispatcher(*verb.split(), "--json").document == []
    said = dispatcher(*verb.split())
    assert (said.code, said.out) == (0, "")
    assert said.err.startswith("no ")


@in_a_file
@pytest.mark.parametrize("verb", [*LISTS, "events show x", "runs retry x", "dead replay x", "contacts erase x --yes"])
def test_without_a_store_nothing_is_made(dispatcher, here, verb):
    said = dispatcher(*verb.split())
    assert said.code == 3
    assert f"there is no store at {here}/store.db" in said.err
    assert "makes one" in said.err
    assert not (here / "store.db").exists()


@in_a_file
@pytest.mark.parametrize("verb", LISTS)
def test_a_server_that_cannot_be_reached_is_told_without_its_password(dispatcher, verb):
    said = dispatcher(*verb.split(), "--store", "postgresql://me:s3cret@127.0.0.1:1/db")
    assert (said.code, said.out) == (3, "")
    assert "the store postgresql://me:***@127.0.0.1:1/db cannot be used" in said.err
    assert "s3cret" not in said.err


@pytest.mark.parametrize(
    "verb",
    ["events show x", "events replay x", "runs show x", "runs retry x", "runs cancel x", "dead show x",
     "dead replay x", "dead discard x", "contacts show x", "contacts erase x --yes", "messages show x"],
)  # fmt: skip
def test_what_is_not_there_is_told(dispatcher, empty, verb):
    said = dispatcher(*verb.split())
    assert (said.code, said.out) == (1, "")
    assert "'x'" in said.err


def test_limit_keeps_the_newest_and_tells_of_the_rest(drained):
    dispatcher = drained(*(an_event(event_id=f"n{number}") for number in range(60)))
    assert len(dispatcher("events", "list", "--json").document) == 50
    assert len(dispatcher("events", "list", "--json", "--limit", 0).document) == 60
    said = dispatcher("events", "list", "--limit", 2)
    assert [line.split()[2] for line in said.out.splitlines()[1:]] == ["n58", "n59"]
    assert said.err == "the newest 2 of 60 events; --limit says how many, 0 for all\n"


def test_filters_reach_the_store(drained):
    dispatcher = drained()
    assert [row["event_id"] for row in dispatcher("runs", "list", "--state", "failed", "--json").document] == ["e2"]
    assert dispatcher("events", "list", "--type", "ussd", "--json").document == []
    assert dispatcher("events", "list", "--since", "1h", "--event-type", "poll_complete", "--json").document
    assert dispatcher("events", "list", "--since", "2200-01-01", "--json").document == []
    assert len(dispatcher("contacts", "list", "--msisdn", "082-123-4567", "--json").document) == 1
    assert len(dispatcher("messages", "list", "--to", "0821234567", "--state", "queued", "--json").document) == 1
    assert [row["kind"] for row in dispatcher("dead", "list", "--reason", "bad_json", "--json").document] == [
        "delivery"
    ]


@pytest.mark.parametrize(
    "arguments",
    ["events list --since yesterday", "events list --state lost", "runs list --limit -1", "runs retry",
     "runs retry r --state failed", "dead replay", "dead discard d --all", "runs resolve r", "dead list --kind x"],
)  # fmt: skip
def test_arguments_that_make_no_sense_are_a_usage_error(dispatcher, empty, arguments):
    said = dispatcher(*arguments.split())
    assert (said.code, said.out) == (2, "")


def test_story_of_an_event_reads_from_top_to_bottom(drained):
    dispatcher = drained()
    said = dispatcher("events", "show", "e1")
    for part in ("event_id", "poll_complete", "welcome: done", "create_contact", "+27821234567", "Thanks!"):
        assert part in said.out
    story = dispatcher("events", "show", "e1", "--json").document
    assert [step["state"] for step in story["runs"][0]["steps"]] == ["done", "done"]
    assert "bad param" in dispatcher("events", "show", "e2").out


def test_run_and_message_and_contact_are_shown_by_what_the_lists_show(drained):
    dispatcher = drained()
    run = dispatcher("runs", "list").out.splitlines()[1].split()[2]
    assert dispatcher("runs", "show", run, "--json").document["run_id"].endswith(run)
    assert "create_contact" in dispatcher("runs", "show", run).out
    message = dispatcher("messages", "list").out.splitlines()[1].split()[2]
    assert dispatcher("messages", "show", message, "--json").document["content"] == "Thanks!"
    assert "Thanks!" in dispatcher("messages", "show", message).out
    assert dispatcher("contacts", "show", "0821234567", "--json").document["name"] == "Thandi"
    assert "Thanks!" in dispatcher("contacts", "show", "0821234567").out


def test_dead_letter_is_shown_with_its_body_as_it_came(drained):
    dispatcher = drained(b"{\x1b[2J", b"\xff\xfe\x00", b'"' + b"x" * 9000)
    found = dispatcher("dead", "list", "--json").document
    assert found[0]["body"] == "{\x1b[2J"
    assert found[1]["body_encoding"] == "base64"
    shown = [dispatcher("dead", "show", letter["dead_id"]).out for letter in found]
    assert "{\\x1b[2J" in shown[0]
    assert "\\xff\\xfe" in shown[1]
    assert "… and 5,001 more characters" in shown[2]


@in_a_file
def test_text_of_strangers_moves_no_terminal(drained):
    evil = "a\x1b]0;owned\x07\u202eb\x9b2J\nc"
    dispatcher = drained(an_event(conversation_key=evil, event_data={"msisdn": "0821234567", "name": evil}))
    for verb in (
        "events list",
        "events show e1",
        "runs list",
        "dead list",
        "events list --json",
        "events show e1 --json",
    ):
        out = dispatcher(*verb.split()).out
        assert not set(out) & set("\x1b\x07\x9b\u202e"), verb
    assert dispatcher("events", "show", "e1", "--json").document["conversation_key"] == evil


@in_a_file
def test_wide_and_combining_characters_keep_the_columns_straight(drained):
    dispatcher = drained(an_event(account_key="診療所"), an_event(event_id="e5", account_key="Zoë"))
    first, second = dispatcher("events", "list").out.splitlines()[1:]
    assert first.index("vxpolls") + 3 == second.index("vxpolls")


def test_run_that_failed_is_retried_once_for_each_time_it_is_asked(drained):
    dispatcher = drained()
    run_id = dispatcher("runs", "list", "--state", "failed", "--json").document[0]["run_id"]
    said = dispatcher("runs", "retry", run_id)
    assert (said.code, said.out) == (0, f"run {run_id} is due now\n")
    said = dispatcher("runs", "retry", run_id)
    assert said.code == 1
    assert "is ready: there is nothing to retry" in said.err
    assert "It is due already." in said.err


def test_many_runs_are_retried_by_chain(drained):
    dispatcher = drained(*(an_event(event_id=f"n{number}", event_data=BAD_NUMBER) for number in range(3)))
    assert dispatcher("runs", "retry", "--chain", "welcome").out == "3 runs due now\n"
    assert dispatcher("runs", "retry", "--chain", "welcome").out == "0 runs due now\n"


def test_run_is_cancelled_and_resolved_only_where_that_means_something(drained, here):
    dispatcher = drained()
    run_id = dispatcher("runs", "list", "--state", "done", "--json").document[0]["run_id"]
    assert "is done already" in dispatcher("runs", "cancel", run_id).err
    assert "no outcome of it is unknown" in dispatcher("runs", "resolve", run_id, "--sent").err
    change(here, "UPDATE runs SET state = 'waiting' WHERE run_id = ?", run_id)
    assert dispatcher("runs", "cancel", run_id).out == f"run {run_id} is cancelled\n"


def test_event_is_replayed_with_again_only_once_it_is_done(drained):
    dispatcher = drained()
    said = dispatcher("events", "replay", "e1")
    assert said.code == 1
    assert "--again" in said.err
    assert dispatcher("events", "replay", "e1", "--again").out == "event e1 is matched anew, as generation 2\n"
    assert dispatcher("run", "--drain").code == 0
    story = dispatcher("events", "show", "e1", "--json").document
    assert [run["generation"] for run in story["runs"]] == [1, 2]


def test_dead_letters_are_replayed_discarded_and_left_with_their_why(drained):
    dispatcher = drained()
    said = dispatcher("dead", "replay", "--all")
    assert said.code == 1
    assert said.out == "1 dead letter replayed\n"
    assert "1 left alone" in said.err
    assert "refused again: bad_json" in said.err
    (letter,) = dispatcher("dead", "list", "--json").document
    assert dispatcher("dead", "discard", letter["dead_id"], "--reason", "a test").code == 0
    assert dispatcher("dead", "list", "--json").document == []
    assert len(dispatcher("dead", "list", "--all", "--json").document) == 2
    assert dispatcher("dead", "discard", "--kind", "delivery").out == "0 dead letters discarded\n"


@in_a_file
def test_person_is_erased_from_the_files(drained, here):
    dispatcher = drained()
    said = dispatcher("contacts", "erase", "082 123 4567", "--account", "acc1", "--yes")
    assert said.code == 0
    assert said.out.startswith("the person is erased: ")
    for path in here.glob("store.db*"):
        assert b"821234567" not in path.read_bytes(), path.name
    assert dispatcher("contacts", "list", "--json").document == []
    again = dispatcher("contacts", "erase", "082 123 4567", "--account", "acc1", "--yes")
    assert again.code == 1
    assert '"+"' in again.err


def test_a_script_that_erases_is_not_asked(drained):
    dispatcher = drained()
    assert dispatcher("contacts", "erase", "0821234567").out.startswith("the person is erased: ")
    assert dispatcher("contacts", "list", "--json").document == []


@in_a_file
def test_whoever_sits_at_a_terminal_is_asked_before_a_person_is_erased(drained, monkeypatch):
    dispatcher = drained()
    monkeypatch.setattr("dispatcher.cli.listing._asks", lambda: True)
    said = dispatcher("contacts", "erase", "0821234567", stdin=b"n\n")
    assert said.code == 1
    assert "Erase 0821234567 for good?" in said.err
    assert len(dispatcher("contacts", "list", "--json").document) == 1
    assert dispatcher("contacts", "erase", "0821234567", stdin=b"y\n").code == 0
    assert dispatcher("contacts", "list", "--json").document == []


def test_what_was_changed_is_told_in_json_too(drained):
    dispatcher = drained()
    run_id = dispatcher("runs", "list", "--state", "failed", "--json").document[0]["run_id"]
    (delivery,) = dispatcher("dead", "list", "--kind", "delivery", "--json").document
    said = dispatcher("dead", "replay", "--all", "--json")
    assert said.code == 1
    assert said.document["changed"] == len(said.document["ids"]) == 1
    assert said.document["message"] == "1 dead letter replayed"
    assert [entry["id"] for entry in said.document["left"]] == [delivery["dead_id"]]
    told = {"changed": 1, "ids": [run_id], "message": f"run {run_id} is cancelled", "left": []}
    assert dispatcher("runs", "cancel", run_id, "--json").document == told
    assert dispatcher("runs", "retry", run_id, "--json").document["ids"] == [run_id]
    assert dispatcher("runs", "retry", "--chain", "welcome", "--json").document["ids"] == []
    assert dispatcher("dead", "discard", delivery["dead_id"], "--json").document["ids"] == [delivery["dead_id"]]
    assert dispatcher("events", "replay", "e1", "--again", "--json").document["ids"] == ["e1"]


def test_story_tells_what_makes_a_run_go_on(drained, here):
    dispatcher = drained()
    run_id = dispatcher("runs", "list", "--state", "failed", "--json").document[0]["run_id"]
    for state, due, told in (
        ("failed", None, "`dispatcher runs retry"),
        ("waiting", "2099-01-02T03:04:05.000000Z", "Waits until 2099-01-02 03:04:05."),
        ("retrying", "2099-01-02T03:04:05.000000Z", "Tried again at 2099-01-02 03:04:05."),
        ("ready", "2020-01-02T03:04:05.000000Z", "Due since 2020-01-02 03:04:05"),
    ):
        change(here, "UPDATE runs SET state = ?, due_at = ? WHERE run_id = ?", state, due, run_id)
        assert told in dispatcher("runs", "show", run_id).out
    change(here, "UPDATE runs SET state = 'held', error = 'cannot_bind: gone', due_at = NULL WHERE run_id = ?", run_id)
    assert "cannot_bind: gone" in dispatcher("runs", "show", run_id).out
    assert "`dispatcher runs retry" in dispatcher("runs", "show", run_id).out
    change(here, "UPDATE steps SET state = 'unknown'")
    for state in ("held", "cancelled"):
        change(here, "UPDATE runs SET state = ? WHERE run_id = ?", state, run_id)
        told = dispatcher("runs", "show", run_id).out
        assert f"`dispatcher runs resolve {run_id} --sent`, or `--not-sent`" in " ".join(told.split())
        assert "runs retry" not in told


PUBLISH = (
    "INSERT INTO outbox (seq, destination, body, message_id, state, not_before, run_id, step, at, error)"
    " SELECT 1, 'amqp:vumi/sms.outbound', '{}', message_id, ?, at, run_id, 'sms', '2026-11-21T00:00:00Z', ?"
    " FROM messages"
)


def test_run_whose_publish_nobody_knows_of_is_resolved_and_not_retried(drained, here):
    dispatcher = drained()
    run_id = dispatcher("runs", "list", "--state", "done", "--json").document[0]["run_id"]
    change(here, PUBLISH, "held", "the connection was lost")
    change(here, "UPDATE runs SET state = 'held' WHERE run_id = ?", run_id)
    change(
        here,
        "INSERT INTO dead_letters (dead_id, kind, reason, event_id, run_id, at, state, detail)"
        " VALUES ('d1', 'run', 'unknown', 'e1', ?, '2026-11-21', 'open', 'lost')",
        run_id,
    )
    for words in (("runs", "show", run_id), ("events", "show", "e1"), ("dead", "show", "d1")):
        told = " ".join(dispatcher(*words).out.split())
        assert "Nobody knows whether what sms published went out." in told
        assert f"`dispatcher runs resolve {run_id} --sent`, or `--not-sent`" in told
        assert "runs retry" not in told


def test_message_that_waits_tells_why_and_since_when(drained, here):
    dispatcher = drained()
    message_id = dispatcher("messages", "list", "--json").document[0]["message_id"]
    assert dispatcher("messages", "show", message_id, "--json").document["outbox"] is None
    change(here, PUBLISH, "ready", None)
    told = " ".join(dispatcher("messages", "show", message_id).out.split())
    assert "Waits since 2026-11-21 00:00:00 UTC to be published to vumi/sms.outbound; the worker" in told
    change(here, "UPDATE outbox SET error = 'unroutable: 312 NO_ROUTE'")
    told = " ".join(dispatcher("messages", "show", message_id).out.split())
    assert "vumi/sms.outbound: unroutable: 312 NO_ROUTE. No queue is bound to the exchange vumi with the key" in told
    change(here, "UPDATE outbox SET state = 'held'")
    told = " ".join(dispatcher("messages", "show", message_id).out.split())
    assert "Nobody knows whether it was published" in told
    assert "--not-sent`, ends the hold" in told


def test_error_of_a_message_has_a_column_of_its_own_where_there_is_one(drained, here):
    dispatcher = drained()
    assert "ERROR" not in dispatcher("messages", "list").out
    change(here, "UPDATE messages SET error = 'no credit'")
    title, line = dispatcher("messages", "list").out.splitlines()
    assert title.split()[-2:] == ["TEXT", "ERROR"]
    assert line.split()[-3:] == ["Thanks!", "no", "credit"]


def test_story_numbers_steps_and_tells_every_attempt_with_its_reason_and_time(drained, here):
    dispatcher = drained()
    run_id = dispatcher("runs", "list", "--state", "done", "--json").document[0]["run_id"]
    change(
        here,
        "INSERT INTO steps (run_seq, position, attempt, step, handler, state, result, error, started_at, finished_at, "
        "received_on) SELECT run_seq, position, 2, step, handler, 'failed', NULL, 'busy', "
        "'2026-01-01T00:00:00.000000Z', '2026-01-02T00:00:05.000000Z', received_on FROM steps "
        "WHERE step = 'contact' AND state = 'done'",
    )
    lines = dispatcher("runs", "show", run_id).out.splitlines()
    assert any(line.startswith("   1. contact (create_contact): done, ") for line in lines)
    at = lines.index("   1. contact (create_contact): failed, attempt 2, 01-01 00:00:00 to 01-02")
    assert lines[at + 1 : at + 3] == ["       00:00:05", "       busy"]
    assert any(line.startswith("   2. send_sms: done, ") for line in lines)
    assert max(map(len, lines)) <= 80


def test_unmatched_event_says_how_to_learn_why(drained):
    dispatcher = drained()
    dispatcher("publish", stdin=json.dumps(an_event(event_id="e7", event_type="unheard")).encode())
    assert "`dispatcher run`" in dispatcher("events", "show", "e7").err


@in_a_file
def test_writing_verbs_go_through_the_worker_that_runs(drained, here):
    dispatcher = drained()
    store = SqliteStore.open(here / "store.db")
    asked = []

    def answer(request):
        asked.append(request)
        threading.Thread(
            target=lambda: request.reply(perform(store, request.verb, request.args, datetime.now(UTC)))
        ).start()

    server = ControlServer(socket_path(store.path), answer)
    server.start()
    try:
        assert dispatcher("events", "replay", "e2").code == 0
        assert dispatcher("events", "list", "--json").document
    finally:
        server.stop()
        store.close()
    assert [request.verb for request in asked] == ["events.replay"]


@in_a_file
def test_whoever_sits_at_a_terminal_is_asked_before_many_rows_change(drained, monkeypatch):
    dispatcher = drained(b"{", b"[")
    monkeypatch.setattr("dispatcher.cli.listing._asks", lambda: True)
    said = dispatcher("dead", "discard", "--all", stdin=b"n\n")
    assert said.code == 1
    assert "Discard 2 dead letters?" in said.err
    assert len(dispatcher("dead", "list", "--json").document) == 2
    assert dispatcher("dead", "discard", "--all", stdin=b"y\n").out.strip() == "2 dead letters discarded"
    assert dispatcher("dead", "discard", "--all", "--yes").code == 0


@in_a_file
def test_flags_before_the_verb_are_those_of_the_verb(drained, here, monkeypatch):
    dispatcher = drained()
    monkeypatch.delenv("DISPATCHER_STORE")
    assert dispatcher("--store", "sqlite:///store.db", "events", "list", "--json").document
    assert dispatcher("events", "list", "--store", "sqlite:///store.db", "--json").document


def test_states_of_the_options_are_those_of_the_engine():
    assert get_args(events.State) == get_args(records.EventState)
    assert get_args(runs.State) == get_args(records.RunState)
    assert get_args(runs.Retryable) == operations.RETRYABLE
    assert get_args(dead.Kind) == get_args(records.DeadKind)
    assert get_args(messages.State) == get_args(MessageState)


@pytest.mark.parametrize("module", [events, runs, dead, contacts, messages])
def test_asking_for_help_imports_no_database(module):
    script = f"import sys, {module.__name__}; sys.exit('sqlalchemy' in sys.modules or 'pydantic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
