"""What people do to dead letters: replay what they stand for, or discard them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from operator import attrgetter
from typing import Any

from sqlalchemy import ColumnElement, select, update

from dispatcher.engine.intake import Delivery, Receipt
from dispatcher.errors import NotFound, NotPossible
from dispatcher.store.lookup import find_dead_letter, find_event
from dispatcher.store.operations import Changed, Operations, Page, counted
from dispatcher.store.schema import dead_letters
from dispatcher.store.taking import Row, rows, take


class Letters:
    """The dead letters of one transaction. `take_in` admits a delivery within it, and writes nothing if it refuses."""

    def __init__(self, operations: Operations, take_in: Callable[[Delivery], Receipt]) -> None:
        self._operations = operations
        self._take_in = take_in

    def replay(self, text: str) -> Changed:
        """Take a delivery in once more, or resume an event or a run. Raises NotPossible where that cannot be."""
        letter = self._letter(text)
        message = self._replay(letter)
        self._operations.note("dead.replay", letter["dead_id"], message)
        return Changed([letter["dead_id"]], message)

    def discard(self, text: str, reason: str | None) -> Changed:
        """Close a dead letter without doing anything about it."""
        letter = self._letter(text)
        if letter["state"] != "open":
            raise NotPossible(f"dead letter {letter['dead_id']} is {letter['state']} already.")
        self._close(letter, "discarded")
        self._operations.note("dead.discard", letter["dead_id"], reason)
        return Changed([letter["dead_id"]], f"dead letter {letter['dead_id']} is discarded")

    def replay_all(self, filters: dict[str, str | None], page: Page) -> Changed:
        """Replay the open letters that fit; those that cannot be replayed stay open, each with its why."""
        found, next_page = self._open(filters, page)
        replayed, left = [], []
        for letter in found:
            try:
                self._replay(letter)
            except (NotFound, NotPossible) as why:
                left.append((letter["dead_id"], why.message))
            else:
                replayed.append(letter["dead_id"])
        message = f"{counted(len(replayed), 'dead letter')} replayed"
        self._operations.note("dead.replay", _told(filters), message)
        return Changed(replayed, message, left, next_page)

    def discard_all(self, filters: dict[str, str | None], reason: str | None, page: Page) -> Changed:
        """Discard the open letters that fit."""
        found, next_page = self._open(filters, page)
        for letter in found:
            self._close(letter, "discarded")
        message = f"{counted(len(found), 'dead letter')} discarded"
        self._operations.note("dead.discard", _told(filters), f"{message}: {reason}" if reason else message)
        return Changed([letter["dead_id"] for letter in found], message, (), next_page)

    def _replay(self, letter: Row) -> str:
        dead_id = letter["dead_id"]
        # One that was discarded may still be wanted; one that was replayed has had its effect.
        if letter["state"] == "replayed":
            raise NotPossible(f"dead letter {dead_id} is replayed already.")
        if letter["kind"] == "delivery":
            message = self._replay_delivery(letter)
        elif letter["kind"] == "run":
            message = self._operations.retry_run(letter["run_id"]).message
        else:
            message = self._operations.replay_event(letter["event_id"], letter["account_key"], again=False).message
        self._close(letter, "replayed")
        return message

    def _replay_delivery(self, letter: Row) -> str:
        if letter["body"] is None:
            raise NotPossible(f"the body of dead letter {letter['dead_id']} was erased.")
        # Where the source named the event, that is still its name.
        receipt = self._take_in(Delivery(bytes(letter["body"]), message_id=letter["event_id"]))
        if receipt.kind == "refused":
            raise NotPossible(
                f"the delivery of dead letter {letter['dead_id']} is refused again: {receipt.code}: {receipt.detail}.",
                hint="Publish it mended, and discard this one.",
            )
        return f"the delivery is {'a duplicate of ' if receipt.kind == 'duplicate' else ''}event {receipt.event_id}"

    def _letter(self, text: str) -> Row:
        dead_id = find_dead_letter(self._operations.connection, text)
        this = dead_letters.c.dead_id == dead_id
        found = self._take(rows(self._operations.connection, select(dead_letters).where(this)), [this])
        if not found:
            raise NotFound(f"dead letter {dead_id} is not kept any more.")
        return found[0]

    def _open(self, filters: dict[str, str | None], page: Page) -> tuple[list[Row], Page | None]:
        wanted: dict[str, Any] = {**filters, "state": "open"}
        conditions = [dead_letters.c[name] == value for name, value in wanted.items() if value is not None]
        seen, next_page = self._operations.page(select(dead_letters).where(*conditions), dead_letters.c.seq, page)
        return self._take(seen, conditions), next_page

    def _take(self, seen: Sequence[Row], conditions: Sequence[ColumnElement[bool]]) -> list[Row]:
        """Take letters, and before them, as everybody does, the events and runs of which they tell."""
        self._operations.take_runs([letter["run_id"] for letter in seen if letter["run_id"] is not None])
        refs = []
        for letter in (letter for letter in seen if letter["kind"] == "event"):
            with suppress(NotFound, NotPossible):
                refs.append(find_event(self._operations.connection, letter["event_id"], letter["account_key"]))
        for ref in sorted(refs, key=attrgetter("seq")):
            with suppress(NotFound):
                self._operations.take_event(ref)
        these = dead_letters.c.seq.in_([letter["seq"] for letter in seen])
        return take(self._operations.connection, dead_letters, these, *conditions)

    def _close(self, letter: Row, state: str) -> None:
        this = dead_letters.c.seq == letter["seq"]
        self._operations.connection.execute(update(dead_letters).where(this).values(state=state))


def _told(filters: dict[str, str | None]) -> str:
    return " ".join(f"{name}={value}" for name, value in filters.items() if value is not None) or "all that are open"
