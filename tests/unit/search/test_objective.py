"""Cases as rows: nothing that the property allows may get lost in floats."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitcrown.errors import UnsupportedError
from bitcrown.search.objective import objective_of
from bitcrown.spec.normalise import problem_from_query
from bitcrown.spec.reader import parse_query
from bitcrown.spec.rounding import box_lower, box_upper, round_down, round_up

NUMBERS = st.fractions(min_value=-(10**6), max_value=10**6, max_denominator=10**12)


@given(NUMBERS)
def test_rounding_never_crosses(value: Fraction) -> None:
    assert Fraction(round_down(value)) <= value <= Fraction(round_up(value))
    assert round_up(value) - round_down(value) <= np.spacing(abs(round_up(value)) + 1e-300) * 2


@given(NUMBERS)
def test_boxes_cover_the_exact_and_the_float32_reading(value: Fraction) -> None:
    single = float(np.float32(float(value)))
    assert Fraction(box_lower(value)) <= value and box_lower(value) <= single
    assert Fraction(box_upper(value)) >= value and box_upper(value) >= single


def problem(assertion: str):  # type: ignore[no-untyped-def]
    text = (
        "(declare-const X_0 Real)(declare-const X_1 Real)(declare-const Y_0 "
        "Real)(declare-const Y_1 Real)"
    )
    text += "(assert (>= X_0 0.1))(assert (<= X_0 0.1))(assert (>= X_1 -1))(assert (<= X_1 1))"
    query = parse_query(f"{text}(assert {assertion})")
    return problem_from_query(query, {query.networks[0].name: Path("net.onnx")})


def test_rows_of_a_disjunction() -> None:
    found = objective_of(
        problem("(or (and (<= Y_0 Y_1) (>= Y_0 0.5)) (>= (* 2 Y_1) (+ X_1 0.25)))")
    )
    assert found.n_cases == 2 and found.D is not None
    y, x = np.array([0.6, 0.7]), np.array([0.1, 0.9])
    excess = found.C @ y + found.D @ x - found.rhs
    assert (excess[0] <= 0).all() and (excess[1][np.isfinite(found.rhs[1])] <= 0).all()
    outside = found.C @ np.array([0.6, 0.5]) + found.D @ x - found.rhs
    assert (outside[0] > 0).any() and (outside[1] > 0).any()


def test_decimal_coefficients_become_integers() -> None:
    found = objective_of(problem("(<= (+ (* 0.1 Y_0) (* 0.3 Y_1)) 0.7)"))
    assert found.C[0, 0].tolist() == [1.0, 3.0] and found.rhs[0, 0] >= 7


def test_coefficients_beyond_float64_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="exactly"):
        objective_of(problem("(<= (+ (* 0.12345678901234567890123 Y_0) Y_1) 0)"))
