"""The harness keeps what it promises, so that a red test elsewhere speaks of the dispatcher."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pika
import pika.exceptions
import pytest

from tests.harness.administration import NoSuchQueue
from tests.harness.clients import Reader, amqp_publish, drain, kombu_publish, publish_many
from tests.harness.control import EvaluationFailed
from tests.harness.proxy import ChaosProxy, proxied
from tests.harness.vhost import vhost_on
from tests.harness.waiting import wait_until

ROOT = Path(__file__).parents[2]

# What RabbitMQ keeps a process for, that reads what died: as the dispatcher declares its queues.
DEAD_LETTERED = {
    "x-dead-letter-exchange": "vumi.dead",
    "x-dead-letter-strategy": "at-least-once",
    "x-overflow": "reject-publish",
}


def connect(url, **parameters):
    settings = pika.URLParameters(url)
    for name, value in parameters.items():
        setattr(settings, name, value)
    return pika.BlockingConnection(settings)


def bodies(messages):
    return [message.body for message in messages]


# The node


def test_what_is_published_can_be_read_and_counted(vhost):
    vhost.declare_queue("vumi.event", exchange="vumi")
    publish_many(vhost.url, "vumi", "vumi.event", [b"hello"])
    assert vhost.queue_depth("vumi.event") == (1, 0)

    connection = connect(vhost.url)
    _, _, body = connection.channel().basic_get("vumi.event")
    assert vhost.queue_depth("vumi.event") == (0, 1)
    connection.close()

    assert body == b"hello"
    assert vhost.queue_arguments("vumi.event") == {"x-queue-type": "quorum"}


def test_a_queue_that_is_not_there_has_no_depth(vhost):
    with pytest.raises(NoSuchQueue):
        vhost.queue_depth("vumi.event")


def test_two_vhosts_share_nothing(rabbit, vhost):
    rabbit.add_vhost("other")
    vhost.declare_queue("vumi.event")

    assert vhost.queues() == ["vumi.event"]
    assert rabbit.queues("other") == []
    with pytest.raises(pika.exceptions.ProbableAccessDeniedError):
        connect(vhost.url.rpartition("/")[0] + "/other")
    rabbit.delete_vhost("other")


def test_a_killed_node_comes_back_with_what_was_confirmed(rabbit, vhost):
    vhost.declare_queue("vumi.event")
    publish_many(vhost.url, "", "vumi.event", [b"kept"])

    rabbit.kill()
    with pytest.raises(pika.exceptions.AMQPConnectionError):
        connect(vhost.url)
    rabbit.start()

    assert bodies(drain(vhost.url, "vumi.event")) == [b"kept"]


def test_a_stopped_broker_comes_back_with_what_was_confirmed(rabbit, vhost):
    vhost.declare_queue("vumi.event", kind="classic")
    publish_many(vhost.url, "", "vumi.event", [b"kept"])

    rabbit.stop_app()
    with pytest.raises(pika.exceptions.AMQPConnectionError):
        connect(vhost.url)
    rabbit.start_app()

    assert bodies(drain(vhost.url, "vumi.event")) == [b"kept"]


def test_a_broken_node_is_mended(rabbit):
    rabbit.set_memory_alarm()
    rabbit.stop_app()
    rabbit.mend()
    assert rabbit.eval("rabbit_alarm:get_alarms()") == "[]"

    rabbit.kill()
    rabbit.mend()
    assert rabbit.eval("rabbit:is_running()") == "true"


def dead_lettering_works(rabbit):
    # The supervisor itself answers, after it has dealt with those of its processes that have failed.
    return rabbit.eval("is_list(catch supervisor:count_children(rabbit_fifo_dlx_sup))") == "true"


def test_a_vhost_that_is_deleted_just_when_the_broker_is_back_takes_no_dead_lettering_with_it(rabbit):
    for _ in range(3):
        with vhost_on(rabbit) as brief:
            brief.declare_queue("vumi.event", arguments=DEAD_LETTERED)
            rabbit.stop_app()
            rabbit.start_app()
        assert dead_lettering_works(rabbit)


def test_dead_lettering_that_the_broker_gave_up_is_taken_up_again_for_the_next_vhost(rabbit):
    rabbit.eval("supervisor:terminate_child(rabbit_sup, rabbit_fifo_dlx_sup)")
    assert not dead_lettering_works(rabbit)

    with vhost_on(rabbit) as following:
        following.declare_queue("vumi.event", arguments=DEAD_LETTERED)
        assert dead_lettering_works(rabbit)


@pytest.mark.parametrize("resource", ["memory", "disk"])
def test_an_alarm_blocks_who_publishes_until_it_is_cleared(rabbit, vhost, resource):
    vhost.declare_queue("vumi.event")
    getattr(rabbit, f"set_{resource}_alarm")()

    publishing = threading.Thread(target=publish_many, args=(vhost.url, "", "vumi.event", [b"late"]))
    publishing.start()
    wait_until(lambda: any(each["state"] == "blocked" for each in vhost.connections()), "a blocked connection")
    assert vhost.queue_depth("vumi.event") == (0, 0)
    getattr(rabbit, f"clear_{resource}_alarm")()
    publishing.join(30)

    assert vhost.queue_depth("vumi.event") == (1, 0)


def test_a_user_without_permissions_or_with_an_old_password_is_kept_out(rabbit, vhost):
    vhost.set_permissions(write="^$")
    connection = connect(vhost.url)
    channel = connection.channel()
    channel.confirm_delivery()
    with pytest.raises(pika.exceptions.ChannelClosedByBroker, match="403"):
        channel.basic_publish("amq.direct", "vumi.event", b"")
    connection.close()

    vhost.clear_permissions()
    with pytest.raises(pika.exceptions.AMQPConnectionError):
        connect(vhost.url)

    vhost.set_permissions()
    vhost.change_password("new")
    with pytest.raises(pika.exceptions.AMQPConnectionError):
        connect(vhost.url)
    connect(rabbit.url(vhost.name, user=vhost.user, password="new")).close()


def test_closing_all_connections_closes_each(rabbit, vhost):
    connections = [connect(vhost.url) for _ in range(3)]

    assert rabbit.close_all_connections() == 3

    for connection in connections:
        with pytest.raises(pika.exceptions.ConnectionClosedByBroker, match="320"):
            connection.process_data_events(time_limit=10)


def test_a_consumer_shows_and_loses_its_channel_when_it_holds_a_delivery_for_too_long(rabbit, vhost):
    rabbit.set_consumer_timeout(200)
    vhost.declare_queue("vumi.event")
    publish_many(vhost.url, "", "vumi.event", [b"held"])
    connection = connect(vhost.url)
    channel = connection.channel()
    channel.basic_qos(prefetch_count=7)
    tag = channel.basic_consume("vumi.event", lambda *_: None)

    assert vhost.consumers() == [{"queue": "vumi.event", "tag": tag, "prefetch": 7, "active": True}]
    deadline = time.monotonic() + 30
    while channel.is_open and time.monotonic() < deadline:
        connection.process_data_events(time_limit=0.1)

    assert channel.is_closed
    connection.close()


def test_queues_can_be_purged_and_deleted_and_exchanges_too(rabbit, vhost):
    vhost.declare_queue("vumi.event", exchange="vumi")
    publish_many(vhost.url, "vumi", "vumi.event", [b"gone"] * 3)
    vhost.purge_queue("vumi.event")
    assert vhost.queue_depth("vumi.event") == (0, 0)

    vhost.delete_queue("vumi.event")
    vhost.delete_exchange("vumi")

    assert vhost.queues() == []
    with pytest.raises(AssertionError, match="404"):
        publish_many(vhost.url, "vumi", "vumi.event", [b"nowhere"])


def test_a_wrong_expression_is_told_and_the_next_one_answered(rabbit):
    for wrong in ("1 +", "1 / 0", "no:such_function()"):
        with pytest.raises(EvaluationFailed):
            rabbit.eval(wrong)

    assert rabbit.eval("1 + 1") == "2"
    assert rabbit.eval('<<"as it is: \\"é\\""/utf8>>') == 'as it is: "é"'
    assert rabbit.json("#{a => [1, true, null]}") == {"a": [1, True, None]}


def test_nothing_of_the_node_listens_beyond_loopback(rabbit):
    ports = {rabbit.port, *(int(rabbit._environ[name]) for name in ("RABBITMQ_DIST_PORT", "ERL_EPMD_PORT"))}
    table = Path("/proc/net/tcp")
    if not table.exists():
        pytest.skip("only Linux tells who listens where")

    listening = set()
    for line in table.read_text().splitlines()[1:] + Path("/proc/net/tcp6").read_text().splitlines()[1:]:
        address, port = line.split()[1].split(":")
        if line.split()[3] == "0A" and int(port, 16) in ports:
            listening.add((int(port, 16), address))

    assert {port for port, _ in listening} == ports
    assert {address for _, address in listening} <= {"0100007F", "00000000000000000000000001000000"}


SUICIDE = """
import os, sys
from tests.harness.rabbit import Node
node = Node()
node.start()
print(node._process.pid, node._epmd.pid, node.folder, flush=True)
os.kill(os.getpid(), 9)
"""


@pytest.mark.usefixtures("rabbit")
def test_a_node_ends_with_the_tests_even_when_they_are_killed():
    killed = subprocess.run(
        [sys.executable, "-c", SUICIDE], cwd=ROOT, env=os.environ, capture_output=True, timeout=60, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()

    *processes, folder = killed.stdout.decode().split()
    for process in processes:
        wait_until(lambda process=process: not is_running(int(process)), f"the end of process {process}")
    wait_until(lambda: not Path(folder).exists(), f"the end of {folder}")


def is_running(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{process}/stat")
    # Where nobody reaps orphans, a process that has ended stays in the table.
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"


# Clients that are not ours


def test_foreign_publishers_reach_a_reader_that_keeps_all(vhost):
    vhost.declare_queue("vumi.event", exchange="vumi")
    with Reader(vhost.url, "vumi.event") as reader:
        amqp_publish(vhost.url, "vumi", "vumi.event", '{"by": "C"}', "--content-type=text/plain")
        kombu_publish(vhost.url, "vumi", "vumi.event", {"by": "kombu"}, message_id="k1")
        publish_many(vhost.url, "vumi", "vumi.event", [b"{}"], message_ids=["p1"], headers={"a": 1})
        by_body = {message.body: message for message in reader.wait_for(3)}

    assert by_body[b'{"by": "C"}'].properties.content_type == "text/plain"
    assert by_body[b'{"by": "kombu"}'].properties.message_id == "k1"
    assert by_body[b"{}"].properties.message_id == "p1"
    assert by_body[b"{}"].properties.headers == {"a": 1}
    assert {message.exchange for message in by_body.values()} == {"vumi"}


def test_many_are_published_and_each_is_there(vhost):
    vhost.declare_queue("vumi.event")
    wanted = [b"%d" % number for number in range(5000)]

    assert publish_many(vhost.url, "", "vumi.event", wanted) == 5000

    assert bodies(drain(vhost.url, "vumi.event")) == wanted


def test_a_message_that_reaches_no_queue_is_no_success(vhost):
    with pytest.raises(AssertionError, match="NO_ROUTE"):
        publish_many(vhost.url, "amq.direct", "nowhere", [b""])


def test_a_reader_goes_on_after_the_broker_was_away(rabbit, vhost):
    vhost.declare_queue("vumi.event")
    with Reader(vhost.url, "vumi.event") as reader:
        publish_many(vhost.url, "", "vumi.event", [b"1"])
        reader.wait_for(1)
        rabbit.stop_app()
        rabbit.start_app()
        publish_many(vhost.url, "", "vumi.event", [b"2"])
        wait_until(lambda: b"2" in bodies(reader.ledger))


# The network that misbehaves


@pytest.fixture
def echo():
    """A server that says back what it hears."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve(connection):
            with connection:
                try:
                    while data := connection.recv(65_536):
                        connection.sendall(data)
                except OSError:
                    pass

        def accept():
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

        accepting = threading.Thread(target=accept, daemon=True)
        accepting.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        accepting.join(10)


@pytest.fixture
def proxy(echo):
    with ChaosProxy(echo) as proxy:
        yield proxy


@pytest.fixture
def client(proxy):
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as client:
        yield client


def asked(client, data):
    client.sendall(data)
    return receive(client, len(data))


def receive(client, count):
    received = b""
    while len(received) < count and (more := client.recv(65_536)):
        received += more
    return received


def send_until_stuck(client):
    sent = 0
    with contextlib.suppress(TimeoutError):
        while True:
            sent += client.send(b"x" * 65_536)
    return sent


def test_a_good_network_passes_all_on_and_counts(proxy, client):
    assert asked(client, b"hello" * 100_000) == b"hello" * 100_000

    assert (proxy.connections, proxy.open) == (1, 1)
    assert proxy.passed == {"to_server": 500_000, "to_client": 500_000}
    client.close()
    wait_until(lambda: proxy.open == 0)


def test_a_reset_connection_is_reset_and_the_next_one_works(proxy, client):
    asked(client, b"hello")
    proxy.reset()

    with pytest.raises(ConnectionResetError):
        client.recv(1)
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as another:
        assert asked(another, b"hello") == b"hello"


def test_a_refusing_network_refuses_until_it_is_good_again(proxy, client):
    proxy.refuse()
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", proxy.port), timeout=10)

    proxy.pass_on()
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as another:
        assert asked(another, b"hello") == b"hello"


@pytest.mark.parametrize(("direction", "heard"), [("to_server", 7), ("to_client", 7)])
def test_a_cut_comes_after_so_many_bytes_and_once(proxy, client, direction, heard):
    asked(client, b"hello")
    proxy.cut_after(7, direction)
    client.sendall(b"0123456789")

    # A reset may overtake what was sent before it: what passed is the proxy's to tell.
    with pytest.raises(ConnectionResetError):
        receive(client, 1000)
    assert proxy.passed[direction] == 5 + heard
    assert proxy.cuts == 1
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as another:
        assert asked(another, b"hello" * 10) == b"hello" * 10


def test_a_blackhole_swallows_all_and_closes_nothing(proxy, client):
    proxy.blackhole()
    client.settimeout(0.1)
    client.sendall(b"hello")
    with pytest.raises(TimeoutError):
        client.recv(1)
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as another:
        another.settimeout(0.1)
        another.sendall(b"hello")
        with pytest.raises(TimeoutError):
            another.recv(1)
    assert proxy.passed == {"to_server": 0, "to_client": 0}


def test_a_half_open_connection_takes_no_more_and_goes_on_after(proxy, client):
    proxy.half_open()
    client.settimeout(0.1)
    sent = send_until_stuck(client)

    assert proxy.passed["to_server"] == 0
    client.settimeout(10)
    proxy.pass_on()
    assert receive(client, sent) == b"x" * sent


def test_a_slow_network_passes_all_on_later(proxy, client):
    proxy.delay(0.05)
    started = time.monotonic()

    assert asked(client, b"hello") == b"hello"
    assert time.monotonic() - started >= 0.1


def test_a_broker_can_be_reached_through_it(vhost):
    vhost.declare_queue("vumi.event")
    with proxied(vhost.url) as proxy:
        publish_many(proxy.url(vhost.url), "", "vumi.event", [b"by way of the proxy"])

        assert bodies(drain(proxy.url(vhost.url), "vumi.event")) == [b"by way of the proxy"]
        assert proxy.connections == 2
