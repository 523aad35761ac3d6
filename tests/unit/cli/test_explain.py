"""`explain`: why, for people and for programs, with no effect at all."""

from __future__ import annotations

import json

import pytest


def chain(said, name):
    return next(entry for entry in said.document["chains"] if entry["chain"] == name)


def test_a_chain_that_matches_shows_its_steps_with_their_input(dispatcher, event_file):
    said = dispatcher("explain", event_file())
    assert said.code == 0
    assert "welcome: matched" in said.out
    assert 'msisdn: "+27821234567"' in said.out
    assert 'name: "Thandi"' in said.out
    assert "to: known when step contact has run" in said.out


def test_a_chain_that_does_not_match_names_the_clause_and_the_value_it_saw(dispatcher, event_file):
    said = dispatcher("explain", event_file(event_data={"consent": "no", "msisdn": "1"}), "--json")
    welcome = chain(said, "welcome")
    assert welcome["matched"] is False
    assert welcome["clause"] == 'data.consent == "yes"'
    assert welcome["value"] == "no"
    assert 'data.consent is "no"' in welcome["reason"]


def test_a_default_chain_says_why_it_does_not_run(dispatcher, event_file):
    said = dispatcher("explain", event_file(), "--json")
    assert chain(said, "nobody-listens")["matched"] is False
    assert "welcome matched" in chain(said, "nobody-listens")["reason"]


def test_json_tells_event_chains_and_outcome(dispatcher, event_file):
    document = dispatcher("explain", event_file(), "--json").document
    assert list(document) == ["event", "chains", "outcome"]
    assert document["outcome"] == "matched"
    assert document["event"]["subject"] == "082 123 4567"
    steps = document["chains"][0]["steps"]
    assert [(step["step"], step["effect"], step["verdict"]) for step in steps] == [
        ("contact", "transaction", "runs"),
        ("send_sms", "transaction", "depends"),
    ]
    assert steps[0]["input"] == {"msisdn": "+27821234567", "name": "Thandi"}
    assert steps[1]["input"] == {"text": "Thanks!"}
    assert steps[1]["connection"] == "sender:default"


def test_when_nothing_matches_the_exit_code_is_1(dispatcher, here, event_file):
    text = (here / "rulebook.yaml").read_text()
    (here / "rulebook.yaml").write_text(text[: text.index("  - name: nobody-listens")])
    said = dispatcher("explain", event_file(event_type="else"))
    assert said.code == 1
    assert 'event_type: the chain takes "poll_complete", the event has "else"' in said.out
    assert said.err == "No chain matched.\n"


DATA = {"consent": "yes", "msisdn": "0821234567", "name": "t"}
HISTORIC = {"account_key": "acc1", "conversation_key": "c9", "event_type": "poll_complete", "content": DATA}
CLOUD_EVENT = {
    "specversion": "1.0",
    "id": "7",
    "source": "//polls/acc1",
    "type": "vxpolls.poll_complete",
    "subject": "c1",
    "data": DATA,
}


@pytest.mark.parametrize("event", [HISTORIC, CLOUD_EVENT], ids=["historic, its type looked up", "CloudEvents"])
def test_an_event_in_any_form_is_explained_from_stdin(dispatcher, event):
    said = dispatcher("explain", "-", "--json", stdin=json.dumps(event).encode())
    assert said.code == 0
    assert said.document["event"]["conversation_type"] == "vxpolls"
    assert chain(said, "welcome")["matched"] is True


def test_an_event_without_id_gets_none_here(dispatcher, event_file):
    assert dispatcher("explain", event_file(event_id=None), "--json").document["event"]["event_id"] is None


def test_an_event_that_would_be_refused_says_its_code(dispatcher):
    said = dispatcher("explain", "-", "--json", stdin=b'{"account_key": "acc1"')
    assert said.code == 1
    assert (said.document["outcome"], said.document["code"]) == ("refused", "bad_json")
    assert "bad_json" in said.err


def test_a_broken_rulebook_cannot_explain_anything(dispatcher, here, event_file):
    (here / "rulebook.yaml").write_text("version: 1\nchain: []\n")
    said = dispatcher("explain", event_file())
    assert said.code == 3
    assert "rulebook.yaml:2:1: unknown_key" in said.err


def test_explaining_makes_no_store(dispatcher, here, event_file):
    name = event_file()
    before = sorted(here.iterdir())
    dispatcher("explain", name)
    assert sorted(here.iterdir()) == before


def test_many_chains_for_other_events_are_counted_unless_asked_for(dispatcher, here, event_file):
    others = "".join(
        f"  - {{name: other-{n}, on: {{event_type: other}}, steps: [{{handler: log_event}}]}}\n" for n in range(50)
    )
    with (here / "rulebook.yaml").open("a") as rulebook:
        rulebook.write(others)
    said = dispatcher("explain", event_file())
    assert "… and 31 more" in said.out
    assert said.out.count("other-") == 20
    assert dispatcher("explain", event_file(), "--all").out.count("other-") == 50


def test_a_file_that_is_not_there_is_a_usage_error(dispatcher):
    assert dispatcher("explain", "nowhere.json").code == 2


def test_a_chain_that_needs_a_broken_plugin_is_told_as_disabled(dispatcher, here, event_file, monkeypatch):
    info = here / "site" / "acme_broken-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-broken\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text("[dispatcher.handlers]\nbroken = acme_nowhere:Broken\n")
    monkeypatch.syspath_prepend(str(here / "site"))
    with (here / "rulebook.yaml").open("a") as rulebook:
        rulebook.write("  - {name: needs-it, steps: [{handler: broken}]}\n")
    said = dispatcher("explain", event_file(), "--json")
    assert said.code == 0
    assert chain(said, "needs-it")["matched"] is False
    assert "acme-broken" in chain(said, "needs-it")["reason"]


def test_where_a_step_publishes_is_told(dispatcher, here, event_file):
    (here / "rulebook.yaml").write_text("""\
version: 1
accounts: {acc1: {region: ZA}}
senders: {default: {type: vumi, transport_name: sms_transport}}
services: {go: {type: vumi, exchange: go, worker_names: {vxpolls: vxpolls_worker}}}
chains:
  - name: commands
    on: {event_type: poll_complete}
    steps:
      - {handler: send_sms, with: {to: "{{ data.msisdn }}", text: Thanks}}
      - {id: a, handler: send_command, with: {command: start}}
      - {id: b, handler: send_command, with: {command: start, service: go}}
      - {id: c, handler: send_command, with: {command: start, worker_name: other, routing_key: x.control}}
      - {handler: log_event}
""")
    steps = dispatcher("explain", event_file(), "--json").document["chains"][0]["steps"]
    assert [step["publishes"] for step in steps] == [
        {"exchange": "vumi", "routing_key": "sms_transport.outbound"},
        {"exchange": "vumi", "routing_key": "vumi.api", "worker_name": "vxpolls_application"},
        {"exchange": "go", "routing_key": "vumi.api", "worker_name": "vxpolls_worker"},
        {"exchange": "vumi", "routing_key": "x.control", "worker_name": "other"},
        None,
    ]
    told = dispatcher("explain", event_file()).out
    assert "goes to the exchange 'vumi' with the key 'sms_transport.outbound'\n" in told
    assert "goes to the exchange 'go' with the key 'vumi.api', for the worker vxpolls_worker\n" in told
