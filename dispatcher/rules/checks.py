"""Advice on chains that are sound each by itself: events that lead back to themselves, and what can never run."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from typing import Any, NamedTuple

from dispatcher.rules.chains import Chain, Step
from dispatcher.rules.expressions import Expression, ExpressionError

EMITTER = "emit_event"

Texts = tuple[str, ...] | None
_MOST_COMBINATIONS = 1000
# How many pairs of an emitted event and a chain are looked at; rulebooks that go beyond get no advice on cycles.
_MOST_PAIRS = 2_000_000


class Advice(NamedTuple):
    """One finding: where in which chain it stands, and what it is."""

    chain: Chain
    where: tuple[str | int, ...]
    code: str
    message: str


class _Emission(NamedTuple):
    """What is known at load of the events that a step emits; None where it may be anything."""

    step: Step
    account: Texts
    conversation: Texts
    conversation_type: Texts
    event_type: Texts


def advise(chains: Sequence[Chain]) -> list[Advice]:
    """Look at all chains of a rulebook."""
    return [*_never_run(chains), *_shadowed_defaults(chains), *_cycles(chains)]


def _never_run(chains: Iterable[Chain]) -> Iterator[Advice]:
    for chain in chains:
        if _constant(chain.when) is False:
            yield Advice(chain, ("when",), "unreachable", f"this never holds, so the chain {chain.name!r} never runs")
        stopped = False
        for step in chain.steps:
            here: tuple[str | int, ...] = ("steps", step.position)
            if stopped:
                yield Advice(chain, here, "unreachable", "the step before this one always ends the run")
                break
            if _constant(step.when) is False:
                yield Advice(chain, (*here, "when"), "unreachable", f"this never holds: {step.id!r} is always skipped")
            always = step.when is None or _constant(step.when) is True
            stopped = step.kind == "stop" and always and _constant(step.stop) is True


def _constant(expression: Expression | None) -> bool | None:
    """Return what an expression always is, or None when that depends."""
    if expression is None or expression.paths:
        return None
    try:
        return expression.test({})
    except ExpressionError:
        return None


def _shadowed_defaults(chains: Sequence[Chain]) -> Iterator[Advice]:
    """Find defaults in whose whole scope an ordinary chain without a condition runs."""
    defaults = [chain for chain in chains if chain.default]
    if not defaults:
        return
    always = _Triggers(c for c in chains if not c.default and (c.when is None or _constant(c.when) is True))
    for chain in defaults:
        cover = always.covering(chain.account, chain.conversation, chain.conversation_type, chain.event_type)
        if cover is not None:
            message = f"a default runs when no ordinary chain did, but {cover.name!r} runs for all of these events"
            yield Advice(chain, ("default",), "unreachable", message)


class _Triggers:
    """Chains by the texts of their triggers, None standing for any."""

    def __init__(self, chains: Iterable[Chain]) -> None:
        self._by_key: dict[tuple[str | None, ...], Chain] = {}
        for chain in chains:
            for key in _combinations(chain.account, chain.conversation, chain.conversation_type, chain.event_type):
                self._by_key.setdefault(key, chain)

    def covering(self, *parts: Texts) -> Chain | None:
        """Return a chain that takes part in covering everything that these texts admit; None if they are not."""
        found = None
        for key in _combinations(*parts):
            choices = product(*((text, None) if text is not None else (None,) for text in key))
            found = next((self._by_key[choice] for choice in choices if choice in self._by_key), None)
            if found is None:
                return None
        return found


def _combinations(*parts: Texts) -> Iterator[tuple[str | None, ...]]:
    lists = [part if part is not None else (None,) for part in parts]
    count = 1
    for texts in lists:
        count *= len(texts)
    return iter(()) if count > _MOST_COMBINATIONS else product(*lists)


def _cycles(chains: Sequence[Chain]) -> Iterator[Advice]:
    """Find events that lead back to the chain that emits them, over any number of chains."""
    emitters = [(chain, found) for chain in chains if (found := tuple(_emissions(chain)))]
    if not emitters:
        return
    # Chains that are triggered by the same and emit the same are one node of the graph.
    alike: dict[tuple[Any, ...], list[Chain]] = defaultdict(list)
    for chain, found in emitters:
        sent = frozenset((emission.step.position, *emission[1:]) for emission in found)
        alike[chain.default, _trigger(chain), sent].append(chain)
    members = {group[0].order: group for group in alike.values()}
    always = _Triggers(c for c in chains if not c.default and c.when is None)
    leads = _leads([(chain, found) for chain, found in emitters if chain.order in members], always)
    _peel(leads)
    yield from _report_cycles(members, leads)


def _leads(emitters: list[tuple[Chain, tuple[_Emission, ...]]], always: _Triggers) -> dict[int, dict[int, _Emission]]:
    """Tell for every chain to which chains its emissions lead, as far as that many pairs can be looked at."""
    by_type: dict[str | None, list[Chain]] = defaultdict(list)
    for chain, _ in emitters:
        for text in chain.event_type or (None,):
            by_type[text].append(chain)
    leads: dict[int, dict[int, _Emission]] = {}
    pairs = 0
    for chain, found in emitters:
        targets = leads.setdefault(chain.order, {})
        for emission in found:
            near = [*by_type[None], *by_type[emission.event_type[0]]] if emission.event_type else []
            pairs += len(near)
            if pairs > _MOST_PAIRS:
                return {}
            for target in near:
                if target.order not in targets and _may_trigger(emission, target, always):
                    targets[target.order] = emission
    return leads


def _trigger(chain: Chain) -> tuple[Texts, ...]:
    return chain.account, chain.conversation, chain.conversation_type, chain.event_type


def _emissions(chain: Chain) -> Iterator[_Emission]:
    for step in chain.steps:
        if step.handler_name != EMITTER or step.params is None:
            continue
        params = step.params
        if params.depends("event_type"):
            continue  # what is emitted is known only when it is

        def one(name: str, inherited: Texts, step: Step = step) -> Texts:
            assert step.params is not None
            if step.params.depends(name):
                return None
            given = step.params.literal_of(name)
            return (given,) if isinstance(given, str) else inherited

        yield _Emission(
            step,
            one("account", chain.account),
            one("conversation_key", chain.conversation),
            one("conversation_type", chain.conversation_type),
            one("event_type", None),
        )


def _may_trigger(emission: _Emission, target: Chain, always: _Triggers) -> bool:
    pairs = (
        (emission.account, target.account),
        (emission.conversation, target.conversation),
        (emission.conversation_type, target.conversation_type),
        (emission.event_type, target.event_type),
    )
    if not all(sent is None or asked is None or set(sent) & set(asked) for sent, asked in pairs):
        return False
    return not target.default or always.covering(*emission[1:]) is None


def _report_cycles(members: dict[int, list[Chain]], leads: dict[int, dict[int, _Emission]]) -> Iterator[Advice]:
    told: set[int] = set()
    for order in sorted(leads):
        path = _way_back(order, leads) if order not in told else None
        if path is None:
            continue
        told.update(path)
        position = leads[order][path[1]].step.position
        for chain in members[order] if len(path) == 2 else members[order][:1]:
            names = " → ".join([chain.name, *(members[step][0].name for step in path[1:-1]), chain.name])
            message = f"this event leads back to the chain that emits it: {names}; only a condition or `loop` ends it"
            yield Advice(chain, ("steps", position, "with", "event_type"), "emit_cycle", message)


def _peel(leads: dict[int, dict[int, _Emission]]) -> None:
    """Take away, again and again, what leads nowhere: what is left is on a way to a cycle."""
    sources: dict[int, list[int]] = defaultdict(list)
    for here, targets in leads.items():
        for there in targets:
            sources[there].append(here)
    idle = [here for here, targets in leads.items() if not targets]
    while idle:
        done = idle.pop()
        del leads[done]
        for source in sources[done]:
            targets = leads[source]
            del targets[done]
            if not targets:
                idle.append(source)


def _way_back(start: int, leads: dict[int, dict[int, _Emission]]) -> list[int] | None:
    """Return the shortest way from a chain over what it emits back to itself."""
    before: dict[int, int] = {}
    waiting = deque([start])
    while waiting:
        here = waiting.popleft()
        for there in leads[here]:
            if there == start:
                path = [start, here]
                while path[-1] != start:
                    path.append(before[path[-1]])
                return path[::-1]
            if there not in before:
                before[there] = here
                waiting.append(there)
    return None
