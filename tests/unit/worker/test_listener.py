from __future__ import annotations

import http.client
import json
import socket
import stat
import threading
import time
from contextlib import ExitStack

import pytest

from dispatcher.errors import CannotStart
from dispatcher.worker import listener as module
from dispatcher.worker.health import Readiness
from dispatcher.worker.listener import LONGEST_REQUEST, METRICS_TYPE, MOST_CONNECTIONS, Listener

LOOPBACK = ("127.0.0.1", 0)
DEADLINE = 10.0


class Told:
    """What the worker says, as the test sets it."""

    def __init__(self):
        self.live = Readiness(ready=True)
        self.ready = Readiness(ready=True)
        self.metrics = b"dispatcher_live 1.0\n"

    def ask(self, name):
        said = getattr(self, name)
        if isinstance(said, Exception):
            raise said
        return said() if callable(said) else said


@pytest.fixture
def told():
    return Told()


def a_listener(told, address=LOOPBACK):
    return Listener(
        address,
        live=lambda: told.ask("live"),
        ready=lambda: told.ask("ready"),
        metrics=lambda: told.ask("metrics"),
    )


@pytest.fixture
def listener(told):
    listener = a_listener(told)
    listener.start()
    yield listener
    listener.stop()


@pytest.fixture
def lines(monkeypatch):
    """What was logged meanwhile."""
    written = []

    class Log:
        def info(self, event, **fields):
            written.append((event, fields))

        error = info

    monkeypatch.setattr(module, "log", Log())
    return written


def get(listener, path, method="GET", **headers):
    connection = http.client.HTTPConnection(*listener.address, timeout=DEADLINE)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer, body


def raw(listener, sent):
    """Send bytes and return all that comes back."""
    with socket.create_connection(listener.address, timeout=DEADLINE) as connection:
        connection.sendall(sent)
        parts = []
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


def wait_until(condition):
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(0.005)


def serving(listener):
    with listener._lock:
        return len(listener._serving)


# Answers.


@pytest.mark.parametrize("path", ["/live", "/ready"])
def test_a_worker_that_is_well_says_so_with_200(listener, path):
    answer, body = get(listener, path)

    assert answer.status == 200
    assert answer.headers["Content-Type"] == "application/json"
    assert json.loads(body) == {path[1:]: True, "reasons": []}


@pytest.mark.parametrize("path", ["/live", "/ready"])
def test_a_worker_that_is_not_says_why_with_503(listener, told, path):
    told.live = told.ready = Readiness(ready=False, reasons=("draining", "queue “é” is not consumed"))

    answer, body = get(listener, path)

    assert answer.status == 503
    assert json.loads(body) == {path[1:]: False, "reasons": ["draining", "queue “é” is not consumed"]}


def test_live_and_ready_are_told_apart(listener, told):
    told.ready = Readiness(ready=False, reasons=("draining",))

    assert [get(listener, path)[0].status for path in ("/live", "/ready")] == [200, 503]


def test_metrics_are_handed_on_as_they_are(listener, told):
    told.metrics = b"x" * 3_000_000

    answer, body = get(listener, "/metrics")

    assert (answer.status, answer.headers["Content-Type"]) == (200, METRICS_TYPE)
    assert answer.headers["Content-Length"] == "3000000"
    assert body == told.metrics


def test_a_query_does_not_matter(listener):
    assert get(listener, "/live?verbose=1")[0].status == 200


def test_head_gives_the_head_only(listener):
    answer, body = get(listener, "/live", method="HEAD")

    assert (answer.status, body) == (200, b"")
    assert answer.headers["Content-Length"] == str(len(get(listener, "/live")[1]))


def over_a_socket(path):
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(DEADLINE)
        connection.connect(str(path))
        connection.sendall(b"GET /live HTTP/1.0\r\n\r\n")
        return connection.makefile("rb").read()


def test_a_unix_socket_is_for_its_owner_and_goes_with_the_worker(told, tmp_path):
    path = tmp_path / "http.sock"
    listener = a_listener(told, path)
    listener.start()

    assert over_a_socket(path).startswith(b"HTTP/1.0 200 ")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    listener.stop()
    assert not path.exists()


def test_the_unix_socket_of_a_process_that_died_is_taken_over(told, tmp_path):
    path = tmp_path / "http.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    listener = a_listener(told, path)
    listener.start()

    assert over_a_socket(path).startswith(b"HTTP/1.0 200 ")
    listener.stop()


def test_a_unix_socket_in_use_is_left_alone(told, tmp_path):
    path = tmp_path / "http.sock"
    listener = a_listener(told, path)
    listener.start()

    with pytest.raises(CannotStart, match=r"cannot serve health and metrics on unix:/.*in use"):
        a_listener(told, path).start()
    assert over_a_socket(path).startswith(b"HTTP/1.0 200 ")
    listener.stop()


@pytest.mark.parametrize("path", ["/", "/live/", "/readyz", "/../live", "//metrics/.."])
def test_other_paths_are_not_there_and_the_answer_names_those_that_are(listener, path):
    answer, body = get(listener, path)

    assert (answer.status, body) == (404, b"there is /live, /ready, /metrics\n")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "BREW"])
def test_nothing_but_reading_is_allowed(listener, method):
    answer, _ = get(listener, "/live", method=method)

    assert answer.status == 405
    assert answer.headers["Allow"] == "GET, HEAD"


def test_a_body_that_nobody_wants_does_not_lose_the_answer(listener):
    head = b"POST /live HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n"

    assert raw(listener, head + b"x" * 60_000).startswith(b"HTTP/1.0 405 ")


def test_lines_that_end_as_unix_ends_them_are_read(listener):
    assert raw(listener, b"GET /live HTTP/1.0\n\n").startswith(b"HTTP/1.0 200 ")


@pytest.mark.parametrize(
    "sent",
    [
        b"\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET /live HTTP/9.9\r\n\r\n",
        b"GET /live HTTP/1.x\r\n\r\n",
        b"GET /live HTTP/1.0 and more\r\n\r\n",
        b"GET " + b"/" * 4000 + b"\xff HTTP/1.0\r\n\r\n",
        b"GET /live HTTP/1.1\r\n" + b"x: y\r\n" * 200 + b"\r\n",
    ],
)
def test_what_is_no_request_of_ours_is_refused_and_harms_nothing(listener, sent):
    answer = raw(listener, sent)

    assert not answer or answer.split()[1] in (b"400", b"404", b"431", b"505")
    assert b"<html" not in answer.lower()
    assert get(listener, "/live")[0].status == 200


@pytest.mark.parametrize(
    "sent", [b"GET /" + b"x" * LONGEST_REQUEST, b"GET /live HTTP/1.0\r\nx: " + b"y" * LONGEST_REQUEST + b"\r\n\r\n"]
)
def test_a_request_that_is_too_long_is_refused(listener, sent):
    assert raw(listener, sent).startswith(b"HTTP/1.0 431 ")


# What goes wrong on our side.


@pytest.mark.parametrize("path", ["/live", "/ready", "/metrics"])
def test_what_cannot_be_told_is_500_and_logged_once(told, lines, path):
    listener = a_listener(told)
    listener.start()
    setattr(told, path[1:], ValueError("an odd number"))
    try:
        answers = [get(listener, path) for _ in range(3)]
    finally:
        listener.stop()

    assert [answer.status for answer, _ in answers] == [500] * 3
    assert answers[0][1] == f"{path} cannot be told: ValueError; the worker's log says more\n".encode()
    failed = [fields for event, fields in lines if event == "listener.failed"]
    assert [(fields["path"], str(fields["error"])) for fields in failed] == [(path, "an odd number")]


def test_a_fault_that_comes_back_is_logged_again(listener, told, lines):
    for said in (ValueError("1"), b"well", ValueError("2")):
        told.metrics = said
        get(listener, "/metrics")

    assert [str(fields["error"]) for _, fields in lines] == ["1", "2"]


def test_requests_are_no_log_lines(listener, lines, capfd):
    get(listener, "/live")
    get(listener, "/nowhere")
    raw(listener, b"nonsense\r\n\r\n")

    assert lines == []
    assert capfd.readouterr() == ("", "")


def test_a_client_that_breaks_off_is_no_line_on_stderr(listener, told, capfd):
    told.metrics = b"x" * 10_000_000
    for sent in (b"", b"GET /li", b"GET /metrics HTTP/1.0\r\n\r\n"):
        connection = socket.create_connection(listener.address)
        # Off with it at once: what it sent last may be under way.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        connection.sendall(sent)
        connection.close()
    wait_until(lambda: serving(listener) == 0)

    assert capfd.readouterr().err == ""
    assert get(listener, "/live")[0].status == 200


# Who is slow.


def test_clients_that_do_not_finish_their_requests_do_not_keep_others_out(listener):
    with ExitStack() as stack:
        slow = [stack.enter_context(socket.create_connection(listener.address)) for _ in range(3 * MOST_CONNECTIONS)]
        for connection in slow[-MOST_CONNECTIONS:]:
            connection.sendall(b"GET /live HTT")

        for _ in range(MOST_CONNECTIONS):
            assert get(listener, "/live")[0].status == 200
        assert serving(listener) <= MOST_CONNECTIONS


def test_a_request_that_does_not_come_in_time_is_given_up_though_it_drips(told, monkeypatch):
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.2)
    listener = a_listener(told)
    listener.start()
    try:
        with socket.create_connection(listener.address, timeout=DEADLINE) as connection:
            connection.settimeout(0.02)
            deadline = time.monotonic() + DEADLINE
            while time.monotonic() < deadline:
                try:
                    connection.sendall(b"G")
                    assert connection.recv(1) == b""
                    break
                except TimeoutError:
                    continue
                except OSError:
                    break  # sent into a connection that is gone
            assert time.monotonic() < deadline
    finally:
        listener.stop()


def test_a_client_that_does_not_take_its_answer_is_given_up(told, monkeypatch):
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.2)
    told.metrics = b"x" * 50_000_000
    listener = a_listener(told)
    listener.start()
    try:
        with socket.create_connection(listener.address) as connection:
            connection.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            wait_until(lambda: serving(listener) == 1)
            wait_until(lambda: serving(listener) == 0)
    finally:
        listener.stop()


def test_when_all_are_being_answered_one_more_is_sent_away_and_later_is_welcome(listener, told):
    asked, goes_on = threading.Semaphore(0), threading.Event()

    def slowly():
        asked.release()
        assert goes_on.wait(DEADLINE)
        return b"slow\n"

    told.metrics = slowly
    with ExitStack() as stack:
        busy = [stack.enter_context(socket.create_connection(listener.address)) for _ in range(MOST_CONNECTIONS)]
        for connection in busy:
            connection.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            assert asked.acquire(timeout=DEADLINE)

        with socket.create_connection(listener.address, timeout=DEADLINE) as connection:
            assert connection.recv(1) == b""
        goes_on.set()
        for connection in busy:
            connection.settimeout(DEADLINE)
            assert connection.recv(65536).startswith(b"HTTP/1.0 200 ")
    wait_until(lambda: serving(listener) == 0)
    assert get(listener, "/live")[0].status == 200


# Begin and end.


def test_an_address_that_is_taken_is_told_before_anything_begins(told):
    with socket.create_server(LOOPBACK) as other:
        port = other.getsockname()[1]

        with pytest.raises(CannotStart) as refused:
            a_listener(told, ("127.0.0.1", port)).start()

    assert f"cannot serve health and metrics on 127.0.0.1:{port}: Address already in use." in str(refused.value)
    assert "--http" in str(refused.value)


@pytest.mark.parametrize("host", ["no-such-host.invalid", "192.0.2.1", "a..b"])
def test_a_host_that_is_not_this_machine_is_told(told, host):
    with pytest.raises(CannotStart, match=f"on {host}:9464: "):
        a_listener(told, (host, 9464)).start()


def test_an_address_of_version_6_is_served(told):
    listener = a_listener(told, ("::1", 0))
    try:
        listener.start()
    except CannotStart:
        return  # this machine speaks no IPv6
    assert get(listener, "/live")[0].status == 200
    listener.stop()


def test_the_start_tells_the_address(told, lines):
    listener = a_listener(told)
    listener.start()
    host, port = listener.address
    listener.stop()

    assert lines == [("listener.started", {"address": f"{host}:{port}"})]


def test_the_port_is_free_again_once_it_has_stopped(told):
    first = a_listener(told)
    first.start()
    address = first.address
    get(first, "/live")
    first.stop()

    second = a_listener(told, address)
    second.start()
    assert get(second, "/live")[0].status == 200
    second.stop()


def test_stop_lets_go_of_whoever_is_connected_and_leaves_no_thread(told):
    listener = a_listener(told)
    listener.start()
    with socket.create_connection(listener.address, timeout=DEADLINE) as connection:
        connection.sendall(b"GET /live")
        wait_until(lambda: serving(listener) == 1)

        listener.stop()

        assert connection.recv(1) == b""
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("http")] == []


def test_stop_may_come_twice_or_without_a_start(told):
    listener = a_listener(told)
    listener.stop()
    listener.start()
    listener.stop()
    listener.stop()
