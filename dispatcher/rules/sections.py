"""Gather a rulebook from its file and what that includes: everything but the chains, merged, each name once."""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping as Env
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo, available_timezones

from dispatcher.rules.nodes import Broken, Mapping, Node, Scalar, Sequence, core_value, described, scalars_of, shown
from dispatcher.rules.problems import Problems, nearest
from dispatcher.rules.reading import Place, place_of, read
from dispatcher.rules.rulefile import RuleFile, read_rulefile, why_missing
from dispatcher.rules.secrets import Secrets
from dispatcher.rules.shape import AccountShape, DefaultsShape, EventShape, FragmentShape, RulebookShape
from dispatcher.text.numbers import known_regions

_SECTIONS = frozenset(("accounts", "vars", "conversations", "events", "senders", "services", "defaults", "chains"))
_TEMPLATE_SIGNS = ("{{", "{%", "{#")


@dataclass(frozen=True, slots=True)
class EventEntry:
    """One entry of `events:`, with its place."""

    shape: EventShape
    node: Mapping
    file: RuleFile


@dataclass(frozen=True, slots=True)
class ConnectionEntry:
    """One sender or service as written; `node` has its references resolved."""

    key: Scalar
    type_node: Scalar | None
    node: Mapping
    written: Node
    file: RuleFile

    @property
    def name(self) -> str:
        """What the rulebook calls it."""
        return self.key.text


@dataclass(slots=True)
class Rulebook:
    """All files of a rulebook, merged. `complete` is false when a part of it could not be read."""

    files: list[RuleFile] = field(default_factory=list)
    file_accounts: dict[str, str] = field(default_factory=dict)
    accounts: dict[str, AccountShape] = field(default_factory=dict)
    vars: dict[str, Any] = field(default_factory=dict)
    conversations: dict[str, str] = field(default_factory=dict)
    events: dict[tuple[str, str], EventEntry] = field(default_factory=dict)
    senders: dict[str, ConnectionEntry] = field(default_factory=dict)
    services: dict[str, ConnectionEntry] = field(default_factory=dict)
    defaults: DefaultsShape = field(default_factory=DefaultsShape)
    complete: bool = True


def read_rulebook(path: Path, name: str, environ: Env[str, str], problems: Problems) -> tuple[Rulebook, Secrets]:
    """Read a rulebook and everything that it includes. What is wrong is noted; the rest is read all the same."""
    secrets = Secrets(environ, problems)
    gathering = _Gathering(problems, secrets)
    gathering.read_file(path, name, None, ())
    return gathering.rulebook, secrets


class _Gathering:
    def __init__(self, problems: Problems, secrets: Secrets) -> None:
        self.rulebook = Rulebook()
        self._problems = problems
        self._secrets = secrets
        self._seen: set[Path] = set()
        self._places: dict[tuple[str, Any], tuple[str, int]] = {}

    def read_file(self, path: Path, name: str, asked: tuple[RuleFile, Scalar] | None, above: tuple[Path, ...]) -> None:
        """Read one file, then what it includes."""
        resolved = path.resolve()
        if resolved in above and asked is not None:
            self._note(asked[0], place_of(asked[1]), "bad_value", f"{name} includes itself by this, directly or not")
            return
        if resolved in self._seen:
            return
        self._seen.add(resolved)
        file = read_rulefile(path, name, self._problems)
        if file is None:
            self.rulebook.complete = False
            reason = f"{name}: {why_missing(path)}"
            if asked is None:
                self._problems.add(name, (1, 1), "include_missing", reason)
            else:
                self._note(asked[0], place_of(asked[1]), "include_missing", reason)
            return
        self.rulebook.files.append(file)
        if not file.readable:
            self.rulebook.complete = False
            file.sections.partial = True
        self._take(file, is_top=asked is None)
        self._follow(file, (*above, resolved))

    def _note(self, file: RuleFile, place: Place, code: str, message: str, suggestion: str | None = None) -> None:
        self._problems.add(file.name, place, code, self._secrets.masked(message), suggestion=suggestion)

    def _take(self, file: RuleFile, *, is_top: bool) -> None:
        node = _without_empty_sections(file.sections)
        shape = read(RulebookShape if is_top else FragmentShape, node, file.name, self._problems, version="1")
        if shape is None:
            return
        book = self.rulebook
        if not node.members.keys() <= RulebookShape.model_fields.keys():
            book.complete = False  # a misspelt section is one problem; what it would have defined is not missed
        if shape.account is not None:
            book.file_accounts[file.name] = shape.account
        for name, account in shape.accounts.items():
            if self._is_first("account", name, file, _key(node, "accounts", name)):
                self._check_account(account, file, _value(node, "accounts", name))
                book.accounts[name] = account
        for name, kind in shape.conversations.items():
            if self._is_first("conversation", name, file, _key(node, "conversations", name)):
                book.conversations[name] = kind
        self._take_events(file, node, shape)
        self._take_vars(file, node.get("vars"))
        self._take_connections("sender", file, node.get("senders"), book.senders)
        self._take_connections("service", file, node.get("services"), book.services)
        self._take_defaults(file, node.get("defaults"), shape.defaults)

    def _is_first(self, kind: str, name: Any, file: RuleFile, at: Node) -> bool:
        known = self._places.setdefault((kind, name), (file.name, at.line))
        if known == (file.name, at.line):
            return True
        shown_name = name if isinstance(name, str) else " ".join(name)
        article = "an" if kind[0] in "ae" else "a"
        message = f"there is {article} {kind} {shown(shown_name)} already, in {known[0]}, line {known[1]}"
        self._note(file, place_of(at), "duplicate_name", message)
        return False

    def _check_account(self, account: AccountShape, file: RuleFile, node: Node) -> None:
        if type(node) is not Mapping:
            return
        if account.region is not None:
            self._check_region(account.region, file, node.get("region"))
        if account.timezone is None or _is_zone(account.timezone):
            return
        zones = _zones()
        if zones:
            message = f"{shown(account.timezone)} is not a time zone, such as Africa/Johannesburg"
            where = node.get("timezone")
            self._note(file, place_of(where), "bad_value", message, nearest(account.timezone, zones))

    def _check_region(self, region: str, file: RuleFile, node: Node) -> None:
        regions = known_regions()
        if region not in regions:
            upper = region.upper()
            suggestion = upper if upper in regions else None
            message = f"{shown(region)} is not a region; a region has two capital letters, such as ZA, KE or GB"
            self._note(file, place_of(node), "bad_value", message, suggestion)

    def _take_events(self, file: RuleFile, node: Mapping, shape: FragmentShape) -> None:
        listed = node.get("events")
        if type(listed) is not Sequence:
            return
        shapes = {(event.conversation_type, event.event_type): event for event in shape.events}
        for item in listed.items:
            if type(item) is not Mapping:
                continue
            key = (_text(item.get("conversation_type")), _text(item.get("event_type")))
            event = shapes.get(key)  # type: ignore[arg-type]  # a pair with None is simply not there
            if event is not None and self._is_first("entry for the event", key, file, item):
                fields = item.get("fields")
                if event.fields is not None and type(fields) is Mapping:
                    # A field with a mistake in its type is a field all the same.
                    types = {name: event.fields.get(name, "any") for name in fields.members}
                    event = event.model_copy(update={"fields": types})
                self.rulebook.events[key] = EventEntry(event, item, file)  # type: ignore[index]

    def _is_section(self, node: Node) -> bool:
        if node is not None and type(node) is not Mapping:
            self.rulebook.complete = False
        return type(node) is Mapping

    def _take_vars(self, file: RuleFile, node: Node) -> None:
        if not self._is_section(node):
            return
        for name, (key, value) in node.members.items():
            if self._is_first("var", name, file, key):
                self.rulebook.vars[name] = core_value(value)
            for scalar in scalars_of(value):
                if any(sign in scalar.text for sign in _TEMPLATE_SIGNS):
                    message = "vars are constants, templates in them are not evaluated; put this into the step's params"
                    self._note(file, place_of(scalar), "bad_value", message)

    def _take_connections(self, kind: str, file: RuleFile, node: Node, into: dict[str, ConnectionEntry]) -> None:
        if not self._is_section(node):
            return
        for name, (key, value) in node.members.items():
            if not self._is_first(kind, name, file, key):
                continue
            if type(value) is Broken:
                self.rulebook.complete = False
                continue
            if type(value) is not Mapping:
                message = f"a {kind} is a mapping with a `type`, found {described(value)}"
                self._note(file, place_of(value), "wrong_type", message)
                value = Mapping({}, value.line, value.column, partial=True)  # noqa: PLW2901
            type_node = value.get("type")
            if type_node is None and not value.partial:
                self._note_no_type(kind, file, key, value)
            elif type(type_node) is Broken:
                type_node = None
            elif type_node is not None and (type(type_node) is not Scalar or type_node.is_null):
                message = f"`type`: expected a text, found {described(type_node)}"
                self._note(file, place_of(type_node), "wrong_type", message)
                type_node = None
            resolved = self._secrets.resolved(value.without("type"), file)
            into[name] = ConnectionEntry(key, type_node, resolved, value, file)

    def _note_no_type(self, kind: str, file: RuleFile, key: Scalar, node: Mapping) -> None:
        near = next((written for name, (written, _) in node.members.items() if nearest(name, ("type",))), None)
        if near is None:
            self._note(file, place_of(key), "missing_key", f"`type` is missing in this {kind}")
        else:
            self._note(file, place_of(near), "unknown_key", f"`{near.text}` is not a key of a {kind}", "type")

    def _take_defaults(self, file: RuleFile, node: Node, shape: DefaultsShape) -> None:
        if type(node) is not Mapping:
            return
        given = {}
        for name, (key, value) in node.members.items():
            if name in DefaultsShape.model_fields and self._is_first("default", name, file, key):
                given[name] = getattr(shape, name)
                if name == "region" and shape.region is not None:
                    self._check_region(shape.region, file, value)
        self.rulebook.defaults = self.rulebook.defaults.model_copy(update=given)

    def _follow(self, file: RuleFile, above: tuple[Path, ...]) -> None:
        """Read what a file includes, each pattern's matches in the order of their names."""
        node = file.sections.get("include")
        items = node.items if type(node) is Sequence else [node]
        for item in items:
            if type(item) is not Scalar or item.is_null or not item.text:
                continue
            folder = os.path.dirname(file.name)  # noqa: PTH120  # names stay as written: "./a/../b.yaml" too
            pattern = os.path.join(folder, item.text)  # noqa: PTH118
            if not glob.has_magic(item.text):
                self.read_file(Path(pattern), pattern, (file, item), above)
                continue
            found = sorted(name for name in glob.glob(pattern, recursive=True) if os.path.isfile(name))  # noqa: PTH113, PTH207
            for name in found:
                if Path(name).resolve() != above[-1]:
                    self.read_file(Path(name), name, (file, item), above)


def _without_empty_sections(node: Mapping) -> Mapping:
    """Return the top of a file without sections of which nothing but the name is written: all commented out."""
    empty = [
        name
        for name, (_, value) in node.members.items()
        if name in _SECTIONS and type(value) is Scalar and value.is_null
    ]
    return node.without(*empty) if empty else node


def _text(node: Node) -> str | None:
    return node.text if type(node) is Scalar else None


def _key(node: Mapping, section: str, name: str) -> Scalar:
    found: Scalar = node.members[section][1].key(name)
    return found


def _value(node: Mapping, section: str, name: str) -> Node:
    return node.members[section][1].get(name)


@cache
def _zones() -> frozenset[str]:
    """Return the names of all time zones; none on a machine that has no such tables."""
    return frozenset(available_timezones())


def _is_zone(name: str) -> bool:
    try:
        ZoneInfo(name)
    except (OSError, ValueError, KeyError):
        return False
    return True
