"""A link against a real broker: one connection at a time, each with a beginning and an end that its role is told."""

from __future__ import annotations

import json
import subprocess
import threading
from collections import deque

import pytest

from dispatcher.settings import Settings
from dispatcher.sources.amqp.link import Link
from tests.harness.proxy import ChaosProxy
from tests.harness.waiting import wait_until


class Role:
    """Notes what it is told, and by which thread; can be told to fail."""

    def __init__(self) -> None:
        self.told: deque[str] = deque()
        self.threads: set[str] = set()
        self.failing: set[str] = set()
        self.connection = None

    def _note(self, what: str, method: str) -> None:
        self.told.append(what)
        self.threads.add(threading.current_thread().name)
        if method in self.failing:
            self.failing.remove(method)
            raise SystemExit("a test")

    def connected(self, connection) -> None:
        self.connection = connection
        self._note("connected", "connected")

    def ticked(self) -> None:
        self._note("ticked", "ticked")

    def disconnected(self, reason: str) -> None:
        self._note(reason, "disconnected")


@pytest.fixture
def make_link(vhost):
    links = []

    def make(url: str | None = None, *, name: str = "consumer", failing: str | None = None, **settings) -> Link:
        role = Role()
        role.failing |= {failing} - {None}
        links.append(Link(name, Settings(amqp_url=url or vhost.url, **settings), role))
        links[-1].start()
        if failing is None:
            wait_until(lambda: links[-1].status.state == "up", "the connection")
        return links[-1]

    yield make
    for link in links:
        link.stop(2)


def events(capfd) -> list[dict]:
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"].startswith("amqp.")]


def test_the_role_is_told_of_each_connection_and_of_its_end_in_the_link_s_own_thread(vhost, make_link, capfd):
    link = make_link()
    wait_until(lambda: "ticked" in link._role.told, "a tick")
    vhost.node.close_all_connections("a test")
    wait_until(lambda: link.status.reconnects == 1, "the next connection")
    link.stop(5)

    told = [what for what in link._role.told if what != "ticked"]
    forced = "the broker closed the connection (320 CONNECTION_FORCED - a test)"
    assert told == ["connected", forced, "connected", "stopped"]
    assert link._role.threads == {"amqp-consumer"}
    assert [line["event"] for line in events(capfd)] == ["amqp.connected", "amqp.disconnected", "amqp.connected"]
    assert vhost.connections() == []


def test_calls_run_in_their_order_in_the_link_s_thread(make_link):
    link = make_link()
    ran: list[object] = []

    assert all(link.call(lambda number=number: ran.append(number)) for number in range(100))
    link.call(lambda: ran.append(threading.current_thread().name))

    wait_until(lambda: len(ran) == 101, "the calls")
    assert ran == [*range(100), "amqp-consumer"]


def test_what_was_to_run_later_does_not_run_on_the_next_connection(make_link):
    link = make_link()
    ran: list[str] = []
    link.call(lambda: link.call_later(0.2, lambda: ran.append("old")))
    link.call(lambda: link.drop("a test"))
    wait_until(lambda: link.status.reconnects == 1 and link.status.state == "up", "the next connection")
    link.call(lambda: link.call_later(0.3, lambda: ran.append("new")))

    wait_until(lambda: ran, "the later call")
    assert ran == ["new"]


def test_a_connection_that_is_dropped_is_told_with_that_reason_and_gone_at_the_broker(vhost, make_link):
    link = make_link()
    wait_until(lambda: len(vhost.connections()) == 1, "the broker's view")

    link.drop("a test")

    wait_until(lambda: link.status.reconnects == 1, "the next connection")
    assert "a test" in link._role.told
    wait_until(lambda: len(vhost.connections()) == 1, "the broker's view")


@pytest.mark.parametrize("method", ["connected", "ticked", "disconnected"])
def test_a_role_that_fails_costs_its_connection_and_not_the_thread(vhost, make_link, capfd, method):
    link = make_link(failing=method)
    wait_until(lambda: "connected" in link._role.told, "the connection")
    if method == "disconnected":
        vhost.node.close_all_connections()

    wait_until(lambda: link.status.reconnects == 1, "the next connection")

    (fault,) = [line for line in events(capfd) if line["event"] == "amqp.faulted"]
    assert "SystemExit" in fault["exception"]


def test_a_call_that_fails_costs_the_connection_and_not_the_thread(make_link):
    link = make_link()

    link.call(lambda: 1 / 0)

    wait_until(lambda: link.status.reconnects == 1, "the next connection")
    assert "an error of the dispatcher (ZeroDivisionError)" in link._role.told


def publish_something(link: Link) -> None:
    """Make it a connection that publishes: only those are blocked."""
    connection = link._role.connection
    link.call(lambda: connection.channel(on_open_callback=lambda channel: channel.basic_publish("", "nobody", b"")))


def test_an_alarm_is_told_and_its_time_counted(vhost, make_link):
    link = make_link(name="publisher")
    publish_something(link)
    vhost.node.set_memory_alarm()
    wait_until(lambda: link.status.blocked_since, "the alarm")
    first = link.status.blocked_seconds
    wait_until(lambda: link.status.blocked_seconds > first, "time")
    vhost.node.clear_memory_alarm()

    wait_until(lambda: link.status.blocked_since is None, "the end of the alarm")
    assert link.status.blocked_seconds > first
    assert link.status.reconnects == 0


def test_a_connection_that_stays_blocked_is_made_anew(vhost, make_link):
    link = make_link(name="publisher", amqp_blocked_seconds=0.2)
    publish_something(link)
    vhost.node.set_disk_alarm()

    def ended() -> bool:
        if link.status.state == "up" and link.status.blocked_since is None:
            publish_something(link)  # the alarm is for who publishes while it lasts
        return "connection.blocked" in "".join(link._role.told)

    wait_until(ended, "the end")
    assert link.status.blocked_since is None
    assert link.status.blocked_seconds > 0


def test_a_slow_network_is_no_reason_to_give_up(vhost, make_link):
    with ChaosProxy(vhost.port) as proxy:
        proxy.delay(0.2)
        link = make_link(proxy.url(vhost.url), amqp_heartbeat=2)
        wait_until(lambda: list(link._role.told).count("ticked") > 3, "some ticks")

        assert link.status.reconnects == 0


def test_a_peer_that_stops_reading_does_not_hold_up_a_stop(vhost, make_link):
    with ChaosProxy(vhost.port) as proxy:
        link = make_link(proxy.url(vhost.url))
        proxy.half_open()

        link.stop(0.2)

        assert link.status.state == "stopped"
        assert not [thread for thread in threading.enumerate() if thread.name == "amqp-consumer"]


def test_a_connection_that_resets_in_mid_handshake_is_tried_again(vhost, make_link):
    with ChaosProxy(vhost.port) as proxy:
        proxy.cut_after(100, "to_client")
        link = make_link(proxy.url(vhost.url))

        assert proxy.cuts == 1
        assert link.status.reconnects == 0  # it was never up before


# TLS, by way of a listener of the broker's own.


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    """An authority, and certificates by it for the right and for a wrong host."""
    folder = tmp_path_factory.mktemp("tls")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True, cwd=folder)

    openssl(
        *[
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=authority",
            "-keyout",
            "ca.key",
            "-out",
            "ca.pem",
        ]
    )
    for name, host in (("right", "IP:127.0.0.1"), ("wrong", "DNS:elsewhere.example")):
        openssl(*f"req -newkey rsa:2048 -nodes -subj /CN=x -keyout {name}.key -out {name}.csr".split())
        (folder / f"{name}.ext").write_text(f"subjectAltName={host}\n")
        sign = f"x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile {name}.ext"
        openssl(*sign.split(), "-out", f"{name}.pem")
    return folder


@pytest.fixture
def tls_url(vhost, authority):
    """Have the broker listen for TLS with one of the certificates; a URL for it."""
    ports = []

    def listen(name: str) -> str:
        from tests.harness.rabbit import free_port

        ports.append(free_port())
        options = ", ".join(
            f'{{{option}, "{authority / file}"}}'
            for option, file in (("cacertfile", "ca.pem"), ("certfile", f"{name}.pem"), ("keyfile", f"{name}.key"))
        )
        vhost.node.eval(
            "application:ensure_all_started(ssl), "
            f'rabbit_networking:start_ssl_listener({{"127.0.0.1", {ports[-1]}}}, [{options}], 2)'
        )
        return vhost.url.replace("amqp://", "amqps://").replace(f":{vhost.port}/", f":{ports[-1]}/")

    yield listen
    for port in ports:
        vhost.node.eval(f'rabbit_networking:stop_tcp_listener({{"127.0.0.1", {port}}})')


def test_a_broker_that_its_authority_vouches_for_is_spoken_to_encrypted(make_link, tls_url, authority):
    link = make_link(tls_url("right"), amqp_ca_file=authority / "ca.pem")

    wait_until(lambda: "ticked" in link._role.told, "a tick")


@pytest.mark.parametrize(
    ("name", "ca_file", "why"),
    [("wrong", "ca.pem", "IP address mismatch"), ("right", None, "self-signed certificate in certificate chain")],
    ids=["another host", "an authority that nobody knows"],
)
def test_a_broker_that_is_not_vouched_for_is_refused(tls_url, authority, name, ca_file, why):
    settings = Settings(amqp_url=tls_url(name), amqp_ca_file=ca_file and authority / ca_file)
    link = Link("consumer", settings, Role())
    link.start()
    try:
        wait_until(lambda: "is not trusted" in (link.status.reason or ""), "the refusal")

        assert why in link.status.reason
        assert link._role.told == deque()
    finally:
        link.stop(0)
