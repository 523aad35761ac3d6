"""Broken rulebooks: each gives exactly one problem, at the very character that the mark stands before.

The mark is "⟦". Where a chain is not the point, it is one that is sound.
"""

from __future__ import annotations

import textwrap

import pytest

MARK = "⟦"

TOP = """\
version: 1
accounts:
  acc1: {region: ZA}
  acc2: {region: KE}
  acc3: {}
vars:
  copy: {en: Thanks, zu: Siyabonga}
  words: [one, two]
events:
  - conversation_type: survey
    event_type: done
    fields: {msisdn: text, name: text, consent: text, answers: object}
senders:
  default: {type: outbox}
services:
  crm: {type: http, base_url: "https://crm.example"}
"""

CHAIN = """\
chains:
  - name: fine
    on: {account: acc1}
    steps: [{handler: log_event}]
"""


def whole(text):
    return textwrap.dedent(text).lstrip("\n")


def section(text):
    """A rulebook with these sections and a sound chain."""
    return "version: 1\n" + whole(text) + CHAIN


def chain(text):
    """A rulebook with the usual sections and this chain, whose first line is its name."""
    return TOP + "chains:\n" + textwrap.indent(whole(text), "  ")


def steps(text, on="{account: acc1, conversation_type: survey, event_type: done}"):
    """A rulebook with the usual sections and a chain with these steps."""
    return chain(f"- name: c\n  on: {on}\n  steps:\n" + textwrap.indent(whole(text), "    "))


# name: (text with the mark, code, suggestion)
BROKEN = {
    # YAML
    "a template without quotes": (
        steps("- handler: opt_out\n  with: {msisdn: ⟦{{ data.msisdn }}}"),
        "yaml_syntax",
        None,
    ),
    "a template without quotes on a line of its own": (
        steps("- handler: opt_out\n  with:\n    msisdn: ⟦{{ data.msisdn }}\n"),
        "yaml_syntax",
        None,
    ),
    "a condition in braces without quotes": (
        chain("- name: c\n  when: ⟦{{ data.consent }}\n  steps: [{handler: log_event}]"),
        "yaml_syntax",
        None,
    ),
    "a text that goes on behind a template": (
        steps("- handler: log_event\n  with:\n    message: ⟦{{ data.name }} is here\n"),
        "yaml_syntax",
        None,
    ),
    "a text that begins with a block": (
        steps("- handler: log_event\n  with:\n    message: ⟦{% if data.name %}hi{% endif %}\n"),
        "yaml_syntax",
        None,
    ),
    "a text that goes on behind its quotes": (
        steps('- handler: log_event\n  with:\n    message: ⟦"Hi" {{ data.name }}\n'),
        "yaml_syntax",
        None,
    ),
    "a text with an apostrophe in single quotes": (
        steps("- handler: log_event\n  with:\n    message: ⟦'it's late'\n"),
        "yaml_syntax",
        None,
    ),
    "a text with a colon": (
        steps("- handler: log_event\n  with:\n    message: ⟦Note: call us\n"),
        "yaml_syntax",
        None,
    ),
    "a text that begins with an at sign": (
        steps("- handler: log_event\n  with:\n    message: ⟦@anna\n"),
        "yaml_syntax",
        None,
    ),
    "a text that begins with a percent sign": (
        steps("- handler: log_event\n  with:\n    message: ⟦%d\n"),
        "yaml_syntax",
        None,
    ),
    "a text that begins with a backtick": (
        steps("- handler: log_event\n  with:\n    message: ⟦`x`\n"),
        "yaml_syntax",
        None,
    ),
    "a text that begins with a star": (
        steps("- handler: log_event\n  with:\n    message: ⟦*bold* words\n"),
        "yaml_syntax",
        None,
    ),
    "a text that begins with a bracket": (
        steps("- handler: log_event\n  with:\n    message: ⟦[name] hi\n"),
        "yaml_syntax",
        None,
    ),
    "a comment inside of braces": (
        steps("- handler: log_event\n  with: {message: Reply ⟦#1 now, level: info}"),
        "yaml_syntax",
        None,
    ),
    "a condition that begins with a quote": (
        chain('- name: c\n  when: ⟦"yes" == data.consent\n  steps: [{handler: log_event}]'),
        "yaml_syntax",
        None,
    ),
    "a tab for indentation": (
        "version: 1\naccounts:\n⟦\tacc1: {}\n" + CHAIN,
        "yaml_syntax",
        None,
    ),
    "a quote that is never closed": (
        steps('- handler: log_event\n  with:\n    message: ⟦"Hi\n'),
        "yaml_syntax",
        None,
    ),
    "a bracket that is never closed": (
        "version: 1\naccounts: ⟦{acc1: {}\n" + CHAIN,
        "yaml_syntax",
        None,
    ),
    "a bracket that is still open at the end of the file": (
        "version: 1\nchains: ⟦[\n",
        "yaml_syntax",
        None,
    ),
    "a key without a space behind its colon": (
        "version: 1\naccounts:\n  acc1:\n    ⟦region:ZA\n    timezone: UTC\n" + CHAIN,
        "yaml_syntax",
        None,
    ),
    "a key that is not indented like its neighbours": (
        chain("- name: c\n  on: {account: acc1}\n ⟦steps: [{handler: log_event}]"),
        "yaml_syntax",
        None,
    ),
    "a backslash in double quotes": (
        steps('- handler: log_event\n  with:\n    message: "a⟦\\d"\n'),
        "yaml_syntax",
        None,
    ),
    "a second document": (
        "version: 1\n" + CHAIN + "⟦---\nversion: 1\n",
        "yaml_syntax",
        None,
    ),
    "a list for a key": (
        "version: 1\nvars:\n  ⟦[a, b]: 1\n" + CHAIN,
        "yaml_syntax",
        None,
    ),
    "a control character": (
        "version: 1\nvars: {a: ⟦\x07}\n" + CHAIN,
        "yaml_syntax",
        None,
    ),
    "thirty levels": (
        "version: 1\nvars:\n  a: " + "[" * 23 + "⟦[" + "[" * 6 + "]" * 30 + "\n" + CHAIN,
        "yaml_syntax",
        None,
    ),
    "an anchor": (
        section("accounts:\n  acc1: ⟦&za {region: ZA}\n"),
        "anchor",
        None,
    ),
    "an alias": (
        steps("- handler: log_event\n  with: ⟦*base"),
        "anchor",
        None,
    ),
    "a merge": (
        steps("- handler: log_event\n  with: {⟦<<: {level: info}}"),
        "anchor",
        None,
    ),
    "a tag": (
        section("vars:\n  number: ⟦!!str 5\n"),
        "anchor",
        None,
    ),
    "a key twice": (
        chain("- name: c\n  on: {account: acc1}\n  ⟦on: {account: acc2}\n  steps: [{handler: log_event}]"),
        "duplicate_key",
        None,
    ),
    "a section twice": (
        "version: 1\naccounts: {}\n⟦accounts: {}\n" + CHAIN,
        "duplicate_key",
        None,
    ),
    "the chains twice": (
        "version: 1\n" + CHAIN + "⟦chains: []\n",
        "duplicate_key",
        None,
    ),
    "a rulebook that is a list": (
        "⟦- version: 1\n",
        "wrong_type",
        None,
    ),
    # the shape
    "no version": (
        "⟦account: acc1\n" + CHAIN.replace("    on: {account: acc1}\n", ""),
        "missing_key",
        None,
    ),
    "another version": (
        "version: ⟦2\n" + CHAIN,
        "bad_value",
        None,
    ),
    "a version that is no number": (
        "version: ⟦one\n" + CHAIN,
        "wrong_type",
        None,
    ),
    "an unknown section": (
        section("⟦account_s:\n  acc1: {}\n"),
        "unknown_key",
        "accounts",
    ),
    "an unknown key of a chain": (
        chain("- name: c\n  ⟦onn: {account: acc1}\n  steps: [{handler: log_event}]"),
        "unknown_key",
        "on",
    ),
    "a misspelt key that is needed": (
        chain("- name: c\n  ⟦stepps: [{handler: log_event}]"),
        "unknown_key",
        "steps",
    ),
    "an unknown key of a trigger": (
        chain("- name: c\n  on: {⟦event: done}\n  steps: [{handler: log_event}]"),
        "unknown_key",
        "event_type",
    ),
    "an unknown key of a step": (
        steps("- handler: log_event\n  ⟦on_eror: continue"),
        "unknown_key",
        "on_error",
    ),
    "a misspelt handler key": (
        steps("- ⟦handlr: log_event"),
        "unknown_key",
        "handler",
    ),
    "a misspelt wait": (
        steps("- ⟦wiat: 1d"),
        "unknown_key",
        "wait",
    ),
    "params of a wait": (
        steps("- wait: 1d\n  ⟦with: {level: info}"),
        "unknown_key",
        None,
    ),
    "an unknown key of retry": (
        steps("- handler: log_event\n  retry: {⟦attemps: 3}"),
        "unknown_key",
        "attempts",
    ),
    "an unknown key of an account": (
        section("accounts:\n  acc1: {⟦regio: ZA}\n"),
        "unknown_key",
        "region",
    ),
    "a key of a chain that is reserved": (
        chain("- name: c\n  ⟦mode: single\n  steps: [{handler: log_event}]"),
        "unknown_key",
        None,
    ),
    "a step that is reserved": (
        steps("- ⟦wait_until: tomorrow"),
        "unknown_key",
        None,
    ),
    "a chain without steps": (
        chain("- ⟦name: c\n  on: {account: acc1}"),
        "missing_key",
        None,
    ),
    "a chain without a name": (
        chain("- ⟦on: {account: acc1}\n  steps: [{handler: log_event}]"),
        "missing_key",
        None,
    ),
    "a step that is nothing": (
        steps("- ⟦id: nothing\n  when: data.consent"),
        "missing_key",
        None,
    ),
    "an event without its type": (
        section("events:\n  - ⟦event_type: done\n"),
        "missing_key",
        None,
    ),
    "a sender without a type": (
        section("senders:\n  ⟦default:\n    from_addr: abc\n"),
        "missing_key",
        None,
    ),
    "a misspelt type of a sender": (
        section("senders:\n  default: {⟦tpye: outbox}\n"),
        "unknown_key",
        "type",
    ),
    "params under a misspelt key": (
        steps('- handler: send_sms\n  ⟦wiht: {to: "{{ data.msisdn }}", text: Hi}'),
        "unknown_key",
        "with",
    ),
    "chains that are a mapping": (
        "version: 1\nchains:\n  ⟦fine: {steps: [{handler: log_event}]}\n",
        "wrong_type",
        None,
    ),
    "a chain that is a text": (
        "version: 1\nchains:\n  - ⟦fine\n",
        "wrong_type",
        None,
    ),
    "steps that are a mapping": (
        chain("- name: c\n  steps: ⟦{handler: log_event}"),
        "wrong_type",
        None,
    ),
    "a step that is a text": (
        steps("- ⟦log_event"),
        "wrong_type",
        None,
    ),
    "a step that is a list": (
        steps("- ⟦[log_event]"),
        "wrong_type",
        None,
    ),
    "a trigger that is a text": (
        chain("- name: c\n  on: ⟦done\n  steps: [{handler: log_event}]"),
        "wrong_type",
        None,
    ),
    "a part of a trigger that is a mapping": (
        chain("- name: c\n  on: {event_type: ⟦{is: done}}\n  steps: [{handler: log_event}]"),
        "wrong_type",
        None,
    ),
    "a condition that is a list": (
        chain("- name: c\n  when: ⟦[data.consent]\n  steps: [{handler: log_event}]"),
        "wrong_type",
        None,
    ),
    "a default that is neither true nor false": (
        chain("- name: c\n  default: ⟦maybe\n  steps: [{handler: log_event}]"),
        "wrong_type",
        None,
    ),
    "attempts that are no number": (
        steps("- handler: log_event\n  retry: {attempts: ⟦many}"),
        "wrong_type",
        None,
    ),
    "a retry that is a number": (
        steps("- handler: log_event\n  retry: ⟦3"),
        "wrong_type",
        None,
    ),
    "params that are a list": (
        steps("- handler: log_event\n  with: ⟦[level, info]"),
        "wrong_type",
        None,
    ),
    "a key without a value": (
        chain("- name: c\n  on:\n    ⟦event_type:\n  steps: [{handler: log_event}]"),
        "wrong_type",
        None,
    ),
    "a sender that is a text": (
        section("senders:\n  default: ⟦outbox\n"),
        "wrong_type",
        None,
    ),
    "an empty list in a trigger": (
        chain("- name: c\n  on: {event_type: ⟦[]}\n  steps: [{handler: log_event}]"),
        "bad_value",
        None,
    ),
    "an empty text in a trigger": (
        chain('- name: c\n  on: {event_type: [done, ⟦""]}\n  steps: [{handler: log_event}]'),
        "bad_value",
        None,
    ),
    "no steps at all": (
        chain("- name: c\n  steps: ⟦[]"),
        "bad_value",
        None,
    ),
    "an unknown way to go on": (
        steps("- handler: log_event\n  on_error: ⟦contineu"),
        "bad_value",
        "continue",
    ),
    "an unknown answer to unknown": (
        steps("- handler: log_event\n  on_unknown: ⟦retry"),
        "bad_value",
        None,
    ),
    "no attempts": (
        steps("- handler: log_event\n  retry: {attempts: ⟦0}"),
        "bad_value",
        None,
    ),
    "an id that no expression can name": (
        steps("- id: ⟦my-step\n  handler: log_event"),
        "bad_value",
        None,
    ),
    "two things in one step": (
        steps("- handler: log_event\n  ⟦wait: 1d"),
        "bad_value",
        None,
    ),
    "a region in small letters": (
        section("accounts:\n  acc1: {region: ⟦za}\n"),
        "bad_value",
        "ZA",
    ),
    "a region that does not exist": (
        section("defaults: {region: ⟦XX}\n"),
        "bad_value",
        None,
    ),
    "a time zone that does not exist": (
        section("accounts:\n  acc1: {timezone: ⟦Africa/Johanesburg}\n"),
        "bad_value",
        "Africa/Johannesburg",
    ),
    "a type of a field that does not exist": (
        section("events:\n  - {conversation_type: a, event_type: b, fields: {x: ⟦txt}}\n"),
        "bad_value",
        "text",
    ),
    "a template in vars": (
        section('vars:\n  greeting: ⟦"Hi {{ data.name }}"\n'),
        "bad_value",
        None,
    ),
    "a trigger outside of the file's account": (
        "version: 1\naccount: acc1\n" + CHAIN.replace("acc1", "⟦acc2"),
        "bad_value",
        "acc1",
    ),
    "a trigger that is a template": (
        chain('- name: c\n  on: {event_type: ⟦"{{ data.x }}"}\n  steps: [{handler: log_event}]'),
        "bad_value",
        None,
    ),
    "an empty condition": (
        chain('- name: c\n  when: ⟦""\n  steps: [{handler: log_event}]'),
        "bad_value",
        None,
    ),
    "an empty name of a handler": (
        steps('- handler: ⟦""'),
        "bad_value",
        None,
    ),
    "params without a handler": (
        steps("- ⟦id: a\n  with: {level: info}\n  retry: {attempts: 2}"),
        "missing_key",
        None,
    ),
    "params that lack one together": (
        steps("- handler: http_request\n  ⟦with:\n    method: GET"),
        "bad_param",
        None,
    ),
    "a chain's name twice": (
        "version: 1\n" + CHAIN + "  - name: ⟦fine\n    steps: [{handler: log_event}]\n",
        "duplicate_name",
        None,
    ),
    "a step's id twice": (
        steps("- {id: a, handler: log_event}\n- {id: ⟦a, handler: log_event}"),
        "duplicate_name",
        None,
    ),
    "an event twice": (
        section("events:\n  - {conversation_type: a, event_type: b}\n  - ⟦{event_type: b, conversation_type: a}\n"),
        "duplicate_name",
        None,
    ),
    "a duration without a unit": (
        steps("- wait: ⟦30"),
        "bad_duration",
        None,
    ),
    "a duration in words": (
        steps("- handler: log_event\n  retry: {for: ⟦one day}"),
        "bad_duration",
        None,
    ),
    "a duration of nothing": (
        section("defaults:\n  retry: {initial: ⟦0s}\n"),
        "bad_duration",
        None,
    ),
    "a template for a duration": (
        steps('- wait: ⟦"{{ data.name }}"'),
        "bad_duration",
        None,
    ),
    "a timeout that is no duration": (
        steps("- handler: log_event\n  timeout: ⟦soon"),
        "bad_duration",
        None,
    ),
    # what is installed
    "an unknown handler": (
        steps("- handler: ⟦send_smss\n  with: {to: x}"),
        "unknown_handler",
        "send_sms",
    ),
    "a control as a handler": (
        steps("- handler: ⟦wait"),
        "unknown_handler",
        None,
    ),
    "a broken handler": (
        steps("- handler: ⟦acme_broken\n  with: {anything: goes}"),
        "broken_handler",
        None,
    ),
    "a broken sender": (
        section("senders:\n  default: {type: ⟦acme_gateway, key: x}\n"),
        "broken_handler",
        None,
    ),
    "an unknown param": (
        steps("- handler: log_event\n  with: {⟦levle: info}"),
        "unknown_param",
        "level",
    ),
    "a misspelt param that is needed": (
        steps('- handler: opt_out\n  with: {⟦msisnd: "{{ data.msisdn }}"}'),
        "unknown_param",
        "msisdn",
    ),
    "a comma in a text without quotes": (
        steps("- handler: log_event\n  with: {message: Hello, ⟦friend}"),
        "unknown_param",
        None,
    ),
    "a param that lacks": (
        steps('- handler: send_sms\n  ⟦with:\n    to: "{{ data.msisdn }}"'),
        "missing_param",
        None,
    ),
    "no params where one is needed": (
        steps("- ⟦handler: opt_out"),
        "missing_param",
        None,
    ),
    "a word that is none of the choices": (
        steps("- handler: log_event\n  with: {level: ⟦warn}"),
        "bad_param",
        "warning",
    ),
    "a template for what is read at load": (
        steps('- handler: log_event\n  with: {level: ⟦"{{ data.name }}"}'),
        "bad_param",
        None,
    ),
    "a template for the name of a sender": (
        steps('- handler: send_sms\n  with: {to: "+27821234567", text: Hi, sender: ⟦"{{ data.name }}"}'),
        "bad_param",
        None,
    ),
    "a literal that is no number": (
        steps("- handler: opt_out\n  with: {msisdn: ⟦hello}"),
        "bad_param",
        None,
    ),
    "a literal number without a region to read it in": (
        steps("- handler: opt_out\n  with: {msisdn: ⟦0821234567}", on="{account: acc3}"),
        "bad_param",
        None,
    ),
    "a literal number that only one of the accounts can read": (
        steps("- handler: opt_out\n  with: {msisdn: ⟦0821234567}", on="{account: [acc1, acc3]}"),
        "bad_param",
        None,
    ),
    "a text that is blank": (
        steps('- handler: send_sms\n  with: {to: "+27821234567", text: ⟦" "}'),
        "bad_param",
        None,
    ),
    "a text that a comment hides": (
        steps('- handler: send_sms\n  with:\n    to: "+27821234567"\n    text:⟦ #1 in town\n'),
        "bad_param",
        None,
    ),
    "a mapping for a text": (
        steps('- handler: send_sms\n  with: {to: "+27821234567", text: ⟦{en: Hi}}'),
        "bad_param",
        None,
    ),
    "an unknown sender": (
        steps('- handler: send_sms\n  with: {to: "+27821234567", text: Hi, sender: ⟦defualt}'),
        "unknown_sender",
        "default",
    ),
    "no default sender": (
        section("")
        .replace("log_event}", 'send_sms, with: {to: "+27821234567", text: Hi}}')
        .replace("{handler: send_sms", "{handler: ⟦send_sms"),
        "unknown_sender",
        None,
    ),
    "an unknown service": (
        steps("- handler: http_request\n  with: {service: ⟦crmm, url: /x}"),
        "unknown_service",
        "crm",
    ),
    "a transport in capitals": (
        section("senders:\n  default: {type: vumi, transport_name: ⟦SMS_transport}\n"),
        "bad_value",
        None,
    ),
    "a worker in capitals": (
        section("services:\n  go: {type: vumi, worker_names: {survey: ⟦Survey_Application}}\n"),
        "bad_value",
        None,
    ),
    "a command through a service of another type": (
        steps("- handler: send_command\n  with: {service: ⟦crm, command: start}"),
        "bad_param",
        None,
    ),
    "a command through no service": (
        steps("- handler: send_command\n  with: {service: ⟦crmm, command: start}"),
        "unknown_service",
        "crm",
    ),
    "a command to a router that nobody names": (
        steps("- handler: send_command\n  ⟦with: {command: start, kwargs: {router_key: r}}"),
        "bad_param",
        None,
    ),
    "an unknown type of a sender": (
        section("senders:\n  default: {type: ⟦outbx}\n"),
        "bad_value",
        "outbox",
    ),
    "an unknown setting of a sender": (
        section("senders:\n  default: {type: outbox, ⟦from_adr: abc}\n"),
        "unknown_key",
        "from_addr",
    ),
    "a setting that a service lacks": (
        section("services:\n  ⟦crm: {type: http}\n"),
        "missing_key",
        None,
    ),
    "a setting of the wrong type": (
        section("senders:\n  default: {type: outbox, concurrency: ⟦many}\n"),
        "wrong_type",
        None,
    ),
    "a rate that is none": (
        section("senders:\n  default: {type: outbox, rate: ⟦fast}\n"),
        "bad_value",
        None,
    ),
    "a variable that is not set": (
        section('services:\n  crm: {type: http, base_url: "https://⟦${CRM_HOST}/"}\n'),
        "env_missing",
        None,
    ),
    "a file that is not there": (
        section('services:\n  crm: {type: http, base_url: "https://x", password: {file: ⟦no/such/file}}\n'),
        "env_missing",
        None,
    ),
    "a reference that is none": (
        section('services:\n  crm: {type: http, base_url: ⟦"https://${1X}/"}\n'),
        "bad_value",
        None,
    ),
    # expressions
    "a condition that does not parse": (
        chain("- name: c\n  when: data.consent = ⟦\n  steps: [{handler: log_event}]").replace("= ⟦", "⟦= 1"),
        "template_syntax",
        "==",
    ),
    "a template that is not closed": (
        steps('- handler: log_event\n  with: {message: "Hi ⟦{{ data.name"}'),
        "template_syntax",
        None,
    ),
    "a condition in braces": (
        chain('- name: c\n  when: "⟦{{ data.consent }}"\n  steps: [{handler: log_event}]'),
        "template_syntax",
        "data.consent",
    ),
    "a filter that does not exist": (
        steps('- handler: log_event\n  with: {message: "Hi {{ data.name | ⟦titel }}"}'),
        "unsafe_template",
        "title",
    ),
    "a call": (
        steps('- handler: log_event\n  with: {message: "{{ data.name.upper⟦() }}"}'),
        "unsafe_template",
        "data.name | upper",
    ),
    "a loop": (
        steps('- handler: log_event\n  with: {message: "{% ⟦for x in data.answers %}{{ x }}{% endfor %}"}'),
        "unsafe_template",
        None,
    ),
    "a template in a key": (
        steps('- handler: emit_event\n  with: {event_type: x, event_data: {"⟦{{ data.name }}": 1}}'),
        "template_syntax",
        None,
    ),
    "a field that no event has, in a condition": (
        chain(
            '- name: c\n  on: {conversation_type: survey, event_type: done}\n  when: ⟦data.consnet == "yes"\n'
            "  steps: [{handler: log_event}]"
        ),
        "undefined_name",
        "data.consent",
    ),
    "a field that no event has, deep in a value": (
        steps('- handler: emit_event\n  with: {event_type: x, event_data: {a: [{b: "to {{ ⟦data.mssidn }}"}]}}'),
        "undefined_name",
        "data.msisdn",
    ),
    "a field behind escapes": (
        steps('- handler: log_event\n  with: {message: "say \\"hi\\" to {{ ⟦data.nam }}"}'),
        "undefined_name",
        "data.name",
    ),
    "a field behind a doubled quote": (
        steps("- handler: log_event\n  with: {message: 'it''s {{ ⟦data.nam }}'}"),
        "undefined_name",
        "data.name",
    ),
    "a field in a text of many lines": (
        steps("- handler: log_event\n  with:\n    message: |\n      Dear all,\n      and {{ ⟦data.nam }}\n"),
        "undefined_name",
        "data.name",
    ),
    "a field in a folded text": (
        steps("- handler: log_event\n  with:\n    message: >\n      Dear\n      all\n      and {{ ⟦data.nam }}\n"),
        "undefined_name",
        "data.name",
    ),
    "a field by way of the envelope": (
        steps('- handler: log_event\n  with: {message: "{{ ⟦event.event_data.nam }}"}'),
        "undefined_name",
        "event.event_data.name",
    ),
    "a part of a text": (
        steps('- handler: log_event\n  with: {message: "{{ ⟦data.name.first }}"}'),
        "undefined_name",
        None,
    ),
    "a name of the envelope that does not exist": (
        steps('- handler: log_event\n  with: {message: "{{ ⟦event.account }}"}'),
        "undefined_name",
        "event.account_key",
    ),
    "a var that does not exist": (
        steps('- handler: log_event\n  with: {message: "{{ ⟦vars.cpoy.en }}"}'),
        "undefined_name",
        "vars.copy",
    ),
    "a part of a var that does not exist": (
        steps('- handler: log_event\n  with: {message: "{{ ⟦vars.copy.sw }}"}'),
        "undefined_name",
        None,
    ),
    "an item of a var that does not exist": (
        steps('- handler: log_event\n  with: {message: "{{ ⟦vars.words[2] }}"}'),
        "undefined_name",
        None,
    ),
    "a name of the run that does not exist": (
        steps('- handler: log_event\n  with: {message: "{{ ⟦run.idd }}"}'),
        "undefined_name",
        "run.id",
    ),
    "a name that is no root": (
        steps('- handler: log_event\n  with: {message: "{{ ⟦now }}"}'),
        "undefined_name",
        None,
    ),
    "a field without its root": (
        steps('- handler: log_event\n  with: {message: "{{ ⟦msisdn }}"}'),
        "undefined_name",
        "data.msisdn",
    ),
    "a result that no handler offers": (
        steps(
            '- {id: contact, handler: create_contact, with: {msisdn: "{{ data.msisdn }}"}}\n'
            '- {handler: log_event, with: {message: "{{ ⟦steps.contact.phon }}"}}'
        ),
        "undefined_name",
        None,
    ),
    "a misspelt result": (
        steps(
            '- {id: contact, handler: create_contact, with: {msisdn: "{{ data.msisdn }}"}}\n'
            "- {handler: log_event, when: ⟦steps.contact.craeted}"
        ),
        "undefined_name",
        "steps.contact.created",
    ),
    "a result of a wait": (
        steps("- {id: pause, wait: 1s}\n- stop: ⟦steps.pause.name"),
        "undefined_name",
        None,
    ),
    "a step that does not exist": (
        steps(
            '- {id: contact, handler: create_contact, with: {msisdn: "{{ data.msisdn }}"}}\n'
            '- {handler: log_event, with: {message: "{{ ⟦steps.contcat.name }}"}}'
        ),
        "unknown_step",
        "steps.contact",
    ),
    "a step that comes later": (
        steps("- {handler: log_event, when: ⟦steps.later.level}\n- {id: later, handler: log_event}"),
        "unknown_step",
        None,
    ),
    "the step itself": (
        steps("- {id: me, handler: log_event, when: ⟦steps.me.level}"),
        "unknown_step",
        None,
    ),
    "a step that does not exist, with a default": (
        steps('- {handler: log_event, with: {message: "{{ ⟦steps.contact.name | default(1) }}"}}'),
        "unknown_step",
        None,
    ),
    "steps in the condition of a chain": (
        chain("- name: c\n  when: ⟦steps.contact.created\n  steps: [{handler: log_event}]"),
        "undefined_name",
        None,
    ),
    "a subject that no event has": (
        section("events:\n  - {conversation_type: a, event_type: b, subject: ⟦data.msisd, fields: {msisdn: text}}\n"),
        "undefined_name",
        "data.msisdn",
    ),
    "a subject in braces": (
        section('events:\n  - {conversation_type: a, event_type: b, subject: "⟦{{ data.msisdn }}"}\n'),
        "template_syntax",
        "data.msisdn",
    ),
    # other files
    "an included file that is not there": (
        "version: 1\ninclude: [⟦more.yaml]\n" + CHAIN,
        "include_missing",
        None,
    ),
    "a file that includes itself": (
        "version: 1\ninclude: ⟦rulebook.yaml\n" + CHAIN,
        "bad_value",
        None,
    ),
    "a folder for a file": (
        "version: 1\ninclude: ⟦.\n" + CHAIN,
        "include_missing",
        None,
    ),
    # advice
    "a comment that ends a text": (
        steps('- handler: send_sms\n  with:\n    to: "+27821234567"\n    text: ⟦Reply #1 now\n'),
        "comment_in_text",
        None,
    ),
    "a comment behind the words of a text": (
        steps('- handler: send_sms\n  with:\n    to: "+27821234567"\n    text: ⟦Reply now # or never\n'),
        "comment_in_text",
        None,
    ),
    "a comment that ends a var": (
        section("vars:\n  greeting: ⟦Hi #friends\n"),
        "comment_in_text",
        None,
    ),
    "a comment that ends a description": (
        chain("- name: c\n  description: ⟦The winners #1\n  steps: [{handler: log_event}]"),
        "comment_in_text",
        None,
    ),
    "an event that leads back to its chain": (
        chain("- name: c\n  on: {event_type: ping}\n  steps: [{handler: emit_event, with: {event_type: ⟦ping}}]"),
        "emit_cycle",
        None,
    ),
    "events that lead back over two chains": (
        chain(
            "- name: c\n  on: {event_type: ping}\n  steps: [{handler: emit_event, with: {event_type: ⟦pong}}]\n"
            "- name: d\n  on: {event_type: pong}\n  steps: [{handler: emit_event, with: {event_type: ping}}]"
        ),
        "emit_cycle",
        None,
    ),
    "a default that emits what nobody handles": (
        chain("- name: c\n  default: true\n  steps: [{handler: emit_event, with: {event_type: ⟦lost}}]"),
        "emit_cycle",
        None,
    ),
    "a condition that never holds": (
        chain("- name: c\n  when: ⟦1 == 2\n  steps: [{handler: log_event}]"),
        "unreachable",
        None,
    ),
    "a step that is always skipped": (
        steps("- {handler: log_event, when: ⟦false}"),
        "unreachable",
        None,
    ),
    "a step behind the end": (
        steps("- stop: true\n- ⟦handler: log_event"),
        "unreachable",
        None,
    ),
    "a default behind a chain that always runs": (
        chain(
            "- name: c\n  on: {account: acc1}\n  steps: [{handler: log_event}]\n"
            "- name: d\n  on: {account: acc1, event_type: done}\n  default: ⟦true\n  steps: [{handler: log_event}]"
        ),
        "unreachable",
        None,
    ),
}


def marked(text):
    """Take the mark out of a text; return the text, and its line and column."""
    before, mark, _ = text.partition(MARK)
    assert mark, "the rulebook has no mark"
    return text.replace(MARK, ""), before.count("\n") + 1, len(before) - before.rfind("\n")


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_rulebook_gives_one_problem_at_its_place(name, check):
    source, code, suggestion = BROKEN[name]
    text, line, column = marked(source)

    found = check(text)

    assert [(p.line, p.column, p.code, p.suggestion) for p in found] == [(line, column, code, suggestion)], [
        str(p) for p in found
    ]
    assert found[0].file == "rulebook.yaml"
    assert found[0].severity == ("warning" if code in ("comment_in_text", "emit_cycle", "unreachable") else "error")


@pytest.mark.parametrize("name", BROKEN)
def test_without_libyaml_the_same_problem_is_told(name, check, monkeypatch):
    source, code, suggestion = BROKEN[name]
    text, line, _ = marked(source)
    monkeypatch.setattr("dispatcher.rules.rulefile._Parser", None)

    assert [(p.line, p.code, p.suggestion) for p in check(text)] == [(line, code, suggestion)]


def test_a_value_of_a_gateway_is_repeated_only_where_nobody_would_write_a_secret(check):
    chains = "chains: [{name: a, steps: [{handler: log_event}]}]\n"
    senders = (
        "a: {type: vumi, transport_name: x, reports: maybe}, b: {type: vumi, transport_name: x, concurrency: s3cret}"
    )
    told = [problem.message for problem in check(f"version: 1\nsenders: {{{senders}}}\n{chains}")]

    assert told == [
        '`reports`: expected true or false, found "maybe"',
        "`concurrency`: expected a whole number, found this value",
    ]
