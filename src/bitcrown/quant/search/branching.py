"""Where to split: on integers, where the relaxation is loosest.

A split point is a staircase argument ``a <= k | a >= k + 1`` (``k + 1`` the first argument of a
level, so that this is ``S(a) <= v | S(a) >= v + 1``) or an input. The averaged minimisers of the
ascent approximate a solution of the relaxation; a staircase whose averaged value lies off its step
at the averaged argument is what keeps the bound low, in proportion to the coefficient on it; better
if the split also divides the interval evenly. Steps of the output count less: splitting there
repeats the same hidden subproblems on either side. Kinks (the end of a long first or last level:
clipping, ReLU) come before steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bitcrown.quant.bounds.intervals import Intervals, Program
from bitcrown.quant.bounds.slope_ascent import AscentState
from bitcrown.quant.network.graph import Ints
from bitcrown.quant.query import ConstraintCase, LinearConstraint

_LEAST_GAP, _LEAST_BALANCE, _OUTPUT_WEIGHT = 1e-3, 0.5, 0.2
_FEW_INPUTS = 16
"""Where early and late thresholds differ, a staircase's output stays an interval even when its
argument is one number, so that splitting arguments need not close anything. If no more inputs than
these still vary, only inputs are split then: every branch ends in a single input."""


@dataclass(frozen=True, slots=True)
class Split:
    """``v_node[element] <= value`` or ``>= value + 1``."""

    node: int
    element: int
    value: int


def saturation_split(
    program: Program, bounds: Intervals, row: int, case: ConstraintCase
) -> Split | None:
    """A split where an output saturates at the end at which the relaxation of the case's
    constraints is bad.

    A term ``c o`` with ``c > 0`` is wanted small, and its relaxation from below is bad where the
    staircase goes flat at the top; with ``c < 0``, at the bottom. Beyond that end the term is
    constant. In a comparison ``o_y <= o_i`` it is better to ask whether ``o_y`` lies at the bottom:
    if so, nothing about ``o_i`` matters (and the subproblem is the same for every i); if not,
    ``o_i`` has left the bottom as well.
    """
    table = program.stairs.get(program.output)
    if table is None or not table.is_exact or not table.late.shape[1]:
        return None
    lows, highs = bounds.low[table.source][row], bounds.high[table.source][row]

    def spanned(index: int, step: int) -> Split | None:
        edge = int(table.late[table.channel[index], step]) - 1
        return Split(table.source, index, edge) if lows[index] <= edge < highs[index] else None

    for constraint in case:
        if holds_between(
            constraint, bounds.low[program.output][row], bounds.high[program.output][row]
        ):
            continue
        for index, factor in constraint.terms:
            split = spanned(index, -1 if factor > 0 else 0)
            if split is not None and factor < 0 and len(constraint.terms) == 2:
                other, positive = next(term for term in constraint.terms if term[0] != index)
                split = (spanned(other, 0) if positive == -factor else None) or split
            if split is not None:
                return split
    return None


def holds_between(constraint: LinearConstraint, low: Ints, high: Ints) -> bool:
    """Whether the constraint holds for all outputs between ``low`` and ``high`` [M]."""
    return (
        sum(c * int(high[i] if c > 0 else low[i]) for i, c in constraint.terms) <= constraint.bound
    )


def choose_splits(
    program: Program, bounds: Intervals, state: AscentState, rows: list[int]
) -> list[Split | None]:
    """One split per row, on the intervals of ``bounds``; ``None`` for a single point that
    arithmetic leaves open."""
    varying = (bounds.high[0][rows] > bounds.low[0][rows]).sum(axis=1)
    inputs_only = (varying <= _FEW_INPUTS) & (not program.network.is_exact())
    best = np.where(inputs_only, np.inf, 0.0)
    found: list[Split | None] = [None] * len(rows)
    for node in state.mean_argument:
        table = program.stairs.get(node)
        if table is None:
            continue
        low, high = bounds.low[table.source][rows], bounds.high[table.source][rows]
        argument = np.clip(np.rint(state.mean_argument[node][rows]).astype(np.int64), low, high)
        first, last = table.level(table.late, low), table.level(table.early, high)
        value = table.base + table.level(table.late, argument)
        # how far the relaxation has taken the output off its step
        gap = np.abs(state.mean_value[node][rows] - value)
        outer = state.outer[node][rows]
        ends = np.minimum(
            state.mean_argument[node][rows] - low, high - state.mean_argument[node][rows]
        )
        balance = np.clip(ends / np.maximum(high - low, 1), 0.0, 0.5)
        score = np.abs(outer) * (gap + _LEAST_GAP) * (_LEAST_BALANCE + balance)
        if node == program.output:
            score *= _OUTPUT_WEIGHT
        # with one level in reach there is nothing to split
        score = np.where((last > first) & (high > low), score, -1.0)
        for place, element in enumerate(score.argmax(axis=1)):
            if score[place, element] > best[place]:
                best[place] = score[place, element]
                thresholds = table.late[table.channel[element]]
                edge = _edge(thresholds, int(first[place, element]), int(last[place, element]),
                             int(argument[place, element]), float(gap[place, element]))  # fmt: skip
                edge = min(max(edge, int(low[place, element]) + 1), int(high[place, element]))
                found[place] = Split(table.source, int(element), edge - 1)
    return [split or _input_split(bounds, row) for split, row in zip(found, rows, strict=True)]


def _edge(thresholds: np.ndarray, first: int, last: int, argument: int, gap: float) -> int:
    """First argument of the level to split at: the nearer kink if the value is far off, else the
    nearest step."""
    if gap > 1.0:
        candidates = [int(thresholds[first]), int(thresholds[last - 1])]
    else:
        candidates = [int(t) for t in thresholds[first:last]]
    return min(candidates, key=lambda t: abs(t - argument))


def _input_split(bounds: Intervals, row: int) -> Split | None:
    """The middle of the widest input; once no staircase is left, inputs are all that can vary."""
    low, high = bounds.low[0][row], bounds.high[0][row]
    element = int((high - low).argmax())
    if high[element] == low[element]:
        return None
    return Split(0, element, int(low[element] + high[element]) // 2)
