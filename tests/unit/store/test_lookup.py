"""From what a person types to the row that is meant; never to one that may not be meant."""

from __future__ import annotations

from datetime import timedelta

import psycopg
import pytest
from sqlalchemy import create_engine, insert
from sqlalchemy.pool import NullPool, StaticPool

from dispatcher.errors import NotFound, NotPossible
from dispatcher.events.identity import derived_uuid7, to_hex
from dispatcher.store import schema
from dispatcher.store.lookup import find_contact, find_event, find_message, find_run
from dispatcher.testing import FrozenClock

RUN = "0193a1b2-0000-7000-8000-00000000{}"


# A day that the database of the tests has partitions of.
DAY = FrozenClock().now().date().isoformat()


@pytest.fixture(params=["sqlite", "postgres"])
def connection(request):
    if request.param == "sqlite":
        engine = create_engine("sqlite://", poolclass=StaticPool)
        schema.metadata.create_all(engine)
    else:
        url = request.getfixturevalue("postgres_place").url
        engine = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(url), poolclass=NullPool)
    with engine.connect() as opened:
        yield opened
    engine.dispose()


def add_events(connection, *keys):
    for seq, (account, event_id) in enumerate(keys, 1):
        connection.execute(
            insert(schema.event_ids).values(
                account_key=account, event_id=event_id, event_seq=seq, body_hash=b"", received_on=DAY
            )
        )


def add_runs(connection, *run_ids):
    for seq, run_id in enumerate(run_ids, 1):
        connection.execute(
            insert(schema.runs).values(
                seq=seq, run_id=run_id, event_seq=seq, event_id="e", account_key="a", chain="c", chain_digest="d",
                generation=1, started_at="", received_on=DAY, state="done", position=0, attempt=1, lane="",
            )
        )  # fmt: skip


def add_contacts(connection, *contacts):
    for account, msisdn, key in contacts:
        connection.execute(
            insert(schema.contacts).values(
                contact_key=key, account_key=account, msisdn=msisdn, groups="[]", subscription="{}", extra="{}",
                created_at="", updated_at="",
            )
        )  # fmt: skip


def add_messages(connection, *message_ids):
    for seq, message_id in enumerate(message_ids, 1):
        connection.execute(
            insert(schema.messages).values(
                seq=seq, message_id=message_id, account_key="a", to_addr="+27821234567", content="hi", segments=1,
                encoding="GSM-7", sender="default", state="queued", event_id="e", run_id="r", step="s", at="",
                received_on=DAY,
            )
        )  # fmt: skip


def test_an_id_is_found_whole_by_its_beginning_and_by_its_end(connection):
    add_runs(connection, RUN.format("abcd"), RUN.format("ef01"))
    assert find_run(connection, RUN.format("abcd")) == RUN.format("abcd")
    assert find_run(connection, RUN.format("a")) == RUN.format("abcd")
    assert find_run(connection, "ef01") == RUN.format("ef01")


def test_a_whole_id_wins_over_one_that_begins_with_it(connection):
    add_events(connection, ("a", "vote-1"), ("a", "vote-10"))
    assert find_event(connection, "vote-1").event_id == "vote-1"


def test_what_may_be_several_is_refused_and_names_them(connection):
    add_runs(connection, RUN.format("ab01"), RUN.format("ab02"))
    with pytest.raises(NotPossible) as refused:
        find_run(connection, "0193")
    assert RUN.format("ab01") in refused.value.message
    assert RUN.format("ab02") in refused.value.message
    assert refused.value.hint == "Type more of the one you mean."


def test_of_many_only_a_few_are_named(connection):
    add_runs(connection, *(RUN.format(f"{number:04}") for number in range(30)))
    with pytest.raises(NotPossible) as refused:
        find_run(connection, "0193")
    assert refused.value.message.count("\n") == 6
    assert refused.value.message.endswith("…")


def test_an_end_must_be_long_enough_to_tell_something(connection):
    add_runs(connection, RUN.format("abcd"))
    with pytest.raises(NotFound):
        find_run(connection, "bcd")


def test_an_end_may_be_copied_from_a_list_with_what_stands_before_it(connection):
    add_events(connection, ("a", "poll-2026-11-21-vote-17"))
    assert find_event(connection, "…11-21-vote-17").event_id == "poll-2026-11-21-vote-17"
    with pytest.raises(NotFound):
        find_event(connection, "…")


def test_letters_that_mean_something_to_sql_mean_themselves(connection):
    add_events(connection, ("a", "ten%done"), ("a", "ten_done"), ("a", "tenXdone"))
    assert find_event(connection, "%done").event_id == "ten%done"
    assert find_event(connection, "n_done").event_id == "ten_done"
    with pytest.raises(NotFound):
        find_event(connection, "%%%%")


@pytest.mark.parametrize("text", ["", "nothing", "'; DROP TABLE events; --"])
def test_what_is_not_there_is_told_with_the_verb_that_lists(connection, text):
    with pytest.raises(NotFound) as refused:
        find_message(connection, text)
    assert repr(text) in refused.value.message
    assert "`dispatcher messages list`" in refused.value.hint


def test_an_event_of_one_account_is_found_though_others_use_its_id(connection):
    add_events(connection, ("a", "e1"), ("b", "e1"))
    assert find_event(connection, "e1", "b").seq == 2
    with pytest.raises(NotPossible) as refused:
        find_event(connection, "e1")
    assert "(account a)" in refused.value.message
    assert refused.value.hint == "--account says which is meant."
    with pytest.raises(NotFound, match="in account c"):
        find_event(connection, "e1", "c")


@pytest.mark.parametrize("spelling", ["+27821234567", "+27 82 123 4567", "0027821234567", "(082) 123-4567", "key-1"])
def test_a_contact_is_found_by_number_in_any_spelling_and_by_key(connection, spelling):
    add_contacts(connection, ("a", "+27821234567", "key-1"), ("a", "+27829999999", "key-2"))
    assert find_contact(connection, spelling) == ("a", "+27821234567")


def test_a_national_number_of_two_countries_is_refused(connection):
    add_contacts(connection, ("a", "+27821234567", "k1"), ("a", "+263821234567", "k2"))
    with pytest.raises(NotPossible, match="any of these contacts"):
        find_contact(connection, "0821234567")
    assert find_contact(connection, "+263821234567") == ("a", "+263821234567")


def test_a_contact_of_two_accounts_wants_the_account(connection):
    add_contacts(connection, ("a", "+27821234567", "k1"), ("b", "+27821234567", "k2"))
    with pytest.raises(NotPossible) as refused:
        find_contact(connection, "+27821234567")
    assert refused.value.hint == "--account says which is meant."
    assert find_contact(connection, "+27821234567", "b") == ("b", "+27821234567")


def test_a_few_digits_name_nobody(connection):
    add_contacts(connection, ("a", "+27821234567", "k1"))
    with pytest.raises(NotFound):
        find_contact(connection, "4567")


def test_upper_and_lower_case_are_told_apart_in_a_beginning_and_not_in_an_end(connection):
    add_events(connection, ("a", "Vote-one"), ("a", "vote-two"))
    assert find_event(connection, "vote").event_id == "vote-two"
    assert find_event(connection, "E-ONE").event_id == "Vote-one"


def test_ids_beyond_ascii_are_found_by_their_beginning(connection):
    add_events(connection, ("a", "Z\u00eb-1"), ("a", "\U0010fffe-2"), ("a", "zz"))
    assert find_event(connection, "Z\u00eb").event_id == "Z\u00eb-1"
    assert find_event(connection, "\U0010fffe").event_id == "\U0010fffe-2"


def test_a_message_is_found_by_the_whole_and_by_parts_of_an_id_that_bears_its_day(connection):
    now = FrozenClock().now()
    first, second = (to_hex(derived_uuid7(int(now.timestamp() * 1000), name)) for name in ("first", "second"))
    add_messages(connection, first, second)
    assert find_message(connection, first) == first
    assert find_message(connection, second[-8:]) == second
    with pytest.raises(NotPossible):
        find_message(connection, first[:8])
    other_day = to_hex(derived_uuid7(int((now - timedelta(days=2)).timestamp() * 1000), "first"))
    with pytest.raises(NotFound):
        find_message(connection, other_day)
