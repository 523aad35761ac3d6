"""An erased person cannot be found again: not in a row, not in the file, not in its log; and is not texted again."""

from __future__ import annotations

import sqlite3
from datetime import timedelta
from pathlib import Path

import pytest

from dispatcher import Done, Unknown
from dispatcher.errors import NotFound, NotPossible
from dispatcher.store import schema
from dispatcher.worker.administration import perform

NUMBER = "+27821234567"
OTHER = "+27839999999"
SPELLINGS = ("+27821234567", "27821234567", "0821234567", "082 123 4567", "(082) 123-4567", "+27 82 123 4567")
RULES = """
chains:
  - name: c
    on: {event_type: done}
    steps:
      - {id: contact, handler: create_contact, with: {msisdn: "{{ data.msisdn }}", name: "{{ data.name }}"}}
      - {handler: send_sms, with: {to: "{{ steps.contact.msisdn }}", text: "Dear {{ data.name }}"}}
      - {handler: emit_event, with: {event_type: welcomed, event_data: {who: "{{ data.msisdn }}"}}}
"""


def erase(world, who, **args):
    return perform(world.store, "contacts.erase", {"contact": who, "actor": "ann", **args}, world.clock.now())


def publish(world, msisdn, name="Thandiwe", **event):
    return world.publish(event_data={"msisdn": msisdn, "name": name}, **event)


def everything(world):
    """Return all that the store keeps: each byte on the disk, or, of a server, what anybody can read of it."""
    if world.place.kind == "postgres":
        return b"".join(repr(world.rows(table)).encode() for table in schema.metadata.tables)
    folder = Path(world.store.path).parent
    files = [path for path in folder.iterdir() if path.name.startswith(world.store.path.name)]
    assert len(files) >= 2, "the file and its log"
    return b"".join(path.read_bytes() for path in files)


def mentions(found):
    return [spelling for spelling in (*SPELLINGS, "Thandiwe") if spelling.encode() in found]


def test_nothing_of_an_erased_person_is_left_in_the_files(world):
    world.rules(RULES)
    for number, spelling in enumerate(SPELLINGS):
        publish(world, spelling, event_id=f"e{number}")
    publish(world, 27821234567, event_id="as-a-number")
    publish(world, NUMBER, event_id=f"id-of-{NUMBER}", subject=NUMBER, conversation_key=NUMBER, more="0821234567")
    world.publish(b'{"msisdn": "082 123 4567", "name": "Thandiwe"')
    assert mentions(everything(world))
    told = erase(world, "0821234567", account="acc")
    assert told["left"] == []
    assert ("its log (WAL)" in told["message"]) == (world.place.kind == "postgres")
    assert mentions(everything(world)) == []
    assert world.rows("contacts") == []


ODD_SPELLINGS = (
    "+27 (0)82 123 45 67",
    "082_123_4567",
    "082\u00a0123\u00a04567",
    "082\u2011123\u20114567",
    "\u0660\u0668\u0662\u0661\u0662\u0663\u0664\u0665\u0666\u0667",
    "\uff0b\uff12\uff17 82 123 4567",
    "poll-0821234567-3",
)
ODD_BODIES = (
    b"\xff\xfe broken 0821234567 Thandiwe",
    '{"msisdn": "0821234567", "name": "Thandiwe"'.encode("utf-16"),
    rb'{"name": "Thandiwe", "msisdn": "\u0030\u0038\u0032\u0031\u0032\u0033\u0034\u0035\u0036\u0037"',
)


def test_person_is_found_in_every_spelling_script_and_encoding(world):
    world.rules(RULES)
    publish(world, NUMBER, event_id="e0")
    publish(world, OTHER, name="Sipho \u0627", event_id="other")
    for number, spelling in enumerate(ODD_SPELLINGS):
        publish(world, OTHER, event_id=f"in-the-data-{number}", event_type="else", name=f"Thandiwe {spelling}")
    world.publish(*ODD_BODIES)
    erase(world, NUMBER, account="acc")
    assert "Thandiwe" not in mentions(everything(world))
    notes = dict(world.rows("events", "event_id", "note"))
    assert {notes[f"in-the-data-{number}"] for number in range(len(ODD_SPELLINGS))} == {"erased"}
    assert notes["other"] is None
    assert world.rows("dead_letters", "body", "state") == [(None, "discarded")] * len(ODD_BODIES)


def test_contact_is_found_by_the_words_that_name_only_them(world):
    world.rules(
        "chains: [{name: c, on: {event_type: done}, steps: [{handler: create_contact, "
        "with: {msisdn: '{{ data.msisdn }}', email_address: '{{ data.email }}'}}]}]\n"
    )
    world.publish(event_id="e1", event_data={"msisdn": NUMBER, "email": "Thandi@Example.org"})
    world.publish(event_id="e2", event_type="else", event_data={"to": "write to THANDI@example.org today"})
    world.publish(event_id="e3", event_type="else", event_data={"to": "nothandi@example.org"})
    erase(world, NUMBER, account="acc")
    assert [data for (data,) in world.rows("events", "event_data")] == ["{}", "{}", '{"to":"nothandi@example.org"}']


def test_others_keep_what_is_theirs(world):
    world.rules(RULES)
    publish(world, NUMBER, event_id="e1")
    publish(world, OTHER, name="Sipho", event_id="e2")
    publish(world, NUMBER, event_id="e3", account_key="acc2")
    before = world.rows("steps", "run_seq", "result")
    erase(world, NUMBER, account="acc")
    assert world.rows("contacts", "account_key", "msisdn", "name") == [
        ("acc", OTHER, "Sipho"),
        ("acc2", NUMBER, "Thandiwe"),
    ]
    kept = [(seq, result) for seq, result in world.rows("steps", "run_seq", "result") if result is not None]
    assert kept
    assert set(kept) <= set(before)
    assert [content for (content,) in world.rows("messages", "content")] == ["", "Dear Sipho", "Dear Thandiwe"]


def test_events_runs_and_messages_are_still_accounted_for(world):
    world.rules(RULES)
    publish(world, NUMBER, event_id="e1")
    runs, messages = len(world.rows("runs")), len(world.rows("messages"))
    erase(world, NUMBER, account="acc")
    assert (len(world.rows("runs")), len(world.rows("messages"))) == (runs, messages)
    assert world.rows("events", "event_data", "note")[0] == ("{}", "erased")
    ((to_addr, state, error),) = world.rows("messages", "to_addr", "state", "error")
    assert to_addr.startswith("[erased")
    assert (state, error) == ("failed", "erased")


def test_run_that_still_waits_is_ended(world):
    world.rules(
        "chains: [{name: c, on: {event_type: done}, steps: [{wait: 1d}, {handler: scripted, with: {say: hi}}]}]\n"
    )
    publish(world, NUMBER, event_id="e1")
    publish(world, OTHER, event_id="e2")
    erase(world, NUMBER, account="acc")
    assert world.rows("runs", "state") == [("cancelled",), ("waiting",)]
    world.turn(after=timedelta(days=2))
    assert len(world.seen) == 1


def test_event_that_was_not_run_yet_never_runs(world):
    world.rules(RULES)
    publish(world, NUMBER, event_id="e1", event_type="other")
    world.sql("UPDATE events SET state = 'new', event_type = 'done'")
    erase(world, NUMBER, account="acc")
    world.turn()
    assert world.rows("runs") == []
    with pytest.raises(NotPossible, match="was erased"):
        perform(world.store, "events.replay", {"event": "e1", "again": True}, world.clock.now())


def test_call_under_way_is_fenced(world):
    world.rules("chains: [{name: c, on: {event_type: done}, steps: [{handler: scripted_call}]}]\n")
    publish(world, NUMBER, event_id="e1")
    erase(world, NUMBER, account="acc")
    world.bring_back(Done({"to": NUMBER}))
    assert world.rows("runs", "state") == [("cancelled",)]
    assert mentions(everything(world)) == []


def test_held_run_cannot_be_resolved_any_more(world):
    world.rules("chains: [{name: c, on: {event_type: done}, steps: [{handler: scripted_call}]}]\n")
    publish(world, NUMBER, event_id="e1")
    world.bring_back(Unknown("no answer"))
    erase(world, NUMBER, account="acc")
    ((run_id,),) = world.rows("runs", "run_id")
    for verb, args in (("runs.resolve", {"sent": False}), ("runs.retry", {})):
        with pytest.raises(NotPossible, match="was erased"):
            perform(world.store, verb, {"run": run_id, **args}, world.clock.now())
    assert world.rows("dead_letters", "state", "body") == [("discarded", None)]


def test_erased_number_is_not_texted_again(world):
    world.rules(RULES)
    publish(world, NUMBER, event_id="e1")
    erase(world, NUMBER, account="acc")
    world.rules(
        "chains: [{name: c, on: {event_type: done}, "
        "steps: [{handler: send_sms, with: {to: '{{ data.msisdn }}', text: hi}}]}]\n"
    )
    publish(world, NUMBER, event_id="late")
    assert world.rows("messages", "state", "error")[-1] == ("failed", "opted_out: erased")


def test_opt_out_is_kept_as_a_hash_only(world):
    world.rules(
        "chains: [{name: c, on: {event_type: done}, "
        "steps: [{handler: opt_out, with: {msisdn: '{{ data.msisdn }}'}}]}]\n"
    )
    publish(world, NUMBER, event_id="e1")
    assert len(world.rows("opt_outs")) == 1
    erase(world, NUMBER, account="acc")
    assert world.rows("opt_outs") == []
    ((digest,),) = world.rows("suppressions", "number_hash")
    assert len(digest) == 32


def test_erasing_twice_is_no_mistake(world):
    world.rules(RULES)
    publish(world, NUMBER, event_id="e1")
    erase(world, NUMBER, account="acc")
    told = erase(world, NUMBER, account="acc")
    assert told["message"].startswith("the person is erased: 0 rows held something of them")
    assert len(world.rows("suppressions")) == 1


def test_contact_can_be_named_by_its_key(world):
    world.rules(RULES)
    publish(world, NUMBER, event_id="e1")
    ((key,),) = world.rows("contacts", "contact_key")
    erase(world, key)
    assert key.encode() not in everything(world)
    assert mentions(everything(world)) == []


def test_somebody_who_is_no_contact_is_erased_from_the_events(world):
    world.rules(RULES)
    publish(world, "082 123 4567", event_id="e1", event_type="other")
    erase(world, "0821234567", account="acc", region="ZA")
    assert mentions(everything(world)) == []


def test_number_of_which_nothing_is_held_is_not_found(world):
    world.rules(RULES)
    with pytest.raises(NotFound, match=r"account acc holds nothing of '\+27821234567'"):
        erase(world, NUMBER, account="acc")
    with pytest.raises(NotFound, match="there is no contact"):
        erase(world, NUMBER)
    assert world.rows("suppressions") == []
    assert world.rows("audit") == []


def test_who_is_meant_must_be_clear(world):
    world.rules(RULES)
    publish(world, NUMBER, event_id="e1")
    publish(world, NUMBER, event_id="e2", account_key="acc2")
    with pytest.raises(NotPossible, match="may be any of these contacts") as caught:
        erase(world, NUMBER)
    assert caught.value.hint == "--account says which is meant."


def test_audit_says_who_erased_and_not_whom(world):
    world.rules(RULES)
    publish(world, NUMBER, event_id="e1")
    erase(world, NUMBER, account="acc")
    ((actor, verb, target),) = world.rows("audit", "actor", "verb", "target")
    assert (actor, verb) == ("ann", "contacts.erase")
    assert "4567" not in target


@pytest.mark.parametrize("place", ["sqlite"], indirect=True)
def test_reader_that_holds_the_log_back_is_told(world, monkeypatch):
    world.rules(RULES)
    publish(world, NUMBER, event_id="e1")
    world.store.connection.execute("PRAGMA busy_timeout = 0")
    reader = sqlite3.connect(world.store.path, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM events").fetchall()
    ((what, why),) = erase(world, NUMBER, account="acc")["left"]
    reader.close()
    assert (what, "somebody was reading it" in why) == ("the file", True)
    assert erase(world, NUMBER, account="acc")["left"] == []
    assert mentions(everything(world)) == []


@pytest.mark.parametrize("place", ["sqlite"], indirect=True)
def test_functions_that_know_the_number_do_not_stay_on_the_connection(world):
    world.rules(RULES)
    publish(world, NUMBER, event_id="e1")
    erase(world, NUMBER, account="acc")
    with pytest.raises(sqlite3.OperationalError):
        world.store.connection.execute("SELECT mentioned('x')")
