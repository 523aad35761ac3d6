"""The plan: what chains are bound to, what triggers them, what is pinned, what keeps them from running."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest

from dispatcher.errors import RulebookRefused
from dispatcher.events.event import Event
from dispatcher.plugins.effects import Effect
from dispatcher.rules.expressions import ExpressionError
from dispatcher.rules.plan import RetryPolicy

TOP = """\
version: 1
accounts:
  acc1: {region: ZA}
  acc2: {}
defaults: {retry: {for: 2h, max: 5m}, on_unknown: fail}
vars:
  copy: {en: Thanks, zu: Siyabonga}
  limit: 3
  unused: 1
conversations: {abc: survey}
events:
  - {conversation_type: survey, event_type: done, subject: data.msisdn}
senders:
  default: {type: outbox}
  bulk: {type: vumi, transport_name: sms_transport}
  gateway: {type: http, url: "https://sms.example/send", body: {to: "{to}", text: "{text}"}}
chains:
"""

CONTACT = """\
  - name: thanks
    on: {conversation_type: survey, event_type: done}
    when: data.age > vars.limit
    steps:
      - id: contact
        handler: create_contact
        with: {msisdn: "{{ data.msisdn }}", extra: {n: 5, all: [yes, "{{ data.name }}"]}, if_exists: keep}
        retry: {attempts: 4, max: 1s}
        timeout: 3s
        on_error: continue
      - handler: send_sms
        when: steps.contact.created
        with: {to: "{{ steps.contact.msisdn }}", text: "{{ vars.copy[data.language] }} {{ data.name }}"}
      - wait: 1d
      - stop: data.over
      - handler: send_sms
        with: {to: "0821234567", text: Hi}
"""


def an_event(**fields):
    known = {
        "event_id": "e1",
        "account_key": "acc1",
        "conversation_key": "conv1",
        "conversation_type": "survey",
        "event_type": "done",
        "data": {},
        "timestamp": datetime(2026, 1, 1, tzinfo=UTC),
    }
    return Event(**{**known, **fields})


def triggers(plan, **fields):
    return [chain.name for chain in plan.triggered(an_event(**fields))]


def test_a_chain_is_bound_to_handlers_and_policies(plan):
    (chain,) = plan(TOP + CONTACT, default_region="ZA").chains
    contact, sms, wait, stop, again = chain.steps

    assert [step.id for step in chain.steps] == ["contact", "send_sms", "wait", "stop", "send_sms_2"]
    assert [step.kind for step in chain.steps] == ["handler", "handler", "wait", "stop", "handler"]
    assert [step.position for step in chain.steps] == [0, 1, 2, 3, 4]
    assert contact.handler.__name__ == "CreateContact"
    assert contact.number_params == ("msisdn",)
    assert contact.settled.effect is Effect.TRANSACTION
    assert contact.retry == RetryPolicy(timedelta(hours=2), timedelta(seconds=1), timedelta(seconds=1), 4)
    assert (contact.timeout, contact.on_error, contact.on_unknown) == (timedelta(seconds=3), "continue", "fail")
    assert sms.retry == RetryPolicy(timedelta(hours=2), timedelta(seconds=2), timedelta(minutes=5), None)
    assert sms.settled.connection == "sender:default"
    assert sms.on_error == "stop"
    assert wait.wait == timedelta(days=1)
    assert stop.stop.test({"data": {"over": True}})
    assert again.params.literal
    assert chain.when.test({"data": {"age": 5}, "vars": chain.vars})
    assert chain.vars == {"copy": {"en": "Thanks", "zu": "Siyabonga"}, "limit": 3}


def test_params_are_rendered_with_their_types(plan):
    (chain,) = plan(TOP + CONTACT, default_region="ZA").chains
    scope = {
        "event": an_event(),
        "data": {"msisdn": "+27821234567", "name": "Anna", "language": "zu"},
        "vars": chain.vars,
        "steps": {"contact": {"msisdn": "+27821234567", "created": True, "state": "done"}},
        "run": {},
    }

    contact = chain.steps[0].params.render(scope)

    assert contact == {"msisdn": "+27821234567", "extra": {"n": 5, "all": ["yes", "Anna"]}, "if_exists": "keep"}
    assert chain.steps[1].params.render(scope) == {"to": "+27821234567", "text": "Siyabonga Anna"}
    contact["extra"]["all"].append("changed")
    assert chain.steps[0].params.render(scope)["extra"]["all"] == ["yes", "Anna"]


def test_a_param_without_a_value_is_named(plan):
    (chain,) = plan(TOP + CONTACT, default_region="ZA").chains

    with pytest.raises(ExpressionError, match=r'param "msisdn": data\.msisdn: data has no "msisdn"'):
        chain.steps[0].params.render({"data": {"name": "Anna"}})


def test_a_trigger_is_any_combination_of_what_it_lists(plan):
    loaded = plan(
        TOP
        + """\
  - {name: every, steps: [{handler: log_event}]}
  - {name: kind, on: {conversation_type: [survey, poll]}, steps: [{handler: log_event}]}
  - {name: both, on: {account: [acc1, acc2], event_type: [done, begun]}, steps: [{handler: log_event}]}
  - {name: talk, on: {conversation: conv1, event_type: done}, steps: [{handler: log_event}]}
  - {name: rest, on: {account: acc1}, default: true, steps: [{handler: log_event}]}
"""
    )

    assert triggers(loaded) == ["every", "kind", "both", "talk", "rest"]
    assert triggers(loaded, conversation_type="menu", event_type="begun") == ["every", "both", "rest"]
    assert triggers(loaded, account_key="acc3", conversation_key="conv2") == ["every", "kind"]
    assert triggers(loaded, account_key="acc3", conversation_type="x", event_type="y") == ["every"]


def test_an_event_whose_type_is_not_known_triggers_only_chains_that_leave_it_open(plan):
    loaded = plan(
        TOP
        + """\
  - {name: kind, on: {conversation_type: survey}, steps: [{handler: log_event}]}
  - {name: open, on: {event_type: done}, steps: [{handler: log_event}]}
"""
    )

    assert triggers(loaded, conversation_type=None) == ["open"]


def test_a_trigger_with_very_long_lists_works_like_any_other(plan):
    long = ", ".join(f"t{number}" for number in range(300))
    loaded = plan(
        TOP
        + f"""\
  - {{name: first, on: {{event_type: t7}}, steps: [{{handler: log_event}}]}}
  - {{name: long, on: {{conversation_type: [{long}], event_type: [{long}]}}, steps: [{{handler: log_event}}]}}
  - {{name: last, on: {{event_type: t7}}, steps: [{{handler: log_event}}]}}
"""
    )

    assert triggers(loaded, conversation_type="t299", event_type="t7") == ["first", "long", "last"]
    assert triggers(loaded, conversation_type="t300", event_type="t7") == ["first", "last"]


def test_the_account_of_a_file_scopes_its_chains(plan):
    chain = "chains: [{name: %s, on: {event_type: done}, steps: [{handler: log_event}]}]\n"

    loaded = plan(
        "version: 1\naccount: acc1\ninclude: [two.yaml, all.yaml]\n" + chain % "one",
        files={"two.yaml": "account: acc2\n" + chain % "two", "all.yaml": chain % "all"},
    )

    assert triggers(loaded, account_key="acc1") == ["one", "all"]
    assert triggers(loaded, account_key="acc2") == ["two", "all"]


def test_the_region_is_the_account_s_then_the_default_s_then_the_process_s(plan):
    loaded = plan("version: 1\naccounts: {a: {region: KE}, b: {}}\n", default_region="GB")

    assert (loaded.region("a"), loaded.region("b"), loaded.region("c")) == ("KE", "GB", "GB")
    assert plan("version: 1\ndefaults: {region: ZA}\n", default_region="GB").region("c") == "ZA"
    assert plan("version: 1\n").region("c") is None


def test_the_subject_and_the_type_of_a_conversation_are_known(plan):
    loaded = plan(TOP.replace("chains:\n", ""))

    assert loaded.subject_of("survey", "done").evaluate({"data": {"msisdn": "1"}}) == "1"
    assert loaded.subject_of("survey", "begun") is None
    assert loaded.conversations == {"abc": "survey"}


def test_a_chain_is_restored_from_its_text(plan):
    loaded = plan(TOP + CONTACT, default_region="ZA")
    (chain,) = loaded.chains

    restored = plan("version: 1\nsenders: {default: {type: outbox}}\n", default_region="ZA").restore(chain.text)

    assert restored.text == chain.text
    assert restored.digest == chain.digest
    assert loaded.by_digest[chain.digest] is chain
    assert restored.vars == chain.vars
    assert [(s.id, s.kind, s.retry, s.timeout, s.on_error, s.on_unknown, s.wait) for s in restored.steps] == [
        (s.id, s.kind, s.retry, s.timeout, s.on_error, s.on_unknown, s.wait) for s in chain.steps
    ]
    assert restored.when.source == chain.when.source
    assert (restored.conversation_type, restored.event_type) == (("survey",), ("done",))
    assert not restored.default


@pytest.mark.parametrize(
    "value",
    [
        "no",
        "0123",
        "+27821234567",
        "1:30",
        "1.0",
        '"5"',
        "5",
        "-5",
        "1.5",
        "1e3",
        "null",
        "~",
        "true",
        '"true"',
        '""',
        "{a: [1, b, {c: null}]}",
        r'"\u0001 \u263a {\\"',
        "'{{ data.x }}'",
        '"{{ data.x }} and #"',
    ],
)
def test_values_survive_being_pinned(value, plan):
    loaded = plan(
        "version: 1\nchains: [{name: c, steps: [{handler: emit_event, with: {event_type: x, event_data: {v: "
        f"{value}" + "}}}]}]\n"
    )
    (chain,) = loaded.chains
    scope = {"data": {"x": [1]}}

    restored = loaded.restore(chain.text)

    assert restored.text == chain.text
    assert repr(restored.steps[0].params.render(scope)) == repr(chain.steps[0].params.render(scope))


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("no", "no"),
        ("on", "on"),
        ("0123", "0123"),
        ("+27821234567", "+27821234567"),
        ("1:30", "1:30"),
        ("0x1F", "0x1F"),
        ("1_000", "1_000"),
        ("2026-01-01", "2026-01-01"),
        ("27821234567", 27821234567),
        ("-1", -1),
        ("0", 0),
        ("1.50", 1.5),
        (".5", 0.5),
        ("1e3", 1000.0),
        ("12345678901234567890", "12345678901234567890"),
        ("1e999", "1e999"),
        (".inf", ".inf"),
        ("true", True),
        ("True", True),
        ("yes", "yes"),
        ("null", None),
        ("~", None),
        ('"null"', "null"),
        ("'5'", "5"),
    ],
)
def test_free_values_are_typed_as_yaml_1_2_core_but_for_numbers_of_people(written, meant, plan):
    (chain,) = plan(
        "version: 1\nvars: {v: "
        + written
        + '}\nchains: [{name: c, steps: [{handler: log_event, with: {message: "{{ vars.v | default(1) }}"}}]}]\n'
    ).chains

    assert chain.vars["v"] == meant
    assert type(chain.vars["v"]) is type(meant)


def test_the_digest_stands_for_what_a_chain_does_and_nothing_else(plan):
    def digest(text):
        return plan(text, default_region="ZA").chains[0].digest

    chain = TOP + CONTACT

    assert digest(chain) == digest(chain.replace("    on:", "    description: Thanks.\n    on:"))
    assert digest(chain) == digest("# moved\n" + chain.replace("unused: 1", "unused: 2"))
    assert digest(chain) != digest(chain.replace("limit: 3", "limit: 4"))
    assert digest(chain) != digest(chain.replace("for: 2h", "for: 3h"))
    assert digest(chain) != digest(chain.replace("text: Hi", "text: Ho"))
    assert digest(chain) != digest(chain.replace("version: 1", "version: 1\naccount: acc1"))


def test_the_digest_of_the_rulebook_changes_with_what_is_around_the_chains(plan):
    assert plan(TOP.replace("chains:\n", "")).digest == plan(TOP.replace("chains:\n", "# x\n")).digest
    assert (
        plan(TOP.replace("chains:\n", "")).digest
        != plan(TOP.replace("abc: survey", "abc: poll").replace("chains:\n", "")).digest
    )


def test_a_chain_whose_handler_is_gone_cannot_be_restored(plan):
    loaded = plan(TOP + CONTACT, default_region="ZA")
    document = json.loads(loaded.chains[0].text)
    document["steps"][0]["handler"] = "gone"

    with pytest.raises(RulebookRefused) as refused:
        loaded.restore(json.dumps(document))

    assert [p.code for p in refused.value.problems] == ["unknown_handler"]
    assert "thanks" in refused.value.problems[0].file


def test_a_broken_handler_disables_the_chains_that_use_it_and_no_others(plan):
    loaded = plan(
        TOP
        + """\
  - {name: bad, steps: [{handler: acme_broken, with: {x: 1}}, {handler: log_event}]}
  - {name: good, steps: [{handler: log_event}]}
"""
    )

    assert [chain.name for chain in loaded.chains] == ["good"]
    assert triggers(loaded) == ["good"]
    assert list(loaded.disabled) == ["bad"]
    assert "acme 1.0: ImportError" in loaded.disabled["bad"]


def test_a_broken_sender_disables_the_chains_that_use_it_and_no_others(plan):
    sms = '{handler: send_sms, with: {to: "+27821234567", text: Hi, sender: %s}}'
    loaded = plan(
        TOP.replace("bulk:", "odd: {type: acme_gateway}\n  bulk:")
        + f"  - {{name: bad, steps: [{sms % 'odd'}]}}\n  - {{name: good, steps: [{sms % 'default'}]}}\n"
    )

    assert [chain.name for chain in loaded.chains] == ["good"]
    assert list(loaded.disabled) == ["bad"]


def test_a_chain_may_send_through_vumi(plan):
    loaded = plan(
        TOP + '  - {name: c, steps: [{handler: send_sms, with: {to: "+27821234567", text: Hi, sender: bulk}}]}\n'
    )

    settled = loaded.chains[0].steps[0].settled

    assert (settled.effect, settled.connection) == (Effect.TRANSACTION, "sender:bulk")


def test_a_sender_settles_the_effect_of_its_steps(plan):
    loaded = plan(
        TOP + '  - {name: c, steps: [{handler: send_sms, with: {to: "+27821234567", text: Hi, sender: gateway}}]}\n'
    )

    settled = loaded.chains[0].steps[0].settled

    assert (settled.effect, settled.connection) == (Effect.CALL, "sender:gateway")


def test_secrets_come_from_the_environment_and_from_files(plan):
    loaded = plan(
        """\
version: 1
services:
  a: {type: http, base_url: "${HOST:https://default.example}", password: {file: secrets/pass}}
  b: {type: http, base_url: "https://${NAME}.example/$${NAME}"}
""",
        environ={"NAME": "crm", "HOST": ""},
        files={"secrets/pass": "s3cret\n"},
    )

    assert loaded.services["a"].base_url == "https://default.example"
    assert loaded.services["a"].password.get_secret_value() == "s3cret"
    assert loaded.services["b"].base_url == "https://crm.example/${NAME}"
    assert "s3cret" not in repr(loaded.services)


def test_warnings_do_not_keep_a_rulebook_from_running(plan):
    loaded = plan(TOP + "  - {name: c, when: 1 == 2, steps: [{handler: log_event}]}\n")

    assert [p.code for p in loaded.warnings] == ["unreachable"]


def test_chains_share_steps_of_the_same_content(plan):
    steps = 'steps: [{handler: opt_out, with: {msisdn: "{{ data.m }}"}}]'

    one, two = plan(
        TOP + "".join(f"  - {{name: {name}, on: {{event_type: {name}}}, {steps}}}\n" for name in "ab")
    ).chains

    assert one.steps[0] is two.steps[0]
    assert one.digest != two.digest
