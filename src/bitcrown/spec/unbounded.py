"""Inputs without a bound of their own: what the other constraints, and the type, say of them.

1. *Elimination.* Linear constraints over inputs may bound an input together where none does alone:
   ``x + y <= 1`` and ``x - y <= 1`` give ``x <= 1``. Fourier and Motzkin: of two constraints in
   which a variable has opposite signs, the sum that cancels it holds wherever both do. Exact.
2. *The type.* Every input is a number of its declared type, and those have ends.
3. ``real`` has none. Then a counterexample may still be found among smaller numbers, but a proof
   about them is none about all: the boxes do not cover the property.

Bounds of the box enter eliminations loosened, because they may be read as numbers of another type
(``box.slack``).
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from bitcrown.spec.box import Box, slack
from bitcrown.spec.element_types import ELEMENT_TYPES
from bitcrown.spec.problem import Constraint

_MAX_ROWS = 256
_MAX_OPEN = 16
_SIZES = (1, 1 << 10)
"""How far from zero, or from its one bound, candidates are looked for: inputs that are normalised,
and others."""

_Row = tuple[dict[int, Fraction], Fraction]
"""Coefficients of a linear form and what it is at most."""


def eliminate(box: Box, ties: Sequence[Constraint], missing: Sequence[int]) -> None:
    """Tighten ``box`` where linear constraints over inputs together bound one of ``missing``."""
    if len(missing) > _MAX_OPEN:
        return
    open_ = set(missing)
    found = [_over_open(tie, box, open_) for tie in ties]
    whole = [row for row in found if row is not None]
    for number in missing:
        rows = whole
        for other in missing:
            rows = rows if other == number else _cancelled(rows, other)
        for row, bound in rows:
            if row:
                box.tighten(number, row[number] > 0, bound / row[number])


def _over_open(tie: Constraint, box: Box, open_: set[int]) -> _Row | None:
    """The constraint over ``open_`` inputs alone, all others at the end of their box that allows
    most; None where an end is missing."""
    kept: dict[int, Fraction] = {}
    bound = tie.bound
    for (number, *_), value in tie.terms:
        end = box.end(number, is_upper=value < 0)
        if number in open_:
            kept[number] = value
        elif end is None:
            return None
        else:
            bound -= value * end - abs(value) * slack(end)
    return kept, bound


def _cancelled(rows: list[_Row], number: int) -> list[_Row]:
    """Rows without the variable ``number`` that follow from ``rows``; too many are cut off, which
    only loses bounds."""
    result = [row for row in rows if not row[0].get(number)]
    above = [row for row in rows if row[0].get(number, 0) > 0]
    below = [row for row in rows if row[0].get(number, 0) < 0]
    for first, limit in above:
        for second, other in below:
            if len(result) >= _MAX_ROWS:
                return result
            a, b = -second[number], first[number]
            total = {
                key: value
                for key in first.keys() | second.keys()
                if (value := a * first.get(key, Fraction(0)) + b * second.get(key, Fraction(0)))
            }
            result.append((total, a * limit + b * other))
    return result


def closed_boxes(box: Box, missing: Sequence[tuple[int, str]]) -> tuple[list[Box], bool]:
    """Boxes with all ends for one with open ones, and whether they cover it.

    ``missing``: the inputs that lack an end, with their types. The small boxes come first: they
    help an attack, which finds nothing among numbers of 38 digits.
    """
    types = [(number, ELEMENT_TYPES[dtype]) for number, dtype in missing]
    covers = all(kind.largest is not None for _, kind in types)
    sizes: list[int | None] = list(_SIZES)
    if covers:
        sizes = [None] if all(kind.is_whole for _, kind in types) else [*_SIZES, None]
    boxes = []
    for size in sizes:
        closed = box.child()
        for number, kind in types:
            low, high = box.end(number, False), box.end(number, True)
            if low is None:
                closed.tighten(number, False, _end(kind.lowest, -1, size, high))
            if high is None:
                closed.tighten(number, True, _end(kind.largest, 1, size, low))
        boxes.append(closed)
    return boxes, covers


def _end(of_type: Fraction | None, sign: int, size: int | None, other: Fraction | None) -> Fraction:
    """The end of the type or, with a ``size``, one that far beyond zero and the ``other`` end."""
    if size is None:
        assert of_type is not None
        return of_type if other is None else sign * max(sign * of_type, sign * other)
    start = max(Fraction(0), sign * other) if other is not None else Fraction(0)
    near = sign * (start + size)
    return near if of_type is None or abs(near) < abs(of_type) else of_type
