"""Expressions and templates: what they read, what they give, and what they say when there is nothing to give."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from dispatcher.events.event import Event
from dispatcher.rules.expressions import (
    EvaluationFailed,
    Path,
    UndefinedValue,
    compile_expression,
    compile_template,
)

DATA = {
    "consent": "yes",
    "name": "anna de wet",
    "age": 17,
    "ratio": 2.0,
    "flag": True,
    "nothing": None,
    "empty": "",
    "language": "zu",
    "phones": ["+27821234567", "+27821234568"],
    "address": {"city": "Durban", "odd key": 1},
    "menu": {"1": "Yes", "2": "No"},
}


def a_scope(**data):
    payload = {**DATA, **data}
    event = Event(
        event_id="e1",
        account_key="acc1",
        conversation_key="c1",
        conversation_type="vxpolls",
        event_type="poll_complete",
        data=payload,
        timestamp=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
    )
    return {
        "event": event,
        "data": payload,
        "steps": {"contact": {"created": True, "msisdn": "+27821234567", "state": "done"}},
        "vars": {"copy": {"en": "Thank you!", "zu": "Siyabonga!"}, "limit": 18},
        "run": {"id": "r1"},
    }


def render(source, **data):
    return compile_template(source).render(a_scope(**data))


def evaluate(source, **data):
    return compile_expression(source).evaluate(a_scope(**data))


def test_text_without_braces_is_a_literal():
    template = compile_template("100% of {people} said #1")
    assert template.is_literal
    assert template.literal == template.render({}) == "100% of {people} said #1"


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ("{{ data.age }}", 17),
        ("{{data.flag}}", True),
        ("{{ data.nothing }}", None),
        ("{{ data.phones }}", DATA["phones"]),
        ("{{ data.address }}", DATA["address"]),
        ("{{- data.age -}}", 17),
        ("{{ data.age + 1 }}", 18),
        ("{{ data.phones[0] }}", "+27821234567"),
        ("{{ {'to': data.phones[1], 'n': 1} }}", {"to": "+27821234568", "n": 1}),
    ],
)
def test_exactly_one_expression_keeps_its_type(source, value):
    assert render(source) == value
    assert type(render(source)) is type(value)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ data.age }} ", "17 "),
        (" {{ data.age }}", " 17"),
        ("{{ data.age }}{{ data.age }}", "1717"),
        ("{% if data.flag %}{{ data.age }}{% endif %}", "17"),
        ("{{ data.flag }}/{{ not data.flag }}", "true/false"),
        ("{{ data.ratio }} {{ data.age / 2 }}", "2.0 8.5"),
        ("it is {{ data.address }}", 'it is {"city":"Durban","odd key":1}'),
        ("it is {{ data.phones }}", 'it is ["+27821234567","+27821234568"]'),
        ("a  {{- data.age -}}  b\n", "a17b\n"),
        ("a{# not shown #}b\n", "ab\n"),
        ("{% raw %}{{ data.age }}{% endraw %}", "{{ data.age }}"),
        ("{% if data.age >= 18 %}adult{% elif data.age > 12 %}teen{% else %}child{% endif %}", "teen"),
        ("Hi {{ data.name | title }}, {{ vars.copy[data.language] }}", "Hi Anna De Wet, Siyabonga!"),
        ("{{ '{{' }} stays", "{{ stays"),
    ],
)
def test_anything_else_becomes_text(source, text):
    assert render(source) == text


def test_data_is_never_rendered_again():
    assert render("{{ data.name }}", name="{{ 7 * 7 }}") == "{{ 7 * 7 }}"
    assert render("Hi {{ data.name }}", name="{% if 1 %}{{ data.age }}") == "Hi {% if 1 %}{{ data.age }}"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("data.adress.city", 'data.adress.city: data has no "adress" (it has: address, age, consent,'),
        ("data.address.town", 'data.address.town: data.address has no "town" (it has: city, odd key)'),
        ("data.name.first", "data.name.first: data.name is text, not an object"),
        ("data.nothing.first", "data.nothing.first: data.nothing is null, not an object"),
        ("data.phones.first", "data.phones.first: data.phones is a list, whose items are numbered"),
        ("data.phones[5]", "data.phones[5]: data.phones has 2 items, so no [5]"),
        ("data.name[0]", "data.name[0]: data.name is text, not a list"),
        ("vars.copy[data.name]", 'vars.copy[data.name]: vars.copy has no "anna de wet" (it has: en, zu)'),
        ("steps.contct.created", 'steps.contct.created: steps has no "contct" (it has: contact)'),
        ("event.nonsense", 'event.nonsense: event has no "nonsense" (it has: account_key,'),
        ("naem", 'naem: there is no name "naem" (there are: data, event, run, steps, vars)'),
        ("data.empty | first", "data.empty | first: the text is empty"),
    ],
)
def test_undefined_value_names_the_path_and_what_was_there(source, message):
    with pytest.raises(UndefinedValue) as caught:
        evaluate(source)
    assert str(caught.value).startswith(message)
    with pytest.raises(UndefinedValue):
        render(f"Hello {{{{ {source} }}}}!")


def test_null_is_refused_in_a_text():
    with pytest.raises(EvaluationFailed, match=r"data\.nothing: the value is null"):
        render("Hello {{ data.nothing }}!")


def test_event_offers_its_envelope_and_nothing_else():
    assert evaluate("event.event_type") == "poll_complete"
    assert evaluate("event.timestamp") == "2026-01-02T03:04:05Z"
    assert evaluate("event.event_data.address.city") == "Durban"
    assert evaluate('event["account_key"]') == "acc1"
    assert evaluate("event").keys() >= {"event_id", "hops"}
    with pytest.raises(UndefinedValue):
        evaluate("event.extra")


def test_paths_are_listed_with_their_offset_and_whether_they_may_be_missing():
    source = 'data.a.b | default(vars.x) == vars.copy[data["language"]] and data.phones[0].c is defined'
    assert compile_expression(source).paths == (
        Path(("data", "a", "b"), 0, guarded=True),
        Path(("vars", "x"), 19),
        Path(("vars", "copy", None), 30),
        Path(("data", "language"), 40),
        Path(("data", "phones", 0, "c"), 62, guarded=True),
    )
    assert compile_template("Hi {{ data.name }}, {{ data.age | string }}").paths == (
        Path(("data", "name"), 6),
        Path(("data", "age"), 23),
    )
