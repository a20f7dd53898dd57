"""Many cases in little memory: the sequence of ``Case`` that a problem has where it has thousands.

A case is two rows of ends and a run of constraints; a constraint is the number of a linear form, a
bound, and whether it is strict. All of that lies in arrays, and an object is made of it when it is
asked for, once: cases with one box share the objects of its ends, as in a tuple of cases.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import overload

import numpy as np

from bitcrown.spec.box import form_key
from bitcrown.spec.exact_vector import ExactVector
from bitcrown.spec.problem import Case, Constraint, Monomial

_AT_ONCE = 1024

Terms = tuple[tuple[Monomial, Fraction], ...]


@dataclass(frozen=True, slots=True)
class CaseArrays:
    """``ends``: rows of ``n`` entries each; ``low``, ``up [C]``: the rows of a case; ``first
    [C + 1]``: where its constraints begin. Of a constraint ``form [K]``, a number in ``forms``,
    its ``bounds [K]``, and ``is_strict [K]``."""

    n: int
    ends: ExactVector
    low: np.ndarray
    up: np.ndarray
    first: np.ndarray
    forms: tuple[Terms, ...]
    form: np.ndarray
    bounds: ExactVector
    is_strict: np.ndarray

    def used_forms(self) -> dict[int, Terms]:
        """The forms that constraints have, by number, in its order."""
        return {number: self.forms[number] for number in np.unique(self.form).tolist()}

    def boxes(self) -> tuple[np.ndarray, np.ndarray]:
        """The number of each case's box ``[C]``, and the first case of each box, ascending."""
        pairs = self.low.astype(np.int64) * (len(self.ends) // max(1, self.n) + 1) + self.up
        _, first, number = np.unique(pairs, return_index=True, return_inverse=True)
        order = np.argsort(first)
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        return rank[number], first[order]

    def rows(self, numbers: np.ndarray) -> ExactVector:
        """Rows of ``ends``, one after the other."""
        return self.ends.taken((numbers[:, None] * self.n + np.arange(self.n)).ravel())

    def part(self, start: int, stop: int) -> CaseArrays:
        """The cases from ``start`` up to ``stop``."""
        if (start, stop) == (0, len(self.low)):
            return self
        first = self.first[start : stop + 1]
        low, up = self.low[start:stop], self.up[start:stop]
        used, numbers = np.unique(np.concatenate([low, up]), return_inverse=True)
        places = np.arange(first[0], first[-1])
        return CaseArrays(
            self.n,
            self.rows(used),
            numbers[: len(low)],
            numbers[len(low) :],
            first - first[0],
            self.forms,
            self.form[places],
            self.bounds.taken(places),
            self.is_strict[places],
        )


class CaseTable(Sequence[Case]):
    """``arrays``, as cases."""

    def __init__(self, arrays: CaseArrays) -> None:
        self.arrays = arrays
        self._rows: dict[int, ExactVector] = {}
        self._cases: dict[int, Case] = {}

    def __len__(self) -> int:
        return len(self.arrays.low)

    @overload
    def __getitem__(self, place: int) -> Case: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[Case, ...]: ...
    def __getitem__(self, place: int | slice) -> Case | tuple[Case, ...]:
        if isinstance(place, slice):
            return tuple(self[k] for k in range(*place.indices(len(self))))
        place = range(len(self))[place]
        if place not in self._cases:
            self._make(place)
        return self._cases[place]

    def __iter__(self) -> Iterator[Case]:
        return (self[place] for place in range(len(self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(self.arrays.first.tobytes())

    def _make(self, place: int) -> None:
        """The cases around ``place``: many at a time are made in a third of the time."""
        arrays, rows, start = self.arrays, self._rows, place - place % _AT_ONCE
        stop = min(start + _AT_ONCE, len(self))
        asked = np.unique(np.concatenate([arrays.low[start:stop], arrays.up[start:stop]]))
        new = [row for row in asked.tolist() if row not in rows]
        rows.update(zip(new, arrays.rows(np.array(new, dtype=int)).rows(arrays.n), strict=True))
        first = arrays.first[start : stop + 1].tolist()
        own = slice(first[0], first[-1])
        parts = (arrays.form[own].tolist(), arrays.bounds[own], arrays.is_strict[own].tolist())
        made = [Constraint(arrays.forms[k], bound, s) for k, bound, s in zip(*parts, strict=True)]
        sides = (arrays.low[start:stop].tolist(), arrays.up[start:stop].tolist())
        for k, (low, up) in enumerate(zip(*sides, strict=True)):
            constraints = tuple(made[first[k] - first[0] : first[k + 1] - first[0]])
            self._cases[start + k] = Case(rows[low], rows[up], constraints)


@dataclass
class CaseCollector:
    """Takes cases one by one, or as arrays, and gives all of them in their order."""

    n: int
    singles: list[Case] = field(default_factory=list)
    parts: list[CaseArrays] = field(default_factory=list)
    count: int = 0

    def __len__(self) -> int:
        return self.count

    def append(self, case: Case) -> None:
        self.singles.append(case)
        self.count += 1

    def extend(self, part: CaseArrays) -> None:
        """All cases of ``part`` after those so far."""
        self._close()
        self.parts.append(part)
        self.count += len(part.low)

    def _close(self) -> None:
        if self.singles:
            self.parts.append(arrays_of(self.singles, self.n))
            self.singles = []

    def cases(self) -> tuple[Case, ...] | CaseTable:
        """A tuple if all came one by one."""
        if not self.parts:
            return tuple(self.singles)
        self._close()
        return CaseTable(_joined(self.parts))


def arrays_of(cases: Sequence[Case], n: int) -> CaseArrays:
    """Cases as arrays; ends that are shared, as objects, are rows that are shared."""
    if isinstance(cases, CaseTable):
        return cases.arrays
    rows: dict[int, int] = {}
    ends: list[ExactVector] = []
    sides: tuple[list[int], list[int]] = ([], [])
    forms: dict[object, int] = {}
    terms: list[Terms] = []
    first, form, strict, bounds = [0], list[int](), list[bool](), list[Fraction]()
    for case in cases:
        for numbers, side in zip(sides, (case.lower, case.upper), strict=True):
            if id(side) not in rows:
                rows[id(side)] = len(ends)
                ends.append(side if isinstance(side, ExactVector) else ExactVector.of(side))
            numbers.append(rows[id(side)])
        for constraint in case.constraints:
            number = forms.setdefault(form_key(constraint.terms), len(forms))
            terms += [constraint.terms] * (number == len(terms))
            form.append(number)
            bounds.append(constraint.bound)
            strict.append(constraint.strict)
        first.append(len(form))
    return CaseArrays(
        n,
        ExactVector.joined(ends),
        np.array(sides[0], dtype=np.int64),
        np.array(sides[1], dtype=np.int64),
        np.array(first, dtype=np.int64),
        tuple(terms),
        np.array(form, dtype=np.int64),
        ExactVector.of(bounds),
        np.array(strict, dtype=bool),
    )


def _joined(parts: Sequence[CaseArrays]) -> CaseArrays:
    forms: dict[Terms, int] = {}
    form = []
    for part in parts:
        numbers = [forms.setdefault(terms, len(forms)) for terms in part.forms]
        form.append(np.array(numbers, dtype=np.int64)[part.form])
    n = parts[0].n
    rows = np.cumsum([0, *(len(part.ends) // n for part in parts)])
    start = np.cumsum([0, *(len(part.form) for part in parts)])
    first = [part.first[:-1] + begin for part, begin in zip(parts, start, strict=False)]
    return CaseArrays(
        n,
        ExactVector.joined([part.ends for part in parts]),
        np.concatenate([part.low + row for part, row in zip(parts, rows, strict=False)]),
        np.concatenate([part.up + row for part, row in zip(parts, rows, strict=False)]),
        np.concatenate([*first, start[-1:]]),
        tuple(forms),
        np.concatenate(form),
        ExactVector.joined([part.bounds for part in parts]),
        np.concatenate([part.is_strict for part in parts]),
    )
