"""Where a worker of a shared store notes, on its own machine, what it has in hand: for whoever starts after its crash.

Each worker has a seat in the folder: a lock that the kernel gives back when the process ends, however it ends, with
the worker's number in it, and the slot file of `guard`. A seat that is free and has a number in it was a worker's that
died: of that one nobody needs to wait for the lease to run out.
"""

from __future__ import annotations

import fcntl
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dispatcher.errors import CannotStart

_MOST: Final = 1_000
# A neighbour that starts at this moment looks at every seat.
_PATIENCE_SECONDS: Final = 1.0
_PAUSE_SECONDS: Final = 0.02


@dataclass(slots=True)
class _Held:
    path: Path
    descriptor: int
    # The number of the worker that died in it, or None.
    number: int | None


class Seat:
    """One seat, and those that were left by workers which died. `name` tells the seats of one store from others'."""

    def __init__(self, folder: Path, name: str, wanted: int) -> None:
        """Take the seat of that number, or the next one that is free. Raises CannotStart where none can be had."""
        self._folder = folder
        self._name = name
        own = self._take(wanted, _PATIENCE_SECONDS)
        index = wanted
        while own is None:
            index = index % _MOST + 1
            if index == wanted:
                raise CannotStart(f"all {_MOST} seats for workers in {folder} are taken.", hint="Stop some of them.")
            own = self._take(index, 0.0)
        self.index = index
        self._own = own
        self._left: list[_Held] = []
        for path in sorted(folder.glob(f"dispatcher-{name}-*.seat")):
            number = path.name.removesuffix(".seat").rpartition("-")[2]
            if path != own.path and number.isdecimal() and (held := self._take(int(number), 0.0)) is not None:
                self._keep_or_release(held)

    @property
    def slots(self) -> Path:
        """Where this worker notes what it has in hand."""
        return self._own.path.with_suffix(".slots")

    @property
    def died(self) -> list[int]:
        """The numbers of the workers that died in this seat, and in others that nobody has taken since."""
        return [held.number for held in (self._own, *self._left) if held.number is not None]

    @property
    def slots_left(self) -> list[Path]:
        """What those noted that died in other seats."""
        return [held.path.with_suffix(".slots") for held in self._left]

    def note(self, number: int) -> None:
        """Note the number of this worker, whose seat this is from now on."""
        self._write(self._own, str(number))

    def free_left(self) -> None:
        """Free the seats of those that died: what they had in hand is dealt with, and is nobody's any more."""
        for held in self._left:
            held.path.with_suffix(".slots").unlink(missing_ok=True)
            self._write(held, "")
            os.close(held.descriptor)
        self._left.clear()

    def leave(self, *, clean: bool) -> None:
        """Give the seat back; one that is not left clean names this worker to the next one."""
        for held in self._left:
            os.close(held.descriptor)
        self._left.clear()
        if clean:
            self._write(self._own, "")
        os.close(self._own.descriptor)

    def _take(self, index: int, patience_seconds: float) -> _Held | None:
        path = self._folder / f"dispatcher-{self._name}-{index}.seat"
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise CannotStart(
                f"cannot write {path}: {error.strerror or error}.",
                hint="DISPATCHER_STATE names a folder that the user of the dispatcher may write.",
            ) from error
        deadline = time.monotonic() + patience_seconds
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    os.close(descriptor)
                    return None
                time.sleep(_PAUSE_SECONDS)
            else:
                noted = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
                return _Held(path, descriptor, int(noted) if noted.isdecimal() else None)

    def _keep_or_release(self, held: _Held) -> None:
        if held.number is None:
            os.close(held.descriptor)
        else:
            self._left.append(held)

    @staticmethod
    def _write(held: _Held, text: str) -> None:
        os.ftruncate(held.descriptor, 0)
        os.pwrite(held.descriptor, f"{text}\n".encode("ascii"), 0)
        held.number = None
