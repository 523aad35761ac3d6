from __future__ import annotations

import json
from datetime import timedelta

import pytest
from pydantic import ValidationError

from dispatcher.plugins.outcomes import Done, Failed, RetryLater, Unknown
from dispatcher.senders.exchange import HttpReply
from dispatcher.senders.replies import ReplyRules, judge


def reply(status=200, body="", retry_after=None):
    content = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    return HttpReply(status, content=content, retry_after=retry_after)


def test_without_rules_a_success_is_a_success():
    assert judge(reply(204), ReplyRules(), keyed=False) == Done({"gateway_id": None})


def test_the_id_is_found_by_path_or_by_pattern():
    rules = ReplyRules(id="messages.0.id")
    assert judge(reply(200, {"messages": [{"id": 17}]}), rules, keyed=False) == Done({"gateway_id": "17"})
    rules = ReplyRules(id_pattern=r"OK: (\S+)")
    assert judge(reply(200, "OK: abc"), rules, keyed=False) == Done({"gateway_id": "abc"})


def test_a_success_without_the_id_that_it_should_have_is_unknown():
    assert isinstance(judge(reply(200, "<html>Please log in</html>"), ReplyRules(id="id"), keyed=False), Unknown)


def test_a_success_may_carry_an_error():
    rules = ReplyRules(id="id", error="error.text", code="error.code")
    outcome = judge(reply(200, {"id": "x", "error": {"text": "blocked", "code": 7}}), rules, keyed=False)
    assert outcome == Failed("the gateway answered 200: 7 blocked")


def test_accepted_decides_whatever_else_the_reply_says():
    rules = ReplyRules(accepted={"status": ["0"]}, error="note")
    assert isinstance(judge(reply(200, {"status": 0, "note": "Sent to 1/1"}), rules, keyed=False), Done)
    assert isinstance(judge(reply(200, {"status": 3, "note": "bad"}), rules, keyed=False), Failed)
    assert isinstance(judge(reply(200, {"note": "bad"}), rules, keyed=False), Failed)
    assert isinstance(judge(reply(200, {"other": 1}), rules, keyed=False), Unknown)


@pytest.mark.parametrize("status", [400, 403, 404, 405, 413, 422, 302])
def test_a_refused_request_fails_for_good(status):
    assert isinstance(judge(reply(status), ReplyRules(), keyed=False), Failed)


@pytest.mark.parametrize("status", [401, 402, 407])
def test_what_the_account_lacks_is_waited_for(status):
    outcome = judge(reply(status), ReplyRules(), keyed=False)
    assert isinstance(outcome, RetryLater)
    assert outcome.counts


def test_a_busy_gateway_is_tried_again_uncharged_when_it_says():
    outcome = judge(reply(429, retry_after=timedelta(seconds=30)), ReplyRules(), keyed=False)
    assert outcome == RetryLater(timedelta(seconds=30), "the gateway answered 429", counts=False)


def test_503_is_surely_not_sent_only_when_it_says_when_to_come_back():
    assert isinstance(judge(reply(503, retry_after=timedelta(seconds=3)), ReplyRules(), keyed=False), RetryLater)
    assert isinstance(judge(reply(503), ReplyRules(), keyed=False), Unknown)
    assert isinstance(judge(reply(503), ReplyRules(busy=(429, 503)), keyed=False), RetryLater)


@pytest.mark.parametrize("status", [500, 502, 504, 408, 409])
def test_after_a_server_error_nobody_can_tell(status):
    assert isinstance(judge(reply(status), ReplyRules(), keyed=False), Unknown)
    assert isinstance(judge(reply(status), ReplyRules(), keyed=True), RetryLater)


def test_codes_refine_what_statuses_say():
    rules = ReplyRules(code="code", busy_codes=["1"], not_yet_codes=["2"], unsure_codes=["3"])
    assert judge(reply(400, {"code": 1}), rules, keyed=False).counts is False
    assert judge(reply(400, {"code": 2}), rules, keyed=False).counts is True
    assert isinstance(judge(reply(400, {"code": 3}), rules, keyed=False), Unknown)
    assert isinstance(judge(reply(400, {"code": 4}), rules, keyed=False), Failed)


def test_surely_not_sent_may_be_listed():
    rules = ReplyRules(not_sent=(422,))
    assert isinstance(judge(reply(422), rules, keyed=False), Failed)
    assert isinstance(judge(reply(400), rules, keyed=False), Unknown)


def test_a_short_plain_reply_is_quoted_without_numbers():
    outcome = judge(reply(400, "No route to +27821234567"), ReplyRules(), keyed=False)
    assert outcome == Failed("the gateway answered 400: No route to +27*****4567")


def test_paths_into_nothing_find_nothing():
    rules = ReplyRules(error=["a.b.0", "0", "a.9"], id="a.b")
    assert isinstance(judge(reply(200, {"a": {"b": []}}), rules, keyed=False), Unknown)


def test_a_pattern_must_be_one():
    with pytest.raises(ValidationError, match="not a regular expression"):
        ReplyRules(id_pattern="(")
