"""Boxes of inputs under construction: shared base bounds plus what one case tightens, and bounds
through ties."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np

from bitcrown.spec.exact_vector import ExactVector
from bitcrown.spec.problem import Constraint, Monomial

_MAX_PASSES = 64

_Terms = tuple[tuple[Monomial, Fraction], ...]


def _is_less(left: Fraction, right: Fraction) -> bool:
    """``left < right``; several times faster than the operator, which checks types first."""
    a, b = left.as_integer_ratio()
    c, d = right.as_integer_ratio()
    return a < c if b == d else a * d < c * b


_Ends = tuple[ExactVector, np.ndarray]
"""One side of a box, and which of its ends are known (bool ``[n]``)."""


@dataclass(slots=True)
class Box:
    """Bounds by input number; a missing number is unbounded on that side. ``parent`` holds what is
    not tightened. ``arrays``, by side (upper or not), hold what came in blocks: they include the
    parent's bounds, and a bound in ``lower`` or ``upper`` is tighter."""

    lower: dict[int, Fraction] = field(default_factory=dict)
    upper: dict[int, Fraction] = field(default_factory=dict)
    parent: Box | None = None
    arrays: dict[bool, _Ends] = field(default_factory=dict)

    def end(self, number: int, is_upper: bool) -> Fraction | None:
        """The least upper or greatest lower bound known of an input."""
        found = (self.upper if is_upper else self.lower).get(number)
        if found is None and is_upper in self.arrays:
            ends, is_known = self.arrays[is_upper]
            return ends[number] if is_known[number] else None
        return self.parent.end(number, is_upper) if found is None and self.parent else found

    def child(self) -> Box:
        """A copy to tighten further. The base is never copied: all cases refer to the same one."""
        if self.parent is None:
            return Box({}, {}, self)
        return Box(dict(self.lower), dict(self.upper), self.parent, dict(self.arrays))

    def has_arrays(self) -> bool:
        return bool(self.arrays) or (self.parent is not None and self.parent.has_arrays())

    def ends(self, is_upper: bool, n_inputs: int) -> _Ends:
        """All bounds of one side as arrays."""
        if is_upper in self.arrays:
            ends, is_known = self.arrays[is_upper]
        elif self.parent is not None:
            ends, is_known = self.parent.ends(is_upper, n_inputs)
        else:
            zeros = np.zeros(n_inputs, dtype=np.int64)
            ends, is_known = ExactVector(zeros, zeros.astype(np.int16)), zeros.astype(bool)
        own = self.upper if is_upper else self.lower
        if own:
            places = np.array(list(own), dtype=np.int64)
            ends = ends.replaced(places, ExactVector.of(list(own.values())))
            is_known = is_known.copy()
            is_known[places] = True
        return ends, is_known

    def tighten(self, number: int, is_upper: bool, value: Fraction) -> bool:
        """Intersect with one bound; whether the box changed."""
        old = self.end(number, is_upper)
        if old is not None and not (_is_less(value, old) if is_upper else _is_less(old, value)):
            return False
        (self.upper if is_upper else self.lower)[number] = value
        return True

    def tighten_block(
        self, numbers: np.ndarray, is_upper: np.ndarray, values: ExactVector, n_inputs: int
    ) -> None:
        """Intersect with many bounds, as ``tighten`` does with each."""
        for side in (False, True):
            ends, is_known = self.ends(side, n_inputs)
            (self.upper if side else self.lower).clear()
            left = np.flatnonzero(is_upper == side)
            while len(left):
                # One bound of each input at a time; nearly always there is no second.
                places, first = numbers[left], np.arange(len(left))
                if not (np.diff(places) > 0).all():
                    places, first = np.unique(places, return_index=True)
                new, old = values.taken(left[first]), ends.taken(places)
                is_new = ~is_known[places]
                if not is_new.all():
                    is_new |= new.is_less(old) if side else old.is_less(new)
                chosen = np.flatnonzero(is_new)
                ends = ends.replaced(places[chosen], new.taken(chosen))
                is_known = is_known.copy()
                is_known[places] = True
                left = np.delete(left, first)
            self.arrays[side] = ends, is_known

    def is_empty_at(self, number: int) -> bool:
        """Whether the bounds of this one input contradict each other."""
        low, high = self.end(number, False), self.end(number, True)
        return low is not None and high is not None and _is_less(high, low)

    def first_empty(self, numbers: Iterable[int]) -> int | None:
        """The first of ``numbers`` whose bounds contradict each other."""
        return next((number for number in numbers if self.is_empty_at(number)), None)

    def first_empty_in_arrays(self) -> int | None:
        """The first input whose bounds of the two ``arrays`` contradict each other."""
        if len(self.arrays) < 2:
            return None
        (low, has_low), (high, has_high) = self.arrays[False], self.arrays[True]
        empty = np.flatnonzero(has_low & has_high & high.is_less(low))
        return int(empty[0]) if len(empty) else None

    def open_inputs(self, n_inputs: int) -> list[int]:
        """The inputs that lack a bound on some side."""
        if self.has_arrays():
            is_known = self.ends(False, n_inputs)[1] & self.ends(True, n_inputs)[1]
            return [int(number) for number in np.flatnonzero(~is_known)]
        top = Box() if self.parent is None else self.parent
        known = self.lower.keys() | top.lower.keys(), self.upper.keys() | top.upper.keys()
        if min(map(len, known)) == n_inputs:
            return []
        return [number for number in range(n_inputs) if not all(number in side for side in known)]


def is_tie(constraint: Constraint, n_inputs: int) -> bool:
    """Whether this is a linear constraint over at least two inputs and nothing else."""
    terms = constraint.terms
    return len(terms) > 1 and all(
        len(monomial) == 1 and monomial[0] < n_inputs for monomial, _ in terms
    )


def propagate(box: Box, ties: list[Constraint]) -> int | None:
    """Tighten the box through linear constraints over inputs; the number of an input that became
    empty, or ``None``.

    Only implied bounds are added, so no point that satisfies the ties is lost. Differences such as
    ``x <= z`` may tighten repeatedly (a chain of equalities passes its bounds on to the end); any
    other constraint only fills in bounds that are missing, because repeated tightening could go on
    for ever in ever smaller steps.

    A bound may be read as the number of the input's type that is nearest to it (``slack``), and
    what holds of the decimals need not hold of those. So implied bounds are looser by that much,
    except of ``x <= z``, where both are read alike; and bounds that cross by less are left as they
    were: ties are constraints of the case in any event.
    """
    users: dict[int, list[int]] = {}
    for place, tie in enumerate(ties):
        for monomial, _ in tie.terms:
            users.setdefault(monomial[0], []).append(place)
    queue = deque(range(len(ties)))
    queued = [True] * len(ties)
    budget = _MAX_PASSES * len(ties) + _MAX_PASSES
    while queue and budget:
        budget -= 1
        place = queue.popleft()
        queued[place] = False
        for number, is_upper, value in _implied(box, ties[place]):
            other = box.end(number, not is_upper)
            crosses = other is not None and (
                _is_less(value, other) if is_upper else _is_less(other, value)
            )
            if other is not None and crosses:
                if abs(value - other) > slack(value) + slack(other):
                    box.tighten(number, is_upper, value)
                    return number
                continue
            if not box.tighten(number, is_upper, value):
                continue
            for user in users[number]:
                if not queued[user] and user != place:
                    queued[user] = True
                    queue.append(user)
    return None


def _implied(box: Box, tie: Constraint) -> list[tuple[int, bool, Fraction]]:
    """The bound that ``tie`` implies for each of its inputs from the bounds of the others."""
    # sum c_i x_i <= b implies c_k x_k <= b - sum over i != k of min c_i x_i.
    least: list[Fraction | None] = []
    for monomial, coefficient in tie.terms:
        end = box.end(monomial[0], is_upper=coefficient < 0)
        least.append(None if end is None else coefficient * end)
    missing = sum(value is None for value in least)
    if missing > 1:
        return []
    total = sum((value for value in least if value is not None), Fraction(0))
    is_difference = len(tie.terms) == 2 and tie.terms[0][1] == -tie.terms[1][1]
    room = Fraction(0)
    if not is_difference or tie.bound:
        room = sum((slack(value) for value in least if value is not None), Fraction(0))
    implied: list[tuple[int, bool, Fraction]] = []
    for (monomial, coefficient), own in zip(tie.terms, least, strict=True):
        if missing and own is not None:
            continue
        number, is_upper = monomial[0], coefficient > 0
        if box.end(number, is_upper) is None or is_difference:
            rest = total if own is None else total - own
            implied.append((number, is_upper, (tie.bound - rest + room) / coefficient))
    return implied


def slack(bound: Fraction) -> Fraction:
    """At least the distance of a bound from the nearest number of any float type: half a step of
    bfloat16, or of the smallest float16. Numbers of eight digits in base two, neither large nor
    small, are numbers of all types."""
    top, bottom = abs(bound.numerator), bound.denominator
    is_dyadic = bottom & (bottom - 1) == 0 and bottom <= 1 << 14
    if is_dyadic and top <= 1 << 15 and (top == 0 or top // (top & -top) < 1 << 8):
        return Fraction(0)
    return abs(bound) / 256 + Fraction(1, 2**25)


def form_key(terms: _Terms, sign: int = 1) -> object:
    """What two forms have in common that are the same (``sign`` times the one). Integers, because
    hashing a Fraction costs a modular inverse."""
    return tuple(
        (monomial, sign * coefficient.numerator, coefficient.denominator)
        for monomial, coefficient in terms
    )


def reduced(constraints: list[Constraint]) -> list[Constraint]:
    """Without duplicates and, among constraints on the same expression, without all but the
    tightest."""
    if len(constraints) < 2:
        return constraints
    tightest: dict[object, Constraint] = {}
    for constraint in constraints:
        key = form_key(constraint.terms)
        other = tightest.get(key)
        if (
            other is None
            or _is_less(constraint.bound, other.bound)
            or (constraint.strict and constraint.bound == other.bound)
        ):
            tightest[key] = constraint
    return list(tightest.values())


def is_implied(constraint: Constraint, box: Box, n_inputs: int) -> bool:
    """Whether a bound on one input (kept because it is strict) holds anyway in the whole box."""
    single = _single_input(constraint, n_inputs)
    if single is None:
        return False
    number, coefficient = single
    end = box.end(number, is_upper=coefficient > 0)
    if end is None:
        return False
    return coefficient * end < constraint.bound or (
        not constraint.strict and coefficient * end == constraint.bound
    )


def contradiction(constraints: list[Constraint], box: Box, n_inputs: int) -> tuple[Constraint, ...]:
    """One constraint that no point of the box meets, or two that contradict each other; empty if
    neither is seen."""
    seen: dict[object, Constraint] = {}
    several = len(constraints) > 1
    for constraint in constraints:
        single = _single_input(constraint, n_inputs)
        if single is not None:
            number, coefficient = single
            end = box.end(number, is_upper=coefficient < 0)
            if end is not None:
                least = coefficient * end - abs(coefficient) * slack(end)
                if _misses(least, constraint.bound, constraint.strict):
                    return (constraint,)
        if several:
            other = seen.get(form_key(constraint.terms, -1))
            if other is not None and _misses(
                -other.bound, constraint.bound, constraint.strict or other.strict
            ):
                return (other, constraint)
            seen[form_key(constraint.terms)] = constraint
    return ()


def _misses(least: Fraction, bound: Fraction, strict: bool) -> bool:
    """Whether a value that is at least ``least`` can never meet ``<= bound`` (``< bound`` if
    strict)."""
    return least >= bound if strict else least > bound


def _single_input(constraint: Constraint, n_inputs: int) -> tuple[int, Fraction] | None:
    if len(constraint.terms) != 1:
        return None
    monomial, coefficient = constraint.terms[0]
    return (monomial[0], coefficient) if len(monomial) == 1 and monomial[0] < n_inputs else None
