"""What is said at load about a source that is refused, and where it points."""

from __future__ import annotations

import pytest

from dispatcher.rules.expressions import TemplateProblem, compile_expression, compile_template


def problem_of(compile_, source):
    with pytest.raises(TemplateProblem) as caught:
        compile_(source)
    return caught.value


@pytest.mark.parametrize(
    ("source", "code", "at", "message", "suggestion"),
    [
        ("Hi {{ data.name", "template_syntax", "{{", 'the "{{" here is never closed', None),
        ("Hi {{ data.name }!", "template_syntax", "}!", 'a single "}" stands here; the end is written "}}"', None),
        ("{{ data.name | }}", "template_syntax", "}}", 'a name is expected, but "}}" found', None),
        ("{{ }}", "template_syntax", "}}", "an expression is expected, and nothing is there", None),
        ("{{ data.x == }}", "template_syntax", "}}", "the expression ends too early: a value is missing", None),
        ("{{ data.x = 1 }}", "template_syntax", "= 1", 'to compare, write "=="', "=="),
        ("{{ a && b }}", "template_syntax", "&& b", 'unexpected character "&": write "and"', None),
        ("{{ !a }}", "template_syntax", "!a", 'unexpected character "!": write "not", or "!=" to compare', None),
        ("{{ “x” }}", "template_syntax", "“x", 'unexpected character "“": use straight quotes: "', None),
        ("{{ 'x }}", "template_syntax", "'x", 'unexpected character "\'": the quote is never closed', None),
        ("{{ (data.x }}", "template_syntax", "}}", "unexpected '}', expected ')'", None),
        ("a {% if data.x %}b", "template_syntax", "{%", "{% if %} is never closed", None),
        ("a {% endif %}", "template_syntax", "endif", "{% endif %} is not expected here", None),
        ("a {% while x %}", "template_syntax", "while", "{% while %} is not expected here", None),
        ("Press {#1", "template_syntax", "{#", 'the "{#" here is never closed', None),
        ("{{ data.x == null }}", "template_syntax", "null", '"null" is written "none" here', "none"),
        ('{{ "\\d+" }}', "template_syntax", '"\\d', "this text has an unknown escape", None),
        ("a\0b", "template_syntax", "\0", "the character U+0000 cannot be stored or sent", None),
        ("{{ data.x | titel }}", "unsafe_template", "titel", 'there is no filter "titel" here', "title"),
        ("{{ data.x | map('upper') }}", "unsafe_template", "map", 'there is no filter "map" here', None),
        ("{{ data.x is strng }}", "unsafe_template", "is strng", 'there is no test "strng" here', "string"),
        ("{{ data.x.upper() }}", "unsafe_template", "()", "calls are not offered; filters are", "data.x | upper"),
        ("{{ range(9) }}", "unsafe_template", "(9)", "calls are not offered in expressions and texts", None),
        ("{% for x in data %}{% endfor %}", "unsafe_template", "for", "a loop is not offered", None),
        ("{% set x = 1 %}", "unsafe_template", "set", "set is not offered", None),
        ("{{ data.__class__ }}", "unsafe_template", ".__class__", '"__class__" is a name of Python', None),
        ("a {{ 'x' * 9 }}", "unsafe_template", "'x'", "* is for numbers: repeating a text", None),
        ("a {{ '%d' % 9 }}", "unsafe_template", "'%d'", "% is for numbers: formatting a text", None),
        (
            "{{ data.x | replace('a') }}",
            "unsafe_template",
            "replace",
            'argument "new" is missing: "replace" takes',
            None,
        ),
        ("{{ data.x | title(1) }}", "unsafe_template", "title", 'too many arguments: "title" takes no arguments', None),
        ("{{ data.x | join(attribute=1) }}", "unsafe_template", "join", 'argument "attribute" is unknown', None),
        (
            "{{ data.x | round(1, precision=1) }}",
            "unsafe_template",
            "round",
            'argument "precision" is given twice',
            None,
        ),
        ("{{ data.x is divisibleby }}", "unsafe_template", "is div", '"is divisibleby" takes 1 argument', None),
        ("{{ data.x | d(*data.y) }}", "unsafe_template", "d(", "* and ** are not offered", None),
    ],
)
def test_a_refused_text_is_explained_at_its_place(source, code, at, message, suggestion):
    problem = problem_of(compile_template, source)
    assert problem.code == code
    assert problem.message.startswith(message)
    assert source[problem.offset :].startswith(at)
    assert problem.suggestion == suggestion


@pytest.mark.parametrize(
    ("source", "at", "message", "suggestion"),
    [
        ('data.x = "a"', "=", 'to compare, write "=="', "=="),
        (' {{ data.x == "a" }}', "{{", 'an expression stands without "{{" and "}}"', 'data.x == "a"'),
        ("data.x }} y", "}}", 'an expression stands without "{{" and "}}"', None),
        ("", "", "an expression is expected, and nothing is there", None),
        ("  \n", "", "an expression is expected, and nothing is there", None),
        ("data.x data.y", "data.y", '"data.y" is not expected here', None),
        ("data.x |", "", "", None),
        ("data.x ==", "", "the expression ends too early: a value is missing", None),
        ("data.x)", ")", "unexpected ')'", None),
        ("data.x === 1", "= 1", "", None),
    ],
)
def test_a_refused_condition_is_explained_at_its_place(source, at, message, suggestion):
    problem = problem_of(compile_expression, source)
    assert problem.code == "template_syntax"
    assert problem.message.startswith(message)
    assert source[problem.offset :].startswith(at)
    assert problem.suggestion == suggestion


def test_offsets_count_characters_of_the_source_as_it_was_given():
    for line_break in ("\n", "\r\n", "\r"):
        source = line_break.join(
            ["one", "{# two", "#}   {%- if data.a %}", "x{{ data.b }}{% endif %}", "{{ data.c | nope }}"]
        )
        assert source[problem_of(compile_template, source).offset :].startswith("nope")
        whole = source.replace(" | nope", "")
        for path in compile_template(whole).paths:
            assert whole[path.offset :].startswith(".".join(map(str, path.parts)))


def test_the_same_source_gives_the_same_object():
    assert compile_template("Hi {{ data.name }}") is compile_template("Hi {{ data.name }}")
    assert compile_expression("data.name") is compile_expression("data.name")
