"""Random integer networks small enough to enumerate: every node kind, ties, saturation, repeated
and missing steps."""

from __future__ import annotations

from fractions import Fraction
from itertools import product

import numpy as np

from bitcrown.quant.network.graph import (
    WIDTH_LIMIT,
    Conv,
    Dense,
    Exit,
    Gather,
    Input,
    IntegerNetwork,
    IntegerNode,
    Ints,
    MaxPool,
    Stairs,
    WeightedSum,
)
from bitcrown.quant.query import IntegerQuery, LinearConstraint

WHOLE = tuple(Fraction(v) for v in range(-4000, 4001))
"""What the output integers from -4000 on stand for: themselves."""


class IdentityEntry:
    """The file's input is the integer itself."""

    def integers(self, values: np.ndarray) -> Ints:
        return np.rint(values).astype(np.int64)

    def box(self, lower: tuple[Fraction, ...], upper: tuple[Fraction, ...]) -> tuple[Ints, Ints]:
        return np.array([-(-v // 1) for v in lower]), np.array([v // 1 for v in upper])

    def representative(
        self, integers: Ints, lower: tuple[Fraction, ...], upper: tuple[Fraction, ...]
    ) -> np.ndarray:
        return integers


def random_staircase(
    rng: np.random.Generator, shape: tuple[int, ...], source: int, exact: bool = True
) -> Stairs:
    """Equal steps with saturation, or any steps at all; some repeated, some never reached; perhaps
    per channel."""
    size = int(np.prod(shape))
    channels = int(rng.choice([1, size]))
    steps = int(rng.integers(1, 9))
    if rng.random() < 0.5:
        width = int(rng.choice([1, 2, 4, 8, 16]))
        first = rng.integers(-2 * width, width + 1, size=(channels, 1))
        late = first + width * np.arange(steps)[None]
    else:
        late = np.sort(rng.integers(-25, 26, size=(channels, steps)), axis=1)
    if rng.random() < 0.2:
        late[:, -1] = WIDTH_LIMIT
    early = late if exact else late - np.minimum(rng.integers(0, 4, size=(channels, 1)), 3)
    return Stairs(
        shape,
        source,
        rng.integers(-4, 3, size=channels),
        early.astype(np.int64),
        late.astype(np.int64),
    )


def random_dense(rng: np.random.Generator, source: int, inputs: int, outputs: int) -> Dense:
    scale = int(rng.choice([2, 4, 7]))
    weight = rng.integers(-scale, scale + 1, size=(outputs, inputs))
    return Dense((outputs,), source, weight, rng.integers(-10, 11, size=outputs))


def finished(nodes: list[IntegerNode]) -> IntegerNetwork:
    size = int(np.prod(nodes[-1].shape))
    return IntegerNetwork(
        tuple(nodes), len(nodes) - 1, IdentityEntry(), Exit(np.full(size, -4000), size * (WHOLE,))
    )


def random_chain(rng: np.random.Generator, exact: bool = True) -> IntegerNetwork:
    """2 or 3 inputs of 4 bits, 1 to 3 layers, a staircase after each; sometimes none after the
    last."""
    size = int(rng.integers(2, 4))
    nodes: list[IntegerNode] = [
        Input((size,), np.zeros(size, dtype=np.int64), np.full(size, 15, dtype=np.int64))
    ]
    layers = int(rng.integers(1, 4))
    for layer in range(layers):
        out = int(rng.integers(2, 5))
        nodes.append(random_dense(rng, len(nodes) - 1, size, out))
        if layer + 1 < layers or rng.random() < 0.8:
            nodes.append(random_staircase(rng, (out,), len(nodes) - 1, exact))
        size = out
    return finished(nodes)


def random_branched(rng: np.random.Generator, exact: bool = True) -> IntegerNetwork:
    """A convolution on a 1x2x2 image, a maximum, a sum of two paths, a permutation: every node kind
    once."""
    node_input = Input((1, 2, 2), np.zeros(4, dtype=np.int64), np.full(4, 7, dtype=np.int64))
    kernel = rng.integers(-4, 5, size=(2, 1, 2, 2))
    padding = (1, 0, 0, 1)
    conv = Conv(
        (2, 2, 2),
        0,
        (2, 2),
        kernel,
        rng.integers(-5, 6, size=2),
        padding=padding,
        pad_value=int(rng.integers(0, 3)),
    )
    steps = random_staircase(rng, (2, 2, 2), 1, exact)
    pool = MaxPool((2, 2, 2), 2, (2, 2), (2, 2), (1, 1), (0, 0, 1, 1))
    total = WeightedSum(
        (2, 2, 2), (1, 3), (1, int(rng.choice([-2, 3]))), rng.integers(-3, 4, size=8)
    )
    again = random_staircase(rng, (2, 2, 2), 4, exact)
    mixed = Gather((6,), (5, 2), rng.permutation(16)[:6])
    last = random_dense(rng, 6, 6, 3)
    return finished(
        [
            node_input,
            conv,
            steps,
            pool,
            total,
            again,
            mixed,
            last,
            random_staircase(rng, (3,), 7, exact),
        ]
    )


def random_query(rng: np.random.Generator, network: IntegerNetwork) -> IntegerQuery:
    """A random box and 1 to 3 random cases of 1 or 2 constraints that are close to being decided
    either way."""
    node = network.nodes[0]
    assert isinstance(node, Input)
    ends = np.sort(rng.integers(node.low, node.high + 1, size=(2, node.low.size)), axis=0)
    if rng.random() < 0.3:
        ends = np.stack([node.low, node.high])
    outputs = network.evaluate(box_points(ends[0], ends[1]))
    cases = []
    for _ in range(int(rng.integers(1, 4))):
        case = []
        for _ in range(int(rng.integers(1, 3))):
            used = rng.permutation(outputs.shape[1])[: int(rng.integers(1, 4))]
            factors = rng.choice([-2, -1, 1, 2], size=len(used))
            bound = int((outputs[:, used] @ factors).min()) + int(rng.integers(-2, 2))
            terms = sorted((int(i), int(c)) for i, c in zip(used, factors, strict=True))
            case.append(LinearConstraint(tuple(terms), bound))
        cases.append(tuple(case))
    return IntegerQuery(network, ends[0], ends[1], tuple(cases))


def box_points(low: Ints, high: Ints) -> Ints:
    """Every point of the box, by the standard library."""
    ranges = [range(a, b + 1) for a, b in zip(low.tolist(), high.tolist(), strict=True)]
    return np.array(list(product(*ranges)), dtype=np.int64)


def is_satisfiable(query: IntegerQuery) -> bool:
    """By full enumeration, constraint by constraint in Python integers."""
    outputs = query.network.evaluate(box_points(query.low, query.high)).tolist()
    return any(
        all(sum(c * row[i] for i, c in constraint.terms) <= constraint.bound for constraint in case)
        for row in outputs
        for case in query.cases
    )
