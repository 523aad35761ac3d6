"""From the settings to what pika needs for one connection: address, credentials, TLS, times.

Everything is read anew for each attempt, so that a password file or a certificate may change while the worker runs.
Nothing here opens a connection. No message repeats the password, and the broker is always verified under `amqps://`:
no setting and no part of the URL turns that off.
"""

from __future__ import annotations

import os
import socket
import ssl
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, unquote, urlsplit

import pika

from dispatcher.errors import BrokerUnreachable
from dispatcher.settings import Settings

# How long until a broker that is there has taken the connection, and until it has let us in. Seconds.
CONNECT_SECONDS: Final = 5.0
HANDSHAKE_SECONDS: Final = 10.0
_DEFAULT_PORTS: Final = {"amqp": 5672, "amqps": 5671}


def endpoint(settings: Settings) -> str:
    """Return HOST:PORT of the broker, for people. Raises BrokerUnreachable for a URL that cannot be read."""
    host, port = _address(_split(settings))
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def virtual_host(settings: Settings) -> str:
    """Return the vhost that the URL names; "/" where it names none. Raises BrokerUnreachable as `endpoint` does."""
    return unquote(_split(settings).path.removeprefix("/")) or "/"


def connection_parameters(
    settings: Settings, name: str, *, blocked_seconds: float | None = None
) -> pika.ConnectionParameters:
    """Return what a connection of this name ("consumer", "publisher", ...) is made with.

    `blocked_seconds` is how long it may stay blocked by the broker before pika ends it; None: for ever.
    Raises BrokerUnreachable where the URL, the password file or a file of TLS cannot be used.
    """
    url = _split(settings)
    host, port = _address(url)
    return pika.ConnectionParameters(
        host=host,
        port=port,
        virtual_host=virtual_host(settings),
        credentials=_credentials(settings, url),
        ssl_options=pika.SSLOptions(_verified(settings), host) if url.scheme == "amqps" else None,
        heartbeat=settings.amqp_heartbeat,
        blocked_connection_timeout=blocked_seconds,
        socket_timeout=CONNECT_SECONDS,
        stack_timeout=HANDSHAKE_SECONDS,
        connection_attempts=1,  # the link pauses and tries again by itself
        tcp_options=_tcp_options(settings.amqp_heartbeat, blocked_seconds or 0.0),
        client_properties={
            "product": "event-dispatcher",
            "connection_name": f"dispatcher {name} {socket.gethostname()}:{os.getpid()}",
        },
    )


def _split(settings: Settings) -> SplitResult:
    if settings.amqp_url is None:
        raise BrokerUnreachable("no broker is named.", hint="Give --amqp amqp://USER:PASSWORD@HOST/VHOST.")
    url = urlsplit(settings.amqp_url)
    if url.scheme not in _DEFAULT_PORTS or url.query:
        # Options of a URL could weaken what is settled here, TLS above all.
        raise BrokerUnreachable("the broker's URL must be amqp:// or amqps://, without options.")
    return url


def _address(url: SplitResult) -> tuple[str, int]:
    try:
        port = url.port
    except ValueError:
        # Not repeated: with a "/" or ":" in the password, a part of it is taken for the port.
        raise BrokerUnreachable("the port of the broker's URL is no number.") from None
    return url.hostname or "localhost", port or _DEFAULT_PORTS[url.scheme]


def _credentials(settings: Settings, url: SplitResult) -> pika.PlainCredentials:
    password = unquote(url.password or "")
    if settings.amqp_password_file is not None:
        password = _read_password(settings.amqp_password_file)
    elif url.username is None:
        password = "guest"  # noqa: S105 - RabbitMQ's well-known default, refused by it except on loopback
    return pika.PlainCredentials(unquote(url.username or "guest"), password)


def _read_password(path: Path) -> str:
    try:
        return path.read_text("utf-8").rstrip("\r\n")
    except OSError as error:
        raise BrokerUnreachable(f"the password file {path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError:
        raise BrokerUnreachable(f"the password file {path} is no UTF-8 text.") from None


def _verified(settings: Settings) -> ssl.SSLContext:
    """Return a context that trusts the given authorities (the system's if none), and checks the host's name."""
    asked_for = settings.amqp_ca_file
    try:
        context = ssl.create_default_context(cafile=asked_for)
        asked_for = settings.amqp_cert_file
        if settings.amqp_cert_file is not None:
            context.load_cert_chain(settings.amqp_cert_file, settings.amqp_key_file, password=_no_passphrase)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise BrokerUnreachable(f"{asked_for}: no certificate or key that can be used ({said}).") from error
    return context


def _no_passphrase() -> str:
    """Refuse a key with a passphrase. Without this OpenSSL would ask for it on the terminal, and wait."""
    raise ValueError("the key has a passphrase; give one without")


def _tcp_options(heartbeat: int, blocked_seconds: float) -> dict[str, int]:
    """Let the kernel notice by itself, too, that nobody answers: what is sent, and while nothing is."""
    wanted = {
        # A broker that blocks does not read, which is no reason to give up before the time for that is over.
        "TCP_USER_TIMEOUT": int((2 * heartbeat + blocked_seconds) * 1000),
        "TCP_KEEPIDLE": heartbeat,
        "TCP_KEEPINTVL": max(1, heartbeat // 3),
        "TCP_KEEPCNT": 3,
    }
    return {name: value for name, value in wanted.items() if hasattr(socket, name)}
