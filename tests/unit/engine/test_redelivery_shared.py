"""Where several workers consume one queue, what comes again is told from equal events by what ended channels left."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from dispatcher.errors import Contended
from dispatcher.store.postgres.store import PostgresStore
from tests.harness.waiting import wait_until
from tests.unit.engine.conftest import World
from tests.unit.engine.test_redelivery import (
    RULES,
    bring,
    brought,
    comes_again,
    events,
    forget,
    handled,
    unacked,
    vote,
)

__all__ = ["bring"]


@pytest.fixture
def place(postgres_place):
    return postgres_place


@pytest.fixture
def other(world, tmp_path, registry):
    """Another worker of the same store."""

    class Elsewhere:
        clock = world.clock

        def open(self):
            return PostgresStore.open(world.place.url)

    folder = tmp_path / "other"
    folder.mkdir()
    other = World(folder, registry, Elsewhere())
    other.store.join("worker 2", look_pause=0.0)
    yield other.rules(RULES)
    other.store.close()


@pytest.fixture
def open_channels(world, other):
    """The channels that the other worker holds open, for a test to say which."""

    class Channels:
        def add(self, epoch):
            number = other.store.lease.number
            world.sql("INSERT INTO channels (epoch, queue, worker) VALUES (?, 'vumi.event', ?)", epoch, number)

        def clear(self):
            world.sql("DELETE FROM channels")

    return Channels()


def test_delivery_that_comes_again_is_absorbed_once_and_names_the_event(world, bring):
    handled(bring, "yes")
    (receipt,) = world.turn([brought(vote(), "e2", 1, again=True)])
    assert (receipt.kind, [(receipt.event_id,)]) == ("duplicate", world.rows("events", "event_id"))
    assert comes_again(bring, "yes", tag=2) == "+"
    assert events(world) == 2


def test_what_one_channel_left_comes_again_through_several_in_any_order(world, bring):
    handled(bring, "a b | c d e")
    assert comes_again(bring, "d b", "e2") == "=="
    assert comes_again(bring, "e | a", "e3") == "=="
    assert comes_again(bring, "c x", "e4") == "=+"
    assert events(world) == 6


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("a a | a", "a a a a", "===+"),
        ("a b a", "a a b a", "===+"),
        # New, and brought again because the channel that had it never took it in.
        ("a b", "c a c b", "+=+="),
        ("a b", "x | y | b | a", "++=="),
    ],
)
def test_each_absorbs_as_many_as_it_stands_for(world, bring, before, after, told):
    handled(bring, before)
    assert comes_again(bring, after) == told


def test_absorbed_delivery_stands_for_the_new_one_which_may_come_again_too(world, bring):
    handled(bring, "a b")
    for epoch in ("e2", "e3", "e4"):
        assert comes_again(bring, "b a", epoch) == "=="
        assert unacked(world) == [(epoch, 1), (epoch, 2)]
    assert events(world) == 2


def test_it_may_come_again_to_the_worker_that_had_it(world, bring):
    handled(bring, "a", "e1")
    handled(bring, "a", "e2")
    assert comes_again(bring, "a a", "e3") == "=="
    assert events(world) == 2


def test_delivery_that_comes_again_after_its_ack_was_processed_is_another_event(world, bring):
    handled(bring, "a a")
    forget(world, "e1", 1)
    assert comes_again(bring, "a a") == "=+"


def test_delivery_that_nobody_took_in_is_no_twin_of_one_of_its_own_channel(world, bring):
    assert comes_again(bring, "a a") == "++"
    assert comes_again(bring, "a", tag=3) == "+"


def test_first_delivery_is_not_absorbed_whatever_came_before(world, bring):
    handled(bring, "a", "e1")
    handled(bring, "a", "e2")
    assert events(world) == 2


@pytest.mark.parametrize(("body", "queue"), [(vote("no"), "vumi.event"), (vote(), "other")])
def test_what_differs_is_not_absorbed(world, bring, body, queue):
    handled(bring, "yes")
    assert bring(brought(body, "e2", 1, again=True, queue=queue)) == ["stored"]
    assert unacked(world) == [("e1", 1), ("e2", 1)]


def test_nobody_can_say_while_the_channel_may_be_open(world, bring, open_channels):
    """It may be its own delivery that comes again, or an equal one; its worker knows when the channel ended."""
    handled(bring, "a")
    open_channels.add("e1")
    with pytest.raises(Contended):
        comes_again(bring, "a")
    assert (events(world), unacked(world)) == (1, [("e1", 1)])
    open_channels.clear()
    assert comes_again(bring, "a") == "="


def test_equal_event_is_new_once_the_open_channel_had_the_ack_of_its_own(world, bring, open_channels):
    handled(bring, "a")
    open_channels.add("e1")
    with pytest.raises(Contended):
        comes_again(bring, "a")
    forget(world, "e1", 1)
    assert comes_again(bring, "a") == "+"


def test_channel_that_has_ended_is_taken_before_one_that_may_be_open(world, bring, open_channels):
    handled(bring, "a", "e1")
    handled(bring, "a", "e2")
    open_channels.add("e1")
    assert comes_again(bring, "a", "e3") == "="
    assert unacked(world) == [("e1", 1), ("e3", 1)]


def test_batch_that_is_rolled_back_absorbs_nothing(world, bring):
    handled(bring, "a")
    with world.store.transaction() as transaction:
        batch = world.engine.begin(transaction)
        (receipt,) = batch.admit([brought(vote("a"), "e2", 1, again=True)])
        transaction.flush(batch.overlay.changes)
    assert receipt.kind == "duplicate"
    assert unacked(world) == [("e1", 1)]
    assert comes_again(bring, "a") == "="


def test_new_events_on_an_old_channel_forget_nothing_of_the_others(world, bring, open_channels):
    """Where one worker has the queue, they show that nothing else comes again; here another worker may have that."""
    handled(bring, "a", "e1")
    handled(bring, "b", "e2")
    open_channels.add("e1")
    world.clock.advance(timedelta(days=1))
    handled(bring, "c", "e2", tag=2)
    assert unacked(world) == [("e1", 1), ("e2", 1), ("e2", 2)]
    open_channels.clear()
    assert comes_again(bring, "a", "e3") == "="


def test_what_an_ended_channel_left_is_forgotten_once_it_must_have_come_again_and_be_settled(world, bring):
    """What was acked without an answer would take an equal event for a repetition; so it is not kept for ever."""
    handled(bring, "a", "e1")
    for tag, choice in enumerate("bcd", 1):
        handled(bring, choice, "e2", tag)
        assert ("e1", 1) in unacked(world)
        world.clock.advance(timedelta(minutes=61))
    handled(bring, "e", "e2", 4)
    assert unacked(world) == [("e2", tag) for tag in (1, 2, 3, 4)]
    assert comes_again(bring, "a", "e3") == "+"


def test_what_an_open_channel_has_is_never_forgotten(world, bring, open_channels):
    open_channels.add("e1")
    handled(bring, "a", "e1")
    for tag, choice in enumerate("bcdef", 1):
        handled(bring, choice, "e2", tag)
        world.clock.advance(timedelta(minutes=61))
    assert ("e1", 1) in unacked(world)


def test_another_engine_knows_as_much(world, bring):
    handled(bring, "a b")
    assert comes_again(bring, "b") == "="
    world.rules(RULES)
    assert comes_again(bring, "a b", "e3") == "=="


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", vote(event_type="")])
def test_refused_body_leaves_one_dead_letter_however_often_it_is_brought(world, bring, body):
    assert bring(brought(body, "e1", 1)) == ["refused"]
    for epoch in ("e2", "e3", "e4"):
        assert bring(brought(body, epoch, 1, again=True)) == ["refused"]
    assert world.rows("dead_letters", "body") == [(body,)]


def test_id_conflict_leaves_one_dead_letter_however_often_it_is_brought(world, bring):
    bring(brought(vote(event_id="x"), "e1", 1))
    bring(brought(vote("no", event_id="x"), "e1", 2))
    assert bring(brought(vote("no", event_id="x"), "e2", 1, again=True)) == ["refused"]
    assert world.rows("dead_letters", "reason", "event_id") == [("id_conflict", "x")]


def test_event_with_an_id_is_known_by_it_and_waits_for_no_channel(world, bring, open_channels):
    open_channels.add("e1")
    assert bring(brought(vote(event_id="x"), "e1", 1)) == ["stored"]
    assert unacked(world) == []
    assert bring(brought(vote(event_id="x"), "e2", 1, again=True)) == ["duplicate"]


# Two workers at the same time.


@pytest.mark.parametrize(
    "end",
    [lambda store: store.keep_channels(["e9"]), lambda store: store.lease.resign(clean=True)],
    ids=["told", "left"],
)
def test_what_a_worker_had_is_its_own_until_it_says_that_the_channel_ended_or_leaves(world, bring, other, end):
    other.turn([brought(vote("a"), "e1", 1)])
    other.store.keep_channels(["e1"])
    with pytest.raises(Contended):
        comes_again(bring, "a")
    end(other.store)
    assert comes_again(bring, "a") == "="


def test_what_a_worker_had_that_died_is_its_own_until_it_is_taken_over(world, bring, other):
    other.turn([brought(vote("a"), "e1", 1)])
    with pytest.raises(Contended):
        comes_again(bring, "a")
    world.store.join("worker 1", look_pause=0.0)
    assert world.store.take_over([other.store.lease.number], None)[0] == [other.store.lease.number]
    assert comes_again(bring, "a") == "="


def test_what_another_worker_is_about_to_commit_is_waited_for(world, bring, other):
    """It died or lost its connection in the middle of the commit: the broker hands out again at once what it had."""
    with ThreadPoolExecutor() as threads, world.store.transaction() as transaction:
        batch = world.engine.begin(transaction)
        batch.admit([brought(vote(), "e1", 1)])
        again = threads.submit(other.turn, [brought(vote(), "e2", 1, again=True)])
        wait_until(lambda: again.done() or is_waited_for(world), "the other worker to wait")
        batch.advance()
        transaction.flush(batch.overlay.changes)
        transaction.commit()
        (receipt,) = again.result(timeout=30)
    assert receipt.kind == "duplicate"
    assert events(world) == 1


def test_what_another_worker_did_not_commit_is_stored(world, bring, other):
    with ThreadPoolExecutor() as threads:
        with world.store.transaction() as transaction:
            batch = world.engine.begin(transaction)
            batch.admit([brought(vote(), "e1", 1)])
            again = threads.submit(other.turn, [brought(vote(), "e2", 1, again=True)])
            wait_until(lambda: again.done() or is_waited_for(world), "the other worker to wait")
        (receipt,) = again.result(timeout=30)
    assert receipt.kind == "stored"
    assert events(world) == 1


@pytest.mark.parametrize(
    "theirs",
    [
        brought(vote(), "e2", 1),
        brought(vote(), "e2", 1, again=True, queue="other"),
        brought(vote(event_id="x"), "e2", 1, again=True),
    ],
    ids=["first", "other queue", "with an id"],
)
def test_nobody_waits_for_another_worker_otherwise(world, bring, other, theirs):
    with world.store.transaction() as transaction:
        batch = world.engine.begin(transaction)
        batch.admit([brought(vote(), "e1", 1)])
        assert [receipt.kind for receipt in other.turn([theirs], intake=False)] == ["stored"]


def is_waited_for(world):
    return bool(world.sql("SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"))
