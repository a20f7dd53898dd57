"""Intervals of first-layer accumulators on the part of the box where a subproblem can still be
violated.

A dual bound ends in a line over the inputs: every point that satisfies the case has
``0 >= c + g x``, where ``c`` is the sum of all blocks and constants and ``g`` the coefficients that
arrive at the input (``staircase_dual``). For an accumulator ``a_j = w_j x + b_j`` that reads the
input, any sign ``s`` and any numbers ``q > 0``, ``t >= 0``

    q s a_j  >=  q s a_j + t (c + g x)  >=  q s b_j + t c + min { (q s w_j + t g) x : x in the box
    },

weak duality over the box cut by the line's halfspace. The minimum is a dot product with the box, so
integers ``q``, ``t``, ``c``, ``g`` make it exact. Floats propose ``t``; a few multiples of the
natural scale are tried, which is the width of ``a_j`` over that of the line. Narrower accumulators
have narrower hulls of their staircases, and split trees become much smaller. Legend: ``R`` rows,
``N`` accumulators, ``n`` inputs, ``E`` entries.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bitcrown.quant.bounds.intervals import Intervals, Program
from bitcrown.quant.bounds.staircase_dual import DualValue
from bitcrown.quant.network.graph import Dense, Ints, Numbers
from bitcrown.quant.network.linear_steps import FLOAT_EXACT, INT_EXACT, largest

_MULTIPLES = (0.2, 0.45, 0.9, 1.8)
"""Multiples of the natural scale that are tried for every accumulator."""
_LEAST_GAIN = 0.01
"""Part of its width that an interval has to lose for an entry to be worth writing down."""
_MOST_WEIGHT = 2.0**14


@dataclass(frozen=True, eq=False)
class Clips:
    """Entries [E], sorted by row: row, accumulator of ``node``, sign, q, t and the least
    ``sign * a`` they prove."""

    node: int
    row: Ints
    element: Ints
    sign: Ints
    weight: Ints
    multiplier: Ints
    least: Ints

    def narrow(self, bounds: Intervals, rows: Ints) -> None:
        """Shrink the intervals of ``bounds``, in which row k of the entries is ``rows[k]``."""
        low, high = bounds.low[self.node].copy(), bounds.high[self.node].copy()
        row, up = rows[self.row], self.sign > 0
        np.maximum.at(low, (row[up], self.element[up]), self.least[up])
        np.minimum.at(high, (row[~up], self.element[~up]), -self.least[~up])
        bounds.intersect(self.node, low, high)

    def entries(self, row: int) -> list[list[int]]:
        """``[node, element, sign, q, t]`` of one row, for the certificate."""
        part = slice(*np.searchsorted(self.row, [row, row + 1]))
        columns = self.element[part], self.sign[part], self.weight[part], self.multiplier[part]
        return [[self.node, *map(int, entry)] for entry in zip(*columns, strict=True)]


class HalfspaceClipper:
    """The dense first-layer accumulators of one network."""

    def __init__(self, program: Program, node: int) -> None:
        dense = program.nodes[node]
        assert isinstance(dense, Dense)
        self.node, self.weight, self.bias = node, dense.weight, program.affine[node].offset
        self.real = dense.weight.astype(np.float32)
        self.wide = dense.weight.astype(np.float64)
        self.size = largest(dense.weight)

    @classmethod
    def of(cls, program: Program) -> HalfspaceClipper | None:
        """``None`` where no staircase reads a dense layer on the input."""
        for table in program.stairs.values():
            dense = program.nodes[table.source]
            if isinstance(dense, Dense) and dense.source == 0:
                return cls(program, table.source)
        return None

    def propose(
        self, bounds: Intervals, constant: Numbers, line: Numbers
    ) -> tuple[Numbers, Numbers]:
        """(least value of ``+-a`` found in floats, multiple of the line for it), [2, R, N] each."""
        low, high = bounds.low[0].astype(np.float64), bounds.high[0].astype(np.float64)
        # min over the box of (s w + t g) x is its value at the middle less |s w + t g| . radius
        middle, radius = (low + high) / 2, (high - low) / 2
        centre = middle @ self.wide.T + self.bias
        width = radius.astype(np.float32) @ np.abs(self.real).T
        slope = constant + (line * middle).sum(axis=1)
        swing = np.maximum((np.abs(line) * radius).sum(axis=1), 1e-30)
        best = np.full((2, *centre.shape), -np.inf)
        times = np.zeros_like(best)
        moved = np.empty_like(self.real)
        short, reach = line.astype(np.float32), radius.astype(np.float32)
        for row in range(len(line)):
            for multiple in _MULTIPLES:
                t = multiple * width[row] / swing[row]
                push = t[:, None] * short[row]
                for side, sign in enumerate((1.0, -1.0)):
                    (np.add if sign > 0 else np.subtract)(push, self.real, out=moved)
                    np.abs(moved, out=moved)
                    value = sign * centre[row] + t * slope[row] - moved @ reach[row]
                    better = value > best[side, row]
                    best[side, row] = np.where(better, value, best[side, row])
                    times[side, row] = np.where(better, t, times[side, row])
        return best, times

    def clip(self, bounds: Intervals, dual: DualValue) -> Clips | None:
        """Entries that shrink intervals of ``bounds``, exactly; ``dual`` is the bound of its
        rows."""
        line = dual.input
        constant = dual.value - np.minimum(line * bounds.low[0], line * bounds.high[0]).sum(axis=1)
        best, times = self.propose(bounds, constant.astype(np.float64), line.astype(np.float64))
        low, high = bounds.low[self.node], bounds.high[self.node]
        gain = best - np.stack([low, -high])
        row, side, element = np.nonzero((gain > _LEAST_GAIN * (high - low) + 1).transpose(1, 0, 2))
        # t / q is about ``scale``; q as large as keeps q w + t g and its product with the box below
        # 2^53, where float64 sums of integers are exact
        scale = times[side, row, element]
        reach = max(largest(bounds.low[0]), largest(bounds.high[0]), 1.0)
        limit = FLOAT_EXACT / (4 * line.shape[1] * reach)
        weight = np.floor(np.minimum(limit / (self.size + scale * largest(line)), _MOST_WEIGHT))
        multiplier = np.rint(scale * weight)
        # a line that is flat, because all its numbers are 0, would fit any number of times
        fits = (weight >= 1) & (multiplier < FLOAT_EXACT)
        fits &= weight * self.size + multiplier * largest(line) <= limit
        fits &= multiplier * largest(constant) + weight * largest(self.bias) < INT_EXACT / 2
        if not fits.any():
            return None
        row, element, sign = row[fits], element[fits], 1 - 2 * side[fits].astype(np.int64)
        weight, multiplier = weight[fits].astype(np.int64), multiplier[fits].astype(np.int64)
        twice = self._twice_least(bounds, line, row, element, weight * sign, multiplier)
        value = weight * sign * self.bias[element] + multiplier * constant[row] + twice // 2
        return Clips(self.node, row, element, sign, weight, multiplier, -(-value // weight))

    def _twice_least(
        self, bounds: Intervals, line: Ints, row: Ints, element: Ints, factor: Ints, times: Ints
    ) -> Ints:
        """[E]: twice the least value of ``(factor w + times g) x`` over the row's box; every sum is
        below 2**53."""
        out = np.empty(len(row), dtype=np.int64)
        middle = (bounds.low[0] + bounds.high[0]).astype(np.float64)
        spread = (bounds.high[0] - bounds.low[0]).astype(np.float64)
        real, lines = factor.astype(np.float64), line.astype(np.float64)
        # twice, so that middle and radius are the integers low + high and high - low
        starts = np.searchsorted(row, np.arange(len(line) + 1))
        for r in range(len(line)):
            part = slice(starts[r], starts[r + 1])
            if part.start == part.stop:
                continue
            cut = self.wide[element[part]] * real[part, None]
            cut += times[part, None].astype(np.float64) * lines[r]
            total = cut @ middle[r]
            total -= np.abs(cut, out=cut) @ spread[r]
            out[part] = total.astype(np.int64)
        return out
