"""Which handlers, senders and services are installed: found by entry point, loaded when named, checked before use.

Three stages, as flake8 does it: *find* reads the metadata of the installed distributions and imports nothing; *load*
imports one target when somebody asks for it; *classify* checks that the target is what its group promises. Whatever
goes wrong on the way makes that one name broken, with its reason, and leaves the others alone.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from pydantic import BaseModel

from dispatcher.errors import CannotStart
from dispatcher.plugins.boundary import Escaped, contained
from dispatcher.plugins.effects import Effect
from dispatcher.plugins.handler import Handler
from dispatcher.plugins.services import Sender, Service

HANDLERS = "dispatcher.handlers"
SENDERS = "dispatcher.senders"
SERVICES = "dispatcher.services"

OUR_DISTRIBUTION = "event-dispatcher"

# What a step may be besides the use of a handler, today or later.
CONTROLS = frozenset({"wait", "stop", "wait_for", "wait_until", "for_each"})

_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_REASON_LIMIT = 300


@dataclass(frozen=True, slots=True)
class Plugin:
    """What the metadata of one distribution says about one name; nothing is imported yet."""

    group: str
    name: str
    distribution: str
    version: str
    entry_point: EntryPoint


@dataclass(frozen=True, slots=True)
class Installed:
    """A name that can be used: where it comes from, and the class behind it."""

    name: str
    distribution: str
    version: str
    target: type[BaseModel]


@dataclass(frozen=True, slots=True)
class BrokenPlugin:
    """A name that cannot be used, whose it is, and why."""

    name: str
    distribution: str
    version: str
    reason: str

    def __str__(self) -> str:
        """Say it in one line."""
        return f"{self.name} of {self.distribution} {self.version}: {self.reason}"


class Group(Mapping[str, Installed]):
    """The usable names of one group. Asking for a name loads that one; going through all of them loads all."""

    def __init__(self, group: str, found: Iterable[Plugin], broken: dict[tuple[str, str], BrokenPlugin]) -> None:
        self._group = group
        self._broken = broken
        self._loaded: dict[str, Installed] = {}
        self._waiting: dict[str, Plugin] = {}
        claims = defaultdict(list)
        for plugin in found:
            claims[plugin.name].append(plugin)
        for name, plugins in sorted(claims.items()):
            if len(plugins) == 1:
                self._waiting[name] = plugins[0]
            else:
                broken[group, name] = _clash(plugins)

    def add(self, installed: Installed) -> None:
        """Add a class that no distribution installs: the way for a test to name a handler of its own in a rulebook."""
        self._loaded[installed.name] = installed

    def names(self) -> list[str]:
        """Return the names that are not known to be broken, without loading any."""
        return sorted({*self._loaded, *self._waiting})

    def __getitem__(self, name: str) -> Installed:
        if name in self._waiting:
            plugin = self._waiting.pop(name)
            result = load(plugin)
            if isinstance(result, BrokenPlugin):
                self._broken[self._group, name] = result
            else:
                self._loaded[name] = result
        return self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        self.load_all()
        return iter(sorted(self._loaded))

    def __len__(self) -> int:
        self.load_all()
        return len(self._loaded)

    def load_all(self) -> None:
        """Load what is not loaded yet, so that every broken name is known."""
        for name in list(self._waiting):
            self.get(name)


class Registry:
    """Everything that is installed, by group and name; and what is broken, as far as it was asked for."""

    def __init__(self, plugins: Iterable[Plugin]) -> None:
        self.broken: dict[tuple[str, str], BrokenPlugin] = {}
        by_group = defaultdict(list)
        for plugin in plugins:
            by_group[plugin.group].append(plugin)
        self.handlers = Group(HANDLERS, by_group[HANDLERS], self.broken)
        self.senders = Group(SENDERS, by_group[SENDERS], self.broken)
        self.services = Group(SERVICES, by_group[SERVICES], self.broken)

    def load_all(self) -> None:
        """Load everything, so that `broken` is complete."""
        for group in (self.handlers, self.senders, self.services):
            group.load_all()


def load_registry() -> Registry:
    """Find what is installed on the import path. Raises CannotStart when not even the built-in handlers are."""
    plugins = find()
    if not any(plugin.distribution == OUR_DISTRIBUTION for plugin in plugins):
        raise CannotStart(
            f"the distribution {OUR_DISTRIBUTION} is not installed, so no handler can be found.",
            hint="Install it, from a checkout with `pip install -e .`.",
        )
    return Registry(plugins)


def find() -> list[Plugin]:
    """Read the entry points of all three groups, in a stable order; imports nothing of theirs."""
    plugins = [
        Plugin(
            group=group,
            name=entry.name,
            distribution=_normalised(entry.dist.name) if entry.dist else "unknown",
            version=(entry.dist.version if entry.dist else None) or "unknown",
            entry_point=entry,
        )
        for group in (HANDLERS, SENDERS, SERVICES)
        for entry in entry_points(group=group)
    ]
    return sorted(plugins, key=lambda plugin: (plugin.group, plugin.name, plugin.distribution))


def load(plugin: Plugin) -> Installed | BrokenPlugin:
    """Import the target of one plugin and check it."""
    target = contained(plugin.entry_point.load)
    if isinstance(target, Escaped):
        return _broken(plugin, _shadowed(plugin) or _said(target.error))
    reason = _shadowed(plugin) or classify(plugin.group, plugin.name, target)
    if reason:
        return _broken(plugin, reason)
    return Installed(plugin.name, plugin.distribution, plugin.version, target)


def classify(group: str, name: str, target: object) -> str | None:
    """Return why `target` cannot be used under this name in this group, or None when it can."""
    if not _NAME.fullmatch(name):
        return "a name is written in lower case, digits and underscores, such as send_sms"
    if not isinstance(target, type):
        return f"{target!r:.60} is not a class"
    if group == HANDLERS:
        return _wrong_with_handler(name, target)
    if group == SENDERS:
        return _wrong_with_sender(target)
    return _wrong_with_service(target)


def _wrong_with_handler(name: str, target: type) -> str | None:
    if name in CONTROLS:
        return f'"{name}" is the name of a control, not of a handler'
    if not issubclass(target, Handler):
        return f"{target.__name__} is not a subclass of dispatcher.Handler"
    if not isinstance(getattr(target, "effect", None), Effect):
        return f"{target.__name__} does not say its effect; set `effect = Effect.PURE`, `TRANSACTION` or `CALL`"
    if inspect.isabstract(target):
        return f"{target.__name__} has no `run`"
    if not _is_documented(target):
        return f"{target.__name__} has no docstring; say what it does, what it emits, what happens if it runs twice"
    if not (isinstance(target.Result, type) and issubclass(target.Result, BaseModel)):
        return f"{target.__name__}.Result is not a pydantic model"
    if not isinstance(target.timeout, timedelta) or target.timeout <= timedelta(0):
        return f"{target.__name__}.timeout is not a timedelta above 0"
    if not all(isinstance(kind, type) and issubclass(kind, Exception) for kind in target.transient):
        return f"{target.__name__}.transient holds something that is not a subclass of Exception"
    settles_itself = any("settle" in base.__dict__ for base in target.__mro__ if base is not Handler)
    if inspect.iscoroutinefunction(target.run) and target.effect is not Effect.CALL and not settles_itself:
        return f"{target.__name__}.run is async, which only a handler with the effect call may be"
    return None


def _wrong_with_sender(target: type) -> str | None:
    if not issubclass(target, Sender):
        return f"{target.__name__} is not a subclass of dispatcher.Sender"
    match target.effect:
        case Effect.CALL:
            needed, has_it = "send", target.send is not Sender.send
        case Effect.TRANSACTION:
            needed, has_it = "queue", target.queue is not Sender.queue
        case _:
            return f"{target.__name__}.effect is neither Effect.CALL nor Effect.TRANSACTION"
    if not has_it:
        return f"{target.__name__} has the effect {target.effect.value} but no `{needed}`"
    return _wrong_with_service(target)


def _wrong_with_service(target: type) -> str | None:
    if not issubclass(target, Service):
        return f"{target.__name__} is not a subclass of dispatcher.Service"
    if inspect.isabstract(target):
        return f"{target.__name__} leaves methods abstract"
    if not _is_documented(target):
        return f"{target.__name__} has no docstring"
    return None


def _is_documented(target: type) -> bool:
    return bool((target.__doc__ or "").strip())


def _shadowed(plugin: Plugin) -> str | None:
    """Catch a folder of the user's, called `handlers` too, that stands before ours on the import path."""
    if plugin.distribution != OUR_DISTRIBUTION:
        return None
    package = sys.modules.get(plugin.entry_point.module.partition(".")[0])
    where = next(iter(getattr(package, "__path__", ())), None)
    # `handlers` lies beside `dispatcher`, in a checkout as in an installation.
    ours = Path(__file__).resolve().parent.parent.parent
    if where is None or Path(where).resolve().parent == ours:
        return None
    return f"{where} stands before the built-in package on the import path; rename it, or run from another folder"


def _clash(plugins: list[Plugin]) -> BrokenPlugin:
    owners = [f"{plugin.distribution} {plugin.version}" for plugin in plugins]
    return BrokenPlugin(
        name=plugins[0].name,
        distribution=" and ".join(plugin.distribution for plugin in plugins),
        version=" and ".join(plugin.version for plugin in plugins),
        reason=f"{' and '.join(owners)} both install this name; remove one of them",
    )


def _broken(plugin: Plugin, reason: str) -> BrokenPlugin:
    return BrokenPlugin(plugin.name, plugin.distribution, plugin.version, reason)


def _said(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    said = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return said[:_REASON_LIMIT]


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
