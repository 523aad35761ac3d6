from __future__ import annotations

import pytest
from pydantic import ValidationError

from dispatcher import Done, Failed
from dispatcher.testing import run_handler
from handlers.create_contact import CreateContact

THANDI = {"msisdn": "+27821234567", "name": "Thandi", "groups": ("mothers",), "extra": {"clinic": "Soweto"}}


@pytest.mark.parametrize("spelling", ["+27821234567", "0821234567", "+27 82 123 4567", "27821234567", 27821234567])
def test_one_contact_however_the_number_is_spelt(spelling):
    run = run_handler(CreateContact, {"msisdn": spelling, "name": "T"}, contacts=[THANDI], region="ZA")
    assert list(run.contacts) == ["+27821234567"]
    assert run.result["created"] is False


def test_a_new_contact_has_what_is_given_and_offers_all_of_it():
    run = run_handler(
        CreateContact,
        {
            "msisdn": "+27821234567",
            "name": "Thandi",
            "surname": "Dube",
            "email_address": "t@example.org",
            "language": "zu",
            "groups": ["mothers", "mothers", "pilot"],
            "extra": {"age": 31},
        },
    )
    contact = run.contacts["+27821234567"]
    assert run.result == {
        "contact_key": contact.contact_key,
        "msisdn": "+27821234567",
        "name": "Thandi",
        "surname": "Dube",
        "email_address": "t@example.org",
        "language": "zu",
        "groups": ["mothers", "pilot"],
        "extra": {"age": 31},
        "created": True,
    }
    assert set(run.result) == set(CreateContact.Result.model_fields)
    assert contact.groups == ("mothers", "pilot")


def test_update_replaces_what_is_given_adds_groups_and_merges_extra():
    params = {"msisdn": "+27821234567", "surname": "Dube", "groups": ["pilot"], "extra": {"age": 31}}
    run = run_handler(CreateContact, params, contacts=[THANDI])
    contact = run.contacts["+27821234567"]
    assert (contact.name, contact.surname) == ("Thandi", "Dube")
    assert contact.groups == ("mothers", "pilot")
    assert contact.extra == {"clinic": "Soweto", "age": 31}
    assert run.result["name"] == "Thandi"


def test_null_does_not_erase():
    run = run_handler(CreateContact, {"msisdn": "+27821234567", "name": None}, contacts=[THANDI])
    assert run.contacts["+27821234567"].name == "Thandi"


def test_keep_changes_nothing():
    params = {"msisdn": "+27821234567", "name": "Other", "if_exists": "keep"}
    run = run_handler(CreateContact, params, contacts=[THANDI])
    assert run.contacts["+27821234567"].name == "Thandi"
    assert run.result["created"] is False


def test_fail_fails_and_names_the_contact_without_its_number():
    run = run_handler(CreateContact, {"msisdn": "+27821234567", "if_exists": "fail"}, contacts=[THANDI])
    assert isinstance(run.outcome, Failed)
    assert "27821234567" not in run.outcome.reason


def test_fail_creates_when_there_is_none():
    run = run_handler(CreateContact, {"msisdn": "+27821234567", "if_exists": "fail"})
    assert isinstance(run.outcome, Done)
    assert run.result["created"] is True


def test_twice_is_once():
    first = run_handler(CreateContact, THANDI)
    before = first.contacts["+27821234567"]
    again = run_handler(CreateContact, THANDI, context=first.context)
    assert again.contacts == {"+27821234567": before}


def test_a_number_without_a_region_is_a_bad_param():
    with pytest.raises(ValidationError):
        run_handler(CreateContact, {"msisdn": "0821234567"})
