"""The socket beside the store: a request is answered once, wherever it ends; nobody else may ask."""

from __future__ import annotations

import socket
import stat
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from dispatcher.errors import CannotStart, DispatcherError, NotFound, NotPossible, RowsRefused, UsageError
from dispatcher.worker import control
from dispatcher.worker.control import ControlClient, ControlServer, NoWorker, WorkerStopping


@pytest.fixture
def path(tmp_path):
    return tmp_path / "store.db.sock"


@pytest.fixture
def serve(path):
    servers = []

    def start(answer):
        server = ControlServer(path, answer)
        server.start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.stop()


def echo(request):
    request.reply({"verb": request.verb, **request.args})


def eventually(condition):
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_request_comes_back_with_its_result(path, serve):
    serve(echo)
    with ControlClient(path) as client:
        assert client.request("events.replay", {"event": "é", "n": [1, None]}) == {
            "verb": "events.replay",
            "event": "é",
            "n": [1, None],
        }
        assert client.request("again", {}) == {"verb": "again"}


@pytest.mark.parametrize("kind", [NotFound, NotPossible, UsageError, CannotStart, WorkerStopping])
def test_failure_is_raised_again_with_its_hint(path, serve, kind):
    serve(lambda request: request.fail(kind("no such run", hint="look again")))
    with ControlClient(path) as client, pytest.raises(kind) as caught:
        client.request("runs.retry", {})
    assert type(caught.value) is kind
    assert (caught.value.message, caught.value.hint) == ("no such run", "look again")


def test_failure_of_an_unusual_kind_is_still_an_error_of_ours(path, serve):
    serve(lambda request: request.fail(RowsRefused("the disk")))
    with ControlClient(path) as client, pytest.raises(DispatcherError, match="the disk"):
        client.request("publish", {})


def test_request_is_answered_from_another_thread_when_that_has_time(path, serve):
    waiting = []
    serve(waiting.append)
    with ThreadPoolExecutor() as pool, ControlClient(path) as client:
        answer = pool.submit(client.request, "runs.cancel", {"run": "r"})
        eventually(lambda: waiting)
        waiting[0].reply({"changed": 1})
        waiting[0].fail(NotPossible("a second answer is dropped"))
        assert answer.result(5) == {"changed": 1}


def test_many_clients_are_served_at_once(path, serve):
    serve(echo)

    def ask(number):
        with ControlClient(path) as client:
            return [client.request("n", {"number": number})["number"] for _ in range(20)]

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(ask, range(16))) == [[number] * 20 for number in range(16)]


def test_more_clients_than_there_is_room_for_wait_for_their_turn(path, serve, monkeypatch):
    monkeypatch.setattr(control, "_MOST_CONNECTIONS", 2)
    serve(echo)

    def ask(number):
        with ControlClient(path) as client:
            return client.request("n", {"number": number})["number"]

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(8))) == list(range(8))


def test_only_the_owner_may_connect(path, serve):
    serve(echo)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_socket_that_a_dead_worker_left_is_replaced(path, serve):
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    with ControlClient(path) as client, pytest.raises(NoWorker):
        client.request("n", {})
    serve(echo)
    with ControlClient(path) as client:
        assert client.request("n", {}) == {"verb": "n"}


def test_without_a_worker_nobody_listens(path, serve):
    with ControlClient(path) as client, pytest.raises(NoWorker, match="nobody listens"):
        client.request("n", {})
    serve(echo).stop()
    assert not path.exists()
    with ControlClient(path) as client, pytest.raises(NoWorker):
        client.request("n", {})


def test_stopping_refuses_what_was_not_taken_up_and_says_so(path, serve):
    waiting = []
    server = serve(waiting.append)
    with ThreadPoolExecutor() as pool, ControlClient(path) as client:
        answer = pool.submit(client.request, "runs.cancel", {})
        eventually(lambda: waiting)
        server.stop()
        with pytest.raises(WorkerStopping, match="the worker is stopping"):
            answer.result(5)


def test_answer_given_just_before_the_end_still_arrives(path, serve):
    waiting = []
    server = serve(waiting.append)
    with ThreadPoolExecutor() as pool, ControlClient(path) as client:
        answer = pool.submit(client.request, "runs.cancel", {})
        eventually(lambda: waiting)
        waiting[0].reply({"changed": 1})
        server.stop()
        assert answer.result(5) == {"changed": 1}


def test_stopping_does_not_wait_for_idle_clients(path, serve):
    server = serve(echo)
    with ControlClient(path) as client:
        client.request("n", {})
        began = time.monotonic()
        server.stop()
        assert time.monotonic() - began < 1
        assert not [thread for thread in threading.enumerate() if thread.name == "control-client"]
        with pytest.raises(NotPossible):
            client.request("n", {})


def test_worker_that_dies_leaves_the_outcome_unknown_and_says_so(path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with ThreadPoolExecutor() as pool, ControlClient(path) as client:
            answer = pool.submit(client.request, "runs.cancel", {})
            connection, _ = listener.accept()
            connection.recv(4096)
            connection.close()
            with pytest.raises(NotPossible, match="may have been done or not"):
                answer.result(5)


@pytest.mark.parametrize("frame", [b"nonsense", b"[1]", b'{"verb": "x"}', b'{"verb": 1, "args": {}}', b"[" * 100_000])
def test_frame_that_is_no_request_is_refused_and_the_connection_goes_on(path, serve, frame):
    serve(echo)
    with socket.socket(socket.AF_UNIX) as raw:
        raw.connect(str(path))
        for body in (frame, b'{"verb": "x", "args": {}}'):
            raw.sendall(struct.pack(">I", len(body)) + body)
        answers = [control._receive(raw), control._receive(raw)]
    assert b'"kind": "UsageError"' in answers[0]
    assert answers[1] == b'{"ok": true, "result": {"verb": "x"}}'


@pytest.mark.parametrize("sent", [struct.pack(">I", 2**31), b"\0\0", struct.pack(">I", 100) + b"{"])
def test_broken_frame_ends_only_its_own_connection(path, serve, sent):
    serve(echo)
    with socket.socket(socket.AF_UNIX) as raw:
        raw.connect(str(path))
        raw.sendall(sent)
        raw.shutdown(socket.SHUT_WR)
        assert raw.recv(1) == b""
    with ControlClient(path) as client:
        assert client.request("n", {}) == {"verb": "n"}


def test_request_that_fits_in_no_frame_is_refused_by_the_client(path, serve, monkeypatch):
    serve(echo)
    monkeypatch.setattr(control, "LARGEST_FRAME", 100)
    with ControlClient(path) as client, pytest.raises(UsageError, match="at most 100 can be handed"):
        client.request("publish", {"bodies": ["x" * 200]})


def test_folder_that_cannot_hold_a_socket_is_told(tmp_path):
    with pytest.raises(CannotStart, match="cannot listen on"):
        ControlServer(tmp_path / "missing" / "s.sock", echo).start()
