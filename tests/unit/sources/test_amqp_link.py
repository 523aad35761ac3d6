"""A link tries for ever, tells a reason once, survives its role, and ends when it is told to. Without a broker."""

from __future__ import annotations

import itertools
import json
import socket
import threading
import time

import pytest

from dispatcher.settings import Settings
from dispatcher.sources.amqp.link import LONGEST_PAUSE_SECONDS, Link
from tests.harness.rabbit import free_port
from tests.harness.waiting import wait_until


class Role:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def connected(self, connection) -> None:
        self.told.append("connected")

    def ticked(self) -> None:
        self.told.append("ticked")

    def disconnected(self, reason: str) -> None:
        self.told.append(reason)


@pytest.fixture
def make_link():
    links = []

    def make(port: int, **settings) -> Link:
        settings = {"amqp_url": f"amqp://thandi:s3cret@127.0.0.1:{port}/", **settings}
        links.append(Link("consumer", Settings(**settings), Role()))
        links[-1].start()
        return links[-1]

    yield make
    for link in links:
        link.stop(0)


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", free_port())) as server:
        yield server


def attempts_at(server: socket.socket, count: int) -> list[float]:
    """Hang up on so many attempts; when they came."""
    server.settimeout(20)
    times = []
    for _ in range(count):
        server.accept()[0].close()
        times.append(time.monotonic())
    return times


def disconnections(capfd) -> list[dict]:
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == "amqp.disconnected"]


def test_nobody_listens_which_is_told_once_while_it_is_tried_on(make_link, capfd):
    port = free_port()
    link = make_link(port)
    wait_until(lambda: link.status.state == "down", "the first attempt")
    assert link.status.reason == f"connection refused at 127.0.0.1:{port}"
    since = link.status.since
    with socket.create_server(("127.0.0.1", port)) as server:
        attempts_at(server, 1)
    wait_until(lambda: "word of AMQP" in link.status.reason, "the other reason")

    assert link.status.since == since  # it was down all the time
    assert [line["connection"] for line in disconnections(capfd)] == ["consumer", "consumer"]
    assert link._role.told == []


def test_attempts_are_about_a_second_apart_at_least_and_never_stop(make_link, listener):
    make_link(listener.getsockname()[1])

    times = attempts_at(listener, 3)

    pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert all(pause > 0.4 for pause in pauses)


def test_pauses_grow_to_a_limit_and_differ():
    link = Link("consumer", Settings(amqp_url="amqp://x"), Role())
    pauses = [link._pause() for _ in range(200)]

    assert all(0.5 <= pause <= 1.0 for pause in pauses[:1])
    assert all(0.5 <= pause <= LONGEST_PAUSE_SECONDS for pause in pauses)
    assert max(pauses) > 3
    assert len(set(pauses)) == 200


def test_settings_that_cannot_be_used_are_a_reason_and_may_be_mended_meanwhile(make_link, tmp_path):
    secret = tmp_path / "password"
    port = free_port()
    link = make_link(port, amqp_url=f"amqp://thandi@127.0.0.1:{port}", amqp_password_file=secret)
    wait_until(lambda: str(secret) in (link.status.reason or ""), "the reason")

    secret.write_text("x")

    wait_until(lambda: "refused" in link.status.reason, "the next attempt")


def test_nothing_is_called_while_there_is_no_connection(make_link):
    link = make_link(free_port())
    wait_until(lambda: link.status.state == "down", "the first attempt")

    assert not link.call(lambda: pytest.fail("called"))
    link.drop("nothing to drop")


def test_stopping_ends_an_attempt_that_nobody_answers(make_link, listener):
    link = make_link(listener.getsockname()[1])
    with listener.accept()[0]:  # and not a word
        link.stop(0)

    assert link.status.state == "stopped"
    assert not [thread for thread in threading.enumerate() if thread.name == "amqp-consumer"]


def test_stopping_ends_the_pause_between_attempts(make_link):
    link = make_link(free_port())
    wait_until(lambda: link.status.state == "down", "the first attempt")

    link.stop(0)

    assert link.status.state == "stopped"
    assert not [thread for thread in threading.enumerate() if thread.name == "amqp-consumer"]


def test_a_link_that_never_started_stops():
    link = Link("consumer", Settings(amqp_url="amqp://x"), Role())

    link.stop(1)

    assert link.status.state == "stopped"


def test_no_status_and_no_line_holds_the_password(make_link, listener, capfd):
    link = make_link(listener.getsockname()[1])
    attempts_at(listener, 1)
    wait_until(lambda: link.status.state == "down", "the end")
    link.stop(0)

    assert "s3cret" not in str(link.status)
    assert "s3cret" not in "".join(capfd.readouterr())
