"""The plan: a rulebook bound to what is installed, compiled and indexed; or all that is wrong with it.

`load_plan` is for running, `check_rulebook` for telling people.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path

from dispatcher.errors import Problem, RulebookRefused
from dispatcher.events.event import Event
from dispatcher.plugins.registry import Registry
from dispatcher.plugins.services import Sender, Service
from dispatcher.rules.binding import Binder
from dispatcher.rules.catalogue import Catalogue
from dispatcher.rules.chains import BoundChain, Chain, RetryPolicy, Step, pack
from dispatcher.rules.checks import advise
from dispatcher.rules.comments import note_swallowed_text
from dispatcher.rules.connections import Connections, build_connections
from dispatcher.rules.expressions import Expression
from dispatcher.rules.index import TriggerIndex
from dispatcher.rules.nodes import Node, Scalar, from_json, text_value
from dispatcher.rules.params import Params
from dispatcher.rules.problems import Problems
from dispatcher.rules.reading import Place, locate, place_of
from dispatcher.rules.schema import json_schema
from dispatcher.rules.sections import Rulebook, read_rulebook

__all__ = [
    "Chain",
    "Params",
    "Plan",
    "RetryPolicy",
    "Step",
    "check_rulebook",
    "json_schema",
    "load_plan",
]


@dataclass(slots=True)
class _Loaded:
    """What came of a rulebook, mistakes and all."""

    rulebook: Rulebook
    connections: Connections
    catalogue: Catalogue
    problems: Problems
    chains: list[BoundChain] = field(default_factory=list)
    subjects: dict[tuple[str, str], Expression] = field(default_factory=dict)

    @property
    def files(self) -> list[str]:
        """The names of the files, in the order in which they were read."""
        return [file.name for file in self.rulebook.files]


class Plan:
    """A rulebook that can be run. It never changes; a new one replaces it as a whole.

    `disabled` are the chains that need a broken plugin, by name, each with the reason; they are not in `chains`.
    `warnings` are all problems that did not keep the rulebook from being loaded.
    """

    __slots__ = (
        "_accounts",
        "_catalogue",
        "_connections",
        "_default_region",
        "_defaults",
        "_index",
        "_regions",
        "_restored",
        "_subjects",
        "by_digest",
        "chains",
        "conversations",
        "digest",
        "disabled",
        "senders",
        "services",
        "warnings",
    )

    def __init__(self, loaded: _Loaded, default_region: str | None) -> None:
        rulebook = loaded.rulebook
        self.chains: tuple[Chain, ...] = tuple(bound.chain for bound in loaded.chains if bound.broken is None)
        self.by_digest: dict[str, Chain] = {chain.digest: chain for chain in self.chains}
        self.senders: dict[str, Sender] = loaded.connections.senders
        self.services: dict[str, Service] = loaded.connections.services
        self.conversations: dict[str, str] = rulebook.conversations
        listed = loaded.problems.listed(files=loaded.files)
        self.warnings: tuple[Problem, ...] = tuple(listed)
        self.disabled: dict[str, str] = {
            bound.chain.name: str(bound.broken) for bound in loaded.chains if bound.broken is not None
        }
        self.digest: str = _digest(rulebook, self.chains)
        self._index = TriggerIndex(self.chains)
        self._subjects = loaded.subjects
        self._default_region = rulebook.defaults.region or default_region
        self._regions = {key: account.region for key, account in rulebook.accounts.items() if account.region}
        self._connections = loaded.connections
        self._catalogue = loaded.catalogue
        self._accounts = rulebook.accounts
        self._defaults = rulebook.defaults
        self._restored: dict[str, Chain] = {}

    def triggered(self, event: Event) -> Sequence[Chain]:
        """Return the chains whose trigger fits, defaults included, in the order of the rulebook."""
        return self._index.triggered(event)

    def region(self, account_key: str) -> str | None:
        """Return the region in which this account's numbers without "+" are read."""
        return self._regions.get(account_key, self._default_region)

    def subject_of(self, conversation_type: str, event_type: str) -> Expression | None:
        """Return what tells whom an event of this type is about."""
        return self._subjects.get((conversation_type, event_type))

    def restore(self, text: str) -> Chain:
        """Rebuild a chain from `Chain.text`, to finish the runs that began with it.

        Raises RulebookRefused when today's handlers, senders and services no longer fit it.
        """
        known = self._restored.get(text)
        if known is None:
            known = self._restored[text] = self._rebuilt(text)
        return known

    def _rebuilt(self, text: str) -> Chain:
        document = json.loads(text)
        rulebook = Rulebook(vars=document.pop("vars"), accounts=self._accounts, defaults=self._defaults)
        problems = Problems()
        binder = Binder(rulebook, self._catalogue, self._connections, problems, default_region=self._default_region)
        source = _Pinned(f"the pinned chain {document['name']!r}")
        bound = binder.bind(from_json(document), source)
        if bound is None or problems.errors:
            raise RulebookRefused(problems.listed())
        pinned = text.encode()
        return replace(bound.chain, digest=sha256(pinned).hexdigest(), packed_text=pack(pinned))


class _Pinned:
    """Stands in for the file of a chain that comes from the store."""

    def __init__(self, name: str) -> None:
        self.name = name

    def lines(self, first: int, last: int) -> list[str]:
        """Return nothing: a pinned chain has no lines."""
        return []

    def comment_behind(self, scalar: Scalar) -> str | None:
        """Return None: a pinned chain has no comments."""
        return None


def load_plan(path: Path | str, registry: Registry, *, default_region: str | None, environ: Mapping[str, str]) -> Plan:
    """Load a rulebook for running. Raises RulebookRefused with every problem.

    Chains that need a broken plugin do not keep the others from running: they are left out, see `Plan.disabled`.
    """
    loaded = _load(Path(path), str(path), registry, default_region, environ)
    listed = loaded.problems.listed(files=loaded.files)
    if any(problem.severity == "error" and problem.code != "broken_handler" for problem in listed):
        raise RulebookRefused(listed)
    return Plan(loaded, default_region)


def check_rulebook(
    paths: Iterable[Path | str],
    registry: Registry,
    *,
    default_region: str | None = None,
    environ: Mapping[str, str] | None = None,
    strict: bool = False,
) -> list[Problem]:
    """Return every problem of these rulebooks, each being one for itself. Raises nothing for what people wrote."""
    found: list[Problem] = []
    for path in paths:
        loaded = _load(Path(path), str(path), registry, default_region, environ or {})
        found += loaded.problems.listed(strict=strict, files=loaded.files)
    return found


def _load(path: Path, name: str, registry: Registry, default_region: str | None, environ: Mapping[str, str]) -> _Loaded:
    with _collector_paused():
        return _read_and_bind(path, name, registry, default_region, environ)


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Keep the cycle collector from going through a growing plan again and again: a quarter of the time to load."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _read_and_bind(
    path: Path, name: str, registry: Registry, default_region: str | None, environ: Mapping[str, str]
) -> _Loaded:
    problems = Problems()
    rulebook, secrets = read_rulebook(path, name, environ, problems)
    catalogue = Catalogue(registry)
    connections = build_connections(rulebook, catalogue, secrets, problems)
    loaded = _Loaded(rulebook, connections, catalogue, problems)
    binder = Binder(rulebook, catalogue, connections, problems, default_region=default_region)
    loaded.subjects = binder.subjects()
    for file in rulebook.files:
        constants = file.sections.get("vars")
        if constants is not None:
            note_swallowed_text(constants, file, problems)
        for node in file.chains():
            bound = binder.bind(node, file)
            if bound is not None:
                loaded.chains.append(bound)
    _advise(loaded)
    return loaded


def _advise(loaded: _Loaded) -> None:
    """Add what is doubtful about chains that are sound each by itself."""
    advice = advise([bound.chain for bound in loaded.chains if bound.broken is None])
    wanted = {(found.chain.file, found.chain.line) for found in advice}
    nodes: dict[tuple[str, int], Node] = {}
    for file in loaded.rulebook.files if wanted else ():
        # The chains were let go of as they were bound; advice is rare enough to read them again for its place.
        for node in file.chains():
            if (file.name, node.line) in wanted:
                nodes[file.name, node.line] = node
    for found in advice:
        node = nodes[found.chain.file, found.chain.line]
        loaded.problems.add(found.chain.file, _place_in_chain(node, found.where), found.code, found.message)


def _place_in_chain(node: Node, where: tuple[str | int, ...]) -> Place:
    return place_of(locate(node, where)[0])


def _digest(rulebook: Rulebook, chains: Iterable[Chain]) -> str:
    """Digest all that decides what a rulebook does; secrets count by their names, not by their values."""
    head = {
        "accounts": {key: account.model_dump(mode="json") for key, account in rulebook.accounts.items()},
        "conversations": rulebook.conversations,
        "defaults": rulebook.defaults.model_dump(mode="json"),
        "events": [[*key, entry.shape.subject] for key, entry in rulebook.events.items()],
        "senders": {name: text_value(entry.written) for name, entry in rulebook.senders.items()},
        "services": {name: text_value(entry.written) for name, entry in rulebook.services.items()},
    }
    digest = sha256(json.dumps(head, sort_keys=True).encode())
    for chain in chains:
        digest.update(chain.digest.encode())
    return digest.hexdigest()
