"""From float multipliers to an exact bound: round them to integers, evaluate in integers.

Any integers are valid multipliers, so rounding costs tightness only. Small integers make small
certificates; a few sizes are tried, the smallest first. The same evaluation gives bounds on single
accumulators behind other staircases (``argument_bounds``): with ``q v_i`` as the objective,
``v_i >= ceil(L / q)``. Legend: ``R`` rows, ``N`` elements.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from bitcrown.budget import Budget
from bitcrown.quant.bounds.intervals import Intervals, Program
from bitcrown.quant.bounds.slope_ascent import (
    AscentState,
    DualObjective,
    StaircaseRelaxation,
    ascend_slopes,
    reached_nodes,
)
from bitcrown.quant.bounds.staircase_dual import DualValue, Slopes, dual_value
from bitcrown.quant.bounds.subprogram import AnyProgram, SubProgram, by_position
from bitcrown.quant.network.graph import Ints, Numbers
from bitcrown.quant.network.linear_steps import Overflow, largest
from bitcrown.quant.proof.tree import ProofTree

SCALE_BITS = (12, 18, 24)
"""Multipliers are rounded to integers with so many bits for the largest; the first that proves a
row is kept."""
_BOUND_STEPS, _FEW_STEPS = 40, 20
"""Ascent steps for the ends of a node, and where it has more than ``_MOST_TARGETS`` of them."""
_MOST_TARGETS = 1000
"""A node whose open ends cost more than as many rows over the whole network keeps its intervals."""
_BOUND_ROWS = 128
_BOUND_ELEMENTS = 40_000_000
"""Rows times elements of all nodes: about 1 GB of corners and slopes at a time."""


def exact_bound(
    program: AnyProgram,
    bounds: Intervals,
    objective: DualObjective,
    state: AscentState,
    rows: Numbers,
    bits: int,
) -> tuple[DualValue | None, Ints, Slopes]:
    """(bound of some rows or ``None`` on overflow, tau [R, T], slopes), the largest multiplier
    having ``bits`` bits.

    ``integer_scale`` of the same arguments is what the bound has to be divided by to compare it
    with a float one.
    """
    scale = integer_scale(state, rows, bits)
    tau = np.maximum(np.rint(state.tau[rows] * scale[:, None]), 0).astype(
        np.int64
    )  # a proof needs tau >= 0
    slopes = {
        n: np.rint(s[rows] * scale.reshape(-1, *[1] * (s.ndim - 1))).astype(np.int64)
        for n, s in state.slopes.items()
    }
    matrix, limit = objective.matrix[rows], objective.bound[rows]
    if largest(tau) * max(largest(matrix), largest(limit)) * tau.shape[1] > 2**61:
        return None, tau, slopes
    try:
        goal = (tau[:, :, None] * matrix).sum(axis=1)
        constant = -(tau * limit).sum(axis=1)
        return (
            dual_value(program, bounds.rows(rows), {objective.node: goal}, constant, slopes),
            tau,
            slopes,
        )
    except Overflow:
        return None, tau, slopes


def integer_scale(state: AscentState, rows: Numbers, bits: int) -> Numbers:
    """[R]: the power of two by which float multipliers are scaled before they are rounded."""
    size = [np.abs(state.tau[rows]).max(axis=1)]
    for slope in state.slopes.values():
        size.append(np.abs(slope[rows]).reshape(len(rows), -1).max(axis=1, initial=0))
    return np.asarray(2.0 ** (bits - np.floor(np.log2(np.maximum(np.max(size, axis=0), 1e-9)))))


def rows_at_a_time(program: AnyProgram) -> int:
    """How many rows of bounds, corners and slopes fit into about 1 GB."""
    return int(max(2, _BOUND_ELEMENTS // (30 * sum(program.sizes))))


def argument_bounds(program: Program, bounds: Intervals, proof: ProofTree, budget: Budget) -> int:
    """Tighten the arguments of every staircase that lies behind another one, in place; how many
    intervals shrank.

    ``bounds`` is one row that holds for every case; the steps go to the proof's trunk. Nodes are
    taken in order, so that later ones profit; a node whose turn comes after the budget keeps its
    interval.
    """
    shrunk = 0
    for node in sorted({table.source for table in program.stairs.values()}):
        if node not in program.affine or not any(
            n in program.stairs for n in reached_nodes(program, node)
        ):
            continue
        if budget.is_expired():
            break
        if bounds.dirty:
            program.propagate(bounds, [()])
            proof.trunk_add(["propagate"])
        reader = next(table for table in program.stairs.values() if table.source == node)
        low, high = bounds.low[node], bounds.high[node]
        open_elements = np.nonzero(
            (reader.level(reader.early, high) > reader.level(reader.late, low))[0]
        )[0]
        groups = [
            _Targets(program, SubProgram.seen(program, bounds, node, group), node, group)
            for group in by_position(program.nodes[node].shape, open_elements)
        ]
        if sum(group.cost() for group in groups) > _MOST_TARGETS * sum(program.sizes):
            continue
        entries: list[tuple[list[Any], int]] = []
        steps = _BOUND_STEPS if 2 * len(open_elements) <= _MOST_TARGETS else _FEW_STEPS
        for group in groups:
            entries += group.bound(bounds, proof, budget, steps)
        lower, upper = low.copy(), high.copy()
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
    if bounds.dirty:
        program.propagate(bounds, [()])
        proof.trunk_add(["propagate"])
    return shrunk


@dataclass(frozen=True, eq=False)
class _Targets:
    """Elements of ``node`` to bound from both sides, in what they see (``kept``) or, without it,
    the whole network."""

    program: Program
    kept: dict[int, Ints] | None
    node: int
    elements: Ints

    def cost(self) -> int:
        """Rows times elements of an evaluation."""
        sizes = (
            self.program.sizes
            if self.kept is None
            else [len(elements) for elements in self.kept.values()]
        )
        return 2 * len(self.elements) * sum(sizes)

    def bound(
        self, bounds: Intervals, proof: ProofTree, budget: Budget, steps: int
    ) -> list[tuple[list[Any], int]]:
        """(``bound`` entry of a certificate, least value of ``sign * v``) for each end that gets
        tighter."""
        found: list[tuple[list[Any], int]] = []
        part = None if self.kept is None else SubProgram(self.program, bounds, self.kept)
        seen = bounds if part is None else part.cut(bounds)
        ends = [(place, sign) for place in range(len(self.elements)) for sign in (1, -1)]
        rows = min(_BOUND_ROWS, rows_at_a_time(part or self.program))
        for start in range(0, len(ends), rows):
            if budget.is_expired():
                break
            found += self._rows(part, seen, ends[start : start + rows], proof, budget, steps)
        return found

    def _rows(
        self,
        part: SubProgram | None,
        bounds: Intervals,
        ends: list[tuple[int, int]],
        proof: ProofTree,
        budget: Budget,
        steps: int,
    ) -> list[tuple[list[Any], int]]:
        program = part or self.program
        places = self.elements if part is None else np.arange(len(self.elements))
        count = len(ends)
        matrix = np.zeros((count, 1, program.sizes[self.node]), dtype=np.int64)
        for row, (place, sign) in enumerate(ends):
            matrix[row, 0, places[place]] = sign
        objective = DualObjective(
            self.node, matrix, np.zeros((count, 1), dtype=np.int64), np.ones((count, 1), dtype=bool)
        )
        repeated = bounds.rows([0] * count)
        state = ascend_slopes(
            StaircaseRelaxation(program, repeated, objective),
            None,
            None,
            steps,
            0.3,
            lambda *_: budget.is_expired(),
        )
        dual, tau, slopes = exact_bound(
            program, repeated, objective, state, np.arange(count), SCALE_BITS[1]
        )
        found: list[tuple[list[Any], int]] = []
        for row, (place, sign) in enumerate(ends):
            weight = int(tau[row, 0])
            if dual is None or weight <= 0:
                continue
            least = -(-int(dual.value[row]) // weight)
            known = bounds.low[self.node] if sign > 0 else -bounds.high[self.node]
            if least > known[0, places[place]]:
                taken = proof.multipliers(slopes, row)
                taken = taken if part is None else part.named(taken)
                found.append(
                    ([self.node, int(self.elements[place]), sign, weight, [], taken], least)
                )
        return found
