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

from collections.abc import Callable, Iterator, Mapping
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
    greater_bound,
    proves,
    relu_line,
)
from bitcrown.check.certificates.floats.crops import crop_behind, element_tiles
from bitcrown.check.certificates.floats.nodes import ConvNode, FloatArray

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


def spread_slopes(given: tuple[Index, FloatArray], rows: slice | Index, size: int) -> FloatArray:
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
            nearer = np.where((found[0] + found[1]).sum(axis=0) > 0, 1.0, -1.0)
            for sign in (nearer, -nearer):
                index = _undecided(found)
                found = _tightened(bounder, box, source, found, (index, sign[index]), lines)
            index = _undecided(found)
            more = None if given is None or not len(index) else given(relu, index, bounds)
            if more is not None:
                rows = np.repeat(more.neurons, 2), np.tile([1.0, -1.0], len(more.neurons))
                found = _tightened(bounder, box, source, found, rows, lines, (more.slopes, bounds))
        bounds[relu] = found
        lines[relu] = relu_line(found[0][:, None], found[1][:, None])
    return bounds


def _undecided(found: tuple[FloatArray, FloatArray]) -> Index:
    return np.nonzero(((found[0] < 0) & (found[1] > 0)).any(axis=0))[0]


class NeuronPass(NamedTuple):
    """One pass back from some elements of a node: ``rows`` are their places in the list that was
    asked about, ``kept`` what of each node of the whole network is met."""

    bounder: Bounder
    rows: Index
    target: int
    kept: Mapping[int, Any]
    place: Mapping[int, int]

    def seeds(self, source: int, neurons: Index, signs: FloatArray) -> dict[int, FloatArray]:
        columns, kept = neurons[self.rows], self.kept[source]
        if not isinstance(kept, slice):
            columns = np.searchsorted(kept, columns)
        seed = np.zeros((1, len(columns), self.bounder.network.nodes[self.target].size))
        seed[0, np.arange(len(columns)), columns] = signs[self.rows]
        return {self.target: seed}

    def lines(self, whole: Mapping[int, ReluLine]) -> dict[int, ReluLine]:
        return {
            self.place[relu]: ReluLine(*(part[..., self.kept[relu]] for part in line))
            for relu, line in whole.items()
            if relu in self.kept
        }

    def box(self, whole: BoxBatch) -> BoxBatch:
        return BoxBatch(whole.lower[:, self.kept[0]], whole.upper[:, self.kept[0]])


def neuron_passes(
    bounder: Bounder, source: int, neurons: Index, boxes: int
) -> Iterator[NeuronPass]:
    """Passes back from ``neurons`` (each may occur several times) of node ``source``: through what
    a few of them see, where there are convolutions."""
    nodes = bounder.network.nodes[: source + 1]
    has_windows = any(isinstance(node, ConvNode) for node in nodes)
    groups = (
        element_tiles(bounder.network, source, neurons)
        if has_windows
        else [np.arange(len(neurons))]
    )
    everything = {number: slice(None) for number in range(len(nodes))}
    same = {number: number for number in range(len(nodes))}
    for group in groups:
        if has_windows:
            crop = crop_behind(bounder.network, source, np.unique(neurons[group]))
            part = NeuronPass(
                bounder.within(crop), group, crop.network.output, crop.kept, crop.place
            )
        else:
            part = NeuronPass(bounder, group, source, everything, same)
        widest = max(node.size for node in part.bounder.network.nodes)
        step = max(1, PASS_ENTRIES // (widest * boxes))
        for start in range(0, len(group), step):
            yield part._replace(rows=group[start : start + step])


def _tightened(
    bounder: Bounder,
    box: BoxBatch,
    source: int,
    found: tuple[FloatArray, FloatArray],
    rows: tuple[Index, FloatArray],
    lines: Mapping[int, ReluLine],
    own: tuple[Mapping[int, tuple[Index, FloatArray]], OperandBounds] | None = None,
) -> tuple[FloatArray, FloatArray]:
    """``found`` with ``sign * z`` of some elements of node ``source`` (``rows``: elements and
    signs) bounded from below by backward substitution as well; ``own`` slopes of each row, and the
    bounds that they are for."""
    neurons, signs = rows
    if not len(neurons):
        return found
    count, size = len(box.lower), bounder.network.nodes[source].size
    low, up = (np.broadcast_to(part, (count, size)).copy() for part in found)
    for one in neuron_passes(bounder, source, neurons, count):
        used = one.lines(lines)
        for relu, (below, above) in ({} if own is None else own[1]).items():
            if own is not None and relu in own[0] and relu in one.kept:
                kept = one.kept[relu]
                mine = spread_slopes(own[0][relu], one.rows, below.shape[1])[:, kept]
                used[one.place[relu]] = relu_line(below[:, None, kept], above[:, None, kept], mine)
        lines_of_rows = one.bounder.backward(one.seeds(source, neurons, signs), used)
        value = one.bounder.least(lines_of_rows, one.box(box))
        for end, sign in ((low, 1.0), (up, -1.0)):
            here = signs[one.rows] == sign
            index = neurons[one.rows[here]]
            end[:, index] = sign * greater_bound(sign * end[:, index], value[:, here])
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
