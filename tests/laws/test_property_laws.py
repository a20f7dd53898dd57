"""Laws of properties that are written in Python.

A property is built twice from one random recipe: with symbols, printed as VNN-LIB and read again;
and with numbers, where Python computes every comparison by itself. Both say the same of every
point, points on the boundary of ``<`` and ``<=`` above all.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bitcrown.spec.property import Property
from bitcrown.spec.query import And, Formula, ManyBounds, Or, Product, Sum, Term, Var
from bitcrown.spec.reader import parse_query
from bitcrown.spec.symbols import Condition

NO_DEADLINE = settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow]
)
GRID = [Fraction(n, 10) for n in (-20, -10, -3, 0, 3, 5, 10)]
SHAPES = {"x": (2, 2), "u": (), "y": (3,)}
COMPARE: Mapping[str, Callable[[Any, Any], Any]] = {
    "<=": operator.le,
    "<": operator.lt,
    ">=": operator.ge,
    ">": operator.gt,
    "==": operator.eq,
}


class Number(NamedTuple):
    """A number as somebody writes it, and its value."""

    written: Any
    value: Fraction


def floats() -> st.SearchStrategy[Number]:
    finite = st.floats(allow_nan=False, allow_infinity=False)
    narrow = st.floats(allow_nan=False, allow_infinity=False, width=32).map(np.float32)
    return st.one_of(finite, narrow).map(lambda one: Number(one, Fraction(float(one))))


numbers = st.one_of(
    st.sampled_from(GRID).map(lambda one: Number(one, one)),
    st.sampled_from(GRID).map(lambda one: Number(f"{one.numerator}/{one.denominator}", one)),
    st.sampled_from([Fraction(8, 255), Fraction(-1, 3)]).map(lambda one: Number(one, one)),
    st.integers(-3, 3).map(lambda one: Number(one, Fraction(one))),
    st.decimals(-5, 5, places=4).map(lambda one: Number(one, Fraction(Decimal(one)))),
    floats(),
)


class Recipe(NamedTuple):
    """How to make something from tensors: ``build(tensors, number)``, where ``number`` picks the
    written form or the value."""

    build: Callable[[Mapping[str, Any], Callable[[Number], Any]], Any]


def element(name: str, place: tuple[int, ...]) -> Recipe:
    return Recipe(lambda tensors, number: tensors[name][place])


@st.composite
def scalars(draw: st.DrawFn) -> Recipe:
    """A polynomial of elements."""
    name = draw(st.sampled_from(list(SHAPES)))
    recipe = element(name, tuple(draw(st.integers(0, extent - 1)) for extent in SHAPES[name]))
    for _ in range(draw(st.integers(0, 3))):
        recipe = combined(draw, recipe)
    return recipe


def combined(draw: st.DrawFn, recipe: Recipe) -> Recipe:
    word = draw(st.sampled_from(["+", "-", "*", "r-", "/", "**", "neg", "self"]))
    other = draw(numbers)
    name = draw(st.sampled_from(list(SHAPES)))
    place = tuple(draw(st.integers(0, extent - 1)) for extent in SHAPES[name])
    steps: Mapping[str, Callable[[Any, Any, Any], Any]] = {
        "+": lambda a, n, e: a + n,
        "-": lambda a, n, e: a - e,
        "*": lambda a, n, e: a * n,
        "r-": lambda a, n, e: n - a,
        "/": lambda a, n, e: a / n if other.value else a,
        "**": lambda a, n, e: a**2,
        "neg": lambda a, n, e: -a,
        "self": lambda a, n, e: a * e - e,
    }
    step = steps[word]
    return Recipe(
        lambda tensors, number: step(
            recipe.build(tensors, number), number(other), tensors[name][place]
        )
    )


@st.composite
def conditions(draw: st.DrawFn, depth: int = 2) -> Recipe:
    kind = draw(st.sampled_from(["whole", "one", "one", "&", "|", "~"] if depth else ["one"]))
    if kind in "&|":
        parts = [draw(conditions(depth=depth - 1)) for _ in range(2)]
        join = operator.and_ if kind == "&" else operator.or_
        return Recipe(lambda t, n: join(parts[0].build(t, n), parts[1].build(t, n)))
    if kind == "~":
        inner = draw(conditions(depth=depth - 1))
        return Recipe(lambda t, n: negated(inner.build(t, n)))
    compare = COMPARE[draw(st.sampled_from(list(COMPARE)))]
    bound = draw(numbers)
    if kind == "whole":
        name = draw(st.sampled_from(["x", "y"]))
        return Recipe(lambda t, n: every(compare(t[name], n(bound))))
    left, right = draw(scalars()), draw(scalars())
    if draw(st.booleans()):
        return Recipe(lambda t, n: every(compare(left.build(t, n), n(bound))))
    return Recipe(lambda t, n: every(compare(left.build(t, n), right.build(t, n))))


def every(found: Any) -> Any:
    return found if isinstance(found, Condition) else bool(np.all(found))


def negated(found: Any) -> Any:
    return ~found if isinstance(found, Condition) else not found


def value_of(term: Term, point: Mapping[Var, Fraction]) -> Fraction:
    if isinstance(term, Var):
        return point[term]
    if not isinstance(term, Sum | Product):
        return term.value
    values = [value_of(part, point) for part in term.args]
    return sum(values, Fraction(0)) if isinstance(term, Sum) else Fraction(np.prod(values))


def holds(formula: Formula, point: Mapping[Var, Fraction]) -> bool:
    if isinstance(formula, And | ManyBounds):
        parts = formula.args if isinstance(formula, And) else formula.atoms()
        return all(holds(part, point) for part in parts)
    if isinstance(formula, Or):
        return any(holds(part, point) for part in formula.args)
    compare = operator.ne if formula.op == "!=" else COMPARE[formula.op]
    return bool(compare(value_of(formula.left, point), value_of(formula.right, point)))


def declared(dtype: str = "real") -> tuple[Property, dict[str, Any]]:
    ask = Property()
    tensors = {name: ask.input(name, SHAPES[name], dtype=dtype) for name in ("x", "u")}
    return ask, tensors | {"y": ask.output("y", SHAPES["y"], dtype=dtype)}


def points(values: st.SearchStrategy[Fraction]) -> st.SearchStrategy[dict[str, np.ndarray]]:
    def tensor(shape: tuple[int, ...]) -> st.SearchStrategy[np.ndarray]:
        count = int(np.prod(shape, dtype=int))
        flat = st.lists(values, min_size=count, max_size=count)
        return flat.map(lambda row: np.array(row, dtype=object).reshape(shape))

    return st.fixed_dictionaries({name: tensor(shape) for name, shape in SHAPES.items()})


def same_at(
    assumed: list[Recipe], goals: list[Recipe], at: dict[str, np.ndarray], dtype: str = "real"
) -> None:
    ask, tensors = declared(dtype)
    ask.assume(*(recipe.build(tensors, lambda one: one.written) for recipe in assumed))
    ask.prove(*(recipe.build(tensors, lambda one: one.written) for recipe in goals))
    said = all(recipe.build(at, lambda one: one.value) for recipe in assumed)
    if goals:
        said &= not all(recipe.build(at, lambda one: one.value) for recipe in goals)
    flat = {Var(n, k): value for n, row in at.items() for k, value in enumerate(row.ravel())}
    assert holds(parse_query(ask.text()).assertion, flat) == said
    assert parse_query(str(ask)) == ask.query()


@NO_DEADLINE
@given(
    st.lists(conditions(), max_size=2),
    st.lists(conditions(), min_size=1, max_size=2),
    points(st.sampled_from(GRID)),
)
def test_text_says_what_python_computes(
    assumed: list[Recipe], goals: list[Recipe], at: dict[str, np.ndarray]
) -> None:
    same_at(assumed, goals, at)


@NO_DEADLINE
@given(st.lists(conditions(), min_size=1, max_size=2), points(st.integers(-3, 3).map(Fraction)))
def test_whole_numbers_stay_whole(assumed: list[Recipe], at: dict[str, np.ndarray]) -> None:
    """Comparisons of int64 have numbers without a point, which the reader insists on."""
    try:
        same_at(assumed, [], at, "int64")
    except Exception as error:
        if "is no number of the type int64" not in str(error):
            raise


@NO_DEADLINE
@given(floats(), st.sampled_from(list(COMPARE)))
def test_a_float_is_the_number_that_it_is(number: Number, op: str) -> None:
    """Told apart from its two neighbours in a grid finer than any float, and from nothing else."""
    step = Fraction(1, 2**1100)
    for value in (number.value - step, number.value, number.value + step):
        at = {"x": np.full((2, 2), value), "u": np.array(value), "y": np.full(3, value)}
        compare = COMPARE[op]
        same_at([Recipe(lambda t, n, do=compare: every(do(t["x"], n(number))))], [], at)


@pytest.mark.parametrize("op", list(COMPARE))
def test_edges(op: str) -> None:
    """``<`` and ``<=`` differ at one point, and so do their negations."""
    half = Number("0.5", Fraction(1, 2))
    for value in (Fraction(499, 1000), Fraction(1, 2), Fraction(501, 1000)):
        at = {"x": np.full((2, 2), value), "u": np.array(value), "y": np.full(3, value)}
        compare = COMPARE[op]
        one = Recipe(lambda t, n, do=compare: every(do(t["y"][1], n(half))))
        same_at([one], [], at)
        same_at([], [one], at)
        same_at([Recipe(lambda t, n, inner=one: negated(inner.build(t, n)))], [one], at)
