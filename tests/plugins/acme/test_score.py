"""How a plugin's author tests a handler: no store, no broker, no worker."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dispatcher import Emit, Failed
from dispatcher.testing import run_handler


@pytest.fixture
def score(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    for name in [name for name in sys.modules if name.partition(".")[0] == "acme"]:
        monkeypatch.delitem(sys.modules, name)
    from acme.score import Score

    return Score


def test_right_answers_are_counted_and_told(score):
    run = run_handler(score, {"answers": ["a", "c"], "right": ["a", "b", "c"]})
    assert run.result == {"score": 1, "out_of": 3}
    assert run.emits == (Emit("acme_scored", {"score": 1, "out_of": 3}),)


def test_more_answers_than_questions_fail(score):
    assert isinstance(run_handler(score, {"answers": ["a", "b"], "right": ["a"]}).outcome, Failed)
