"""Claims are true of the rational numbers that their arguments are, and what is no number claims
nothing."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bitcrown.bounds import claims

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
Values = st.SearchStrategy[list[float]]


def numbers(dtype: torch.dtype, special: bool = True) -> st.SearchStrategy[float]:
    """Numbers of ``dtype`` of every size, subnormal ones included, and those that are none."""
    info = torch.finfo(dtype)
    least = info.tiny * info.eps
    found = [
        0.0,
        -0.0,
        1.0,
        info.eps,
        1 + info.eps,
        least,
        3 * least,
        info.tiny,
        info.tiny * 3,
        info.max,
        info.max / 2,
    ]
    found += [-value for value in found] + ([math.nan, math.inf, -math.inf] if special else [])
    wide = st.floats(-2, 2, allow_nan=False).map(lambda value: float(torch.tensor(value).to(dtype)))
    power = st.tuples(wide, st.integers(math.frexp(least)[1], math.frexp(info.max)[1] - 2)).map(
        lambda pair: float(torch.tensor(math.ldexp(*pair), dtype=torch.float64).to(dtype))
    )
    return st.one_of(st.sampled_from(found), wide, power)


def lists(dtype: torch.dtype, count: int, special: bool = True) -> Values:
    return st.lists(numbers(dtype, special), min_size=count, max_size=count)


def exact(value: Tensor | float) -> Fraction | None:
    """The rational number, or None."""
    number = float(value)
    return Fraction(number) if math.isfinite(number) else None


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
def test_scalars(dtype: torch.dtype, data: st.DataObject) -> None:
    one, two = (torch.tensor([data.draw(numbers(dtype))], dtype=dtype) for _ in range(2))
    p, q = exact(one), exact(two)
    margin = exact(claims.least_margin(one, two))
    if p is None or q is None:
        assert float(claims.least_margin(one, two)) == -math.inf
        assert not claims.crossed(one, two)[2]
    else:
        assert margin is None or margin <= p - q
        assert bool(claims.crossed(one, two)[2]) == (p > q)
        assert (
            Fraction(float(claims.room(one, two))) >= max(p - q, 0)
            if exact(claims.room(one, two))
            else True
        )
    assert float(claims.room(one, two)) > 0
    assert bool(claims.excluded(one)) == (p is not None and p > 0)
    low, up = claims.enclosure(one, two)
    assert (p is None and float(low) == -math.inf) or exact(low) == p
    assert (q is None and float(up) == math.inf) or exact(up) == q
    share = exact(claims.ratio(one, two))
    assert share is not None and (q is not None and q > 0 or share == 0)


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
def test_intersections_keep_what_both_hold(dtype: torch.dtype, data: st.DataObject) -> None:
    low, up, new_low, new_up = (
        torch.tensor([data.draw(numbers(dtype))], dtype=dtype) for _ in range(4)
    )
    found_low, found_up = claims.tightened(low, up, new_low, new_up)
    for old, new, found, better in ((low, new_low, found_low, max), (up, new_up, found_up, min)):
        if math.isnan(float(old)):
            continue
        expected = float(old) if exact(new) is None else better(float(old), float(new))
        assert float(found) == expected


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
def test_signs_are_known_only_from_numbers(dtype: torch.dtype, data: st.DataObject) -> None:
    low, up = (torch.tensor([data.draw(numbers(dtype))], dtype=dtype) for _ in range(2))
    if not bool(claims.is_unstable(low, up)):
        assert float(low) >= 0 or float(up) <= 0
    if math.isnan(float(low)) and math.isnan(float(up)):
        assert bool(claims.is_unstable(low, up)) and not bool(claims.is_active(low))
    assert float(claims.floor_slope(low, up)) in (0.0, 1.0)


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
def test_chords_lie_above_relu(dtype: torch.dtype, data: st.DataObject) -> None:
    ends = sorted(data.draw(lists(dtype, 2, special=False)))
    low, up = (torch.tensor([end], dtype=dtype) for end in ends)
    slope = exact(claims.chord_slope(low, up))
    assert slope is not None and 0 <= slope <= 1
    below, above = min(Fraction(ends[0]), Fraction(0)), max(Fraction(ends[1]), Fraction(0))
    assert slope * (above - below) >= above
    for bad in (math.nan, math.inf):
        assert (
            0
            <= float(
                claims.chord_slope(torch.tensor([-bad], dtype=dtype), torch.ones(1, dtype=dtype))
            )
            <= 1
        )


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
def test_reciprocals_bound_the_quotient(dtype: torch.dtype, data: st.DataObject) -> None:
    a = torch.tensor(data.draw(lists(dtype, 2)), dtype=dtype)
    inverse = claims.reciprocals(a)
    is_known = bool(torch.isfinite(a).all())
    for sign, row in zip((1, -1), inverse, strict=True):
        for entry, found in zip(a.tolist(), row.tolist(), strict=True):
            if is_known and sign * entry > 0:
                assert found == math.inf or Fraction(found) * sign * Fraction(entry) >= 1
            else:
                assert found == math.inf


def least_on(
    a: list[float], constant: Fraction, lower: list[float], upper: list[float]
) -> Fraction:
    ends = zip(a, lower, upper, strict=True)
    return constant + sum(Fraction(c) * Fraction(low if c > 0 else up) for c, low, up in ends)


def rounded_down(value: Fraction, dtype: torch.dtype) -> float:
    info = torch.finfo(dtype)
    if value > Fraction(info.max):
        return float(info.max)
    if value < -Fraction(info.max):
        return -math.inf
    near = torch.tensor(float(value), dtype=torch.float64).to(dtype)
    while not math.isinf(float(near)) and Fraction(float(near)) > value or float(near) == math.inf:
        near = torch.nextafter(near, torch.tensor(-math.inf, dtype=dtype))
    return float(near)


def points_of(lower: list[float], upper: list[float]) -> list[list[Fraction]]:
    ends = [
        sorted(
            {
                Fraction(low),
                Fraction(up),
                (Fraction(low) + Fraction(up)) / 2,
                (3 * Fraction(low) + Fraction(up)) / 4,
            }
        )
        for low, up in zip(lower, upper, strict=True)
    ]
    return [list(point) for point in itertools.product(*ends)]


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_point_that_satisfies_all_rows_is_cut_off(
    dtype: torch.dtype, data: st.DataObject
) -> None:
    """Rows whose least value or coefficients are no numbers are rows of which nothing is known."""
    pairs = [sorted(data.draw(lists(dtype, 2, special=False))) for _ in range(3)]
    lower, upper = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    rows = [data.draw(lists(dtype, 3)) for _ in range(2)]
    constants = [Fraction(data.draw(numbers(dtype, special=False))) for _ in rows]
    least = []
    for row, constant in zip(rows, constants, strict=True):
        is_known = all(map(math.isfinite, row)) and data.draw(st.booleans() | st.just(True))
        true = least_on(row, constant, lower, upper) if is_known else None
        least.append(
            data.draw(st.sampled_from([math.nan, math.inf, -math.inf]))
            if true is None
            else rounded_down(true, dtype)
        )
    survivors = [
        point
        for point in points_of(lower, upper)
        if all(
            sum(Fraction(c) * x for c, x in zip(row, point, strict=True)) + constant <= 0
            for row, constant, known in zip(rows, constants, least, strict=True)
            if math.isfinite(known)
        )
    ]

    def tensor(values: object) -> Tensor:
        return torch.tensor(values, dtype=dtype).unsqueeze(0)

    box, a, values = (tensor(lower), tensor(upper)), tensor(rows), tensor(least)
    for rounds in (1, 3):
        low, up, feasible = claims.clipped(*box, a, values, rounds)
        assert_kept(survivors, low[0], up[0])
        assert not survivors or bool(feasible)
    low, up = claims.halfspaces(*box, claims.reciprocals(a), torch.zeros_like(values), values)
    assert_kept(survivors, low[0], up[0])


def assert_kept(points: list[list[Fraction]], low: Tensor, up: Tensor) -> None:
    for point in points:
        for x, first, last in zip(point, low.tolist(), up.tolist(), strict=True):
            assert first == -math.inf or Fraction(first) <= x
            assert last == math.inf or x <= Fraction(last)


def test_cuts_cut_and_exclude() -> None:
    """The functions are not merely cautious: ``x + y <= 1`` on the unit square of side 2, and
    ``x + y <= -1``."""
    zero, two = torch.zeros(1, 2).double(), torch.full((1, 2), 2.0).double()
    a = torch.ones(1, 1, 2).double()
    low, up, feasible = claims.clipped(zero, two, a, torch.tensor([[-1.0]]).double())
    assert (
        bool(feasible) and torch.allclose(up, torch.ones(1, 2).double()) and torch.equal(low, zero)
    )
    assert not bool(claims.clipped(zero, two, a, torch.tensor([[1.0]]).double())[2])
    assert float(claims.least_margin(torch.tensor([2.0]), torch.tensor([1.0]))) > 0.9


def test_coordinates_that_a_row_does_not_see_stay_as_they_are() -> None:
    """A row met with equality on a face says nothing about the coordinates along that face."""
    zero, wide = torch.zeros(1, 2).double(), torch.tensor([[1.0, 1e6]]).double()
    low, up, feasible = claims.clipped(
        zero, wide, torch.tensor([[[1.0, 0.0]]]).double(), torch.zeros(1, 1).double()
    )
    assert bool(feasible) and float(up[0, 1]) == 1e6 and float(up[0, 0]) < 1e-300


def test_no_rows_say_nothing() -> None:
    box = torch.zeros(3, 2), torch.ones(3, 2)
    low, up, feasible = claims.clipped(*box, torch.zeros(3, 0, 2), torch.zeros(3, 0))
    assert torch.equal(low, box[0]) and torch.equal(up, box[1]) and feasible.all()
