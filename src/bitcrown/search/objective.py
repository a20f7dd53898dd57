"""The cases of a Problem as arrays of rows.

Legend: ``P`` cases, ``S`` rows per case (padded), ``m`` outputs, ``n`` inputs. A case is violated
by ``x`` iff for all of its rows ``C y + D x <= rhs``; it is excluded on a box as soon as one row
has a lower bound above ``rhs`` there.

Exactness: a row is scaled to integer coefficients, which float64 holds exactly (a row where it
cannot is refused), and ``rhs`` is rounded upward, so that the violation set never shrinks. A strict
``<`` is treated as ``<=``: proving the larger set empty is a proof. Boxes are rounded outward
(``spec.rounding``). Padding rows have ``C = D = 0`` and ``rhs = inf``: they never exclude anything.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bitcrown.errors import UnsupportedError
from bitcrown.spec.problem import Case, Constraint, Monomial, Problem
from bitcrown.spec.rounding import Kind, box_ends, round_up


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

    def without(self, cases: np.ndarray) -> Objective:
        """With a row that no point satisfies in every one of ``cases`` (numbers, or ``[P]``
        booleans), which others have decided."""
        C, rhs = self.C.copy(), self.rhs.copy()
        D = None if self.D is None else self.D.copy()
        C[cases, 0], rhs[cases, 0] = 0.0, -1.0
        if D is not None:
            D[cases, 0] = 0.0
        return replace(self, C=C, D=D, rhs=rhs)


def integer_row(constraint: Constraint) -> tuple[list[tuple[Monomial, float]], float]:
    """Its terms with whole coefficients, and its bound, rounded upward; raises
    ``UnsupportedError`` for those that float64 cannot hold."""
    scale = math.lcm(*(coefficient.denominator for _, coefficient in constraint.terms))
    row = []
    for monomial, coefficient in constraint.terms:
        value = coefficient * scale
        if abs(value) >= 1 << 53:
            raise UnsupportedError(
                "a constraint has coefficients that no float64 row can hold exactly"
            )
        row.append((monomial, float(value)))
    return row, round_up(constraint.bound * scale)


def monomials_of(problem: Problem) -> tuple[Monomial, ...]:
    """The products that constraints are made of, of those constraints that have a row."""
    found: dict[Monomial, None] = {}
    for case in problem.cases:
        for constraint in case.constraints:
            if not constraint.is_linear() and has_row(constraint):
                found.update({m: None for m, _ in constraint.terms if len(m) > 1})
    return tuple(found)


def has_row(constraint: Constraint) -> bool:
    """Whether float64 holds its coefficients, up to a common factor."""
    try:
        integer_row(constraint)
    except (UnsupportedError, OverflowError):
        return False
    return True


def _rows(case: Case, known: Collection[Monomial]) -> list[Constraint]:
    """Constraints with other products than ``known`` ones are left out, which can only enlarge the
    violation set."""
    return [
        constraint
        for constraint in case.constraints
        if constraint.is_linear()
        or (all(len(m) == 1 or m in known for m, _ in constraint.terms) and has_row(constraint))
    ]


def objective_of(
    problem: Problem,
    kinds: Iterable[Kind] | None = None,
    monomials: Sequence[Monomial] = (),
) -> Objective:
    """Arrays of all cases; raises ``UnsupportedError`` for rows that float64 cannot hold.

    ``kinds [n]`` are the types of the flat inputs; left out, all are float32. ``monomials`` are
    outputs, too: ``C`` has a column for each, behind those of ``y`` (``model.monomials``).
    """
    kinds = ["float32"] * problem.n_inputs if kinds is None else list(kinds)
    n, m, count = problem.n_inputs, problem.n_outputs, len(problem.cases)
    column = {monomial: m + k for k, monomial in enumerate(monomials)}
    rows = [_rows(case, column) for case in problem.cases]
    depth = max([1] + [len(row) for row in rows])
    matrix_c = np.zeros((count, depth, m + len(column)))
    needs_inputs = any(
        len(monomial) == 1 and monomial[0] < n
        for row in rows
        for constraint in row
        for monomial, _ in constraint.terms
    )
    matrix_d = np.zeros((count, depth, n)) if needs_inputs else None
    rhs = np.full((count, depth), np.inf)
    boxes: dict[tuple[int, int], int] = {}
    lower: list[np.ndarray] = []
    upper: list[np.ndarray] = []
    box = np.zeros(count, dtype=np.int64)
    for p, case in enumerate(problem.cases):
        key = (id(case.lower), id(case.upper))
        if key not in boxes:
            boxes[key] = len(lower)
            low, high = box_ends(case.lower, case.upper, kinds)
            lower.append(low)
            upper.append(high)
        box[p] = boxes[key]
        for s, constraint in enumerate(rows[p]):
            terms, rhs[p, s] = integer_row(constraint)
            for monomial, value in terms:
                if len(monomial) > 1:
                    matrix_c[p, s, column[monomial]] = value
                elif monomial[0] >= n:
                    matrix_c[p, s, monomial[0] - n] = value
                elif matrix_d is not None:
                    matrix_d[p, s, monomial[0]] = value
    arrays = (
        np.array(lower, dtype=np.float64).reshape(-1, n),
        np.array(upper, dtype=np.float64).reshape(-1, n),
    )
    return Objective(matrix_c, matrix_d, rhs, *arrays, box)
