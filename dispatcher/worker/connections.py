"""The plan in force with its open connections, and the pinned chains of runs that began under an earlier plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from dispatcher.errors import CannotStart, RulebookRefused
from dispatcher.plugins.boundary import Escaped, contained
from dispatcher.plugins.services import Sender, Service
from dispatcher.rules.plan import Chain, Plan
from dispatcher.telemetry import log


class OpenConnections:
    """The senders and services of a plan, opened. Implements the engine's `Connections`."""

    def __init__(self, plan: Plan) -> None:
        self.senders: Mapping[str, Sender] = plan.senders
        self.services: Mapping[str, Service] = plan.services
        self._opened: list[Service] = []

    @property
    def by_lane(self) -> dict[str, Service]:
        """All connections, keyed as `Settled.connection` names them."""
        lanes: dict[str, Service] = {f"sender:{name}": sender for name, sender in self.senders.items()}
        lanes.update({f"service:{name}": service for name, service in self.services.items()})
        return lanes

    def open(self) -> None:
        """Open all. Raises CannotStart, with the connection's name, where one cannot be opened."""
        for name, connection in self.by_lane.items():
            escaped = contained(connection.open)
            if isinstance(escaped, Escaped):
                self.close()
                error = escaped.error
                said = error if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
                raise CannotStart(f"{name.replace(':', ' ')} cannot be opened: {said}") from error
            self._opened.append(connection)

    def close(self) -> None:
        """Close what was opened, the last first."""
        while self._opened:
            connection = self._opened.pop()
            escaped = contained(connection.close)
            if isinstance(escaped, Escaped):
                log.warning("connection.not_closed", type=type(connection).__name__, error=repr(escaped.error))


class PinnedChains:
    """Finds the chain that a run began on. Implements the engine's `Chains`."""

    def __init__(self, plan: Plan, stored_text: Callable[[str], str | None]) -> None:
        self._plan = plan
        self._stored_text = stored_text
        self._restored: dict[str, Chain | str] = {}

    def replace(self, plan: Plan) -> None:
        """Go by another plan. What could not be bound to the last one may fit its senders and services."""
        self._plan = plan
        self._restored.clear()

    def chain(self, digest: str) -> Chain | str:
        """Return the chain with this digest, or why it can no longer be bound."""
        current = self._plan.by_digest.get(digest)
        if current is not None:
            return current
        if digest not in self._restored:
            self._restored[digest] = self._restore(digest)
        return self._restored[digest]

    def _restore(self, digest: str) -> Chain | str:
        text = self._stored_text(digest)
        if text is None:
            return f"the store has no chain with digest {digest}"
        try:
            return self._plan.restore(text)
        except RulebookRefused as refused:
            said = "; ".join(f"{problem.code}: {problem.message}" for problem in refused.problems)
            log.warning("chain.unbound", digest=digest, problems=len(refused.problems))
            return said
