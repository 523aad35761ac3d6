"""One ack for a batch never covers what was not acked, and none is given twice."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dispatcher.sources.amqp.settling import Ledger


class Broker:
    """What a channel of RabbitMQ does with acks."""

    def __init__(self, count: int) -> None:
        self.unacked = set(range(1, count + 1))

    def ack(self, upto: int | None, singly: list[int]) -> None:
        if upto is not None:
            assert upto in self.unacked, "406: the channel would be closed"
            self.unacked = {tag for tag in self.unacked if tag > upto}
        for tag in singly:
            assert tag in self.unacked, "406: the channel would be closed"
            self.unacked.remove(tag)


def test_a_batch_in_order_is_one_ack():
    ledger = Ledger()

    assert ledger.settle([1, 2, 3]) == (3, [])
    assert ledger.settle([4, 5]) == (5, [])
    assert ledger.upto == 5


def test_what_lies_beyond_a_gap_is_acked_singly():
    ledger = Ledger()

    assert ledger.settle([1, 4, 3]) == (1, [3, 4])
    assert ledger.settle([2]) == (2, [])
    assert ledger.upto == 4


def test_what_was_acked_is_not_acked_again():
    ledger = Ledger()
    ledger.settle([1, 3])

    assert ledger.settle([3, 1]) == (None, [])
    assert ledger.settle([]) == (None, [])


@given(st.lists(st.lists(st.integers(1, 12), max_size=6), max_size=12))
def test_in_whatever_order_batches_are_acked_the_broker_forgets_exactly_those(batches):
    ledger, broker = Ledger(), Broker(12)
    acked: set[int] = set()

    for batch in batches:
        broker.ack(*ledger.settle(batch))
        acked |= set(batch)

        assert broker.unacked == set(range(1, 13)) - acked
        assert set(range(1, ledger.upto + 1)) <= acked
