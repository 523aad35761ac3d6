"""A publisher and a consumer without a broker, with the faces of the real ones; each test says what the broker does."""

from __future__ import annotations

from collections import deque

from dispatcher.sources.amqp.fates import Published


class FakePublisher:
    """Takes messages when it has room, and tells the fates that the test wants told."""

    def __init__(self, place=None):
        self.handed = []  # every message, in the order of handing over
        self.open = {}  # those without a fate, by seq
        self.window = 1000
        self.found = []  # the states in which others find the rows in the store, at the moment of handing over
        self.before_publish = lambda: None
        self._place = place
        self._results = deque()

    @property
    def room(self):
        return max(0, self.window - len(self.open))

    def publish(self, messages):
        self.before_publish()
        assert len(messages) <= self.room
        if messages and self._place is not None:
            states = dict(self._place.seen_by_others("SELECT seq, state FROM outbox"))
            self.found += [states.get(message.seq) for message in messages]
        for message in messages:
            assert message.seq not in self.open
            self.open[message.seq] = message
            self.handed.append(message)

    def tell(self, fate, *seqs, reason=None):
        """Tell the fate of these messages, or of all that have none."""
        for seq in seqs or list(self.open):
            del self.open[seq]
            self._results.append(Published(seq, fate, reason))

    def results(self, limit):
        return list(self._results)[:limit]

    def forget(self, count):
        for _ in range(count):
            self._results.popleft()

    @property
    def bodies(self):
        """What was handed over, by the bodies."""
        return [message.body.decode() for message in self.handed]


class FakeConsumer:
    """Brings the deliveries that the test put there, and notes what is acked."""

    def __init__(self):
        self.buffer = deque()
        self.acked = []
        self.processed = deque()
        self.brought, self.ended = set(), set()

    @property
    def epochs(self):
        return frozenset(self.brought - self.ended)

    @property
    def has_deliveries(self):
        return bool(self.buffer)

    def take(self, limit):
        taken = [self.buffer.popleft() for _ in range(min(limit, len(self.buffer)))]
        self.brought.update(delivery.epoch for delivery in taken)
        return taken

    def put_back(self, deliveries):
        self.buffer.extendleft(delivery for delivery in reversed(deliveries) if delivery.epoch not in self.ended)

    def ack(self, deliveries):
        self.acked += deliveries

    def surely_acked(self):
        told = list(self.processed)
        self.processed.clear()
        return told
