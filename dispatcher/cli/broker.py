"""What `dispatcher doctor` finds at the broker: whether it lets us in, what our queues are like, and what waits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from dispatcher.cli.findings import Finding, Level
from dispatcher.cli.refusals import no_right_to_read, who_was_refused

if TYPE_CHECKING:
    from dispatcher.settings import Settings
    from dispatcher.sources.amqp.inspection import BrokerSeen, ExchangeSeen, QueueSeen

_REMAKE = "Arguments of a queue never change: when it is empty, delete it, and `dispatcher run` makes it anew."
_BY_POLICY = f"{_REMAKE} Limits and where dead letters go can be set by a policy instead, which is not seen from here."


def broker_findings(
    settings: Settings, seen: BrokerSeen, *, worker_runs: bool | None, workers: int | None = None
) -> Iterator[Finding]:
    """Tell what was seen at the broker that the settings name.

    `worker_runs` is None where that is not clear, and so is `workers`: how many share the store, if it can be shared.
    """
    if seen.state != "reachable":
        yield _shut_out(settings, seen)
        return
    product = " ".join(part for part in (seen.product, seen.version) if part)
    yield Finding("ok", "broker", f"{settings.amqp_url_shown}: {product or 'of an unknown make'}")
    if seen.exchange is not None:
        yield from _exchange(settings, seen.exchange)
    for queue, dead in zip(seen.queues, seen.dead_queues, strict=True):
        yield from _queue(settings, queue, worker_runs=worker_runs, workers=workers)
        yield from _dead_letters(queue, dead, seen.dead_exchanges)


def report_findings(
    settings: Settings, queues: Sequence[QueueSeen], *, worker_runs: bool | None, workers: int | None = None
) -> Iterator[Finding]:
    """Tell how the queues fare in which Vumi's transports report what became of texts; see `broker_findings`."""
    for queue in queues:
        name, consumers = queue.name, queue.consumers or 0
        if not queue.exists:
            level: Level = "look" if settings.amqp_declare else "wrong"
            told = f"there is no queue {name} yet: what the transport reports goes nowhere"
            yield Finding(level, "reports", told, _made_by(settings))
        elif queue.ready is None:
            yield Finding("wrong", "reports", f"{name}: {queue.unseen}", "Another connection may own it (exclusive).")
        elif queue.unreadable:
            yield _unreadable(settings, queue, "reports")
        elif other := _other_reader(settings, queue, worker_runs=worker_runs, workers=workers):
            hint = "Give its sender `reports: false`, or a transport of its own."
            yield Finding("look", "reports", f"{name}: {_filled(queue)}; {other}", hint)
        elif worker_runs and not consumers:
            told = f"{name}: the worker runs, and nobody takes reports from it; {queue.ready:,} ready"
            yield Finding("look", "reports", told, "The worker's log says why: `queue.lost`, `rulebook.refused`.")
        else:
            yield Finding("ok", "reports", f"{name}: {_filled(queue)}")


def transport_findings(queues: Sequence[QueueSeen]) -> Iterator[Finding]:
    """Tell how the queues fare from which Vumi's transports take the texts that we send."""
    for queue in queues:
        if queue.unseen:
            yield Finding("look", "transport", f"{queue.name}: {queue.unseen}")
        elif not queue.exists:
            told = f"there is no queue {queue.name}: texts for it wait in the store"
            yield Finding("look", "transport", told, "Start the Vumi transport, or mend transport_name.")
        elif not queue.consumers:
            waiting = "1 waits" if queue.ready == 1 else f"{queue.ready or 0:,} wait"
            told = f"nobody takes texts from {queue.name}: {waiting} there"
            yield Finding("look", "transport", told, "Start the Vumi transport.")
        else:
            yield Finding("ok", "transport", f"{queue.name}: {_filled(queue)}")


def _shut_out(settings: Settings, seen: BrokerSeen) -> Finding:
    told = f"{settings.amqp_url_shown}: {seen.reason or 'no connection'}"
    if seen.state == "unreachable":
        return Finding("wrong", "broker", told, "Events wait there, and what we publish waits here.")
    hint = who_was_refused(settings, seen.reason or "")
    return Finding("wrong", "broker", told, hint or "See to the user, its password, the vhost, and its rights there.")


def _exchange(settings: Settings, exchange: ExchangeSeen) -> Iterator[Finding]:
    name = exchange.name
    if not exchange.exists:
        yield Finding("look", "exchange", f"there is no {name} yet", _made_by(settings))
    elif exchange.unseen:
        yield Finding("ok", "exchange", f"{name}; more cannot be seen: {exchange.unseen}")
    elif exchange.kind in ("fanout", "headers"):
        told = f"{name} is of type {exchange.kind}, which pays no heed to the names of queues; it should be direct"
        yield Finding("wrong", "exchange", told, "Name another one: DISPATCHER_AMQP_EXCHANGE.")
    elif not exchange.durable:
        yield Finding("look", "exchange", f"{name} is not durable: gone when the broker stops, with all bindings")
    else:
        yield Finding("ok", "exchange", f"{name}: {exchange.kind}, durable")


def _queue(settings: Settings, queue: QueueSeen, *, worker_runs: bool | None, workers: int | None) -> Iterator[Finding]:
    from dispatcher.sources.amqp.inspection import weaknesses  # noqa: PLC0415 - see main
    from dispatcher.sources.amqp.topology import queue_arguments  # noqa: PLC0415

    name = queue.name
    if not queue.exists:
        level: Level = "look" if settings.amqp_declare else "wrong"
        yield Finding(level, "queue", f"there is no {name} yet: events for it go nowhere", _made_by(settings))
        return
    if queue.ready is None:
        yield Finding("wrong", "queue", f"{name}: {queue.unseen}", "Another connection may own it (exclusive).")
        return
    if queue.unreadable:
        yield _unreadable(settings, queue, "queue")
    elif queue.unseen:
        told = f"{name}: {_filled(queue)}; its arguments cannot be seen: {queue.unseen}"
        hint = "`rabbitmqctl list_queues name type arguments policy` shows them."
        yield Finding("look" if "403" not in queue.unseen else "ok", "queue", told, hint)
    else:
        weak = list(weaknesses(queue, queue_arguments(settings, name)))
        if weak:
            yield Finding(
                "look",
                "queue",
                f"{name}: {_filled(queue)}; {'; '.join(weak)}",
                _BY_POLICY if queue.kind == "quorum" else _REMAKE,
            )
        else:
            yield Finding("ok", "queue", f"{name}: {queue.kind}, {_filled(queue)}")
    if worker_runs and not queue.consumers and not queue.unreadable:
        told = f"{name}: the worker runs, and nobody takes events from it"
        yield Finding("look", "queue", told, "The worker's log says why: `queue.lost`, `amqp.disconnected`.")
    elif other := _other_reader(settings, queue, worker_runs=worker_runs, workers=workers):
        told = f"{name}: {_consumers(queue.consumers or 0)}; {other}"
        hint = "`rabbitmqctl list_consumers` names them; those of workers begin with `dispatcher-`. Stop the other one."
        yield Finding("look", "queue", told, hint)


def _other_reader(settings: Settings, queue: QueueSeen, *, worker_runs: bool | None, workers: int | None) -> str | None:
    """Say what it means that somebody reads the queue who is no worker of this store; None where nobody does."""
    consumers = queue.consumers or 0
    if settings.store_kind == "sqlite":
        if consumers <= (0 if worker_runs is False else 1):
            return None
        return "another program reads it too, to which a worker leaves the whole queue"
    if workers is None or consumers <= workers:
        return None
    at_work = "1 worker shares" if workers == 1 else f"{workers:,} workers share"
    return f"{at_work} this store, so another program reads it too, and gets its part"


def _dead_letters(queue: QueueSeen, dead: QueueSeen, exchanges: Sequence[ExchangeSeen]) -> Iterator[Finding]:
    from dispatcher.sources.amqp.topology import DEAD_EXCHANGE  # noqa: PLC0415 - see main

    if dead.ready:
        one = dead.ready == 1
        told = f"{dead.name} holds {'1 event' if one else f'{dead.ready:,} events'} that the broker gave up delivering"
        hint = (
            f"{'It' if one else 'Each'} was delivered too often without an ack. Find out why, then move "
            f"{'it' if one else 'them'} back (a shovel can)."
        )
        yield Finding("look", "broker dead", told, hint)
    going = (queue.arguments or {}).get("x-dead-letter-exchange")
    if not going:
        return
    if any(exchange.name == going and not exchange.exists for exchange in exchanges):
        told = f"{queue.name} hands dead messages to the exchange {going}, which is not there: they vanish, or jam it"
        yield Finding("look", "broker dead", told, "Declare it, and a queue bound to it.")
    elif going == DEAD_EXCHANGE and not dead.exists:
        told = f"there is no queue {dead.name} for what {queue.name} gives up"
        yield Finding("look", "broker dead", told, f"Declare one, bound to {going} by the key {queue.name}.")


def _made_by(settings: Settings) -> str:
    if settings.amqp_declare:
        return "`dispatcher run` makes it."
    return "DISPATCHER_AMQP_DECLARE is off: somebody else has to make it."


def _filled(queue: QueueSeen) -> str:
    return f"{queue.ready or 0:,} ready, {_consumers(queue.consumers or 0)}"


def _consumers(count: int) -> str:
    return "1 consumer" if count == 1 else f"{count:,} consumers"


def _unreadable(settings: Settings, queue: QueueSeen, area: str) -> Finding:
    return Finding("wrong", area, f"{queue.name}: {queue.unreadable}", no_right_to_read(settings, queue.name))
