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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bitcrown.errors import UnsupportedError
from bitcrown.spec.case_table import Terms, arrays_of
from bitcrown.spec.exact_vector import ExactVector
from bitcrown.spec.problem import Constraint, Monomial, Problem
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
    row, scale = _whole(constraint.terms)
    return row, round_up(constraint.bound * scale)


def _whole(terms: Terms) -> tuple[list[tuple[Monomial, float]], int]:
    """The same form with whole coefficients, and what it was multiplied by."""
    scale = math.lcm(*(coefficient.denominator for _, coefficient in terms))
    row = []
    for monomial, coefficient in terms:
        value = coefficient * scale
        if abs(value) >= 1 << 53:
            raise UnsupportedError(
                "a constraint has coefficients that no float64 row can hold exactly"
            )
        row.append((monomial, float(value)))
    return row, scale


def monomials_of(problem: Problem) -> tuple[Monomial, ...]:
    """The products that constraints are made of, of those constraints that have a row."""
    found: dict[Monomial, None] = {}
    for terms in arrays_of(problem.cases, problem.n_inputs).used_forms().values():
        if has_row(terms):
            found.update({m: None for m, _ in terms if len(m) > 1})
    return tuple(found)


def has_row(terms: Terms) -> bool:
    """Whether float64 holds its coefficients, up to a common factor."""
    try:
        _whole(terms)
    except UnsupportedError:
        return False
    return True


def objective_of(
    problem: Problem,
    kinds: Iterable[Kind] | None = None,
    monomials: Sequence[Monomial] = (),
) -> Objective:
    """Arrays of all cases; raises ``UnsupportedError`` for rows that float64 cannot hold.

    ``kinds [n]`` are the types of the flat inputs; left out, all are float32. ``monomials`` are
    outputs, too: ``C`` has a column for each, behind those of ``y`` (``model.monomials``).
    Constraints with other products are left out, which can only enlarge the violation set.
    """
    n, count = problem.n_inputs, len(problem.cases)
    kinds = ["float32"] * n if kinds is None else list(kinds)
    arrays = arrays_of(problem.cases, n)
    column: dict[Monomial, int] = {(n + k,): k for k in range(problem.n_outputs)}
    column |= {monomial: len(column) + k for k, monomial in enumerate(monomials)}
    forms = _FormTable(arrays.used_forms(), n, column)
    kept = forms.kept(arrays.form)
    case = np.repeat(np.arange(count), np.diff(arrays.first))[kept]
    depths = np.bincount(case, minlength=count)
    place = case, np.arange(len(case)) - (np.cumsum(depths) - depths)[case]
    shape = count, max(1, int(depths.max(initial=0)))
    C, rhs = np.zeros((*shape, len(column))), np.full(shape, np.inf)
    D = np.zeros((*shape, n)) if forms.needs_inputs else None
    number = forms.places(arrays.form[kept])
    C[place], rhs[place] = forms.C[number], forms.bounds(number, arrays.bounds.taken(kept))
    if D is not None:
        D[place] = forms.D[number]
    box, first = arrays.boxes()
    low, up = arrays.rows(arrays.low[first]), arrays.rows(arrays.up[first])
    lower, upper = box_ends(low, up, kinds * len(first))
    return Objective(C, D, rhs, lower.reshape(-1, n), upper.reshape(-1, n), box)


class _FormTable:
    """Rows ``C [F, m]``, ``D [F, n]`` of the forms that have one; ``column`` says where a monomial
    of outputs stands."""

    def __init__(self, forms: Mapping[int, Terms], n: int, column: Mapping[Monomial, int]) -> None:
        known = {
            number: _whole(terms)
            for number, terms in forms.items()
            if all(len(m) == 1 for m, _ in terms)
            or (all(len(m) == 1 or m in column for m, _ in terms) and has_row(terms))
        }
        self.numbers = np.array(list(known), dtype=np.int64)
        self.scales = np.array([scale for _, scale in known.values()], dtype=object)
        self.needs_inputs = any(m not in column for row, _ in known.values() for m, _ in row)
        self.C = np.zeros((len(known), len(column)))
        self.D = np.zeros((len(known), n if self.needs_inputs else 0))
        for place, (row, _) in enumerate(known.values()):
            for monomial, value in row:
                if monomial in column:
                    self.C[place, column[monomial]] = value
                else:
                    self.D[place, monomial[0]] = value

    def kept(self, form: np.ndarray) -> np.ndarray:
        """The places in ``form [K]`` of forms that have a row."""
        return np.flatnonzero(np.isin(form, self.numbers))

    def places(self, form: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.numbers, form)

    def bounds(self, place: np.ndarray, bounds: ExactVector) -> np.ndarray:
        """``bounds`` times the scales of the forms at ``place [K]``, rounded upward."""
        result = bounds.rounded(is_up=True)
        is_scaled = (self.scales != 1)[place]
        for k in np.flatnonzero(is_scaled).tolist():
            result[k] = round_up(bounds[k] * self.scales[place[k]])
        return result
