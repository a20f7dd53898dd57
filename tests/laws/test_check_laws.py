"""Laws of the check: boxes round inward, and the prepared check is the plain one and never laxer
than the exact one.

Judged by code of its own: rationals, not ``check.evaluate``.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from bitcrown.check.truth import AssertionCheck, formula_holds
from bitcrown.check.witness import inward_box
from bitcrown.spec.query import (
    And,
    Compare,
    Const,
    NetworkDecl,
    Or,
    Product,
    Query,
    Sum,
    TensorDecl,
    Var,
)

KINDS = [np.float16, np.float32, np.float64]
decimals = st.decimals(min_value=-20, max_value=20, allow_nan=False, places=4)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(decimals, decimals), min_size=1, max_size=8), st.sampled_from(KINDS))
def test_the_inward_box_lies_inside(pairs: list[tuple[object, object]], kind: type) -> None:
    exact = [sorted((Fraction(str(a)), Fraction(str(b)))) for a, b in pairs]
    lower, upper = [a for a, _ in exact], [b for _, b in exact]
    low, high, is_off = inward_box(lower, upper, [kind] * len(exact))
    for i in range(len(exact)):
        assert float(kind(low[i])) == low[i] and float(kind(high[i])) == high[i]
        if is_off[i]:
            below, above = (
                np.nextafter(kind(low[i]), kind(-np.inf)),
                np.nextafter(kind(low[i]), kind(np.inf)),
            )
            for number in (below, kind(low[i]), above):
                assert not lower[i] <= Fraction(float(number)) <= upper[i]
        else:
            assert lower[i] <= Fraction(low[i]) <= Fraction(high[i]) <= upper[i]


numbers = st.one_of(
    st.integers(-3, 3).map(Fraction),
    decimals.map(lambda value: Fraction(str(value))),
    st.floats(-4, 4, width=32).map(Fraction),
)
variables = st.builds(Var, st.sampled_from(["X", "Y"]), st.integers(0, 2))
leaves = st.one_of(variables, numbers.map(Const))
terms = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(lambda args: Sum(tuple(args))),
        st.lists(inner, min_size=1, max_size=2).map(lambda args: Product(tuple(args))),
    ),
    max_leaves=4,
)
atoms = st.builds(Compare, st.sampled_from(["<=", "<", "==", "!="]), terms, terms)
formulas = st.recursive(
    atoms,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(lambda args: And(tuple(args))),
        st.lists(inner, min_size=1, max_size=3).map(lambda args: Or(tuple(args))),
    ),
    max_leaves=6,
)


def exact(term: object, values: dict[str, np.ndarray]) -> Fraction:
    if isinstance(term, Const):
        return term.value
    if isinstance(term, Var):
        return Fraction(float(values[term.tensor][term.index]))
    assert isinstance(term, Sum | Product)
    total = Fraction(int(isinstance(term, Product)))
    for part in term.args:
        value = exact(part, values)
        total = total + value if isinstance(term, Sum) else total * value
    return total


def truth(formula: object, values: dict[str, np.ndarray]) -> bool:
    if isinstance(formula, Compare):
        left, right = exact(formula.left, values), exact(formula.right, values)
        return {"<=": left <= right, "<": left < right, "==": left == right, "!=": left != right}[
            formula.op
        ]
    assert isinstance(formula, And | Or)
    parts = [truth(part, values) for part in formula.args]
    return all(parts) if isinstance(formula, And) else any(parts)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(formulas, min_size=1, max_size=4),
    st.lists(st.floats(-4, 4, width=32), min_size=6, max_size=6),
)
def test_the_prepared_check_is_the_plain_one_and_never_laxer_than_the_exact_one(
    parts: list[And | Or | Compare], data: list[float]
) -> None:
    network = NetworkDecl("N", (TensorDecl("X", "real", (3,)),), (TensorDecl("Y", "real", (3,)),))
    query = Query((1, 0), (network,), And(tuple(parts)))
    values = {"X": np.array(data[:3], dtype=np.float32), "Y": np.array(data[3:], dtype=np.float32)}
    holds = AssertionCheck(query).holds(values)
    assert holds == formula_holds(query.assertion, values)
    assert not holds or truth(query.assertion, values)
