"""What a broker's refusals tell of its queues, and what of that is weaker than ours."""

from __future__ import annotations

import socket
import threading
from contextlib import closing

import pytest

from dispatcher.settings import Settings
from dispatcher.sources.amqp import inspection
from dispatcher.sources.amqp.inspection import QueueSeen, _difference, inspect_broker, weaknesses
from dispatcher.sources.amqp.topology import queue_arguments

OURS = queue_arguments(Settings(), "vumi.event")


def a_queue(arguments, **fields):
    known = {"exists": True, "ready": 0, "consumers": 1, "durable": True, "auto_delete": False}
    return QueueSeen("vumi.event", arguments=arguments, **(known | fields))


def without(*names, **more):
    return {name: value for name, value in OURS.items() if name not in names} | more


def refusal(told, name="x-expires", thing="queue", received="none"):
    what = f"inequivalent arg '{name}' for {thing} 'q' in vhost '/'"
    return f"PRECONDITION_FAILED - {what}: received {received} but current is {told}"


# Each of them was said by RabbitMQ 3.10.8.
@pytest.mark.parametrize(
    ("text", "learnt"),
    [
        (refusal("the value '100000' of type 'signedint'"), ("x-expires", 100_000)),
        (refusal("the value '-1' of type 'long'"), ("x-expires", -1)),
        (refusal("the value 'true' of type 'bool'", "x-single-active-consumer"), ("x-single-active-consumer", True)),
        (refusal("the value 'it's' of type 'longstr'", "x-dead-letter-exchange"), ("x-dead-letter-exchange", "it's")),
        (refusal("the value '5' of type 'longstr'", "x-dead-letter-exchange"), ("x-dead-letter-exchange", "5")),
        (refusal("'50'", "x-delivery-limit", received="'51'"), ("x-delivery-limit", 50)),
        (refusal("'classic'", "x-queue-type", received="'quorum'"), ("x-queue-type", "classic")),
        (refusal("'false'", "durable", received="'true'"), ("durable", False)),
        (refusal("'topic'", "type", "exchange", received="'direct'"), ("type", "topic")),
        (refusal("none", received="the value '5' of type 'signedint'"), ("x-expires", None)),
    ],
)
def test_a_refusal_names_the_argument_that_differs_and_its_value(text, learnt):
    assert _difference(406, text) == learnt


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (403, "ACCESS_REFUSED - access to queue 'q' in vhost '/' refused for user 'u'"),
        (406, "PRECONDITION_FAILED - inequivalent arg 'x-expires' for queue 'qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqq..."),
        (406, refusal("the value '[{<<\"a\">>,1}]' of type 'table'")),
        (406, refusal("the value 'many' of type 'signedint'")),
        (406, "PRECONDITION_FAILED - something else"),
    ],
)
def test_what_cannot_be_understood_teaches_nothing(code, text):
    assert _difference(code, text) is None


def test_a_queue_like_ours_is_not_weak():
    assert list(weaknesses(a_queue(OURS), OURS)) == []


@pytest.mark.parametrize(
    ("queue", "said"),
    [
        (a_queue({}), "it is classic"),
        (a_queue({"x-queue-type": "stream"}), "it is a stream"),
        (a_queue(OURS, durable=False), "not durable"),
        (a_queue(OURS, auto_delete=True), "deletes itself"),
        (a_queue(without(**{"x-expires": 1000})), "x-expires=1000"),
        (a_queue(without(**{"x-message-ttl": 5})), "x-message-ttl=5"),
        (a_queue({"x-max-length": 9} | without("x-overflow", "x-dead-letter-strategy")), "x-max-length=9"),
        (a_queue(without("x-delivery-limit")), "no x-delivery-limit"),
        (a_queue(without("x-dead-letter-exchange")), "no x-dead-letter-exchange"),
        (a_queue(without("x-dead-letter-strategy")), "at-most-once"),
        (a_queue(without("x-overflow")), "x-overflow=drop-head"),
    ],
)
def test_each_way_of_losing_an_event_is_told(queue, said):
    assert any(said in weakness for weakness in weaknesses(queue, OURS))


def test_a_bounded_queue_that_refuses_publishers_loses_nothing():
    assert list(weaknesses(a_queue(without(**{"x-max-length": 9})), OURS)) == []


def test_who_wants_classic_queues_is_not_told_that_they_are_weak():
    assert list(weaknesses(a_queue({}), queue_arguments(Settings(amqp_queue_type="classic"), "vumi.event"))) == []


def test_of_what_was_not_seen_nothing_is_said():
    assert list(weaknesses(a_queue(None, unseen="403"), OURS)) == []


@pytest.fixture
def server():
    """Listens on loopback and does with each connection what it is told; yields its port and that list."""
    answers = []

    def serve():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(8)
                connection.sendall(answers[0])

    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1], answers
        listener.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"AMQP\x00\x01\x00\x00", b"\x01\x00\x00" * 30]
)
def test_who_is_no_broker_is_unreachable(server, answer):
    port, answers = server
    answers.append(answer)
    seen = inspect_broker(Settings(amqp_url=f"amqp://127.0.0.1:{port}"))

    assert seen.state == "unreachable"
    assert f"127.0.0.1:{port}" in seen.reason


def test_who_never_answers_is_given_up(monkeypatch):
    monkeypatch.setattr(inspection, "_PATIENCE", 0.05)
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        port = listener.getsockname()[1]
        seen = inspect_broker(Settings(amqp_url=f"amqp://127.0.0.1:{port}"))

    assert (seen.state, seen.reason) == ("unreachable", f"no answer from 127.0.0.1:{port} to the attempt to connect")


def test_a_password_file_that_is_not_there_is_a_reason(tmp_path):
    seen = inspect_broker(Settings(amqp_url="amqp://me@127.0.0.1:1", amqp_password_file=tmp_path / "none"))

    assert seen.state == "unreachable"
    assert "cannot be read" in seen.reason
