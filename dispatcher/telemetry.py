"""What the process tells about itself: log lines on stderr, JSON for machines, coloured text on a terminal.

`log` may be used before `configure`, and from any thread. Logging never raises: a closed stderr loses the line, not the
event that was being handled. Values that are not plain are named by their type, so that no payload slips into a log.
"""

from __future__ import annotations

import enum
import logging
import math
import os
import re
import select
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from datetime import date, time, timedelta
from typing import Any
from uuid import UUID

from dispatcher.errors import UsageError

_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}
# What the processors below write themselves; a field of that name gets an underscore.
_RESERVED = frozenset({"event", "level", "timestamp", "self"})
_FIRST = ("timestamp", "level", "event")
_DEEPEST = 4
# How long a line waits for a reader that has stopped; those behind it do not wait.
_PATIENCE_SECONDS = 0.2
_LONGEST_NUMBER = 2**64
# Control characters, line separators, what turns the direction of a line, and halves of surrogate pairs.
_HARMFUL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_LINE_BREAKS = str.maketrans({"\n": "\\n", "\t": "\\t"})


class Logger:
    """Writes facts: an event in the form `noun.past_participle`, and fields that say to what it happened."""

    __slots__ = ("_bound",)

    def __init__(self, bound: Mapping[str, Any] | None = None) -> None:
        self._bound = dict(bound or {})

    def bind(self, **fields: Any) -> Logger:
        """Return a logger that adds these fields to each of its lines."""
        return Logger(self._bound | fields)

    def debug(self, event: str, /, **fields: Any) -> None:
        """Tell what only a developer asks for."""
        _write("debug", event, self._bound, fields)

    def info(self, event: str, /, **fields: Any) -> None:
        """Tell what happened."""
        _write("info", event, self._bound, fields)

    def warning(self, event: str, /, **fields: Any) -> None:
        """Tell what somebody should look at, some day."""
        _write("warning", event, self._bound, fields)

    def error(self, event: str, /, **fields: Any) -> None:
        """Tell what a person must act upon."""
        _write("error", event, self._bound, fields)

    def critical(self, event: str, /, **fields: Any) -> None:
        """Tell why the process is about to end."""
        _write("critical", event, self._bound, fields)

    def exception(self, event: str, /, **fields: Any) -> None:
        """Tell an error with the traceback of the exception being handled."""
        _write("error", event, self._bound, {"exc_info": True, **fields})


@dataclass(slots=True)
class _Setup:
    """How lines are written. structlog is loaded with the first line: it takes 90 ms, and many commands log nothing."""

    as_json: bool | None = None
    threshold: int = _LEVELS["info"]
    common: Mapping[str, Any] = field(default_factory=dict)
    made: Callable[[str, str, dict[str, Any]], None] | None = None

    def writer(self) -> Callable[[str, str, dict[str, Any]], None]:
        if self.made is None:
            self.made = _make_writer(_wants_json() if self.as_json is None else self.as_json)
        return self.made


_setup = _Setup()
log = Logger()


def configure(json: bool | None = None, level: str = "info", **common: Any) -> None:  # noqa: FBT001  (given by name)
    """Set how lines are written: as JSON (None: unless stderr is a terminal) and from which level on.

    `common` are fields that every line of this process gets. Warnings of libraries take the same way. Raises UsageError
    for a level that does not exist.
    """
    threshold = _LEVELS.get(level.lower())
    if threshold is None:
        raise UsageError(f'there is no log level "{level}".', hint=f"It is one of {', '.join(_LEVELS)}.")
    _setup.as_json = json
    _setup.threshold = threshold
    _setup.common = common
    _setup.made = None
    root = logging.getLogger()
    if not any(isinstance(handler, _LibraryLines) for handler in root.handlers):
        root.addHandler(_LibraryLines(logging.WARNING))


def _write(level: str, event: str, bound: dict[str, Any], fields: dict[str, Any]) -> None:
    if _LEVELS[level] < _setup.threshold:
        return
    fields = {**_setup.common, **bound, **fields}
    if not _RESERVED.isdisjoint(fields):
        fields = {f"{name}_" if name in _RESERVED else name: value for name, value in fields.items()}
    _setup.writer()(level, event, fields)


class _LibraryLines(logging.Handler):
    """Passes on what libraries warn about."""

    def emit(self, record: logging.LogRecord) -> None:
        level = next(name for name, number in reversed(_LEVELS.items()) if number <= max(record.levelno, 30))
        # The message's own arguments may be payload; the library's name and its words are enough to find it.
        _write(level, "library.warned", {}, {"logger": record.name, "message": record.msg})


def _wants_json() -> bool:
    try:
        return not sys.stderr.isatty()
    except (AttributeError, ValueError):  # no stderr at all, or a closed one
        return True


def _make_writer(as_json: bool) -> Callable[[str, str, dict[str, Any]], None]:  # noqa: FBT001  (one private caller)
    import structlog  # noqa: PLC0415  (see _Setup)

    renderer: structlog.typing.Processor
    if as_json:
        renderer = structlog.processors.JSONRenderer(ensure_ascii=True)
    else:
        renderer = structlog.dev.ConsoleRenderer(
            colors=os.name != "nt", exception_formatter=structlog.dev.plain_traceback
        )
    logger = structlog.wrap_logger(
        _Stderr(),
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _make_harmless,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),
    ).bind()

    def write(level: str, event: str, fields: dict[str, Any]) -> None:
        getattr(logger, level)(event, **fields)

    return write


class _Stderr:
    """Writes whole lines, forgets those that nobody can read, and counts those that nobody reads.

    A reader that has stopped (a pipe that is full) must not stop the work: after a moment lines are dropped, until
    there is room again; then one line tells how many.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._dropped = 0
        self._break = ""

    def write(self, line: str) -> None:
        try:
            self._write(line + "\n")
        except (OSError, ValueError, RuntimeError, AttributeError):
            # Full disk or broken pipe; closed or unable to encode; written to from a signal handler; none there.
            return

    debug = info = warning = error = critical = write

    def _write(self, text: str) -> None:
        try:
            descriptor = sys.stderr.fileno()
        except OSError:  # not a file: somebody captures what is written
            sys.stderr.write(text)
            sys.stderr.flush()
            return
        # One lock for line and break: two threads never share a line.
        with self._lock:
            if self._dropped:
                missed = f'{{"level": "warning", "event": "log.dropped", "lines": {self._dropped}}}\n'
                if not self._send(descriptor, missed, 0.0):
                    self._dropped += 1
                    return
                self._dropped = 0
            if not self._send(descriptor, text, _PATIENCE_SECONDS):
                self._dropped = 1

    def _send(self, descriptor: int, text: str, patience: float) -> bool:
        """Write what fits without waiting longer than `patience`; False when some of it did not."""
        rest = (self._break + text).encode("utf-8", "backslashreplace")
        while rest:
            _, ready, _ = select.select([], [descriptor], [], patience)
            if not ready:
                return False
            # A pipe that is ready takes as much as this at once. What comes behind a line that was cut begins anew.
            rest = rest[os.write(descriptor, rest[: select.PIPE_BUF]) :]
            self._break = "\n" if rest else ""
        return True


def _make_harmless(_logger: Any, _method: str, fields: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Escape what could forge a line or turn a terminal, and name by its type what is not plain."""
    ordered = {name: fields.pop(name) for name in _FIRST} | dict(fields)
    return {
        _escaped(name): _HARMFUL.sub(_escape, value) if name == "exception" else _plain(value, 0)
        for name, value in ordered.items()
    }


def _plain(value: Any, depth: int) -> Any:
    if isinstance(value, str):
        return _escaped(str.__str__(value))
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, enum.Enum):
        return _escaped(value.name)
    if isinstance(value, int):
        return int(value) if -_LONGEST_NUMBER < value < _LONGEST_NUMBER else "a larger number"
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, (date, time, timedelta, UUID, os.PathLike)):
        return _escaped(str(value))
    if isinstance(value, BaseException):
        # Survives exceptions whose own __str__ raises.
        return _escaped("".join(traceback.format_exception_only(value)).strip())
    if isinstance(value, (list, tuple, set, frozenset)) and depth < _DEEPEST:
        return [_plain(item, depth + 1) for item in value]
    if isinstance(value, dict) and depth < _DEEPEST:
        return {
            _plain(name, depth + 1) if isinstance(name, str) else type(name).__name__: _plain(item, depth + 1)
            for name, item in value.items()
        }
    return f"<{type(value).__name__}>"


def _escaped(text: str) -> str:
    if text.isascii() and text.isprintable():
        return text
    return _HARMFUL.sub(_escape, text).translate(_LINE_BREAKS)


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
