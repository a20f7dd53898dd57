"""Tiny integer networks with every kind of step, questions about them, and their answers by
enumeration."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import product
from math import prod

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
from bitcrown.quant.smt.property_rows import DenseCase
from bitcrown.quant.smt.terms import BitvectorFormula, BitvectorTerm

STEP_KINDS = ("shift", "floor", "half even", "coarse jumps", "sign", "irregular")
SHAPES = ("chain", "residual", "convolution", "affine outputs")


class IdentityEntry:
    """The file's tensor is the integers themselves."""

    def integers(self, values: np.ndarray) -> Ints:
        return np.asarray(values, dtype=np.int64)

    def box(self, lower: tuple[Fraction, ...], upper: tuple[Fraction, ...]) -> tuple[Ints, Ints]:
        return np.array([-int(-x // 1) for x in lower]), np.array([int(x // 1) for x in upper])

    def representative(
        self, integers: Ints, lower: tuple[Fraction, ...], upper: tuple[Fraction, ...]
    ) -> np.ndarray:
        return integers


def as_network(nodes: Sequence[IntegerNode]) -> IntegerNetwork:
    size = prod(nodes[-1].shape)
    return IntegerNetwork(
        tuple(nodes), len(nodes) - 1, IdentityEntry(), Exit(np.zeros(size, np.int64), ())
    )


def thresholds(random: np.random.Generator, kind: str, reach: int) -> tuple[int, list[int]]:
    """(base, thresholds) of one channel whose accumulator is about ``-reach .. reach``."""
    steps = int(random.integers(2, 9))
    base = int(random.integers(-4, 3))
    if kind in ("shift", "floor"):
        bits = int(random.integers(0, 5))
        first = int(random.integers(-reach // 2 - 1, reach // 2 + 1))
        half = (1 << bits) // 2 if kind == "shift" else 0
        return base, [first + half + k * (1 << bits) for k in range(steps)]
    if kind == "half even":
        scale = Fraction(int(random.integers(1, 12)), int(random.integers(3, 29)))
        levels = [round(a * scale) for a in range(-reach, reach + 1)]
        clipped = [min(max(level, base), base + steps) for level in levels]
        found = [
            a - reach for a in range(1, len(levels)) for _ in range(clipped[a] - clipped[a - 1])
        ]
        return clipped[0], found
    if kind == "coarse jumps":
        return base, sorted(
            int(t)
            for t in random.integers(-reach // 3 - 1, reach // 3 + 1, steps)
            for _ in range(2)
        )
    if kind == "sign":
        return -1, [int(random.integers(-2, 3))] * 2
    inner = sorted(int(t) for t in random.integers(-reach, reach + 1, steps))
    return base, [-WIDTH_LIMIT, *inner, WIDTH_LIMIT]


def staircase(
    random: np.random.Generator,
    shape: tuple[int, ...],
    source: int,
    reach: int,
    kind: str,
    per_channel: bool,
) -> Stairs:
    channels = shape[0] if per_channel else 1
    made = [thresholds(random, kind, reach) for _ in range(channels)]
    longest = max(len(row) for _, row in made)
    late = np.array([row + [WIDTH_LIMIT] * (longest - len(row)) for _, row in made], dtype=np.int64)
    return Stairs(shape, source, np.array([base for base, _ in made]), late, late, kind)


def random_network(seed: int) -> IntegerNetwork:
    """2-3 inputs of 4 bits, 1-3 layers; shape and step kinds go round with the seed, the rest is
    drawn."""
    random = np.random.default_rng(seed)
    shape = SHAPES[seed % len(SHAPES)]
    size = 3 if shape == "convolution" else int(random.integers(2, 4))
    lowest = int(random.choice([0, -8]))
    nodes: list[IntegerNode] = [Input((size,), np.full(size, lowest), np.full(size, lowest + 15))]

    def add(node: IntegerNode) -> int:
        nodes.append(node)
        return len(nodes) - 1

    def dense(source: int, width: int) -> int:
        weight = random.integers(-8, 8, (width, prod(nodes[source].shape)))
        return add(Dense((width,), source, weight, random.integers(-20, 21, width)))

    def stepped(source: int, depth: int) -> int:
        kind = STEP_KINDS[(seed // len(SHAPES) + depth) % len(STEP_KINDS)]
        return add(
            staircase(random, nodes[source].shape, source, 60, kind, bool(random.integers(2)))
        )

    last = 0
    if shape == "convolution":
        last = add(Gather((1, 1, 4), (0, 0), np.array([0, 4, 2, 1])))
        weight = random.integers(-8, 8, (2, 1, 1, 2))
        last = add(
            Conv(
                (2, 1, 4),
                last,
                (1, 4),
                weight,
                random.integers(-9, 9, 2),
                (1, 1),
                (0, 1, 0, 0),
                pad_value=3,
            )
        )
        last = add(MaxPool((2, 1, 2), stepped(last, 0), (1, 4), (1, 2), (1, 2)))
    for depth in range(1, 1 + int(random.integers(1, 3 if shape == "convolution" else 4))):
        before = last
        last = stepped(dense(last, int(random.integers(2, 5))), depth)
        if shape == "residual" and prod(nodes[before].shape) == prod(nodes[last].shape):
            bias = random.integers(-5, 6, 1)
            last = stepped(
                add(WeightedSum(nodes[last].shape, (last, before), (3, -2), bias)), depth + 1
            )
    if shape == "affine outputs":
        dense(last, 3)
    return as_network(nodes)


def all_points(low: Ints, high: Ints) -> Ints:
    """Every integer point of the box: [B, N]."""
    axes = [range(int(a), int(b) + 1) for a, b in zip(low, high, strict=True)]
    return np.array(list(product(*axes)), dtype=np.int64)


def random_box(random: np.random.Generator, network: IntegerNetwork) -> tuple[Ints, Ints]:
    """A box inside the input format; now and then an input is fixed, now and then everything is
    allowed."""
    entry = network.nodes[0]
    assert isinstance(entry, Input)
    if random.integers(4) == 0:
        return entry.low, entry.high
    ends = np.sort(random.integers(entry.low, entry.high + 1, (2, len(entry.low))), axis=0)
    return ends[0], ends[1]


def random_cases(random: np.random.Generator, outputs: Ints) -> tuple[DenseCase, ...]:
    """Rows whose bounds are at or just below what some output reaches, so that both verdicts are
    close.

    ``outputs``: [B, M], all outputs over the box.
    """
    cases: list[DenseCase] = []
    for _ in range(int(random.integers(1, 4))):
        rows = []
        for _ in range(int(random.integers(1, 3))):
            row = np.zeros(outputs.shape[1], dtype=np.int64)
            kind = random.integers(3)
            chosen = random.permutation(outputs.shape[1])
            if kind == 0:
                row[chosen[0]] = random.choice([-3, -1, 1, 2])
            elif kind == 1:
                row[chosen[0]], row[chosen[1]] = 1, -1
            else:
                row = random.integers(-3, 4, outputs.shape[1])
            reached = np.sort(outputs @ row)
            at = reached[int(random.integers(0, max(1, len(reached) // 20)))]
            rows.append((tuple(int(c) for c in row), int(at) - int(random.integers(0, 2))))
        cases.append(tuple(rows))
    return tuple(cases)


def violated(outputs: Ints, cases: tuple[DenseCase, ...]) -> np.ndarray:
    """[B, M] -> [B] whether some case holds."""
    out = np.zeros(len(outputs), dtype=bool)
    for case in cases:
        held = np.ones(len(outputs), dtype=bool)
        for row, bound in case:
            held &= outputs @ np.array(row) <= bound
        out |= held
    return out


def formula_holds(formula: BitvectorFormula, assignment: dict[str, Ints]) -> np.ndarray:
    """The conjunction of all assertions [B] for unsigned values [B] of the variables: a reader of
    terms of its own."""
    values: list[Ints] = []
    size = len(next(iter(assignment.values()))) if assignment else 1
    for term in formula.terms:
        args = [values[arg] for arg in term.args]
        widths = [formula.terms[arg].width for arg in term.args]
        values.append(_term_value(term, args, widths, assignment, size))
    held = np.ones(size, dtype=bool)
    for assertion in formula.assertions:
        held &= values[assertion].astype(bool)
    return held


def formula_at(formula: BitvectorFormula, points: Ints) -> np.ndarray:
    """Whether the assertions hold [B] when the variables say the network inputs ``points`` [B,
    N]."""
    bits: dict[str, Ints] = {}
    for coordinate in formula.coordinates:
        term = formula.terms[coordinate.term]
        bits[str(term.data)] = (points[:, coordinate.index] - coordinate.origin) & (
            (1 << term.width) - 1
        )
    return np.broadcast_to(formula_holds(formula, bits), (len(points),))


def _signed(value: Ints, width: int) -> Ints:
    return value - ((value >> (width - 1)) << width)


def _term_value(
    term: BitvectorTerm, args: list[Ints], widths: list[int], assignment: dict[str, Ints], size: int
) -> Ints:
    operator = term.operator
    if operator == "variable":
        return assignment[str(term.data)]
    if operator == "constant":
        return np.full(size, int(term.data), dtype=np.int64)
    if operator in ("bvslt", "bvsle"):
        args = [_signed(arg, width) for arg, width in zip(args, widths, strict=True)]
    rules = {
        "bvadd": lambda a, b: a + b,
        "bvmul": lambda a, b: a * b,
        "bvneg": lambda a: -a,
        "bvnot": lambda a: ~a,
        "concat": lambda a, b: (a << widths[1]) | b,
        "extract": lambda a: a >> int(term.data),
        "zero_extend": lambda a: a,
        "sign_extend": lambda a: _signed(a, widths[0]),
        "ite": lambda a, b, c: np.where(a.astype(bool), b, c),
        "bvult": lambda a, b: a < b,
        "bvule": lambda a, b: a <= b,
        "bvslt": lambda a, b: a < b,
        "bvsle": lambda a, b: a <= b,
        "and": lambda a, b: a & b,
        "or": lambda a, b: a | b,
    }
    result = np.asarray(rules[operator](*args), dtype=np.int64)
    return result & ((1 << max(1, term.width)) - 1)
