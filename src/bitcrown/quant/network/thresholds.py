"""Rounding, clipping and saturation of an accumulator, compiled into the integer thresholds of a
``Staircase``.

A nondecreasing function f from integers to integers is known once, for every level t, the smallest
accumulator a with f(a) >= t is known. Two builders find these numbers.

* **Exact**: f(a) = clip(round(scale * a + offset), low, high) with rational ``scale > 0`` and
  ``offset``. Every rounding mode says at which real number level t begins, and whether that number
  itself belongs to it: half up begins at t - 1/2, included; half to even includes the tie only for
  even t; half away from zero only for t > 0; floor begins at t; ceil behind t - 1. Dividing by
  ``scale`` is rational arithmetic, so no rounding argument is needed.
* **Bisection**: f is given by the arithmetic of a format itself, for example
  ``clip(rint(float32(a) * float32(s)) + zero)``, evaluated by numpy in that very precision. A
  correctly rounded operation on a nondecreasing argument is nondecreasing (rounding is monotone),
  and so are min, max, rint, floor, casts and products with a constant of one sign; compositions
  stay monotone. Bisection over the accumulator's range therefore finds every threshold exactly, and
  nothing is assumed about f between two probed points but its order.

Where f is known only within an interval (a sum of floats in unspecified order), it comes as two
nondecreasing functions, least <= greatest: a level is reached early by the greatest and late by the
least one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from bitcrown.quant.network.graph import WIDTH_LIMIT, Ints, QuantError

StepFunction = Callable[[Ints], tuple[Ints, Ints]]
"""[C, K] accumulators -> least and greatest level that the format may give them, both
nondecreasing."""
_LARGEST_TABLE = 1 << 23
"""Thresholds of one step: beyond that the accumulator is not really quantized."""


def _begin(level: int, mode: str) -> tuple[Fraction, bool]:
    """The real number at which ``level`` begins under rounding ``mode``, and whether it belongs to
    the level."""
    half = Fraction(2 * level - 1, 2)
    table: dict[str, tuple[Fraction, bool]] = {
        "half_up": (half, True),
        "half_even": (half, level % 2 == 0),
        "half_away": (half, level > 0),
        "floor": (Fraction(level), True),
        "ceil": (Fraction(level - 1), False),
    }
    try:
        return table[mode]
    except KeyError:
        raise QuantError(
            f"rounding mode {mode!r} is unknown; known are {', '.join(table)}"
        ) from None


MODES = ("half_up", "half_even", "half_away", "floor", "ceil")


def exact_thresholds(scale: Fraction, offset: Fraction, low: int, high: int, mode: str) -> Ints:
    """[K], K = high - low: the smallest a with ``round(scale * a + offset) >= low + 1 + k``;
    ``scale`` is positive.

    A threshold outside +-WIDTH_LIMIT is cut there: no accumulator gets that far.
    """
    if scale <= 0:
        raise QuantError(
            f"a staircase needs a positive scale, not {scale}; negate the accumulator first"
        )
    found = []
    for level in range(low + 1, high + 1):
        begin, included = _begin(level, mode)
        point = (begin - offset) / scale
        first = math.ceil(point) if included else math.floor(point) + 1
        found.append(max(-WIDTH_LIMIT, min(WIDTH_LIMIT, first)))
    return np.array(found, dtype=np.int64)


def exact_rows(
    scales: Sequence[Fraction], offsets: Sequence[Fraction], low: int, high: int, mode: str
) -> tuple[Ints, Ints]:
    """``base`` [C] and thresholds [C, K] of
    ``clip(round(scales[c] * a + offsets[c]), low, high)``."""
    rows = [exact_thresholds(s, o, low, high, mode) for s, o in zip(scales, offsets, strict=True)]
    return np.full(len(rows), low, dtype=np.int64), np.array(rows, dtype=np.int64).reshape(
        len(rows), -1
    )


def bisected_rows(levels: StepFunction, low: Ints, high: Ints) -> tuple[Ints, Ints, Ints]:
    """``base`` [C], ``early`` and ``late`` [C, K] of ``levels`` over the accumulators
    ``low[c] <= a <= high[c]``.

    Outside of that range the thresholds claim nothing. ``early is late`` where the two never
    differ.
    """
    base = levels(low[:, None])[0][:, 0]
    top = levels(high[:, None])[1][:, 0]
    if (top < base).any():
        raise QuantError("a step falls while its accumulator rises; negate the accumulator first")
    steps = int((top - base).max(initial=0))
    if steps * len(base) > _LARGEST_TABLE:
        raise QuantError(
            f"a step has {steps} levels in each of {len(base)} channels, more than quantized "
            "networks have"
        )
    targets = base[:, None] + 1 + np.arange(steps, dtype=np.int64)
    late = _bisect(lambda a: levels(a)[0] >= targets, low, high, steps)
    early = _bisect(lambda a: levels(a)[1] >= targets, low, high, steps)
    unused = targets > top[:, None]
    early[unused] = late[unused] = WIDTH_LIMIT
    return (base, late, late) if (early == late).all() else (base, early, late)


def _bisect(
    reached: Callable[[Ints], npt.NDArray[np.bool_]], low: Ints, high: Ints, steps: int
) -> Ints:
    """The smallest a in ``low .. high`` that reaches each target; +-WIDTH_LIMIT where none or every
    one does."""
    left = np.repeat(low[:, None], steps, axis=1)
    right = np.repeat(high[:, None] + 1, steps, axis=1)
    for _ in range(int((high - low).max(initial=0) + 1).bit_length() + 1):
        if (left >= right).all():
            break
        middle = np.minimum(left + (right - left) // 2, high[:, None])
        hit = reached(middle)
        right = np.where(hit, np.minimum(right, middle), right)
        left = np.where(hit, left, np.minimum(middle + 1, right))
    found = np.where(right > high[:, None], WIDTH_LIMIT, right)
    return np.where(found == low[:, None], -WIDTH_LIMIT, found)
