"""The benchmark's command line: what cannot be meant is refused before anything is started."""

from __future__ import annotations

import pytest

from bench.__main__ import parse


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--events", "0"], "--events begin at 10"),
        (["--rounds", "0"], "--rounds"),
        (["--seconds", "1"], "--seconds above 1"),
        (["--measures", "speed"], "no measure speed"),
        (["--series", "nosuch"], "no series nosuch; there are chains"),
        (["--series", "chains=1,a"], "sizes of chains are whole numbers"),
        (["--folder", "/no/such/folder"], "there is no /no/such/folder"),
        (["--resume", "/no/such.json"], "there is no /no/such.json"),
        (["--write-docs", "--quick"], "a part of one goes into it with --resume"),
        (["--write-docs", "--only", "celery"], "a part of one goes into it with --resume"),
    ],
)
def test_what_cannot_be_meant_is_refused(arguments, why, capsys):
    with pytest.raises(SystemExit) as ended:
        parse(arguments)

    assert ended.value.code == 2
    assert why in capsys.readouterr().err


def test_a_quick_run_is_small_unless_it_is_told_how_large_to_be():
    quick, told = parse(["--quick"]), parse(["--quick", "--events", "500", "--rounds", "2"])

    assert (quick.events, quick.rounds, "series" in quick.measures) == (2_000, 1, False)
    assert (told.events, told.rounds) == (500, 2)


def test_series_come_with_sizes_or_with_their_usual_ones():
    assert parse(["--series", "chains=1,1000", "backlog"]).series == [("chains", [1, 1000]), ("backlog", [])]


def test_help_names_contestants_and_series(capsys):
    with pytest.raises(SystemExit):
        parse(["--help"])

    told = capsys.readouterr().out
    assert "ours-sqlite, " in told
    assert "archive-postgresql" in told
