"""A property as rows over inputs and outputs: what an independent checker of float proofs has to
refute.

A case is violated by ``x`` of its box iff all its constraints hold; constraints that are not linear
are left out, which only enlarges what is refuted. A row is ``C y + D x <= limit``: coefficients are
the float64 nearest to the property's rational numbers (``bounds`` counts that as rounding of
a product), ``limit`` is rounded up.

*Both readings.* A bound of an input is a decimal that the input's type may not hold. Proofs cover
the decimal itself and the number that it becomes in the type of the network's input and in float32,
in which the competition's scorer reads it: each box is rounded outward to contain all of them.

Legend: ``Q`` cases over one box, ``S`` rows of a case, padded with rows ``0 <= 0`` that refute
nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from bitcrown.check.certificates.floats.bounds import BoxBatch
from bitcrown.check.certificates.floats.nodes import FloatArray
from bitcrown.errors import PropertyError
from bitcrown.spec.problem import Case, Constraint, Problem


@dataclass(frozen=True)
class Group:
    """All cases over one box: ``C [Q, S, m]``, ``D [Q, S, n]``, ``limit [Q, S]``; ``cases`` their
    numbers."""

    box: BoxBatch
    cases: tuple[int, ...]
    C: FloatArray
    D: FloatArray
    limit: FloatArray

    @property
    def uses_inputs(self) -> bool:
        return bool(self.D.any())

    def of_case(self, place: int) -> Group:
        """The group of one case alone."""
        return self.some(slice(place, place + 1))

    def some(self, where: slice) -> Group:
        """The group of some of the cases."""
        return Group(self.box, self.cases[where], self.C[where], self.D[where], self.limit[where])


def rounded_up(value: Fraction) -> float:
    """The least float64 not below ``value``; raises ``PropertyError`` beyond its range."""
    try:
        nearest = float(value)
    except OverflowError:
        raise PropertyError(
            "certificates: a number of the property exceeds what float64 holds"
        ) from None
    return nearest if Fraction(nearest) >= value else math.nextafter(nearest, math.inf)


def outward(value: Fraction, dtype: np.dtype[Any]) -> float:
    """A float64 not below ``value`` nor below any reading of it."""
    found = rounded_up(value)
    for reading in (dtype.type, np.float32):
        with np.errstate(over="ignore"):
            near = float(reading(float(value)))
        found = max(found, near if math.isfinite(near) else found)
    return found


def cases_by_box(problem: Problem, dtypes: list[np.dtype[Any]]) -> list[Group]:
    """The cases by box. Raises ``PropertyError`` for numbers that float64 cannot hold."""
    found: dict[tuple[int, int], list[int]] = {}
    for number, case in enumerate(problem.cases):  # cases with one box share its tuples
        found.setdefault((id(case.lower), id(case.upper)), []).append(number)
    return [_group(problem, dtypes, numbers) for numbers in found.values()]


def _group(problem: Problem, dtypes: list[np.dtype[Any]], numbers: list[int]) -> Group:
    first = problem.cases[numbers[0]]
    upper = [outward(value, dtype) for value, dtype in zip(first.upper, dtypes, strict=True)]
    lower = [-outward(-value, dtype) for value, dtype in zip(first.lower, dtypes, strict=True)]
    rows = [_linear(problem.cases[number]) for number in numbers]
    depth = max(1, *(len(part) for part in rows))
    shape = (len(numbers), depth)
    c, d, limit = (
        np.zeros((*shape, problem.n_outputs)),
        np.zeros((*shape, problem.n_inputs)),
        np.zeros(shape),
    )
    for q, constraints in enumerate(rows):
        for s, constraint in enumerate(constraints):
            limit[q, s] = rounded_up(constraint.bound)
            for monomial, coefficient in constraint.terms:
                variable, value = monomial[0], _nearest(coefficient)
                if variable < problem.n_inputs:
                    d[q, s, variable] = value
                else:
                    c[q, s, variable - problem.n_inputs] = value
    return Group(BoxBatch(np.array([lower]), np.array([upper])), tuple(numbers), c, d, limit)


def _nearest(value: Fraction) -> float:
    """Raises ``PropertyError`` where the nearest float64 is not within one rounding of
    ``value``."""
    try:
        found = float(value)
    except OverflowError:
        found = math.inf
    if not 1e-250 < abs(found) < 1e250 and value != 0:
        raise PropertyError("certificates: a coefficient of the property is out of proportion")
    return found


def _linear(case: Case) -> list[Constraint]:
    return [constraint for constraint in case.constraints if constraint.is_linear()]
