"""`dispatcher doctor` and a real broker: what it sees by AMQP alone."""

from __future__ import annotations

import pytest

from dispatcher.cli.broker import broker_findings
from dispatcher.settings import Settings
from dispatcher.sources.amqp.inspection import inspect_broker
from dispatcher.sources.amqp.topology import queue_arguments
from tests.harness.waiting import wait_until
from tests.unit.cli.conftest import dispatcher, here

__all__ = ["dispatcher", "here"]

OURS = queue_arguments(Settings(), "vumi.event")


@pytest.fixture
def doctor(dispatcher, vhost):
    """Asks about the vhost's broker; returns what was said."""

    def ask(**replaced):
        return dispatcher("doctor", "--json", "--amqp", replaced.get("url", vhost.url))

    return ask


def found(said, area):
    return [(finding["level"], finding["message"]) for finding in said.document["findings"] if finding["area"] == area]


def look(vhost, *others, **fields):
    return inspect_broker(Settings(amqp_url=vhost.url, **fields), others)


def declare_ours(vhost):
    vhost.declare_queue("vumi.event", kind=None, arguments=OURS, exchange="vumi")
    vhost.declare_queue("vumi.event.dead", exchange="vumi.dead", routing_key="vumi.event")


def test_what_the_worker_makes_is_in_order(doctor, vhost):
    declare_ours(vhost)
    said = doctor()

    assert said.code == 0
    ((level, told),) = found(said, "broker")
    assert level == "ok"
    assert "RabbitMQ" in told
    assert vhost.password not in said.out
    assert found(said, "exchange") == [("ok", "vumi: direct, durable")]
    assert found(said, "queue") == [("ok", "vumi.event: quorum, 0 ready, 0 consumers")]
    assert found(said, "broker dead") == []
    assert said.document["broker"]["queues"][0]["arguments"] == OURS


def test_what_is_missing_is_told_and_not_made(doctor, vhost):
    said = doctor()

    assert said.code == 0
    assert found(said, "exchange") == [("look", "there is no vumi yet")]
    assert found(said, "queue") == [("look", "there is no vumi.event yet: events for it go nowhere")]
    assert vhost.queues() == []


def test_nobody_else_to_make_it_is_wrong(doctor, vhost, monkeypatch):
    monkeypatch.setenv("DISPATCHER_AMQP_DECLARE", "false")

    assert doctor().code == 1


def test_a_queue_as_vumi_declares_it_is_classic(doctor, vhost):
    vhost.declare_queue("vumi.event", kind=None, exchange="vumi")
    ((level, told),) = found(doctor(), "queue")

    assert level == "look"
    assert told.startswith("vumi.event: 0 ready, 0 consumers; it is classic")


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"x-message-ttl": 1_000_000, "x-expires": 1_000_000, "x-max-length": 5, "x-max-length-bytes": 99},
        {"x-max-priority": 3, "x-single-active-consumer": True, "x-queue-mode": "lazy", "x-overflow": "reject-publish"},
        {"x-dead-letter-exchange": "it's", "x-dead-letter-routing-key": "but current is none"},
        {"x-queue-type": "quorum"},
        {"x-queue-type": "quorum", "x-delivery-limit": 3, "x-max-length": 5, "x-single-active-consumer": True},
        OURS | {"x-dead-letter-strategy": "at-most-once", "x-overflow": "drop-head"},
        {"x-queue-type": "stream", "x-max-age": "1D"},
    ],
)
def test_the_arguments_of_a_queue_are_learnt_whatever_they_are(vhost, arguments):
    vhost.declare_queue("vumi.event", kind=None, arguments=arguments)
    (queue,) = look(vhost).queues

    assert queue.unseen is None
    assert queue.arguments == arguments
    assert (queue.durable, queue.auto_delete) == (True, False)


def test_a_queue_that_vanishes_is_seen_as_such(vhost):
    with vhost.channel() as channel:
        channel.queue_declare("vumi.event", auto_delete=True)
        (queue,) = look(vhost).queues

    assert (queue.durable, queue.auto_delete, queue.kind) == (False, True, "classic")


def test_a_queue_of_another_connection_alone_cannot_be_used(doctor, vhost):
    with vhost.channel() as channel:
        channel.queue_declare("vumi.event", exclusive=True)
        said = doctor()

    assert said.code == 1
    ((level, told),) = found(said, "queue")
    assert level == "wrong"
    assert "405 RESOURCE_LOCKED" in told


def test_a_name_so_long_that_the_broker_cuts_its_words_is_told(vhost):
    name = "q" * 250
    vhost.declare_queue(name, kind=None)
    (queue,) = look(vhost, amqp_queues=name).queues

    assert (queue.exists, queue.ready, queue.arguments) == (True, 0, None)
    assert "406 PRECONDITION_FAILED" in queue.unseen


def test_without_the_permission_to_configure_less_is_seen(doctor, vhost):
    declare_ours(vhost)
    vhost.set_permissions(configure="^$")
    said = doctor()

    assert said.code == 0
    ((level, told),) = found(said, "queue")
    assert level == "ok"
    assert told.startswith("vumi.event: 0 ready, 0 consumers; its arguments cannot be seen: the broker refused (403")


def test_messages_that_wait_and_those_that_are_dead_are_counted(doctor, vhost):
    declare_ours(vhost)
    with vhost.channel() as channel:
        channel.confirm_delivery()
        for key in ("vumi.event", "vumi.event", "vumi.event.dead"):
            channel.basic_publish("", key, b"{}")
    said = doctor()

    assert found(said, "queue") == [("ok", "vumi.event: quorum, 2 ready, 0 consumers")]
    assert found(said, "broker dead")[0][1].startswith("vumi.event.dead holds 1 event that")


def test_dead_messages_that_go_nowhere_are_told(doctor, vhost):
    vhost.declare_queue("vumi.event", kind=None, arguments=OURS, exchange="vumi")
    ((level, told),) = found(doctor(), "broker dead")

    assert level == "look"
    assert "the exchange vumi.dead, which is not there" in told


def test_another_consumer_is_told(doctor, vhost):
    declare_ours(vhost)
    with vhost.channel() as channel:
        for _ in range(2):
            channel.basic_consume("vumi.event", lambda *_: None)
        said = doctor()

    told = "vumi.event: 2 consumers; another program reads it too, to which a worker leaves the whole queue"
    assert ("look", told) in found(said, "queue")


def shared_store(vhost, **more):
    """What is found by settings that name a store which workers share."""
    settings = Settings(amqp_url=vhost.url, store="postgresql://db/dispatcher")
    findings = broker_findings(settings, inspect_broker(settings, ()), **more)
    return [(finding.level, finding.message) for finding in findings if finding.area == "queue"]


def test_several_consumers_are_as_it_should_be_where_workers_share_the_store(vhost):
    declare_ours(vhost)
    with vhost.channel() as channel:
        for _ in range(3):
            channel.basic_consume("vumi.event", lambda *_: None)
        for workers in (None, 3, 4):
            assert shared_store(vhost, worker_runs=True, workers=workers) == [
                ("ok", "vumi.event: quorum, 0 ready, 3 consumers")
            ]


@pytest.mark.parametrize(("workers", "told"), [(1, "1 worker shares"), (2, "2 workers share"), (0, "0 workers share")])
def test_more_consumers_than_workers_that_share_the_store_are_told(vhost, workers, told):
    declare_ours(vhost)
    with vhost.channel() as channel:
        for _ in range(3):
            channel.basic_consume("vumi.event", lambda *_: None)
        _, found_next = shared_store(vhost, worker_runs=None, workers=workers)

    others = f"vumi.event: 3 consumers; {told} this store, so another program reads it too, and gets its part"
    assert found_next == ("look", others)


def test_an_exchange_that_pays_no_heed_to_names_is_wrong(doctor, vhost):
    with vhost.channel() as channel:
        channel.exchange_declare("vumi", "fanout", durable=True)
    said = doctor()
    vhost.delete_exchange("vumi")

    assert said.code == 1
    assert found(said, "exchange")[0][1].startswith("vumi is of type fanout")


def test_the_queues_of_transports_are_looked_at(doctor, vhost, here):
    rulebook = (here / "rulebook.yaml").read_text()
    (here / "rulebook.yaml").write_text(
        rulebook.replace("{type: outbox}", "{type: vumi, transport_name: sms_transport, from_addr: '+27821230000'}")
    )
    declare_ours(vhost)

    assert found(doctor(), "transport") == [
        ("look", "there is no queue sms_transport.outbound: texts for it wait in the store")
    ]


@pytest.fixture
def texts_by_vumi(here):
    """A rulebook whose texts go through a Vumi transport, which reports on them."""
    rulebook = (here / "rulebook.yaml").read_text()
    (here / "rulebook.yaml").write_text(rulebook.replace("{type: outbox}", "{type: vumi, transport_name: sms}"))


def test_the_queue_in_which_a_transport_reports_is_looked_at(doctor, vhost, texts_by_vumi):
    declare_ours(vhost)
    assert found(doctor(), "reports") == [
        ("look", "there is no queue sms.event yet: what the transport reports goes nowhere")
    ]
    vhost.declare_queue("sms.event", kind=None, exchange="vumi")
    with vhost.channel() as channel:
        channel.basic_publish("", "sms.event", b"{}")
    wait_until(lambda: vhost.queue_depth("sms.event") == (1, 0))
    assert found(doctor(), "reports") == [("ok", "sms.event: 1 ready, 0 consumers")]


def test_somebody_else_who_reads_the_reports_is_told(doctor, vhost, texts_by_vumi):
    declare_ours(vhost)
    vhost.declare_queue("sms.event", kind=None, exchange="vumi")
    with vhost.channel() as channel:
        channel.basic_consume("sms.event", lambda *_: None)
        said = doctor()

    ((level, told),) = found(said, "reports")
    assert level == "look"
    assert told.startswith("sms.event: 0 ready, 1 consumer; another program reads it too")
    assert "`reports: false`" in next(each["hint"] for each in said.document["findings"] if each["area"] == "reports")


def test_a_transport_whose_reports_nobody_wants_is_not_asked_after(doctor, vhost, here, texts_by_vumi):
    rulebook = (here / "rulebook.yaml").read_text()
    (here / "rulebook.yaml").write_text(rulebook.replace("name: sms}", "name: sms, reports: false}"))

    assert found(doctor(), "reports") == []


def test_queues_that_may_not_be_read_are_wrong_and_nothing_is_taken_to_find_out(doctor, vhost, texts_by_vumi):
    declare_ours(vhost)
    vhost.declare_queue("sms.event", kind=None, exchange="vumi")
    with vhost.channel() as channel:
        channel.confirm_delivery()
        channel.basic_publish("", "vumi.event", b"{}")
    vhost.set_permissions(read="^vumi$")
    said = doctor()

    assert said.code == 1
    for area, queue in (("queue", "vumi.event"), ("reports", "sms.event")):
        ((level, told),) = found(said, area)
        assert level == "wrong"
        assert told.startswith(f"{queue}: the broker refused (403 ACCESS_REFUSED")
    vhost.set_permissions()
    with vhost.channel() as channel:
        method, _, _ = channel.basic_get("vumi.event", auto_ack=True)
    assert not method.redelivered


def test_looking_at_a_queue_that_may_be_read_takes_nothing_from_it(doctor, vhost):
    declare_ours(vhost)
    with vhost.channel() as channel:
        channel.confirm_delivery()
        channel.basic_publish("", "vumi.event", b"{}")
    doctor()

    with vhost.channel() as channel:
        method, properties, _ = channel.basic_get("vumi.event", auto_ack=True)
    assert not method.redelivered
    assert properties.headers == {"x-delivery-count": 0}


def test_a_refused_login_is_wrong_and_repeats_no_password(doctor, vhost):
    said = doctor(url=vhost.url.replace(vhost.password, "s3cret"))

    assert said.code == 1
    assert said.document["broker"]["state"] == "refused"
    assert "refused the login" in found(said, "broker")[0][1]
    assert "s3cret" not in said.out
    hint = next(each["hint"] for each in said.document["findings"] if each["area"] == "broker")
    assert hint.startswith(f"The user is {vhost.user!r}, the password is that of the URL.")


def test_a_vhost_that_is_not_there_is_wrong(doctor, vhost):
    said = doctor(url=vhost.url.removesuffix(vhost.name) + "nowhere")

    assert said.code == 1
    assert said.document["broker"]["state"] == "refused"
    hint = next(each["hint"] for each in said.document["findings"] if each["area"] == "broker")
    assert hint.startswith(f"The user {vhost.user!r} is let in, and the vhost 'nowhere' is not there")


def test_a_broker_that_does_not_run_is_wrong(dispatcher):
    said = dispatcher("doctor", "--json", "--amqp", "amqp://127.0.0.1:1")

    assert said.code == 1
    assert said.document["broker"]["state"] == "unreachable"
    assert found(said, "broker") == [("wrong", "amqp://127.0.0.1:1: connection refused at 127.0.0.1:1")]


def test_without_a_broker_nothing_is_said_of_one(dispatcher):
    said = dispatcher("doctor", "--json")

    assert "broker" not in said.document
    assert found(said, "broker") == []
