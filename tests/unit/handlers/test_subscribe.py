from __future__ import annotations

import pytest
from pydantic import ValidationError

from dispatcher import Failed
from dispatcher.testing import run_handler
from handlers.subscribe import Subscribe

NUMBER = "+27821234567"
THANDI = {"msisdn": NUMBER, "subscription": {"tea": "subscribed"}}


def test_a_contact_subscribes_by_number():
    run = run_handler(Subscribe, {"msisdn": NUMBER, "campaign_name": "milk"}, contacts=[THANDI])
    assert run.contacts[NUMBER].subscription == {"tea": "subscribed", "milk": "subscribed"}
    assert run.result["subscription"] == "subscribed"
    assert set(run.result) == set(Subscribe.Result.model_fields)


def test_a_contact_unsubscribes_by_its_key():
    context = run_handler(Subscribe, {"msisdn": NUMBER, "campaign_name": "tea"}, contacts=[THANDI]).context
    key = context.contacts.get(NUMBER).contact_key
    params = {"contact_id": key, "campaign_name": "tea", "operation": "unsubscribe"}
    run = run_handler(Subscribe, params, context=context)
    assert run.contacts[NUMBER].subscription == {"tea": "unsubscribed"}
    assert run.result["changed"] is True


def test_twice_is_once():
    run = run_handler(Subscribe, {"msisdn": NUMBER, "campaign_name": "tea"}, contacts=[THANDI])
    assert run.result["changed"] is False


@pytest.mark.parametrize("who", [{"msisdn": NUMBER}, {"contact_id": "nobody"}, {"contact_id": None}])
def test_an_unknown_contact_fails(who):
    assert isinstance(run_handler(Subscribe, {**who, "campaign_name": "tea"}).outcome, Failed)


@pytest.mark.parametrize("who", [{}, {"msisdn": NUMBER, "contact_id": "x"}])
def test_the_contact_is_named_in_one_way(who):
    with pytest.raises(ValueError, match="either contact_id or msisdn"):
        run_handler(Subscribe, {**who, "campaign_name": "tea"})


def test_another_operation_is_a_bad_param():
    with pytest.raises(ValidationError):
        run_handler(Subscribe, {"msisdn": NUMBER, "campaign_name": "tea", "operation": "pause"})
