from __future__ import annotations

from dispatcher.testing import an_event, run_handler
from handlers.opt_out import OptOut

NUMBER = "+27821234567"


def test_a_number_is_opted_out_with_its_reason():
    run = run_handler(OptOut, {"msisdn": "082 123 4567", "reason": "said STOP"}, region="ZA")
    assert run.opt_outs == {NUMBER: "said STOP"}
    assert run.result == {"msisdn": NUMBER, "opted_out": True, "reason": "said STOP", "changed": True}
    assert set(run.result) == set(OptOut.Result.model_fields)


def test_without_a_reason_the_event_is_the_reason():
    run = run_handler(OptOut, {"msisdn": NUMBER}, an_event(event_type="opt_out"))
    assert run.opt_outs == {NUMBER: "opt_out"}


def test_an_earlier_opt_out_keeps_its_reason():
    run = run_handler(OptOut, {"msisdn": NUMBER, "reason": "again"}, opt_outs={NUMBER: "first"})
    assert run.opt_outs == {NUMBER: "first"}
    assert run.result["reason"] == "first"
    assert run.result["changed"] is False


def test_somebody_may_come_back():
    run = run_handler(OptOut, {"msisdn": NUMBER, "action": "opt_in"}, opt_outs={NUMBER: "first"})
    assert run.opt_outs == {}
    assert run.result == {"msisdn": NUMBER, "opted_out": False, "reason": None, "changed": True}


def test_coming_back_twice_changes_nothing():
    run = run_handler(OptOut, {"msisdn": NUMBER, "action": "opt_in"})
    assert run.result["changed"] is False
