"""What the rows of a batch have to refute: the constraints of their cases, and what of them the
intervals leave open.

A constraint that the output intervals already imply says nothing more. Where they imply a whole
case, the violation is there as soon as the outputs reach their intervals; those are then all that
can be contradicted (``Pinned``). Legend: ``R`` rows, ``N`` elements, ``T`` constraints of a case,
``M`` outputs.
"""

from __future__ import annotations

import numpy as np

from bitcrown.quant.bounds.intervals import Intervals, Program, StairTable
from bitcrown.quant.bounds.relaxation import DualObjective, Pinned
from bitcrown.quant.network.graph import Ints, Numbers
from bitcrown.quant.query import IntegerQuery


class CaseObjective:
    """Objectives for rows of the cases of one query. ``root_bounds``: one row, the intervals that
    the box implies."""

    def __init__(self, program: Program, query: IntegerQuery, root_bounds: Intervals) -> None:
        self.program, self.root_bounds = program, root_bounds
        # a case may have no constraint left; every row has room for one all the same
        shape = (len(query.cases), max((1, *(len(case) for case in query.cases))))
        self.matrix = np.zeros((*shape, program.sizes[program.output]), dtype=np.int64)
        self.bound, self.used = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=bool)
        for c, case in enumerate(query.cases):
            for t, constraint in enumerate(case):
                for index, factor in constraint.terms:
                    self.matrix[c, t, index] += factor
                self.bound[c, t], self.used[c, t] = constraint.bound, True

    def on(self, cases: list[int], bounds: Intervals) -> tuple[DualObjective, Pinned | None]:
        """The constraints that the output intervals do not already imply; rows in which they imply
        all are pinned."""
        node = self.program.output
        matrix, limit = self.matrix[cases], self.bound[cases]
        # the greatest value of c o over the output intervals: at most b means implied
        ends = np.maximum(
            matrix * bounds.low[node][:, None], matrix * bounds.high[node][:, None]
        ).sum(axis=2)
        used = self.used[cases] & (ends > limit)
        table = self.program.stairs.get(node)
        alone = ~used.any(axis=1)
        # a constant has no step to be pinned to
        if table is None or not table.late.shape[1] or not alone.any():
            used = np.where(alone[:, None], self.used[cases], used)
            return DualObjective(node, matrix, limit, used), None
        factor = np.einsum("rt,rtn->rn", self.used[cases].astype(np.int64), matrix)
        pinned = self._pinned(table, bounds, factor, alone)
        # a row that implies its case and has nothing to be pinned to keeps all its constraints
        open_ = pinned.rows | used.any(axis=1)
        used = np.where(open_[:, None], used, self.used[cases])
        return DualObjective(node, matrix, limit, used), pinned

    def _pinned(self, table: StairTable, bounds: Intervals, factor: Ints, alone: Numbers) -> Pinned:
        """What can be refuted in the rows ``alone`` [R], whose case the intervals imply: that the
        argument of an output reaches its interval. ``factor``: [R, N], coefficients of the case."""
        source, steps = table.source, table.late.shape[1]
        low, high = bounds.low[source], bounds.high[source]
        first, last = table.level(table.late, low), table.level(table.early, high)
        # news only where an end is tighter than the box makes it and lies at a step, or where the
        # case wants the output on that side
        is_low_edge = table.level(table.late, low - 1) < first
        is_high_edge = table.level(table.early, high + 1) > last
        wants_low, wants_high = (factor < 0) & (first > 0), (factor > 0) & (last < steps)
        raised = (low > self.root_bounds.low[source]) & (is_low_edge | wants_low)
        lowered = (high < self.root_bounds.high[source]) & (is_high_edge | wants_high)
        # begin with one sign per element; outputs that the case does not mention get a small share,
        # and narrow intervals, which are more likely out of reach, a large one; the sum is one unit
        start = np.where(raised & ((factor < 0) | ~lowered), -1.0, np.where(lowered, 1.0, 0.0))
        start *= np.where((factor != 0).any(axis=1, keepdims=True) & (factor == 0), 1e-3, 1.0)
        start /= (high - low + 1.0) ** 2
        start /= np.maximum(np.abs(start).sum(axis=1, keepdims=True), 1e-300)
        # one unit is a rise of one level over the mean width of a level
        rows = table.late[table.channel]
        width = np.maximum((rows[:, -1] - rows[:, 0]) / max(steps - 1, 1), 1.0)
        unit = np.broadcast_to(1.0 / width, start.shape)
        pinned = alone & (start != 0).any(axis=1)
        return Pinned(self.program.output, pinned, raised, lowered, start, unit)
