"""Sources and data that mean harm: each is refused at load, or fails in bounded time and memory."""

from __future__ import annotations

import time
import tracemalloc

import pytest

from dispatcher.rules.expressions import (
    EvaluationFailed,
    ExpressionError,
    TemplateProblem,
    compile_expression,
    compile_template,
)

# Far above what any of these takes (a few milliseconds), far below what a bomb would take.
SECONDS = 1.0
BYTES = 32 * 1024 * 1024

BIG = "a" * 1_000_000
SCOPE = {
    "data": {
        "text": "abc",
        "n": 3,
        "huge": 2**62,
        "big": BIG,
        "list": [1, 2],
        "long": list(range(9_000)),
        "longer": list(range(200_000)),
        "spaces": " " * 60_000,
        "wide": "\N{LATIN SMALL LETTER SHARP S}" * 30_000,
    },
    "vars": {},
    "steps": {},
    "run": {},
}

ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''['__class__']['__mro__'] }}",
    "{{ data.__class__.__init__.__globals__ }}",
    "{{ data.text.__class__ }}",
    "{{ data['__cla' ~ 'ss__'] }}",
    "{{ data.text | attr('__class__') }}",
    "{{ data.text | attr('upper')() }}",
    "{{ '{0.__class__}'.format(data) }}",
    "{{ '{0.__class__}' | format(data) }}",
    "{{ '%s' % data }}",
    "{{ '%s' | format(data) }}",
    "{{ 'x'.format_map(data) }}",
    "{{ data.text.upper() }}",
    "{{ data.items() }}",
    "{{ self.__init__.__globals__ }}",
    "{{ self._TemplateReference__context }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ joiner.__init__.__globals__ }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ lipsum.__globals__['os'].popen('id').read() }}",
    "{{ lipsum(100000) }}",
    "{{ range(1000000000) }}",
    "{{ range(1000000000) | list }}",
    "{{ dict(a=1) }}",
    "{{ cycler('a', 'b') }}",
    "{{ namespace(a=1) }}",
    "{{ get_flashed_messages.__globals__ }}",
    "{{ config.__class__.from_envvar.__globals__ }}",
    "{{ request.application.__globals__ }}",
    "{{ [].__class__.__base__ }}",
    "{{ ().__class__.__bases__[0] }}",
    "{{ data | map(attribute='__class__') | list }}",
    "{{ [data] | map('attr', '__class__') | list }}",
    "{{ [data] | selectattr('__class__') | list }}",
    "{{ [data] | groupby('__class__') }}",
    "{{ [data] | sort(attribute='__class__') }}",
    "{{ [data] | sum(attribute='__class__') }}",
    "{{ [data] | join(attribute='__class__') }}",
    "{{ data | xmlattr }}",
    "{{ data | pprint }}",
    "{{ data | random }}",
    "{{ data | safe }}",
    "{{ data.text is callable }}",
    "{{ data.text is filter }}",
    "{{ data.text | default(*data.list) }}",
    "{{ data.text | default(**data) }}",
    "{% set x = 1 %}",
    "{% set x %}y{% endset %}",
    "{% for x in data.list %}{{ x }}{% endfor %}",
    "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
    "{% for x in data.list recursive %}{{ loop(data.list) }}{% endfor %}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
    "{% from 'os' import path %}",
    "{% extends 'x' %}",
    "{% block b %}x{% endblock %}",
    "{% filter upper %}x{% endfilter %}",
    "{% call m() %}x{% endcall %}",
    "{% with a = 1 %}x{% endwith %}",
    "{% autoescape true %}x{% endautoescape %}",
]

SYNTAX = [
    "{% do data.x %}",
    "{% while 1 %}{% endwhile %}",
    "{% raw %}x",
    "{{ lambda: 1 }}",
    "{{ x := 1 }}",
    "{{ `id` }}",
]

BOMBS = [
    "{{ 'x' * 200000000 }}",
    "{{ 200000000 * 'x' }}",
    "{{ [1] * 200000000 }}",
    "{{ (1, 2) * 200000000 }}",
    "{{ ('x' ~ 'y') * 200000000 }}",
    "{{ (data.text | upper) * 200000000 }}",
    "{{ data.text * 200000000 }}",
    "{{ data.list * 200000000 }}",
    "{{ data.text | center(200000000) }}",
    "{{ data.text | indent(200000000) }}",
    "{{ data.text | wordwrap(1) }}",
    "{{ '%0200000000d' % 1 }}",
    "{{ '%0200000000d' % data.n }}",
    "{{ data.text % data.n }}",
    "{{ 9**9**9 }}",
    "{{ 9**9**9**9**9 }}",
    "{{ data.huge**data.huge }}",
    "{{ data.n**data.huge }}",
    "{{ 10.0**400 }}",
    "{{ data.huge * data.huge * data.huge }}",
    "{{ 1e999 }}",
    "{{ " + "9" * 5000 + " }}",
    "{{ 0x" + "f" * 5000 + " }}",
    "{{ ('9' * 5000) | int }}",
    "{{ data.big | title }}",
    "{{ data.big ~ data.big }}",
    "{{ data.big + data.big }}",
    "{{ data.big }}{{ data.big }}",
    "{{ data.big | replace('a', 'aaaaaaaaaa') }}",
    "{{ data.text | replace('', data.big) }}",
    "{{ data.spaces | replace(' ', data.spaces) }}",
    "{{ data.spaces | urlencode }}",
    "{{ data.wide | upper | upper }}",
    "{{ data.longer | sort | first }}",
    "{{ data.longer | join(',') }}",
    "{{ data.longer | list }}",
    "{{ data.longer }} ",
    "{{ data.long | join(data.spaces) }}",
    "{{ data.long + data.long }}",
    "{{ data.n | round(999999999) }}",
    "{{ data.text | truncate(5, end=data.big) }}",
    "{{ [" + "data, " * 1000 + "] }}",
    "{{ [" + "data, " * 1000 + "] | string }}",
    "{{ [" + "data.long, " * 500 + "] | unique }}",
    "{{ " + "{'a': " * 40 + "data" + "}" * 40 + " }}x",
    "{{ " + "(" * 100_000 + "1" + ")" * 100_000 + " }}",
    "{{ " + "[" * 30_000 + "]" * 30_000 + " }}",
    "{{ " + "(" * 51 + "1" + ")" * 51 + " }}",
    "{{ " + "not " * 10_000 + "1 }}",
    "{{ " + "-" * 30_000 + "1 }}",
    "{{ " + "- " * 300 + "1 }}",
    "{{ " + "1 if 1 else " * 4_000 + "1 }}",
    "{{ data" + "[data" * 5_000 + "]" * 5_000 + " }}",
    "{{ data.text" + " | upper" * 2_000 + " }}",
    "{{ 1" + " - 1" * 2_000 + " }}",
    "{{ data.text" + " ~ data.text" * 2_600 + " }}",
    "{{ 'a' }}" * 7_000,
    "{% if 1 %}" * 2_000,
    "{% if 1 %}" * 100 + "{% endif %}" * 100,
    "{% if data.n %}" * 60 + "{% endif %}" * 60,
    "{% if 1 %}a" + "{% elif 1 %}b" * 4_000 + "{% endif %}",
    "{{" * 30_000,
    "{{ data.text }}{#" + " {#" * 20_000,
    "{{ 1_" + "1_" * 30_000 + "1 }}",
    "{{ '" + "\\'" * 30_000 + " }}",
    "{{ data.text }}" + " " * 70_000,
    "{%" + " " * 60_000 + "if 1 %}",
    "{{ data." + "a." * 20_000 + "a }}",
]


def outcome(source, compile_, scope=SCOPE):
    """Compile and evaluate within the bounds of time and memory; return the error, or what came out."""
    tracemalloc.start()
    started = time.process_time()
    try:
        compiled = compile_(source)
        result = compiled.render(scope) if hasattr(compiled, "render") else compiled.evaluate(scope)
    except (TemplateProblem, ExpressionError) as error:
        result = error
    took, (_, peak) = time.process_time() - started, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert not isinstance(result, Exception) or len(str(result)) < 1_000
    assert took < SECONDS
    assert peak < BYTES
    return result


@pytest.mark.parametrize("source", ESCAPES)
def test_escapes_from_the_sandbox_are_refused_at_load(source):
    error = outcome(source, compile_template)
    assert isinstance(error, TemplateProblem | ExpressionError)
    if "self" not in source:
        assert isinstance(error, TemplateProblem)
        assert error.code == "unsafe_template"


@pytest.mark.parametrize("source", SYNTAX)
def test_what_is_not_in_the_grammar_is_a_syntax_error(source):
    error = outcome(source, compile_template)
    assert isinstance(error, TemplateProblem)
    assert error.code == "template_syntax"


@pytest.mark.parametrize("source", BOMBS, ids=lambda source: source[:40])
def test_bombs_are_refused_or_stay_small(source):
    result = outcome(source, compile_template)
    if isinstance(result, str):
        assert len(result.encode()) <= 64 * 1024
    elif not isinstance(result, int | float):
        assert isinstance(result, TemplateProblem | ExpressionError)


@pytest.mark.parametrize("source", [source for source in ESCAPES + BOMBS if source.startswith("{{ ")][:80])
def test_conditions_are_guarded_like_values(source):
    inner = source.removeprefix("{{ ").removesuffix(" }}")
    assert isinstance(
        outcome(inner, compile_expression), TemplateProblem | ExpressionError | int | float | str | list | dict
    )


@pytest.mark.parametrize(
    "source",
    [
        "'x' * 2",
        "[1] * 2",
        "'%d' % 1",
        "9**9**9",
        "1 / 0",
        "1 // 0",
        "1 % 0",
        "1e999",
        "'a' < 1",
        "9223372036854775808",
    ],
)
def test_what_can_never_work_is_refused_at_load(source):
    with pytest.raises(TemplateProblem) as caught:
        compile_expression(source)
    assert caught.value.code == "unsafe_template"


def test_a_text_of_64_kib_passes_and_one_byte_more_fails():
    template = compile_template("{{ data.a }}{{ data.b }}")
    assert len(template.render({"data": {"a": "x" * 65_000, "b": "y" * 536}})) == 65_536
    with pytest.raises(EvaluationFailed, match="longer than 64 KiB"):
        template.render({"data": {"a": "x" * 65_000, "b": "y" * 537}})
    with pytest.raises(EvaluationFailed, match="longer than 64 KiB"):
        template.render({"data": {"a": "\N{EURO SIGN}" * 22_000, "b": ""}})


def test_a_value_that_is_only_passed_on_keeps_its_size():
    assert compile_template("{{ data.big }}").render(SCOPE) is BIG


def test_keys_that_look_like_python_are_plain_keys_of_data():
    scope = {"data": {"items": 1, "keys": 2, "get": 3, "class": 4, "_x": 5, "__typename": 6}}
    assert compile_expression("[data.items, data.keys, data.get, data.class, data._x, data.__typename]").evaluate(
        scope
    ) == [1, 2, 3, 4, 5, 6]


def test_nul_and_lone_surrogates_are_refused_wherever_they_hide():
    for source in ("a\0b", "a\ud800b {{ data.x }}", '{{ "\\x00" }}', '{{ "\\ud83d" }}'):
        with pytest.raises(TemplateProblem):
            compile_template(source)
