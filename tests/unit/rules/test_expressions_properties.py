"""Properties: our evaluation is Jinja's wherever both mean the same, and nothing but our own errors ever comes out."""

from __future__ import annotations

from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from jinja2 import Environment, StrictUndefined, TemplateError, nodes

from dispatcher.rules.expressions import (
    ExpressionError,
    TemplateProblem,
    compile_expression,
    compile_template,
)
from dispatcher.rules.expressions.parsing import parse_expression
from dispatcher.rules.expressions.template import _from_segments, _from_whole
from dispatcher.rules.expressions.wording import written

NUMBERS = st.one_of(st.integers(-99, 99), st.floats(-99, 99, allow_nan=False).map(lambda number: round(number, 2)))
LETTERS = st.text(alphabet="abcXYZ äß-.(1 ", max_size=8)
DATA = st.fixed_dictionaries(
    {
        "n": NUMBERS,
        "m": NUMBERS,
        "s": LETTERS,
        "t": LETTERS,
        "yes": st.booleans(),
        "numbers": st.lists(NUMBERS, max_size=4),
        "texts": st.lists(LETTERS, max_size=4),
        "deep": st.fixed_dictionaries({"n": NUMBERS, "s": LETTERS, "list": st.lists(NUMBERS, max_size=3)}),
        "nothing": st.none(),
    }
)


def quoted(text):
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def joined(*parts):
    """Write parts in a row, in brackets, so that what stands around does not bind to a part of them."""
    return st.tuples(*(st.just(part) if isinstance(part, str) else part for part in parts)).map(
        lambda written: f"({''.join(written)})"
    )


number, text, truth, numbers, texts = (
    st.deferred(lambda: _number),
    st.deferred(lambda: _text),
    st.deferred(lambda: _truth),
    st.deferred(lambda: _numbers),
    st.deferred(lambda: _texts),
)
anything = st.one_of(number, text, truth, numbers, texts)

# A list may hold what is not there in Jinja, which notices when it is read; with us it fails at once.
SURELY_NUMBER = st.one_of(NUMBERS.map(str), st.sampled_from(["data.n", "data.deep.n", "(data.n + 1)"]))
SURELY_TEXT = st.one_of(LETTERS.map(quoted), st.sampled_from(["data.s", "data.deep.s", "(data.t | upper)"]))

_number = st.one_of(
    st.sampled_from(["data.n", "data.m", "data.deep.n", "data['n']", "data.numbers[0]", "data.deep.list[-1]"]),
    NUMBERS.map(str),
    joined(number, st.sampled_from([" + ", " - ", " * "]), number),
    joined(number, st.sampled_from([" / ", " // ", " % "]), number),
    joined("(-", number, ")"),
    joined(number, st.sampled_from([" | abs", " | int", " | float", " | round", " | round(1)"])),
    joined(text, st.sampled_from([" | length", " | count", " | int", " | float", " | int(-1)", " | wordcount"])),
    joined(numbers, st.sampled_from([" | sum", " | min", " | max", " | first", " | last", " | length"])),
    joined(number, " if ", truth, " else ", number),
    joined("data.absent.", st.sampled_from(["a", "b.c"]), " | default(", number, ")"),
)
_text = st.one_of(
    st.sampled_from(["data.s", "data.t", "data.deep.s", 'data["s"]', "data.texts[0]"]),
    LETTERS.map(quoted),
    joined(text, st.sampled_from([" + ", " ~ "]), text),
    joined(text, " ~ ", st.sampled_from(["data.n", "5", "2.5"])),
    joined(text, " | ", st.sampled_from(["title", "upper", "lower", "capitalize", "trim", "string", "trim('a ')"])),
    joined(text, st.sampled_from(["[:2]", "[1:]", "[::-1]", "[-2:]", " | reverse", " | first", " | last"])),
    joined(text, " | replace(", text, ", ", text, ")"),
    joined(text, " | truncate(", st.integers(3, 9).map(str), st.sampled_from([")", ", true)", ", leeway=0)"])),
    joined(text, " | urlencode"),
    joined(texts, " | join(", text, ")"),
    joined(text, " if ", truth, " else ", text),
    joined(text, " | default(", text, ", true)"),
    joined("(data.absent | d(", text, "))"),
)
_truth = st.one_of(
    st.sampled_from(["data.yes", "true", "false"]),
    joined(number, st.sampled_from([" < ", " <= ", " > ", " >= ", " == ", " != "]), number),
    joined(text, st.sampled_from([" < ", " >= ", " == ", " != "]), text),
    joined(number, " < ", number, " <= ", number),
    joined(text, st.sampled_from([" in ", " not in "]), text),
    joined(text, st.sampled_from([" in ", " not in "]), texts),
    joined(number, " in ", numbers),
    joined(numbers, st.sampled_from([" == ", " != "]), numbers),
    joined(truth, st.sampled_from([" and ", " or "]), truth),
    joined("(not ", truth, ")"),
    joined(
        text, st.sampled_from([" is string", " is number", " is lower", " is not upper", " is mapping", " is none"])
    ),
    joined(
        number, st.sampled_from([" is number", " is odd", " is even", " is float", " is integer", " is not string"])
    ),
    joined(number, " is divisibleby(", number, ")"),
    joined(number, " is ", st.sampled_from(["gt", "le", "eq", "ne"]), "(", number, ")"),
    st.sampled_from(
        [
            "data.absent is defined",
            "data.absent.x is undefined",
            "data.s is defined",
            "data.nothing is none",
            "data.deep is mapping",
        ]
    ),
)
_numbers = st.one_of(
    st.sampled_from(["data.numbers", "data.deep.list"]),
    joined("[", SURELY_NUMBER, ", ", SURELY_NUMBER, "]"),
    joined(numbers, st.sampled_from([" | sort", " | sort(reverse=true)", " | list", "[1:]", "[:-1]"])),
    joined(numbers, " + ", numbers),
)
_texts = st.one_of(
    st.just("data.texts"),
    joined("[", SURELY_TEXT, ", ", SURELY_TEXT, "]"),
    joined(
        texts, st.sampled_from([" | sort", " | unique | list", " | sort(case_sensitive=true)", " | reverse | list"])
    ),
    joined(text, " | list"),
)


class Absent(StrictUndefined):
    """What is not there in Jinja: chainable, as our `default` covers the whole path; and it is noticed."""

    noticed = False

    def __init__(self, *arguments, **names):
        super().__init__(*arguments, **names)
        Absent.noticed = True

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __getitem__(self, _name):
        return self


JINJA = Environment(undefined=Absent, keep_trailing_newline=True, autoescape=False)
FAILED = object()


def by_jinja(evaluate):
    """Return what Jinja gives, and whether something absent was met on the way."""
    Absent.noticed = False
    try:
        value = evaluate()
    except (TemplateError, ArithmeticError, TypeError, ValueError, AssertionError):
        value = FAILED
    return FAILED if isinstance(value, Absent) else value, Absent.noticed


def agree(ours, jinjas, *, met_absent):
    """Compare type and value. Jinja lets what is absent pass through lists and tests, and evaluates every default."""
    if isinstance(ours, TemplateProblem) and ours.message.startswith(("this always fails", "this is nested")):
        return True  # refused at load, though Jinja may never come to evaluate that part
    ours = FAILED if isinstance(ours, Exception) else ours
    if met_absent and FAILED in (ours, jinjas):
        return True
    return type(ours) is type(jinjas) and ours == jinjas


@settings(max_examples=200)
@given(source=anything, data=DATA)
def test_expressions_have_the_value_that_jinja_gives_them(source, data):
    scope = {"data": data}
    expected, met_absent = by_jinja(lambda: JINJA.compile_expression(source, undefined_to_none=False)(**scope))
    value = outcome(lambda: compile_expression(source).evaluate(scope))
    assert agree(value, expected, met_absent=met_absent), (value, expected)


@settings(max_examples=150)
@given(
    pieces=st.lists(
        st.one_of(text.map("{{{{ {} }}}}".format), number.map("{{{{- {} -}}}}".format), LETTERS), max_size=5
    ),
    condition=truth,
    data=DATA,
)
def test_texts_read_as_jinja_renders_them(pieces, condition, data):
    scope = {"data": data}
    whole, half = "".join(pieces), "".join(pieces[: len(pieces) // 2])
    source = f"a {whole} {{% if {condition} %}}b{half}{{% else %}} c{{% endif -%}}\n{{# d #}}\n"
    expected, met_absent = by_jinja(lambda: JINJA.from_string(source).render(scope))
    rendered = outcome(lambda: compile_template(source).render(scope))
    assert agree(rendered, expected, met_absent=met_absent), (rendered, expected)


PIECES = st.sampled_from(
    [
        *(
            "{{",
            "}}",
            "{{-",
            "-}}",
            "{{+",
            "{%",
            "%}",
            "{#",
            "#}",
            "if",
            "endif",
            "else",
            "elif",
            "raw",
            "endraw",
            "for",
        ),
        *(
            "data",
            ".name",
            ".a",
            "[",
            "]",
            "(",
            ")",
            "|",
            "upper",
            "default",
            "'x'",
            '"y"',
            "'",
            '"',
            "}",
            "{",
            ",",
            ":",
        ),
        *("1", "0", "1.5", "-", "+", "*", "**", "/", "//", "%", "~", "==", "!=", "<", "<=", "in", "not", "and", "or"),
        *("is", "defined", "none", "true", "null", "self", "\\", "&", "__class__", "\r", "\n", " ", "  "),
    ]
)


SOUP = st.lists(PIECES, max_size=6).map("".join)


@settings(max_examples=300)
@given(st.tuples(SOUP, st.just("{{"), SOUP, st.just("}}"), SOUP).map("".join))
@example("{{ 'a }}{{ b' }}")
@example("{{ '}}' }}")
@example('{{ "}}" ~ data.name }}')
@example("{{{ data.name }}")
@example("{{ data.name }}}")
@example("{{ (data.name }}")
@example("{{ data.name }}\r\n{{ data.a }}")
@example("{{ data.name -}} {{- data.a }}")
@example("{{ 1, 2 }}")
@example("{{ }}{{ data.a }}")
def test_texts_compiled_by_parts_are_what_the_parser_reads_as_a_whole(source):
    by_parts = outcome(lambda: _from_segments(source))
    if by_parts is None:
        return
    whole = outcome(lambda: _from_whole(source))
    if isinstance(by_parts, TemplateProblem):
        assert (by_parts.code, by_parts.message, by_parts.offset) == (whole.code, whole.message, whole.offset)
        return
    assert by_parts.paths == whole.paths
    assert by_parts.literal == whole.literal
    assert by_parts.is_literal == whole.is_literal
    scope = {"data": {"name": "n", "a": {"a": 1}}}
    assert rendered(by_parts, scope) == rendered(whole, scope)


def rendered(template, scope):
    value = outcome(lambda: template.render(scope))
    return type(value), str(value) if isinstance(value, ExpressionError) else value


@settings(max_examples=300)
@given(st.lists(PIECES, max_size=16).map("".join))
def test_nothing_but_our_own_errors_comes_out_of_any_source(source):
    for compile_ in (compile_template, compile_expression):
        compiled = outcome(lambda compile_=compile_: compile_(source))
        if isinstance(compiled, TemplateProblem):
            assert compiled.code in ("template_syntax", "unsafe_template")
            assert 0 <= compiled.offset <= len(source)
            assert compiled.message
            continue
        for path in compiled.paths:
            assert source.startswith(str(path.parts[0]), path.offset)
        evaluate = compiled.render if compile_ is compile_template else compiled.evaluate
        outcome(lambda evaluate=evaluate: evaluate({"data": {"name": "n", "a": [1]}}))


def outcome(action):
    """Return what comes out: a value, or one of our errors; any other error fails the test."""
    try:
        return action()
    except (TemplateProblem, ExpressionError) as error:
        return error


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, LETTERS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from("abn"), inner, max_size=3)),
    max_leaves=6,
)


@settings(max_examples=200)
@given(
    source=anything,
    data=st.fixed_dictionaries(dict.fromkeys(("n", "m", "s", "t", "yes", "numbers", "texts", "deep", "nothing"), JSON)),
)
def test_data_of_any_shape_gives_a_value_or_an_error_that_explains(source, data):
    scope = {"data": data}
    expression = outcome(lambda: compile_expression(source))
    assume(not isinstance(expression, TemplateProblem))
    value = outcome(lambda: expression.evaluate(scope))
    explanation = expression.explain(scope)
    assert explanation.sentence
    if isinstance(value, ExpressionError):
        assert not explanation.holds
        assert explanation.failed.verdict is None
        assert str(value)
    else:
        assert explanation.holds == expression.test(scope) == bool(value)


@settings(max_examples=200)
@given(anything)
def test_an_expression_written_back_parses_to_the_same(source):
    parsed = outcome(lambda: parse_expression(source))
    assume(not isinstance(parsed, TemplateProblem))
    again = parse_expression(written(parsed))
    assert flattened(again) == flattened(parsed)
    assert written(again) == written(parsed)


def flattened(node):
    """Return what a node says, without where it stood."""
    if isinstance(node, nodes.Node):
        return type(node).__name__, *(flattened(value) for _, value in node.iter_fields())
    return [flattened(item) for item in node] if isinstance(node, list) else node
