"""The steps of a float proof: what the checker computes at a box or at a leaf, and writers of
certificates as well.

A step turns choices (a box to shrink, slopes, multipliers, weights) into closed cases and lower
bounds that hold whatever was chosen (``bounds``, ``layers``).

Legend: ``B`` boxes or leaves, ``Q`` cases over one box, ``S`` rows of a case, ``N`` neurons of a
ReLU, ``n`` inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bitcrown.check.certificates.floats.bounds import (
    PASS_ENTRIES,
    Bounder,
    BoxBatch,
    LineBounds,
    OperandBounds,
    ReluLine,
    proves,
    relu_line,
)
from bitcrown.check.certificates.floats.layers import Mask, above_limit, clipped_boxes, layer_bounds
from bitcrown.check.certificates.floats.nodes import FloatArray
from bitcrown.check.certificates.floats.property import Group


def case_bounds(bounder: Bounder, group: Group, lines: Mapping[int, ReluLine]) -> LineBounds:
    """Lines of all rows of all cases, ``[B, Q * S]``."""
    m, n = group.C.shape[2], group.D.shape[2]
    seeds = {bounder.network.output: group.C.reshape(1, -1, m)}
    if group.uses_inputs:
        seeds[0] = group.D.reshape(1, -1, n) + seeds.get(0, 0.0)
    return bounder.backward(seeds, lines)


def closed_at_root(bounder: Bounder, group: Group, bounds: OperandBounds) -> Mask:
    """Which cases ``[Q]`` a row refutes on the whole box, with the default slopes on the layers'
    ``bounds [1, N]``."""
    lines = {relu: relu_line(low[:, None], up[:, None]) for relu, (low, up) in bounds.items()}
    cases, depth = group.limit.shape
    step = max(1, PASS_ENTRIES // (depth * max(node.size for node in bounder.network.nodes)))
    found = np.zeros(cases, dtype=bool)
    for start in range(0, cases, step):
        part = group.some(slice(start, start + step))
        value = bounder.least(case_bounds(bounder, part, lines), group.box)
        clears = proves(above_limit(value.reshape(-1, depth), part.limit))
        found[start : start + step] = clears.any(axis=1)
    return found


def boxes_at_once(bounder: Bounder, group: Group) -> int:
    sizes = [node.size for node in bounder.network.nodes]
    rows = max([group.limit.size, *(2 * sizes[relu] for relu in bounder.network.relus)])
    return max(1, min(512, PASS_ENTRIES // (rows * max(sizes))))


def refine(
    bounder: Bounder,
    group: Group,
    box: BoxBatch,
    open_: Mask,
    influence: FloatArray | None = None,
) -> tuple[BoxBatch, Mask]:
    """Close what is refuted on the boxes ``[B]`` and shrink them: boxes and ``open_ [B, Q]``.

    ``influence [B, n]``, where given, receives the largest coefficient of each input in the rows of
    open cases.
    """
    lower, upper, open_ = box.lower.copy(), box.upper.copy(), open_.copy()
    live = np.nonzero(open_.any(axis=1))[0]
    step = boxes_at_once(bounder, group)
    for start in range(0, len(live), step):
        index = live[start : start + step]
        part = BoxBatch(lower[index], upper[index])
        bounds = layer_bounds(bounder, part)
        lines = {relu: relu_line(low[:, None], up[:, None]) for relu, (low, up) in bounds.items()}
        rows = case_bounds(bounder, group, lines)
        part, open_[index] = clipped_boxes(bounder, rows, group.limit, part, open_[index])
        lower[index], upper[index] = part.lower, part.upper
        if influence is not None:
            a = (
                np.abs(rows.coefficient)
                .reshape(len(rows.coefficient), *group.limit.shape, -1)
                .max(axis=2)
            )
            influence[index] = np.where(open_[index][..., None], a, 0.0).max(axis=1)
    return BoxBatch(lower, upper), open_


def halves(
    box: BoxBatch, open_: Mask, index: Any, axes: Any, points: FloatArray
) -> tuple[BoxBatch, Mask]:
    """Both halves of the boxes ``index``, each pair side by side; a point outside of a box leaves
    one half empty."""
    lower, upper = np.repeat(box.lower[index], 2, axis=0), np.repeat(box.upper[index], 2, axis=0)
    open_ = np.repeat(open_[index], 2, axis=0)
    rows = np.arange(len(index))
    upper[2 * rows, axes] = np.minimum(upper[2 * rows, axes], points)
    lower[2 * rows + 1, axes] = np.maximum(lower[2 * rows + 1, axes], points)
    open_ &= (lower <= upper).all(axis=1, keepdims=True)
    return BoxBatch(lower, upper), open_


@dataclass(frozen=True)
class Leaves:
    """Choices of leaves over one case: ``slopes``, ``signs``, ``betas`` (times the sign) ``[B, N]``
    by ReLU, and ``weights [B, S]``."""

    slopes: Mapping[int, FloatArray]
    signs: Mapping[int, FloatArray]
    betas: Mapping[int, FloatArray]
    weights: FloatArray

    def select(self, index: Any) -> Leaves:
        slopes, signs, betas = (
            {relu: value[index] for relu, value in part.items()}
            for part in (self.slopes, self.signs, self.betas)
        )
        return Leaves(slopes, signs, betas, self.weights[index])


def decided(bounds: OperandBounds, signs: Mapping[int, FloatArray]) -> OperandBounds:
    """``bounds`` with the signs ``[B, N]`` imposed."""
    return {
        relu: (
            np.where(signs[relu] > 0, np.maximum(low, 0.0), low),
            np.where(signs[relu] < 0, np.minimum(up, 0.0), up),
        )
        for relu, (low, up) in bounds.items()
    }


def leaf_values(
    bounder: Bounder, group: Group, bounds: OperandBounds, leaves: Leaves
) -> FloatArray:
    """Lower bounds ``[B]`` of the weighted rows of the one case of ``group`` less their limits, on
    each leaf."""
    widest = max(node.size for node in bounder.network.nodes)
    step = max(1, PASS_ENTRIES // widest)
    parts = [np.zeros(0)]
    for start in range(0, len(leaves.weights), step):
        part = leaves.select(slice(start, start + step))
        ends = decided(bounds, part.signs)
        empty = np.zeros(len(part.weights), dtype=bool)
        for low, up in ends.values():
            empty |= (low > up).any(axis=1)
        lines = leaf_lines(ends, part)
        value = weighted_value(bounder, group, part.weights, lines, part.betas)[0]
        parts.append(np.where(empty, 1.0, value))  # no point has these signs
    return np.concatenate(parts)


def leaf_lines(ends: OperandBounds, leaves: Leaves) -> dict[int, ReluLine]:
    result = {}
    for relu, (low, up) in ends.items():
        slope = leaves.slopes.get(relu)
        result[relu] = relu_line(
            low[:, None], up[:, None], None if slope is None else slope[:, None]
        )
    return result


def weighted_value(
    bounder: Bounder,
    group: Group,
    weights: FloatArray,
    lines: Mapping[int, ReluLine],
    betas: Mapping[int, FloatArray],
    record: dict[int, FloatArray] | None = None,
) -> tuple[FloatArray, LineBounds]:
    """Lower bounds ``[B]`` of ``sum_s weight_s (row_s - limit_s)``, less the rounding of the sums;
    and the lines."""
    c, d, limit = group.C[0], group.D[0], group.limit[0]
    seeds = {bounder.network.output: (weights @ c)[:, None]}
    size = np.abs(c) @ bounder.size[bounder.network.output] + np.abs(limit)
    if group.uses_inputs:
        seeds[0] = (weights @ d)[:, None] + seeds.get(0, 0.0)
        size = size + np.abs(d) @ bounder.size[0]
    rows = bounder.backward(seeds, lines, betas, record)
    value = bounder.least(rows, group.box)[:, 0]
    error = 4.0 * bounder.gamma * (weights @ size) + bounder.dust
    return above_limit(value - error * (1.0 + 1e-6), weights @ limit), rows
