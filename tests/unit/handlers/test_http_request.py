from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from dispatcher import Bindings, Done, Effect, Failed, HttpService, RetryLater, Unknown
from dispatcher.plugins.services import Service
from dispatcher.testing import run_handler
from handlers.http_request import HttpRequest

CRM = HttpService(base_url="https://crm.example")


@pytest.fixture
def server():
    """A server that answers as its attributes say, and remembers what it was asked."""

    class Handling(BaseHTTPRequestHandler):
        def handle_any(self):
            length = int(self.headers.get("content-length", 0))
            listening.seen.append((self.command, self.path, dict(self.headers.items()), self.rfile.read(length)))
            self.send_response(listening.status)
            for name, value in listening.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(listening.body)

        do_GET = do_POST = do_PATCH = handle_any  # noqa: N815

        def log_message(self, *args):
            pass

    listening = HTTPServer(("127.0.0.1", 0), Handling)
    listening.seen, listening.status, listening.headers, listening.body = [], 200, {}, b'{"id": 7}'
    listening.url = f"http://127.0.0.1:{listening.server_address[1]}"
    thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield listening
    listening.shutdown()
    thread.join()
    listening.server_close()


@pytest.fixture
def crm(server):
    service = HttpService(base_url=server.url + "/api", headers={"X-Token": "t"})
    service.open()
    yield service
    service.close()


def test_a_service_is_called_and_its_json_offered(server, crm):
    params = {"service": "crm", "method": "POST", "url": "/people", "query": {"v": 2}, "body": {"name": "Thandi"}}
    run = run_handler(HttpRequest, params, services={"crm": crm})
    assert run.result == {"status": 200, "body": {"id": 7}, "truncated": False}
    assert set(run.result) == set(HttpRequest.Result.model_fields)
    [(method, path, headers, content)] = server.seen
    assert (method, path) == ("POST", "/api/people?v=2")
    assert json.loads(content) == {"name": "Thandi"}
    assert headers["x-token"] == "t"
    assert headers["idempotency-key"] == run.context.idempotency_key


def test_a_literal_host_needs_no_service(server):
    server.body = b"pong"
    run = run_handler(HttpRequest, {"url": f"{server.url}/ping?x=1"})
    assert run.result["body"] == "pong"
    assert server.seen[0][1] == "/ping?x=1"


@pytest.mark.parametrize(
    ("status", "headers", "expected"),
    [
        (201, {}, Done),
        (400, {}, Failed),
        (401, {}, Failed),
        (404, {}, Failed),
        (409, {}, Failed),
        (429, {"Retry-After": "9"}, RetryLater),
        (500, {}, RetryLater),
        (503, {"Retry-After": "9"}, RetryLater),
    ],
)
def test_statuses_decide(server, crm, status, headers, expected):
    server.status, server.headers = status, headers
    outcome = run_handler(HttpRequest, {"service": "crm", "method": "POST"}, services={"crm": crm}).outcome
    assert isinstance(outcome, expected)
    if isinstance(outcome, RetryLater):
        assert outcome.counts is (status != 429)
        assert (outcome.after is not None) is bool(headers)


def test_without_keys_a_failing_post_is_unknown_and_a_get_tried_again(server):
    server.status = 500
    service = HttpService(base_url=server.url, idempotency_header=None)
    service.open()
    try:
        post = run_handler(HttpRequest, {"service": "crm", "method": "POST"}, services={"crm": service})
        get = run_handler(HttpRequest, {"service": "crm"}, services={"crm": service})
    finally:
        service.close()
    assert isinstance(post.outcome, Unknown)
    assert post.settled.keyed is False
    assert isinstance(get.outcome, RetryLater)
    assert get.settled.keyed is True


def test_a_refused_connection_is_tried_again_uncharged(server):
    server.shutdown()
    server.server_close()
    outcome = run_handler(HttpRequest, {"url": server.url, "method": "POST"}).outcome
    assert isinstance(outcome, RetryLater)
    assert outcome.counts is False


def test_a_redirect_to_another_host_fails(server):
    server.status, server.headers = 302, {"Location": "http://169.254.169.254/latest/meta-data"}
    outcome = run_handler(HttpRequest, {"url": server.url}).outcome
    assert isinstance(outcome, Failed)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "/path",
        "{{ data.url }}",
        "https://{{ data.host }}/x",
        "https://crm.example{{ data.rest }}",
        "https://crm.example:{{ data.port }}/",
        "https://a@crm.example/",
        "file:///etc/passwd",
    ],
)
def test_data_never_fills_the_host(url):
    problems = dict(HttpRequest.check_params({"url": url}, Bindings({}, {})))
    assert "url" in problems


@pytest.mark.parametrize("url", ["https://crm.example/people/{{ data.id }}", "http://localhost:8080?x={{ data.x }}"])
def test_data_may_fill_what_follows_the_host(url):
    assert list(HttpRequest.check_params({"url": url}, Bindings({}, {}))) == []


def test_with_a_service_the_url_is_a_path():
    bindings = Bindings({}, {"crm": CRM})
    assert list(HttpRequest.check_params({"service": "crm", "url": "{{ data.path }}"}, bindings)) == []
    assert dict(HttpRequest.check_params({"service": "crm", "url": "https://evil.example/"}, bindings))["url"]


def test_only_an_http_service_will_do():
    class Other(Service):
        """Another."""

    bindings = Bindings({}, {"crm": Other()})
    assert dict(HttpRequest.check_params({"service": "crm"}, bindings))["service"]


def test_its_lane_is_the_services():
    settled = HttpRequest.settle({"service": "crm", "method": "POST"}, Bindings({}, {"crm": CRM}))
    assert (settled.effect, settled.connection, settled.keyed) == (Effect.CALL, "service:crm", True)
