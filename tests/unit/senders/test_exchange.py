from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from dispatcher.plugins.outcomes import Failed, RetryLater, Unknown
from dispatcher.senders.exchange import HttpClient, HttpReply, HttpRequest, has_literal_host, presentable
from dispatcher.testing import FrozenClock


@pytest.fixture
def client():
    client = HttpClient(concurrency=2, timeout=timedelta(seconds=5))
    yield client
    client.close()


@pytest.fixture
def hasty():
    client = HttpClient(concurrency=2, timeout=timedelta(milliseconds=150))
    yield client
    client.close()


def test_a_reply_carries_status_headers_and_json(client, gateway):
    gateway.answer(202, {"id": "m-1"}, X_Trace="7")
    reply = client.exchange(HttpRequest("POST", gateway.url, body={"to": "é"}), keyed=False)
    assert isinstance(reply, HttpReply)
    assert (reply.status, reply.headers["x-trace"], reply.json()) == (202, "7", {"id": "m-1"})
    [seen] = gateway.received
    assert seen.json == {"to": "é"}
    assert seen.headers["content-type"] == "application/json"


def test_forms_and_queries_are_encoded_and_fields_without_a_value_left_out(client, gateway):
    request = HttpRequest(
        "POST", f"{gateway.url}/send?a=1", query={"b": "x&y", "c": None}, form={"text": "é+1 €", "none": None, "n": 7}
    )
    client.exchange(request, keyed=False)
    [seen] = gateway.received
    assert seen.query == {"a": "1", "b": "x&y"}
    assert seen.form == {"text": "é+1 €", "n": "7"}
    assert seen.headers["content-type"] == "application/x-www-form-urlencoded"


def test_a_refused_connection_is_tried_again_uncharged(client, closed_port):
    outcome = client.exchange(HttpRequest("POST", f"http://127.0.0.1:{closed_port}/"), keyed=False)
    assert isinstance(outcome, RetryLater)
    assert outcome.counts is False
    assert "cannot be reached" in outcome.reason


def test_an_unknown_host_is_tried_again_uncharged(client):
    outcome = client.exchange(HttpRequest("POST", "http://gateway.invalid/"), keyed=False)
    assert isinstance(outcome, RetryLater)
    assert outcome.counts is False


def test_a_failed_tls_handshake_is_tried_again_uncharged(client, gateway):
    outcome = client.exchange(HttpRequest("POST", f"https://127.0.0.1:{gateway.port}/"), keyed=False)
    assert isinstance(outcome, RetryLater)
    assert outcome.counts is False
    assert gateway.received == []


@pytest.mark.parametrize("acts", ["reset", "hang"])
def test_a_reply_lost_after_sending_is_unknown_without_a_key(hasty, gateway, acts):
    gateway.answer(acts=acts)
    outcome = hasty.exchange(HttpRequest("POST", gateway.url), keyed=False)
    assert isinstance(outcome, Unknown)
    assert len(gateway.received) == 1


def test_a_reply_lost_after_sending_is_tried_again_with_a_key(client, gateway):
    gateway.answer(acts="reset")
    outcome = client.exchange(HttpRequest("POST", gateway.url), keyed=True)
    assert isinstance(outcome, RetryLater)
    assert outcome.counts is True


def test_a_reply_that_trickles_in_is_given_up_when_the_whole_takes_too_long(hasty, gateway):
    gateway.answer(200, "x" * 200, acts="trickle")
    outcome = hasty.exchange(HttpRequest("POST", gateway.url), keyed=False)
    assert isinstance(outcome, Unknown)
    assert "longer than 0.15 s" in outcome.reason


def test_a_large_reply_is_cut_off(client, gateway):
    gateway.answer(200, "x" * 100_000)
    reply = client.exchange(HttpRequest("GET", gateway.url), keyed=True)
    assert isinstance(reply, HttpReply)
    assert reply.truncated
    assert len(reply.content) == 64 * 1024


def test_get_follows_redirects_within_the_host(client, gateway):
    gateway.answer(302, Location="/there?x=1")
    gateway.answer(200, "found")
    reply = client.exchange(HttpRequest("GET", gateway.url), keyed=True)
    assert isinstance(reply, HttpReply)
    assert reply.text == "found"
    assert gateway.received[1].path == "/there"


@pytest.mark.parametrize("target", ["http://169.254.169.254/latest", "https://127.0.0.1/", "http://127.0.0.1:1/"])
def test_a_redirect_to_another_place_is_refused(client, gateway, target):
    gateway.answer(302, Location=target)
    outcome = client.exchange(HttpRequest("GET", gateway.url), keyed=True)
    assert isinstance(outcome, Failed)
    assert "other hosts are refused" in outcome.reason
    assert len(gateway.received) == 1


def test_endless_redirects_end(client, gateway):
    gateway.answer(302, Location="/again")
    outcome = client.exchange(HttpRequest("GET", gateway.url), keyed=True)
    assert isinstance(outcome, Failed)
    assert len(gateway.received) == 6


def test_a_redirected_post_is_not_repeated(client, gateway):
    gateway.answer(307, Location="/elsewhere")
    outcome = client.exchange(HttpRequest("POST", gateway.url, body="x"), keyed=True)
    assert isinstance(outcome, Failed)
    assert len(gateway.received) == 1


@pytest.mark.parametrize(
    "request_",
    [
        HttpRequest("POST", "http://host\x00name/"),
        HttpRequest("POST", "http://127.0.0.1/", headers={"X-Name": "Zoë"}),
        HttpRequest("POST", "http://127.0.0.1/", body={"x": float("nan")}),
        HttpRequest("POST", "http://127.0.0.1/", body={"x": object()}),
        HttpRequest("POST", "gopher://127.0.0.1/"),
    ],
)
def test_what_is_no_http_request_fails_without_being_sent(client, request_):
    outcome = client.exchange(request_, keyed=False)
    assert isinstance(outcome, Failed)


def test_a_header_cannot_smuggle_another(client, gateway):
    outcome = client.exchange(HttpRequest("POST", gateway.url, headers={"X": "a\r\nEvil: 1"}), keyed=False)
    assert isinstance(outcome, Failed)
    assert gateway.received == []


def test_cookies_are_not_kept(client, gateway):
    gateway.answer(200, Set_Cookie="session=1")
    client.exchange(HttpRequest("GET", gateway.url), keyed=True)
    client.exchange(HttpRequest("GET", gateway.url), keyed=True)
    assert "cookie" not in gateway.received[1].headers


def test_proxies_of_the_environment_are_ignored(gateway, monkeypatch, closed_port):
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{closed_port}")
    client = HttpClient(concurrency=1, timeout=timedelta(seconds=5))
    try:
        assert isinstance(client.exchange(HttpRequest("GET", gateway.url), keyed=True), HttpReply)
    finally:
        client.close()


@pytest.mark.parametrize(
    ("header", "wait"),
    [
        ("120", timedelta(minutes=2)),
        ("0", timedelta(seconds=1)),
        ("999999999", timedelta(days=1)),
        ("Thu, 01 Jan 2026 12:05:00 GMT", timedelta(minutes=5)),
        ("Thu, 01 Jan 2026 11:00:00 GMT", timedelta(seconds=1)),
        ("soon", None),
        ("-5", None),
        ("١٢", None),
        ("", None),
    ],
)
def test_retry_after_is_read_within_reason(gateway, header, wait):
    gateway.answer(429, Retry_After=header.encode().decode("latin-1"))
    clock = FrozenClock(datetime(2026, 1, 1, 12, 0, tzinfo=UTC))
    client = HttpClient(concurrency=1, timeout=timedelta(seconds=5), clock=clock)
    try:
        reply = client.exchange(HttpRequest("GET", gateway.url), keyed=True)
    finally:
        client.close()
    assert isinstance(reply, HttpReply)
    assert reply.retry_after == wait


@pytest.mark.parametrize(
    ("url", "literal"),
    [
        ("https://crm.example", True),
        ("https://crm.example/{{ data.x }}", True),
        ("http://crm.example:8080?x={{ data.x }}", True),
        ("https://{{ data.host }}/", False),
        ("https://crm.{{ data.host }}/", False),
        ("https://crm.example{{ data.rest }}", False),
        ("https://crm.example:{{ data.port }}/", False),
        ("https://crm.example\\@evil.example/", False),
        ("https://user:pass@crm.example/", False),
        ("//crm.example/", False),
        ("ftp://crm.example/", False),
        ("/path", False),
        ("http://", False),
        ("http://:80/", False),
        ("http://crm.example:99999/", False),
        ("http://crm.example:0/", False),
        ("http://[::1]:8080/", True),
    ],
)
def test_a_host_is_literal_when_it_ends_before_any_template(url, literal):
    assert has_literal_host(url) is literal


def test_replies_that_break_the_limits_of_events_are_text():
    assert HttpReply(200, content=b'{"a": NaN}').body() == '{"a": NaN}'
    assert HttpReply(200, content=b"[" * 40 + b"]" * 40).json() is None
    assert HttpReply(200, content=b"a\x00\xff").body() == "a\ufffd\ufffd"
    assert HttpReply(204).body() is None
    assert HttpReply(200, content=b'\xef\xbb\xbf{"a": 1}').json() == {"a": 1}


def test_what_others_say_is_shown_without_numbers_and_on_one_line():
    assert presentable("The 'To' number +27821234567\nis wrong") == "The 'To' number +27*****4567 is wrong"
