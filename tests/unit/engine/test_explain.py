"""What an event would start: verdicts on steps, and what of their input is known before anything runs."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from dispatcher.engine.explain import explain_event
from dispatcher.events.event import Event
from dispatcher.plugins.registry import load_registry
from dispatcher.rules.plan import load_plan

NOW = datetime(2026, 1, 1, tzinfo=UTC)
HEAD = """\
version: 1
accounts: {acc1: {region: ZA}}
senders: {default: {type: outbox}}
vars: {copy: {en: Thanks}}
chains:
"""


@pytest.fixture(scope="module")
def registry():
    return load_registry()


@pytest.fixture
def explain(registry, tmp_path):
    def of(chains: str, /, event_type: str = "done", **data):
        rulebook = tmp_path / "rulebook.yaml"
        rulebook.write_text(HEAD + chains)
        plan = load_plan(rulebook, registry, default_region=None, environ={})
        event = Event("e1", "acc1", "c1", "survey", event_type, data, NOW)
        return explain_event(event, plan)

    return of


@pytest.fixture
def explain_steps(explain):
    def of(*steps: str, **data):
        body = "".join(f"      - {step}\n" for step in steps)
        (chain,) = explain(f"  - name: one\n    steps:\n{body}", **data).chains
        return [(found.step.id, found.verdict, found.reason) for found in chain.steps], chain.steps

    return of


CONTACT = '{handler: create_contact, with: {msisdn: "{{ data.msisdn }}"}}'


def test_a_number_is_shown_as_it_would_be_kept(explain_steps):
    verdicts, steps = explain_steps(CONTACT, msisdn="082 123 4567")
    assert verdicts == [("create_contact", "runs", None)]
    assert steps[0].input == {"msisdn": "+27821234567"}


def test_what_an_earlier_step_finds_out_is_known_later(explain_steps):
    _, steps = explain_steps(
        CONTACT,
        '{handler: send_sms, with: {to: "{{ steps.create_contact.msisdn }}", text: "{{ vars.copy.en }}"}}',
        msisdn="0821234567",
    )
    assert steps[1].verdict == "runs"
    assert steps[1].input == {"text": "Thanks"}
    assert steps[1].later == {"to": "known when step create_contact has run"}


def test_a_default_does_not_stand_in_for_what_is_not_known_yet(explain_steps):
    _, steps = explain_steps(
        CONTACT,
        """{handler: log_event, with: {message: "{{ steps.create_contact.name | default('') }}"}}""",
        msisdn="0821234567",
    )
    assert steps[1].later == {"message": "known when step create_contact has run"}


def test_a_condition_on_an_earlier_step_is_decided_then(explain_steps):
    verdicts, _ = explain_steps(
        CONTACT, "{handler: log_event, when: steps.create_contact.created}", msisdn="0821234567"
    )
    assert verdicts[1] == (
        "log_event",
        "depends",
        "steps.create_contact.created: known when step create_contact has run",
    )


def test_a_condition_that_is_decided_already_says_so(explain_steps):
    verdicts, _ = explain_steps(
        CONTACT, "{handler: log_event, when: data.x == 1 and steps.create_contact.created}", msisdn="0821234567", x=2
    )
    assert verdicts[1] == ("log_event", "skipped", "data.x == 1 is false: data.x is 2")


def test_a_skipped_step_is_known_to_be_skipped(explain_steps):
    verdicts, _ = explain_steps(
        "{id: first, handler: log_event, when: data.x}",
        '{handler: log_event, when: steps.first.state == "skipped"}',
        x=False,
    )
    assert [verdict for _, verdict, _ in verdicts] == ["skipped", "runs"]


def test_a_step_that_would_fail_says_why_and_what_is_behind_it_is_not_reached(explain_steps):
    verdicts, _ = explain_steps(CONTACT, "{handler: log_event}", msisdn="12")
    assert verdicts[0][1] == "fails"
    assert verdicts[0][2].startswith("bad param: msisdn: ")
    assert verdicts[1] == ("log_event", "unreached", "step create_contact would fail, and `on_error` is stop")


def test_a_failing_step_that_may_fail_is_passed(explain_steps):
    verdicts, _ = explain_steps(
        '{id: one, handler: create_contact, on_error: continue, with: {msisdn: "{{ data.nobody }}"}}',
        '{handler: log_event, when: steps.one.state == "failed"}',
    )
    assert [verdict for _, verdict, _ in verdicts] == ["fails", "runs"]
    assert 'param "msisdn": data.nobody: data has no "nobody"' in verdicts[0][2] or "it is empty" in verdicts[0][2]


def test_a_known_param_that_is_wrong_fails_even_if_others_are_not_known(explain_steps):
    verdicts, _ = explain_steps(
        CONTACT,
        '{handler: send_sms, with: {to: "{{ data.other }}", text: "{{ steps.create_contact.name }}"}}',
        msisdn="0821234567",
        other="12",
    )
    assert verdicts[1][1] == "fails"


def test_waits_and_stops_are_told(explain_steps):
    verdicts, _ = explain_steps("{wait: 1d}", "{stop: data.x}", "{handler: log_event}", x=True)
    assert verdicts == [
        ("wait", "runs", "waits 1d"),
        ("stop", "runs", "data.x is true"),
        ("log_event", "unreached", "step stop ends the run"),
    ]


def test_a_stop_on_an_earlier_step_is_decided_then(explain_steps):
    verdicts, _ = explain_steps(
        CONTACT, "{stop: steps.create_contact.created}", "{handler: log_event}", msisdn="0821234567"
    )
    assert [verdict for _, verdict, _ in verdicts] == ["runs", "depends", "runs"]


def test_a_condition_on_a_name_that_is_not_there_does_not_match_and_names_it(explain):
    (chain,) = explain("  - {name: one, when: data.consent == 1, steps: [{handler: log_event}]}\n", other=1).chains
    assert not chain.matched
    assert chain.clause == "data.consent == 1"
    assert 'has no "consent"' in chain.reason


def test_how_near_a_chain_came_is_told_by_its_distance(explain):
    found = explain(
        "  - {name: here, on: {event_type: done}, steps: [{handler: log_event}]}\n"
        "  - {name: condition, when: data.x == 2, steps: [{handler: log_event}]}\n"
        "  - {name: other, on: {event_type: more}, steps: [{handler: log_event}]}\n"
        "  - {name: far, on: {event_type: more, account: acc2}, steps: [{handler: log_event}]}\n",
        x=1,
    )
    assert [chain.distance for chain in found.chains] == [0, 1, 2, 3]


def test_all_defaults_run_when_nothing_else_matched(explain):
    found = explain(
        "  - {name: one, default: true, steps: [{handler: log_event}]}\n"
        "  - {name: two, default: true, steps: [{handler: log_event}]}\n"
        "  - {name: three, on: {event_type: more}, steps: [{handler: log_event}]}\n"
    )
    assert [chain.matched for chain in found.chains] == [True, True, False]
