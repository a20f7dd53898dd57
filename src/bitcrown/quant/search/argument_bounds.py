"""Before the search: dual bounds on every accumulator that lies behind another staircase.

The interval rules forget what two accumulators have in common; a dual bound does not. With
``sign * v_i`` times an integer ``q > 0`` as the objective, a lower bound ``L`` proves
``sign * v_i >= ceil(L / q)``. Accumulators that see the same window are bounded together on the
part of the network that they see (``subprogram``). What is found holds for every case, so it is
written into the trunk of the proof. Legend: ``R`` rows, ``N`` elements, ``E`` elements to bound.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from bitcrown.budget import Budget
from bitcrown.quant.bounds.exact import SCALE_BITS, exact_bound, rows_at_a_time
from bitcrown.quant.bounds.intervals import Intervals, Program
from bitcrown.quant.bounds.relaxation import DualObjective, StaircaseRelaxation, reached_nodes
from bitcrown.quant.bounds.slope_ascent import ascend_slopes
from bitcrown.quant.bounds.subprogram import SubProgram, by_position
from bitcrown.quant.network.graph import Ints
from bitcrown.quant.proof.tree import ProofTree

_BOUND_STEPS, _FEW_STEPS = 40, 20
"""Ascent steps for the ends of a node, and where it has more than ``_MOST_TARGETS`` of them."""
_MOST_TARGETS = 1000
"""A node whose open ends cost more than as many rows over the whole network keeps its intervals."""
_BOUND_ROWS = 128
_SAMPLED, _LEAST_GAIN = 8, 0.1
"""So many groups of a node are bounded first; the others where those lose such a part of their
widths."""
_End = tuple[int, int]
"""(place among the elements, sign): 1 for the lower end of the interval, -1 for the upper one."""
_Found = tuple[list[Any], int]
"""(``bound`` entry of a certificate, least value of ``sign * v``)."""


def argument_bounds(program: Program, bounds: Intervals, proof: ProofTree, budget: Budget) -> int:
    """Tighten the arguments of every staircase that lies behind another one, in place; how many
    intervals shrank.

    ``bounds`` is one row that holds for every case. Nodes are taken in order, so that later ones
    profit; a node whose turn comes after the budget keeps its interval.
    """
    assert len(bounds) == 1, "the trunk of a proof has one row of intervals"
    shrunk = 0
    for node in sorted({table.source for table in program.stairs.values()}):
        is_behind = any(n in program.stairs for n in reached_nodes(program, node))
        if node not in program.affine or not is_behind:
            continue
        if budget.is_expired():
            break
        _propagate(program, bounds, proof)
        entries = _node_entries(program, bounds, node, proof, budget)
        lower, upper = bounds.low[node].copy(), bounds.high[node].copy()
        for entry, least in entries:
            element, sign = entry[1], entry[2]
            if sign > 0:
                lower[0, element] = max(lower[0, element], least)
            else:
                upper[0, element] = min(upper[0, element], -least)
        if entries:
            proof.trunk_add(["bound", [entry for entry, _ in entries]])
            shrunk += len(entries)
        bounds.intersect(node, lower, upper)
    _propagate(program, bounds, proof)
    return shrunk


def _propagate(program: Program, bounds: Intervals, proof: ProofTree) -> None:
    if bounds.dirty:
        program.propagate(bounds, [()])
        proof.trunk_add(["propagate"])


def _node_entries(
    program: Program, bounds: Intervals, node: int, proof: ProofTree, budget: Budget
) -> list[_Found]:
    """What tightens the elements of ``node`` whose staircase has more than one level in reach."""
    reader = next(table for table in program.stairs.values() if table.source == node)
    low, high = bounds.low[node], bounds.high[node]
    levels = reader.level(reader.early, high) - reader.level(reader.late, low)
    open_elements = np.nonzero((levels > 0)[0])[0]
    groups = [
        _Targets.of(program, bounds, node, group)
        for group in by_position(program.nodes[node].shape, open_elements)
    ]
    if sum(group.cost() for group in groups) > _MOST_TARGETS * sum(program.sizes):
        return []
    steps = _BOUND_STEPS if 2 * len(open_elements) <= _MOST_TARGETS else _FEW_STEPS
    entries: list[_Found] = []
    # a few groups from all over the plane tell whether the others are worth their time
    spread = groups[:: max(len(groups) // _SAMPLED, 1)]
    gains: list[float] = []
    for group in spread + [group for group in groups if group not in spread]:
        if len(gains) == len(spread) and sum(gains) < _LEAST_GAIN * len(gains):
            break
        found = group.bound(bounds, proof, budget, steps)
        if len(gains) < len(spread):
            gains.append(group.gain(bounds, found))
        entries += found
    return entries


@dataclass(frozen=True, eq=False)
class _Targets:
    """Elements of ``node`` to bound from both sides, in what they see (``kept``) or, without it,
    the whole network."""

    program: Program
    kept: dict[int, Ints] | None
    node: int
    elements: Ints

    @classmethod
    def of(cls, program: Program, bounds: Intervals, node: int, elements: Ints) -> _Targets:
        """Elements that see most of the network are bounded on the whole of it."""
        kept = SubProgram.seen(program, bounds, node, elements)
        if kept is not None and 2 * sum(map(len, kept.values())) > sum(program.sizes[: node + 1]):
            kept = None
        return cls(program, kept, node, elements)

    def cost(self) -> int:
        """Rows times elements of an evaluation."""
        kept = self.kept
        sizes = self.program.sizes if kept is None else [len(part) for part in kept.values()]
        return 2 * len(self.elements) * sum(sizes)

    def bound(
        self, bounds: Intervals, proof: ProofTree, budget: Budget, steps: int
    ) -> list[_Found]:
        """Each end that gets tighter."""
        found: list[_Found] = []
        part = None if self.kept is None else SubProgram(self.program, bounds, self.kept)
        seen = bounds if part is None else part.cut(bounds)
        ends = [(place, sign) for place in range(len(self.elements)) for sign in (1, -1)]
        rows = min(_BOUND_ROWS, rows_at_a_time(part or self.program))
        for start in range(0, len(ends), rows):
            if budget.is_expired():
                break
            found += self._rows(part, seen, ends[start : start + rows], proof, budget, steps)
        return found

    def gain(self, bounds: Intervals, found: list[_Found]) -> float:
        """The part of their widths that the intervals of all elements lose by ``found``."""
        low, high = bounds.low[self.node][0], bounds.high[self.node][0]
        ends = {1: low, -1: -high}
        lost = sum(least - int(ends[entry[2]][entry[1]]) for entry, least in found)
        return lost / max(float((high - low)[self.elements].sum()), 1.0)

    def _rows(
        self,
        part: SubProgram | None,
        bounds: Intervals,
        ends: list[_End],
        proof: ProofTree,
        budget: Budget,
        steps: int,
    ) -> list[_Found]:
        """One row for each end: the objective is ``sign * v`` of its element."""
        program = part or self.program
        places = self.elements if part is None else np.arange(len(self.elements))
        count = len(ends)
        matrix = np.zeros((count, 1, program.sizes[self.node]), dtype=np.int64)
        for row, (place, sign) in enumerate(ends):
            matrix[row, 0, places[place]] = sign
        nothing, used = np.zeros((count, 1), dtype=np.int64), np.ones((count, 1), dtype=bool)
        objective = DualObjective(self.node, matrix, nothing, used)
        repeated = bounds.rows([0] * count)
        relaxation = StaircaseRelaxation(program, repeated, objective)
        state = ascend_slopes(relaxation, None, None, steps, 0.3, lambda _: budget.is_expired())
        bound = exact_bound(program, repeated, objective, state, np.arange(count), SCALE_BITS[1])
        found: list[_Found] = []
        for row, (place, sign) in enumerate(ends):
            weight = int(bound.tau[row, 0])
            if bound.dual is None or weight <= 0:
                continue
            # weight * sign * v >= value, and v is an integer
            least = -(-int(bound.dual.value[row]) // weight)
            known = bounds.low[self.node] if sign > 0 else -bounds.high[self.node]
            if least > known[0, places[place]]:
                taken = proof.multipliers(program, bound.slopes, row)
                taken = taken if part is None else part.named(taken)
                element = int(self.elements[place])
                found.append(([self.node, element, sign, weight, [], taken], least))
        return found
