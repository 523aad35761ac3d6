"""The real worker as an operator meets it: what it refuses to start with, who may be beside it, how it reloads."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
from contextlib import closing

import pytest

from tests.acceptance import chaos
from tests.acceptance.conftest import DEADLINE, RULEBOOK, an_event
from tests.harness.waiting import wait_until

BROKEN = """\
version: 1
chains:
  - name: first
    on: {event_type: poll_complete}
    steps: [{handler: create_contatc, with: {msisdn: x}}]
  - name: second
    on: {event_typ: poll_complete}
    when: data.consent ==
    steps: [{handler: log_event}]
"""


@pytest.fixture
def logging(folder):
    folder.environ["DISPATCHER_LOG_FORMAT"] = "json"
    return folder


def publish(folder, *events):
    assert folder.run("publish", stdin="\n".join(json.dumps(event) for event in events).encode()).code == 0


def lines_so_far(worker):
    """Return what a worker has logged so far, without waiting for more."""
    os.set_blocking(worker.stderr.fileno(), False)
    worker.said = getattr(worker, "said", b"") + (worker.stderr.read() or b"")
    return chaos.log_lines(worker.said[: worker.said.rfind(b"\n") + 1])


def said(worker, event):
    return [line for line in lines_so_far(worker) if line["event"] == event]


def stop(worker):
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(DEADLINE) == 0


# Starting.


@pytest.mark.parametrize("verb", [("run",), ("run", "--drain")], ids=" ".join)
def test_rulebook_with_mistakes_starts_nothing_and_all_are_told(folder, verb):
    (folder.path / "rulebook.yaml").write_text(BROKEN)
    refused = folder.run(*verb)
    told = refused.err.decode()
    assert refused.code == 3
    assert refused.out == b""
    assert "rulebook.yaml:5:" in told
    assert "Did you mean 'create_contact'?" in told
    assert "rulebook.yaml:7:" in told
    assert "rulebook.yaml:8:" in told
    assert sorted(path.name for path in folder.path.iterdir()) == ["rulebook.yaml"]


def test_rulebook_that_is_not_there_starts_nothing(folder):
    (folder.path / "rulebook.yaml").unlink()
    refused = folder.run("run")
    assert refused.code == 3
    assert b"rulebook.yaml" in refused.err
    assert list(folder.path.iterdir()) == []


def test_store_of_a_newer_version_is_refused_and_not_touched(folder):
    publish(folder, an_event(1))
    with closing(sqlite3.connect(folder.path / "store.db")) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    shutil.copy(folder.path / "store.db", folder.path / "before")
    for arguments in (("run",), ("run", "--drain"), ("publish", "rulebook.yaml"), ("migrate",)):
        refused = folder.run(*arguments)
        assert refused.code == 3, arguments
        assert b"newer" in refused.err
    assert (folder.path / "before").read_bytes() == (folder.path / "store.db").read_bytes()


def test_second_worker_is_refused_with_the_pid_of_the_first(folder):
    worker = folder.start_worker()
    refused = folder.run("run", "--drain")
    assert refused.code == 3
    assert str(worker.pid).encode() in refused.err
    assert b"in use" in refused.err
    publish(folder, an_event(1))
    wait_until(lambda: chaos.count(folder, "messages") == 1)
    stop(worker)


def test_store_is_free_as_soon_as_its_worker_is_killed(folder):
    worker = folder.start_worker()
    worker.kill()
    worker.wait()
    assert (folder.path / "store.db.sock").exists()
    assert folder.run("run", "--drain").code == 0


def test_misspelt_failpoint_starts_nothing(folder):
    folder.environ["DISPATCHER_FAILPOINTS"] = "batch.before_comit:kill"
    refused = folder.run("run")
    assert refused.code == 3
    assert b"batch.before_commit" in refused.err


# Working.


def test_publishers_beside_a_worker_are_all_taken_once(logging):
    logging.environ["DISPATCHER_LOG_LEVEL"] = "warning"  # nobody reads the pipe meanwhile
    worker = logging.start_worker()
    files = [logging.write_events(*(an_event(100 * n + m) for m in range(100)), name=f"{n}.jsonl") for n in range(4)]
    publishers = [logging.start("publish", name) for name in [*files, files[0]]]
    for publisher in publishers:
        assert publisher.wait(DEADLINE) == 0
    # Not the events: a run of theirs may be left to the next batch, and a stop takes none.
    wait_until(lambda: chaos.count(logging, "runs WHERE state = 'done'") == 800)
    stop(worker)
    chaos.all_is_well(logging, 400)


def test_drain_beside_waits_leaves_them_and_ends(folder):
    rulebook = folder.path / "rulebook.yaml"
    rulebook.write_text(RULEBOOK + "  - {name: later, on: {event_type: wait}, steps: [{wait: 1d}]}\n")
    publish(folder, an_event(1), an_event(2, event_type="wait"))
    assert folder.run("run", "--drain").code == 0
    assert chaos.query(folder, "SELECT state FROM runs WHERE chain = 'later'") == [("waiting",)]
    assert chaos.count(folder, "messages") == 1


def test_wait_comes_due_in_a_worker_that_sleeps(folder):
    rulebook = folder.path / "rulebook.yaml"
    rulebook.write_text(
        RULEBOOK + "  - {name: later, on: {event_type: wait}, steps: [{wait: 50ms}, {handler: log_event}]}\n"
    )
    worker = folder.start_worker()
    publish(folder, an_event(1, event_type="wait"))
    wait_until(lambda: chaos.query(folder, "SELECT state FROM runs") == [("done",)])
    stop(worker)


# Reloading.


def test_good_rulebook_takes_over_at_sighup(logging):
    worker = logging.start_worker()
    rulebook = logging.path / "rulebook.yaml"
    rulebook.write_text(RULEBOOK.replace("Thanks", "Siyabonga"))
    worker.send_signal(signal.SIGHUP)
    wait_until(lambda: said(worker, "rulebook.reloaded"))
    publish(logging, an_event(1))
    wait_until(lambda: chaos.query(logging, "SELECT content FROM messages") == [("Siyabonga Thandi!",)])
    stop(worker)


def test_bad_rulebook_is_told_once_and_the_old_one_stays(logging):
    worker = logging.start_worker()
    (logging.path / "rulebook.yaml").write_text(BROKEN)
    worker.send_signal(signal.SIGHUP)
    wait_until(lambda: said(worker, "rulebook.refused"))
    publish(logging, an_event(1))
    wait_until(lambda: chaos.query(logging, "SELECT content FROM messages") == [("Thanks Thandi!",)])
    (refusal,) = said(worker, "rulebook.refused")
    assert any("create_contact" in problem for problem in refusal["problems"])
    (logging.path / "rulebook.yaml").write_text(RULEBOOK.replace("Thanks", "Asante"))
    worker.send_signal(signal.SIGHUP)
    wait_until(lambda: said(worker, "rulebook.reloaded"))
    publish(logging, an_event(2))
    wait_until(lambda: chaos.count(logging, "messages WHERE content = 'Asante Thandi!'") == 1)
    stop(worker)


def test_run_that_began_under_an_old_rulebook_ends_under_it(logging):
    rulebook = logging.path / "rulebook.yaml"
    later = (
        "  - name: later\n    on: {event_type: wait}\n    steps:\n      - wait: 1h\n"
        "      - {handler: send_sms, with: {to: '+27825550001', text: WORD}}\n"
    )
    rulebook.write_text(RULEBOOK + later.replace("WORD", "old"))
    publish(logging, an_event(1, event_type="wait"))
    worker = logging.start_worker()
    wait_until(lambda: chaos.query(logging, "SELECT state FROM runs") == [("waiting",)])
    rulebook.write_text(RULEBOOK + later.replace("WORD", "new"))
    worker.send_signal(signal.SIGHUP)
    wait_until(lambda: said(worker, "rulebook.reloaded"))
    run_id = chaos.query(logging, "SELECT run_id FROM runs")[0][0]
    assert logging.run("runs", "retry", run_id).code == 0
    wait_until(lambda: chaos.query(logging, "SELECT content FROM messages") == [("old",)])
    stop(worker)
