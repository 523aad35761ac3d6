"""Rulebooks that are sound although they look odd, and what is told when several things are wrong at once."""

from __future__ import annotations

import json

import pytest

from dispatcher.errors import RulebookRefused

HEAD = """\
version: 1
events:
  - {conversation_type: survey, event_type: done, fields: {msisdn: text, name: text}}
senders:
  default: {type: outbox}
vars:
  copy: {en: Thanks, zu: Siyabonga}
chains:
"""

DESIGN = """\
version: 1
account: acc1                        # optional: scopes every chain of this file
accounts:                            # what holds for an account
  acc1: {region: ZA, timezone: Africa/Johannesburg}
vars:
  copy: {en: "Thank you!", zu: "Siyabonga!"}   # text: "{{ vars.copy[data.language] }}"
conversations:                       # only for events that carry no type
  a6a20571e77f4aa89a8b10a771b005bc: survey
events:
  - {conversation_type: vxpolls, event_type: poll_complete, subject: data.msisdn,
     fields: {msisdn: text, name: text, consent: text}}
senders:
  default: {type: outbox}            # embedded: kept in the store
  bulk: {type: vumi, transport_name: sms_transport, from_addr: "+27821230000", rate: 30/s}
services:
  crm: {type: http, base_url: "https://crm.example", headers: {Authorization: "Bearer ${CRM_TOKEN}"}, concurrency: 8}
defaults:
  retry: {for: 24h, initial: 2s, max: 10m}     # exponential, jittered
chains:
  - name: welcome
    description: Thank people who finish the poll and gave consent.
    on: {conversation_type: vxpolls, event_type: poll_complete}   # each a string, a list, or absent
    when: data.consent == "yes"
    steps:
      - id: contact
        handler: create_contact
        with: {msisdn: "{{ data.msisdn }}", name: "{{ data.name | title }}"}
      - handler: send_sms
        when: steps.contact.created
        with: {to: "{{ steps.contact.msisdn }}", text: "Thanks {{ steps.contact.name }}!", sender: bulk}
        retry: {attempts: 8, max: 1h}
        on_error: continue           # stop (default) | continue
      - wait: 1d
      - stop: steps.contact.state != "done"    # ends the run as done when the expression holds
      - handler: emit_event
        with: {event_type: welcome_sent, event_data: {msisdn: "{{ data.msisdn }}"}}
  - name: nobody-listens
    default: true                    # runs when no ordinary chain in its scope matched
    on: {account: acc1}
    steps: [{handler: log_event, with: {level: warning}}]
"""


def a_chain(steps, head="on: {conversation_type: survey, event_type: done}"):
    rows = "\n".join("      " + row for row in steps.strip("\n").split("\n"))
    return f"{HEAD}  - name: c\n    {head}\n    steps:\n{rows}\n"


def test_the_rulebook_of_the_design_is_sound(check):
    assert check(DESIGN, environ={"CRM_TOKEN": "secret"}) == []


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param('- {handler: log_event, with: {message: "{{ data.nick | default(data.name) }}"}}', id="default"),
        pytest.param('- {handler: log_event, when: data.nick is defined and data.nick == "a"}', id="is defined"),
        pytest.param('- {handler: log_event, with: {message: "{{ vars.copy[data.name] }}"}}', id="dynamic key"),
        pytest.param("- {id: a, wait: 1s}\n- {handler: log_event, when: steps.a.state == 'done'}", id="state"),
        pytest.param("- handler: log_event\n- {handler: log_event, when: steps.log_event.level}", id="handler's name"),
        pytest.param(
            "- handler: log_event\n- handler: log_event\n- {handler: log_event, when: steps.log_event_2.level}",
            id="handler's name with a number",
        ),
        pytest.param("- handler: log_event\n  with:\n  retry: {attempts: 3}", id="nothing under with"),
        pytest.param("- handler: log_event\n  with: {message: no}", id="no means no"),
        pytest.param("- handler: opt_out\n  with: {msisdn: +27821234567}", id="a number without quotes"),
        pytest.param('- handler: send_sms\n  with: {to: "+27821234567", text: "Reply #1 now"} # all', id="quoted #"),
        pytest.param("- handler: log_event # loudly, please\n  on_error: continue # stop", id="comments"),
        pytest.param("- handler: log_event\n  with:\n    level: info # or warning", id="comment behind a setting"),
        pytest.param("- handler: log_event\n  with:\n    message: Hello # or Hi", id="comment behind one word"),
        pytest.param("- handler: log_event\n  with: {message: \"{{ '{{' }}\"}", id="a literal from braces"),
    ],
)
def test_this_is_no_mistake(steps, check):
    assert [str(p) for p in check(a_chain(steps))] == []


def test_names_are_not_checked_against_events_that_are_not_listed(check):
    assert check(a_chain('- {handler: log_event, when: data.anything == "x"}', "on: {event_type: done}")) == []


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda text: "\ufeff" + text, id="byte order mark"),
        pytest.param(lambda text: text.replace("\n", "\r\n"), id="CRLF"),
        pytest.param(lambda text: "---\n" + text + "...\n", id="document marks"),
        pytest.param(lambda text: "# only words\n\n" + text, id="comments first"),
        pytest.param(lambda text: text.replace("vars:", "accounts:\nvars:"), id="a section with nothing in it"),
    ],
)
def test_a_file_may_be_saved_like_this(change, check):
    assert check(change(a_chain("- handler: log_event"))) == []


def test_a_rulebook_may_be_json(check):
    chain = {"name": "c", "on": {"event_type": "done"}, "steps": [{"handler": "log_event", "with": {"level": "info"}}]}

    assert check(json.dumps({"version": 1, "chains": [chain]}, indent=2)) == []


def test_an_empty_file_lacks_its_version(check):
    assert [(p.code, p.line) for p in check("")] == [("missing_key", 1)]


@pytest.mark.parametrize(
    ("content", "line", "column"),
    [
        pytest.param(b"version: 1\nvars: {a: caf\xe9}\n", 2, 14, id="latin-1"),
        pytest.param("version: 1\n".encode("utf-16"), 1, 1, id="UTF-16"),
        pytest.param(b"version: 1\n# \xe2\x82", 2, 3, id="cut in a character"),
    ],
)
def test_a_file_that_is_not_utf_8_is_refused_at_the_byte(content, line, column, check):
    (found,) = check(content)

    assert (found.code, found.line, found.column) == ("yaml_syntax", line, column)


def test_a_rulebook_that_is_not_there_is_one_problem(registry, tmp_path, monkeypatch):
    from dispatcher.rules.plan import check_rulebook

    monkeypatch.chdir(tmp_path)

    (missing,) = check_rulebook(["none.yaml"], registry)
    (folder,) = check_rulebook(["."], registry)

    assert (missing.file, missing.line, missing.code) == ("none.yaml", 1, "include_missing")
    assert "no such file" in missing.message
    assert "folder" in folder.message


def test_all_problems_are_told_at_once_in_the_order_of_the_file(check):
    text = (
        HEAD
        + """\
  - name: a
    wehn: data.name
    on: {conversation_type: survey, event_type: done}
    steps:
      - handler: send_sm
        with: {to: "{{ data.mssidn }}", text: "{{ data.name | }}"}
      - handler: log_event
        with: {level: warn, mesage: Hi}
        on_error: proceed
        retry: {for: soon, attempts: x}
  - name: a
    steps: [{wait: 1 day}, {stop: steps.b.c}]
  - steps: [{handler: log_event}]
"""
    )
    found = check(text)

    assert [(p.line, p.code) for p in found] == [
        (10, "unknown_key"),
        (13, "unknown_handler"),
        (14, "undefined_name"),
        (14, "template_syntax"),
        (16, "bad_param"),
        (16, "unknown_param"),
        (17, "bad_value"),
        (18, "bad_duration"),
        (18, "wrong_type"),
        (19, "duplicate_name"),
        (20, "bad_duration"),
        (20, "unknown_step"),
        (21, "missing_key"),
    ]
    assert str(found[1]) == (
        'rulebook.yaml:13:18: unknown_handler: no handler "send_sm" is installed; '
        "`dispatcher handlers` lists those that are. Did you mean 'send_sms'?"
    )


@pytest.mark.parametrize(
    ("text", "codes"),
    [
        pytest.param("vras:\n  a: 1\n", ["unknown_key"], id="a misspelt section is not missed where it is used"),
        pytest.param("senders: [default]\nvars: {a: 1}\n", ["wrong_type"], id="nor one of the wrong type"),
        pytest.param("include: none.yaml\n", ["include_missing"], id="nor what a missing file may define"),
    ],
)
def test_one_mistake_in_a_section_is_not_told_again_where_it_is_used(text, codes, check):
    chain = 'chains: [{name: c, steps: [{handler: send_sms, with: {to: "{{ data.x }}", text: "{{ vars.a }}"}}]}]\n'

    assert [p.code for p in check("version: 1\n" + text + chain)] == codes


def test_what_stands_in_front_of_a_syntax_error_is_checked_too(check):
    text = (
        HEAD.replace("outbox", "outbix")
        + """\
  - name: a
    steps: [{handler: log_evnt}]
  - name: b
    steps:
      - handler: log_event
        with: {message: "x" y}
"""
    )
    assert [(p.line, p.code) for p in check(text)] == [(5, "bad_value"), (10, "unknown_handler"), (14, "yaml_syntax")]


def test_a_field_with_a_mistake_in_its_type_is_a_field(check):
    text = a_chain('- {handler: log_event, with: {message: "{{ data.name }}"}}').replace("name: text", "name: txt")

    assert [p.code for p in check(text)] == ["bad_value"]


def test_a_step_whose_id_is_misspelt_can_still_be_referred_to(check):
    text = a_chain("- {idd: contact, handler: log_event}\n- {handler: log_event, when: steps.contact.level}")

    assert [p.code for p in check(text)] == ["unknown_key"]


def test_an_unknown_handler_is_told_once_and_not_where_its_result_is_used(check):
    text = a_chain("- handler: log_evnt\n- {handler: log_event, when: steps.log_event.level == 'info'}")

    assert [p.code for p in check(text)] == ["unknown_handler"]


def test_strict_makes_errors_of_warnings(check):
    text = a_chain("- {handler: log_event, when: 1 == 2}")

    assert [p.severity for p in check(text)] == ["warning"]
    assert [p.severity for p in check(text, strict=True)] == ["error"]


def test_included_files_are_relative_to_the_including_one_and_problems_name_them_as_included(check):
    text = HEAD.replace("chains:\n", "include: [more/*.yaml, last.yaml]\n")
    files = {
        "more/b.yaml": "chains: [{name: b, steps: [{handler: log_evnt}]}]\n",
        "more/a.yaml": "include: deep/x.yaml\nchains: [{name: a, steps: [{handler: log_event}]}]\n",
        "more/deep/x.yaml": "chains: [{name: a, steps: [{handler: log_event}]}]\n",
        "last.yaml": "version: 2\nchains: [{name: last, steps: [{handler: send_sms}]}]\n",
    }

    found = check(text, files=files)

    assert [(p.file, p.code) for p in found] == [
        ("more/deep/x.yaml", "duplicate_name"),
        ("more/b.yaml", "unknown_handler"),
        ("last.yaml", "bad_value"),
        ("last.yaml", "missing_param"),
        ("last.yaml", "missing_param"),
    ]
    assert "more/a.yaml, line 2" in found[0].message


def test_files_that_include_each_other_are_refused(check):
    files = {"a.yaml": "include: b.yaml\n", "b.yaml": "include: a.yaml\n"}

    (found,) = check("version: 1\ninclude: a.yaml\n", files=files)

    assert (found.file, found.code) == ("b.yaml", "bad_value")
    assert "includes itself" in found.message


def test_a_file_that_two_files_include_is_read_once(check):
    files = {
        "a.yaml": "include: shared.yaml\n",
        "b.yaml": "include: shared.yaml\n",
        "shared.yaml": "senders: {default: {type: outbox}}\n",
    }

    assert check("version: 1\ninclude: [a.yaml, b.yaml]\n", files=files) == []


def test_a_name_that_two_files_define_is_refused(check):
    files = {"a.yaml": "senders:\n  default: {type: outbox}\nvars: {copy: 1}\naccounts: {acc1: {}}\n"}

    found = check(HEAD.replace("chains:\n", "include: a.yaml\n") + "accounts: {acc1: {}}\n", files=files)

    assert [(p.file, p.code) for p in found] == [("a.yaml", "duplicate_name")] * 3


def test_no_message_repeats_what_came_from_the_environment_or_from_a_file(check):
    text = """\
version: 1
senders:
  default: {type: outbox, concurrency: "${SECRET}"}
services:
  crm: {type: http, base_url: {file: secret.txt}}
"""
    found = check(text, environ={"SECRET": "hunter2!"}, files={"secret.txt": "no url at all\n"})

    assert [p.code for p in found] == ["wrong_type", "bad_value"]
    assert not any("hunter2" in str(p) or "no url" in str(p) for p in found)


def test_random_damage_is_always_told_as_problems(check):
    import random

    chance = random.Random(7)
    signs = [
        *"{}[]:,#&*!|>'\"%@`\n\t -?",
        "{{",
        "}}",
        "{%",
        "<<: ",
        "null",
        "- ",
        "  ",
        "\x00",
        "${X}",
        "data.",
        "with: ",
    ]
    for _ in range(300):
        text = DESIGN
        for _ in range(chance.choice([1, 2, 4])):
            start = chance.randrange(len(text))
            end = min(len(text), start + chance.choice([0, 1, 3, 20]))
            text = text[:start] + chance.choice(signs) + text[end:]
        for problem in check(text):
            assert problem.line >= 1
            assert problem.column >= 1


def test_run_refuses_a_rulebook_with_all_of_its_problems(plan):
    with pytest.raises(RulebookRefused) as refused:
        plan("version: 2\nchains: [{name: c, steps: [{handler: nope}]}]\n")

    assert [p.code for p in refused.value.problems] == ["bad_value", "unknown_handler"]


def test_every_chain_whose_event_leads_straight_back_is_told(check):
    chain = "  - {name: %s, on: {event_type: ping}, steps: [{handler: emit_event, with: {event_type: ping}}]}\n"

    assert [(p.line, p.code) for p in check(HEAD + chain % "a" + chain % "b")] == [
        (9, "emit_cycle"),
        (10, "emit_cycle"),
    ]


def test_an_emitted_event_of_another_account_or_type_leads_nowhere(check):
    text = (
        HEAD
        + """\
  - name: a
    on: {account: acc1, conversation_type: survey, event_type: ping}
    steps:
      - {handler: emit_event, with: {event_type: ping, account: acc2}}
      - {handler: emit_event, with: {event_type: ping, conversation_type: menu}}
      - {handler: emit_event, with: {event_type: "{{ data.next }}"}}
  - {name: b, default: true, steps: [{handler: emit_event, with: {event_type: ping, conversation_type: survey}}]}
  - {name: c, on: {event_type: ping}, steps: [{handler: log_event}]}
"""
    )
    assert [str(p) for p in check(text)] == []


def test_json_may_write_a_character_as_two_escapes(plan):
    text = json.dumps(
        {
            "version": 1,
            "vars": {"smile": "\N{GRINNING FACE}", "path": "\\ud83d\\ude00"},
            "chains": [
                {
                    "name": "c",
                    "steps": [{"handler": "log_event", "with": {"message": "{{ vars.smile }}{{ vars.path }}"}}],
                }
            ],
        }
    )
    assert "\\ud83d" in text

    (chain,) = plan(text).chains
    assert chain.vars == {"smile": "\N{GRINNING FACE}", "path": "\\ud83d\\ude00"}


@pytest.mark.parametrize("half", [r"\ud83d", r"\ude00", r"\ude00\ud83d", r"\ud83d\\ude00"])
def test_json_with_half_a_character_is_refused(half, check):
    assert [(p.line, p.code) for p in check('{"version": 1,\n "vars": {"a": "' + half + '"}}')] == [(2, "yaml_syntax")]


def test_what_stands_in_two_files_is_told_in_plain_words(check):
    other = "accounts:\n  acc1: {region: ZA}\nevents:\n  - {conversation_type: a, event_type: b}\n"

    found = check("version: 1\ninclude: [b.yaml]\n" + other, files={"b.yaml": other})

    assert [p.message for p in found] == [
        'there is an account "acc1" already, in rulebook.yaml, line 4',
        'there is an entry for the event "a b" already, in rulebook.yaml, line 6',
    ]


@pytest.mark.parametrize("opening", ["[", "{a: ", "- "])
def test_a_file_nested_without_end_is_refused_at_once(opening, check):
    assert [p.code for p in check("vars:\n  a: " + opening * 100_000)][-1:] == ["yaml_syntax"]
