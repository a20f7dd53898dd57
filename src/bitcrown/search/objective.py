"""The cases of a Problem as arrays of rows.

Legend: ``P`` cases, ``S`` rows per case (padded), ``m`` outputs, ``n`` inputs. A case is violated
by ``x`` iff for all of its rows ``C y + D x <= rhs``; it is excluded on a box as soon as one row
has a lower bound above ``rhs`` there.

Exactness: a row is scaled to integer coefficients, which float64 holds exactly (a row where it
cannot is refused), and ``rhs`` is rounded upward, so that the violation set never shrinks. A strict
``<`` is treated as ``<=``: proving the larger set empty is a proof. Boxes are rounded outward, and
further where the nearest number of the input's own type lies outside: the network, and the
competition's scorer, read the bound as that number, so the proof covers both readings. An input of
whole numbers between two of which no whole number lies is read as either of them. Numbers beyond
the range of float64 become its ends, or infinite, on the side where that is sound. Padding rows
have ``C = D = 0`` and ``rhs = inf``: they never exclude anything.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from bitcrown.errors import UnsupportedError
from bitcrown.spec.problem import Case, Constraint, Problem

LARGEST = Fraction(np.finfo(np.float64).max)
Kind = str | type[np.generic]
"""Type of an input: numpy's, or its name."""
BFLOAT16_BITS = 8
BFLOAT16_MAX = (2.0 - 2.0**-7) * 2.0**127


def round_up(value: Fraction) -> float:
    """The least float64 not below ``value``: infinite above all numbers, the least number below all
    numbers."""
    if abs(value) > LARGEST:
        return math.inf if value > 0 else -float(LARGEST)
    nearest = float(value)
    return nearest if Fraction(nearest) >= value else math.nextafter(nearest, math.inf)


def round_down(value: Fraction) -> float:
    return -round_up(-value)


def box_lower(value: Fraction, dtype: str = "float32") -> float:
    """A float64 not above ``value`` nor above the nearest number of the float type ``dtype``."""
    exact = round_down(value)
    return min(exact, _read_as(exact, dtype), _read_as(round_up(value), dtype))


def box_upper(value: Fraction, dtype: str = "float32") -> float:
    return -box_lower(-value, dtype)


def _read_as(value: float, dtype: str) -> float:
    """The nearest number of a float type (in bfloat16 the one towards ``-inf``), within its
    range."""
    if dtype == "bfloat16":
        value = max(-BFLOAT16_MAX, min(value, BFLOAT16_MAX))
        significand, exponent = math.frexp(value)
        return math.ldexp(
            math.floor(math.ldexp(significand, BFLOAT16_BITS)), exponent - BFLOAT16_BITS
        )
    largest = float(np.finfo(dtype).max)
    return float(np.clip(value, -largest, largest).astype(dtype))


def box_of(lower: Fraction, upper: Fraction, kind: Kind) -> tuple[float, float]:
    """Ends of an input of type ``kind`` in both readings; see above. What is no number type is read
    as float32."""
    dtype = kind if isinstance(kind, str) else np.dtype(kind).name
    is_number = dtype in np.sctypeDict
    if is_number and np.issubdtype(dtype, np.integer):
        low, high = math.ceil(lower), math.floor(upper)
        if low > high:
            return round_down(min(lower, Fraction(high))), round_up(max(upper, Fraction(low)))
        return round_down(lower), round_up(upper)
    is_float = dtype == "bfloat16" or (is_number and np.issubdtype(dtype, np.floating))
    name = dtype if is_float else "float32"
    return box_lower(lower, name), box_upper(upper, name)


@dataclass(frozen=True)
class Objective:
    """``box [P]`` indexes ``lower``/``upper [boxes, n]``; arrays are float64. ``D`` is None when no
    row needs it."""

    C: np.ndarray
    D: np.ndarray | None
    rhs: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    box: np.ndarray

    @property
    def n_cases(self) -> int:
        return int(self.C.shape[0])

    def is_trivial(self) -> np.ndarray:
        """``[P]``: cases without any finite row, which every point of the box violates."""
        result: np.ndarray = np.isinf(self.rhs).all(axis=1)
        return result


def _integer_row(constraint: Constraint) -> tuple[list[tuple[int, float]], float]:
    scale = math.lcm(*(coefficient.denominator for _, coefficient in constraint.terms))
    row = []
    for monomial, coefficient in constraint.terms:
        value = coefficient * scale
        if abs(value) >= 1 << 53:
            raise UnsupportedError(
                "a constraint has coefficients that no float64 row can hold exactly"
            )
        row.append((monomial[0], float(value)))
    return row, round_up(constraint.bound * scale)


def _linear(case: Case) -> list[Constraint]:
    """Polynomial constraints are left out, which can only enlarge the violation set."""
    return [constraint for constraint in case.constraints if constraint.is_linear()]


def objective_of(problem: Problem, kinds: Iterable[Kind] | None = None) -> Objective:
    """Arrays of all cases; raises ``UnsupportedError`` for rows that float64 cannot hold.

    ``kinds [n]`` are the types of the flat inputs; left out, all are float32.
    """
    kinds = ["float32"] * problem.n_inputs if kinds is None else list(kinds)
    n, m, count = problem.n_inputs, problem.n_outputs, len(problem.cases)
    rows = [_linear(case) for case in problem.cases]
    depth = max([1] + [len(row) for row in rows])
    matrix_c = np.zeros((count, depth, m))
    needs_inputs = any(monomial[0] < n for row in rows for c in row for monomial, _ in c.terms)
    matrix_d = np.zeros((count, depth, n)) if needs_inputs else None
    rhs = np.full((count, depth), np.inf)
    boxes: dict[tuple[int, int], int] = {}
    lower: list[list[float]] = []
    upper: list[list[float]] = []
    box = np.zeros(count, dtype=np.int64)
    for p, case in enumerate(problem.cases):
        key = (id(case.lower), id(case.upper))
        if key not in boxes:
            boxes[key] = len(lower)
            ends = [
                box_of(*interval) for interval in zip(case.lower, case.upper, kinds, strict=True)
            ]
            lower.append([low for low, _ in ends])
            upper.append([high for _, high in ends])
        box[p] = boxes[key]
        for s, constraint in enumerate(rows[p]):
            terms, rhs[p, s] = _integer_row(constraint)
            for variable, value in terms:
                if variable >= n:
                    matrix_c[p, s, variable - n] = value
                elif matrix_d is not None:
                    matrix_d[p, s, variable] = value
    arrays = (
        np.array(lower, dtype=np.float64).reshape(-1, n),
        np.array(upper, dtype=np.float64).reshape(-1, n),
    )
    return Objective(matrix_c, matrix_d, rhs, *arrays, box)
