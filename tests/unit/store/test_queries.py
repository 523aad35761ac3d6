"""What lists and stories show: every column, plain JSON, the newest that fit, and only what was asked for."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from dispatcher import Done, Failed, RetryLater
from dispatcher.errors import NotFound, NotPossible
from dispatcher.store import queries
from dispatcher.store.reading import open_reader
from dispatcher.worker.administration import perform

RULES = """
chains:
  - name: welcome
    on: {event_type: done}
    steps:
      - id: contact
        handler: create_contact
        with: {msisdn: "{{ data.msisdn }}", name: Zoë, groups: [a], extra: {k: 1}}
      - {handler: send_sms, when: data.quiet is not defined, with: {to: "{{ data.msisdn }}", text: hi}}
      - {id: last, handler: scripted, retry: {attempts: 2}}
      - {handler: emit_event, with: {event_type: welcomed, event_data: {n: 1}}}
  - name: other
    on: {event_type: more}
    steps: [{handler: scripted}]
"""
COLUMNS = {
    "events": "event_id account_key conversation_key conversation_type event_type event_data timestamp received_at "
    "source subject root_id parent_id hops rulebook_digest state",
    "runs": "run_id event_id account_key chain chain_digest key generation state step attempt due_at error "
    "lease_token started_at finished_at",
    "steps": "run_id step handler attempt state result error started_at finished_at",
    "dead_letters": "dead_id kind reason detail account_key event_id run_id body at",
    "contacts": "contact_key account_key msisdn name surname email_address language groups subscription extra "
    "created_at updated_at",
    "messages": "message_id account_key to_addr from_addr content segments encoding sender state gateway_id error "
    "event_id run_id step at",
}


@pytest.fixture
def ask(world):
    """Ask one query over the store as it is now; a listing comes as its rows and their total."""

    def asked(name, *args, **filters):
        with open_reader(world.place.source) as connection:
            found = getattr(queries, name)(connection, *args, **filters)
            return (list(found.rows), found.total) if isinstance(found, queries.Listing) else found

    return asked


@pytest.fixture
def full(world):
    """Hold a few events: done, failed, unmatched, refused."""
    world.rules(RULES)
    world.publish(event_id="e1", event_data={"msisdn": "0821234567"}, extra_key=[1])
    world.clock.advance(timedelta(minutes=1))
    world.script[:] = [Failed("it broke")]
    world.publish(event_id="e2", event_data={"msisdn": "+27839999999", "quiet": True}, account_key="acc2")
    world.clock.advance(timedelta(minutes=1))
    world.publish(event_id="e3", event_type="unheard", conversation_key="conv3", conversation_type="ussd")
    world.publish(b"{", b"\xff\xfe")
    return world


def ids(found, key="event_id"):
    return [row[key] for row in found[0]]


def test_rows_have_the_columns_of_the_design(full, ask):
    story = ask("show_event", "e1")
    rows = {
        "events": story,
        "runs": story["runs"][0],
        "steps": story["runs"][0]["steps"][0],
        "messages": story["messages"][0],
        "dead_letters": ask("list_dead_letters")[0][0],
        "contacts": ask("list_contacts")[0][0],
    }
    for table, row in rows.items():
        assert set(COLUMNS[table].split()) <= set(row), table
        assert not {"seq", "event_seq", "run_seq"} & set(row)
        json.dumps(row)


def test_values_are_json_and_not_its_text(full, ask):
    event = ask("list_events")[0][0]
    assert event["event_data"] == {"msisdn": "0821234567"}
    assert event["extra"] == {"extra_key": [1]}
    assert event["weak"] is False
    contact = ask("list_contacts")[0][0]
    assert (contact["groups"], contact["subscription"], contact["extra"]) == (["a"], {}, {"k": 1})
    run = ask("show_run", ids(ask("list_runs"), "run_id")[0])
    assert run["steps"][0]["result"]["name"] == "Zoë"


def test_times_are_iso_8601_in_utc(full, ask):
    event = ask("list_events")[0][0]
    for name in ("received_at", "timestamp"):
        assert event[name].endswith("Z")
        assert datetime.fromisoformat(event[name]).utcoffset() == timedelta(0)


def test_newest_rows_come_and_stand_in_order_of_time(full, ask):
    everything = ask("list_events")
    assert ids(everything)[-1] == "e3"
    assert everything[1] == 4
    assert all(a["received_at"] <= b["received_at"] for a, b in pairwise(everything[0]))
    newest = ask("list_events", limit=2)
    assert ids(newest) == ids(everything)[-2:]
    assert newest[1] == 4


def test_limit_counts_what_fits_the_filters(full, ask):
    full.publish(
        *({"event_id": f"n{number}", "event_type": "x", "account_key": f"a{number % 2}"} for number in range(6))
    )
    assert ids(ask("list_events", account="a0", limit=2)) == ["n2", "n4"]


def test_list_of_many_pages_is_read_to_its_end(world, ask):
    world.rules("chains: []\n")
    for start in range(0, 1200, 200):
        world.publish(*({"event_id": f"e{number:04}"} for number in range(start, start + 200)))
    assert ids(ask("list_events")) == [f"e{number:04}" for number in range(1200)]


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"account": "acc2"}, ["e2"]),
        ({"conversation": "conv3"}, ["e3"]),
        ({"conversation_type": "ussd"}, ["e3"]),
        ({"event_type": "done"}, ["e1", "e2"]),
        ({"state": "unmatched", "event_type": "unheard"}, ["e3"]),
        ({"event_type": "done", "account": "acc"}, ["e1"]),
        ({"account": "nobody"}, []),
    ],
)
def test_events_are_filtered(full, ask, filters, expected):
    assert ids(ask("list_events", **filters)) == expected


def test_lists_begin_at_a_time(full, ask):
    since = full.clock.now() - timedelta(seconds=30)
    assert ids(ask("list_events", since=since)) == ["e3"]
    assert ask("list_runs", since=since) == ([], 0)
    assert ask("list_messages", since=datetime(2000, 1, 1, tzinfo=UTC))[1] == 1


def test_runs_are_filtered(full, ask):
    assert ids(ask("list_runs", state="failed")) == ["e2"]
    assert ids(ask("list_runs", event="e1", chain="welcome")) == ["e1"]
    assert ids(ask("list_runs", account="acc2")) == ["e2"]
    with pytest.raises(NotFound):
        ask("list_runs", event="e9")


def test_dead_letters_that_are_closed_are_shown_only_on_request(full, ask):
    perform(full.store, "dead.discard", {"reason": "bad_json"}, full.clock.now())
    assert [row["reason"] for row in ask("list_dead_letters")[0]] == ["failed", "bad_utf8"]
    assert len(ask("list_dead_letters", only_open=False)[0]) == 3
    assert ids(ask("list_dead_letters", kind="run")) == ["e2"]
    assert ask("list_dead_letters", reason="bad_utf8", account="acc")[1] == 0


def test_body_is_text_or_base64(full, ask):
    text, other = ask("list_dead_letters", kind="delivery")[0]
    assert (text["body"], text["body_encoding"]) == ("{", None)
    assert (base64.b64decode(other["body"]), other["body_encoding"]) == (b"\xff\xfe", "base64")


@pytest.mark.parametrize("spelling", ["+27821234567", "0821234567", "27821234567", "082 123 4567", "0027821234567"])
def test_numbers_are_found_in_any_spelling(full, ask, spelling):
    assert ids(ask("list_contacts", msisdn=spelling), "msisdn") == ["+27821234567"]
    assert ids(ask("list_messages", to=spelling), "to_addr") == ["+27821234567"]
    assert ask("show_contact", spelling)["msisdn"] == "+27821234567"


def test_number_of_nobody_finds_nobody(full, ask):
    assert ask("list_contacts", msisdn="+27821234568") == ([], 0)
    assert ask("list_contacts", msisdn="567") == ([], 0)


def test_story_of_an_event_has_everything_in_one_place(full, ask):
    story = ask("show_event", "e1")
    (run,) = story["runs"]
    assert [(step["step"], step["state"]) for step in run["steps"]] == [
        ("contact", "done"), ("send_sms", "done"), ("last", "done"), ("emit_event", "done"),
    ]  # fmt: skip
    assert [message["content"] for message in story["messages"]] == ["hi"]
    assert [(child["event_type"], child["parent_id"]) for child in story["emitted"]] == [("welcomed", "e1")]
    assert story["dead_letters"] == []


def test_skipped_steps_and_dead_letters_are_part_of_the_story(full, ask):
    story = ask("show_event", "e2")
    steps = story["runs"][0]["steps"]
    assert [(step["step"], step["state"], step["error"]) for step in steps] == [
        ("contact", "done", None),
        ("send_sms", "skipped", "when: data.quiet is not defined"),
        ("last", "failed", "it broke"),
    ]
    assert [letter["reason"] for letter in story["dead_letters"]] == ["failed"]
    run = ask("show_run", story["runs"][0]["run_id"])
    assert [letter["reason"] for letter in run["dead_letters"]] == ["failed"]


def test_every_attempt_is_told_and_counted_from_the_first(full, ask):
    full.script[:] = [RetryLater(reason="busy"), Failed("no")]
    (run_id,) = ids(ask("list_runs", state="failed"), "run_id")
    perform(full.store, "runs.retry", {"run": run_id}, full.clock.now())
    full.turn()
    full.turn(after=timedelta(hours=1))
    tries = [(step["attempt"], step["state"]) for step in ask("show_run", run_id)["steps"] if step["step"] == "last"]
    assert tries == [(1, "failed"), (2, "failed"), (3, "failed")]


def test_dead_letter_of_a_run_shows_its_event_and_run(full, ask):
    (letter,) = ask("list_dead_letters", kind="run")[0]
    found = ask("show_dead_letter", letter["dead_id"])
    assert found["event"]["event_id"] == "e2"
    assert found["run"]["steps"][-1]["error"] == "it broke"
    (delivery, _) = ask("list_dead_letters", kind="delivery")[0]
    found = ask("show_dead_letter", delivery["dead_id"])
    assert (found["event"], found["run"]) == (None, None)


def test_story_tells_what_the_event_led_to_and_not_what_that_led_to(full, ask):
    (child,) = ask("show_event", "e1")["emitted"]
    assert child["hops"] == 1
    assert ask("show_event", child["event_id"])["emitted"] == []
    assert ask("show_event", "e3")["emitted"] == []


def test_conflicting_delivery_is_part_of_the_story_of_the_event_whose_id_it_bears(full, ask):
    full.publish(event_id="e3", event_data={"other": 1})
    (letter,) = ask("show_event", "e3")["dead_letters"]
    assert (letter["kind"], letter["reason"]) == ("delivery", "id_conflict")
    found = ask("show_dead_letter", letter["dead_id"])
    assert (found["event"], found["run"]) == (None, None)
    assert json.loads(found["body"])["event_data"] == {"other": 1}


def test_contact_shows_texts_and_opt_out(full, ask):
    assert ask("show_contact", "0821234567")["opted_out"] is None
    full.sql("INSERT INTO opt_outs VALUES ('acc', '+27821234567', 'STOP', '2026-01-01')")
    found = ask("show_contact", "0821234567", "acc")
    assert found["opted_out"] == {"reason": "STOP", "at": "2026-01-01"}
    assert [message["content"] for message in found["messages"]] == ["hi"]
    assert ask("show_contact", found["contact_key"])["msisdn"] == "+27821234567"


def test_message_is_shown_by_the_end_of_its_id(full, ask):
    (message,) = ask("list_messages", state="queued", sender="default")[0]
    assert ask("show_message", message["message_id"][-12:]) == {**message, "outbox": None}


def test_id_is_enough_by_its_beginning_or_its_end(full, ask):
    run_id = ids(ask("list_runs", account="acc2"), "run_id")[0]
    assert ask("show_run", run_id[-8:])["run_id"] == run_id
    assert ask("show_run", run_id[:-1])["run_id"] == run_id
    with pytest.raises(NotPossible, match="may be any of these runs") as caught:
        ask("show_run", run_id[:2])
    assert run_id in caught.value.message


@pytest.mark.parametrize("text", ["", "nothing", "%", "_1", "E1", "1"])
def test_id_that_names_nothing_is_not_found(full, ask, text):
    with pytest.raises(NotFound, match="there is no event"):
        ask("show_event", text)


def test_whole_id_wins_over_those_that_begin_with_it(full, ask):
    full.publish(event_id="e11", event_type="unheard")
    assert ask("show_event", "e1")["event_id"] == "e1"
    with pytest.raises(NotPossible, match="may be any of these events") as caught:
        ask("show_event", "e")
    assert "e11 (account acc)" in caught.value.message


def test_same_id_in_two_accounts_is_told_apart_by_the_account(full, ask):
    full.script[:] = [Done()]
    full.publish(event_id="e1", event_data={"msisdn": "0821111111"}, account_key="acc2")
    with pytest.raises(NotPossible) as caught:
        ask("show_event", "e1")
    assert caught.value.hint == "--account says which is meant."
    assert ask("show_event", "e1", "acc2")["runs"][0]["account_key"] == "acc2"
    assert len(ask("show_event", "e1", "acc")["messages"]) == 1


def test_event_is_found_when_its_dedupe_row_has_had_its_time(full, ask):
    full.sql("DELETE FROM event_ids")
    assert ask("show_event", "e1")["event_id"] == "e1"


def test_no_more_are_counted_than_anybody_waits_for(full, monkeypatch):
    monkeypatch.setattr(queries, "_COUNTED", 2)
    with open_reader(full.place.source) as connection:
        listing = queries.list_events(connection, limit=3)
        assert (ids((list(listing.rows), 0))[-1], listing.total, listing.more) == ("e3", 2, True)
        listing = queries.list_events(connection, account="acc2", conversation_type="poll", event_type="done", limit=3)
        assert ([row["event_id"] for row in listing.rows], listing.total, listing.more) == (["e2"], 1, False)


def test_event_that_is_remembered_and_not_kept_any_more_is_told(full, ask):
    # Its day is forgotten; that it came is remembered for longer.
    for table in ("steps", "runs", "messages", "events"):
        full.sql(f"DELETE FROM {table}")
    with pytest.raises(NotFound, match="e1 is not kept any more"):
        ask("show_event", "e1")
