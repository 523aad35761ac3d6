"""A disk that is full, read-only or not ours: nothing is lost, the reason is told, and work resumes by itself."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess

import pytest

from tests.acceptance import chaos
from tests.acceptance.conftest import DEADLINE, SCRIPT, Folder, an_event
from tests.harness.waiting import wait_until

MEGABYTE = 2**20
# A worker's own limit keeps a store from growing where no disk can be filled: it needs no privileges.
LIMITED = ("prlimit", f"--fsize={2 * MEGABYTE}:")


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of 16 MB that is ours to fill."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", tmp_path], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("only root may mount a small disk")
    folder = Folder(tmp_path)
    folder.environ |= {"DISPATCHER_MIN_FREE_MB": "0", "DISPATCHER_LOG_LEVEL": "warning"}
    yield folder
    for process in folder.started:
        process.kill()
        process.communicate()
    subprocess.run(["umount", "--lazy", tmp_path], check=True)


def fill(folder):
    """Leave no free block on the disk."""
    with (folder.path / "ballast").open("wb", buffering=0) as ballast:
        try:
            while True:
                ballast.write(bytes(4096))
        except OSError:
            return


def run_behind(folder, wrapper, *arguments):
    """Run the script through a program that changes what it may do."""
    return subprocess.run(
        [*wrapper, SCRIPT, *arguments],
        cwd=folder.path,
        env=folder.environ,
        capture_output=True,
        timeout=DEADLINE,
        check=False,
    )


def told_by(worker):
    """Return what a worker has logged so far, without waiting for more."""
    os.set_blocking(worker.stderr.fileno(), False)
    worker.said = getattr(worker, "said", "") + (worker.stderr.read() or b"").decode()
    return worker.said


def publish(folder, events):
    return folder.run("publish", folder.write_events(*(an_event(n) for n in range(events))))


@pytest.mark.may_skip_in_ci  # where CI may not mount; the limit on the size of files stands in for it below
def test_full_disk_loses_nothing_and_work_resumes_by_itself(small_disk):
    assert publish(small_disk, 500).code == 0
    (small_disk.path / "events.jsonl").unlink()
    worker = small_disk.start_worker()
    fill(small_disk)
    more = small_disk.run("publish", stdin=b"\n".join(json.dumps(an_event(n)).encode() for n in range(500, 800)))
    wait_until(lambda: "store.unusable" in told_by(worker))
    assert more.code == 3
    assert b"full" in more.err
    assert b"Free some space" in more.err
    (small_disk.path / "ballast").unlink()
    again = small_disk.run("publish", stdin=b"\n".join(json.dumps(an_event(n)).encode() for n in range(500, 800)))
    assert again.code == 0
    wait_until(lambda: chaos.count(small_disk, "events WHERE state = 'matched'") == 1600)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(DEADLINE) == 0
    chaos.all_is_well(small_disk, 800)


@pytest.mark.may_skip_in_ci
def test_drain_on_a_full_disk_ends_with_the_reason_and_the_next_one_does_the_work(small_disk):
    assert publish(small_disk, 800).code == 0
    fill(small_disk)
    drained = small_disk.run("run", "--drain")
    assert drained.code == 3
    assert b"the store" in drained.err
    assert b"ree some space" in drained.err
    (small_disk.path / "ballast").unlink()
    assert small_disk.run("run", "--drain").code == 0
    chaos.all_is_well(small_disk, 800)


@pytest.mark.may_skip_in_ci
def test_sources_pause_before_the_disk_is_full(small_disk):
    small_disk.environ["DISPATCHER_MIN_FREE_MB"] = "64"
    publish(small_disk, 1)
    drained = small_disk.run("run", "--drain")
    assert drained.code == 3
    assert b"MB free on the disk, 64 MB wanted" in drained.err
    assert chaos.query(small_disk, "SELECT state FROM events") == [("new",)]


def test_store_that_cannot_grow_ends_a_drain_with_the_reason_and_loses_nothing(folder):
    folder.environ["DISPATCHER_LOG_LEVEL"] = "warning"
    assert publish(folder, 3000).code == 0
    ended = run_behind(folder, LIMITED, "run", "--drain")
    assert ended.returncode == 3
    assert b"Traceback" not in ended.stderr
    assert b"cannot be used" in ended.stderr
    assert folder.run("run", "--drain").code == 0
    chaos.all_is_well(folder, 3000)


# Not ours to write.


@pytest.fixture
def read_only(tmp_path):
    """A folder with a store in it, on a disk that is read-only."""
    mounted = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", tmp_path], check=False, capture_output=True)
    if mounted.returncode:
        pytest.skip("only root may mount a read-only disk")
    folder = Folder(tmp_path)
    assert publish(folder, 3).code == 0
    subprocess.run(["mount", "-o", "remount,ro", tmp_path], check=True)
    yield folder
    subprocess.run(["umount", "--lazy", tmp_path], check=True)


@pytest.mark.may_skip_in_ci
@pytest.mark.parametrize("verb", [("run",), ("run", "--drain"), ("publish", "events.jsonl")], ids=" ".join)
def test_read_only_disk_is_refused_with_a_hint(read_only, verb):
    refused = read_only.run(*verb)
    assert refused.code == 3
    assert b"Read-only file system" in refused.err
    assert b"must exist and be writable" in refused.err


@pytest.fixture
def stranger(folder):
    """Run the script as somebody who owns nothing here."""
    if os.getuid() != 0:
        pytest.skip("only root may become somebody else")
    for parent in [folder.path, *folder.path.parents][:3]:
        parent.chmod(0o755)

    def run(*arguments):
        return run_behind(folder, ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"), *arguments)

    if b"dispatcher" not in run("--version").stdout:
        pytest.skip("nobody else may run the script where it is installed")
    return run


@pytest.mark.may_skip_in_ci
@pytest.mark.parametrize("what", ["folder", "file", "unreadable file"])
def test_store_of_somebody_else_is_refused_with_a_hint(folder, stranger, what):
    publish(folder, 3)
    if what != "folder":
        folder.path.chmod(0o777)
        for path in folder.path.glob("store.db.*"):
            path.unlink()
        (folder.path / "store.db").chmod(0o644 if what == "file" else 0o600)
    before = (folder.path / "store.db").read_bytes()
    refused = stranger("run", "--drain")
    assert refused.returncode == 3
    assert b"Traceback" not in refused.stderr
    assert b"writable for the user that runs the dispatcher" in refused.stderr
    assert (folder.path / "store.db").read_bytes() == before


def test_folder_that_is_missing_is_named(folder):
    refused = folder.run("run", "--store", "sqlite:///no/such/store.db")
    assert refused.code == 3
    assert b"no/such/store.db" in refused.err
    assert not (folder.path / "no").exists()


def test_store_that_is_damaged_is_refused_and_left_as_it_is(folder):
    publish(folder, 3)
    (folder.path / "store.db").write_bytes(b"not at all what it was" * 1000)
    for wal in folder.path.glob("store.db-*"):
        wal.unlink()
    shutil.copy(folder.path / "store.db", folder.path / "before")
    refused = folder.run("run")
    assert refused.code == 3
    assert b"not a database" in refused.err
    assert (folder.path / "before").read_bytes() == (folder.path / "store.db").read_bytes()


def test_slot_file_has_its_blocks_before_it_is_used(folder):
    # A page without a block, on a disk that has filled up since, would end the worker with SIGBUS.
    worker = folder.start_worker()
    assert (folder.path / "store.db.slot").stat().st_blocks > 0
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(DEADLINE) == 0
