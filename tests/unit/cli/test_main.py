"""The console script: its verbs, its exit codes, and how errors are told."""

from __future__ import annotations

import subprocess
import sys

import pytest

from dispatcher.cli import exits, main
from dispatcher.cli.main import VERBS, run
from dispatcher.errors import BrokerUnreachable, NotFound, NotPossible, StoreInUse, UsageError

# What `--help` must not load: each takes a tenth of a second or more.
HEAVY = ("sqlalchemy", "alembic", "httpx", "jinja2", "yaml", "pydantic", "structlog", "phonenumbers", "rich")


def test_help_names_every_verb_and_ends_with_examples(dispatcher):
    said = dispatcher("--help")
    assert said.code == 0
    assert all(f"  {verb} " in said.out for verb in VERBS)
    assert said.out.index("Examples:") > said.out.index("migrate")


def test_help_fits_80_columns(dispatcher):
    assert max(len(line) for line in dispatcher("--help").out.splitlines()) <= 80


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself_with_examples(dispatcher, verb):
    said = dispatcher(verb, "--help")
    assert said.code == 0
    assert f"dispatcher {verb}" in said.out
    assert "Examples:" in said.out
    assert max(len(line) for line in said.out.splitlines()) <= 80


def test_help_loads_nothing_that_is_dear():
    code = "import sys; from dispatcher.cli.main import run; run(['--help']); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=30)
    assert set(HEAVY).isdisjoint(done.stderr.split())


def test_version_is_that_of_the_distribution(dispatcher):
    said = dispatcher("--version")
    assert said.code == 0
    assert said.out.startswith("dispatcher 0.")


def test_a_misspelt_verb_is_a_usage_error_with_what_was_meant(dispatcher):
    said = dispatcher("chek")
    assert said.code == exits.USAGE
    assert "check" in said.err


def test_an_unknown_option_is_a_usage_error(dispatcher):
    assert dispatcher("check", "--nonsense").code == exits.USAGE


def test_flags_may_stand_before_the_verb(dispatcher, here):
    (here / "other.yaml").write_text("version: 2\n")
    said = dispatcher("--rulebook", "other.yaml", "check")
    assert said.code == exits.PROBLEMS
    assert said.out.startswith("other.yaml:1:")


def test_a_flag_behind_the_verb_wins_over_one_before_it(dispatcher):
    assert dispatcher("--rulebook", "other.yaml", "check", "--rulebook", "rulebook.yaml").code == 0


def test_flags_win_over_the_environment(dispatcher, here, monkeypatch):
    monkeypatch.setenv("DISPATCHER_STORE", "sqlite:///from-environment.db")
    assert dispatcher("migrate", "--store", "sqlite:///from-flag.db").code == 0
    assert (here / "from-flag.db").exists()
    assert not (here / "from-environment.db").exists()


def test_a_misspelt_variable_is_refused_before_anything_is_done(dispatcher, monkeypatch):
    monkeypatch.setenv("DISPATCHER_RULEBOK", "x.yaml")
    said = dispatcher("check")
    assert said.code == exits.CANNOT_START
    assert "DISPATCHER_RULEBOOK" in said.err


def test_what_is_no_broker_is_refused_before_anything_is_done(dispatcher, here):
    said = dispatcher("run", "--drain", "--amqp", "http://localhost")
    assert said.code == exits.CANNOT_START
    assert said.err.startswith("error: --amqp: ")
    assert not (here / "store.db").exists()


@pytest.mark.parametrize(("verb", "flags"), [("run", ["--amqp", "--http"]), ("publish", ["--amqp"])])
def test_help_names_the_flags_of_the_broker(dispatcher, verb, flags):
    said = dispatcher(verb, "--help")
    assert all(f"  {flag} " in said.out for flag in flags)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NotFound("there is no run x.", hint="Look."), exits.PROBLEMS),
        (NotPossible("it is done already."), exits.PROBLEMS),
        (UsageError("these two exclude each other."), exits.USAGE),
        (BrokerUnreachable("nobody listens at broker:5672."), exits.BROKER_UNREACHABLE),
        (StoreInUse("the store is in use by process 7."), exits.CANNOT_START),
    ],
)
def test_an_expected_error_is_a_line_on_stderr_and_an_exit_code(capsys, monkeypatch, error, code):
    def fail(_):
        raise error

    monkeypatch.setattr(main, "_invoke", fail)
    assert run([]) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines()[0] == f"error: {error.message}"
    assert (error.hint or "") in said.err


def test_ctrl_c_is_told_by_the_exit_code_alone(capsys, monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(main, "_invoke", interrupt)
    assert run([]) == exits.INTERRUPTED
    assert capsys.readouterr().err == ""
