"""The expression language of the rulebook: Jinja's grammar, evaluated by our own closures over plain JSON.

`compile_expression` is for conditions without braces, `compile_template` for values with `{{ }}`. Both compile once, at
load, from an allow-list; what is not on it is refused with a TemplateProblem. Evaluation touches nothing but the scope.
"""

from dispatcher.rules.expressions.explanations import Clause, Explanation
from dispatcher.rules.expressions.expression import Expression, compile_expression
from dispatcher.rules.expressions.faults import EvaluationFailed, ExpressionError, TemplateProblem, UndefinedValue
from dispatcher.rules.expressions.filters import FILTER_NAMES
from dispatcher.rules.expressions.paths import ROOTS, Path, Scope
from dispatcher.rules.expressions.predicates import TEST_NAMES
from dispatcher.rules.expressions.template import Template, compile_template

__all__ = [
    "FILTER_NAMES",
    "ROOTS",
    "TEST_NAMES",
    "Clause",
    "EvaluationFailed",
    "Explanation",
    "Expression",
    "ExpressionError",
    "Path",
    "Scope",
    "Template",
    "TemplateProblem",
    "UndefinedValue",
    "compile_expression",
    "compile_template",
]
