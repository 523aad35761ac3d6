from __future__ import annotations

import pytest

from dispatcher.engine.counts import BATCH_SIZES, LONGEST_NAME, MOST_KEYS, OTHER, STEP_SECONDS, Counts, Histogram


def a_batch():
    return Counts(
        events=3,
        unmatched=1,
        runs=2,
        steps=4,
        retries=1,
        outcomes={"Done": 3, "RetryLater": 1},
        deliveries={("amqp", "stored"): 3, ("amqp", "duplicate"): 1},
        event_states={("amqp", "matched"): 2, ("amqp", "unmatched"): 1},
        unmatched_keys={("poll", "begun"): 1},
        runs_ended={"done": 2},
        dead_letters={"failed": 1},
    )


def test_totals_are_the_sum_of_the_batches():
    totals = Counts()

    totals.add(a_batch())
    totals.add(a_batch())

    assert (totals.events, totals.unmatched, totals.runs, totals.steps, totals.retries) == (6, 2, 4, 8, 2)
    assert totals.outcomes == {"Done": 6, "RetryLater": 2}
    assert totals.deliveries == {("amqp", "stored"): 6, ("amqp", "duplicate"): 2}
    assert totals.event_states == {("amqp", "matched"): 4, ("amqp", "unmatched"): 2}
    assert totals.unmatched_keys == {("poll", "begun"): 2}
    assert totals.runs_ended == {"done": 4}
    assert totals.dead_letters == {"failed": 2}


def test_adding_leaves_the_batch_as_it_was():
    batch, totals = a_batch(), Counts()
    batch.observe("send_sms", 0.2)

    totals.add(batch)
    totals.add(batch)

    assert batch.outcomes == a_batch().outcomes
    assert sum(batch.latencies["send_sms"].counts) == 1


def test_a_latency_is_counted_below_the_first_bound_that_it_does_not_exceed():
    counts = Counts()

    for seconds in (0.0, STEP_SECONDS[0], 0.2, STEP_SECONDS[-1], 3600.0):
        counts.observe("send_sms", seconds)

    latency = counts.latencies["send_sms"]
    assert latency.counts[0] == 2
    assert latency.counts[STEP_SECONDS.index(0.25)] == 1
    assert latency.counts[-2] == 1
    assert latency.counts[-1] == 1
    assert latency.total == pytest.approx(STEP_SECONDS[0] + 0.2 + STEP_SECONDS[-1] + 3600.0)


def test_latencies_of_batches_add_up_by_handler():
    first, second, totals = Counts(), Counts(), Counts()
    first.observe("send_sms", 0.2)
    second.observe("send_sms", 0.2)
    second.observe("create_contact", 0.00001)

    totals.add(first)
    totals.add(second)

    assert sum(totals.latencies["send_sms"].counts) == 2
    assert totals.latencies["send_sms"].total == pytest.approx(0.4)
    assert sum(totals.latencies["create_contact"].counts) == 1


def test_commits_are_counted_with_the_size_and_time_of_their_batches():
    batch, totals = Counts(), Counts()
    batch.committed(3, 0.004)
    totals.add(batch)

    totals.committed(5_000, 9.0)

    assert totals.commits == 2
    assert totals.batch_sizes.counts[BATCH_SIZES.index(4)] == 1
    assert totals.batch_sizes.counts[-1] == 1
    assert totals.batch_sizes.total == 5_003
    assert totals.batch_seconds.counts[-1] == 1
    assert totals.batch_seconds.total == pytest.approx(9.004)


def test_beyond_the_thousandth_key_what_nothing_matched_is_other():
    totals = Counts()
    for number in range(MOST_KEYS + 50):
        totals.add(Counts(unmatched_keys={("poll", f"kind-{number}"): 2}))

    totals.add(Counts(unmatched_keys={("poll", "kind-7"): 1}))

    assert len(totals.unmatched_keys) == MOST_KEYS + 1
    assert totals.unmatched_keys[OTHER, OTHER] == 100
    assert totals.unmatched_keys["poll", "kind-7"] == 3


def test_names_from_outside_are_cut_so_that_a_thousand_of_them_stay_small():
    totals = Counts()

    totals.add(Counts(unmatched_keys={("c" * 500_000, "e" * 500_000): 1, (None, "e" * LONGEST_NAME): 1}))

    (long, short) = totals.unmatched_keys
    assert [len(part) for part in long] == [LONGEST_NAME, LONGEST_NAME]
    assert short == (None, "e" * LONGEST_NAME)


def test_names_that_are_the_same_once_cut_are_counted_together():
    totals = Counts()

    totals.add(Counts(unmatched_keys={(None, "e" * 500 + "1"): 1, (None, "e" * 500 + "2"): 1}))

    assert list(totals.unmatched_keys.values()) == [2]


def test_handlers_without_number_are_counted_as_other():
    totals = Counts()
    for number in range(MOST_KEYS + 2):
        batch = Counts()
        batch.observe(f"handler-{number}", 1.0)
        totals.add(batch)

    assert len(totals.latencies) == MOST_KEYS + 1
    assert sum(totals.latencies[OTHER].counts) == 2


def test_a_copy_stays_as_it_is():
    totals = Counts()
    totals.add(a_batch())
    totals.observe("send_sms", 0.2)
    totals.committed(1, 0.1)

    copy = totals.copy()
    totals.add(a_batch())
    totals.observe("send_sms", 0.2)
    totals.committed(1, 0.1)

    assert copy.events == 3
    assert copy.commits == 1
    assert copy.deliveries == {("amqp", "stored"): 3, ("amqp", "duplicate"): 1}
    assert sum(copy.latencies["send_sms"].counts) == 1
    assert sum(copy.batch_sizes.counts) == 1


def test_a_copy_has_every_number():
    """A field that is added to the counts and forgotten in their copy would never be seen in the metrics."""
    totals = a_batch()
    totals.contended = 1
    totals.observe("send_sms", 0.2)
    totals.committed(1, 0.1)

    copy = totals.copy()

    for name in Counts.__dataclass_fields__:
        told, known = getattr(copy, name), getattr(totals, name)
        if isinstance(known, Histogram):
            assert (told.counts, told.total) == (known.counts, known.total), name
        elif name == "latencies":
            assert list(told) == list(known)
        else:
            assert told == known, name
            assert known, name
