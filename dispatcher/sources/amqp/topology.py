"""What the dispatcher consumes from: exchange, queues, where dead messages go; and how missing ones are made.

What exists is used as it is, and never deleted or declared otherwise: others may rely on it. Each thing is asked for
first (a passive declare needs no permission), and made only when it is absent and `amqp_declare` allows it.

Sources: docs of RabbitMQ on quorum queues and dead lettering; Vumi's workers for the plain ones (facts of the wire).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

from dispatcher.settings import Settings
from dispatcher.sources.amqp.conversation import Question, Refused, Talk

DEAD_EXCHANGE: Final = "vumi.dead"
_NOT_FOUND: Final = 404

Arguments = dict[str, str | int]


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue to consume from, and what its messages are: events, or what a Vumi transport reports of its texts."""

    name: str
    kind: Literal["event", "transport_event"] = "event"


@dataclass(frozen=True, slots=True)
class Prepared:
    """How a queue was found: made by us or there before, who consumes it, and why it could not be bound, if so."""

    created: bool
    not_bound: str | None = None
    consumers: int = 0


def dead_queue(name: str) -> str:
    """Return the name of the queue that keeps what a queue of events could not deliver."""
    return f"{name}.dead"


def queue_arguments(settings: Settings, name: str) -> Arguments:
    """Return the arguments that a queue of events gets when it is made here.

    A classic queue gets none: that is how Vumi's workers declare it, and they could not share it otherwise.
    """
    if settings.amqp_queue_type == "classic":
        return {}
    return {
        "x-queue-type": "quorum",
        # A backstop: crashes are counted and their culprits isolated by the store, long before.
        "x-delivery-limit": settings.amqp_delivery_limit,
        "x-dead-letter-exchange": DEAD_EXCHANGE,
        "x-dead-letter-routing-key": name,
        # What is dead leaves the queue only when the other one has it; that needs reject-publish.
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }


def prepare(settings: Settings, queue: Queue) -> Talk[Prepared]:
    """Make sure of a queue and its binding. Raises Refused where that is not to be, 404 for a queue to wait for."""
    try:
        return (yield from look_after(settings, queue))
    except Refused as refused:
        if refused.code != _NOT_FOUND or not settings.amqp_declare:
            raise
    yield from _make_exchange(settings.amqp_exchange)
    arguments = queue_arguments(settings, queue.name) if queue.kind == "event" else {}
    if "x-dead-letter-exchange" in arguments:
        yield from _make_dead_queue(queue.name)
    yield _declared(queue.name, arguments=arguments)
    yield from _bind(queue.name, settings.amqp_exchange)
    return Prepared(created=True)


def look_after(settings: Settings, queue: Queue) -> Talk[Prepared]:
    """See who consumes a queue that is there, and bind it. Raises Refused where there is none, or none to be seen."""
    found = yield _declared(queue.name, passive=True)
    not_bound = yield from rebind(settings, queue)
    return Prepared(created=False, not_bound=not_bound, consumers=found.method.consumer_count)


def rebind(settings: Settings, queue: Queue) -> Talk[str | None]:
    """Bind a queue that is there, which changes nothing when it is bound. Return the broker's words if it will not.

    When its exchange was deleted, both are made anew. Whoever made the queue may have bound it too, and given us no
    right to; so a refusal is lived with.
    """
    if not settings.amqp_declare:
        return None
    try:
        yield from _make_exchange(settings.amqp_exchange)
        yield from _bind(queue.name, settings.amqp_exchange)
    except Refused as refused:
        return str(refused)
    return None


def _make_dead_queue(name: str) -> Talk[None]:
    yield from _make_exchange(DEAD_EXCHANGE)
    dead = dead_queue(name)
    try:
        yield _declared(dead, passive=True)
    except Refused as refused:
        if refused.code != _NOT_FOUND:
            raise
        yield _declared(dead, arguments={"x-queue-type": "quorum"})
    yield from _bind(dead, DEAD_EXCHANGE, key=name)


def _make_exchange(name: str) -> Talk[None]:
    if not name:  # the default exchange is always there, and binds every queue by its name
        return
    try:
        yield lambda channel, answer: channel.exchange_declare(name, passive=True, callback=answer)
    except Refused as refused:
        if refused.code != _NOT_FOUND:
            raise
        yield lambda channel, answer: channel.exchange_declare(name, "direct", durable=True, callback=answer)


def _bind(queue: str, exchange: str, *, key: str | None = None) -> Talk[None]:
    if exchange:
        yield lambda channel, answer: channel.queue_bind(queue, exchange, routing_key=key or queue, callback=answer)


def _declared(name: str, *, passive: bool = False, arguments: Arguments | None = None) -> Question:
    given: dict[str, Any] = dict(arguments or {})
    return lambda channel, answer: channel.queue_declare(
        name, passive=passive, durable=True, arguments=given, callback=answer
    )
