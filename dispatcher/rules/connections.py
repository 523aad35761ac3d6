"""Build the senders and services of a rulebook from their settings; opened they are by the worker."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pydantic import ValidationError

from dispatcher.plugins.handler import Bindings
from dispatcher.plugins.registry import SENDERS, SERVICES, BrokenPlugin
from dispatcher.plugins.services import Sender, Service
from dispatcher.rules.catalogue import Catalogue, Param, names_of
from dispatcher.rules.nodes import Broken, Scalar, described, shown
from dispatcher.rules.problems import Problems, nearest
from dispatcher.rules.reading import judge, literals_at, locate, place_of
from dispatcher.rules.secrets import Secrets
from dispatcher.rules.sections import ConnectionEntry, Rulebook

Kind = Literal["sender", "service"]

# Mistakes in values of which there are but a few.
_HOLD_NO_SECRETS = frozenset(("bool_type", "bool_parsing", "literal_error"))


@dataclass(slots=True)
class Connections:
    """The senders and services that could be built, and the names of those that could not."""

    senders: dict[str, Sender] = field(default_factory=dict)
    services: dict[str, Service] = field(default_factory=dict)
    unusable: dict[tuple[Kind, str], BrokenPlugin | None] = field(default_factory=dict)

    @property
    def bindings(self) -> Bindings:
        """What handlers see of them."""
        return Bindings(senders=self.senders, services=self.services)


def build_connections(rulebook: Rulebook, catalogue: Catalogue, secrets: Secrets, problems: Problems) -> Connections:
    """Build every sender and service; what is wrong with one is noted, and leaves it out."""
    builder = _Builder(catalogue, secrets, problems)
    built = Connections()
    for entry in rulebook.senders.values():
        sender = builder.build("sender", entry, built)
        if isinstance(sender, Sender):
            built.senders[entry.name] = sender
    for entry in rulebook.services.values():
        service = builder.build("service", entry, built)
        if service is not None:
            built.services[entry.name] = service
    return built


class _Builder:
    def __init__(self, catalogue: Catalogue, secrets: Secrets, problems: Problems) -> None:
        self._catalogue = catalogue
        self._secrets = secrets
        self._problems = problems

    def build(self, kind: Kind, entry: ConnectionEntry, built: Connections) -> Service | None:
        """Return the connection, or None and why in `built.unusable`."""
        built.unusable[kind, entry.name] = None
        if entry.type_node is None:
            return None
        target = self._target(kind, entry, entry.type_node)
        if isinstance(target, BrokenPlugin):
            built.unusable[kind, entry.name] = target
            return None
        made = self._make(target, entry) if target is not None else None
        if made is not None:
            del built.unusable[kind, entry.name]
        return made

    def _target(self, kind: Kind, entry: ConnectionEntry, type_node: Scalar) -> type[Service] | BrokenPlugin | None:
        registry = self._catalogue.registry
        group, installed = (SENDERS, registry.senders) if kind == "sender" else (SERVICES, registry.services)
        name = type_node.text
        found = installed.get(name)
        if found is not None:
            assert issubclass(found.target, Service)
            return found.target
        broken = registry.broken.get((group, name))
        if broken is not None:
            message = f"the {kind} type {shown(name)} is installed, but broken: {broken}"
            self._note(entry, place_of(type_node), "broken_handler", message)
            return broken
        names = names_of(installed)
        message = f"no {kind} of the type {shown(name)} is installed; there are {', '.join(sorted(names))}"
        self._note(entry, place_of(type_node), "bad_value", message, nearest(name, names))
        return None

    def _make(self, target: type[Service], entry: ConnectionEntry) -> Service | None:
        settings = self._catalogue.settings(target)
        meant = self._note_unknown(entry, settings)
        data = {}
        for name, (_, node) in entry.node.members.items():
            if name in settings and type(node) is not Broken:
                data[name] = settings[name].value(node)
        complete = set(entry.node.members) <= set(data)
        try:
            made = target.model_validate(data)
        except ValidationError as error:
            self._note_errors(error, target, entry, meant)
            return None
        return made if complete else None

    def _note_unknown(self, entry: ConnectionEntry, settings: Mapping[str, Param]) -> set[str | None]:
        meant = set()
        for name, (key, _) in entry.node.members.items():
            if name in settings:
                continue
            near = nearest(name, ["type", *settings])
            meant.add(near)
            message = f"`{name}` is no setting of this type; possible are {', '.join(settings)}"
            self._note(entry, place_of(key), "unknown_key", message, near)
        return meant

    def _note_errors(
        self, error: ValidationError, target: type[Service], entry: ConnectionEntry, meant: set[str | None]
    ) -> None:
        told: set[tuple[int, int]] = set()
        for detail in error.errors(include_url=False):
            loc = detail["loc"]
            where, _ = locate(entry.node, loc)
            if detail["type"] == "missing":
                name = str(loc[-1])
                unread = entry.node.partial or type(entry.node.get(name)) is Broken
                if name not in meant and not unread:
                    holder = entry.key if len(loc) == 1 else where
                    self._note(entry, place_of(holder), "missing_key", f"`{name}` is missing here")
                continue
            if type(where) is Broken or place_of(where) in told:
                continue  # one value may miss each member of a union
            told.add(place_of(where))
            name = f"`{loc[0]}`: " if loc else ""
            # What is found may be a secret, and is named by its kind only: save where nobody would write one.
            code, message, suggestion = judge(detail, where, literals_at(target, loc))
            if type(where) is Scalar and where.text and detail["type"] not in _HOLD_NO_SECRETS:
                message = message.replace(described(where), "this value")
            self._note(entry, place_of(where), code, name + message, suggestion)

    def _note(
        self, entry: ConnectionEntry, place: tuple[int, int], code: str, message: str, suggestion: str | None = None
    ) -> None:
        self._problems.add(entry.file.name, place, code, self._secrets.masked(message), suggestion=suggestion)
