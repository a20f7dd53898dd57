"""``ManyCases`` to the normal form, all at once: what ``normalise`` does with one case after the
other.

A comparison of an input with a number is an end of the case's box; any other is a constraint
``v_a - v_b <= bound``, where one of the two may be missing. Both are computed for thousands of
cases as arrays. Where that is not all there is to say of a case, it is ``odd`` and left to
``normalise``: two ends of one side of an input, or two bounds of one expression (the tighter one
counts), an empty box, two constraints that contradict each other, an input without an end, a
comparison of two inputs (which may tighten the box). So the cases that come out are those that
``normalise`` makes, one for one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from bitcrown.spec.box import Box
from bitcrown.spec.case_table import CaseArrays, Terms
from bitcrown.spec.exact_vector import ExactVector
from bitcrown.spec.polynomial import Numbering
from bitcrown.spec.problem import Constraint
from bitcrown.spec.query import ManyCases, Var

_MOST_ENTRIES = 1 << 23
_ONE, _MINUS_ONE = Fraction(1), Fraction(-1)


class _Atoms(NamedTuple):
    """``left <= right`` by numbers of variables, -1 for ``values``; ``case [k]`` says of which."""

    case: np.ndarray
    left: np.ndarray
    right: np.ndarray
    values: ExactVector

    def taken(self, places: np.ndarray) -> _Atoms:
        values = self.values.taken(places)
        return _Atoms(self.case[places], self.left[places], self.right[places], values)


@dataclass(frozen=True)
class CommonPart:
    """What holds of every case: the box so far, and constraints."""

    box: Box
    constraints: Sequence[Constraint]
    numbering: Numbering


class BoxedCases(NamedTuple):
    """``arrays`` of the cases that are not ``odd [C]``, in their order."""

    arrays: CaseArrays
    odd: np.ndarray


def boxed_cases(cases: ManyCases, common: CommonPart) -> BoxedCases | None:
    """The normal form of ``cases``; None where they have to be taken one by one.

    ``common`` has no constraint on inputs alone: those may tighten the box of each case.
    """
    n, count = common.numbering.n_inputs, len(cases)
    n_variables = n + common.numbering.n_outputs
    has_own = any(m[0] < n and len(c.terms) == 1 for c in common.constraints for m, _ in c.terms)
    entries = count * max(n, len(common.constraints))
    if not n or has_own or entries > _MOST_ENTRIES or count * (n_variables + 1) ** 2 >= 1 << 62:
        return None
    atoms = _atoms(cases, common.numbering)
    is_upper = (atoms.right < 0) & (atoms.left < n)
    is_lower = (atoms.left < 0) & (atoms.right < n)
    odd = np.zeros(count, dtype=bool)
    between = (atoms.left >= 0) & (atoms.right >= 0)
    odd[atoms.case[between & (np.maximum(atoms.left, atoms.right) < n)]] = True
    odd[atoms.case[atoms.left == atoms.right]] = True
    low = _ends(atoms.taken(np.flatnonzero(is_lower)), False, common.box, n, odd)
    high = _ends(atoms.taken(np.flatnonzero(is_upper)), True, common.box, n, odd)
    odd |= high.is_less(low).reshape(count, n).any(axis=1)
    rows = atoms.taken(np.flatnonzero(~(is_upper | is_lower)))
    rows = rows._replace(values=_negated(rows.values, rows.left < 0))
    _mark_conflicts(rows, common.constraints, n_variables, odd)
    return BoxedCases(_arrays(low, high, rows, common, odd), odd)


def _atoms(cases: ManyCases, numbering: Numbering) -> _Atoms:
    # The last one is of the numbers, whose tensor is -1.
    start = [numbering.number(Var(name, 0)) for name in cases.tensors]
    offsets = np.array([*start, -1], dtype=np.int64)
    left = np.where(cases.left_tensor < 0, -1, offsets[cases.left_tensor] + cases.left_index)
    right = np.where(cases.right_tensor < 0, -1, offsets[cases.right_tensor] + cases.right_index)
    case = np.repeat(np.arange(len(cases)), np.diff(cases.first))
    return _Atoms(case, left, right, cases.values)


def _ends(atoms: _Atoms, is_upper: bool, box: Box, n: int, odd: np.ndarray) -> ExactVector:
    """One side of all boxes, ``[C * n]``; ``odd`` is set where an end is missing or comes twice."""
    count = len(odd)
    base, is_known = box.ends(is_upper, n)
    number = atoms.left if is_upper else atoms.right
    place = atoms.case * n + number
    order = np.argsort(place, kind="stable")
    odd[atoms.case[order[1:]][np.diff(place[order]) == 0]] = True
    own, old = atoms.values, base.taken(number)
    is_new = ~is_known[number] | (own.is_less(old) if is_upper else old.is_less(own))
    known = np.broadcast_to(is_known, (count, n)).copy()
    known.ravel()[place] = True
    odd |= ~known.all(axis=1)
    chosen = np.flatnonzero(is_new)
    whole = ExactVector(
        np.tile(base.mantissa, count),
        np.tile(base.exponent, count),
        {case * n + k: value for k, value in base.others.items() for case in range(count)},
    )
    return whole.replaced(place[chosen], own.taken(chosen))


def _negated(values: ExactVector, where: np.ndarray) -> ExactVector:
    """``v <= right`` is ``-right <= -v``."""
    others = {k: -value if where[k] else value for k, value in values.others.items()}
    return ExactVector(np.where(where, -values.mantissa, values.mantissa), values.exponent, others)


def _mark_conflicts(
    rows: _Atoms, common: Sequence[Constraint], n_variables: int, odd: np.ndarray
) -> None:
    """Set ``odd`` where two constraints are about one expression, or contradict each other."""
    # An expression a - b is a number; n_variables stands for the side that has none.
    width = n_variables + 1
    left = np.where(rows.left < 0, n_variables, rows.left)
    right = np.where(rows.right < 0, n_variables, rows.right)
    code, opposite = left * width + right, right * width + left
    known = [pair for c in common if (pair := _pair_of(c.terms, n_variables)) is not None]
    codes = np.array([a * width + b for pair in known for a, b in (pair, pair[::-1])], np.int64)
    odd[rows.case[np.isin(code, codes)]] = True
    key, wanted = rows.case * width**2 + code, rows.case * width**2 + opposite
    order = np.argsort(key, kind="stable")
    ranked = key[order]
    odd[rows.case[order[1:]][np.diff(ranked) == 0]] = True
    if not len(ranked):
        return
    found = np.minimum(np.searchsorted(ranked, wanted), len(ranked) - 1)
    has_other = np.flatnonzero(ranked[found] == wanted)
    other = rows.values.taken(order[found[has_other]])
    # e <= bound and -e <= other contradict each other where bound < -other.
    least = _negated(other, np.ones(len(other), dtype=bool))
    odd[rows.case[has_other[rows.values.taken(has_other).is_less(least)]]] = True


def _pair_of(terms: Terms, n_variables: int) -> tuple[int, int] | None:
    """(a, b) of a form ``v_a - v_b``, one of them perhaps missing."""
    sides = {_ONE: n_variables, _MINUS_ONE: n_variables}
    for monomial, coefficient in terms:
        if len(monomial) != 1 or sides.get(coefficient) != n_variables:
            return None
        sides[coefficient] = monomial[0]
    return sides[_ONE], sides[_MINUS_ONE]


def _arrays(
    low: ExactVector, high: ExactVector, rows: _Atoms, common: CommonPart, odd: np.ndarray
) -> CaseArrays:
    n, kept = common.numbering.n_inputs, np.flatnonzero(~odd)
    lower, low_row = _distinct_rows(low, n, kept)
    upper, up_row = _distinct_rows(high, n, kept)
    rows = rows.taken(np.flatnonzero(~odd[rows.case]))
    # Of each case: what all have, then its own.
    shared = len(common.constraints)
    own = np.searchsorted(rows.case, np.append(kept, len(odd)))
    first = own + shared * np.arange(len(kept) + 1)
    new = np.arange(len(rows.case)) + shared * (np.searchsorted(kept, rows.case) + 1)
    old = (first[:-1, None] + np.arange(shared)).ravel()
    forms: dict[Terms, int] = {c.terms: k for k, c in enumerate(common.constraints)}
    code, place = np.unique(np.stack([rows.left, rows.right]), axis=1, return_inverse=True)
    of_code = [forms.setdefault(_terms(a, b), len(forms)) for a, b in code.T.tolist()]
    form = np.zeros(len(new) + len(old), dtype=np.int64)
    form[new] = np.array(of_code, dtype=np.int64)[place.ravel()]
    form[old] = np.tile([forms[c.terms] for c in common.constraints], len(kept))
    is_strict = np.zeros(len(form), dtype=bool)
    is_strict[old] = np.tile([c.strict for c in common.constraints], len(kept))
    zeros = ExactVector(np.zeros(len(form), np.int64), np.zeros(len(form), np.int16))
    bounds = zeros.replaced(new, rows.values)
    if shared:
        limits = ExactVector.of([c.bound for c in common.constraints])
        bounds = bounds.replaced(old, ExactVector.joined([limits] * len(kept)))
    ends = ExactVector.joined([lower, upper])
    up_row += len(lower) // n
    return CaseArrays(n, ends, low_row, up_row, first, tuple(forms), form, bounds, is_strict)


def _distinct_rows(side: ExactVector, n: int, kept: np.ndarray) -> tuple[ExactVector, np.ndarray]:
    """The different rows among those of the cases ``kept [C]``, and the number of each case's row
    ``[C]``. Rows are the same if they are written alike."""
    mantissa = side.mantissa.reshape(-1, n)[kept].view(np.uint8)
    exponent = side.exponent.reshape(-1, n)[kept].view(np.uint8)
    text = np.concatenate([mantissa, exponent], axis=1)
    keys: list[object] = text.view(f"V{text.shape[1]}").ravel().tolist() if len(kept) else []
    own = {place // n for place in side.others}
    if own:
        keys = [
            (k if case in own else key)
            for k, (case, key) in enumerate(zip(kept.tolist(), keys, strict=True))
        ]
    seen: dict[object, int] = {}
    numbers = np.array([seen.setdefault(key, len(seen)) for key in keys], dtype=np.int64)
    _, first = np.unique(numbers, return_index=True)
    return side.taken((kept[first, None] * n + np.arange(n)).ravel()), numbers


def _terms(left: int, right: int) -> Terms:
    """``v_left - v_right``, sorted, without what is -1."""
    pairs = [((left,), _ONE), ((right,), _MINUS_ONE)]
    return tuple(sorted(pair for pair in pairs if pair[0][0] >= 0))
