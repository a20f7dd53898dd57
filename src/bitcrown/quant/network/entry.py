"""The two ends of an integer network: what a user's input tensor becomes, and what the output
integers stand for.

The input of a file is either whole numbers already (``WholeEntry``: integer tensors, or pixels
0..255 in a float tensor) or real numbers that the file itself quantizes (``RoundedEntry``:
QuantizeLinear, Quant, perhaps after ``2 * x - 1``). Rounding is monotone, so the integers that a
closed box of representable numbers can become are those between the images of its two ends, and a
representable number with a given image is found by bisection over the float32 numbers in their
natural order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from bitcrown.quant.network.graph import Ints, QuantError

_Floats = npt.NDArray[np.float32]
_Corners = tuple[Fraction, ...]
_FLOAT_MAX = float(np.finfo(np.float32).max)
_LARGEST_FLOAT = Fraction(float(np.finfo(np.float32).max))


class Wraps(QuantError):
    """A number so large that a kernel does not saturate, but wraps around."""


@dataclass(frozen=True, slots=True, eq=False)
class WholeEntry:
    """Input elements are the integers themselves, in a tensor of type ``dtype``; ``low``/``high``:
    [N]."""

    dtype: np.dtype[Any]
    low: Ints
    high: Ints

    def integers(self, values: npt.NDArray[Any]) -> Ints:
        """[B, N] -> [B, N]; refuses fractions and values outside the range of the network."""
        whole = np.asarray(np.rint(values), dtype=np.int64)
        if (whole != values).any() or (whole < self.low).any() or (whole > self.high).any():
            raise QuantError(
                f"the network takes whole numbers from {self.low.min()} to {self.high.max()}; "
                "round the input first"
            )
        return whole

    def box(self, lower: _Corners, upper: _Corners) -> tuple[Ints, Ints]:
        """[N] integers; an element without a whole number in its interval has low > high, and the
        box is empty."""
        low = np.array([math.ceil(v) for v in lower], dtype=object)
        high = np.array([math.floor(v) for v in upper], dtype=object)
        inner = np.maximum(low, self.low), np.minimum(high, self.high)
        wide = self.low.min() - 1, self.high.max() + 1
        return (
            np.minimum(inner[0], wide[1]).astype(np.int64),
            np.maximum(inner[1], wide[0]).astype(np.int64),
        )

    def representative(self, integers: Ints, lower: _Corners, upper: _Corners) -> npt.NDArray[Any]:
        """[N] -> [N] of ``dtype``; the integers themselves, checked against the box."""
        for n, (value, low, high) in enumerate(zip(integers.tolist(), lower, upper, strict=True)):
            if not (low <= value <= high):
                raise QuantError(
                    f"input element {n} cannot be {value}: its interval is [{low}, {high}]"
                )
        found = np.asarray(integers, dtype=self.dtype)
        if (self.integers(found[None])[0] != integers).any():
            raise QuantError(f"the integers do not fit the input type {self.dtype}")
        return found


@dataclass(frozen=True, slots=True, eq=False)
class RoundedEntry:
    """Real input elements that the file rounds: ``levels`` maps [B, N] float32 to [B, N], monotone
    in each element; it raises ``Wraps`` for numbers where it would not be."""

    size: int
    levels: Callable[[_Floats], Ints]

    def reach(self) -> np.float32:
        """A number from which on all is saturated, where there is one."""

        def ends(far: float) -> Ints:
            reach = np.full(self.size, far, dtype=np.float32)
            with np.errstate(all="ignore"):
                return self.levels(np.stack([-reach, reach]))

        for far in (_FLOAT_MAX, *(2.0**power for power in range(127, -40, -1))):
            with suppress(Wraps):
                found = ends(far)
                # the same number from far / 1024 on is the last one, or the only one
                is_same = np.array_equal(found, ends(far / 1024))
                if far < _FLOAT_MAX and not (is_same and (found[0] != found[1]).all()):
                    break
                return np.float32(far)
        raise QuantError("the input is rounded in steps of very different size")

    def integers(self, values: npt.NDArray[Any]) -> Ints:
        """[B, N] -> [B, N]; numbers beyond float32 are not accepted."""
        single = np.asarray(values, dtype=np.float32)
        if not np.isfinite(single).all():
            raise QuantError("the input has entries that are not finite in float32; give numbers")
        return self.levels(single)

    def box(self, lower: _Corners, upper: _Corners) -> tuple[Ints, Ints]:
        """[N] integers. Where no float32 number lies in an interval its neighbours are taken: a
        larger box."""
        first, last = _inward(lower, upper)
        ends = self.levels(np.stack([np.minimum(first, last), np.maximum(first, last)]))
        return ends.min(axis=0), ends.max(axis=0)

    def span(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """[N] float64: an interval that holds all inputs that are not saturated, and a margin on
        both sides."""
        reach = np.full(self.size, self.reach(), dtype=np.float32)
        ends = self.levels(np.stack([-reach, reach]))
        sign = np.where(ends[0] > ends[1], -1, 1)
        bottom, top = (sign * ends).min(axis=0), (sign * ends).max(axis=0)

        def where(target: Ints) -> npt.NDArray[np.float64]:
            """The number at which the level ``target`` begins."""
            found = _first_ordinal(
                lambda o: sign * self.levels(_from_ordinal(o)[None])[0] >= target, -reach, reach
            )
            return _from_ordinal(np.minimum(found, _ordinal(reach))).astype(np.float64)

        # below the begin of the second level and above that of the last one everything saturates
        first, last = where(bottom + 1), where(top)
        margin = 0.1 * np.abs(last - first) + 0.5 * (np.abs(first) + 1) * (first == last)
        return first - margin, last + margin

    def representative(self, integers: Ints, lower: _Corners, upper: _Corners) -> _Floats:
        """[N] -> [N] float32: about the middle of the numbers in the interval that are rounded to
        ``integers``."""
        first, last = _inward(lower, upper)
        if (first > last).any():
            n = int(np.argmax(first > last))
            raise QuantError(
                f"no float32 number lies between {lower[n]} and {upper[n]} (input element {n})"
            )
        ends = self.levels(np.stack([first, last]))
        sign = np.where(ends[0] > ends[1], -1, 1)

        def at(ordinal: Ints) -> Ints:
            return np.asarray(sign * self.levels(_from_ordinal(ordinal)[None])[0], dtype=np.int64)

        begin = _first_ordinal(lambda o: at(o) >= sign * integers, first, last)
        end = _first_ordinal(lambda o: at(o) > sign * integers, first, last) - 1
        ordinal = np.minimum(begin, _ordinal(last))
        middle = (
            _from_ordinal(ordinal).astype(np.float64) + _from_ordinal(np.maximum(end, ordinal))
        ) / 2
        found = np.clip(middle.astype(np.float32), first, last)
        wrong = self.levels(found[None])[0] != integers
        if wrong.any():
            n = int(np.argmax(wrong))
            raise QuantError(
                f"input element {n} cannot become {integers[n]} inside [{lower[n]}, {upper[n]}]"
            )
        return found


def _inward(lower: _Corners, upper: _Corners) -> tuple[_Floats, _Floats]:
    """[N] smallest float32 >= lower, and largest <= upper."""
    return np.array([_up(v) for v in lower], np.float32), np.array(
        [-_up(-v) for v in upper], np.float32
    )


def _up(value: Fraction) -> float:
    """The smallest float32 number that is at least ``value`` (the largest finite one beyond the
    range)."""
    if abs(value) >= _LARGEST_FLOAT:
        return float(_LARGEST_FLOAT if value > 0 else -_LARGEST_FLOAT)
    near = np.float32(float(value))
    while Fraction(float(near)) < value:
        near = np.nextafter(near, np.float32(np.inf))
    while True:
        below = np.nextafter(near, np.float32(-np.inf))
        if not np.isfinite(below) or Fraction(float(below)) < value:
            return float(near)
        near = below


def _ordinal(values: _Floats) -> Ints:
    """Finite float32 numbers counted in their natural order; both zeros are 0."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.int32).astype(np.int64)
    return np.where(bits < 0, -(bits & 0x7FFFFFFF), bits)


def _from_ordinal(ordinal: Ints) -> _Floats:
    bits = np.abs(ordinal).astype(np.int32).view(np.float32)
    return np.where(ordinal < 0, -bits, bits).astype(np.float32)


def _first_ordinal(
    reached: Callable[[Ints], npt.NDArray[np.bool_]], first: _Floats, last: _Floats
) -> Ints:
    """[N] the smallest ordinal in first .. last that is reached, or the one behind ``last``."""
    left, right = _ordinal(first), _ordinal(last) + 1
    # invariant: nothing below ``left`` is reached, and ``right`` is (or is the one behind
    # ``last``); there are fewer than 2^33 float32 numbers
    for _ in range(34):
        middle = np.minimum((left + right) // 2, right - 1)
        middle = np.maximum(middle, left)
        hit = reached(np.minimum(middle, _ordinal(last))) & (middle < right)
        open_ = left < right
        right = np.where(open_ & hit, middle, right)
        left = np.where(open_ & ~hit, middle + 1, left)
    return right


@dataclass(frozen=True, slots=True)
class EvenlySpaced(Sequence[Fraction]):
    """``first + k * step`` for k < length, without storing them: outputs that are wide integers."""

    first: Fraction
    step: Fraction
    length: int

    def __len__(self) -> int:
        return self.length

    @overload
    def __getitem__(self, k: int) -> Fraction: ...
    @overload
    def __getitem__(self, k: slice) -> tuple[Fraction, ...]: ...
    def __getitem__(self, k: int | slice) -> Fraction | tuple[Fraction, ...]:
        if isinstance(k, slice):
            return tuple(self.first + i * self.step for i in range(*k.indices(self.length)))
        if not -self.length <= k < self.length:
            raise IndexError(k)
        return self.first + (k % self.length) * self.step


@dataclass(frozen=True, slots=True, eq=False)
class Doubles(Sequence[Fraction]):
    """The rational numbers that finite floats [L] are, made when they are asked for: a float32
    output has a million of them, most of which nobody reads."""

    numbers: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[Fraction]:
        return map(Fraction, self.numbers.tolist())

    @overload
    def __getitem__(self, k: int) -> Fraction: ...
    @overload
    def __getitem__(self, k: slice) -> tuple[Fraction, ...]: ...
    def __getitem__(self, k: int | slice) -> Fraction | tuple[Fraction, ...]:
        if isinstance(k, slice):
            return tuple(map(Fraction, self.numbers[k].tolist()))
        return Fraction(float(self.numbers[k]))
