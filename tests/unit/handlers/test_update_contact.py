from __future__ import annotations

from dispatcher import Done, Failed
from dispatcher.testing import run_handler
from handlers.update_contact import UpdateContact

THANDI = {"msisdn": "+27821234567", "name": "Thandi", "groups": ("pregnant", "pilot"), "extra": {"clinic": "Soweto"}}


def test_it_changes_what_is_given_and_offers_the_whole_contact():
    params = {
        "msisdn": "+27821234567",
        "language": "zu",
        "groups": ["mothers"],
        "leave_groups": ["pregnant"],
        "extra": {"baby": "Sipho"},
    }
    run = run_handler(UpdateContact, params, contacts=[THANDI])
    contact = run.contacts["+27821234567"]
    assert contact.name == "Thandi"
    assert contact.language == "zu"
    assert contact.groups == ("pilot", "mothers")
    assert contact.extra == {"clinic": "Soweto", "baby": "Sipho"}
    assert run.result["changed"] is True
    assert set(run.result) == set(UpdateContact.Result.model_fields)


def test_without_a_contact_it_fails_or_skips_as_told():
    assert isinstance(run_handler(UpdateContact, {"msisdn": "+27821234567"}).outcome, Failed)
    skipped = run_handler(UpdateContact, {"msisdn": "+27821234567", "if_missing": "skip"})
    assert skipped.outcome == Done(skipped="the number has no contact")
    assert skipped.contacts == {}


def test_twice_is_once():
    params = {"msisdn": "+27821234567", "groups": ["mothers"]}
    first = run_handler(UpdateContact, params, contacts=[THANDI])
    again = run_handler(UpdateContact, params, context=first.context)
    assert again.result["changed"] is False
    assert again.contacts == first.contacts
