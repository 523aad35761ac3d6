import json
import os
import threading
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.events.identity import canonical_hash, derived_uuid7, to_hex, uuid7

NOW = 1_763_696_514_000


def test_hash_does_not_depend_on_the_order_of_keys():
    one = canonical_hash("a", "c", "t", "e", {"x": 1, "y": {"p": 1, "q": 2}})
    other = canonical_hash("a", "c", "t", "e", {"y": {"q": 2, "p": 1}, "x": 1})
    assert one == other
    assert len(one) == 16


@pytest.mark.parametrize(
    "other",
    [
        ("b", "c", "t", "e", {"x": 1}),
        ("a", "d", "t", "e", {"x": 1}),
        ("a", "c", "u", "e", {"x": 1}),
        ("a", "c", None, "e", {"x": 1}),
        ("a", "c", "t", "f", {"x": 1}),
        ("a", "c", "t", "e", {"x": 2}),
        ("a", "c", "t", "e", {"x": True}),
        ("a", "c", "t", "e", {"x": 1.0}),
        ("a", "c", "t", "e", {"x": "1"}),
        ("a", "c", "t", "e", {"x": [1]}),
        ("a", "c", "t", "e", {}),
        ("ac", "", "t", "e", {"x": 1}),
    ],
)
def test_any_other_meaning_has_another_hash(other):
    assert canonical_hash("a", "c", "t", "e", {"x": 1}) != canonical_hash(*other)


@given(st.dictionaries(st.text(), st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.text())))
def test_hash_survives_a_round_trip_over_the_wire(data):
    again = json.loads(json.dumps(data, indent=1, ensure_ascii=False))
    assert canonical_hash("a", "c", None, "e", data) == canonical_hash("a", "c", None, "e", again)


def test_hash_stays_the_same_between_versions():
    # Stored beside event ids for thirty days: a release that changed it would take every repeat for a conflict.
    assert canonical_hash("acc1", "conv1", None, "e", {"é": [1, 1.5, None]}).hex() == "998f45fc8ce4a899bcf812cf555f2c10"


def test_new_id_is_a_uuid_of_version_7_with_its_time():
    written = uuid7(NOW)
    made = uuid.UUID(written)
    assert (made.version, made.variant) == (7, uuid.RFC_4122)
    assert made.int >> 80 >= NOW
    assert written == str(made)


def test_ids_grow_within_a_millisecond_and_when_the_clock_goes_back():
    later = NOW + 10**9
    times = [later] * 1000 + [later - 5000] * 1000 + [later + 1] * 10
    made = [uuid7(time) for time in times]
    assert made == sorted(made)
    assert len(set(made)) == len(made)


def test_ids_made_by_several_threads_differ():
    made = []
    threads = [threading.Thread(target=lambda: made.extend([uuid7(NOW) for _ in range(2000)])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == 8000


def test_forked_child_does_not_count_on_from_its_parent(monkeypatch):
    later = NOW + 10**10
    last_of_parent = uuid.UUID(uuid7(later))
    monkeypatch.setattr(os, "getpid", lambda: -1)
    assert uuid.UUID(uuid7(later)).int != last_of_parent.int + 1


def test_derived_id_follows_from_its_arguments():
    made = derived_uuid7(NOW, "run", "step", 0)
    assert made == derived_uuid7(NOW, "run", "step", 0)
    parsed = uuid.UUID(made)
    assert (parsed.version, parsed.variant, parsed.int >> 80) == (7, uuid.RFC_4122, NOW)


@given(st.lists(st.text() | st.integers(), max_size=4), st.lists(st.text() | st.integers(), max_size=4))
def test_derived_ids_of_different_parts_differ(one, other):
    assert (derived_uuid7(NOW, *one) == derived_uuid7(NOW, *other)) == (one == other)


@pytest.mark.parametrize(("one", "other"), [(("ab", "c"), ("a", "bc")), ((1,), ("1",)), (("a",), ("a", ""))])
def test_derived_ids_know_where_a_part_ends(one, other):
    assert derived_uuid7(NOW, *one) != derived_uuid7(NOW, *other)


def test_derived_id_stays_the_same_between_versions():
    assert derived_uuid7(NOW, "run", "step", 0) == "019aa481-13d0-7c9f-b611-211b92890cc0"


def test_hex_form_is_what_vumi_writes():
    assert to_hex("0198c2a0-7a3b-7c11-8f00-1234567890ab") == "0198c2a07a3b7c118f001234567890ab"
