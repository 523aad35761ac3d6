"""The rulebook in force with its connections, and the one that takes its place when a reload is asked for.

A bad rulebook never replaces a good one. Connections of an earlier rulebook stay open as long as a call goes through
them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from dispatcher.errors import CannotStart, DispatcherError, RulebookRefused
from dispatcher.plugins.registry import load_registry
from dispatcher.rules.plan import Plan, load_plan
from dispatcher.senders.vumi import VumiSender
from dispatcher.settings import Settings, process_environ
from dispatcher.telemetry import log
from dispatcher.worker.connections import OpenConnections, PinnedChains


def read_plan(settings: Settings) -> Plan:
    """Read the rulebook that the settings name, for a worker with these settings.

    Raises RulebookRefused, and CannotStart for what only the two together make impossible.
    """
    plan = load_plan(
        settings.rulebook, load_registry(), default_region=settings.default_region, environ=process_environ()
    )
    if settings.amqp_url is None:
        _refuse_texts_by_broker(plan)
    else:
        from dispatcher.worker.broker import queues_of  # noqa: PLC0415 - brings pika

        queues_of(settings, plan)  # here, so that a reload refuses the rulebook and keeps the old one
    return plan


class Rulebooks:
    """The plan of one worker, now and next. `load` makes a new one; `wake` ends the worker's sleep when it is there."""

    def __init__(
        self,
        plan: Plan,
        *,
        load: Callable[[], Plan],
        stored_text: Callable[[str], str | None],
        wake: Callable[[], None],
    ) -> None:
        self.plan = plan
        self.connections = OpenConnections(plan)
        self.chains = PinnedChains(plan, stored_text)
        self._load = load
        self._wake = wake
        # Connections of earlier rulebooks, each with the calls that may still go through them.
        self._replaced: list[tuple[OpenConnections, frozenset[int]]] = []
        self._loading = False
        self._loaded: list[Plan | DispatcherError] = []

    def load(self) -> bool:
        """Read the rulebook again, in a thread; False while that is under way, as what was read first must not win."""
        if self._loading:
            return False
        self._loading = True
        threading.Thread(target=self._read, name="reload", daemon=True).start()
        return True

    def replace(self, flights: Callable[[], frozenset[int]]) -> bool:
        """Go by what was read, if it is good; `flights` tells the calls under way. True when the plan is another."""
        replaced = False
        while self._loaded:
            found = self._loaded.pop(0)
            if isinstance(found, DispatcherError):
                problems = [str(problem) for problem in getattr(found, "problems", ())]
                log.error("rulebook.refused", error=str(found), problems=problems)
                continue
            connections = OpenConnections(found)
            try:
                connections.open()
            except CannotStart as error:
                log.error("rulebook.refused", error=str(error))
                continue
            self._replaced.append((self.connections, flights()))
            self.plan, self.connections = found, connections
            self.chains.replace(found)
            log.info("rulebook.reloaded", chains=len(found.chains), rulebook=found.digest[:12])
            tell_disabled(found)
            replaced = True
        if self._replaced:
            self._close_unused(flights())
        return replaced

    def close(self) -> None:
        """Close every connection."""
        for connections in (self.connections, *(connections for connections, _ in self._replaced)):
            connections.close()

    def _close_unused(self, flights: frozenset[int]) -> None:
        """Close connections of earlier rulebooks that no call goes through any more."""
        for entry in [entry for entry in self._replaced if flights.isdisjoint(entry[1])]:
            self._replaced.remove(entry)
            entry[0].close()

    def _read(self) -> None:
        try:
            self._loaded.append(self._load())
        except (RulebookRefused, CannotStart) as error:
            self._loaded.append(error)
        finally:
            self._loading = False
            self._wake()


def tell_disabled(plan: Plan) -> None:
    """Tell which chains do not run for want of a plugin: one line a plugin, with the first few of its chains."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in plan.disabled.items():
        by_reason.setdefault(reason, []).append(name)
    for reason, names in by_reason.items():
        log.error("chain.disabled", chains=len(names), such_as=names[:5], reason=reason)


def _refuse_texts_by_broker(plan: Plan) -> None:
    """Raise CannotStart when a chain sends by a sender that needs a broker: there is none."""
    for chain in plan.chains:
        for step in chain.steps:
            kind, _, name = (step.settled.connection or "" if step.settled else "").partition(":")
            if kind == "sender" and isinstance(plan.senders[name], VumiSender):
                raise CannotStart(
                    f"the chain {chain.name!r} sends by {name!r}, which publishes to RabbitMQ, and no broker is named.",
                    hint="Give --amqp or DISPATCHER_AMQP_URL.",
                )
