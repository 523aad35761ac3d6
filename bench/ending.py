"""How a run ends, in time or before it: nothing that it started is left, neither a process nor its folder.

SIGINT, SIGTERM and SIGHUP leave by the same way, through every block that ends what it started. Such a block may itself
be cut short by the signal, or not have been entered yet, when a process is a millisecond old. So at the very end, when
no signal counts any longer, whatever still lives is killed and the folder taken away.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bench.processes import Tree

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# What comes so soon after a signal is the same wish: `timeout` sends two, people press Ctrl-C again. What comes later
# is for an end that hangs.
SAME_WISH_SECONDS = 10.0


class Ended(KeyboardInterrupt):
    """A signal has asked for the end. Libraries know what to do about this one: psycopg cancels its statement."""


@contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """Give out a folder that is gone after the block, with all processes that were started in the block.

    Raises SystemExit with 128 and its number when a signal has ended the block.
    """
    asked: list[tuple[int, float]] = []

    def leave(number: int, _frame: object) -> None:
        now = time.monotonic()
        if not asked or now > asked[-1][1] + SAME_WISH_SECONDS:
            asked.append((number, now))
            raise Ended(number)

    # What is ignored stays so: nohup and shells, for what runs in the background, mean it.
    before = {number: signal.getsignal(number) for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN}
    folder = Path(tempfile.mkdtemp(prefix="bench-", dir=parent))
    try:
        for number in before:
            signal.signal(number, leave)
        yield folder
    except BaseException:
        # On its way out an end may become another error: an answer that nobody waited for is taken for the next one.
        if not asked:
            raise
    finally:
        for number in before:
            signal.signal(number, signal.SIG_IGN)
        end_descendants()
        shutil.rmtree(folder, ignore_errors=True)
        for number, handler in before.items():
            signal.signal(number, handler)
    if asked:
        raise SystemExit(128 + asked[0][0])


def end_descendants() -> None:
    """Kill all that this process started and that still lives, and wait until it is gone."""
    _, *left = Tree(os.getpid()).members()
    for pid in left:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for pid in left:
        with suppress(ChildProcessError):  # a child's child: whoever is its parent now waits for it
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # who started it may still ask how it ended
