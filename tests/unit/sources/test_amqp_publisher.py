"""What the publisher does with a broker that answers as the test says: fates, windows, the ends of channels."""

from __future__ import annotations

import random
import threading
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pika.exceptions import ChannelClosedByBroker, ShortStringTooLong, StreamLostError
from pika.frame import Method
from pika.spec import Basic, BasicProperties

from dispatcher.engine.records import EVENT_EXCHANGE
from dispatcher.errors import DispatcherError
from dispatcher.settings import Settings
from dispatcher.sources.amqp.publisher import Outgoing, Publisher


class FakeChannel:
    """A channel whose broker answers when it is told to."""

    def __init__(self, connection, on_open) -> None:
        self.connection = connection
        self.said: list[str] = []
        self.published: list[tuple] = []
        self._on_open = on_open
        self._next = None

    def add_on_close_callback(self, callback):
        self._on_close = callback

    def add_on_return_callback(self, callback):
        self._on_return = callback

    def exchange_declare(self, exchange, exchange_type="direct", *, passive=False, durable=False, callback):
        self.said.append("look" if passive else f"declare {exchange_type} durable={durable}")
        self._next = callback

    def confirm_delivery(self, answered, callback):
        self.said.append("confirm")
        self._answered = answered
        self._next = callback

    def basic_publish(self, exchange, routing_key, body, *, properties, mandatory):
        assert mandatory
        if len(routing_key.encode()) > 255:
            raise ShortStringTooLong(routing_key)
        self.published.append((exchange, routing_key, body, properties))

    # What the broker does

    def proceed(self):
        """Answer what was asked: opened, declared, in confirm mode."""
        if self._on_open is not None:
            on_open, self._on_open = self._on_open, None
            on_open(self)
        else:
            callback, self._next = self._next, None
            callback(None)

    def open(self):
        for _ in range(3):
            self.proceed()

    def ack(self, tag, *, multiple=False):
        self._answered(Method(1, Basic.Ack(tag, multiple)))

    def nack(self, tag, *, multiple=False):
        self._answered(Method(1, Basic.Nack(tag, multiple)))

    def give_back(self, tag):
        exchange, key, body, properties = self.published[tag - 1]
        returned = Basic.Return(312, "NO_ROUTE", exchange, key)
        self._on_return(self, returned, BasicProperties(message_id=properties.message_id), body)

    def close(self, code, text="SAID THE BROKER"):
        self.connection.channels.remove(self)
        self._on_close(self, ChannelClosedByBroker(code, text))

    def lose(self):
        self._on_close(self, StreamLostError("gone"))

    @property
    def ids(self) -> list[str]:
        return [properties.message_id for *_, properties in self.published]


class FakeConnection:
    def __init__(self) -> None:
        self.channels: list[FakeChannel] = []
        self.opened = 0

    def channel(self, on_open_callback):
        self.opened += 1
        self.channels.append(FakeChannel(self, on_open_callback))
        return self.channels[-1]

    def add_on_connection_blocked_callback(self, callback):
        self.block = callback

    def add_on_connection_unblocked_callback(self, callback):
        self.unblock = callback


class FakeLink:
    """Runs what it is called for at once, as the link's thread would a moment later."""

    status = None

    def __init__(self, name, settings, role) -> None:
        assert name == "publisher"
        self.role = role
        self.connection = None

    def start(self):
        pass

    def stop(self, patience_seconds):
        self.down("stopped")

    def call(self, callback):
        if self.connection is not None:
            callback()
        return self.connection is not None

    def up(self) -> FakeConnection:
        self.connection = FakeConnection()
        self.role.connected(self.connection)
        return self.connection

    def down(self, reason="the connection was lost"):
        if self.connection is not None:
            for channel in self.connection.channels:
                channel.lose()
            self.connection = None
            self.role.disconnected(reason)


class Desk:
    """A publisher on a fake link, with a clock that stands still and a count of wakes."""

    def __init__(self, *, window=10, **settings) -> None:
        self.now = 1_000.0
        self.wakes = 0
        self.handed = 0
        self.publisher = Publisher(
            Settings(amqp_url="amqp://broker", **settings),
            self._wake,
            window=window,
            monotonic=lambda: self.now,
            make_link=self._make_link,
        )
        self.publisher.start()

    def _make_link(self, *arguments):
        self.link = FakeLink(*arguments)
        return self.link

    def _wake(self):
        self.wakes += 1

    def hand_over(self, count=1, *, exchange="vumi", key="key"):
        seqs = range(self.handed, self.handed + count)
        self.handed += count
        self.publisher.publish([Outgoing(seq, exchange, key, b"{}", f"id{seq}") for seq in seqs])

    def fates(self) -> dict[int, str]:
        told = self.publisher.results(1_000)
        assert len({published.seq for published in told}) == len(told)
        return {published.seq: published.fate for published in told}

    def reason(self, seq) -> str | None:
        return next(published.reason for published in self.publisher.results(1_000) if published.seq == seq)


@pytest.fixture
def desk():
    return Desk()


def opened(desk, *, answered=True, **to) -> FakeChannel:
    """Connect, and have a channel that is open; the window too, which takes a message and its answer."""
    connection = desk.link.connection or desk.link.up()
    desk.hand_over(**to)
    channel = connection.channels[-1]
    channel.open()
    if answered:
        channel.ack(1)
        desk.publisher.forget(len(desk.publisher.results(1)))
    return channel


def test_the_exchange_is_looked_for_before_the_first_message_is_written(desk):
    connection = desk.link.up()
    desk.hand_over()
    (channel,) = connection.channels
    channel.proceed()
    assert (channel.said, channel.published) == (["look"], [])
    channel.proceed()
    assert (channel.said, channel.published) == (["look", "confirm"], [])
    channel.proceed()
    assert channel.ids == ["id0"]


def test_a_message_is_persistent_json_under_its_own_id(desk):
    (exchange, key, body, properties) = opened(desk).published[0]
    assert (exchange, key, body) == ("vumi", "key", b"{}")
    assert vars(properties) == vars(
        BasicProperties("application/json", "utf-8", delivery_mode=2, message_id="id0"),
    )


@pytest.mark.parametrize(("exchange", "kind"), [("vumi", "direct"), (EVENT_EXCHANGE, "topic")])
def test_an_exchange_of_ours_is_declared_where_it_is_absent(desk, exchange, kind):
    connection = desk.link.up()
    desk.hand_over(exchange=exchange)
    connection.channels[0].proceed()
    connection.channels[0].close(404)
    connection.channels[0].open()
    assert connection.channels[0].said == [f"declare {kind} durable=True", "confirm"]
    assert connection.channels[0].ids == ["id0"]


def test_an_exchange_that_may_not_be_declared_refuses_with_the_words_of_the_broker(desk):
    connection = desk.link.up()
    desk.hand_over(3)
    connection.channels[0].proceed()
    connection.channels[0].close(404)
    connection.channels[0].proceed()
    connection.channels[0].close(403, "ACCESS_REFUSED - no configure")
    assert desk.fates() == {0: "refused", 1: "refused", 2: "refused"}
    assert desk.reason(0) == "403 ACCESS_REFUSED - no configure"


def test_an_exchange_that_refused_is_not_asked_again_within_a_second(desk):
    connection = desk.link.up()
    for _ in range(5):
        desk.hand_over(exchange="elsewhere")
        for channel in connection.channels:
            channel.proceed()
            channel.close(404)
    assert connection.opened == 1
    assert set(desk.fates().values()) == {"refused"}
    desk.now += 1.5
    desk.hand_over(exchange="elsewhere")
    assert connection.opened == 2


def test_a_name_that_no_exchange_can_have_is_refused_and_nothing_is_asked(desk):
    connection = desk.link.up()
    desk.hand_over(exchange="x" * 256)
    assert desk.fates() == {0: "refused"}
    assert connection.opened == 0


def test_the_first_message_goes_alone_and_the_others_when_it_is_answered(desk):
    connection = desk.link.up()
    desk.hand_over(4)
    (channel,) = connection.channels
    channel.open()
    assert channel.ids == ["id0"]
    channel.ack(1)
    assert channel.ids == ["id0", "id1", "id2", "id3"]


def test_a_channel_that_was_idle_carries_one_message_alone_again(desk):
    channel = opened(desk)
    desk.now += 0.4
    desk.hand_over(3)
    assert len(channel.published) == 4
    channel.ack(4, multiple=True)
    desk.now += 0.6
    desk.hand_over(3)
    assert len(channel.published) == 5


def test_a_first_message_whose_queue_is_stuck_does_not_hold_up_the_others(desk):
    connection = desk.link.up()
    desk.hand_over(3)
    (channel,) = connection.channels
    channel.open()
    desk.publisher.ticked()
    assert len(channel.published) == 1
    desk.now += 1.1
    desk.publisher.ticked()
    assert len(channel.published) == 3


def test_no_more_than_the_window_is_written(desk):
    channel = opened(desk)
    desk.hand_over(25)
    assert len(channel.published) == 11
    channel.ack(3, multiple=True)
    assert len(channel.published) == 13


def test_one_ack_can_confirm_many_and_others_come_in_any_order(desk):
    channel = opened(desk)
    desk.hand_over(6)
    channel.ack(6)
    channel.ack(3, multiple=True)
    assert desk.fates() == {6 - 1: "confirmed", 1: "confirmed", 2: "confirmed"}
    channel.ack(7, multiple=True)
    assert set(desk.fates()) == {1, 2, 3, 4, 5, 6}
    assert desk.publisher.status.confirmed == 7


def test_a_nack_refuses_one_or_many(desk):
    channel = opened(desk)
    desk.hand_over(4)
    channel.nack(3)
    channel.ack(2)
    channel.nack(5, multiple=True)
    assert desk.fates() == {1: "confirmed", 2: "refused", 3: "refused", 4: "refused"}
    assert "nack" in desk.reason(2)


def test_a_returned_message_is_unroutable_whatever_its_own_answer_says(desk):
    channel = opened(desk)
    desk.hand_over(4)
    channel.give_back(3)
    channel.give_back(5)
    assert desk.fates() == {}, "its own ack is still to come"
    channel.ack(5, multiple=True)
    assert desk.fates() == {1: "confirmed", 2: "unroutable", 3: "confirmed", 4: "unroutable"}
    assert desk.reason(2) == "312 NO_ROUTE"


def test_an_id_published_twice_by_different_keys_is_told_apart(desk):
    channel = opened(desk)
    for seq, key in ((1, "nobody"), (2, "somebody"), (3, "nobody")):
        desk.publisher.publish([Outgoing(seq, "vumi", key, b"{}", "the same")])
    desk.handed += 3
    channel.give_back(2)
    channel.give_back(4)
    channel.ack(4, multiple=True)
    assert desk.fates() == {1: "unroutable", 2: "confirmed", 3: "unroutable"}


def test_a_return_that_belongs_to_nothing_ends_the_connection_rather_than_confirm_it(desk):
    channel = opened(desk)
    with pytest.raises(DispatcherError, match="not in flight"):
        channel.give_back(1)


def test_a_message_that_cannot_be_written_is_refused_and_the_counting_goes_on(desk):
    channel = opened(desk)
    desk.hand_over(key="k" * 256)
    desk.hand_over(key="\ud800")
    desk.hand_over()
    channel.ack(2)
    desk.hand_over(key="k" * 256)
    desk.link.down()
    assert desk.fates() == {1: "refused", 2: "refused", 3: "confirmed", 4: "refused"}


@pytest.mark.parametrize("code", [403, 404])
def test_a_channel_closed_over_a_publish_proves_only_that_the_last_one_was_not_taken(desk, code):
    channel = opened(desk)
    desk.hand_over(3)
    channel.close(code)
    assert desk.fates() == {1: "unknown", 2: "unknown", 3: "refused"}


def test_a_channel_closed_for_another_reason_proves_nothing(desk):
    channel = opened(desk)
    desk.hand_over(2)
    channel.close(541, "INTERNAL_ERROR")
    assert desk.fates() == {1: "unknown", 2: "unknown"}


def test_a_permission_that_is_gone_costs_no_message_its_certainty(desk):
    connection = desk.link.up()
    desk.hand_over(5)
    connection.channels[0].open()
    connection.channels[0].close(403)
    assert set(desk.fates().values()) == {"refused"}
    assert len(desk.fates()) == 5


def test_an_exchange_that_was_deleted_is_made_anew_for_those_that_wait(desk):
    channel = opened(desk)
    desk.hand_over(12)
    channel.close(404)
    assert Counter(desk.fates().values()) == {"unknown": 9, "refused": 1}
    (channel,) = desk.link.connection.channels
    channel.proceed()
    channel.close(404)
    (channel,) = desk.link.connection.channels
    channel.open()
    assert channel.ids == ["id11"]
    channel.ack(1)
    assert channel.ids == ["id11", "id12"]


def test_what_happens_to_one_exchange_does_not_touch_another(desk):
    channel = opened(desk)
    other = opened(desk, exchange=EVENT_EXCHANGE)
    desk.hand_over(2)
    desk.hand_over(2, exchange=EVENT_EXCHANGE)
    other.close(404)
    channel.ack(3, multiple=True)
    assert desk.fates() == {2: "confirmed", 3: "confirmed", 4: "unknown", 5: "refused"}


def test_a_lost_connection_leaves_what_was_written_unknown_and_the_rest_unsent(desk):
    channel = opened(desk)
    desk.hand_over(12)
    desk.link.down("reset")
    assert Counter(desk.fates().values()) == {"unknown": 10, "unsent": 2}
    assert desk.reason(1) == "reset"
    assert channel.ids[-1] == "id10"
    assert desk.publisher.status.in_flight == 0


def test_an_answer_of_the_old_connection_means_nothing_on_the_new_one(desk):
    old = opened(desk)
    desk.hand_over(2)
    desk.link.down()
    new = opened(desk, answered=False)
    before = desk.fates()
    old.lose()
    assert desk.fates() == before
    new.ack(1)
    assert desk.fates()[3] == "confirmed"


def test_what_one_connection_gave_back_is_not_held_against_the_next(desk):
    channel = opened(desk)
    desk.hand_over()
    channel.give_back(2)
    desk.link.down()
    channel = opened(desk)
    desk.hand_over()
    channel.ack(2)
    assert desk.fates() == {2: "confirmed", 3: "confirmed"}


def test_without_a_connection_there_is_no_room_and_what_is_handed_over_is_unsent(desk):
    assert desk.publisher.room == 0
    desk.hand_over(2)
    assert desk.fates() == {0: "unsent", 1: "unsent"}


def test_a_call_that_the_link_lost_is_made_up_for(desk):
    connection = desk.link.up()
    desk.link.connection = None
    desk.hand_over()
    assert desk.fates() == {}
    desk.publisher.ticked()
    assert connection.opened == 1
    desk.hand_over()
    desk.publisher.disconnected("lost")
    assert desk.fates() == {0: "unsent", 1: "unsent"}


def test_room_is_what_the_window_leaves(desk):
    channel = opened(desk)
    assert desk.publisher.room == 10
    desk.hand_over(7)
    assert desk.publisher.room == 3
    desk.hand_over(5)
    assert desk.publisher.room == 0
    channel.ack(8, multiple=True)
    assert desk.publisher.room == 5


def test_while_the_broker_blocks_there_is_no_room_and_nothing_more_is_written(desk):
    channel = opened(desk)
    desk.hand_over(2)
    desk.link.connection.block(None, None)
    assert desk.publisher.room == 0
    desk.hand_over(3)
    channel.ack(2)
    assert len(channel.published) == 3
    wakes = desk.wakes
    desk.link.connection.unblock(None, None)
    assert len(channel.published) == 6
    assert desk.publisher.room == 6
    assert desk.wakes > wakes


def test_a_connection_that_ends_while_blocked_starts_unblocked(desk):
    opened(desk)
    desk.link.connection.block(None, None)
    desk.link.down()
    desk.link.up()
    assert desk.publisher.room == 10


def test_somebody_is_woken_for_the_first_result_and_for_those_behind_what_was_forgotten(desk):
    channel = opened(desk)
    desk.hand_over(4)
    desk.wakes = 0
    channel.ack(2)
    channel.ack(3)
    assert desk.wakes == 1
    desk.publisher.forget(1)
    assert desk.wakes == 2
    desk.publisher.forget(1)
    assert desk.wakes == 2
    channel.ack(4)
    assert desk.wakes == 3


def test_a_new_connection_wakes_whoever_has_something_to_publish(desk):
    desk.link.up()
    assert desk.wakes == 1


def test_results_stay_in_order_until_they_are_forgotten(desk):
    channel = opened(desk)
    desk.hand_over(5)
    channel.ack(6, multiple=True)
    assert [published.seq for published in desk.publisher.results(2)] == [1, 2]
    desk.publisher.forget(2)
    assert [published.seq for published in desk.publisher.results(9)] == [3, 4, 5]


def test_status_tells_since_when_nothing_was_answered(desk):
    channel = opened(desk)
    assert desk.publisher.status.quiet_since is None
    desk.now = 2_000.0
    desk.hand_over(3)
    channel.ack(2)
    desk.now = 2_007.0
    assert desk.publisher.status.quiet_since == 2_000.0
    assert desk.publisher.status.in_flight == 2


def test_status_names_the_exchange_that_takes_nothing_until_it_does(desk):
    connection = desk.link.up()
    desk.hand_over()
    connection.channels[0].open()
    connection.channels[0].close(403, "no")
    (exchange,) = desk.publisher.status.exchanges
    assert (exchange.name, exchange.ready, exchange.reason) == ("vumi", False, "403 no")
    desk.now += 2
    opened(desk)
    (exchange,) = desk.publisher.status.exchanges
    assert (exchange.ready, exchange.reason) == (True, None)


def test_trouble_with_an_exchange_is_logged_once_and_so_is_its_end(desk, capsys):
    desk.link.up()
    for _ in range(3):
        desk.hand_over()
        desk.link.connection.channels[0].open()
        desk.link.connection.channels[0].close(403, "no")
        desk.now += 2
    channel = opened(desk)
    desk.hand_over()
    channel.ack(2)
    said = capsys.readouterr().err
    assert said.count("exchange.refused") == 1
    assert said.count("exchange.recovered") == 1


def test_stop_tells_every_fate_and_takes_nothing_more(desk):
    opened(desk)
    desk.hand_over(12)
    desk.publisher.stop(0.0)
    assert Counter(desk.fates().values()) == {"unknown": 10, "unsent": 2}
    desk.hand_over()
    assert desk.fates()[13] == "unsent"
    assert desk.publisher.room == 0


def test_stop_waits_for_the_last_answer(desk):
    channel = opened(desk)
    desk.hand_over()
    threading.Timer(0.05, lambda: channel.ack(2)).start()
    desk.publisher.stop(30)
    assert desk.fates() == {1: "confirmed"}


class Broker:
    """Plays the broker by chance, and remembers what it took: the fates must agree with that."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.desk = Desk(window=5)
        self.taken: set[str] = set()
        self.written: set[str] = set()
        self.seen: dict[FakeChannel, int] = {}  # how many messages of a channel it has looked at
        self.answered: dict[FakeChannel, set[int]] = {}

    def step(self) -> None:
        connection = self.desk.link.connection
        choice = self.rng.random()
        if choice < 0.3:
            self.desk.hand_over(self.rng.randint(0, 4), exchange=self.rng.choice(["vumi", "elsewhere", ""]))
        elif choice < 0.35:
            self.desk.now += self.rng.random() * 2
            self.desk.publisher.ticked()
        elif connection is None:
            self.desk.link.up()
        elif choice < 0.39:
            for channel in list(connection.channels):
                self.look(channel, self.rng.randint(0, 5))
            self.note(connection)
            self.desk.link.down()
        elif choice < 0.45:
            self.rng.choice([connection.block, connection.unblock])(None, None)
        elif connection.channels:
            self.act(self.rng.choice(connection.channels))
        if connection is not None:
            self.note(connection)

    def act(self, channel: FakeChannel) -> None:
        if channel._on_open is not None or channel._next is not None:
            if channel.said == ["look"] and self.rng.random() < 0.2:
                channel.close(404)
            else:
                channel.proceed()
            return
        self.look(channel, self.rng.randint(0, 5))
        choice = self.rng.random()
        seen, answered = self.seen.get(channel, 0), self.answered.setdefault(channel, set())
        waiting = sorted(set(range(1, seen + 1)) - answered)
        if choice < 0.1 and len(channel.published) > seen:
            # It stumbles over the next one, and looks at none after it.
            channel.close(self.rng.choice([403, 404]))
        elif choice < 0.12:
            channel.close(541)
        elif waiting:
            tag = self.rng.choice(waiting)
            multiple = self.rng.random() < 0.5
            tags = [each for each in waiting if each <= tag] if multiple else [tag]
            ids = channel.ids
            kept = {ids[each - 1] in self.taken for each in tags}
            if len(kept) > 1:
                multiple, tags = False, [tag]
            answered.update(tags)
            if ids[tag - 1] in self.taken:
                channel.ack(tag, multiple=multiple)
            elif self.rng.random() < 0.5:
                channel.nack(tag, multiple=multiple)
            else:
                for each in tags:
                    channel.give_back(each)
                channel.ack(tag, multiple=multiple)

    def look(self, channel: FakeChannel, count: int) -> None:
        """Take the next messages of a channel, or not; answers come later, or never."""
        seen = self.seen.get(channel, 0)
        for message_id in channel.ids[seen : seen + count]:
            seen += 1
            if self.rng.random() < 0.7:
                self.taken.add(message_id)
        self.seen[channel] = seen

    def note(self, connection: FakeConnection) -> None:
        for channel in connection.channels:
            self.written.update(channel.ids)


@given(st.integers(min_value=0))
def test_every_message_has_one_fate_and_it_is_true_whatever_the_broker_does(seed):
    broker = Broker(random.Random(seed))
    for _ in range(150):
        broker.step()
    broker.desk.publisher.stop(0.0)
    fates = broker.desk.fates()
    assert sorted(fates) == list(range(broker.desk.handed))
    by_fate = {fate: {f"id{seq}" for seq, told in fates.items() if told == fate} for fate in set(fates.values())}
    assert by_fate.get("confirmed", set()) <= broker.taken
    for fate in ("unsent", "refused", "unroutable"):
        assert broker.taken.isdisjoint(by_fate.get(fate, set())), fate
    assert broker.written.isdisjoint(by_fate.get("unsent", set()))
    assert sum(Counter(fates.values()).values()) == broker.desk.handed
    assert broker.desk.publisher.status.in_flight == 0


def test_nothing_is_told_twice_or_never_while_the_connection_comes_and_goes_in_another_thread():
    desk = Desk(window=1_000)
    done = threading.Event()

    def come_and_go():
        while not done.is_set():
            connection = desk.link.up()
            for channel in list(connection.channels):
                channel.open()
            desk.link.down()

    # Here a call of the link is lost unless the tick or the end of the connection makes up for it.
    desk.link.call = lambda _callback: True
    thread = threading.Thread(target=come_and_go)
    thread.start()
    for _ in range(2_000):
        desk.hand_over(3)
    done.set()
    thread.join()
    desk.publisher.disconnected("the end")
    told = Counter(published.seq for published in desk.publisher.results(10_000))
    assert told == Counter(range(6_000))
