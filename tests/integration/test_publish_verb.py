"""`dispatcher publish --amqp` and a real broker: what is confirmed, what is told of the rest."""

from __future__ import annotations

import json

import pytest

from dispatcher import telemetry
from dispatcher.settings import Settings
from dispatcher.sources.amqp.handover import Handover
from tests.harness.proxy import ChaosProxy
from tests.harness.waiting import wait_until
from tests.unit.cli.conftest import an_event, dispatcher, here

__all__ = ["dispatcher", "here"]


@pytest.fixture(autouse=True)
def usual_logs():
    yield
    telemetry.configure()


@pytest.fixture
def queue(vhost):
    vhost.declare_queue("vumi.event", exchange="vumi")
    return vhost


def lines(*events) -> bytes:
    return b"".join(event if isinstance(event, bytes) else json.dumps(event).encode() + b"\n" for event in events)


def taken(vhost, count, queue="vumi.event"):
    """Take so many messages from a queue: (body, properties) each."""
    got = all_taken(vhost, queue)
    assert len(got) == count
    return got


def all_taken(vhost, queue="vumi.event"):
    """Take what is in a queue."""
    with vhost.channel() as channel:
        got = iter(lambda: channel.basic_get(queue, auto_ack=True), (None, None, None))
        return [(body, properties) for _, properties, body in got]


def test_each_line_becomes_a_persistent_message_of_its_own(dispatcher, queue, here):
    (here / "events.jsonl").write_bytes(lines(an_event(event_id="a"), b"\n", an_event(event_id=None)))
    said = dispatcher("publish", "--amqp", queue.url, "events.jsonl")

    assert said.code == 0
    shown = queue.url.replace(f":{queue.password}@", ":***@")
    assert said.err == f"2 confirmed by {shown}\n"
    (first, its), (_, other) = taken(queue, 2)
    assert json.loads(first)["event_id"] == "a"
    assert (its.delivery_mode, its.content_type, its.message_id) == (2, "application/json", "a")
    assert len(other.message_id) == 36
    assert not (here / "store.db").exists()


def test_the_variable_names_the_broker_too_and_any_other_file_is_one_event(dispatcher, queue, here, monkeypatch):
    monkeypatch.setenv("DISPATCHER_AMQP_URL", queue.url)
    (here / "event.json").write_text(json.dumps(an_event(), indent=2))

    assert dispatcher("publish", "event.json").code == 0
    ((body, _),) = taken(queue, 1)
    assert json.loads(body) == an_event()


def test_thousands_of_lines_arrive_in_their_order(dispatcher, queue):
    said = dispatcher("publish", "--amqp", queue.url, stdin=lines(*(an_event(event_id=str(n)) for n in range(3_000))))

    assert said.code == 0
    assert "3000 confirmed" in said.err
    assert [properties.message_id for _, properties in taken(queue, 3_000)] == [str(n) for n in range(3_000)]


def test_what_cannot_be_read_is_told_and_published_all_the_same(dispatcher, queue):
    said = dispatcher("publish", "--amqp", queue.url, "--json", stdin=lines(b"{\n", an_event(), b"\xff\n"))

    assert said.code == 1
    assert [line.split(": ")[:2] for line in said.err.splitlines()[:2]] == [
        ["line 1", "bad_json"],
        ["line 3", "bad_utf8"],
    ]
    assert said.document["confirmed"] == 3
    assert [(entry["line"], entry["code"]) for entry in said.document["refused"]] == [(1, "bad_json"), (3, "bad_utf8")]
    assert [body for body, _ in taken(queue, 3)][::2] == [b"{", b"\xff"]


def test_an_exchange_that_is_not_there_is_told_and_not_made(dispatcher, vhost):
    said = dispatcher("publish", "--amqp", vhost.url, stdin=lines(an_event(), an_event()))

    assert said.code == 1
    assert 'error: the broker refused lines 1-2: there is no exchange "vumi"' in said.err
    assert "`dispatcher run --amqp` makes the exchange 'vumi' and the queue 'vumi.event'" in said.err
    with vhost.channel() as channel, pytest.raises(Exception, match="no exchange 'vumi'"):
        channel.exchange_declare("vumi", passive=True)


def test_without_a_queue_no_line_is_confirmed_and_the_document_says_which(dispatcher, vhost):
    vhost.declare_queue("another", exchange="vumi")
    said = dispatcher("publish", "--amqp", vhost.url, "--json", stdin=lines(an_event(), an_event(event_id="e2")))

    assert said.code == 1
    document = said.document
    assert (document["confirmed"], document["unsent_from"]) == (0, None)
    assert [(entry["line"], entry["fate"]) for entry in document["unconfirmed"]] == [
        (1, "unroutable"),
        (2, "unroutable"),
    ]
    assert "no queue took lines 1-2: 312 NO_ROUTE" in said.err
    assert vhost.queues() == ["another"]


def test_after_a_refusal_nothing_more_is_sent(dispatcher, vhost):
    bounds = {"x-max-length": 5, "x-overflow": "reject-publish"}
    vhost.declare_queue("vumi.event", kind=None, arguments=bounds, exchange="vumi")
    said = dispatcher("publish", "--amqp", vhost.url, "--json", stdin=lines(*[an_event(event_id=None)] * 5_000))

    assert said.code == 1
    document = said.document
    assert document["confirmed"] + len(document["unconfirmed"]) + 1 == document["unsent_from"] <= 3_000
    assert {entry["fate"] for entry in document["unconfirmed"]} == {"refused"}
    assert f"Nothing was sent from line {document['unsent_from']} on." in said.err


def test_a_file_of_one_event_is_named_by_its_name(dispatcher, vhost, here):
    (here / "event.json").write_text(json.dumps(an_event()))
    said = dispatcher("publish", "--amqp", vhost.url, "event.json")

    assert "the broker refused event.json: there is no exchange" in said.err


def test_a_wrong_password_is_exit_code_4_and_is_not_repeated(dispatcher, vhost):
    said = dispatcher("publish", "--amqp", vhost.url.replace(vhost.password, "s3cret"), stdin=lines(an_event()))

    assert said.code == 4
    assert said.err.startswith("error: the broker refused the login")
    assert "s3cret" not in said.err
    assert f"The user is {vhost.user!r}, the password is that of the URL." in said.err


def test_without_the_right_to_write_the_way_to_it_is_told(dispatcher, queue):
    queue.set_permissions(write="^$")
    said = dispatcher("publish", "--amqp", queue.url, stdin=lines(an_event()))

    assert said.code == 1
    assert "error: the broker refused line 1: 403 ACCESS_REFUSED" in said.err
    assert f"The user {queue.user!r} has no right to write to the exchange 'vumi'" in said.err
    assert "dispatcher run" not in said.err


def test_a_broker_that_does_not_run_is_exit_code_4(dispatcher):
    said = dispatcher("publish", "--amqp", "amqp://guest:s3cret@127.0.0.1:1/", stdin=lines(an_event()))

    assert said.code == 4
    assert said.err.startswith("error: connection refused at 127.0.0.1:1.\n")


def test_a_connection_lost_midway_leaves_no_line_in_doubt_that_is_not_told(dispatcher, queue):
    events = lines(*(an_event(event_id=str(n)) for n in range(5_000)))
    with ChaosProxy(queue.port) as proxy:
        proxy.cut_after(1_000_000)
        said = dispatcher("publish", "--amqp", proxy.url(queue.url), "--json", stdin=events)

    assert said.code == 1
    document = said.document
    doubtful = {entry["line"] for entry in document["unconfirmed"]}
    unsent = document["unsent_from"]
    assert doubtful
    assert len(doubtful) <= 1_000
    assert {entry["fate"] for entry in document["unconfirmed"]} <= {"unknown", "unsent"}
    assert "nobody knows whether the broker has lines " in said.err
    assert document["confirmed"] + len(doubtful) == unsent - 1
    there = {int(properties.message_id) + 1 for _, properties in all_taken(queue)}
    assert set(range(1, unsent)) - doubtful <= there
    assert not there & set(range(unsent, 5_001))


def test_a_connection_lost_while_nothing_is_on_its_way_is_made_again(queue):
    with Handover(Settings(amqp_url=queue.url)) as out:
        assert out.send([(1, b"{}", "one")]) is None
        out.finish()
        queue.node.close_all_connections()
        wait_until(lambda: out._publisher.status.link.reconnects, "another connection")
        assert out.send([(2, b"{}", "two")]) is None
        out.finish()

    assert (out.confirmed, out.failures) == (2, [])
    assert [properties.message_id for _, properties in taken(queue, 2)] == ["one", "two"]
