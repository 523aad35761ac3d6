"""Bind the chains of a rulebook to what is installed and configured.

Every mistake becomes a problem; a chain without mistakes becomes a `Chain`.
"""

from __future__ import annotations

from collections.abc import Mapping as AnyMapping
from datetime import timedelta
from typing import Any

from dispatcher.rules.catalogue import Catalogue
from dispatcher.rules.chainbinding import ChainBinding
from dispatcher.rules.chains import BoundChain, RetryPolicy, Step
from dispatcher.rules.comments import Source
from dispatcher.rules.connections import Connections
from dispatcher.rules.expressions import Expression, TemplateProblem, compile_expression
from dispatcher.rules.names import KnownNames, note_misnomer
from dispatcher.rules.nodes import Broken, Mapping, Node, Scalar, described
from dispatcher.rules.parambinding import ParamBinder, note_template
from dispatcher.rules.problems import Problems
from dispatcher.rules.reading import place_of
from dispatcher.rules.sections import Rulebook
from dispatcher.rules.shape import RETRY_INITIAL, RETRY_LONGEST, RETRY_WITHIN, RetryShape, TriggerShape

# How many steps and triggers are remembered, to be shared by the chains that follow.
_REMEMBERED = 4096


class Binder:
    """Binds the chains of one rulebook, one after the other."""

    def __init__(
        self,
        rulebook: Rulebook,
        catalogue: Catalogue,
        connections: Connections,
        problems: Problems,
        *,
        default_region: str | None,
    ) -> None:
        self.rulebook = rulebook
        self.catalogue = catalogue
        self.problems = problems
        self._default_region = default_region
        self.params = ParamBinder(connections, problems, complete=rulebook.complete)
        self.names: dict[str, tuple[str, int]] = {}
        self._vars: dict[frozenset[str], dict[str, Any]] = {}
        self._retry = retry_policy(rulebook.defaults.retry, None)
        self._retries: dict[RetryShape, RetryPolicy] = {}
        self._steps: dict[tuple[Any, ...], Step] = {}
        self._texts: dict[tuple[str, ...], tuple[str, ...]] = {}
        self.order = 0

    def bind(self, node: Node, source: Source) -> BoundChain | None:
        """Bind one chain of a file, or note what is wrong with it."""
        if type(node) is Broken:
            return None
        if type(node) is not Mapping:
            message = f"a chain is a mapping, found {described(node)}"
            self.problems.add(source.name, place_of(node), "wrong_type", message)
            return None
        self.order += 1
        return ChainBinding(self, node, source).bind()

    def region(self, account: str) -> str | None:
        """Return the region in which an account's numbers are read."""
        known = self.rulebook.accounts.get(account)
        if known is not None and known.region is not None:
            return known.region
        return self.rulebook.defaults.region or self._default_region

    def fields_of(self, trigger: TriggerShape) -> AnyMapping[str, str] | None:
        """Return the fields of the events that a trigger admits, None unless each of these is declared."""
        if trigger.conversation_type is None or trigger.event_type is None:
            return None
        fields: dict[str, str] = {}
        for kind in trigger.conversation_type:
            for event_type in trigger.event_type:
                entry = self.rulebook.events.get((kind, event_type))
                if entry is None or entry.shape.fields is None:
                    return None
                fields.update({n: "any" if fields.get(n, t) != t else t for n, t in entry.shape.fields.items()})
        return fields

    def subjects(self) -> dict[tuple[str, str], Expression]:
        """Compile the subjects that `events:` names."""
        compiled = {}
        for key, entry in self.rulebook.events.items():
            node = entry.node.get("subject")
            if entry.shape.subject is None or type(node) is not Scalar:
                continue
            try:
                expression = compile_expression(node.text)
            except TemplateProblem as problem:
                note_template(node, problem, entry.file, self.problems)
                continue
            known = KnownNames(entry.shape.fields, {}, in_condition=True)
            for path in expression.paths:
                note_misnomer(node, path, known, entry.file, self.problems)
            compiled[key] = expression
        return compiled

    def regions_of(self, trigger: TriggerShape) -> tuple[str | None, ...]:
        """Return the regions in which a literal number of a chain may be read."""
        if trigger.account is None:
            return (self.rulebook.defaults.region or self._default_region,)
        return tuple(dict.fromkeys(self.region(account) for account in trigger.account))

    def vars_for(self, names: frozenset[str] | None) -> dict[str, Any]:
        """Return the vars of these names, None for all; the same object for the same names."""
        everything = self.rulebook.vars
        used = frozenset(everything if names is None else names & everything.keys())
        if used not in self._vars:
            self._vars[used] = {name: everything[name] for name in sorted(used)}
        return self._vars[used]

    def shared_step(self, key: tuple[Any, ...], step: Step) -> Step:
        """Return the step that an earlier chain has with the same content, for chains that differ in little."""
        if len(self._steps) >= _REMEMBERED:
            self._steps.clear()
        return self._steps.setdefault(key, step)

    def shared_texts(self, texts: tuple[str, ...] | None) -> tuple[str, ...] | None:
        """Return the same object for the same texts of a trigger, each text once."""
        if texts is None:
            return None
        if len(self._texts) >= _REMEMBERED:
            self._texts.clear()
        return self._texts.setdefault(texts, tuple(dict.fromkeys(texts)))

    def retry_for(self, shape: RetryShape | None) -> RetryPolicy:
        """Return the policy of a step; the same object for the same settings."""
        if shape is None:
            return self._retry
        if shape not in self._retries:
            self._retries[shape] = retry_policy(self.rulebook.defaults.retry, shape)
        return self._retries[shape]


def retry_policy(defaults: RetryShape | None, own: RetryShape | None) -> RetryPolicy:
    """Merge a step's settings over the defaults over what holds otherwise."""
    layers = [shape for shape in (own, defaults) if shape is not None]

    def first(name: str, otherwise: timedelta) -> timedelta:
        return next((value for shape in layers if (value := getattr(shape, name)) is not None), otherwise)

    longest = first("longest", RETRY_LONGEST)
    return RetryPolicy(
        within=first("within", RETRY_WITHIN),
        initial=min(first("initial", RETRY_INITIAL), longest),
        longest=longest,
        attempts=next((shape.attempts for shape in layers if shape.attempts is not None), None),
    )
