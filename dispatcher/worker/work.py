"""What one batch is given to do, and how it is halved when the store refuses it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

from dispatcher.engine.call import CallReturn
from dispatcher.engine.intake import Delivery, Receipt
from dispatcher.engine.records import RunRow, StoredEvent


@dataclass(frozen=True, slots=True)
class Work:
    """The inputs of a batch."""

    deliveries: Sequence[Delivery] = ()
    events: Sequence[StoredEvent] = ()
    due: Sequence[RunRow] = ()
    returns: Sequence[CallReturn] = ()
    abandoned: Sequence[RunRow] = ()

    @property
    def size(self) -> int:
        """How many things there are to do."""
        return len(self.deliveries) + len(self.events) + len(self.due) + len(self.returns) + len(self.abandoned)

    def halves(self) -> tuple[Work, Work]:
        """Split in two, keeping the order of each input; both halves of two things or more have at least one."""
        first: dict[str, Sequence[object]] = {}
        second: dict[str, Sequence[object]] = {}
        odd_to_first = True
        for each in fields(self):
            items: Sequence[object] = getattr(self, each.name)
            middle = len(items) // 2
            if len(items) % 2:
                middle += odd_to_first
                odd_to_first = not odd_to_first
            first[each.name], second[each.name] = items[:middle], items[middle:]
        return Work(**first), Work(**second)  # type: ignore[arg-type]


@dataclass(slots=True)
class Taken:
    """What a batch took in: from whoever asked over the control socket, or `from_broker`; and what became of it."""

    deliveries: Sequence[Delivery]
    from_broker: bool
    receipts: list[Receipt] = field(default_factory=list)
