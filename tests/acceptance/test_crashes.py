"""The real worker, killed: at random, at every failpoint, by plugins. Nothing is lost, nothing is done twice."""

from __future__ import annotations

import json
import random
import resource
import shutil
import signal
import subprocess

import pytest

from dispatcher import failpoints
from tests.acceptance import chaos
from tests.acceptance.conftest import DEADLINE, SCRIPT, Folder, an_event
from tests.harness.waiting import wait_until

EVENTS = 50
KILLED = -signal.SIGKILL
# Points that this worker does not come to: that of `publish` is below, those of a broker are in test_broker_crashes.
BROKERS = ("delivery.before_ack", "outbox.before_publish", "outbox.before_record")
ELSEWHERE = ("intake.before_commit", *BROKERS)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A store with events in it that no worker has seen, to copy."""
    path = tmp_path_factory.mktemp("published")
    folder = Folder(path)
    events = [an_event(n) for n in range(EVENTS)]
    events += [an_event(1000 + n, event_type="call", event_data={}) for n in range(EVENTS)]
    assert folder.run("publish", folder.write_events(*events)).code == 0
    return path / "store.db"


def run_to_its_end(folder, *arguments, failpoint=""):
    return subprocess.run(
        [SCRIPT, *(arguments or ("run", "--drain"))],
        cwd=folder.path,
        env=folder.environ | {"DISPATCHER_FAILPOINTS": failpoint},
        capture_output=True,
        timeout=DEADLINE,
        check=False,
    )


def polls_are_well(folder, events):
    """Leave the calls out and look at the rest as the oracle does."""
    assert chaos.query(folder, "PRAGMA integrity_check") == [("ok",)]
    assert chaos.count(folder, "runs WHERE state <> 'done'") == 0
    assert chaos.count(folder, "events WHERE state <> 'matched'") == 0
    assert chaos.count(folder, "contacts") == chaos.count(folder, "messages") == events
    assert chaos.count(folder, "events WHERE event_type = 'welcome_sent'") == events
    assert chaos.count(folder, "dead_letters") == 0


@pytest.mark.parametrize("action", ["kill", "raise"])
@pytest.mark.parametrize("point", [name for name in failpoints.NAMES if name not in ELSEWHERE])
def test_worker_that_dies_at_a_failpoint_goes_on_where_it_was(tmp_path, published, point, action):
    folder = chaos.install(Folder(tmp_path))
    shutil.copy(published, tmp_path / "store.db")
    died = run_to_its_end(folder, failpoint=f"{point}:{action}")
    assert died.returncode == (KILLED if action == "kill" else 1)
    assert run_to_its_end(folder).returncode == 0
    polls_are_well(folder, EVENTS)
    made = chaos.calls(folder)
    assert len({event for event, _ in made}) == EVENTS
    assert len(set(made)) == EVENTS, "a call that was repeated had another key"


@pytest.mark.parametrize("action", ["kill", "raise"])
def test_publish_that_dies_before_its_commit_has_published_nothing_and_can_be_repeated(folder, action):
    events = folder.write_events(*(an_event(n) for n in range(EVENTS)))
    died = run_to_its_end(folder, "publish", events, failpoint=f"intake.before_commit:{action}")
    assert died.returncode == (KILLED if action == "kill" else 1)
    assert chaos.count(folder, "events") == 0
    assert folder.run("publish", events).code == 0
    assert folder.run("run", "--drain").code == 0
    chaos.all_is_well(folder, EVENTS)


def test_worker_killed_at_random_loses_nothing_and_repeats_nothing(folder):
    folder.environ["DISPATCHER_LOG_LEVEL"] = "warning"  # nobody reads the pipe meanwhile
    seed = random.randrange(10**6)
    print(f"seed {seed}")  # noqa: T201 - shown when it fails
    chance = random.Random(seed)
    events, kills = 3000, 6
    assert folder.run("publish", folder.write_events(*(an_event(n) for n in range(events)))).code == 0
    killed = 0
    for part in range(kills):
        worker = folder.start("run")  # without --drain: it is still there to be killed, however fast it was
        enough = part * events // kills + chance.randrange(1, events // kills)
        spin = chance.randrange(20)
        wait_until(lambda enough=enough: chaos.count(folder, "messages") >= enough)
        for _ in range(spin):
            chaos.count(folder, "events WHERE state = 'new'")
        worker.kill()
        killed += worker.wait() == KILLED
    assert killed == kills
    assert folder.run("run", "--drain").code == 0
    chaos.all_is_well(folder, events)


def test_worker_killed_in_five_recoveries_in_a_row_recovers_in_the_sixth(folder):
    chaos.install(folder)
    folder.run("publish", folder.write_events(*(an_event(n) for n in range(EVENTS))))
    assert run_to_its_end(folder, failpoint="batch.before_commit:kill@2").returncode == KILLED
    for _ in range(5):
        assert run_to_its_end(folder, failpoint="recovery.before_commit:kill").returncode == KILLED
    assert run_to_its_end(folder).returncode == 0
    chaos.all_is_well(folder, EVENTS)


@pytest.mark.parametrize(
    ("event_type", "misdeed", "ends"),
    [
        ("misbehave", "abort", -signal.SIGABRT),
        ("misbehave", "segfault", -signal.SIGSEGV),
        ("misbehave", "hang", 75),
        ("call", "abort", -signal.SIGABRT),
    ],
)
def test_event_that_takes_the_worker_down_is_parked_after_three_crashes_and_no_other(folder, event_type, misdeed, ends):
    chaos.install(folder)
    folder.environ |= {"DISPATCHER_HANDLER_HANG_SECONDS": "0.3"}
    events = [an_event(n, event_type=event_type, event_data={}) for n in range(100)]
    events[42]["event_data"] = {"misdeed": misdeed}
    folder.run("publish", folder.write_events(*events))
    codes = [run_to_its_end(folder).returncode for _ in range(4)]
    assert codes == [ends, ends, ends, 0]
    assert chaos.query(folder, "SELECT kind, reason, event_id FROM dead_letters") == [("event", "crashed", "e-42")]
    assert chaos.query(folder, "SELECT event_id FROM events WHERE state <> 'matched'") == [("e-42",)]
    assert chaos.count(folder, "runs WHERE state = 'done' AND event_id <> 'e-42'") == 99


def test_call_without_a_key_that_took_the_worker_down_is_held_and_made_once(folder):
    chaos.install(folder)
    folder.run(
        "publish", stdin=json.dumps(an_event(1, event_type="call_once", event_data={"misdeed": "abort"})).encode()
    )
    assert run_to_its_end(folder).returncode == -signal.SIGABRT
    assert run_to_its_end(folder).returncode == 0
    assert chaos.query(folder, "SELECT state FROM runs") == [("held",)]
    assert chaos.query(folder, "SELECT reason FROM dead_letters") == [("unknown",)]
    assert len(chaos.calls(folder)) == 1


def test_handler_that_wants_more_memory_than_there_is_fails_alone(folder):
    chaos.install(folder)
    events = [an_event(n, event_type="misbehave", event_data={}) for n in range(20)]
    events[7]["event_data"] = {"misdeed": "leak"}
    folder.run("publish", folder.write_events(*events))
    limit = 2 * 2**30
    ended = subprocess.run(
        [SCRIPT, "run", "--drain"],
        cwd=folder.path,
        env=folder.environ,
        capture_output=True,
        timeout=DEADLINE,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    assert ended.returncode == 0
    assert chaos.query(folder, "SELECT event_id FROM runs WHERE state = 'failed'") == [("e-7",)]
    assert chaos.count(folder, "runs WHERE state = 'done'") == 19


def test_handler_that_fails_twice_succeeds_the_third_time(folder):
    chaos.install(folder)
    folder.run("publish", stdin=json.dumps(an_event(1, event_type="flaky")).encode())
    worker = folder.start_worker()
    wait_until(lambda: chaos.count(folder, "runs WHERE state = 'done'") == 1)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(DEADLINE) == 0
    assert chaos.query(folder, "SELECT attempt, state FROM steps") == [(1, "failed"), (2, "failed"), (3, "done")]
