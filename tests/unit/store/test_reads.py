"""Bulk reads: many keys at once, some of them twice, some of nothing, of more accounts than one."""

from __future__ import annotations

from datetime import timedelta

import pytest

# More than are asked for at once, and no multiple of that.
MANY = 150
RULES = """
chains:
  - name: enrol
    on: {event_type: done}
    steps:
      - {handler: create_contact, with: {msisdn: "{{ data.msisdn }}"}}
      - {handler: opt_out, when: data.out, with: {msisdn: "{{ data.msisdn }}"}}
"""


def number(n):
    return f"+278200{n:05}"


@pytest.fixture
def people(world):
    """Of each account every second number, of these every second one opted out; return all keys there might be."""
    world.rules(RULES)
    for account in ("acc", "other"):
        world.publish(
            *(
                {"account_key": account, "event_id": f"e{n}", "event_data": {"msisdn": number(n), "out": n % 4 == 0}}
                for n in range(0, MANY, 2)
            )
        )
        while world.batch.left_over:
            world.turn()
    return [(account, number(n)) for n in range(MANY) for account in ("acc", "other")]


def there(people, every):
    return {key for key in people if int(key[1][-5:]) % every == 0}


def test_contacts_are_found_by_their_keys_however_many_are_asked_for(world, people):
    with world.store.transaction() as transaction:
        found = transaction.contacts([*people, *people[:70]])

    assert found.keys() == there(people, 2)
    assert all((contact.account_key, contact.msisdn) == key for key, contact in found.items())


def test_contacts_of_few_keys_are_found_too(world, people):
    with world.store.transaction() as transaction:
        assert transaction.contacts(people[:3]).keys() == there(people[:3], 2)
        assert transaction.contacts([("nobody", number(0))]) == {}
        assert transaction.contacts([]) == {}


def test_contacts_that_are_locked_first_are_read_as_they_are(world, people):
    with world.store.transaction() as transaction:
        assert transaction.lock_contacts(people[:4]) == set()
        assert transaction.contacts(people[:4]).keys() == there(people[:4], 2)
        assert transaction.lock_contacts(people[4:6]) == set()
        assert transaction.contacts(people[4:8]).keys() == there(people[4:8], 2)  # more than were locked
        assert transaction.contacts(people[:4]).keys() == there(people[:4], 2)


def test_opt_outs_are_found_by_their_keys(world, people):
    with world.store.transaction() as transaction:
        assert transaction.opt_outs(people).keys() == there(people, 4)


def test_known_events_are_found_by_their_ids(world, people):
    keys = [(account, f"e{n}") for n in range(MANY) for account in ("acc", "other")]

    with world.store.transaction() as transaction:
        found = transaction.known_events([*keys, *keys])

    assert found.keys() == {(account, event_id) for account, event_id in keys if int(event_id[1:]) % 2 == 0}
    assert len(set(found.values())) == MANY


def test_a_text_of_a_run_that_began_in_this_batch_is_not_looked_for(world, mocker):
    world.rules(
        "chains:\n"
        "  - name: c\n"
        "    on: {event_type: done}\n"
        "    steps:\n"
        '      - {id: now, handler: send_sms, with: {to: "0821234567", text: now}}\n'
        "      - {wait: 1h}\n"
        '      - {id: later, handler: send_sms, with: {to: "0821234567", text: later}}\n'
    )
    with world.store.transaction() as transaction:
        read = mocker.spy(type(transaction), "message")

    world.publish({"event_id": "one"})
    assert read.call_count == 0
    world.turn(after=timedelta(hours=2))

    assert [content for (content,) in world.rows("messages", "content")] == ["now", "later"]
