"""Law (f) for bit-vectors: on tiny networks every encoding and every solver says what enumeration
says."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from bitcrown.budget import Budget
from bitcrown.quant.smt.formula import Style, encode
from bitcrown.quant.smt.solvers import decide_by_bitvectors, installed_solvers
from bitcrown.verdict import Status
from tests.unit.quant.smt.tiny_networks import (
    all_points,
    formula_at,
    formula_holds,
    random_box,
    random_cases,
    random_network,
    violated,
)

QUICK, ALL = 40, 200
QUESTIONS = 3
SEEDS = [
    pytest.param(seed, marks=[pytest.mark.slow] if seed >= QUICK else []) for seed in range(ALL)
]


@pytest.mark.parametrize("seed", SEEDS)
def test_every_encoding_is_the_network_at_every_point(seed: int) -> None:
    """No solver involved: the formula, evaluated at each input of the box, is the violation
    there."""
    random = np.random.default_rng(1000 + seed)
    network = random_network(seed)
    low, high = random_box(random, network)
    points = all_points(low, high)
    outputs = network.evaluate(points)
    for _ in range(QUESTIONS):
        cases = random_cases(random, outputs)
        expected = violated(outputs, cases)
        for style in Style:
            formula = encode(network, low, high, cases, style)
            assert (formula_at(formula, points) == expected).all(), style


@pytest.mark.parametrize("seed", SEEDS)
def test_bits_outside_the_box_satisfy_nothing(seed: int) -> None:
    """Whatever the solver may choose for the variables, a model is a point of the box that violates
    the property."""
    random = np.random.default_rng(2000 + seed)
    network = random_network(seed)
    low, high = random_box(random, network)
    cases = random_cases(random, network.evaluate(all_points(low, high)))
    for style in Style:
        formula = encode(network, low, high, cases, style)
        widths = {
            str(formula.terms[c.term].data): formula.terms[c.term].width
            for c in formula.coordinates
        }
        bits = {name: random.integers(0, 1 << width, 500) for name, width in widths.items()}
        held = formula_holds(formula, bits)
        for b in np.flatnonzero(held):
            point = np.array(formula.point({name: int(values[b]) for name, values in bits.items()}))
            assert (low <= point).all() and (point <= high).all()
            assert violated(network.evaluate(point[None]), cases).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_every_solver_says_what_enumeration_says(seed: int) -> None:
    random = np.random.default_rng(3000 + seed)
    network = random_network(seed)
    low, high = random_box(random, network)
    outputs = network.evaluate(all_points(low, high))
    cases = random_cases(random, outputs)
    expected = Status.SAT if violated(outputs, cases).any() else Status.UNSAT
    for solver, style in product(installed_solvers(), Style):
        answer = decide_by_bitvectors(
            network, low, high, cases, Budget.of_cpu_seconds(60.0), style, solver
        )
        assert answer.status is expected, (style, solver)
        if answer.witness is not None:
            assert (low <= answer.witness).all() and (answer.witness <= high).all()
            assert violated(network.evaluate(answer.witness[None]), cases).all()


def test_both_verdicts_occur() -> None:
    """The questions above are worth asking: a fair share of each verdict."""
    seen = []
    for seed in range(QUICK):
        random = np.random.default_rng(3000 + seed)
        network = random_network(seed)
        outputs = network.evaluate(all_points(*random_box(random, network)))
        seen += [
            bool(violated(outputs, random_cases(random, outputs)).any()) for _ in range(QUESTIONS)
        ]
    assert 0.2 < np.mean(seen) < 0.9
