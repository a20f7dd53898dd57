"""Exact evaluation: strictness, equality, products, misses of one ulp, and the scorer's reading
beside it."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from small_nets import property_1

from bitcrown.check.truth import (
    AssertionCheck,
    atom_holds,
    exact_value,
    first_failure,
    mentions,
    worst_atom,
)
from bitcrown.spec.query import And, Compare, Const, Formula, Or, Product, Sum, Term, Var
from bitcrown.spec.reader import parse_query

X, Y = Var("X", 0), Var("Y", 0)


def number(text: str) -> Const:
    return Const(Fraction(text))


def at(x: float, y: float = 0.0, dtype: type[np.generic] = np.float32) -> dict[str, np.ndarray]:
    return {"X": np.array([x], dtype=dtype), "Y": np.array([y], dtype=dtype)}


def up(x: float) -> float:
    return float(np.nextafter(np.float32(x), np.float32(np.inf)))


@pytest.mark.parametrize(
    ("op", "below", "equal", "above"),
    [
        ("<=", True, True, False),
        ("<", True, False, False),
        ("==", False, True, False),
        ("!=", True, False, True),
    ],
)
def test_one_ulp_decides(op: str, below: bool, equal: bool, above: bool) -> None:
    atom = Compare(op, X, number("0.5"))
    assert atom_holds(atom, at(-up(-0.5))) is below
    assert atom_holds(atom, at(0.5)) is equal
    assert atom_holds(atom, at(up(0.5))) is above


def test_a_decimal_is_not_its_nearest_float() -> None:
    near = float(np.float32(0.1))  # 0.100000001490116...
    assert not atom_holds(Compare("<=", X, number("0.1")), at(near))
    assert not atom_holds(Compare("==", X, number("0.1")), at(near))
    assert atom_holds(Compare("<=", number("0.1"), X), at(near))
    assert atom_holds(Compare("<=", X, number("0.1")), at(near), rounded={"X"})
    assert atom_holds(Compare("==", X, number("0.1")), at(near), rounded={("X", 0)})
    assert not atom_holds(Compare("==", X, number("0.1")), at(near), rounded={("X", 1)})
    assert not atom_holds(Compare("<", X, number("0.1")), at(near), rounded={"X"})
    assert not atom_holds(Compare("<=", X, number("0.1")), at(up(near)), rounded={"X"})
    assert not atom_holds(Compare("<=", Sum((X, Y)), number("0.1")), at(near), rounded={"X"})


def test_the_scorers_rounding_must_hold_too() -> None:
    # Exactly 0.1 < 0.100000001, but in float32 the constant rounds to a number below the nearest
    # float of 0.1 + 1 ulp.
    value = float(np.float32(0.1))
    atom = Compare("<", X, number("0.100000002"))
    assert exact_value(atom.left, at(value)) < Fraction("0.100000002")
    assert not atom_holds(atom, at(value))


def test_products_are_exact() -> None:
    square = Product((X, X))
    x = 1 + 2.0**-23
    assert exact_value(square, at(x)) == Fraction(x) ** 2
    assert not atom_holds(
        Compare("<=", square, Const(Fraction(x) ** 2 - Fraction(1, 2**60))), at(x)
    )
    assert atom_holds(Compare("<=", square, number("4")), at(-2.0))
    assert not atom_holds(Compare("<", square, number("4")), at(-2.0))
    mixed = Sum((Product((number("-1"), X, Y)), number("3")))
    assert exact_value(mixed, at(2.0, 5.0)) == -7


def test_numbers_beyond_float64() -> None:
    huge = Const(Fraction(10) ** 400)
    assert atom_holds(Compare("<=", X, huge), at(1.0))
    assert not atom_holds(Compare("<=", huge, X), at(3e38))
    assert atom_holds(Compare("<=", X, number("1e39")), at(3e38))


def test_large_integers_are_not_rounded() -> None:
    values = {"X": np.array([2**53 + 1], dtype=np.int64)}
    assert exact_value(X, values) == 2**53 + 1
    query = parse_query(
        "(declare-const X_0 Real)(declare-const Y_0 Real)(assert (<= X_0 9007199254740992))"
    )
    assert not AssertionCheck(query).holds(values | {"Y": np.zeros(1)})


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_never_holds(bad: float) -> None:
    checker = AssertionCheck(
        parse_query(property_1(1, 2, "(>= X_0 0)", "(<= X_0 1)", "(<= Y_0 5)"))
    )
    assert checker.holds({"X": np.float32([0.5]), "Y": np.float32([0.0, 1.0])})
    assert not checker.holds({"X": np.float32([0.5]), "Y": np.float32([0.0, bad])})
    assert not checker.holds({"X": np.float32([bad]), "Y": np.float32([0.0, 1.0])})


def test_trees_and_what_they_report() -> None:
    near: Term = number("1.25")
    tree: Formula = Or(
        (
            And((Compare("<=", X, number("-7")), Compare("<=", Y, number("0")))),
            Compare("<=", near, X),
        )
    )
    values = at(1.0, 0.5)
    assert worst_atom(tree, values) == (Compare("<=", near, X), Fraction(1, 4))
    assert mentions(tree) == {"X", "Y"}
    assert worst_atom(Compare("==", X, number("3")), values)[1] == 2
    assert worst_atom(Compare("<", X, number("1")), values)[1] == 0


def test_checker_agrees_with_plain_evaluation() -> None:
    text = property_1(
        2,
        1,
        "(>= X_0 0.1)",
        "(< X_0 0.3)",
        "(and (> X_1 -0.7) (<= X_1 0.1))",
        "(>= Y_0 (* X_0 X_1))",
    )
    query, random = parse_query(text), np.random.default_rng(0)
    checker, seen = AssertionCheck(query), set()
    edges = np.float32([0.1, 0.3, -0.7, 0.0])
    edges = np.concatenate(
        [edges, np.nextafter(edges, np.float32(9)), np.nextafter(edges, np.float32(-9))]
    )
    for _ in range(600):
        x, y = random.choice(edges, 2), random.choice(edges, 1)
        values = {"X": x, "Y": y}
        holds = first_failure(query, values) is None
        assert checker.holds(values) is holds
        assert checker.holds(values, {"X"}) is (first_failure(query, values, {"X"}) is None)
        seen.add(holds)
    assert seen == {True, False}
