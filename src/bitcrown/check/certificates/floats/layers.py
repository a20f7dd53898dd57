"""Bounds of every ReLU operand, layer by layer, over many boxes at once; and what rows leave of a
box.

A layer is bounded by intervals first, then, where a sign is undecided on some box, by backward
substitution with the default slopes (0 or 1, whichever leaves less area), then with slopes that
somebody gives for single neurons: any slope in ``[0, 1]`` is as sound as any other, so these need
no trust. All bounds found are intersected.

*Clipping.* A violation must satisfy ``a x + c <= 0`` for every row of its case, with ``c`` less the
row's error. Let ``v`` be the least value of ``a x + c`` over the box. Then
``a_i (x_i - low_i) <= -v`` where ``a_i > 0``, and ``-a_i (up_i - x_i) <= -v`` where ``a_i < 0``:
every coordinate loses what no violation can reach. Rows are used again on the box that the others
left. Quotients are inflated by more than their rounding, sums by one float.

Legend: ``B`` boxes, ``Q`` cases, ``S`` rows of a case, ``K`` neurons, ``N`` neurons of a layer,
``n`` inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from bitcrown.check.certificates.floats.bounds import (
    PASS_ENTRIES,
    UNDERFLOW,
    UNIT_ROUNDOFF64,
    Bounder,
    BoxBatch,
    LineBounds,
    OperandBounds,
    ReluLine,
    proves,
    relu_line,
    tighter_interval,
)
from bitcrown.check.certificates.floats.nodes import FloatArray

_CLIP_ROUNDS = 3
Index = np.ndarray[Any, np.dtype[np.int64]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]


class RowSlopes(NamedTuple):
    """Slopes for ``neurons [K]`` of one layer, from below (row ``2 k``) and above (row
    ``2 k + 1``).

    ``slopes`` maps earlier ReLUs to the neurons that have any (``[C]``; the others have 0) and
    ``[2 K, C]``.
    """

    neurons: Index
    slopes: Mapping[int, tuple[Index, FloatArray]]


def spread_slopes(given: tuple[Index, FloatArray], rows: slice, size: int) -> FloatArray:
    """Some rows of slopes for the neurons of one ReLU, over all of them: ``[rows, N]``."""
    columns, values = given
    part = values[rows]
    result = np.zeros((len(part), size))
    result[:, columns] = part
    return result


Given = Callable[[int, Index, OperandBounds], RowSlopes | None]
"""Slopes for the operand of a ReLU, whose undecided neurons are listed, with the bounds of all
earlier ones at hand."""


def layer_bounds(
    bounder: Bounder,
    box: BoxBatch,
    given: Given | None = None,
) -> OperandBounds:
    """Bounds ``[B, N]`` of the operand of every ReLU on the boxes; ``given`` slopes are tried as
    well."""
    bounds: OperandBounds = {}
    lines: dict[int, ReluLine] = {}
    for relu in bounder.network.relus:
        source = bounder.network.nodes[relu].sources[0]
        found = bounder.intervals(box, bounds, source)
        if bounder.is_behind_relu[source]:
            index = np.nonzero(((found[0] < 0) & (found[1] > 0)).any(axis=0))[0]
            found = _improved(bounder, box, source, index, found, lines)
            index = np.nonzero(((found[0] < 0) & (found[1] > 0)).any(axis=0))[0]
            more = None if given is None or not len(index) else given(relu, index, bounds)
            if more is not None:
                found = _improved(bounder, box, source, more.neurons, found, lines, more, bounds)
        bounds[relu] = found
        lines[relu] = relu_line(found[0][:, None], found[1][:, None])
    return bounds


def _improved(
    bounder: Bounder,
    box: BoxBatch,
    source: int,
    index: Index,
    found: tuple[FloatArray, FloatArray],
    lines: Mapping[int, ReluLine],
    given: RowSlopes | None = None,
    bounds: OperandBounds | None = None,
) -> tuple[FloatArray, FloatArray]:
    """``found`` with the elements ``index [K]`` of node ``source`` bounded by backward substitution
    as well."""
    if not len(index):
        return found
    count, size = len(box.lower), bounder.network.nodes[source].size
    low, up = (np.broadcast_to(part, (count, size)).copy() for part in found)
    widest = max(node.size for node in bounder.network.nodes)
    step = max(1, PASS_ENTRIES // (2 * widest * count))
    for start in range(0, len(index), step):
        part = index[start : start + step]
        seed = np.zeros((1, 2 * len(part), size))
        rows = np.arange(len(part))
        seed[0, 2 * rows, part], seed[0, 2 * rows + 1, part] = 1.0, -1.0
        used = dict(lines)
        for relu, (below, above) in (bounds or {}).items():
            if given is not None and relu in given.slopes:
                some = slice(2 * start, 2 * (start + len(part)))
                mine = spread_slopes(given.slopes[relu], some, below.shape[1])
                used[relu] = relu_line(below[:, None], above[:, None], mine[None])
        value = bounder.least(bounder.backward({source: seed}, used), box)
        ends = tighter_interval((low[:, part], up[:, part]), (value[:, ::2], -value[:, 1::2]))
        low[:, part], up[:, part] = ends
    return low, up


def clipped_boxes(
    bounder: Bounder,
    lines: LineBounds,
    limit: FloatArray,
    box: BoxBatch,
    is_open: Mask,
) -> tuple[BoxBatch, Mask]:
    """What the open cases leave of each box, and ``[B, Q]`` which of them stay open.

    ``lines`` bound the rows ``[B, Q * S]``; a violation has row ``<= limit [Q, S]``.
    """
    count, (cases, depth) = len(box.lower), limit.shape
    is_open = is_open.copy()
    n = box.lower.shape[1]
    a = np.broadcast_to(lines.coefficient, (count, cases * depth, n)).reshape(
        count, cases, depth, n
    )
    low, up = (np.repeat(part[:, None], cases, axis=1) for part in (box.lower, box.upper))
    with np.errstate(all="ignore"):
        for _ in range(_CLIP_ROUNDS):
            value = np.empty((count, cases, depth))
            for case in range(cases):
                rows = slice(case * depth, (case + 1) * depth)
                part = LineBounds(*(field[:, rows] for field in lines))
                value[:, case] = above_limit(
                    bounder.least(part, BoxBatch(low[:, case], up[:, case])), limit[case]
                )
            is_open &= ~proves(value).any(axis=2)
            # a_i (x_i - low_i) <= -v where a_i > 0, and -a_i (up_i - x_i) <= -v where a_i < 0; what
            # is not finite allows everything
            room = np.where(np.isfinite(value), np.maximum(-value, 0.0), np.inf)[..., None] * (
                1.0 + 8 * UNIT_ROUNDOFF64
            )
            reach = (
                np.where(
                    np.isfinite(a) & (a != 0),
                    room / np.abs(a) * (1.0 + 8 * UNIT_ROUNDOFF64),
                    np.inf,
                )
                + UNDERFLOW
            )
            right = np.nextafter(low + np.where(a > 0, reach, np.inf).min(axis=2), np.inf)
            left = np.nextafter(up - np.where(a < 0, reach, np.inf).min(axis=2), -np.inf)
            new_up, new_low = np.fmin(up, right), np.fmax(low, left)
            is_open &= ~(new_low > new_up).any(axis=2)
            kept = is_open[..., None]
            low, up = np.where(kept, new_low, low), np.where(kept, new_up, up)
    # the hull of what the open cases leave
    shut = ~is_open[..., None]
    lower = np.where(shut, np.inf, low).min(axis=1)
    upper = np.where(shut, -np.inf, up).max(axis=1)
    dead = ~is_open.any(axis=1, keepdims=True)
    return BoxBatch(np.where(dead, box.lower, lower), np.where(dead, box.upper, upper)), is_open


def above_limit(value: FloatArray, limit: FloatArray) -> FloatArray:
    """A lower bound of ``value - limit``: one float below the difference."""
    result: FloatArray = np.nextafter(value - limit, -np.inf)
    return result
