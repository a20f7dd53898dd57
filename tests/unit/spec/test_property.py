"""``Property``: what it prints, and everything that Python would have understood otherwise."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from bitcrown import Property
from bitcrown.errors import PropertyError
from bitcrown.spec.query import Compare, Const, Var
from bitcrown.spec.symbols import Symbols

Sides = tuple[Symbols, Symbols]


@pytest.fixture
def ask() -> Property:
    return Property()


@pytest.fixture
def sides(ask: Property) -> Sides:
    return ask.input("x", [1, 4]), ask.output("y", [3])


REFUSED: dict[str, Callable[[Any, Any], Any]] = {
    "0 <= x <= 1": lambda x, y: 0 <= x <= 1,
    "and": lambda x, y: x[0, 0] <= 1 and y[0] > 0,
    "or": lambda x, y: x[0, 0] <= 1 or y[0] > 0,
    "not": lambda x, y: not (x[0, 0] <= 1),
    "if": lambda x, y: 1 if x[0, 0] else 0,
    "all": lambda x, y: all(x[0, k] <= 1 for k in range(4)),
    "max": lambda x, y: max(y),
    "sorted": lambda x, y: sorted(y),
    "in": lambda x, y: 3 in y,
    "& binds first": lambda x, y: x[0, 0] <= 1 & y[0],
    "symbol & symbol": lambda x, y: x & y,
    "~ symbol": lambda x, y: ~x,
    "condition & bool": lambda x, y: (x <= 1) & True,
    "bool | condition": lambda x, y: False | (x <= 1),
    "condition == condition": lambda x, y: (x <= 1) == (y[0] > 0),
    "condition < number": lambda x, y: (x <= 1) < 2,
    "number + condition": lambda x, y: x + (x <= 1),
    "symbols of other shapes": lambda x, y: x <= y,
    "stretched over each other": lambda x, y: x.reshape(4, 1) - x,
    "array that is wider": lambda x, y: y <= np.zeros((2, 3)),
    "!= of several": lambda x, y: x != 0,
    "no element": lambda x, y: x[0, 4:] <= 0,
    "index": lambda x, y: y[3],
    "reshape": lambda x, y: x.reshape(3),
    "len of one": lambda x, y: len(y[0]),
    "nan": lambda x, y: x <= float("nan"),
    "inf": lambda x, y: x <= np.float32("inf"),
    "bool": lambda x, y: x == True,  # noqa: E712
    "word": lambda x, y: x <= "one",
    "None": lambda x, y: y == None,  # noqa: E711
    "symbol / symbol": lambda x, y: x / y[0],
    "number / symbol": lambda x, y: 1 / x,
    "/ 0": lambda x, y: x / 0,
    "power": lambda x, y: x**-1,
    "half power": lambda x, y: x**0.5,
}


@pytest.mark.parametrize("expression", REFUSED.values(), ids=list(REFUSED))
def test_refused_with_a_sentence(expression: Callable[[Any, Any], Any], sides: Sides) -> None:
    with pytest.raises(PropertyError, match=r"\w+ \w+"):
        expression(*sides)


def test_symbols_and_conditions_are_no_keys(sides: Sides) -> None:
    for one in (sides[0], sides[0] <= 1):
        with pytest.raises(TypeError, match="unhashable"):
            {one}  # noqa: B018


def test_mixing_two_properties_is_refused(ask: Property, sides: Sides) -> None:
    other = Property()
    x = other.input("x", [1, 4])
    for wrong in (lambda: x <= sides[0], lambda: (x <= 1) & (sides[0] <= 1)):
        with pytest.raises(PropertyError, match="two properties are mixed"):
            wrong()
    with pytest.raises(PropertyError, match="another property"):
        ask.assume(x <= 1)


@pytest.mark.parametrize("given", [True, np.bool_(True), "x <= 1", None, 3])
def test_what_is_no_condition_is_refused(given: Any, ask: Property) -> None:
    for method in (ask.assume, ask.prove, lambda one: Property.all([one])):
        with pytest.raises(PropertyError, match="a condition such as"):
            method(given)


@pytest.mark.parametrize("shape", [3, [0], [1.5], [-1, 2], "ab", [1 << 40], None])
def test_no_shapes(shape: Any, ask: Property) -> None:
    with pytest.raises(PropertyError, match="is no shape"):
        ask.input("x", shape)


def test_names_types_and_completeness(ask: Property) -> None:
    with pytest.raises(PropertyError, match="nothing is asked"):
        ask.text()
    x = ask.input("x", [2])
    ask.assume(x <= 1)
    with pytest.raises(PropertyError, match="has no outputs"):
        ask.text()
    for name in ("x", "N", "1y", "a-b", "", 3):
        with pytest.raises(PropertyError):
            ask.output(name, [1])
    with pytest.raises(PropertyError, match="no element type"):
        ask.output("y", [1], dtype="float33")
    with pytest.raises(PropertyError, match="no name of a tensor"):
        ask.hidden("h", [1], "")
    for empty in (Property.all, Property.any):
        with pytest.raises(PropertyError, match="no condition"):
            empty([])


def test_types_are_not_mixed(ask: Property) -> None:
    x, y = ask.input("x", [1], dtype="float32"), ask.output("y", [1])
    ask.assume(x <= y)
    with pytest.raises(PropertyError, match="has the type"):
        ask.query()


def test_text_of_two_networks(ask: Property) -> None:
    x, y = ask.input("x", [2], network="f"), ask.output("y", [1], network="f")
    ask.network("g", equal_to="f")
    u, v = ask.input("u", [2], network="g"), ask.output("v", [1], network="g")
    ask.assume(x >= 0, x <= "1/2", u[0] >= x[0] + 8 * x[1], u[1] == x[1])
    ask.prove(v >= y, ~((v[0] > 3) & (y[0] == 1)))
    assert ask.text() == (
        "(vnnlib-version <2.0>)\n"
        "(declare-network f\n"
        "    (declare-input x real [2])\n"
        "    (declare-output y real [1]))\n"
        "(declare-network g\n"
        "    (equal-to f)\n"
        "    (declare-input u real [2])\n"
        "    (declare-output v real [1]))\n"
        "(assert (>= x[0] 0.0))\n"
        "(assert (>= x[1] 0.0))\n"
        "(assert (<= x[0] 0.5))\n"
        "(assert (<= x[1] 0.5))\n"
        "(assert (<= (+ x[0] (* 8.0 x[1])) u[0]))\n"
        "(assert (== u[1] x[1]))\n"
        "(assert (or (< v[0] y[0]) (and (> v[0] 3.0) (== y[0] 1.0))))\n"
    )
    for base in ("g", "h"):
        with pytest.raises(PropertyError, match="declared before"):
            ask.network("g", equal_to=base)


def test_numbers_are_exact_whatever_they_are(sides: Sides) -> None:
    x, _ = sides
    third = (x[0, 0] <= Fraction(1, 3)).formula
    assert isinstance(third, Compare) and third.right == Const(Fraction(1))
    single = (np.float32(0.1) >= x[0, 0]).formula
    assert single == Compare("<=", Var("x", 0), Const(Fraction(float(np.float32(0.1)))))
    array = (np.array([1.5, -2]) * x[0, :2] <= np.array([[3, 4]])[0]).formula
    assert array.args == (
        Compare("<=", Var("x", 0), Const(Fraction(2))),
        Compare("<=", Const(Fraction(-2)), Var("x", 1)),
    )


def test_large_sums_and_unions_stay_flat(ask: Property) -> None:
    x, y = ask.input("x", [3000]), ask.output("y", [1])
    ask.assume(x >= 0, x.sum() + y[0] <= 1)
    condition = Property.any(x[k] > 1 for k in range(3000))
    for k in range(100):
        condition = condition | (x[k] == 0)
    ask.prove(~condition)
    assert len(ask.query().assertion.args[-1].args) == 3100
