"""`dispatcher demo`, as a newcomer runs it in a checkout."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.acceptance.conftest import ROOT, Folder

EVENTS = ROOT / "config" / "demo-events.jsonl"


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = Folder(tmp_path_factory.mktemp("demo"))
    shutil.copytree(ROOT / "config", folder.path / "config")
    folder.environ["DISPATCHER_RULEBOOK"] = "config/handlers.yaml"
    theirs = folder.environ.pop("DISPATCHER_STORE")
    # As where a real installation is set up, which a demo leaves alone.
    real = {
        "DISPATCHER_STORE": "postgresql://nobody@127.0.0.1:1/nothing",
        "DISPATCHER_WORKERS": "4",
        "DISPATCHER_AMQP_URL": "amqp://nobody:none@127.0.0.1:1/nothing",
    }
    folder.environ |= real
    done = folder.run("demo")
    for name in real:
        del folder.environ[name]
    folder.environ["DISPATCHER_STORE"] = theirs
    return folder, done


@pytest.fixture(scope="module")
def counts(demo):
    folder, _ = demo
    folder.environ["DISPATCHER_STORE"] = "sqlite:///demo/dispatcher.db"
    return folder.run("doctor", "--json").document["counts"]


def test_the_demo_ends_well_and_says_what_happened(demo):
    _, done = demo
    assert done.code == 0
    told = done.out.decode()
    for part in ("events", "runs", "contacts", "messages", "Dead letters", "opted_out", "To look further"):
        assert part in told


def test_it_fits_80_columns(demo):
    assert max(len(line) for line in demo[1].out.decode().splitlines()) <= 80


def test_everything_is_accounted_for(counts):
    assert set(counts["events"]) == {"matched"}
    assert set(counts["runs"]) == {"done", "failed", "waiting"}
    assert set(counts["messages"]) == {"queued", "failed"}


def test_every_kind_of_malformed_line_is_a_dead_letter(counts):
    assert counts["dead_letters"].keys() >= {
        "bad_json",
        "bad_utf8",
        "too_deep",
        "duplicate_key",
        "bad_number",
        "bad_text",
        "not_an_object",
        "missing_field",
        "wrong_type",
        "conflicting_payload",
        "id_conflict",
        "failed",
    }


def test_it_can_be_run_again(demo):
    folder, _ = demo
    assert folder.run("demo").code == 0


def test_it_leaves_a_folder_alone_that_it_cannot_write(demo):
    folder, _ = demo
    (folder.path / "file").write_text("not a folder")
    assert folder.run("demo", "--folder", "file").code == 2


def test_the_file_has_every_wire_form_and_at_least_200_lines():
    events = []
    for line in EVENTS.read_bytes().splitlines():
        try:
            events.append(json.loads(line))
        except ValueError:
            continue
    assert len(events) >= 200
    forms = {
        "cloud" if "specversion" in event else "historic" if "content" in event else "note"
        for event in events
        if isinstance(event, dict)
    }
    assert forms == {"cloud", "historic", "note"}
