"""`check`: problems on stdout, a verdict by exit code, a document for programs."""

from __future__ import annotations

import pytest

from dispatcher.cli import check

BROKEN = """\
version: 1
chains:
  - name: one
    steps:
      - handler: log_evnt
      - handler: log_event
        with: {levle: info}
"""
DOUBTFUL = """\
version: 1
senders: {default: {type: outbox}}
chains:
  - name: one
    steps:
      - handler: send_sms
        with:
          to: "+27821234567"
          text: Reply #1 now
"""


def test_a_sound_rulebook_says_nothing_on_stdout(dispatcher):
    said = dispatcher("check")
    assert (said.code, said.out) == (0, "")
    assert said.err == "rulebook.yaml: no errors, no warnings\n"


def test_all_problems_are_told_at_once_with_place_and_code(dispatcher, here):
    (here / "bad.yaml").write_text(BROKEN)
    said = dispatcher("check", "bad.yaml")
    assert said.code == 1
    assert [line.split(": ")[:2] for line in said.out.splitlines()] == [
        ["bad.yaml:5:18", "unknown_handler"],
        ["bad.yaml:7:16", "unknown_param"],
    ]
    assert "2 errors" in said.err


def test_json_is_a_list_of_problems(dispatcher, here):
    (here / "bad.yaml").write_text(BROKEN)
    said = dispatcher("check", "bad.yaml", "--json")
    assert said.code == 1
    first = said.document[0]
    assert list(first) == ["file", "line", "column", "code", "severity", "message", "suggestion"]
    assert first["suggestion"] == "log_event"
    assert (first["line"], first["column"], first["severity"]) == (5, 18, "error")


def test_a_sound_rulebook_is_an_empty_list(dispatcher):
    assert dispatcher("check", "--json").document == []


def test_advice_is_no_error(dispatcher, here):
    (here / "doubtful.yaml").write_text(DOUBTFUL)
    said = dispatcher("check", "doubtful.yaml")
    assert said.code == 0
    assert "comment_in_text" in said.out


def test_strict_makes_an_error_of_advice(dispatcher, here):
    (here / "doubtful.yaml").write_text(DOUBTFUL)
    said = dispatcher("check", "doubtful.yaml", "--strict", "--json")
    assert said.code == 1
    assert [problem["severity"] for problem in said.document] == ["error"]


def test_several_files_are_several_rulebooks(dispatcher, here):
    (here / "bad.yaml").write_text(BROKEN)
    said = dispatcher("check", "rulebook.yaml", "bad.yaml", "--json")
    assert {problem["file"] for problem in said.document} == {"bad.yaml"}


def test_a_file_that_is_not_there_is_a_problem(dispatcher):
    said = dispatcher("check", "nowhere.yaml")
    assert said.code == 1
    assert said.out.startswith("nowhere.yaml:1:1: include_missing: ")


def test_checking_writes_nothing(dispatcher, here):
    before = sorted(here.iterdir())
    dispatcher("check")
    assert sorted(here.iterdir()) == before


@pytest.mark.parametrize("column", [5, 190])
def test_on_a_terminal_the_place_is_shown_below_its_problem(dispatcher, here, monkeypatch, column):
    (here / "bad.yaml").write_text(f"version: 1\nchains: []\n{'x' * column}: 1\n")
    monkeypatch.setattr(check, "_on_terminal", lambda: True)
    lines = dispatcher("check", "bad.yaml").out.splitlines()
    assert "unknown_key" in lines[0]
    assert lines[1].strip().startswith("xxxxx")
    assert lines[2].index("^") == lines[1].index("x")
