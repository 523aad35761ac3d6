"""How verbs speak: nothing of what strangers wrote moves a terminal, tables fit, JSON stays JSON."""

from __future__ import annotations

import io
import json
import sys

import pytest

from dispatcher.cli import output


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Zoë 🌻", "Zoë 🌻"),
        ("\x1b[2Jgone", "\\x1b[2Jgone"),
        ("a\rb", "a\\rb"),
        ("\u202eevil", "\\u202eevil"),
        ("\ud800", "\\ud800"),
    ],
)
def test_what_could_move_a_terminal_is_escaped(text, shown):
    assert output.plain(text) == shown


def test_a_table_fits_80_columns_and_keeps_all_of_its_text(capsys):
    output.print_table(("name", "text", "n"), [("x" * 30, "many words " * 20, 7)], right=("n",))
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert out.count("words") == 20


def test_a_table_says_nothing_for_none_and_keeps_rows_to_their_line(capsys):
    output.print_table(("a", "b"), [(None, "one\ntwo")])
    assert "None" not in (out := capsys.readouterr().out)
    assert "one two" in out


def test_json_is_ascii_where_the_terminal_knows_no_more(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    monkeypatch.setattr(sys, "stdout", stream)
    output.write_json({"name": "Zoë 🌻"})
    stream.flush()
    assert json.loads(stream.buffer.getvalue().decode("ascii")) == {"name": "Zoë 🌻"}


def test_a_closed_stderr_is_no_error(monkeypatch):
    stream = io.StringIO()
    stream.close()
    monkeypatch.setattr(sys, "stderr", stream)
    output.say("nobody hears this")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("stream", "shown"), [(Terminal, True), (io.StringIO, False)])
def test_progress_is_for_terminals(monkeypatch, stream, shown):
    stderr = stream()
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.setattr(output.time, "monotonic", iter(range(100)).__next__)
    with output.Progress("events") as progress:
        progress.reached(1234)
    assert ("1,234 events" in stderr.getvalue()) is shown
