"""One process holds a store; the others are told which."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dispatcher.errors import StoreInUse, StoreUnusable
from dispatcher.store.sqlite.lock import StoreLock, slot_path, socket_path


def test_a_second_process_is_refused_and_told_who_holds_the_store(tmp_path: Path) -> None:
    store = tmp_path / "a.db"
    lock = StoreLock(store)
    lock.acquire()
    with pytest.raises(StoreInUse, match=f"in use by process {os.getpid()}"):
        StoreLock(store).acquire()
    lock.release()


def test_a_lock_is_free_again_when_its_holder_was_killed(tmp_path: Path) -> None:
    store = tmp_path / "a.db"
    script = (
        "import os, signal, sys; from pathlib import Path; from dispatcher.store.sqlite.lock import StoreLock;"
        "StoreLock(Path(sys.argv[1])).acquire(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", script, str(store)], check=False)
    lock = StoreLock(store)
    lock.acquire()
    lock.release()


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(StoreUnusable, match="must exist and be writable"):
        StoreLock(tmp_path / "nowhere" / "a.db").acquire()


def test_the_socket_stands_beside_the_store_unless_its_path_is_too_long(tmp_path: Path) -> None:
    assert socket_path(Path("/var/a.db")) == Path("/var/a.db.sock")
    deep = Path("/" + "x" * 120) / "a.db"
    assert len(str(socket_path(deep))) < 100
    assert socket_path(deep) != socket_path(deep.with_name("b.db"))


def test_a_store_has_one_lock_by_whatever_links_it_is_named(tmp_path: Path) -> None:
    store, other_name = tmp_path / "a.db", tmp_path / "folder" / "b.db"
    store.touch()
    other_name.parent.mkdir()
    other_name.symlink_to(store)
    lock = StoreLock(store)
    lock.acquire()
    with pytest.raises(StoreInUse):
        StoreLock(other_name).acquire()
    assert socket_path(other_name) == socket_path(store)
    assert slot_path(other_name) == slot_path(store)
    lock.release()
