"""A few points of a staircase that stand for all of its levels in floats.

The convex hull of a staircase with equal steps has its corners at the ends of the interval and at
the ends of the first two and last two levels in reach. Where steps are unequal, the two steps that
lie farthest off the straight line are taken as well; without them an ascent climbs into what the
exact bound then does not confirm. Legend: ``R`` rows, ``N`` elements, ``V`` corners.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bitcrown.quant.bounds.intervals import StairTable
from bitcrown.quant.network.graph import Ints

_Reals = npt.NDArray[np.float64]


def corners(table: StairTable, low: Ints, high: Ints) -> tuple[_Reals, _Reals]:
    """(arguments, output values), [V, R, N] each: the ends of the first two and last two levels of
    ``[low, high]``."""
    arguments, values = [], []
    for thresholds in table.sides():
        steps = thresholds.shape[1]
        first, last = table.level(thresholds, low), table.level(thresholds, high)
        channel = np.broadcast_to(table.channel, low.shape)
        for level in (first, np.minimum(first + 1, last), np.maximum(last - 1, first), last):
            # a level begins at its own threshold and ends just before the next one; the outermost
            # levels in reach are cut by the interval
            start, end = low, high
            if steps:
                start = np.maximum(thresholds[channel, np.maximum(level - 1, 0)], low)
                end = np.minimum(thresholds[channel, np.minimum(level, steps - 1)] - 1, high)
                start = np.where(level == first, low, start)
                end = np.where(level == last, high, end)
            for argument in (start, end):
                arguments.append(argument)
                values.append(table.base + level)
        if steps:
            for place, offset in zip(
                _outermost(thresholds, channel, first, last), (1, 0), strict=True
            ):
                edge = thresholds[channel, np.minimum(place, steps - 1)] - 1 + offset
                inside = (place < last) & (edge >= low) & (edge <= high)
                arguments.append(np.where(inside, edge, low))
                values.append(table.base + np.where(inside, place + offset, first))
    return np.array(arguments, dtype=np.float64), np.array(values, dtype=np.float64)


def _outermost(thresholds: Ints, channel: Ints, first: Ints, last: Ints) -> tuple[Ints, Ints]:
    """The steps from ``first`` to ``last`` [R, N] that lie farthest above and below the line
    through the outer ones, by more than one step: corners of a hull whose steps are unequal."""
    most = thresholds.shape[1] - 1
    begin = thresholds[channel, np.minimum(first, most)]
    run = thresholds[channel, np.clip(last - 1, 0, most)] - begin
    slope = (last - 1 - first) / np.maximum(run, 1)
    above, below = first.copy(), first.copy()
    top, bottom = np.ones(first.shape), -np.ones(first.shape)  # rounding moves steps by less
    for k in range(1, int((last - first).max(initial=0))):
        place = np.minimum(first + k, most)
        rise = k - slope * (thresholds[channel, place] - begin)
        here = first + k < last
        above = np.where(here & (rise > top), place, above)
        top = np.where(here, np.maximum(top, rise), top)
        below = np.where(here & (rise < bottom), place, below)
        bottom = np.where(here, np.minimum(bottom, rise), bottom)
    return above, below
