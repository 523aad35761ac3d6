"""The embedded sender: texts stay in the store, as rows in `messages`. Touches no network."""

from __future__ import annotations

from typing import ClassVar

from dispatcher.plugins.context import Context
from dispatcher.plugins.effects import Effect
from dispatcher.plugins.outcomes import Done, Outcome
from dispatcher.plugins.services import Sender, Text


class OutboxSender(Sender):
    """Keeps texts in the store, in the state `queued`; `dispatcher messages` shows them.

    For trying out rulebooks, and for programmes whose own software picks the texts up.
    """

    effect: ClassVar[Effect] = Effect.TRANSACTION

    def queue(self, text: Text, context: Context) -> Outcome:
        """Leave the text where it is: its row in `messages` is all there is to do."""
        return Done()
