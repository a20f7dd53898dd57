"""The rows of a property that are worth writing down: those that interval ranges leave open.

A case is a conjunction of rows ``sum_m c_m o_m <= b`` over the outputs. A row whose greatest value
is at most ``b`` always holds and is dropped; one whose least value is above ``b`` never holds, and
its case with it. The improved encoding does three things more: outputs that are affine are combined
into one accumulator, so that what they share cancels; two neurons of one staircase are compared
through their accumulators; and a row over a single neuron becomes a threshold on its accumulator,
without the staircase. Each keeps the inputs of the box that satisfy the row, and no others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from bitcrown.quant.network.affine_rows import (
    AffineRow,
    AffineRows,
    Leaf,
    RowRanges,
    channel_of,
    passed,
)
from bitcrown.quant.network.graph import IntegerNetwork, Ints, Stairs

DenseCase = tuple[tuple[tuple[int, ...], int], ...]
"""Rows (coefficients over the outputs, bound) that must hold together."""

BoundedRow = tuple[AffineRow, int]
"""``row <= bound``."""


class PropertyRows:
    """``poll`` is called now and then; it raises when the time is over."""

    def __init__(
        self,
        network: IntegerNetwork,
        rows: AffineRows,
        ranges: RowRanges,
        poll: Callable[[], None],
    ) -> None:
        self._network, self._rows, self._ranges, self._poll = network, rows, ranges, poll

    def plain(self, case: DenseCase) -> list[BoundedRow]:
        """Rows over the output elements themselves, in the order of the outputs."""
        node = self._network.output
        return [
            (AffineRow(tuple(((node, m), int(c)) for m, c in enumerate(row) if c), 0), int(bound))
            for row, bound in case
        ]

    def left_open(self, cases: tuple[DenseCase, ...], improved: bool) -> Iterator[list[BoundedRow]]:
        """Cases that the ranges leave open, each with the rows they leave open; improved ones over
        leaves."""
        for case in cases:
            kept: list[BoundedRow] = []
            for plain, bound in self.plain(case):
                self._poll()
                row = self._rows.combined(plain) if improved else plain
                least, greatest = self._ranges.of_row(row)
                if greatest <= bound:
                    continue
                if least > bound:
                    break
                if improved:
                    row = self._ranges.without_constants(row)
                    if self._is_refuted(row, bound):
                        break
                    row, bound = self._on_accumulator(row, bound)
                kept.append((row, bound))
            else:
                yield kept

    def _is_refuted(self, row: AffineRow, bound: int) -> bool:
        """Whether the accumulators refute ``c s(a) - c s(a') + d <= b`` for two neurons of one
        exact staircase s.

        At level j of s(a) there are a <= t[j] - 1 and, with k = floor((b - d) / c), s(a') >= level
        - k, that is a' >= t[j - k - 1]; so a - a' is at most the greatest difference of the two
        over the levels that both can reach. The range of the row a - a' knows what the two neurons
        have in common, those of a and a' do not.
        """
        if len(row.parts) != 2:
            return False
        (raised, factor), (lowered, other) = sorted(row.parts, key=lambda part: -part[1])
        shared = self._shared_steps(raised, lowered)
        if factor <= 0 or factor != -other or shared is None:
            return False
        thresholds, rows = shared
        slack = (bound - row.constant) // factor
        (low, high), (other_low, other_high) = (self._ranges.of_row(inner) for inner in rows)
        greatest: int | None = None
        for level in range(passed(thresholds, low), passed(thresholds, high) + 1):
            needed = level - slack
            if needed > passed(thresholds, other_high):
                continue
            most = min(high, int(thresholds[level]) - 1) if level < len(thresholds) else high
            least = max(other_low, int(thresholds[needed - 1])) if needed > 0 else other_low
            greatest = most - least if greatest is None else max(greatest, most - least)
        difference = self._rows.combined(
            AffineRow(((self._source(raised), 1), (self._source(lowered), -1)), 0)
        )
        return greatest is None or self._ranges.of_row(difference)[0] > greatest

    def _shared_steps(self, a: Leaf, b: Leaf) -> tuple[Ints, tuple[AffineRow, AffineRow]] | None:
        """The thresholds that two elements of exact staircases have in common with the same base,
        and their rows."""
        found: list[tuple[int, Ints, AffineRow]] = []
        for number, element in (a, b):
            node = self._network.nodes[number]
            if not isinstance(node, Stairs) or not node.is_exact():
                return None
            channel = channel_of(node, element, self._rows.sizes[number])
            found.append(
                (int(node.base[channel]), node.late[channel], self._rows.row(node.source, element))
            )
        if found[0][0] != found[1][0] or not np.array_equal(found[0][1], found[1][1]):
            return None
        return found[0][1], (found[0][2], found[1][2])

    def _source(self, leaf: Leaf) -> Leaf:
        node = self._network.nodes[leaf[0]]
        assert isinstance(node, Stairs)
        return node.source, leaf[1]

    def _on_accumulator(self, row: AffineRow, bound: int) -> BoundedRow:
        """``c s(a) + d <= b`` of one exact staircase s as a threshold on a; the ranges leave it
        open.

        c > 0: s(a) <= k := floor((b - d) / c), that is a < t[k - base]. c < 0: s(a) >= k := ceil((b
        - d) / c), that is a >= t[k - base - 1].
        """
        while len(row.parts) == 1:
            ((number, element), factor) = row.parts[0]
            node = self._network.nodes[number]
            if not isinstance(node, Stairs) or not node.is_exact():
                break
            channel = channel_of(node, element, self._rows.sizes[number])
            thresholds, base = node.late[channel].tolist(), int(node.base[channel])
            inner = self._rows.row(node.source, element)
            room = bound - row.constant
            if factor > 0:
                row, bound = inner, thresholds[room // factor - base] - 1
            else:
                # ceil(room / factor) with a negative divisor
                level = -(room // -factor)
                row, bound = inner.negated(), -thresholds[level - base - 1]
        return row, bound
