"""The verbs as real processes: what they print, what they leave, how they end."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

from tests.acceptance.conftest import ROOT, SCRIPT, an_event
from tests.harness.waiting import wait_until


def states(folder, table="events"):
    return folder.run("doctor", "--json").document["counts"][table]


def test_events_become_contacts_and_messages(folder):
    name = folder.write_events(*(an_event(n) for n in range(5)))
    assert folder.run("publish", name).code == 0
    assert states(folder) == {"new": 5}
    assert folder.run("run", "--drain").code == 0
    counts = folder.run("doctor", "--json").document["counts"]
    assert counts["events"] == {"matched": 10}
    assert counts["runs"] == {"done": 10}
    assert counts["messages"] == {"queued": 5}
    assert counts["contacts"] == 5


def test_publish_works_beside_a_running_worker_and_the_worker_does_the_rest(folder):
    worker = folder.start_worker()
    published = folder.run("publish", "--json", stdin=json.dumps(an_event()).encode() + b"\nnonsense\n")
    assert published.code == 1
    assert published.document["stored"] == 1
    assert [entry["code"] for entry in published.document["refused"]] == ["bad_json"]
    wait_until(lambda: states(folder, "messages") == {"queued": 1})
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(timeout=30) == 0


def test_a_second_worker_is_told_whose_the_store_is(folder):
    worker = folder.start_worker()
    second = folder.run("run", "--drain")
    assert second.code == 3
    assert f"process {worker.pid}".encode() in second.err
    assert worker.poll() is None


def test_a_broken_rulebook_starts_nothing_and_lists_every_problem(folder):
    (folder.path / "rulebook.yaml").write_text("version: 1\nchain: []\nsender: {}\n")
    done = folder.run("run", "--drain")
    assert done.code == 3
    assert done.err.count(b"unknown_key") == 2
    assert not (folder.path / "store.db").exists()


def test_a_store_of_a_newer_version_is_refused(folder):
    folder.run("migrate")
    with closing(sqlite3.connect(folder.path / "store.db")) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    for verb in (["run", "--drain"], ["publish", "-"], ["migrate"]):
        done = folder.run(*verb, stdin=json.dumps(an_event()).encode())
        assert (verb, done.code) == (verb, 3)
        assert b"9999" in done.err


def test_a_store_that_cannot_be_written_is_told(folder):
    folder.environ["DISPATCHER_STORE"] = "sqlite:////proc/nowhere/store.db"
    assert folder.run("run", "--drain").code == 3


def test_python_dash_m_is_the_same_command(folder):
    python = SCRIPT.with_name("python")
    done = subprocess.run(
        [python, "-P", "-m", "dispatcher", "check"],
        cwd=folder.path,
        env=folder.environ,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0


def test_a_reader_that_leaves_early_gets_no_complaint(folder):
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [SCRIPT, "schema"], cwd=folder.path, env=folder.environ, stdout=writing, stderr=subprocess.PIPE, check=False
    )
    os.close(writing)
    assert done.stderr == b""


def test_output_that_cannot_be_written_is_told_without_a_traceback(folder):
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [SCRIPT, "schema"], cwd=folder.path, env=folder.environ, stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert done.returncode == 3
    assert done.stderr.startswith(b"error: the operating system refused: No space left on device")
    assert b"Traceback" not in done.stderr


def test_closed_streams_are_no_error(folder):
    done = subprocess.run(["sh", "-c", f"{SCRIPT} check >&- 2>&-"], cwd=folder.path, env=folder.environ, check=False)
    assert done.returncode == 0


def test_output_survives_a_terminal_that_knows_only_ascii(folder):
    folder.environ |= {"PYTHONIOENCODING": "ascii"}
    event = an_event(event_data={"msisdn": "0825550001", "name": "Zoë 🌻", "consent": "yes"})
    name = folder.write_events(event, name="event.json")
    assert folder.run("explain", name).code == 0
    assert folder.run("explain", name, "--json").document["event"]["event_data"]["name"] == "Zoë 🌻"


def test_ctrl_c_ends_a_waiting_publish_quietly(folder):
    folder.run("migrate")
    publishing = subprocess.Popen(
        [SCRIPT, "publish"], cwd=folder.path, env=folder.environ, stdin=subprocess.PIPE, stderr=subprocess.PIPE
    )
    folder.started.append(publishing)
    assert publishing.stdin is not None
    publishing.stdin.write(json.dumps(an_event()).encode() + b"\n")
    publishing.stdin.flush()
    # A pipe is not kept waiting: the event is there while more may come.
    wait_until(lambda: states(folder) == {"new": 1})
    publishing.send_signal(signal.SIGINT)
    _, err = publishing.communicate(timeout=30)
    assert (publishing.returncode, err) == (130, b"")


def test_the_shipped_rulebook_is_sound(folder):
    done = folder.run("check", "--strict", str(ROOT / "config" / "handlers.yaml"))
    assert (done.code, done.out) == (0, b"")
