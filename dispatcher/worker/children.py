"""The processes of a supervisor: how a worker is started as its child, what it is told, and how it ended.

A child hears of its supervisor by a pipe, its lifeline (see `dispatcher.worker.signals`): one byte tells it to give up,
and its end, however the supervisor ended, to drain. So no worker goes on without a supervisor. Flags reach a child as
variables of its environment, so that no password stands on one more command line.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol

from dispatcher.settings import PREFIX, Settings, process_environ
from dispatcher.worker.signals import LIFELINE

# The settings that `run` has flags for, but for those that each child gets its own of.
_FLAGS: Final = ("store", "rulebook", "amqp_url", "log_level", "log_format")


class Process(Protocol):
    """A worker process, as its supervisor sees it."""

    @property
    def pid(self) -> int:
        """Its number at the operating system."""
        ...

    def poll(self) -> int | None:
        """Return its exit code, or the number of the signal that ended it, negative; None while it runs."""
        ...

    def stop(self) -> None:
        """Ask it to drain."""
        ...

    def give_up(self) -> None:
        """Tell it to drain no longer."""
        ...

    def reload(self) -> None:
        """Ask it to read the rulebook again."""
        ...

    def kill(self) -> None:
        """End it at once."""
        ...

    def close(self) -> None:
        """Let go of what belonged to it; it has ended."""
        ...


class Child:
    """A process of the operating system, in a session of its own: what a terminal sends reaches the supervisor only."""

    def __init__(self, command: Sequence[str], environ: Mapping[str, str]) -> None:
        """Start it. Raises OSError when the system gives no process."""
        lifeline, self._lifeline = os.pipe()
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own program
                command,
                env={**environ, LIFELINE: str(lifeline)},
                stdin=subprocess.DEVNULL,
                pass_fds=(lifeline,),
                start_new_session=True,
            )
        except OSError:
            os.close(self._lifeline)
            raise
        finally:
            os.close(lifeline)

    @property
    def pid(self) -> int:
        """Its number at the operating system."""
        return self._process.pid

    def poll(self) -> int | None:
        """Return its exit code, or the number of the signal that ended it, negative; None while it runs."""
        return self._process.poll()

    def stop(self) -> None:
        """Ask it to drain. One that is still starting has nothing in hand, and ends at once."""
        self._process.send_signal(signal.SIGTERM)

    def give_up(self) -> None:
        """Tell it to drain no longer."""
        try:
            os.write(self._lifeline, b"\0")
        except BrokenPipeError:
            return  # it has ended

    def reload(self) -> None:
        """Ask it to read the rulebook again. One that is still starting ends of it, and does so when it starts anew."""
        self._process.send_signal(signal.SIGHUP)

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()

    def close(self) -> None:
        """Let go of what belonged to it; it has ended."""
        os.close(self._lifeline)


def worker_command(*, drain: bool) -> list[str]:
    """Return the command of one worker; what else it is to know stands in its environment."""
    # Not from the working directory: what lies there by chance is no module of ours (-P).
    return [sys.executable, "-P", "-m", "dispatcher", "run", *(["--drain"] if drain else [])]


def worker_environ(settings: Settings, number: int, http: Path | None) -> dict[str, str]:
    """Return the environment of the worker of this number, which answers probes on the socket `http`."""
    given = {name: getattr(settings, name) for name in _FLAGS}
    # An empty variable counts as not given.
    own = {"workers": "", "worker": number, "http": "" if http is None else f"unix:{http}"}
    told = {name: value for name, value in given.items() if value is not None} | own
    return {**process_environ(), **{f"{PREFIX}{name.upper()}": str(value) for name, value in told.items()}}
