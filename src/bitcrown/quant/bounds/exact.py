"""From float multipliers to an exact bound: round them to integers, evaluate in integers.

Any integers are valid multipliers, so rounding costs tightness only. Small integers make small
certificates; callers try a few sizes, the smallest first. Legend: ``R`` rows, ``N`` elements, ``T``
constraints of a case.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bitcrown.quant.bounds.intervals import Intervals
from bitcrown.quant.bounds.relaxation import DualObjective
from bitcrown.quant.bounds.slope_ascent import AscentState
from bitcrown.quant.bounds.staircase_dual import DualValue, Slopes, dual_value
from bitcrown.quant.bounds.subprogram import AnyProgram
from bitcrown.quant.network.graph import Ints, Numbers
from bitcrown.quant.network.linear_steps import Overflow, largest

SCALE_BITS = (12, 18, 24, 30)
"""Multipliers are rounded to integers with so many bits for the largest; the first that proves a
row is kept. Those of wide sums are a ten-thousandth of the largest, and need the last ones."""
_BOUND_ELEMENTS = 40_000_000
"""Rows times elements of all nodes: about 1 GB of corners and slopes at a time."""


@dataclass(frozen=True, eq=False)
class ExactBound:
    """``dual``: the bound, ``None`` where it would overflow; ``tau`` [R, T] and ``slopes``: the
    integers it was evaluated with; ``scale``: [R], divides it to compare it with a float bound."""

    dual: DualValue | None
    tau: Ints
    slopes: Slopes
    scale: Numbers


def exact_bound(
    program: AnyProgram,
    bounds: Intervals,
    objective: DualObjective,
    state: AscentState,
    rows: Numbers,
    bits: int,
) -> ExactBound:
    """The bound of some rows for the best multipliers of ``state``, the largest having ``bits``
    bits."""
    scale = _integer_scale(state, rows, bits)
    # a proof needs tau >= 0: a constraint may be added to the objective, never subtracted
    tau = np.maximum(np.rint(state.tau[rows] * scale[:, None]), 0).astype(np.int64)
    slopes = {
        n: np.rint(s[rows] * scale.reshape(-1, *[1] * (s.ndim - 1))).astype(np.int64)
        for n, s in state.slopes.items()
    }
    matrix, limit = objective.matrix[rows], objective.bound[rows]
    if largest(tau) * max(largest(matrix), largest(limit)) * tau.shape[1] > 2**61:
        return ExactBound(None, tau, slopes, scale)
    goal = (tau[:, :, None] * matrix).sum(axis=1)
    constant = -(tau * limit).sum(axis=1)
    try:
        dual = dual_value(program, bounds.rows(rows), {objective.node: goal}, constant, slopes)
    except Overflow:
        dual = None
    return ExactBound(dual, tau, slopes, scale)


def _integer_scale(state: AscentState, rows: Numbers, bits: int) -> Numbers:
    """[R]: the power of two by which float multipliers are scaled before they are rounded."""
    size = [np.abs(state.tau[rows]).max(axis=1)]
    for slope in state.slopes.values():
        size.append(np.abs(slope[rows]).reshape(len(rows), -1).max(axis=1, initial=0))
    return np.asarray(2.0 ** (bits - np.floor(np.log2(np.maximum(np.max(size, axis=0), 1e-9)))))


def rows_at_a_time(program: AnyProgram) -> int:
    """How many rows of bounds, corners and slopes fit into about 1 GB."""
    lines = sum(pool.patch.size for pool in program.joint.values())
    return int(max(2, _BOUND_ELEMENTS // (30 * sum(program.sizes) + 8 * lines)))
