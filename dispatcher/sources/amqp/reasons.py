"""Why there is no connection, in words for people. They hold no password, and stay the same while the cause does.

pika wraps what happened in several layers of exceptions, some of them as text; here they are taken off again.
"""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Iterator

from pika import exceptions

from dispatcher.errors import DispatcherError

# How pika writes a Connection.Close of the broker into the text of another exception.
_CLOSED_BY_BROKER = re.compile(r"ConnectionClosedByBroker: \((?P<code>\d{3})\) (?P<quote>['\"])(?P<text>.*)(?P=quote)")


def reason_of(error: BaseException, endpoint: str = "the broker") -> str:
    """Return why the connection to `endpoint` (HOST:PORT) could not be made or ended, or why a channel was closed."""
    layers = list(_layers(error))
    for layer in layers:
        if (said := _said_by_broker(layer)) is not None:
            return said
    for layer in reversed(layers):
        if (reason := _known(layer, endpoint)) is not None:
            return reason
    return _lost(layers[-1], endpoint)


def closed_by_broker(code: int, text: str) -> str:
    """Return the broker's own words for closing a connection or a channel, told as what they mean."""
    shown = f"{code} {text}" if text else str(code)
    if code == 403 and "Login was refused" in text:
        return f"the broker refused the login ({shown})"
    if code == 530:
        return f"the broker refused the vhost ({shown})"
    if code == 541:
        return f"the broker failed by a fault of its own, which its log tells ({shown})"
    return f"the broker closed the connection ({shown})"


def _layers(error: BaseException) -> Iterator[BaseException]:
    """Yield the exception and what it wraps, the outermost first. Of several attempts the last one counts."""
    seen = 0
    layer: object = error
    while isinstance(layer, BaseException) and seen < 10:
        seen += 1
        yield layer
        attempts = getattr(layer, "exceptions", None)
        layer = (
            attempts[-1]
            if attempts
            else getattr(layer, "exception", None)
            or next((part for part in layer.args if isinstance(part, BaseException)), None)
        )


def _said_by_broker(error: BaseException) -> str | None:
    if isinstance(error, exceptions.ConnectionClosedByBroker):
        return closed_by_broker(error.reply_code, error.reply_text)
    if isinstance(error, exceptions.ChannelClosedByBroker):
        return f"the broker refused ({error.reply_code} {error.reply_text})"
    if isinstance(error, exceptions.AMQPConnectionError):
        found = _CLOSED_BY_BROKER.search(" ".join(str(part) for part in error.args))
        if found:
            return closed_by_broker(int(found["code"]), found["text"])
    return None


def _known(error: BaseException, endpoint: str) -> str | None:
    match error:
        case DispatcherError():
            return str(error).removesuffix(".")
        case exceptions.AMQPHeartbeatTimeout():
            return f"no answer from {endpoint} within the heartbeat"
        case exceptions.ConnectionBlockedTimeout():
            return "the broker took no messages for too long (connection.blocked)"
        case exceptions.IncompatibleProtocolError():
            return f"{endpoint} closed the connection before a word of AMQP (is it RabbitMQ, and is TLS meant?)"
        case exceptions.ProbableAuthenticationError():
            return f"{endpoint} closed the connection during the login"
        case exceptions.ProbableAccessDeniedError():
            return f"{endpoint} closed the connection when the vhost was opened"
        case ssl.SSLCertVerificationError():
            return f"the certificate of {endpoint} is not trusted ({error.verify_message})"
        case ssl.SSLError():
            return f"TLS with {endpoint} failed ({error.reason or 'the connection ended'})"
        case socket.gaierror():
            return f"the host of {endpoint} is not known ({error.strerror})"
        case ConnectionRefusedError():
            return f"connection refused at {endpoint}"
        case TimeoutError():
            return f"no answer from {endpoint} to the attempt to connect"
        case OSError() if error.strerror:
            return f"no connection to {endpoint} ({error.strerror})"
    if type(error).__name__ == "AMQPConnectorStackTimeout":
        return f"no answer from {endpoint} to the attempt to connect"
    return None


def _lost(error: BaseException, endpoint: str) -> str:
    text = " ".join(str(part) for part in error.args)
    if "ConnectionResetError" in text or "BrokenPipeError" in text:
        return f"the connection was reset by {endpoint}"
    if isinstance(error, exceptions.StreamLostError) and "EOF" in text:
        return f"the connection was closed by {endpoint}"
    if "TimeoutError" in text:
        return f"no answer from {endpoint}"
    return f"the connection to {endpoint} was lost ({type(error).__name__}: {text})" if text else type(error).__name__
