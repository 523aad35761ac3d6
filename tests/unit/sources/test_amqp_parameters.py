"""What a connection is made with: verified where it is encrypted, read anew each time, silent about the password."""

from __future__ import annotations

import os
import shutil
import ssl
import subprocess

import pytest

from dispatcher.errors import BrokerUnreachable
from dispatcher.settings import Settings
from dispatcher.sources.amqp.parameters import connection_parameters, endpoint

SECRET = "s3cret/with@signs"


def parameters(url: str, **settings):
    return connection_parameters(Settings(amqp_url=url, **settings), "consumer")


def test_a_url_is_read_with_its_escapes():
    made = parameters("amqp://thandi%40home:s3cret%2Fwith%40signs@broker.example:5673/vumi%2Fgo")

    assert (made.host, made.port, made.virtual_host) == ("broker.example", 5673, "vumi/go")
    assert (made.credentials.username, made.credentials.password) == ("thandi@home", SECRET)
    assert made.ssl_options is None


@pytest.mark.parametrize("url", ["amqp://broker.example", "amqp://broker.example/", "amqp://broker.example/%2F"])
def test_what_a_url_leaves_out_is_as_rabbitmq_has_it(url):
    made = parameters(url)

    assert (made.port, made.virtual_host) == (5672, "/")
    assert (made.credentials.username, made.credentials.password) == ("guest", "guest")


def test_an_ipv6_host_is_shown_in_brackets():
    assert parameters("amqp://a:b@[::1]:5673/").host == "::1"
    assert endpoint(Settings(amqp_url="amqp://a:b@[::1]:5673/")) == "[::1]:5673"


def test_the_broker_is_told_who_connects():
    (name,) = {parameters("amqp://broker").client_properties["connection_name"]}

    assert name.startswith("dispatcher consumer ")
    assert name.endswith(f":{os.getpid()}")


def test_silence_is_noticed_by_the_kernel_too():
    options = parameters("amqp://broker", amqp_heartbeat=10).tcp_options

    assert options["TCP_USER_TIMEOUT"] == 20_000
    assert options["TCP_KEEPIDLE"] == 10


def test_only_a_connection_that_publishes_gives_up_while_it_is_blocked():
    settings = Settings(amqp_url="amqp://broker", amqp_heartbeat=30)
    publisher = connection_parameters(settings, "publisher", blocked_seconds=600.0)

    assert connection_parameters(settings, "consumer").blocked_connection_timeout is None
    assert publisher.blocked_connection_timeout == 600.0
    assert publisher.tcp_options["TCP_USER_TIMEOUT"] == 660_000  # nor does the kernel before that


def test_a_password_file_is_read_at_each_attempt(tmp_path):
    secret = tmp_path / "password"
    secret.write_text(f"{SECRET}\n")
    settings = Settings(amqp_url="amqp://thandi@broker", amqp_password_file=secret)
    assert connection_parameters(settings, "consumer").credentials.password == SECRET

    secret.write_text("next \r\n")

    assert connection_parameters(settings, "consumer").credentials.password == "next "


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_password_file_that_cannot_be_read_is_named(tmp_path, content):
    secret = tmp_path / "password"
    if content is not None:
        secret.write_bytes(content)

    with pytest.raises(BrokerUnreachable, match=str(secret)):
        parameters("amqp://thandi@broker", amqp_password_file=secret)


def test_a_url_without_a_broker_says_what_to_give():
    with pytest.raises(BrokerUnreachable, match="--amqp"):
        connection_parameters(Settings(), "consumer")


# TLS.


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate that vouches for itself, with its key; and the key again, with a passphrase."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("tls")
    new = ("openssl", "req", "-x509", "-newkey", "rsa:2048", "-days", "2", "-subj", "/CN=localhost")
    for name, protection in (("plain", ["-nodes"]), ("locked", ["-passout", "pass:x"])):
        files = ["-out", f"{folder}/{name}.pem", "-keyout", f"{folder}/{name}.key"]
        subprocess.run([*new, *protection, *files], check=True, capture_output=True)
    return folder


def test_tls_verifies_the_broker_and_its_name(certificate):
    made = parameters("amqps://broker.example", amqp_ca_file=certificate / "plain.pem")

    context = made.ssl_options.context
    assert made.port == 5671
    assert made.ssl_options.server_hostname == "broker.example"
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
    assert len(context.get_ca_certs()) == 1


def test_no_option_of_a_url_weakens_what_is_verified():
    url = "amqps://broker.example/?ssl_options=%7B%27protocol%27%3A2%7D"

    with pytest.raises(BrokerUnreachable, match="without options"):
        connection_parameters(Settings.model_construct(amqp_url=url), "consumer")


def test_a_certificate_of_our_own_is_shown_with_its_key(certificate):
    parameters("amqps://broker", amqp_cert_file=certificate / "plain.pem", amqp_key_file=certificate / "plain.key")


@pytest.mark.parametrize(
    ("field", "file"),
    [("amqp_ca_file", "absent.pem"), ("amqp_ca_file", "plain.key"), ("amqp_cert_file", "plain.pem")],
    ids=["absent", "no certificate", "without its key"],
)
def test_a_file_of_tls_that_cannot_be_used_is_named(certificate, field, file):
    with pytest.raises(BrokerUnreachable, match=file):
        parameters("amqps://broker", **{field: certificate / file})


def test_a_key_with_a_passphrase_is_refused_and_nobody_is_asked_for_it(certificate):
    with pytest.raises(BrokerUnreachable, match="passphrase"):
        parameters(
            "amqps://broker", amqp_cert_file=certificate / "locked.pem", amqp_key_file=certificate / "locked.key"
        )


def test_no_message_repeats_the_password():
    with pytest.raises(BrokerUnreachable) as refused:
        connection_parameters(Settings.model_construct(amqp_url="amqp://thandi:top/secret@broker"), "consumer")

    assert "secret" not in str(refused.value)
    assert "top" not in str(refused.value)
