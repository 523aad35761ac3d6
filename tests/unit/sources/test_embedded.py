"""The embedded source: streams are cut into chunks as they come in, and chunks are admitted durably."""

from __future__ import annotations

import io
import os
import sqlite3
from contextlib import closing
from datetime import UTC, datetime

import pytest

from dispatcher import failpoints
from dispatcher.engine.intake import Intake
from dispatcher.events.limits import Limits
from dispatcher.sources.embedded import CHUNK_BODIES, admit, chunks
from dispatcher.store.sqlite.store import SqliteStore

NOW = datetime(2026, 1, 1, tzinfo=UTC)
BODY = b'{"account_key": "a", "conversation_key": "c", "event_type": "t", "event_id": "%d"}'


def cut(data: bytes, longest: int = 100):
    return [numbered for chunk in chunks(io.BufferedReader(io.BytesIO(data)), longest=longest) for numbered in chunk]


@pytest.mark.parametrize(
    ("data", "bodies"),
    [
        (b"", []),
        (b"\n \n\t\r\n", []),
        (b"a\nb\n", [(1, b"a"), (2, b"b")]),
        (b"a\r\nb", [(1, b"a"), (2, b"b")]),
        (b"\n\na", [(3, b"a")]),
        (b" a \n", [(1, b" a ")]),
    ],
)
def test_lines_keep_their_bytes_and_numbers(data, bodies):
    assert cut(data) == bodies


def test_of_an_endless_line_only_so_much_is_kept_and_the_next_one_is_whole():
    assert cut(b"x" * 1_000_000 + b"\nnext\n", longest=10) == [(1, b"x" * 10), (2, b"next")]
    assert cut(b"x" * 1_000_000, longest=10) == [(1, b"x" * 10)]


def test_no_chunk_holds_more_than_one_commit_takes():
    sizes = [len(chunk) for chunk in chunks(io.BufferedReader(io.BytesIO(b"1\n" * 3000)), longest=10)]
    assert sum(sizes) == 3000
    assert max(sizes) <= CHUNK_BODIES


def test_what_a_pipe_holds_now_is_not_kept_waiting_for_more():
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as stream:
        found = chunks(stream, longest=100)
        os.write(writing, b"first\nsecond\nbegun")
        assert next(found) == [(1, b"first"), (2, b"second")]
        os.write(writing, b" and ended\n")
        assert next(found) == [(3, b"begun and ended")]
        os.close(writing)
        assert list(found) == []


@pytest.fixture
def store(tmp_path):
    store = SqliteStore.open(tmp_path / "store.db")
    yield store
    store.close()


def test_what_was_admitted_is_there_for_others(store):
    receipts = admit(store, Intake(Limits()), [BODY % 1, b"{", BODY % 1], NOW)
    assert [receipt.kind for receipt in receipts] == ["stored", "refused", "duplicate"]
    with closing(sqlite3.connect(store.path)) as other:
        assert other.execute("SELECT event_id, state, source FROM events").fetchall() == [("1", "new", "embedded")]
        assert other.execute("SELECT reason, body FROM dead_letters").fetchall() == [("bad_json", b"{")]


def test_a_failure_before_the_commit_leaves_nothing(store):
    failpoints.arm("intake.before_commit:raise")
    with pytest.raises(failpoints.FailpointReached):
        admit(store, Intake(Limits()), [BODY % 1], NOW)
    failpoints.arm("")
    with closing(sqlite3.connect(store.path)) as other:
        assert other.execute("SELECT count(*) FROM events").fetchone() == (0,)
    assert [receipt.kind for receipt in admit(store, Intake(Limits()), [BODY % 1], NOW)] == ["stored"]
