"""The publisher against a real broker: every message has one fate, and the fate is true."""

from __future__ import annotations

import threading
from collections import Counter

import pytest

from dispatcher.engine.records import EVENT_EXCHANGE
from dispatcher.settings import Settings
from dispatcher.sources.amqp.publisher import Outgoing, Publisher
from tests.harness.proxy import proxied
from tests.harness.waiting import wait_until

BODY = b'{"event_type": "poll_complete"}'


class Office:
    """A publisher, and the book of what it told."""

    def __init__(self, url: str, **settings) -> None:
        self.woken = threading.Event()
        self.publisher = Publisher(Settings(amqp_url=url, **settings), self.woken.set)
        self.told: dict[int, tuple[str, str | None]] = {}
        self.handed = 0
        self.publisher.start()

    def collect(self) -> None:
        results = self.publisher.results(1_000)
        for published in results:
            assert published.seq not in self.told, "two fates for one message"
            self.told[published.seq] = (published.fate, published.reason)
        self.publisher.forget(len(results))

    def await_room(self) -> None:
        wait_until(lambda: self.publisher.room, "room")

    def hand_over(self, count: int, *, exchange: str = "vumi", routing_key: str = "q", body: bytes = BODY) -> list[int]:
        """Hand `count` messages over at once; their numbers."""
        seqs = list(range(self.handed, self.handed + count))
        self.handed += count
        self.publisher.publish([Outgoing(seq, exchange, routing_key, body, message_id(seq)) for seq in seqs])
        return seqs

    def publish(self, count: int, **to) -> Counter[str]:
        """Hand over as there is room, wait for the fates, and count them."""
        seqs: list[int] = []
        while len(seqs) < count:
            self.await_room()
            seqs += self.hand_over(min(self.publisher.room, count - len(seqs)), **to)
            self.collect()
        return self.fates(seqs)

    def fates(self, seqs: list[int]) -> Counter[str]:
        def all_told():
            self.collect()
            return all(seq in self.told for seq in seqs)

        wait_until(all_told, "the fates of all messages")
        return Counter(self.told[seq][0] for seq in seqs)

    def with_fate(self, fate: str) -> list[str]:
        return sorted(message_id(seq) for seq, (told, _) in self.told.items() if told == fate)

    def reasons(self, seqs: list[int]) -> set[str | None]:
        return {self.told[seq][1] for seq in seqs}


def message_id(seq: int) -> str:
    return f"message-{seq:06d}"


@pytest.fixture
def office(vhost):
    offices = []

    def open_office(url: str | None = None, **settings) -> Office:
        offices.append(Office(url or vhost.url, **settings))
        return offices[-1]

    yield open_office
    for each in offices:
        each.publisher.stop(2)


def read_all(vhost, queue: str = "q", *, at_least: int = 0) -> list[tuple]:
    """Take all messages from a queue: the properties and body of each, in order. `at_least` so many go faster."""
    taken = []
    with vhost.channel() as channel:
        if at_least:
            channel.basic_qos(prefetch_count=at_least)
            for method, properties, body in channel.consume(queue, inactivity_timeout=30):
                assert method is not None, f"{len(taken)} messages in the queue, {at_least} expected"
                taken.append((properties, body))
                if len(taken) == at_least:
                    channel.basic_ack(method.delivery_tag, multiple=True)
                    break
            channel.cancel()
        while (found := channel.basic_get(queue, auto_ack=True))[0] is not None:
            taken.append(found[1:])
    return taken


def ids(messages) -> list[str]:
    return sorted(properties.message_id for properties, _ in messages)


def test_each_of_5000_messages_is_confirmed_and_found_once_with_its_properties(vhost, office):
    vhost.declare_queue("q", exchange="vumi")
    desk = office()
    assert desk.publish(5_000) == {"confirmed": 5_000}
    messages = read_all(vhost, at_least=5_000)
    assert ids(messages) == [message_id(seq) for seq in range(5_000)]
    told = {(p.delivery_mode, p.content_type, p.content_encoding, body) for p, body in messages}
    assert told == {(2, "application/json", "utf-8", BODY)}
    status = desk.publisher.status
    assert (status.confirmed, status.in_flight, status.link.state) == (5_000, 0, "up")


def test_messages_arrive_in_the_order_in_which_they_were_handed_over(vhost, office):
    vhost.declare_queue("q", exchange="vumi")
    office().publish(1_500)
    assert [p.message_id for p, _ in read_all(vhost, at_least=1_500)] == [message_id(seq) for seq in range(1_500)]


def test_large_and_empty_bodies_arrive_whole(vhost, office):
    vhost.declare_queue("q", exchange="vumi")
    desk = office()
    bodies = [b"x" * 1_048_576, b"", b"y" * 300_000]
    seqs = []
    desk.await_room()
    for body in bodies:
        seqs += desk.hand_over(1, body=body)
    assert desk.fates(seqs) == {"confirmed": 3}
    assert [body for _, body in read_all(vhost)] == bodies


def test_an_unroutable_message_is_told_and_its_neighbours_are_confirmed(vhost, office):
    vhost.declare_queue("q", exchange="vumi")
    desk = office()
    desk.await_room()
    lost, found = [], []
    for _ in range(20):
        found += desk.hand_over(5)
        lost += desk.hand_over(5, routing_key="nobody")
    assert desk.fates(lost) == {"unroutable": 100}
    assert desk.fates(found) == {"confirmed": 100}
    assert desk.reasons(lost) == {"312 NO_ROUTE"}
    assert ids(read_all(vhost)) == desk.with_fate("confirmed")


def test_a_message_that_a_full_queue_does_not_take_is_refused(vhost, office):
    limits = {"x-max-length": 1, "x-overflow": "reject-publish"}
    vhost.declare_queue("q", kind="classic", exchange="vumi", arguments=limits)
    desk = office()
    assert desk.publish(1) == {"confirmed": 1}
    assert desk.publish(50) == {"refused": 50}
    assert len(read_all(vhost)) == 1
    assert desk.publish(1) == {"confirmed": 1}


def test_our_own_exchanges_are_created_where_they_are_absent(vhost, office):
    desk = office()
    assert desk.publish(3) == {"unroutable": 3}
    assert desk.publish(3, exchange=EVENT_EXCHANGE) == {"unroutable": 3}
    with vhost.channel() as channel:
        # A passive declaration tells nothing of type and durability; an equal one is taken, a different one refused.
        channel.exchange_declare("vumi", exchange_type="direct", durable=True)
        channel.exchange_declare(EVENT_EXCHANGE, exchange_type="topic", durable=True)


def test_an_exchange_that_is_not_ours_is_not_created_and_the_others_go_on(vhost, office):
    vhost.declare_queue("q", exchange="vumi")
    desk = office()
    desk.await_room()
    here, nowhere = desk.hand_over(50), desk.hand_over(50, exchange="elsewhere")
    here += desk.hand_over(50)
    assert desk.fates(nowhere) == {"refused": 50}
    assert desk.fates(here) == {"confirmed": 100}
    (reason,) = desk.reasons(nowhere)
    assert 'there is no exchange "elsewhere"' in reason
    assert {each.name: each.ready for each in desk.publisher.status.exchanges} == {"vumi": True, "elsewhere": False}
    vhost.declare_queue("e", exchange="elsewhere")
    wait_until(
        lambda: desk.publish(1, exchange="elsewhere", routing_key="e") == {"confirmed": 1}, "the exchange to be found"
    )


def test_nothing_is_created_where_the_settings_forbid_it(vhost, office):
    desk = office(amqp_declare=False)
    assert desk.publish(3) == {"refused": 3}
    vhost.declare_queue("q", exchange="vumi")
    wait_until(lambda: desk.publish(1) == {"confirmed": 1}, "the exchange to be found")


def test_the_default_exchange_reaches_a_queue_by_its_name(vhost, office):
    vhost.declare_queue("q")
    assert office().publish(3, exchange="") == {"confirmed": 3}


def test_an_exchange_that_is_deleted_while_messages_flow_is_made_sure_of_anew(vhost, office):
    vhost.declare_queue("q", exchange="vumi")
    desk = office()
    assert desk.publish(10) == {"confirmed": 10}
    vhost.delete_exchange("vumi")
    fates = desk.publish(300)
    # The exchange is there again, and nothing is bound to it.
    assert fates["confirmed"] == 0
    assert fates["refused"] == 1, "of those in flight, only the last was surely not taken"
    vhost.declare_queue("q", exchange="vumi")
    assert desk.publish(100) == {"confirmed": 100}
    taken = ids(read_all(vhost))
    assert set(desk.with_fate("confirmed")) <= set(taken)
    assert set(taken).isdisjoint(desk.with_fate("refused") + desk.with_fate("unroutable"))


def test_a_write_permission_that_is_taken_away_costs_nothing_and_heals(rabbit, vhost, office):
    vhost.declare_queue("q", exchange="vumi")
    desk = office()
    assert desk.publish(10) == {"confirmed": 10}
    vhost.set_permissions(write="^$")
    rabbit.close_all_connections()  # an open channel goes on by what it knows
    wait_until(lambda: desk.publisher.status.link.reconnects, "a new connection")
    assert desk.publish(200) == {"refused": 200}
    assert "403" in (desk.publisher.status.exchanges[0].reason or "")
    vhost.set_permissions()
    wait_until(lambda: desk.publish(1) == {"confirmed": 1}, "the permission to be noticed")
    assert ids(read_all(vhost)) == desk.with_fate("confirmed")
    assert desk.publisher.status.exchanges[0].reason is None


def publish_until_blocked(desk: Office) -> list[int]:
    """Publish one at a time until the alarm has reached the connection: the last one has no answer, and no other."""
    seqs: list[int] = []

    def blocked() -> bool:
        desk.collect()
        if desk.publisher.status.in_flight == 0:
            seqs.extend(desk.hand_over(1))
        return desk.publisher.room == 0

    wait_until(blocked, "the connection to be blocked")
    return seqs


def test_under_an_alarm_messages_wait_and_are_confirmed_once_it_clears(rabbit, vhost, office):
    vhost.declare_queue("q", exchange="vumi")
    desk = office()
    assert desk.publish(1) == {"confirmed": 1}
    rabbit.set_memory_alarm()
    seqs = publish_until_blocked(desk)
    wait_until(lambda: desk.publisher.status.link.blocked_since is not None, "the connection to be blocked")
    seqs += desk.hand_over(5)
    assert desk.publisher.status.in_flight == 6
    desk.woken.clear()
    rabbit.clear_memory_alarm()
    assert set(desk.fates(seqs)) == {"confirmed"}
    assert desk.publisher.room > 0
    assert desk.woken.is_set()
    assert ids(read_all(vhost)) == desk.with_fate("confirmed")


def test_an_alarm_that_lasts_ends_the_connection_and_the_fates_are_told(rabbit, vhost, office):
    vhost.declare_queue("q", exchange="vumi")
    desk = office(amqp_blocked_seconds=0.5)
    assert desk.publish(1) == {"confirmed": 1}
    rabbit.set_disk_alarm()
    written = publish_until_blocked(desk)
    held = desk.hand_over(3)
    assert desk.fates(written)["unknown"] == 1
    assert desk.fates(held) == {"unsent": 3}
    rabbit.clear_disk_alarm()
    wait_until(lambda: desk.publish(1)["confirmed"] == 1, "publishing to go on")
    taken = ids(read_all(vhost))
    assert set(desk.with_fate("confirmed")) <= set(taken)
    assert set(taken).isdisjoint(desk.with_fate("unsent"))


def check_the_ledger(desk: Office, vhost) -> None:
    """Each has a fate: what was confirmed is there, what was unsent or refused is not; the unknown may be either."""
    desk.fates(list(range(desk.handed)))
    taken = Counter(ids(read_all(vhost)))
    assert set(desk.with_fate("confirmed")) <= set(taken)
    assert set(taken).isdisjoint(desk.with_fate("unsent") + desk.with_fate("refused"))
    assert set(taken.values()) <= {1}


def publish_through(desk: Office, cut, *, cuts: int) -> None:
    """Keep the publisher busy while the connection is cut again and again."""
    seqs: list[int] = []
    for _ in range(cuts):
        before = desk.publisher.status.link.reconnects
        desk.await_room()
        seqs += desk.hand_over(desk.publisher.room)
        confirmed = desk.publisher.status.confirmed

        def some_confirmed(confirmed: int = confirmed) -> bool:
            return desk.publisher.status.confirmed > confirmed

        wait_until(some_confirmed, "a confirm")
        desk.collect()
        if room := desk.publisher.room:
            seqs += desk.hand_over(room)
        cut()
        wait_until(lambda before=before: desk.publisher.status.link.reconnects > before, "a new connection")
        desk.collect()
    desk.await_room()
    seqs += desk.hand_over(10)
    fates = desk.fates(seqs)
    assert set(fates) <= {"confirmed", "unknown", "unsent"}
    assert desk.fates(seqs[-10:]) == {"confirmed": 10}


def test_fates_stay_true_when_the_broker_closes_the_connection(rabbit, vhost, office):
    vhost.declare_queue("q", exchange="vumi")
    desk = office()
    publish_through(desk, rabbit.close_all_connections, cuts=2)
    check_the_ledger(desk, vhost)


def test_fates_stay_true_when_the_network_resets_the_connection(vhost, office):
    vhost.declare_queue("q", exchange="vumi")
    with proxied(vhost.url) as proxy:
        desk = office(proxy.url(vhost.url))
        publish_through(desk, proxy.reset, cuts=2)
        desk.publisher.stop(2)
    check_the_ledger(desk, vhost)


@pytest.mark.parametrize("direction", ["to_server", "to_client"])
def test_fates_stay_true_when_the_connection_is_cut_within_a_frame(vhost, office, direction):
    vhost.declare_queue("q", exchange="vumi")
    offsets = iter((7, 1_009))
    with proxied(vhost.url) as proxy:
        desk = office(proxy.url(vhost.url))

        def cut() -> None:
            proxy.cut_after(next(offsets) // (20 if direction == "to_client" else 1), direction)
            desk.await_room()
            desk.hand_over(min(desk.publisher.room, 50))

        publish_through(desk, cut, cuts=2)
        desk.publisher.stop(2)
    assert proxy.cuts == 2
    check_the_ledger(desk, vhost)


def test_messages_into_a_silent_network_are_told_as_unknown(vhost, office):
    vhost.declare_queue("q", exchange="vumi")
    with proxied(vhost.url) as proxy:
        desk = office(proxy.url(vhost.url), amqp_heartbeat=1)
        assert desk.publish(10) == {"confirmed": 10}
        proxy.blackhole()
        seqs = desk.hand_over(20)
        assert set(desk.fates(seqs)) <= {"unknown", "unsent"}
        proxy.pass_on()
        wait_until(lambda: desk.publish(1) == {"confirmed": 1}, "publishing to go on")
        desk.publisher.stop(2)
    check_the_ledger(desk, vhost)


def test_fates_stay_true_when_the_broker_is_killed_and_comes_back(rabbit, vhost, office):
    vhost.declare_queue("q", exchange="vumi")
    desk = office()

    def kill_and_start():
        # RabbitMQ 3.10 writes the names of new quorum queues every half second; killed before, it forgets the queue's
        # messages, confirmed or not.
        rabbit.eval("[dets:sync(Table) || Table <- dets:all()]")
        rabbit.restart()

    publish_through(desk, kill_and_start, cuts=1)
    check_the_ledger(desk, vhost)


def test_fates_stay_true_when_the_broker_stops_in_order(rabbit, vhost, office):
    vhost.declare_queue("q", exchange="vumi")
    desk = office()

    def stop_and_start():
        rabbit.stop_app()
        rabbit.start_app()

    publish_through(desk, stop_and_start, cuts=1)
    check_the_ledger(desk, vhost)


def test_stop_waits_for_the_answers_that_are_due(vhost, office):
    vhost.declare_queue("q", exchange="vumi")
    desk = office()
    desk.await_room()
    seqs = desk.hand_over(1_000)
    desk.publisher.stop(20)
    assert desk.fates(seqs) == {"confirmed": 1_000}
    assert desk.publisher.room == 0
    assert desk.fates(desk.hand_over(2)) == {"unsent": 2}
    assert desk.publisher.status.link.state == "stopped"


def test_stop_without_patience_tells_all_the_same(rabbit, vhost, office):
    vhost.declare_queue("q", exchange="vumi")
    desk = office()
    assert desk.publish(1) == {"confirmed": 1}
    rabbit.set_memory_alarm()
    seqs = publish_until_blocked(desk)
    desk.publisher.stop(0.1)
    assert desk.fates(seqs)["unknown"] == 1
    rabbit.clear_memory_alarm()


def test_a_message_handed_over_while_nobody_answers_is_unsent(office):
    desk = office("amqp://guest:guest@127.0.0.1:1/")
    assert desk.publisher.room == 0
    assert desk.fates(desk.hand_over(3)) == {"unsent": 3}
