"""Open subproblems, one by one and as the rows of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bitcrown.quant.bounds.intervals import Intervals, joined
from bitcrown.quant.bounds.staircase_dual import Slopes
from bitcrown.quant.network.graph import Numbers


@dataclass(eq=False)
class Subproblem:
    """One row of intervals, its case, its part of the proof, and multipliers to start from.

    ``value``: the parent's float bound. ``margin``: by how much float bounds were too high so far
    (staircases with unequal steps have more corners than the floats look at); the ascent aims above
    it. ``is_misled``: the last one was too high by more than the margin, or is still rising fast:
    try again first. ``length``: of the first step of the next ascent, as a part of the first one's.
    """

    bounds: Intervals
    case: int
    part: int
    depth: int
    slopes: Slopes | None = None
    tau: Numbers | None = None
    value: float = -np.inf
    margin: float = 0.0
    is_misled: bool = False
    length: float = 1.0


@dataclass(frozen=True, eq=False)
class SubproblemBatch:
    """Subproblems and, row by row, their intervals; whoever tightens ``bounds`` does so in place.

    The ``bounds`` of the subproblems themselves are what they were before the round.
    """

    domains: list[Subproblem]
    bounds: Intervals

    @classmethod
    def of(cls, domains: list[Subproblem]) -> SubproblemBatch:
        return cls(domains, joined([domain.bounds for domain in domains]))

    def kept(self, rows: Sequence[int]) -> SubproblemBatch:
        """The batch of these rows (ascending); itself if they are all."""
        if len(rows) == len(self.domains):
            return self
        return SubproblemBatch([self.domains[row] for row in rows], self.bounds.rows(list(rows)))
