"""Each way in which a connection fails has words of its own, which stay the same while the cause does."""

from __future__ import annotations

import socket
import ssl

import pytest
from pika import exceptions
from pika.adapters.utils import connection_workflow as workflow

from dispatcher.errors import BrokerUnreachable
from dispatcher.sources.amqp.reasons import reason_of

HERE = "broker.example:5672"
LOGIN = "ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN. For details see the broker logfile."


def wrapped(error: BaseException, layer=workflow.AMQPConnectorSocketConnectError) -> Exception:
    """As pika hands over what happened while it connected."""
    return exceptions.AMQPConnectionError(workflow.AMQPConnectionWorkflowFailed([OSError("another"), layer(error)]))


def closed(code: int, text: str) -> exceptions.ConnectionClosedByBroker:
    return exceptions.ConnectionClosedByBroker(code, text)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (wrapped(ConnectionRefusedError(111, "Connection refused")), f"connection refused at {HERE}"),
        (wrapped(socket.gaierror(-2, "Name or service not known")), f"the host of {HERE} is not known (Name or se"),
        (workflow.AMQPConnectionWorkflowFailed([socket.gaierror(-2, "Name")]), f"the host of {HERE} is not known"),
        (wrapped(TimeoutError("timed out")), f"no answer from {HERE} to the attempt to connect"),
        (wrapped(workflow.AMQPConnectorStackTimeout("late")), f"no answer from {HERE} to the attempt to connect"),
        (wrapped(OSError(113, "No route to host")), f"no connection to {HERE} (No route to host)"),
        (
            exceptions.ProbableAuthenticationError(repr(closed(403, LOGIN))),
            f"the broker refused the login (403 {LOGIN})",
        ),
        (
            exceptions.ProbableAccessDeniedError(repr(closed(530, "NOT_ALLOWED - vhost 'it's' not found"))),
            "the broker refused the vhost (530 NOT_ALLOWED - vhost 'it's' not found)",
        ),
        (exceptions.ProbableAuthenticationError("StreamLostError"), f"{HERE} closed the connection during the login"),
        (exceptions.ProbableAccessDeniedError("x"), f"{HERE} closed the connection when the vhost was opened"),
        (exceptions.IncompatibleProtocolError("x"), f"{HERE} closed the connection before a word of AMQP"),
        (closed(320, "CONNECTION_FORCED - x"), "the broker closed the connection (320 CONNECTION_FORCED - x)"),
        (closed(541, "INTERNAL_ERROR"), "the broker failed by a fault of its own, which its log tells (541"),
        (exceptions.AMQPHeartbeatTimeout("x"), f"no answer from {HERE} within the heartbeat"),
        (exceptions.ConnectionBlockedTimeout("x"), "the broker took no messages for too long"),
        (exceptions.StreamLostError("Transport indicated EOF"), f"the connection was closed by {HERE}"),
        (
            exceptions.StreamLostError("Stream connection lost: ConnectionResetError(104, 'x')"),
            f"the connection was reset by {HERE}",
        ),
        (exceptions.StreamLostError("Stream connection lost: TimeoutError(110, 'x')"), f"no answer from {HERE}"),
        (
            exceptions.StreamLostError("Stream connection lost: KeyError('x')"),
            f"the connection to {HERE} was lost (StreamLostError: Stream connection lost: KeyError('x'))",
        ),
        (exceptions.ChannelClosedByBroker(404, "NOT_FOUND - x"), "the broker refused (404 NOT_FOUND - x)"),
        (BrokerUnreachable("the password file x cannot be read."), "the password file x cannot be read"),
        (RuntimeError(), "RuntimeError"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_what_happened_is_told_in_words_for_people(error, reason):
    assert reason_of(error, HERE).startswith(reason)


def test_a_certificate_that_is_not_trusted_is_told_with_openssl_s_words():
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_message = "self-signed certificate"

    told = reason_of(wrapped(error, workflow.AMQPConnectorTransportSetupError), HERE)

    assert told == f"the certificate of {HERE} is not trusted (self-signed certificate)"


def test_tls_that_fails_otherwise_is_told_as_such():
    error = ssl.SSLError(1, "x")
    error.reason = "WRONG_VERSION_NUMBER"

    assert reason_of(wrapped(error), HERE) == f"TLS with {HERE} failed (WRONG_VERSION_NUMBER)"


def test_an_exception_that_wraps_itself_ends():
    error = RuntimeError()
    error.exception = error

    assert "RuntimeError" in reason_of(error, HERE)
