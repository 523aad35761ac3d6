"""How a worker ends when it is told to: it drains, it gives up within its grace, and no signal makes it stumble."""

from __future__ import annotations

import json
import random
import signal
import subprocess

import pytest

from tests.acceptance import chaos
from tests.acceptance.conftest import DEADLINE, SCRIPT, an_event
from tests.harness.waiting import wait_until

STOPS = (signal.SIGTERM, signal.SIGINT)


@pytest.fixture
def chaotic(folder):
    folder.environ["DISPATCHER_LOG_FORMAT"] = "json"
    return chaos.install(folder)


def publish(folder, *events):
    assert folder.run("publish", stdin="\n".join(json.dumps(event) for event in events).encode()).code == 0


def end_of(worker):
    """Wait for the worker's end; return its exit code and the names of what it logged."""
    _, err = worker.communicate(timeout=DEADLINE)
    return worker.returncode, [line["event"] for line in chaos.log_lines(err)]


def with_a_hung_call(folder, event_type="call"):
    worker = folder.start_worker()
    publish(folder, an_event(1, event_type=event_type, event_data={"misdeed": "hang"}))
    wait_until(lambda: chaos.calls(folder))
    return worker


@pytest.mark.parametrize("number", STOPS)
def test_idle_worker_stops_at_once(chaotic, number):
    worker = chaotic.start_worker()
    worker.send_signal(number)
    code, said = end_of(worker)
    assert code == 0
    assert said == ["worker.started", "worker.draining", "worker.stopped"]
    assert not (chaotic.path / "store.db.sock").exists()


def test_busy_worker_stops_in_the_middle_and_the_next_one_does_the_rest(folder):
    folder.environ["DISPATCHER_LOG_LEVEL"] = "warning"
    folder.run("publish", folder.write_events(*(an_event(n) for n in range(2000))))
    worker = folder.start("run")
    wait_until(lambda: chaos.count(folder, "messages") > 100)
    worker.send_signal(signal.SIGTERM)
    assert end_of(worker) == (0, [])
    assert not any((folder.path / "store.db.slot").read_bytes())
    assert folder.run("run", "--drain").code == 0
    chaos.all_is_well(folder, 2000)


def test_hung_call_is_given_up_when_the_grace_is_over(chaotic):
    chaotic.environ["DISPATCHER_DRAIN_SECONDS"] = "0.2"
    worker = with_a_hung_call(chaotic, "call_once")
    worker.send_signal(signal.SIGTERM)
    code, said = end_of(worker)
    assert code == 75
    assert said[-3:] == ["worker.draining", "worker.gave_up", "worker.stopped"]
    chaotic.environ.pop("DISPATCHER_DRAIN_SECONDS")
    assert chaotic.run("run", "--drain").code == 0
    assert chaos.query(chaotic, "SELECT state FROM runs") == [("held",)]
    assert len(chaos.calls(chaotic)) == 1


@pytest.mark.parametrize("second", STOPS)
def test_second_signal_ends_the_grace(chaotic, second):
    chaotic.environ["DISPATCHER_DRAIN_SECONDS"] = "3600"
    worker = with_a_hung_call(chaotic)
    worker.send_signal(signal.SIGTERM)
    wait_until(lambda: chaotic.run("publish", stdin=b"").code == 0)
    worker.send_signal(second)
    code, said = end_of(worker)
    assert code == 75
    assert "worker.gave_up" in said


@pytest.mark.parametrize("signals", [[signal.SIGTERM], [signal.SIGTERM, signal.SIGINT]])
def test_handler_that_hangs_in_a_batch_is_given_up_when_the_grace_or_the_patience_is_over(chaotic, signals):
    chaotic.environ["DISPATCHER_DRAIN_SECONDS"] = "0.2" if len(signals) == 1 else "3600"
    chaotic.environ["DISPATCHER_HANDLER_HANG_SECONDS"] = "3600"
    publish(chaotic, an_event(1, event_type="misbehave", event_data={"misdeed": "hang"}))
    worker = chaotic.start("run")
    slot = chaotic.path / "store.db.slot"
    wait_until(lambda: slot.exists() and any(slot.read_bytes()))
    for number in signals:
        worker.send_signal(number)
    code, said = end_of(worker)
    assert code == 75
    assert said[-1] == "handler.hung"


def test_call_that_hung_when_the_worker_gave_up_counts_as_no_crash(chaotic):
    chaotic.environ["DISPATCHER_DRAIN_SECONDS"] = "0"
    worker = with_a_hung_call(chaotic)
    worker.send_signal(signal.SIGTERM)
    assert end_of(worker)[0] == 75
    assert chaos.query(chaotic, "SELECT crash_count FROM events") == [(0,)]
    assert chaos.query(chaotic, "SELECT state FROM runs") == [("running",)]


def test_pool_lost_to_hung_calls_ends_the_worker_to_be_started_again(chaotic):
    chaotic.environ["DISPATCHER_CALL_THREADS"] = "2"
    rulebook = chaotic.path / "rulebook.yaml"
    rulebook.write_text(rulebook.read_text().replace("handler: chaos_call, ", "handler: chaos_call, timeout: 100ms, "))
    publish(chaotic, *(an_event(n, event_type="call", event_data={"misdeed": "hang"}) for n in range(2)))
    worker = chaotic.start("run")
    code, said = end_of(worker)
    assert code == 75
    assert "calls.exhausted" in said


def test_any_sequence_of_signals_ends_it_in_order(chaotic):
    seed = random.randrange(10**6)
    print(f"seed {seed}")  # noqa: T201 - shown when it fails
    chance = random.Random(seed)
    for _ in range(8):
        worker = chaotic.start_worker()
        for _ in range(chance.randrange(10)):
            worker.send_signal(chance.choice((signal.SIGHUP, signal.SIGHUP, *STOPS)))
        worker.send_signal(signal.SIGTERM)
        code, said = end_of(worker)
        assert code in (0, 75, -signal.SIGTERM, -signal.SIGHUP), (code, said)
        wait_until(lambda worker=worker: worker.poll() is not None)
    assert chaotic.run("doctor").code in (0, 1)


def test_stop_while_the_store_is_full_ends_within_the_grace(tmp_path, chaotic):
    # A file that may not grow is a disk that is full, and needs no privileges.
    chaotic.environ |= {"DISPATCHER_DRAIN_SECONDS": "0.3", "DISPATCHER_MIN_FREE_MB": "0"}
    publish(chaotic, an_event(1, event_type="call_until"))
    rulebook = chaotic.path / "rulebook.yaml"
    rulebook.write_text(
        rulebook.read_text() + "  - {name: until, on: {event_type: call_until}, steps: [{handler: chaos_wait}]}\n"
    )
    worker = chaotic.start("run")
    wait_until(lambda: chaos.calls(chaotic))
    size = (tmp_path / "store.db-wal").stat().st_size
    subprocess.run(["prlimit", f"--pid={worker.pid}", f"--fsize={size}:"], check=True)
    (tmp_path / "go").touch()
    worker.send_signal(signal.SIGTERM)
    code, said = end_of(worker)
    assert code == 75
    assert "store.unusable" in said
    assert chaotic.run("run", "--drain").code == 0
    assert chaos.query(chaotic, "SELECT state FROM runs") == [("held",)]


def test_interrupted_publish_leaves_no_traceback(folder):
    process = subprocess.Popen(
        [SCRIPT, "publish"], cwd=folder.path, env=folder.environ, stdin=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdin.write(json.dumps(an_event(1)).encode() + b"\n")
    process.stdin.flush()
    wait_until(lambda: (folder.path / "store.db").exists() and chaos.count(folder, "sqlite_master") > 5)
    wait_until(lambda: chaos.count(folder, "events") == 1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 130
    assert b"Traceback" not in err
