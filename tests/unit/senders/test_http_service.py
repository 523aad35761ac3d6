from __future__ import annotations

import pytest
from pydantic import ValidationError

from dispatcher.plugins.outcomes import Failed, RetryLater, Unknown
from dispatcher.senders.http_service import HttpReply, HttpService


@pytest.fixture
def crm(gateway):
    service = HttpService(base_url=gateway.url + "/api/", headers={"Authorization": "Bearer s3cret"})
    service.open()
    yield service
    service.close()


@pytest.mark.parametrize(
    ("path", "seen_path"),
    [
        ("", "/api"),
        ("/people", "/api/people"),
        ("people", "/api/people"),
        ("?page=2", "/api"),
        ("//evil.example/x", "/api//evil.example/x"),
        ("@evil.example/x", "/api/@evil.example/x"),
        (".evil.example/x", "/api/.evil.example/x"),
        (":8080/x", "/api/:8080/x"),
        ("https://evil.example/x", "/api/https://evil.example/x"),
        ("\\\\evil.example\\x", "/api/\\\\evil.example\\x"),
    ],
)
def test_no_path_leaves_the_host(crm, gateway, path, seen_path):
    assert isinstance(crm.request("GET", path, key="k"), HttpReply)
    [seen] = gateway.received
    assert seen.path == seen_path
    assert seen.headers["host"] == f"127.0.0.1:{gateway.port}"


@pytest.mark.parametrize("path", ["/../admin", "/people/../../admin", "/%2e%2e/admin", "/a/./b", "..", "\\..\\x"])
def test_no_path_climbs(crm, gateway, path):
    assert isinstance(crm.request("GET", path, key="k"), Failed)
    assert gateway.received == []


def test_every_call_carries_the_services_headers_and_its_key(crm, gateway):
    crm.request("POST", "/people", key="key-1", headers={"X-Trace": "7"}, body={"name": "Thandi"})
    [seen] = gateway.received
    assert seen.headers["authorization"] == "Bearer s3cret"
    assert seen.headers["idempotency-key"] == "key-1"
    assert seen.headers["x-trace"] == "7"


def test_basic_authentication_is_offered(gateway):
    service = HttpService(base_url=gateway.url, username="u", password="p")
    service.open()
    service.request("GET", key="k")
    service.close()
    assert gateway.received[0].headers["authorization"] == "Basic dTpw"


def test_a_lost_reply_is_tried_again_as_the_key_allows(crm, gateway):
    gateway.answer(acts="reset")
    assert isinstance(crm.request("POST", "/pay", key="k"), RetryLater)


def test_without_keys_only_what_is_idempotent_by_itself_is_tried_again(gateway):
    service = HttpService(base_url=gateway.url, idempotency_header="none")
    service.open()
    gateway.answer(acts="reset")
    assert isinstance(service.request("POST", "/pay", key="k"), Unknown)
    assert isinstance(service.request("PUT", "/pay", key="k"), RetryLater)
    assert all("idempotency-key" not in seen.headers for seen in gateway.received)
    service.close()


@pytest.mark.parametrize("url", ["crm.example", "https://crm.example/?x=1", "https://crm.example/#x", "ftp://crm", ""])
def test_a_base_url_is_scheme_host_and_path(url):
    with pytest.raises(ValidationError, match="scheme, host"):
        HttpService(base_url=url)


def test_secrets_do_not_show():
    service = HttpService(base_url="https://crm.example", headers={"X": "canary"}, username="u", password="canary")
    assert "canary" not in repr(service) + str(service.model_dump()) + service.model_dump_json()


def test_closing_twice_is_harmless():
    service = HttpService(base_url="https://crm.example")
    service.open()
    service.close()
    service.close()
