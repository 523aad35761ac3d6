"""Find the chains whose trigger fits an event, at the same cost however many chains there are.

Chains that leave open the same parts of the trigger share a table, keyed by the parts that they name; an event is
looked up in each of these few tables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import product
from operator import attrgetter
from typing import Any

from dispatcher.events.event import Event
from dispatcher.rules.chains import Chain

_PARTS = ("account", "conversation", "conversation_type", "event_type")
_FIELDS = ("account_key", "conversation_key", "conversation_type", "event_type")
# A trigger with longer lists is tried by itself; a table of all their combinations would not fit into memory.
_MOST_COMBINATIONS = 10_000

_Table = tuple[Callable[[Event], Any], dict[Any, tuple[Chain, ...]]]


class TriggerIndex:
    """The chains of a plan by what triggers them."""

    def __init__(self, chains: Iterable[Chain]) -> None:
        tables: dict[tuple[int, ...], dict[Any, tuple[Chain, ...]]] = {}
        open_to_all: list[Chain] = []
        by_itself: list[Chain] = []
        for chain in chains:
            named = tuple(part for part in range(4) if getattr(chain, _PARTS[part]) is not None)
            texts = [dict.fromkeys(getattr(chain, _PARTS[part])) for part in named]
            if not named:
                open_to_all.append(chain)
                continue
            count = 1
            for some in texts:
                count *= len(some)
            if count > _MOST_COMBINATIONS:
                by_itself.append(chain)
                continue
            table = tables.setdefault(named, {})
            for key in texts[0] if len(named) == 1 else product(*texts):
                table[key] = (*table.get(key, ()), chain)
        self._tables: list[_Table] = [
            (attrgetter(*(_FIELDS[part] for part in named)), table) for named, table in tables.items()
        ]
        self._open_to_all = tuple(open_to_all)
        self._by_itself = tuple((chain, _sets(chain)) for chain in by_itself)

    def triggered(self, event: Event) -> Sequence[Chain]:
        """Return the chains that this event triggers, in the order of the rulebook."""
        found = self._open_to_all
        mixed = False
        for key, table in self._tables:
            more = table.get(key(event))
            if more is not None:
                mixed = mixed or bool(found)
                found = found + more if found else more
        if self._by_itself:
            more = tuple(chain for chain, sets in self._by_itself if _fits(event, sets))
            mixed = mixed or bool(found and more)
            found += more
        return sorted(found, key=_order) if mixed else found


def _order(chain: Chain) -> int:
    return chain.order


def _sets(chain: Chain) -> list[tuple[str, frozenset[str]]]:
    return [
        (field, frozenset(texts))
        for part, field in zip(_PARTS, _FIELDS, strict=True)
        if (texts := getattr(chain, part)) is not None
    ]


def _fits(event: Event, sets: list[tuple[str, frozenset[str]]]) -> bool:
    return all(getattr(event, field) in texts for field, texts in sets)
