"""What a broker brings again is told from what is new: by its id, or where it has none by what was not surely acked.

This is how it is where one worker has a queue, and so its order. For several see `test_redelivery_shared`.
"""

from __future__ import annotations

import json
from datetime import timedelta

import pytest

from dispatcher import Done
from dispatcher.engine.intake import Delivery
from dispatcher.engine.records import as_text
from dispatcher.store.retention import Keep, Retention

RULES = """
chains:
  - name: c
    on: {event_type: vote}
    steps: [{handler: scripted}]
"""


def vote(choice="yes", **facts):
    return json.dumps(
        {"account_key": "acc", "conversation_key": "conv", "conversation_type": "poll", "event_type": "vote",
         "event_data": {"choice": choice}, **facts}
    ).encode()  # fmt: skip


def brought(body, epoch, tag, *, again=False, queue="vumi.event", message_id=None):
    return Delivery(body, "amqp", message_id, again, "event", queue, epoch, tag)


@pytest.fixture
def place(sqlite_place):
    return sqlite_place


@pytest.fixture
def bring(world):
    """Run a batch over deliveries; return what became of each."""
    world.rules(RULES)

    def run(*deliveries):
        return [receipt.kind for receipt in world.turn(deliveries)]

    return run


def handled(bring, text, epoch="e1", tag=1):
    """Bring first deliveries, in batches: "a b | c"."""
    for batch in text.split("|"):
        choices = batch.split()
        assert set(bring(*(brought(vote(choice), epoch, at) for at, choice in enumerate(choices, tag)))) == {"stored"}
        tag += len(choices)


def comes_again(bring, text, epoch="e2", tag=1):
    """Bring deliveries again, in batches; tell of each whether it was known (=) or stored (+)."""
    told = []
    for batch in text.split("|"):
        choices = batch.split()
        told += bring(*(brought(vote(choice), epoch, at, again=True) for at, choice in enumerate(choices, tag)))
        tag += len(choices)
    return "".join("=" if kind == "duplicate" else "+" for kind in told)


def forget(world, epoch, tag):
    with world.store.transaction() as transaction:
        transaction.forget_acked(epoch, tag)
        transaction.commit()


def unacked(world):
    return sorted(world.rows("unacked", "epoch", "tag"))


def events(world):
    return len(world.rows("events"))


# Events without an id.


def test_two_equal_first_deliveries_are_two_events(world, bring):
    assert bring(brought(vote(), "e1", 1), brought(vote(), "e1", 2)) == ["stored", "stored"]
    assert bring(brought(vote(), "e1", 3)) == ["stored"]
    assert events(world) == len(world.seen) == 3


def test_delivery_that_comes_again_is_absorbed_once(world, bring):
    bring(brought(vote(), "e1", 1))
    assert bring(brought(vote(), "e2", 1, again=True)) == ["duplicate"]
    # There was one, so this one was never taken in.
    assert bring(brought(vote(), "e2", 2, again=True)) == ["stored"]
    world.turn()
    assert events(world) == len(world.seen) == 2


def test_deliveries_that_come_again_in_one_batch_are_absorbed_once_each(world, bring):
    bring(brought(vote(), "e1", 1), brought(vote(), "e1", 2))
    again = [brought(vote(), "e2", tag, again=True) for tag in (1, 2, 3)]
    assert bring(*again) == ["duplicate", "duplicate", "stored"]
    assert events(world) == 3


def test_duplicate_names_the_event_that_it_repeats(world, bring):
    bring(brought(vote(), "e1", 1))
    (receipt,) = world.turn([brought(vote(), "e2", 1, again=True)])
    assert [(receipt.event_id,)] == world.rows("events", "event_id")


def test_absorbed_delivery_stands_for_the_new_one_which_may_come_again_too(world, bring):
    bring(brought(vote(), "e1", 1))
    for epoch in ("e2", "e3", "e4"):
        assert bring(brought(vote(), epoch, 7, again=True)) == ["duplicate"]
        assert unacked(world) == [(epoch, 7)]
    assert events(world) == 1


def test_delivery_that_comes_again_after_its_ack_was_processed_is_another_event(world, bring):
    bring(brought(vote(), "e1", 1), brought(vote(), "e1", 2))
    forget(world, "e1", 1)
    assert unacked(world) == [("e1", 2)]
    again = (brought(vote(), "e2", 1, again=True), brought(vote(), "e2", 2, again=True))
    assert bring(*again) == ["duplicate", "stored"]


def test_acks_of_one_epoch_say_nothing_of_another(world, bring):
    bring(brought(vote(), "e1", 1))
    forget(world, "e2", 100)
    forget(world, "e1", 0)
    assert unacked(world) == [("e1", 1)]


def test_ack_of_the_new_epoch_forgets_what_was_absorbed(world, bring):
    bring(brought(vote(), "e1", 5))
    bring(brought(vote(), "e2", 1, again=True))
    forget(world, "e2", 1)
    assert unacked(world) == []


@pytest.mark.parametrize(
    ("body", "queue", "epoch"),
    [
        (vote("no"), "vumi.event", "e2"),
        (vote(account_key="other"), "vumi.event", "e2"),
        (vote(conversation_key="other"), "vumi.event", "e2"),
        (vote(), "another", "e2"),
        (vote(), "vumi.event", "e1"),
    ],
    ids=["content", "account", "conversation", "queue", "the same epoch"],
)
def test_what_differs_is_not_absorbed(world, bring, body, queue, epoch):
    bring(brought(vote(), "e1", 1))
    assert bring(brought(body, epoch, 2, again=True, queue=queue)) == ["stored"]
    assert events(world) == 2


def test_first_delivery_is_not_absorbed_whatever_came_before(world, bring):
    bring(brought(vote(), "e1", 1))
    assert bring(brought(vote(), "e2", 1)) == ["stored"]


def test_equal_content_in_another_spelling_is_another_event(world, bring):
    """A broker brings again what it brought, to the byte."""
    bring(brought(vote(), "e1", 1))
    spelled = json.dumps(json.loads(vote()), indent=4, sort_keys=True).encode()
    assert bring(brought(spelled, "e2", 1, again=True)) == ["stored"]


def test_event_without_an_id_from_no_broker_is_always_new(world, bring):
    assert bring(Delivery(vote()), Delivery(vote(), redelivered=True)) == ["stored", "stored"]
    assert unacked(world) == []


def test_batch_that_is_rolled_back_remembers_and_absorbs_nothing(world, bring):
    bring(brought(vote(), "e1", 1))
    with world.store.transaction() as transaction:
        batch = world.engine.begin(transaction)
        (receipt,) = batch.admit([brought(vote(), "e2", 1, again=True)])
        transaction.flush(batch.overlay.changes)
    assert receipt.kind == "duplicate"
    assert unacked(world) == [("e1", 1)]
    assert bring(brought(vote(), "e3", 1, again=True)) == ["duplicate"]


def test_what_was_remembered_is_not_forgotten_sooner_because_it_came_again(world, bring):
    bring(brought(vote(), "e1", 1))
    world.clock.advance(timedelta(days=20))
    assert bring(brought(vote(), "e2", 1, again=True)) == ["duplicate"]
    world.clock.advance(timedelta(days=20))
    retention = Retention(world.store, Keep(done=30, failed=90, skipped=7, dedupe=30))
    while retention.step(world.clock.now()):
        pass
    assert bring(brought(vote(), "e3", 1, again=True)) == ["duplicate"]


def test_acks_that_nobody_told_of_do_not_swallow_an_equal_event_of_another_day(world, bring):
    """The connection went between the ack and the answer that says it was processed: the broker has it, unseen."""
    bring(brought(vote(), "e1", 1))
    bring(brought(vote("no"), "e2", 1))
    world.clock.advance(timedelta(days=1))
    # By now whatever e1 left unacked would have come again, before anything that comes for the first time.
    bring(brought(vote("no"), "e2", 2))
    assert [epoch for epoch, _ in unacked(world)] == ["e2", "e2"]
    assert bring(brought(vote(), "e3", 1, again=True)) == ["stored"]


def test_acks_that_nobody_told_of_are_remembered_as_long_as_a_broker_may_take_to_notice(world, bring):
    """A broker may know of a connection's end much later than we do; until then it brings only what is new."""
    bring(brought(vote(), "e1", 1))
    bring(brought(vote("no"), "e2", 1))
    world.clock.advance(timedelta(minutes=10))
    bring(brought(vote("no"), "e2", 2))
    assert bring(brought(vote(), "e2", 3, again=True)) == ["duplicate"]


def test_what_one_queue_brings_says_nothing_of_another(world, bring):
    bring(brought(vote(), "e1", 1, queue="other"))
    bring(brought(vote("no"), "e2", 1))
    world.clock.advance(timedelta(days=1))
    bring(brought(vote("no"), "e2", 2))
    assert ("e1", 1) in unacked(world)


# A batch is acked by one ack, and what a channel left unacked comes again in its order.


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        # How far the broker had the acks: nothing, one batch, all.
        ("a b | c d", "a b c d e", "====+"),
        ("a b | c d", "c d e", "==+"),
        ("a b | c d", "e f", "++"),
        ("a | b | c", "b c d", "==+"),
        ("a | b | c", "b | c | d", "==+"),
        # Twins side by side, with the end of a batch between them, and elsewhere.
        ("a b | c d", "d e e", "+++"),
        ("a b b | c c d", "c c d d e", "===++"),
        ("a a | a b", "a b b", "==+"),
        ("a a | a b", "a a a b b", "====+"),
        # Far apart: equal to what was handled, but not to where a batch begins, or not as it goes on.
        ("a b c | d e f", "b", "+"),
        ("a b c | d e f", "f a b", "+++"),
        ("a b c | d e f", "d x", "++"),
        ("a b c | d e f", "a b x", "+++"),
        ("a b c | d e f", "x a b c d e f", "+++++++"),
        ("a b c | d e f", "x | a b c | d e f", "+++++++"),
        ("a b c | d e f", "a b c d e f a b c", "======+++"),
        ("a b c | d e f", "a b c | d e f | a b c", "======+++"),
        # All equal: only their number counts.
        ("a a | a a", "a a a a a a", "====++"),
        ("a a | a a", "a | a | a | a | a | a", "====++"),
        # Two batches begin alike: whichever it is.
        ("a b | a c", "a b a c d", "====+"),
        ("a b | a c", "a | b | a | c | d", "====+"),
        ("a b | a c", "a c d", "==+"),
        ("a b | a c", "a | c | d", "==+"),
        ("a b | a c | a d", "a | d | a | b", "==++"),
    ],
)
def test_what_comes_again_begins_with_a_batch_and_goes_on_without_a_gap(world, bring, before, after, told):
    handled(bring, before)
    assert comes_again(bring, after) == told
    assert {epoch for epoch, _ in unacked(world)} == {"e2"}


@pytest.mark.parametrize("after", ["a | x", "a | x | b"])
def test_where_one_batch_tells_too_little_a_twin_may_count_as_repeated(world, bring, after):
    """Handed out were a b, handled, and a, not handled. Or a alone, and the others were never published."""
    handled(bring, "a b")
    told = comes_again(bring, after)
    assert told == "=+" + "+" * (len(told) - 2)


@pytest.mark.parametrize("size", [1, 3, 128])
@pytest.mark.parametrize("acked", [0, 1, 2])
def test_worker_that_dies_between_ack_and_record_loses_and_doubles_nothing(world, bring, size, acked):
    votes = [str(number) for number in range(2 * size)]
    handled(bring, f"{' '.join(votes[:size])} | {' '.join(votes[size:])}")
    world.rules(RULES)  # another engine
    after = [*votes[acked * size :], "new", *votes, *votes]
    assert comes_again(bring, " ".join(after)) == "=" * (2 - acked) * size + "+" * (1 + 4 * size)
    assert events(world) == 6 * size + 1


def test_first_delivery_that_is_none_of_them_shows_that_all_were_acked(world, bring):
    handled(bring, "a b | c d")
    assert comes_again(bring, "x | c d | a b") == "+++++"


def test_sequence_that_breaks_off_begins_again_only_with_a_batch(world, bring):
    """A queue with one worker does not do that: some of it went to another."""
    handled(bring, "a b c | d e")
    assert comes_again(bring, "a | c | b | d | e") == "=++=="


def test_batch_that_is_rolled_back_concluded_nothing(world, bring):
    def roll_back(*choices):
        with world.store.transaction() as transaction:
            batch = world.engine.begin(transaction)
            batch.admit([brought(vote(choice), "e2", tag, again=True) for tag, choice in choices])
            transaction.flush(batch.overlay.changes)

    handled(bring, "a b | a c")
    roll_back((1, "x"))
    roll_back((1, "a"), (2, "b"))
    assert comes_again(bring, "a") == "="
    roll_back((2, "b"))
    roll_back((2, "x"))
    assert comes_again(bring, "c d", tag=2) == "=+"


# The next channel ends too, before all has come again.


@pytest.mark.parametrize("restarted", [True, False])
@pytest.mark.parametrize(
    ("then", "after", "told"),
    [
        # Of what came again the broker had the acks: none, one batch, all.
        ("a b | c", "a b c d e f", "=====+"),
        ("a b | c", "c d e f", "===+"),
        ("a b | c", "d e f", "==+"),
        ("a b | c", "c | d | e | f", "===+"),
        ("a b | c", "d | e | f", "==+"),
        # It had come again as a whole.
        ("a b c d e | f", "f g", "=+"),
        ("a b c d e | f", "g f", "++"),
        ("a b c d e | f", "a b c d e f a", "======+"),
        # All of it was acked, and what comes is a twin.
        ("a b c d e | f", "b c", "++"),
    ],
)
def test_what_had_not_come_again_follows_on_what_had(world, bring, restarted, *, then, after, told):
    handled(bring, "a b c | d e")
    assert "+" not in comes_again(bring, then).removesuffix("+")
    if restarted:
        world.rules(RULES)
    assert comes_again(bring, after, "e3") == told
    assert {epoch for epoch, _ in unacked(world)} == {"e3"}


def test_beginning_that_proved_false_after_the_next_channel_ended_doubles_nothing(world, bring):
    handled(bring, "a a b | a a c")
    assert comes_again(bring, "a") == "="  # of the second batch, but that cannot be seen yet
    assert comes_again(bring, "a c d", "e3") == "==+"


def test_channels_that_ended_one_after_the_other_are_told_apart(world, bring):
    handled(bring, "a b", "e1")
    handled(bring, "c d", "e2")
    # A broker may notice the end of the first one later.
    assert comes_again(bring, "c d x | a b y", "e3") == "==+==+"


def test_delivery_that_was_never_taken_in_shows_that_all_before_it_were_acked(world, bring):
    bring(*(brought(vote(), "e1", tag) for tag in (1, 2)))
    again = [brought(vote(choice), "e2", tag, again=True) for tag, choice in enumerate(("new", "yes", "yes"), 1)]
    assert bring(*again) == ["stored"] * 3
    assert [epoch for epoch, _ in unacked(world)] == ["e2"] * 3


def test_channel_that_ended_last_is_looked_at_first(world, bring):
    bring(brought(vote(), "e1", 1))
    bring(brought(vote("no"), "e2", 1))
    bring(brought(vote(), "e2", 2))
    assert bring(brought(vote(), "e3", 1, again=True)) == ["duplicate"]
    assert unacked(world) == [("e1", 1), ("e3", 1)]


def test_new_one_of_another_queue_shows_nothing(world, bring):
    bring(brought(vote(), "e1", 1), brought(vote(), "o1", 1, queue="other"))
    bring(brought(vote("new"), "o2", 1, again=True, queue="other"))
    assert bring(brought(vote(), "e2", 1, again=True)) == ["duplicate"]


# Events with an id.


@pytest.mark.parametrize("message_id", [None, "m1"])
def test_event_with_an_id_is_known_by_it_and_nothing_is_remembered(world, bring, message_id):
    facts = {} if message_id else {"event_id": "x"}
    assert bring(brought(vote(**facts), "e1", 1, message_id=message_id)) == ["stored"]
    assert unacked(world) == []
    assert bring(brought(vote(**facts), "e2", 1, again=True, message_id=message_id)) == ["duplicate"]
    assert bring(brought(vote(**facts), "e2", 2, message_id=message_id)) == ["duplicate"]
    assert events(world) == 1


def test_same_id_twice_in_one_batch_is_one_event(world, bring):
    assert bring(brought(vote(event_id="x"), "e1", 1), brought(vote(event_id="x"), "e1", 2)) == ["stored", "duplicate"]


# What is refused.


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b"[" * 10_000, vote(event_type="")])
def test_refused_body_leaves_one_dead_letter_however_often_it_is_brought(world, bring, body):
    assert bring(brought(body, "e1", 1)) == ["refused"]
    for epoch in ("e2", "e3", "e4"):
        assert bring(brought(body, epoch, 1, again=True)) == ["refused"]
    assert world.rows("dead_letters", "body") == [(body,)]


def test_refused_body_that_was_acked_and_comes_again_is_another(world, bring):
    bring(brought(b"{", "e1", 1))
    forget(world, "e1", 1)
    bring(brought(b"{", "e2", 1, again=True))
    assert len(world.rows("dead_letters")) == 2


def test_id_conflict_leaves_one_dead_letter_however_often_it_is_brought(world, bring):
    bring(brought(vote(event_id="x"), "e1", 1))
    bring(brought(vote("no", event_id="x"), "e1", 2))
    assert bring(brought(vote("no", event_id="x"), "e2", 1, again=True)) == ["refused"]
    assert world.rows("dead_letters", "reason", "event_id") == [("id_conflict", "x")]


def test_refused_bodies_have_their_place_among_the_others(world, bring):
    def batch(epoch, *bodies, again=False):
        return bring(*(brought(body, epoch, tag, again=again) for tag, body in enumerate(bodies, 1)))

    batch("e1", vote("a"), b"{", vote("b"))
    assert batch("e2", vote("a"), b"{", vote("b"), b"{", again=True) == ["duplicate", "refused", "duplicate", "refused"]
    assert world.rows("dead_letters", "body") == [(b"{",), (b"{",)]


def test_what_was_refused_for_its_id_has_its_place_too(world, bring):
    bodies = [vote("a"), vote("b", event_id="x"), vote("c", event_id="x"), vote("d")]
    assert bring(*(brought(body, "e1", tag) for tag, body in enumerate(bodies, 1))).count("refused") == 1
    again = [brought(body, "e2", tag, again=True) for tag, body in enumerate([*bodies, vote("e")], 1)]
    assert bring(*again) == ["duplicate", "duplicate", "refused", "duplicate", "stored"]
    assert len(world.rows("dead_letters")) == 1


@pytest.mark.parametrize("together", [True, False])
def test_events_with_ids_among_them_are_passed_over(world, bring, together):
    bodies = [vote("0", event_id="0"), vote("a"), vote("1", event_id="1"), vote("b"), vote("2", event_id="2")]
    bring(*(brought(body, "e1", tag) for tag, body in enumerate(bodies, 1)))
    bodies += [vote("3", event_id="3"), vote("b"), vote("a")]
    again = [brought(body, "e2", tag, again=True) for tag, body in enumerate(bodies, 1)]
    told = bring(*again) if together else [bring(delivery)[0] for delivery in again]
    assert told == ["duplicate"] * 5 + ["stored"] * 3


def test_queues_do_not_disturb_each_other(world, bring):
    def both(epoch, texts, again):
        pairs = zip(*(text.split() for text in texts), strict=True)
        return bring(
            *(
                brought(vote(choice), f"{epoch}-{queue}", tag, again=again, queue=queue)
                for tag, pair in enumerate(pairs, 1)
                for queue, choice in zip("qr", pair, strict=True)
            )
        )

    both("e1", ("a b c", "a b d"), again=False)
    told = both("e2", ("a b c x", "x a b d"), again=True)
    assert told == [
        "duplicate", "stored", "duplicate", "stored", "duplicate", "stored", "stored", "stored",
    ]  # fmt: skip


def test_refused_bodies_do_not_stand_for_events_nor_events_for_them(world, bring):
    bring(brought(b"{", "e1", 1), brought(vote(), "e1", 2))
    assert bring(brought(b"{", "e2", 1, again=True), brought(vote(), "e2", 2, again=True)) == ["refused", "duplicate"]
    assert len(world.rows("dead_letters")) == 1


def test_delivery_of_a_channel_without_a_queue_name_is_taken_all_the_same(world, bring):
    assert bring(brought(vote(), "e1", 1, queue=None), brought(b"{", "e1", 2, queue=None)) == ["stored", "refused"]


# The careful path.


def test_event_that_comes_again_is_stored_first_and_advanced_by_a_later_batch(world, bring):
    world.script[:] = [Done(), Done()]
    assert bring(brought(vote(), "e1", 1, again=True), brought(vote("no"), "e1", 2)) == ["stored", "stored"]
    assert [entry[0].data["choice"] for entry in world.seen] == ["no"]
    assert sorted(world.rows("events", "state")) == [("matched",), ("new",)]
    world.turn()
    assert [entry[0].data["choice"] for entry in world.seen] == ["no", "yes"]


def test_time_of_receipt_is_that_of_the_batch(world, bring):
    bring(brought(vote(), "e1", 1))
    assert world.rows("events", "received_at") == [(as_text(world.clock.now()),)]
