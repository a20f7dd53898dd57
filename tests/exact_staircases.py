"""Staircases of rational arithmetic, in every rounding mode: an oracle that never bisects.
bisection.

f(a) = clip(round(scale * a + offset), low, high) with rational ``scale > 0`` and ``offset``. Every
rounding mode says at which real number level t begins, and whether that number itself belongs to
it: half up begins at t - 1/2, included; half to even includes the tie only for even t; half away
from zero only for t > 0; floor begins at t; ceil behind t - 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from bitcrown.quant.network.graph import WIDTH_LIMIT, Ints

MODES = ("half_up", "half_even", "half_away", "floor", "ceil")


def beginning(level: int, mode: str) -> tuple[Fraction, bool]:
    """The real number at which ``level`` begins under rounding ``mode``, and whether it belongs to
    the level."""
    half = Fraction(2 * level - 1, 2)
    return {
        "half_up": (half, True),
        "half_even": (half, level % 2 == 0),
        "half_away": (half, level > 0),
        "floor": (Fraction(level), True),
        "ceil": (Fraction(level - 1), False),
    }[mode]


def exact_thresholds(scale: Fraction, offset: Fraction, low: int, high: int, mode: str) -> Ints:
    """[K], K = high - low: the smallest a with ``round(scale * a + offset) >= low + 1 + k``;
    ``scale`` is positive.

    A threshold outside +-WIDTH_LIMIT is cut there: no accumulator gets that far.
    """
    assert scale > 0
    found = []
    for level in range(low + 1, high + 1):
        begin, included = beginning(level, mode)
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
