"""Why a condition holds or not, clause by clause."""

from __future__ import annotations

import pytest

from dispatcher.rules.expressions import compile_expression, compile_template

SCOPE = {
    "data": {
        "consent": "no",
        "age": 17,
        "flag": True,
        "nothing": None,
        "language": "zu",
        "long": "x" * 500,
        "list": list(range(500)),
        "huge": ["x" * 1000] * 100,
        "msisdn": "+27821234567",
    },
    "vars": {"limits": {"zu": 18}},
    "steps": {},
    "run": {},
}


def explain(source):
    return compile_expression(source).explain(SCOPE)


@pytest.mark.parametrize(
    ("source", "failed", "sentence"),
    [
        ('data.consent == "yes"', 'data.consent == "yes"', 'data.consent == "yes" is false: data.consent is "no"'),
        ("data.flag and data.age>=18 and data.x", "data.age >= 18", "data.age >= 18 is false: data.age is 17"),
        (
            "data.flag and (data.consent == 'yes' or data.age == 1)",
            'data.consent == "yes" or data.age == 1',
            'data.consent == "yes" or data.age == 1 is false: data.consent is "no", data.age is 17',
        ),
        ("not data.flag", "not data.flag", "not data.flag is false: data.flag is true"),
        (
            "not (data.age > 3 and data.flag)",
            "not (data.age > 3 and data.flag)",
            "not (data.age > 3 and data.flag) is false: data.age is 17, data.flag is true",
        ),
        ("data.nothing", "data.nothing", "data.nothing is null"),
        (
            'data.adress == "x"',
            'data.adress == "x"',
            (
                'data.adress == "x" has no answer: data.adress: data has no "adress" (it has: age, consent, flag, huge,'
                " language, list, long, msisdn, nothing)"
            ),
        ),
        (
            "data.consent < 3",
            "data.consent < 3",
            "data.consent < 3 has no answer: data.consent < 3: text and number cannot be compared by <",
        ),
        (
            "data.age >= vars.limits[data.language]",
            "data.age >= vars.limits[data.language]",
            (
                "data.age >= vars.limits[data.language] is false: data.age is 17, vars.limits[data.language] is 18,"
                ' data.language is "zu"'
            ),
        ),
        ("data.x is defined", "data.x is defined", "data.x is defined is false: data.x is not there"),
        ('data.msisdn == "1"', 'data.msisdn == "1"', 'data.msisdn == "1" is false: data.msisdn is "+27821234567"'),
        ('data.consent | upper == "YES"', None, None),
        ("1 > 2", "1 > 2", "1 > 2 is false"),
    ],
)
def test_the_clause_that_decided_is_named_with_what_it_saw(source, failed, sentence):
    explanation = explain(source)
    assert not explanation.holds
    if failed is not None:
        assert explanation.failed.source == failed
        assert explanation.sentence == explanation.failed.sentence == sentence


def test_clauses_are_listed_as_far_as_they_were_evaluated():
    explanation = explain('data.flag and data.consent == "yes" and data.age > 3')
    assert [(clause.source, clause.verdict) for clause in explanation.clauses] == [
        ("data.flag", True),
        ('data.consent == "yes"', False),
    ]
    assert explanation.clauses[1].seen == (("data.consent", '"no"'),)


def test_an_expression_that_holds_has_no_clause_that_failed():
    explanation = explain("data.flag and data.age == 17")
    assert explanation.holds
    assert explanation.failed is None
    assert not explanation.undefined
    assert explanation.sentence == "data.flag is true; data.age == 17 is true: data.age is 17"


def test_what_is_not_there_is_told_apart_from_what_is_false():
    assert explain("data.x").undefined
    assert not explain("data.nothing").undefined


def test_long_values_are_shortened():
    for source in ('data.long == "y"', "data.list == 1", "data.huge == 1", "data.huge[0] == 1"):
        (_, shown), *_ = explain(source).failed.seen
        assert len(shown) < 70
    assert explain("data.huge == 1").failed.seen[0][1] == "list of 100 parts"


def test_vars_used_are_known_unless_data_decides():
    assert compile_expression("data.x == vars.a and vars['b'].c").vars_used == {"a", "b"}
    assert compile_expression("vars.copy[data.language] == 1").vars_used == {"copy"}
    assert compile_expression("vars[data.language] == 1").vars_used is None
    assert compile_template("{{ vars | tojson }}!").vars_used is None
    assert compile_template("Hi {{ data.name }}").vars_used == frozenset()
    assert compile_template("{% if vars.a %}{{ data.name }}{% endif %}").roots == {"vars", "data"}


@pytest.mark.parametrize(
    ("source", "guarded"),
    [
        ("data.a", [False]),
        ("data.a | default(1)", [True]),
        ("data.a | upper | default(1)", [True]),
        ("data.a | default(data.b)", [True, False]),
        ("data.a is defined and data.a.b", [True, True]),
        ("data.a.b is defined and data.a", [True, False]),
        ("data.a is defined or data.a", [True, False]),
        ("data.a is undefined or data.a", [True, True]),
        ("data.a is not defined or data.a", [True, True]),
        ("not (data.a is undefined) and data.a", [True, True]),
        ("data.a if data.a is defined else data.a", [True, True, False]),
    ],
)
def test_paths_are_guarded_where_is_defined_was_asked(source, guarded):
    assert [path.guarded for path in compile_expression(source).paths] == guarded


def test_paths_in_blocks_are_guarded_where_is_defined_was_asked():
    source = (
        "{% if data.a is defined %}{{ data.a }}{% elif data.b is defined %}{{ data.a }}{{ data.b }}"
        "{% else %}{{ data.b }}{% endif %}{{ data.a }}"
    )
    guarded = [(path.parts[1], path.guarded) for path in compile_template(source).paths]
    assert guarded == [
        *[("a", True), ("a", True), ("b", True), ("a", False), ("b", True)],
        *[("b", False), ("a", False)],
    ]
