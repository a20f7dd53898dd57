"""Law (f): on the same tiny networks, for every property, all methods give one verdict.

Networks of 2 or 3 inputs of 4 bits and 1 to 3 layers ``clip(round(scale a + offset), low, high)``,
in all rounding modes; a draw without a tie and without saturation in its first layer is drawn
again. Full enumeration evaluates them in fractions, with a rounding written here, so that the
thresholds are under test as well. Beside it: the search (bounds and branching only, its proof
checked, its counterexample replayed) and every bit-vector encoding by every solver.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from itertools import product

import numpy as np
import pytest

from bitcrown.budget import Budget
from bitcrown.check.certificates.integers.checker import check_integer_proof
from bitcrown.quant.network.graph import Dense, Input, IntegerNetwork, IntegerNode, Stairs
from bitcrown.quant.proof.writer import certificate_form, network_form, property_form
from bitcrown.quant.query import IntegerQuery, LinearConstraint
from bitcrown.quant.search.decide import decide_query
from bitcrown.quant.search.settings import SearchSettings
from bitcrown.quant.smt import solvers as smt
from bitcrown.quant.smt.formula import Style
from bitcrown.verdict import Status
from tests.exact_staircases import MODES, exact_rows
from tests.unit.quant.smt.tiny_networks import as_network

QUICK, ALL, PROPERTIES = 10, 200, 2
SEARCH_ONLY = SearchSettings(root_steps=30, steps=12, enumerate_points=1)
SEEDS = [
    pytest.param(seed, marks=[pytest.mark.slow] if seed >= QUICK else []) for seed in range(ALL)
]


@dataclass(frozen=True)
class Layer:
    """``clip(round(scale * (weight x + bias) + offset), low, high)``; ``weight``: [out, in]."""

    weight: np.ndarray
    bias: np.ndarray
    scale: Fraction
    offset: Fraction
    mode: str
    low: int
    high: int


@dataclass(frozen=True)
class Tiny:
    layers: tuple[Layer, ...]
    network: IntegerNetwork
    points: np.ndarray
    outputs: np.ndarray


def rounded(value: Fraction, mode: str) -> int:
    """Schoolbook rounding, by the distance to both neighbours."""
    below = math.floor(value)
    if value == below or mode == "floor":
        return below
    if mode == "ceil":
        return below + 1
    rest = value - below
    if rest != Fraction(1, 2):
        return below + int(rest > Fraction(1, 2))
    up = {"half_up": True, "half_even": below % 2 == 1, "half_away": value > 0}[mode]
    return below + int(up)


def evaluate(layers: tuple[Layer, ...], point: tuple[int, ...]) -> tuple[list[int], int, int]:
    """(outputs, ties, saturated elements of the first layer) of one input."""
    values, ties, saturated = list(point), 0, 0
    for number, layer in enumerate(layers):
        sums = [sum(int(w) * v for w, v in zip(row, values, strict=True)) for row in layer.weight]
        reals = [
            layer.scale * (s + int(b)) + layer.offset for s, b in zip(sums, layer.bias, strict=True)
        ]
        whole = [rounded(real, layer.mode) for real in reals]
        values = [min(max(w, layer.low), layer.high) for w in whole]
        if number == 0:
            ties = sum(real - math.floor(real) == Fraction(1, 2) for real in reals)
            saturated = sum(w != v for w, v in zip(whole, values, strict=True))
    return values, ties, saturated


def random_layer(random: np.random.Generator, inputs: int, mode: str) -> Layer:
    outputs = int(random.integers(2, 5))
    weight = random.integers(-8, 8, (outputs, inputs))
    scale = Fraction(int(random.choice([1, 1, 3])), int(random.choice([2, 4, 6, 8, 16, 20])))
    offset = Fraction(int(random.integers(-2, 3)), int(random.choice([1, 2])))
    low = int(random.choice([0, -8, -4]))
    return Layer(
        weight,
        random.integers(-20, 21, outputs),
        scale,
        offset,
        mode,
        low,
        low + int(random.choice([3, 15])),
    )


def tiny(seed: int) -> Tiny:
    """The network of a seed; modes go round with it."""
    random = np.random.default_rng(seed)
    while True:
        size = int(random.integers(2, 4))
        lowest = int(random.choice([0, -8]))
        layers: list[Layer] = []
        width = size
        for depth in range(int(random.integers(1, 4))):
            layers.append(random_layer(random, width, MODES[(seed + depth) % len(MODES)]))
            width = len(layers[-1].bias)
        points = list(product(range(lowest, lowest + 16), repeat=size))
        found = [evaluate(tuple(layers), point) for point in points]
        if sum(ties for _, ties, _ in found) and sum(saturated for *_, saturated in found):
            break
    nodes: list[IntegerNode] = [Input((size,), np.full(size, lowest), np.full(size, lowest + 15))]
    for layer in layers:
        shape = (len(layer.bias),)
        base, rows = exact_rows([layer.scale], [layer.offset], layer.low, layer.high, layer.mode)
        nodes.append(Dense(shape, len(nodes) - 1, layer.weight, layer.bias))
        nodes.append(Stairs(shape, len(nodes) - 1, base, rows, rows, layer.mode))
    outputs = np.array([values for values, *_ in found], dtype=np.int64)
    return Tiny(tuple(layers), as_network(nodes), np.array(points, dtype=np.int64), outputs)


def random_query(random: np.random.Generator, made: Tiny) -> IntegerQuery:
    """A box, and one to three cases whose bounds some outputs just reach or just miss."""
    node = made.network.nodes[0]
    assert isinstance(node, Input)
    low, high = np.sort(random.integers(node.low, node.high + 1, (2, len(node.low))), axis=0)
    inside = ((made.points >= low) & (made.points <= high)).all(axis=1)
    cases = []
    for _ in range(int(random.integers(1, 4))):
        case = []
        for _ in range(int(random.integers(1, 3))):
            first, second = (int(i) for i in random.permutation(made.outputs.shape[1])[:2])
            row = (
                {first: 1, second: -1}
                if random.integers(2)
                else {first: int(random.choice([-2, 1]))}
            )
            reached = sum(factor * made.outputs[inside][:, i] for i, factor in row.items())
            case.append(
                LinearConstraint(
                    tuple(sorted(row.items())), int(reached.min()) - int(random.integers(0, 2))
                )
            )
        cases.append(tuple(case))
    return IntegerQuery(made.network, low, high, tuple(cases))


def by_enumeration(made: Tiny, query: IntegerQuery) -> Status:
    inside = ((made.points >= query.low) & (made.points <= query.high)).all(axis=1)
    for values in made.outputs[inside].tolist():
        for case in query.cases:
            if all(sum(factor * values[i] for i, factor in c.terms) <= c.bound for c in case):
                return Status.SAT
    return Status.UNSAT


def by_search(query: IntegerQuery) -> Status:
    """Its evidence is looked at as well."""
    found = decide_query(query, Budget.of_cpu_seconds(60.0), 0, True, None, SEARCH_ONLY)
    if found.status is Status.SAT:
        assert (
            found.witness is not None
            and query.violated(query.network.evaluate(found.witness[None]))[0]
        )
        assert (query.low <= found.witness).all() and (found.witness <= query.high).all()
    else:
        assert found.proof is not None
        certificate = certificate_form(query, found.proof, found.roots)
        finding = check_integer_proof(
            network_form(query.network), property_form(query), certificate
        )
        assert finding.accepted, finding.message
    return found.status


def by_solver(query: IntegerQuery, solver: str, style: Style) -> Status:
    outputs = range(query.network.nodes[-1].shape[0])
    rows = [
        [(dict(constraint.terms), constraint.bound) for constraint in case] for case in query.cases
    ]
    cases = tuple(
        tuple((tuple(terms.get(i, 0) for i in outputs), bound) for terms, bound in case)
        for case in rows
    )
    return smt.decide_by_bitvectors(
        query.network, query.low, query.high, cases, Budget.of_cpu_seconds(60.0), style, solver
    ).status


@pytest.mark.parametrize("seed", SEEDS)
def test_all_methods_give_one_verdict(seed: int) -> None:
    made = tiny(seed)
    assert (made.network.evaluate(made.points) == made.outputs).all()
    random = np.random.default_rng(5000 + seed)
    for _ in range(PROPERTIES):
        query = random_query(random, made)
        expected = by_enumeration(made, query)
        assert by_search(query) is expected
        for solver, style in product(smt.installed_solvers(), Style):
            assert by_solver(query, solver, style) is expected, (solver, style)


def test_the_networks_and_questions_are_worth_asking() -> None:
    """Every mode, every depth, and a fair share of both verdicts among the networks of the default
    run."""
    modes: Counter[str] = Counter()
    verdicts: list[bool] = []
    for seed in range(QUICK):
        made, random = tiny(seed), np.random.default_rng(5000 + seed)
        modes.update(layer.mode for layer in made.layers)
        verdicts += [
            by_enumeration(made, random_query(random, made)) is Status.SAT
            for _ in range(PROPERTIES)
        ]
    assert set(modes) == set(MODES)
    assert 0.2 < np.mean(verdicts) < 0.9
