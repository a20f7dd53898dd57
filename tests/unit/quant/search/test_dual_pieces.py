"""The pieces of a bound, each against brute force: products, adjoints, block minima, reduced costs,
corners."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from bitcrown.quant.bounds.intervals import StairTable
from bitcrown.quant.bounds.staircase_corners import corners
from bitcrown.quant.bounds.staircase_dual import (
    pool_minimum,
    reduced_input,
    reduced_stairs,
    stair_costs,
    stair_minimum,
)
from bitcrown.quant.network.graph import WIDTH_LIMIT, Conv, Gather, WeightedSum, forward
from bitcrown.quant.network.linear_steps import LinearStep, Overflow, exact_product
from tests.tiny_integer_networks import random_staircase


def test_products_of_wide_integers_are_exact_or_refused() -> None:
    wide = np.array([[2**30 + 1, 3]], dtype=np.int64)
    assert exact_product(wide, wide.T)[0, 0] == (2**30 + 1) ** 2 + 9
    with pytest.raises(Overflow):
        exact_product(wide * 2, wide.T * 2)


def linear_steps(rng: np.random.Generator) -> list[tuple[LinearStep, list[int]]]:
    weight = rng.integers(-9, 10, size=(4, 1, 3, 2))
    conv = Conv(
        (4, 2, 2),
        0,
        (5, 4),
        weight,
        rng.integers(-9, 10, size=4),
        (2, 3),
        (1, 1, 0, 1),
        (1, 2),
        2,
        pad_value=3,
    )
    total = WeightedSum((6,), (0, 1), (3, -2), rng.integers(-5, 6, size=6))
    gather = Gather((7,), (0, 1), rng.integers(0, 12, size=7))
    return [
        (LinearStep(conv, [40]), [40]),
        (LinearStep(total, [6, 6]), [6, 6]),
        (LinearStep(gather, [6, 6]), [6, 6]),
    ]


@pytest.mark.parametrize("seed", range(5))
def test_linear_steps_equal_the_graph_and_their_adjoints(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for step, widths in linear_steps(rng):
        values = [rng.integers(-20, 21, size=(3, width)) for width in widths]
        image = step.forward(list(values))
        assert (image == forward(step.node, values, values[0])).all()
        coefficients = rng.integers(-7, 8, size=image.shape)
        pulled = step.adjoint(coefficients)
        direct = (coefficients * image).sum(axis=1)
        through = coefficients @ step.offset + sum(
            (c * v).sum(axis=1) for c, v in zip(pulled, values, strict=True)
        )
        assert (direct == through).all()
        assert step.forward([v.astype(np.float64) for v in values]).tolist() == image.tolist()


@pytest.mark.parametrize("bits", range(42, 54))
def test_linear_steps_are_exact_on_either_side_of_what_float64_holds(bits: int) -> None:
    rng = np.random.default_rng(bits)
    for step, widths in linear_steps(rng):
        values = [rng.integers(-(2**bits), 2**bits, size=(2, width)) | 1 for width in widths]
        assert (step.forward(list(values)) == forward(step.node, values, values[0])).all()
        coefficients = rng.integers(-(2**bits), 2**bits, size=(2, step.size)) | 1
        for k, pulled in enumerate(step.adjoint(coefficients)):
            for column in range(
                0, widths[k], 7
            ):  # against the matrix, column by column, in Python integers
                unit = [np.zeros((1, width), dtype=np.int64) for width in widths]
                unit[k][0, column] = 1
                entries = (step.forward(unit)[0] - step.offset).tolist()
                for row, found in zip(
                    coefficients.tolist(), pulled[:, column].tolist(), strict=True
                ):
                    assert found == sum(c * w for c, w in zip(row, entries, strict=True))


@pytest.mark.parametrize("seed", range(5))
def test_affine_intervals_are_attained(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for step, widths in linear_steps(rng):
        ends = [np.sort(rng.integers(-20, 21, size=(2, 1, width)), axis=0) for width in widths]
        low, high = step.interval([e[0] for e in ends], [e[1] for e in ends])
        element = int(rng.integers(low.shape[1]))
        seed_row = np.zeros((1, low.shape[1]), dtype=np.int64)
        seed_row[0, element] = 1
        pulled = step.adjoint(seed_row)
        for end, chosen in ((low, (0, 1)), (high, (1, 0))):
            best = [
                np.where(c > 0, e[chosen[0]], e[chosen[1]])
                for c, e in zip(pulled, ends, strict=True)
            ]
            assert step.forward(best)[0, element] == end[0, element]


@pytest.mark.parametrize("seed", range(60))
def test_block_minimum_of_a_staircase_equals_enumeration(seed: int) -> None:
    rng = np.random.default_rng(seed)
    node = random_staircase(rng, (3,), 0, exact=seed % 2 == 0)
    table = StairTable.of(node)
    low = rng.integers(-35, 20, size=(2, 3))
    high = low + rng.integers(0, 40, size=(2, 3))
    outer, inner = rng.integers(-6, 7, size=(2, 3)), rng.integers(-4, 5, size=(2, 3))
    found = stair_minimum(table, outer, inner, low, high)
    for r, e in product(range(2), range(3)):
        args = np.arange(low[r, e], high[r, e] + 1)[None]
        values = [table.base[e] + table_level(table, side, e, args[0]) for side in table.sides()]
        brute = min(int((outer[r, e] * v - inner[r, e] * args[0]).min()) for v in values)
        assert found[r, e] == brute


def table_level(table: StairTable, side: np.ndarray, element: int, args: np.ndarray) -> np.ndarray:
    return (args[:, None] >= side[table.channel[element]][None]).sum(axis=1)


@pytest.mark.parametrize("seed", range(60))
def test_reduced_costs_keep_exactly_the_affordable_arguments(seed: int) -> None:
    rng = np.random.default_rng(seed)
    table = StairTable.of(random_staircase(rng, (1,), 0))
    low = rng.integers(-35, 20, size=(1, 1))
    high = low + rng.integers(0, 40, size=(1, 1))
    outer, inner = rng.integers(-6, 7, size=(1, 1)), rng.integers(-4, 5, size=(1, 1))
    slack = rng.integers(0, 12, size=1)
    new_low, new_high = reduced_stairs(table, outer, inner, low, high, slack)
    args = np.arange(low[0, 0], high[0, 0] + 1)
    costs = (
        outer[0, 0] * (table.base[0] + table_level(table, table.late, 0, args)) - inner[0, 0] * args
    )
    kept = args[costs <= costs.min() + slack[0]]
    assert new_low[0, 0] <= kept.min() and kept.max() <= new_high[0, 0]
    limit = stair_costs(table, outer, inner, low, high)[0].min() + slack[0]
    assert limit == costs.min() + slack[0]


def test_reduced_costs_of_inputs() -> None:
    low, high = np.array([[0, 0, 0]]), np.array([[10, 10, 10]])
    new_low, new_high = reduced_input(np.array([[3, -4, 0]]), low, high, np.array([13]))
    assert new_low.tolist() == [[0, 7, 0]] and new_high.tolist() == [[4, 10, 10]]


@pytest.mark.parametrize("seed", range(80))
def test_block_minimum_of_a_maximum_equals_enumeration(seed: int) -> None:
    rng = np.random.default_rng(seed)
    size = int(rng.integers(1, 5))
    low = rng.integers(-4, 3, size=(1, 1, size))
    high = low + rng.integers(0, 5, size=low.shape)
    inner, outer = rng.integers(-4, 5, size=low.shape), rng.integers(-5, 6, size=(1, 1))
    present = np.ones(low.shape, dtype=bool)
    if size > 1 and rng.random() < 0.3:
        present[0, 0, -1] = False
    value, top, x = pool_minimum(outer, np.where(present, inner, 0), low, high, present)
    members = [k for k in range(size) if present[0, 0, k]]
    boxes = [range(int(low[0, 0, k]), int(high[0, 0, k]) + 1) for k in members]
    brute = min(
        int(outer[0, 0]) * max(p)
        - sum(int(inner[0, 0, k]) * v for k, v in zip(members, p, strict=True))
        for p in product(*boxes)
    )
    assert value[0, 0] == brute
    assert outer[0, 0] * top[0, 0] - sum(inner[0, 0, k] * x[0, 0, k] for k in members) == brute


@pytest.mark.parametrize("seed", range(20))
def test_corners_lie_on_the_staircase(seed: int) -> None:
    rng = np.random.default_rng(seed)
    table = StairTable.of(random_staircase(rng, (2,), 0))
    low = rng.integers(-35, 20, size=(1, 2))
    high = low + rng.integers(0, 40, size=(1, 2))
    places, heights = corners(table, low, high)
    inside = (places >= low) & (places <= high)
    level = table.base + table.level(table.late, places.reshape(-1, 2).astype(np.int64))
    distinct = np.diff(np.clip(table.late, -WIDTH_LIMIT, WIDTH_LIMIT), axis=1).min(initial=1) > 0
    assert inside.all() or not distinct
    if distinct:
        assert (level.reshape(heights.shape) == heights).all()
