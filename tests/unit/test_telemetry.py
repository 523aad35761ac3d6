import io
import json
import logging
import os
import subprocess
import sys
import threading
from datetime import timedelta
from enum import Enum

import pytest

from dispatcher import telemetry
from dispatcher.errors import UsageError
from dispatcher.telemetry import configure, log


class Colour(Enum):
    RED = "payload"


class Unprintable:
    def __str__(self):
        raise ZeroDivisionError

    __repr__ = __str__


class UnprintableError(Exception):
    def __str__(self):
        raise ZeroDivisionError


def fail():
    raise UnprintableError


class Terminal(io.StringIO):
    def isatty(self):
        return True


class FullDisk(io.StringIO):
    def write(self, text):
        raise OSError(28, "No space left on device")


@pytest.fixture(autouse=True)
def _as_before():
    yield
    configure()
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, telemetry._LibraryLines)]:
        root.removeHandler(handler)


@pytest.fixture
def lines(capsys):
    return lambda: [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_line_is_json_where_nobody_watches(lines):
    log.info("step.finished", chain="welcome", attempt=2)
    (line,) = lines()
    assert list(line)[:3] == ["timestamp", "level", "event"]
    assert line["timestamp"].endswith("Z")
    assert (line["level"], line["event"], line["chain"], line["attempt"]) == ("info", "step.finished", "welcome", 2)


def test_line_is_text_on_a_terminal(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    configure()
    log.info("step.finished", chain="welcome")
    assert "step.finished" in terminal.getvalue()
    assert not terminal.getvalue().startswith("{")


def test_json_can_be_asked_for_on_a_terminal(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    configure(json=True)
    log.info("step.finished")
    assert json.loads(terminal.getvalue())["event"] == "step.finished"


def test_what_is_common_to_a_process_is_in_each_of_its_lines_and_gives_way_to_what_a_line_says(lines):
    configure(json=True, worker=2)

    log.bind(account="acc1").info("event.stored")
    log.info("event.stored", worker="other")

    assert [(line["worker"], line.get("account")) for line in lines()] == [(2, "acc1"), ("other", None)]


def test_lines_below_the_level_are_left_out(lines):
    log.debug("step.started")
    configure(json=True, level="WARNING")
    log.info("step.finished")
    log.warning("step.delayed")
    assert [line["event"] for line in lines()] == ["step.delayed"]


def test_unknown_level_is_refused():
    with pytest.raises(UsageError, match="debug, info"):
        configure(level="loud")


def test_bound_fields_are_on_every_line(lines):
    bound = log.bind(chain="welcome").bind(run="r1")
    bound.info("step.finished", step="contact")
    log.info("worker.started")
    first, second = lines()
    assert (first["chain"], first["run"], first["step"]) == ("welcome", "r1", "contact")
    assert "chain" not in second


@pytest.mark.parametrize("name", ["event", "level", "timestamp", "self"])
def test_no_name_of_a_field_is_in_the_way(name, lines):
    log.info("step.finished", **{name: "x"})
    (line,) = lines()
    assert line["event"] == "step.finished"
    assert line[f"{name}_"] == "x"


@pytest.mark.parametrize("as_json", [True, False])
def test_nothing_in_a_value_can_forge_a_line_or_turn_a_terminal(capsys, as_json):
    configure(json=as_json)
    log.info("noun.done", text='x\n{"event": "forged"}\r\x1b[31m\x07\u2028\u202e\x9b2J\ud800', **{"a\nb": 1})
    written = capsys.readouterr().err
    assert written.count("\n") == 1
    for harmful in ("\r", "\x1b[31m\\x07", "\x07", "\u2028", "\u202e", "\x9b", "\ud800"):
        assert harmful not in written


def test_values_that_are_not_plain_are_named_not_shown(lines):
    log.info(
        "noun.done",
        thing=Unprintable(),
        kind=Colour.RED,
        took=timedelta(seconds=2),
        number=float("nan"),
        huge=10**5000,
        many=[1, {"a": {2, 3}}],
        deep=[[[[[["payload"]]]]]],
        problem=UnprintableError(),
        data=b"payload",
    )
    (line,) = lines()
    assert line["thing"] == "<Unprintable>"
    assert line["kind"] == "RED"
    assert line["took"] == "0:00:02"
    assert line["number"] == "nan"
    assert line["huge"] == "a larger number"
    assert line["many"] == [1, {"a": [2, 3]}]
    assert line["problem"].endswith("<exception str() failed>")
    assert "payload" not in json.dumps(line)


def test_exception_brings_its_traceback_in_one_json_line(lines):
    try:
        fail()
    except UnprintableError:
        log.exception("step.failed", step="contact")
    (line,) = lines()
    assert line["level"] == "error"
    assert "Traceback" in line["exception"]


@pytest.mark.parametrize("stderr", [None, FullDisk(), "closed"])
def test_nothing_is_raised_where_nothing_can_be_written(monkeypatch, stderr):
    if stderr == "closed":
        stderr = io.StringIO()
        stderr.close()
    monkeypatch.setattr(sys, "stderr", stderr)
    configure()
    log.error("disk.filled", free=0)


def test_threads_do_not_share_lines(lines):
    threads = [threading.Thread(target=lambda: [log.info("noun.done", n=n) for n in range(50)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(lines()) == 200


def test_warnings_of_libraries_take_the_same_way_without_their_arguments(lines):
    configure(json=True)
    configure(json=True)
    logging.getLogger("some.library").warning("lost %s", "+27821234567")
    logging.getLogger("some.library").info("nothing new")
    (line,) = lines()
    assert (line["level"], line["event"], line["logger"]) == ("warning", "library.warned", "some.library")
    assert line["message"] == "lost %s"


def test_importing_is_cheap():
    program = "import sys, dispatcher.telemetry; print('structlog' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "False"


def test_reader_that_has_stopped_does_not_stop_the_work_and_is_told_what_it_missed():
    script = """
from dispatcher import telemetry
telemetry.configure(json=True)
for number in range(3000):
    telemetry.log.info("line.written", number=number, padding="x" * 200)
print("done", flush=True)
input()
telemetry.log.info("line.last")
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    # Nobody reads stderr, and 3,000 lines are more than a pipe holds.
    assert process.stdout.readline() == "done\n"
    held = os.read(process.stderr.fileno(), 1 << 20).decode()
    _, rest = process.communicate("\n", timeout=30)
    lines = [json.loads(line) for line in (held + rest).splitlines() if line.endswith("}")]
    written = sum(line["event"] == "line.written" for line in lines)
    dropped = sum(line["lines"] for line in lines if line["event"] == "log.dropped")
    assert lines[-1]["event"] == "line.last"
    # The line that was cut when the pipe was full counts as dropped.
    assert written + dropped == 3000
