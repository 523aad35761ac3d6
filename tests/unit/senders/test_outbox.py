from __future__ import annotations

from dispatcher.plugins.effects import Effect
from dispatcher.plugins.outcomes import Done
from dispatcher.senders.outbox import OutboxSender
from dispatcher.testing import MemoryContext


def test_the_outbox_works_within_the_transaction_and_leaves_the_text_to_its_row(text):
    assert OutboxSender.effect is Effect.TRANSACTION
    assert OutboxSender().queue(text, MemoryContext()) == Done()
