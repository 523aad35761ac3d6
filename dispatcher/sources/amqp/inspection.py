"""What a broker has, learnt by AMQP alone: for `dispatcher doctor`. Changes nothing, deletes nothing.

A passive declare tells whether a queue exists and how full it is. What arguments it has is found by declaring it with
those that we would give it: the broker refuses (406) and names one argument that differs, with its value; with that
value it is asked again, until it agrees. A queue is asked so only when it was there an instant before; as the declare
needs the permission to configure, a user without it learns less. Policies cannot be seen this way.

Sources: RabbitMQ's `rabbit_amqqueue:assert_equivalence` and `rabbit_misc:assert_args_equivalence`, whose words are
parsed here; those of 3.10 to 4.x are alike. A text of more than 255 bytes is cut by the broker; then this says so.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal

import pika
import pika.exceptions
from pika.adapters.utils import connection_workflow

from dispatcher.errors import BrokerUnreachable
from dispatcher.sources.amqp.parameters import connection_parameters, endpoint
from dispatcher.sources.amqp.reasons import reason_of
from dispatcher.sources.amqp.topology import dead_queue, queue_arguments

if TYPE_CHECKING:
    from pika.adapters.blocking_connection import BlockingChannel, BlockingConnection

    from dispatcher.settings import Settings

# How long the broker may take for the connection, in seconds.
_PATIENCE: Final = 5
# A broker that falls silent within a question is noticed by its missing heartbeats, after some 14 seconds.
_HEARTBEAT: Final = 2
# Each answer tells of one argument, and a queue has no more than these few that matter.
_MOST_ROUNDS: Final = 16
_ACCESS_REFUSED: Final = 403
_NOT_FOUND: Final = 404
_PRECONDITION_FAILED: Final = 406

_DIFFERENCE: Final = re.compile(
    r"inequivalent arg '(?P<name>[^']+)' for (?:queue|exchange) .*"
    r"received .* but current is (?P<theirs>none|the value '.*' of type '\w+'|'.*')$",
    re.DOTALL,
)
_TYPED: Final = re.compile(r"the value '(?P<value>.*)' of type '(?P<type>\w+)'", re.DOTALL)
_UNTYPED: Final = re.compile(r"'(?P<value>.*)'(?P<type>)", re.DOTALL)
_TEXTS: Final = ("longstr", "shortstr")
_INTEGERS: Final = (
    *("signedint", "unsignedint", "long", "unsignedlong", "short", "unsignedshort", "byte", "unsignedbyte"),
    *("short_signedint", "int", "timestamp"),
)
# The broker tells these without their type.
_COUNTS: Final = ("x-delivery-limit", "x-max-length", "x-max-length-bytes", "x-message-ttl", "x-expires")
# What a queue of another type takes without a word, and does not heed.
_UNHEEDED: Final = {
    "quorum": frozenset[str](),
    "classic": frozenset({"x-delivery-limit", "x-dead-letter-strategy"}),
    "stream": frozenset(
        {
            *("x-delivery-limit", "x-dead-letter-strategy", "x-overflow"),
            *("x-dead-letter-exchange", "x-dead-letter-routing-key"),
        }
    ),
}

Argument = str | int | bool
State = Literal["reachable", "refused", "unreachable"]


@dataclass(frozen=True, slots=True)
class ExchangeSeen:
    """An exchange as the broker has it. `kind` and `durable` are None when `unseen` says why they cannot be known."""

    name: str
    exists: bool
    kind: str | None = None
    durable: bool | None = None
    unseen: str | None = None


@dataclass(frozen=True, slots=True)
class QueueSeen:
    """A queue as the broker has it. `arguments` is None, and so are the flags, when `unseen` says why.

    `ready` counts the messages that wait, without those that a consumer has and did not ack. `unreadable` has the
    broker's words where this user may not take messages from it; asked of queues that the worker reads.
    """

    name: str
    exists: bool
    ready: int | None = None
    consumers: int | None = None
    durable: bool | None = None
    auto_delete: bool | None = None
    arguments: Mapping[str, Argument] | None = None
    unseen: str | None = None
    unreadable: str | None = None

    @property
    def kind(self) -> str | None:
        """The type of the queue: quorum, classic, stream; None when it cannot be seen."""
        return None if self.arguments is None else str(self.arguments.get("x-queue-type", "classic"))


@dataclass(frozen=True, slots=True)
class BrokerSeen:
    """A broker: whether it lets us in, what it is, and what it has of what we need.

    `refused`: it answers, but not to this user, password or vhost; `unreachable`: nobody answers, or not as a broker.
    `reason` has its words. `reports` are the queues in which transports report; `dead_exchanges` are those to which the
    queues hand dead messages, `dead_queues` the queues where ours end up.
    """

    state: State
    reason: str | None = None
    product: str | None = None
    version: str | None = None
    exchange: ExchangeSeen | None = None
    queues: tuple[QueueSeen, ...] = ()
    dead_exchanges: tuple[ExchangeSeen, ...] = ()
    dead_queues: tuple[QueueSeen, ...] = ()
    others: tuple[QueueSeen, ...] = ()
    reports: tuple[QueueSeen, ...] = ()


def inspect_broker(settings: Settings, others: Sequence[str] = (), reports: Sequence[str] = ()) -> BrokerSeen:
    """Look at the broker of `settings.amqp_url`, which is set. A broker that fails is a result, not an error.

    `others` are queues that are not ours: only whether they are there, and how full, is asked. `reports` are queues
    that the worker reads beside those of the settings: it is asked too whether it may.

    A broker that does not answer is given up within a quarter of a minute.
    """
    try:
        with _connected(settings) as connection:
            return _look(connection, settings, others, reports)
    except (pika.exceptions.ProbableAuthenticationError, pika.exceptions.ProbableAccessDeniedError) as error:
        return BrokerSeen("refused", reason_of(error, endpoint(settings)))
    except BrokerUnreachable as error:
        return BrokerSeen("unreachable", str(error).removesuffix("."))
    except (pika.exceptions.AMQPError, connection_workflow.AMQPConnectorException, OSError) as error:
        return BrokerSeen("unreachable", reason_of(error, endpoint(settings)))


@contextmanager
def _connected(settings: Settings) -> Iterator[BlockingConnection]:
    parameters = connection_parameters(settings, "doctor")
    # What pika warns of is told as a finding.
    logging.getLogger("pika").setLevel(logging.CRITICAL + 1)
    parameters.socket_timeout = _PATIENCE
    parameters.stack_timeout = _PATIENCE
    parameters.heartbeat = _HEARTBEAT
    connection = pika.BlockingConnection(parameters)
    try:
        yield connection
    finally:
        if connection.is_open:
            connection.close()


def _look(
    connection: BlockingConnection, settings: Settings, others: Sequence[str], reports: Sequence[str]
) -> BrokerSeen:
    queues = tuple(
        _readable(connection, _queue(connection, name, queue_arguments(settings, name)))
        for name in settings.amqp_queue_names
    )
    going = [queue.arguments.get("x-dead-letter-exchange") for queue in queues if queue.arguments]
    exchanges = dict.fromkeys(str(name) for name in going if name)
    server = getattr(connection, "_impl").server_properties or {}  # noqa: B009 - pika shows them nowhere else
    return BrokerSeen(
        state="reachable",
        product=_text(server.get("product")),
        version=_text(server.get("version")),
        exchange=_exchange(connection, settings.amqp_exchange, "direct"),
        queues=queues,
        dead_exchanges=tuple(_exchange(connection, name, None) for name in exchanges),
        dead_queues=tuple(_depth(connection, dead_queue(name)) for name in settings.amqp_queue_names),
        others=tuple(_depth(connection, name) for name in others),
        reports=tuple(_readable(connection, _depth(connection, name)) for name in reports),
    )


def _text(value: object) -> str | None:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value if isinstance(value, str) else None


def _exchange(connection: BlockingConnection, name: str, kind: str | None) -> ExchangeSeen:
    """Look at an exchange; without a `kind` that it should have, only at whether it is there."""
    closed = _asked(connection, lambda channel: channel.exchange_declare(name, passive=True))
    if closed is not None:
        absent = closed.reply_code == _NOT_FOUND
        return ExchangeSeen(name, exists=not absent, unseen=None if absent else reason_of(closed))
    if kind is None:
        return ExchangeSeen(name, exists=True)
    flags: dict[str, Any] = {"type": kind, "durable": True, "auto_delete": False, "internal": False}
    arguments: dict[str, Any] = {}

    def declare(channel: BlockingChannel) -> None:
        channel.exchange_declare(
            name,
            flags["type"],
            durable=flags["durable"],
            auto_delete=flags["auto_delete"],
            internal=flags["internal"],
            arguments=arguments,
        )

    unseen = _learn(connection, declare, flags, arguments)
    if unseen is not None:
        return ExchangeSeen(name, exists=True, unseen=unseen)
    return ExchangeSeen(name, exists=True, kind=flags["type"], durable=flags["durable"])


def _queue(connection: BlockingConnection, name: str, wanted: Mapping[str, Argument]) -> QueueSeen:
    seen = _depth(connection, name)
    if not seen.exists or seen.unseen:
        return seen
    flags: dict[str, Any] = {"durable": True, "auto_delete": False, "exclusive": False}
    arguments: dict[str, Any] = dict(wanted)

    def declare(channel: BlockingChannel) -> None:
        channel.queue_declare(name, durable=flags["durable"], auto_delete=flags["auto_delete"], arguments=arguments)

    unseen = _learn(connection, declare, flags, arguments)
    if unseen is not None:
        return replace(seen, unseen=unseen)
    unheeded = _UNHEEDED.get(arguments.get("x-queue-type", "classic"), frozenset())
    arguments = {key: value for key, value in arguments.items() if key not in unheeded}
    return replace(seen, durable=flags["durable"], auto_delete=flags["auto_delete"], arguments=arguments)


def _depth(connection: BlockingConnection, name: str) -> QueueSeen:
    """Look at what a passive declare tells of a queue."""
    told: list[Any] = []
    closed = _asked(connection, lambda channel: told.append(channel.queue_declare(name, passive=True).method))
    if closed is None:
        return QueueSeen(name, exists=True, ready=told[0].message_count, consumers=told[0].consumer_count)
    absent = closed.reply_code == _NOT_FOUND and "no queue" in closed.reply_text
    return QueueSeen(name, exists=not absent, unseen=None if absent else reason_of(closed))


def _readable(connection: BlockingConnection, seen: QueueSeen) -> QueueSeen:
    """Find out whether this user may take messages from a queue, without taking one.

    The broker looks at the right to read first and at the arguments of a consumer next (`rabbit_channel`, basic.consume
    in 3.10 to 4.x), so one with an argument that cannot be is refused in either case, and the code tells in which.
    """
    if not seen.exists or seen.ready is None:
        return seen

    def consume(channel: BlockingChannel) -> None:
        channel.basic_qos(prefetch_count=1)
        channel.basic_consume(seen.name, lambda *_: None, arguments={"x-priority": "none"})

    closed = _asked(connection, consume)
    refused = closed is not None and closed.reply_code == _ACCESS_REFUSED
    return replace(seen, unreadable=reason_of(closed)) if closed is not None and refused else seen


def _asked(
    connection: BlockingConnection, question: Callable[[BlockingChannel], object]
) -> pika.exceptions.ChannelClosedByBroker | None:
    """Ask on a channel of its own, which a refusal closes; return that refusal."""
    channel = connection.channel()
    try:
        question(channel)
    except pika.exceptions.ChannelClosedByBroker as closed:
        return closed
    channel.close()
    return None


def _learn(
    connection: BlockingConnection,
    declare: Callable[[BlockingChannel], object],
    flags: dict[str, Any],
    arguments: dict[str, Any],
) -> str | None:
    """Put into `flags` and `arguments` what the broker has, one refusal after the other; return why it cannot be."""
    for _ in range(_MOST_ROUNDS):
        closed = _asked(connection, declare)
        if closed is None:
            return None
        difference = _difference(closed.reply_code, closed.reply_text)
        if difference is None:
            return reason_of(closed)
        name, current = difference
        known = flags if name in flags else arguments
        if current is None and name in known and known is arguments:
            del known[name]
        elif current is not None and known.get(name) != current:
            known[name] = current
        else:
            return reason_of(closed)
    return f"more than {_MOST_ROUNDS} of its arguments differ from ours"


def _difference(code: int, text: str) -> tuple[str, Argument | None] | None:
    """Read a refusal: which argument differs, and what it is there, None if it is not given.

    Returns None for a refusal that says something else, or a value that could not be said again.
    """
    found = _DIFFERENCE.search(text) if code == _PRECONDITION_FAILED else None
    if found is None:
        return None
    name, told = found["name"], found["theirs"]
    if told == "none":
        return name, None
    said = _TYPED.fullmatch(told) or _UNTYPED.fullmatch(told)
    if said is None:
        return None
    value, kind = said["value"], said["type"]
    if kind == "bool" or (not kind and value in ("true", "false")):
        return name, value == "true"
    if kind in _INTEGERS or (not kind and name in _COUNTS):
        return (name, int(value)) if re.fullmatch(r"-?[0-9]{1,19}", value) else None
    return (name, value) if kind in ("", *_TEXTS) else None


def weaknesses(queue: QueueSeen, wanted: Mapping[str, Argument]) -> Iterator[str]:
    """Say in which ways a queue keeps events less safely than one that we would make, a clause each.

    Judges flags and arguments only, so it has nothing to say of a queue whose arguments could not be seen. `wanted` are
    the arguments that we would give it.
    """
    if queue.arguments is None:
        return
    limits = queue.arguments
    if queue.kind == "classic" and wanted.get("x-queue-type") == "quorum":
        yield (
            "it is classic: one node has its messages, and nobody counts how often one is delivered, whatever limit "
            "a policy sets"
        )
    elif queue.kind == "stream":
        yield "it is a stream: what is read from it stays in it, and is read again after each start"
    if not queue.durable:
        yield "it is not durable: gone, with its messages, when the broker stops"
    if queue.auto_delete:
        yield "it deletes itself, with its messages, when its last consumer goes"
    if "x-expires" in limits:
        yield f"x-expires={limits['x-expires']}: deleted, with its messages, when nobody uses it for so many ms"
    if "x-message-ttl" in limits:
        yield f"x-message-ttl={limits['x-message-ttl']}: events that wait longer than so many ms vanish"
    for name in ("x-max-length", "x-max-length-bytes"):
        if name in limits and limits.get("x-overflow", "drop-head") == "drop-head":
            yield f"{name}={limits[name]} with x-overflow=drop-head: the oldest events vanish when it is full"
    if queue.kind == "quorum" and "x-delivery-limit" in wanted:
        yield from _weak_dead_letters(limits)


def _weak_dead_letters(limits: Mapping[str, Argument]) -> Iterator[str]:
    if "x-delivery-limit" not in limits:
        yield "it has no x-delivery-limit: an event that takes every consumer down comes back for ever"
    if "x-dead-letter-exchange" not in limits:
        yield "it has no x-dead-letter-exchange: what is delivered too often is deleted"
    elif limits.get("x-dead-letter-strategy", "at-most-once") != "at-least-once":
        yield "x-dead-letter-strategy is at-most-once: a dead message can be lost on its way"
    elif limits.get("x-overflow", "drop-head") == "drop-head":
        yield "x-overflow=drop-head makes x-dead-letter-strategy at-most-once: a dead message can be lost on its way"
