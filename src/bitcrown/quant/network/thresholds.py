"""Rounding, clipping and saturation of an accumulator, compiled into the integer thresholds of
``Stairs``.

A nondecreasing function f from integers to integers is known once, for every level t, the smallest
accumulator a with f(a) >= t is known. f is given by the arithmetic of a format itself, for example
``clip(rint(float32(a) * float32(s)) + zero)``, evaluated by numpy in that very precision. A
correctly rounded operation on a nondecreasing argument is nondecreasing (rounding is monotone), and
so are min, max, rint, floor, casts and products with a constant of one sign; compositions stay
monotone. Bisection over the accumulator's range therefore finds every threshold exactly, and
nothing is assumed about f between two probed points but its order.

Where f is known only within an interval (a sum of floats in unspecified order), it comes as two
nondecreasing functions, least <= greatest: a level is reached early by the greatest and late by the
least one.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from bitcrown.quant.network.graph import WIDTH_LIMIT, Ints, QuantError

StepFunction = Callable[[Ints], tuple[Ints, Ints]]
"""[C, K] accumulators -> least and greatest level that the format may give them, both
nondecreasing; one array twice where the format leaves nothing open."""
_LARGEST_TABLE = 1 << 23
"""Thresholds of one step: beyond that the accumulator is not really quantized."""


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
    ends = levels(low[:, None])
    if ends[0] is ends[1]:  # a function, known to the bit
        early = late.copy()
    else:
        early = _bisect(lambda a: levels(a)[1] >= targets, low, high, steps)
    unused = targets > top[:, None]
    early[unused] = late[unused] = WIDTH_LIMIT
    return (base, late, late) if (early == late).all() else (base, early, late)


def _bisect(
    reached: Callable[[Ints], npt.NDArray[np.bool_]], low: Ints, high: Ints, steps: int
) -> Ints:
    """The smallest a in ``low .. high`` that reaches each target; +-WIDTH_LIMIT where none or every
    one does."""
    # invariant: below ``left`` no accumulator reaches the target, from ``right`` on every one does
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
