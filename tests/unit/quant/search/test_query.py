"""Queries: first-index argmax, exact bounds, reading a problem, and sentences for bad input."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from itertools import product

import numpy as np
import pytest

from bitcrown.quant.network.graph import Exit, QuantError
from bitcrown.quant.query import LinearConstraint, integral, robustness_query, split_by_box
from bitcrown.spec.problem import Case, Constraint, Problem
from tests.tiny_integer_networks import random_chain


def network_with(outputs: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    while True:
        network = random_chain(rng)
        if network.nodes[-1].shape[0] == outputs:
            return network


def test_violation_is_exactly_another_first_index_of_the_maximum() -> None:
    network = network_with(3)
    values = np.array(list(product(range(-2, 3), repeat=3)))
    for label in range(3):
        query = robustness_query(network, network.nodes[0].low, label, 1)
        assert (query.violated(values) == (values.argmax(axis=1) != label)).all()


def test_box_is_cut_at_the_declared_range() -> None:
    network = network_with(3)
    x = network.nodes[0].low + 1
    query = robustness_query(network, x, 0, 4)
    assert (query.low == 0).all() and (query.high == 5).all()


@pytest.mark.parametrize("label, eps, word", [(3, 1, "label"), (-1, 1, "label"), (0, -1, "radius")])
def test_bad_requests_are_refused_in_a_sentence(label: int, eps: int, word: str) -> None:
    network = network_with(3)
    with pytest.raises(QuantError, match=word):
        robustness_query(network, network.nodes[0].low, label, eps)
    with pytest.raises(QuantError, match="elements"):
        robustness_query(network, np.zeros(99, dtype=np.int64), 0, 1)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("bound", [Fraction(0), Fraction(7, 3), Fraction(-5, 2), Fraction(3)])
def test_integral_constraints_have_the_same_solutions(strict: bool, bound: Fraction) -> None:
    terms = {0: Fraction(3, 2), 2: Fraction(-3, 4)}
    made = integral(terms, bound, strict)
    assert isinstance(made, LinearConstraint)
    for a, b in product(range(-6, 7), repeat=2):
        total = terms[0] * a + terms[2] * b
        wanted = total < bound if strict else total <= bound
        assert wanted == (sum(c * {0: a, 2: b}[i] for i, c in made.terms) <= made.bound)
    assert integral({}, Fraction(0), strict) is (not strict)


def problem_for(network, constraints: tuple[Constraint, ...]) -> Problem:
    size = network.nodes[0].low.size
    case = Case((Fraction(0),) * size, (Fraction(5, 2),) * size, constraints)
    return Problem(None, {}, size, network.nodes[-1].shape[0], (case,))  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(10))
def test_problem_constraints_are_over_the_real_outputs(seed: int) -> None:
    """Affine exits give the same answers over integers; others are relaxed for proofs and exact for
    witnesses."""
    rng = np.random.default_rng(seed)
    network = network_with(2, seed)
    low = np.array([-3, -3])
    steps = np.cumsum(rng.integers(1, 4, size=9)) if seed % 2 else np.arange(9) * 2
    values = tuple(tuple(Fraction(int(v), 7) for v in steps) for _ in range(2))
    network = replace(network, exit=Exit(low, values))
    size = network.nodes[0].low.size
    constraint = Constraint(
        (((size,), Fraction(2)), ((size + 1,), Fraction(-1))), Fraction(3, 7), seed % 3 == 0
    )
    (query,) = split_by_box(problem_for(network, (constraint,)), network)
    assert (query.low == 0).all() and (query.high == 2).all()
    assert (query.exact_cases is None) == (seed % 2 == 0)
    for a, b in product(range(9), repeat=2):
        total = 2 * values[0][a] - values[1][b]
        wanted = total < constraint.bound if constraint.strict else total <= constraint.bound
        outputs = np.array([[a - 3, b - 3]])
        assert query.violated(outputs)[0] == wanted
        relaxed = query.cases[0][0]
        assert not wanted or sum(c * int(outputs[0, i]) for i, c in relaxed.terms) <= relaxed.bound


def test_mixed_and_nonlinear_constraints_are_refused() -> None:
    network = network_with(2)
    size = network.nodes[0].low.size
    for terms in ((((0,), Fraction(1)), ((size,), Fraction(1))), (((size, size), Fraction(1)),)):
        with pytest.raises(QuantError, match="linear and free of inputs"):
            split_by_box(problem_for(network, (Constraint(terms, Fraction(0)),)), network)
