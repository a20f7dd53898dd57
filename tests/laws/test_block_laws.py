"""ManyBounds read in blocks mean what the same bounds mean when each is read by itself.

Two spaces instead of one keep a text from being a block. So every property here is read twice, and
both readings have to agree on everything: boxes, constraints, rounded ends, and which points
satisfy the assertion.
"""

from __future__ import annotations

import math
import random
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from bitcrown.check.truth import AssertionCheck
from bitcrown.check.witness import inward_box
from bitcrown.errors import PropertyError
from bitcrown.spec.exact_vector import ExactVector
from bitcrown.spec.normalise import problem_from_query
from bitcrown.spec.problem import Problem
from bitcrown.spec.query import And, Formula, ManyBounds, Or, Query
from bitcrown.spec.reader import parse_query
from bitcrown.spec.rounding import box_ends, round_down, round_up

N = 60


def number(rng: random.Random, centre: float) -> str:
    value = centre + rng.uniform(-0.5, 0.5)
    return rng.choice(
        [
            repr(value),
            repr(float(np.float32(value))),
            str(Fraction(round(value * 16), 16).limit_denominator(16) + 0.0),
            f"{value:.3f}",
            f"{value:.25f}",
            f"{value:.4e}",
            str(round(value)),
            f"{'-' * (centre < 0)}0.{rng.randrange(10**18):018d}",
        ]
    )


def bounds(rng: random.Random, letter: str, shape: tuple[int, ...]) -> list[str]:
    """Two or more bounds of every element; some pinned, some twice, a few contradict."""
    lines = []
    for k in range(math.prod(shape)):
        index = np.unravel_index(k, shape)
        name = f"{letter}_{k}" if len(shape) == 1 else f"{letter}[{','.join(map(str, index))}]"
        low, high = number(rng, -1), number(rng, 1)
        if rng.random() < 0.1:
            high = low
        if rng.random() < 0.003:
            low, high = high, low
        lines += [f"(<= {name} {high})", f"(>= {name} {low})"]
        if rng.random() < 0.1:
            lines.append(f"(<= {name} {number(rng, 1)})")
    if rng.random() < 0.3:
        rng.shuffle(lines)
    return lines


def text_of(rng: random.Random, version: int) -> str:
    shape = (N,) if version == 1 else (3, N // 3)
    if version == 1:
        head = [f"(declare-const {t}_{k} Real)" for t, m in (("X", N), ("Y", 3)) for k in range(m)]
        outputs = ["Y_0", "Y_1", "Y_2"]
    else:
        head = [
            "(vnnlib-version <2.0>)",
            "(declare-network N (declare-input X float32 [3,20]) (declare-output Y float32 [3]))",
        ]
        outputs = ["Y[0]", "Y[1]", "Y[2]"]
    lines = [f"(assert {bound})" for bound in bounds(rng, "X", shape)]
    if rng.random() < 0.7:
        cases = []
        for _ in range(rng.randrange(1, 4)):
            inside = bounds(rng, "X", shape) if rng.random() < 0.8 else []
            inside.insert(rng.randrange(len(inside) + 1), f"(<= {outputs[0]} {outputs[1]})")
            inside.append(f"(>= {outputs[rng.randrange(3)]} {number(rng, 0)})")
            cases.append(f"(and {' '.join(inside)})")
        extra = f"(not {cases[0]})" if rng.random() < 0.1 else ""
        lines.append(f"(assert (or {' '.join(cases)} {extra}))")
    lines.insert(rng.randrange(len(lines)), f"(assert (<= {outputs[2]} 0.5))")
    return "\n".join(head + lines) + "\n"


def has_block(formula: Formula) -> bool:
    if isinstance(formula, And | Or):
        return any(map(has_block, formula.args))
    return isinstance(formula, ManyBounds)


def both(text: str) -> tuple[tuple[Query, Problem], tuple[Query, Problem]]:
    one, other = parse_query(text), parse_query(text.replace("= X", "=  X"))
    assert has_block(one.assertion) and not has_block(other.assertion)
    files = {"N": Path("n.onnx")}
    return (one, problem_from_query(one, files)), (other, problem_from_query(other, files))


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("seed", range(9))
def test_blocks_and_trees_give_the_same_problem(version: int, seed: int) -> None:
    rng = random.Random(seed + 100 * version)
    (query, problem), (plain, wanted) = both(text_of(rng, version))
    assert len(problem.cases) == len(wanted.cases)
    assert len(problem.notes) == len(wanted.notes) and problem.covers_all
    for case, due in zip(problem.cases, wanted.cases, strict=True):
        assert isinstance(case.lower, ExactVector)
        assert tuple(case.lower) == tuple(due.lower) and tuple(case.upper) == tuple(due.upper)
        assert set(case.constraints) == set(due.constraints)
        for kind in (np.float32, np.float64, np.float16, np.int8):
            kinds = np.array([kind] * N, dtype=object)
            found = box_ends(case.lower, case.upper, kinds.tolist())
            wished = box_ends(due.lower, due.upper, kinds.tolist())
            assert all(map(np.array_equal, found, wished))
            inward = inward_box(case.lower, case.upper, kinds)
            assert all(map(np.array_equal, inward, inward_box(due.lower, due.upper, kinds)))
    check, due_check = AssertionCheck(query), AssertionCheck(plain)
    agreed = 0
    for case in wanted.cases:
        for _ in range(10):
            share = rng.choice([0.0, 1.0, 0.5, rng.random()])
            x = np.array(
                [
                    float(lo + (hi - lo) * Fraction(share))
                    for lo, hi in zip(case.lower, case.upper, strict=True)
                ]
            )
            y = np.array([rng.uniform(-1, 1) for _ in range(3)])
            for kind in (np.float32, np.float64):
                values = {"X": x.astype(kind), "Y": y.astype(kind)}
                for rounded in ((), ("X",)):
                    assert check.holds(values, rounded) == due_check.holds(values, rounded)
                agreed += check.holds(values, ("X",))
    assert not wanted.cases or agreed or seed % 3


def test_numbers_are_rounded_as_fractions_are() -> None:
    rng = random.Random(1)
    mantissas = [0, 1, -1, 5, 10**18 - 1, 1 - 10**18, 9007199254740993, 2**53, 2**53 + 1]
    mantissas += [rng.randrange(-(10**18), 10**18) >> rng.randrange(60) for _ in range(3000)]
    # Float64s, and middles between two, written out: there rounding twice would go wrong.
    mantissas += [(2**53 + 2 * rng.randrange(2**40) + 1) for _ in range(300)]
    exponents = [rng.choice([0, 1, 3, 17, 18, 22, 27, 28, 35, -3, -400]) for _ in mantissas]
    vector = ExactVector(np.array(mantissas), np.array(exponents, dtype=np.int16))
    exact = [Fraction(m) * Fraction(10) ** -e for m, e in zip(mantissas, exponents, strict=True)]
    assert list(vector) == exact and vector == tuple(exact)

    def near(value: Fraction) -> float:
        try:
            return float(value)
        except OverflowError:
            return math.inf if value > 0 else -math.inf

    assert vector.nearest().tolist() == [near(value) for value in exact]
    assert vector.rounded(True).tolist() == [round_up(value) for value in exact]
    assert vector.rounded(False).tolist() == [round_down(value) for value in exact]
    order = rng.sample(range(len(exact)), len(exact))
    other = vector.taken(np.array(order))
    due = [a < exact[k] for a, k in zip(exact, order, strict=True)]
    assert vector.is_less(other).tolist() == due
    assert not vector.is_less(vector).any()
    third = ExactVector.of([Fraction(1, 3), Fraction(1, 4)])
    assert list(third) == [Fraction(1, 3), Fraction(1, 4)] and third.others == {0: Fraction(1, 3)}
    assert third.rounded(True)[0] == round_up(Fraction(1, 3))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (("(<= X_7 ", "(<= X_99 "), "'X_99' is neither a number nor a declared variable"),
        (("(declare-const X_7 Real)\n", ""), "X_7"),
        (("(declare-const X_7 Real)", "(declare-const X_6 Real)"), "X_6 is declared twice"),
        (("(assert (<= X_0", "(assert (assert (<= X_0"), "line"),
        (("(assert (<= X_0", "(and (<= X_0"), "line"),
    ],
)
def test_faults_inside_blocks_are_found(change: tuple[str, str], what: str) -> None:
    lines = [f"(declare-const X_{k} Real)" for k in range(N)] + ["(declare-const Y_0 Real)"]
    lines += [f"(assert (<= X_{k} 1.0))\n(assert (>= X_{k} 0.0))" for k in range(N)]
    text = "\n".join([*lines, "(assert (<= Y_0 0.0))"])
    assert parse_query(text)
    with pytest.raises(PropertyError) as caught:
        parse_query(text.replace(*change, 1))
    assert what in str(caught.value)


@pytest.mark.parametrize(
    ("dtype", "value", "is_fine"),
    [
        ("float32", "0.5", True),
        ("int8", "5", True),
        ("int8", "0.5", False),
        ("uint8", "-5", False),
        ("float16", "70000.0", False),
        ("float32", "1e+39", False),
    ],
)
def test_types_are_checked_inside_blocks(dtype: str, value: str, is_fine: bool) -> None:
    head = (
        f"(vnnlib-version <2.0>)\n(declare-network f (declare-input X {dtype} [{N}]) "
        f"(declare-output Y {dtype} []))\n"
    )
    text = head + "\n".join(f"(assert (<= X[{k}] {value}))" for k in range(N))
    if is_fine:
        assert len(parse_query(text).assertion.args) in (1, N)
        with pytest.raises(PropertyError, match="out of range"):
            parse_query(text.replace("X[59]", "X[60]"))
    else:
        with pytest.raises(PropertyError, match=r"line 3: .* is no number of the type"):
            parse_query(text)
