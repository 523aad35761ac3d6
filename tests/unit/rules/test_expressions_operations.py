"""Filters, tests and operators over plain JSON: what they give, and what they refuse."""

from __future__ import annotations

import pytest

from dispatcher.rules.expressions import (
    FILTER_NAMES,
    TEST_NAMES,
    EvaluationFailed,
    UndefinedValue,
    compile_expression,
    compile_template,
)

SCOPE = {
    "data": {
        "name": "anna de-wet",
        "padded": "  x ",
        "empty": "",
        "age": 17,
        "ratio": 2.5,
        "whole": 2.0,
        "yes": True,
        "no": False,
        "nothing": None,
        "list": [3, 1, 2],
        "texts": ["b", "A", "a"],
        "none": [],
        "mixed": [1, "a"],
        "object": {"b": 1, "a": [1, {"c": None}]},
        "large": 2**62,
        "index": 1,
        "menu": {"1": "Yes"},
    }
}


def evaluate(source):
    return compile_expression(source).evaluate(SCOPE)


VALUES = [
    ("data.age | abs", 17),
    ("-data.age | abs", 17),
    ("data.name | capitalize", "Anna de-wet"),
    ("data.object | count", 2),
    ("data.gone | d", ""),
    ("data.gone.deeper[data.list] | default('x')", "x"),
    ("data.name.first | default('x')", "x"),
    ("data.empty | default('x')", ""),
    ("data.empty | default('x', true)", "x"),
    ("data.nothing | default('x')", None),
    ("data.nothing | default('x', boolean=true)", "x"),
    ("data.gone | upper | default('x')", "x"),
    ("data.none | first | default('x')", "x"),
    ("data.list | first", 3),
    ("data.name | first", "a"),
    ("data.object | first", "b"),
    ("'2.50' | float", 2.5),
    ("'x' | float(1)", 1),
    ("'nan' | float", 0.0),
    ("'inf' | float(9)", 9),
    ("data.nothing | float", 0.0),
    ("'17' | int", 17),
    ("'17.9' | int", 17),
    ("'x' | int", 0),
    ("'x' | int(-1)", -1),
    ("'ff' | int(base=16)", 255),
    ("data.yes | int", 1),
    ("data.nothing | int(5)", 5),
    ("data.list | join", "312"),
    ("data.list | join('-')", "3-1-2"),
    ("[true, 1.0, 'a', [1]] | join(' ')", "true 1.0 a [1]"),
    ("data.list | last", 2),
    ("data.name | length", 11),
    ("'ab' | list", ["a", "b"]),
    ("data.object | list", ["b", "a"]),
    ("data.name | lower", "anna de-wet"),
    ("data.list | max", 3),
    ("data.texts | min", "A"),
    ("data.texts | max(case_sensitive=true)", "b"),
    ("data.name | replace('a', 'o')", "onno de-wet"),
    ("data.name | replace('n', '', 1)", "ana de-wet"),
    ("data.list | reverse", [2, 1, 3]),
    ("'ab' | reverse", "ba"),
    ("data.ratio | round", 2.0),
    ("data.ratio | round(method='ceil')", 3.0),
    ("2.345 | round(2, 'floor')", 2.34),
    ("data.list | sort", [1, 2, 3]),
    ("data.list | sort(true)", [3, 2, 1]),
    ("data.texts | sort", ["A", "a", "b"]),
    ("data.none | sort", []),
    ("data.age | string", "17"),
    ("data.yes | string", "true"),
    ("data.list | sum", 6),
    ("data.list | sum(start=0.5)", 6.5),
    ("data.name | title", "Anna De-Wet"),
    ("data.object | tojson", '{"b":1,"a":[1,{"c":null}]}'),
    ("'a\"ä</' | tojson", '"a\\"ä</"'),
    ("data.nothing | tojson", "null"),
    ("data.padded | trim", "x"),
    ("'xxaxx' | trim('x')", "a"),
    ("'one two three four' | truncate(11)", "one two..."),
    ("'one two three four' | truncate(11, true, '…')", "one two th…"),
    ("'one two' | truncate(3)", "one two"),
    ("data.texts | unique", ["b", "A"]),
    ("[1, true, 1.0, '1', [1], [1]] | unique", [1, True, "1", [1]]),
    ("data.name | upper", "ANNA DE-WET"),
    ("'a b/ä?' | urlencode", "a%20b/%C3%A4%3F"),
    ("{'a b': 'c/d', 'n': 1} | urlencode", "a+b=c%2Fd&n=1"),
    ("data.name | wordcount", 3),
    ("data.yes is boolean", True),
    ("data.age is boolean", False),
    ("data.age is divisibleby 17", True),
    ("data.age is eq 17", True),
    ("data.age is equalto '17'", False),
    ("data.age is even", False),
    ("data.no is false", True),
    ("data.whole is float", True),
    ("data.age is ge 17", True),
    ("data.age is greaterthan 17", False),
    ("data.age is gt 16", True),
    ("'a' is in data.texts", True),
    ("data.age is integer", True),
    ("data.yes is integer", False),
    ("data.list is iterable", True),
    ("data.age is le 16", False),
    ("data.age is lessthan 18", True),
    ("data.name is lower", True),
    ("data.age is lt 17", False),
    ("data.object is mapping", True),
    ("data.age is ne 17", False),
    ("data.nothing is none", True),
    ("data.age is number", True),
    ("data.yes is number", False),
    ("data.age is odd", True),
    ("data.ratio is odd", False),
    ("data.list is sequence", True),
    ("data.name is string", True),
    ("data.yes is true", True),
    ("data.gone is undefined", True),
    ("data.gone.further is defined", False),
    ("data.nothing is defined", True),
    ("(data.none | first) is defined", False),
    ("'A' is upper", True),
    ("1 == 1.0", True),
    ("1 == true", False),
    ("0 == false", False),
    ("'1' == 1", False),
    ("none == false", False),
    ("data.nothing == none", True),
    ("[1, [true]] == [1, [1]]", False),
    ("{'a': 1} == {'a': 1.0}", True),
    ("{'a': 1} == {'b': 1}", False),
    ("(1, 2) == [1, 2]", True),
    ("1 in [true]", False),
    ("data.list in [[3, 1, 2]]", True),
    ("'b' in data.object", True),
    ("'nna' in data.name", True),
    ("1 not in data.list", False),
    ("data.nothing in ['a', 'b']", False),
    ("data.list not in ['a', 'b']", True),
    ("1 < data.age < 18", True),
    ("1 < data.age < 3 < data.gone", False),
    ("data.age + 1 - 2 * 3 / 4 // 1 % 5", 17.0),
    ("2 ** 10", 1024),
    ("2 ** -1", 0.5),
    ("-data.age", -17),
    ("+data.age", 17),
    ("'a' + 'b'", "ab"),
    ("[1] + data.list + ['x']", [1, 3, 1, 2, "x"]),
    ("data.age ~ '/' ~ data.yes ~ data.list", "17/true[3,1,2]"),
    ("data.gone is defined and data.gone", False),
    ("data.empty or data.name", "anna de-wet"),
    ("data.yes and data.age and data.list", [3, 1, 2]),
    ("data.no or data.empty or data.none", []),
    ("not data.none", True),
    ("'a' if data.no else 'b' if data.no else 'c'", "c"),
    ("('a' if data.no) | default('z')", "z"),
    ("data.name[:4]", "anna"),
    ("data.list[1:]", [1, 2]),
    ("data.list[-1]", 2),
    ("data.list[data.index]", 1),
    ("data.list.0", 3),
    ("data.menu[1]", "Yes"),
    ("data.menu.1", "Yes"),
    ("data['menu']['1']", "Yes"),
    ("data.menu[data.index]", "Yes"),
    ("[data.object][0].a[1].c", None),
    ("{1: 'a', 'b': data.age}", {"1": "a", "b": 17}),
    ("data.list[1:][0]", 1),
]


@pytest.mark.parametrize(("source", "value"), VALUES)
def test_expression_gives(source, value):
    found = evaluate(source)
    assert found == value
    assert type(found) is type(value)
    assert compile_template(f"{{{{ {source} }}}}").render(SCOPE) == value


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("data.name < 3", "text and number cannot be compared by <"),
        ("data.yes > 0", "true/false and number cannot be compared by >"),
        ("data.nothing <= 0", "null and number cannot be compared by <="),
        ("data.list >= data.object", "list and object cannot be compared by >="),
        ("data.list < data.list", "list and list cannot be compared by <"),
        ("1 < data.name < 3", "number and text cannot be compared by <"),
        ("data.name + 1", "text and number cannot be added; ~ joins anything as text"),
        ("data.list + 1", "list and number cannot be added"),
        ("data.yes + 1", "true/false and number cannot be added"),
        ("data.name * 2", "* needs two numbers, not text and number"),
        ("data.name % 2", "% needs two numbers, not text and number"),
        ("data.name - 1", "- needs two numbers, not text and number"),
        ("-data.name", "- needs a number, not text"),
        ("data.age / data.no", "/ needs two numbers, not number and true/false"),
        ("data.age / (data.age - 17)", "division by zero"),
        ("data.age // (data.age - 17)", "division by zero"),
        ("data.age % (data.age - 17)", "division by zero"),
        ("data.large * 2", "the number does not fit into 64 bits"),
        ("data.large + data.large", "the number does not fit into 64 bits"),
        ("data.large ** data.large", "the number does not fit into 64 bits"),
        ("(-data.age) ** 0.5", "the result is not a real number"),
        ("data.whole ** 1e300", "the number is too large"),
        ("data.ratio * 1e308 * 1e308", "the number is too large"),
        ("'x' in data.age", '"in" looks into a list, a text or an object, not into number'),
        ("1 in data.name", "a text holds texts, so number cannot be looked for in it"),
        ("data.nothing ~ 'x'", "the value is null"),
        ("data.nothing | upper", "the value is null"),
        ("data.age | length", "a text, a list or an object has a length, number has none"),
        ("data.age | first", "needs a list, not number"),
        ("data.age | join", "needs a list, not number"),
        ("data.name | abs", "needs a number, not text"),
        ("data.name | round", "needs a number, not text"),
        ("data.age | round(data.ratio)", "precision must be a whole number, not number"),
        ("data.age | round(99)", "precision must be from -20 to 20"),
        ("data.age | round(1, 'up')", "method must be common, ceil or floor"),
        ("data.mixed | sort", "only numbers or texts have an order, not number and text"),
        ("[data.list] | max", "only numbers or texts have an order, not list"),
        ("data.mixed | sum", "needs a number, not text"),
        ("data.name | truncate(1)", "length must be at least that of the ending, 3"),
        ("data.name | int(base=99)", "base must be from 2 to 36"),
        ("data.mixed | urlencode", "needs a list, not number"),
        ("data.name is odd", "needs two numbers, not text and number"),
        ("data.age is divisibleby(0)", "division by zero"),
        ("data.name[data.ratio:]", "[from:to] needs whole numbers, not number"),
        ("data.age[1:]", "[from:to] cuts a text or a list, not number"),
        ("data.name[::0]", "a step of 0 leads nowhere"),
        ("{data.ratio: 1}", "the keys of an object are text"),
    ],
)
def test_operation_without_meaning_fails_and_says_where(source, message):
    with pytest.raises(EvaluationFailed) as caught:
        evaluate(source)
    assert message in str(caught.value)
    assert ": " in str(caught.value)
    assert "anna" not in str(caught.value)


@pytest.mark.parametrize(
    "source",
    [
        *("data.none | min", "data.none | last", "data.empty | first", "'a' if data.no", "data.list['a']"),
        *("data.menu[data.ratio]", "data.menu[data.nothing]", "data.list[true]", "data.list[data.yes]", "data.age.x"),
        *(
            "data.gone is none",
            "data.gone == none",
            "not data.gone",
            "data.gone and true",
            "[data.gone]",
            "data.gone ~ ''",
        ),
        *("data.gone | length", "data.gone in []", "1 in data.gone", "{'a': data.gone}", "data.list[data.gone]"),
    ],
)
def test_what_is_not_there_is_never_taken_for_something(source):
    with pytest.raises(UndefinedValue) as caught:
        evaluate(source)
    assert caught.value.path


def test_every_filter_and_test_is_tried_here():
    sources = " ".join(source for source, _ in VALUES)
    assert [name for name in FILTER_NAMES if f"| {name}" not in sources] == []
    assert [name for name in TEST_NAMES if f"is {name}" not in sources] == []
    assert sorted(FILTER_NAMES) == list(FILTER_NAMES)


def test_a_literal_list_is_made_anew_each_time():
    template = compile_template("{{ [1, 2] }}")
    template.render(SCOPE).append(3)
    assert template.render(SCOPE) == [1, 2]
