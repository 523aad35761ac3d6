"""Who may write a store: one process, which holds a lock beside the file and listens on a socket beside it."""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
from contextlib import suppress
from pathlib import Path

from dispatcher.errors import StoreInUse, StoreUnusable

# What sun_path holds on Linux is 108 bytes with the closing NUL; the other systems have 104.
_SOCKET_PATH_LIMIT = 100


def socket_path(store: Path) -> Path:
    """Return where the process that holds the store listens for writing verbs."""
    store = _real(store)
    beside = Path(f"{store}.sock")
    if len(os.fsencode(beside)) <= _SOCKET_PATH_LIMIT:
        return beside
    name = hashlib.sha256(os.fsencode(store)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"dispatcher-{os.getuid()}-{name}.sock"


def slot_path(store: Path) -> Path:
    """Return where the process that holds the store notes what it has in hand."""
    return Path(f"{_real(store)}.slot")


def _real(store: Path) -> Path:
    """Return the file itself: by whatever links it is named, it has one lock and one socket."""
    return Path(os.path.realpath(store))


class StoreLock:
    """The lock of one store. The kernel gives it back when the process ends, however it ends."""

    def __init__(self, store: Path) -> None:
        self._store = store
        self._path = Path(f"{_real(store)}.lock")
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the lock. Raises StoreInUse while another process has it, StoreUnusable where no lock can be made."""
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StoreUnusable(
                f"cannot write beside the store {self._store}: {error.strerror or error}.",
                hint="The folder must exist and be writable for the user that runs the dispatcher.",
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(descriptor)
            raise StoreInUse(
                f"the store {self._store} is in use by process {holder}.",
                hint="One process writes an SQLite store: stop that one, or name another store with --store.",
            ) from None
        with suppress(OSError):  # on a full disk whoever is refused is not told by whom, and that is all
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode("ascii"), 0)
        self._descriptor = descriptor

    def release(self) -> None:
        """Give the lock back. The file stays: removing it would let two processes lock two files of one name."""
        if self._descriptor is not None:
            os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = None
