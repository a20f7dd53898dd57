"""Many exact decimals in little memory: what a box of a million inputs is made of.

An entry is ``mantissa / 10**exponent``, as written in the file; what is no such decimal (1/3, or
more than 18 digits) stays a ``Fraction`` beside the arrays. Nothing is ever rounded but by
``rounded``, which says in which direction.

Floats come from extended precision. ``q = fl(mantissa / 10**exponent)`` is rounded once, both
operands being exact there. Rounding is monotone, so for a float64 ``d``, ``q > d`` proves
``value > d``, and ``q < d`` proves ``value < d``; only where ``q = d`` is the comparison done in
rational numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import overload

import numpy as np

MOST_DIGITS = 18
"""Of a mantissa: every integer of so many digits is an int64."""
_MOST_PLACES = 27
"""The largest power of ten that 64 binary digits hold exactly."""
_IS_EXTENDED = np.finfo(np.longdouble).nmant >= 63
_POWERS = np.cumprod(np.array([1] + [10] * _MOST_PLACES, dtype=np.longdouble))


class ExactVector(Sequence[Fraction]):
    """``mantissa``: int64 ``[n]``; ``exponent``: int16 ``[n]``; ``others``: entries that are no
    such decimals. Not to be changed once made."""

    __slots__ = ("_near", "exponent", "mantissa", "others")

    def __init__(
        self,
        mantissa: np.ndarray,
        exponent: np.ndarray,
        others: Mapping[int, Fraction] | None = None,
    ) -> None:
        self.mantissa, self.exponent, self.others = mantissa, exponent, dict(others or {})
        self._near: np.ndarray | None = None

    @classmethod
    def of(cls, values: Sequence[Fraction]) -> ExactVector:
        """The same numbers; what is no short decimal is kept as it is."""
        mantissa, exponent = np.zeros(len(values), dtype=np.int64), np.zeros(len(values), np.int16)
        others = {}
        known: dict[int, int | None] = {}
        for place, value in enumerate(values):
            top, bottom = value.as_integer_ratio()
            if bottom not in known:
                known[bottom] = next((k for k in range(MOST_DIGITS) if not 10**k % bottom), None)
            digits = known[bottom]
            scaled = 0 if digits is None else top * (10**digits // bottom)
            if digits is None or abs(scaled) >= 10**MOST_DIGITS:
                others[place] = value
            else:
                mantissa[place], exponent[place] = scaled, digits
        return cls(mantissa, exponent, others)

    def __len__(self) -> int:
        return len(self.mantissa)

    @overload
    def __getitem__(self, place: int) -> Fraction: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[Fraction, ...]: ...
    def __getitem__(self, place: int | slice) -> Fraction | tuple[Fraction, ...]:
        if isinstance(place, slice):
            if self.others:
                return tuple(self[i] for i in range(*place.indices(len(self))))
            return tuple(
                map(_decimal, self.mantissa[place].tolist(), self.exponent[place].tolist())
            )
        place = range(len(self))[place]
        found = self.others.get(place)
        if found is None:
            return _decimal(int(self.mantissa[place]), int(self.exponent[place]))
        return found

    def __iter__(self) -> Iterator[Fraction]:
        if self.others:
            return (self[i] for i in range(len(self)))
        return map(_decimal, self.mantissa.tolist(), self.exponent.tolist())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(self.nearest().tobytes())

    def __repr__(self) -> str:
        return repr(tuple(self))

    def taken(self, places: np.ndarray) -> ExactVector:
        """The entries at ``places [k]``."""
        others = {}
        if self.others:
            for k, place in enumerate(places.tolist()):
                if place in self.others:
                    others[k] = self.others[place]
        return ExactVector(self.mantissa[places], self.exponent[places], others)

    def replaced(self, places: np.ndarray, values: ExactVector) -> ExactVector:
        """A copy with ``values [k]`` at ``places [k]``."""
        mantissa, exponent = self.mantissa.copy(), self.exponent.copy()
        mantissa[places], exponent[places] = values.mantissa, values.exponent
        others = dict(self.others)
        if others or values.others:
            for k, place in enumerate(places.tolist()):
                others.pop(place, None)
                if k in values.others:
                    others[place] = values.others[k]
        return ExactVector(mantissa, exponent, others)

    @classmethod
    def joined(cls, parts: Sequence[ExactVector]) -> ExactVector:
        """The entries of all parts in a row."""
        others, start = {}, 0
        for part in parts:
            others.update({start + place: value for place, value in part.others.items()})
            start += len(part)
        if not parts:
            return cls(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int16))
        mantissa = np.concatenate([part.mantissa for part in parts])
        return cls(mantissa, np.concatenate([part.exponent for part in parts]), others)

    def rows(self, width: int) -> list[ExactVector]:
        """The same as vectors of ``width`` entries each, which share the memory."""
        own: dict[int, dict[int, Fraction]] = {}
        for place, value in self.others.items():
            own.setdefault(place // width, {})[place % width] = value
        pairs = zip(self.mantissa.reshape(-1, width), self.exponent.reshape(-1, width), strict=True)
        return [ExactVector(*pair, own.get(row)) for row, pair in enumerate(pairs)]

    def nearest(self) -> np.ndarray:
        """The float64 nearest to each entry ``[n]``, infinite beyond the range of floats; made once
        and kept."""
        if self._near is None:
            self._near = self._nearest()
        return self._near

    def _nearest(self) -> np.ndarray:
        quotient = self._quotients()
        near = quotient.astype(np.float64)
        # Rounding twice goes wrong only in the middle between two float64s, or next to it.
        rest = np.abs(quotient - near)
        half = np.spacing(np.abs(near)).astype(np.longdouble) / 2
        is_sure = np.abs(rest - half) > half * np.longdouble(2.0**-8)
        return self._corrected(near, is_sure & np.isfinite(near), _nearest_float)

    def rounded(self, is_up: bool) -> np.ndarray:
        """The least float64 not below each entry ``[n]`` or, not ``is_up``, the greatest not above
        it; infinite beyond the range of floats."""
        sign = 1 if is_up else -1
        quotient = self._quotients()
        near = quotient.astype(np.float64)
        is_past = quotient > near if is_up else quotient < near
        result = np.where(is_past, np.nextafter(near, sign * np.inf), near)
        return self._corrected(
            result,
            (quotient != near) & np.isfinite(near),
            lambda value: sign * _least_float(sign * value),
        )

    def _quotients(self) -> np.ndarray:
        places = np.clip(self.exponent, 0, _MOST_PLACES)
        result: np.ndarray = self.mantissa.astype(np.longdouble) / _POWERS[places]
        return result

    def _corrected(
        self, values: np.ndarray, is_sure: np.ndarray, exactly: Callable[[Fraction], float]
    ) -> np.ndarray:
        """``values``, and ``exactly`` of the entries of which extended precision says too
        little."""
        is_sure &= (self.exponent >= 0) & (self.exponent <= _MOST_PLACES)
        is_sure |= self.mantissa == 0
        if not _IS_EXTENDED:
            is_sure[:] = False
        is_sure[list(self.others)] = False
        known: dict[tuple[int, int], float] = {}
        for place in np.flatnonzero(~is_sure).tolist():
            if place in self.others:
                values[place] = exactly(self.others[place])
                continue
            key = int(self.mantissa[place]), int(self.exponent[place])
            if key not in known:
                known[key] = exactly(_decimal(*key))
            values[place] = known[key]
        return values

    def is_less(self, other: ExactVector) -> np.ndarray:
        """Where an entry is below that of ``other``: bool ``[n]``."""
        places = self.exponent.astype(np.int64) - other.exponent
        up, down = np.maximum(-places, 0), np.maximum(places, 0)
        # Written to as many places, whole numbers are compared: exactly, if int64 holds them.
        with np.errstate(all="ignore"):
            most = 10.0 ** np.stack([up, down]) * np.abs([self.mantissa, other.mantissa])
        if not self.others and not other.others and bool((most < 2.0**62).all()):
            small: np.ndarray = self.mantissa * 10**up < other.mantissa * 10**down
            return small
        low, high = self.nearest(), other.nearest()
        result: np.ndarray = low < high
        is_same = (self.mantissa == other.mantissa) & (places == 0)
        for place in np.flatnonzero((low == high) & ~is_same).tolist():
            result[place] = self[place] < other[place]
        for place in self.others.keys() | other.others.keys():
            result[place] = self[place] < other[place]
        return result


def _decimal(mantissa: int, exponent: int) -> Fraction:
    if exponent == 0:
        return Fraction(mantissa)
    return Fraction(mantissa, 10**exponent) if exponent > 0 else Fraction(mantissa * 10**-exponent)


def _least_float(value: Fraction) -> float:
    try:
        near = float(value)
    except OverflowError:
        return math.inf if value > 0 else -float(np.finfo(np.float64).max)
    return near if Fraction(near) >= value else math.nextafter(near, math.inf)


def _nearest_float(value: Fraction) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
