"""What a rectangle of an operator's result reads of its operands, and the operator that computes it
from that.

Of an image ``[1, C, H, W]`` a *field* is a span of rows and one of columns, with all channels. Per
operator and axis, for the span ``[a, b)`` of the result (kernel ``k``, stride ``s``, dilation
``d``, padding ``p``):

* a convolution (an average: without padding) reads ``[a s - p, (b - 1) s - p + d (k - 1) + 1)``;
  what lies outside of the operand is zero;
* a transposed convolution adds element ``r`` of its operand to ``r s - p + d i``, ``i < k``. So the
  span reads ``r`` with ``ceil((a + p - d (k - 1)) / s) <= r <= floor((b - 1 + p) / s)``, and the
  result of these begins at ``r s - p``, of which ``before = a + p - first s`` elements must go, and
  ``after = last s + d (k - 1) + 1 - (b + p)`` behind ``b``. The operator itself takes ``p'`` away
  at both ends and gives ``0 <= output_padding < s`` back behind. A zero element before the operand
  adds ``s`` to ``before``, one behind it adds ``s`` to ``after``; so few zeros at one end suffice
  for ``before = p'``, ``after = p' - output_padding``;
* padding, slices and gathered lines read what they move, concatenated images those that the span
  meets.

Where a field reads nothing at all of an operand (but for a concatenated one) there is none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bitcrown.model.graph import Graph, Node
from bitcrown.model.registry import op_row

Span = tuple[int, int]
Field = tuple[Span, Span]
"""Rows and columns of a ``[1, C, H, W]`` node."""

_IMAGE_RANK = 4
_ELEMENTWISE = ("Add", "Sub", "Larger", "Scale", "Constant")
_KERNELS = ("Conv", "ConvTranspose")


@dataclass(frozen=True)
class CutOperator:
    """``reads`` is the field of each operand, None where nothing of it is read; ``zeros`` lines
    stand around it (rows, then columns, before and behind each); ``attrs`` are those that
    differ."""

    reads: tuple[Field | None, ...]
    attrs: Mapping[str, Any]
    zeros: Field = ((0, 0), (0, 0))


def has_whole_weights(node: Node) -> bool:
    """Whether the parameters of ``node`` are no images, of which fields could be cut."""
    return node.op in _KERNELS


def is_one_image(node: Node) -> bool:
    return len(node.shape) == _IMAGE_RANK and node.shape[0] == 1


def cut_operator(graph: Graph, node: Node, field: Field) -> CutOperator | None:
    """How ``field`` of ``node`` is computed; None where that takes more than a field of each
    operand."""
    operands = [graph.nodes[name] for name in node.inputs]
    if not all(is_one_image(operand) for operand in (node, *operands)):
        return None
    rule = _RULES.get(node.op)
    if rule is not None:
        return rule(node, operands, field)
    row = op_row(node.op)
    is_elementwise = node.op in _ELEMENTWISE or (not row.is_affine and row.is_local)
    same = all(operand.shape == node.shape for operand in operands)
    return CutOperator((field,) * len(operands), {}) if is_elementwise and same else None


def _convolution(node: Node, operands: list[Node], field: Field) -> CutOperator | None:
    attrs, kernel = node.attrs, node.params["weight"].shape[2:]
    reads, zeros = [], []
    for axis, (first, end) in enumerate(field):
        stride, pad, extent = (
            attrs["strides"][axis],
            attrs["pads"][axis],
            operands[0].shape[2 + axis],
        )
        low = first * stride - pad
        high = (end - 1) * stride - pad + attrs["dilations"][axis] * (kernel[axis] - 1) + 1
        seen = max(low, 0), min(high, extent)
        if seen[0] >= seen[1]:
            return None
        reads.append(seen)
        zeros.append((seen[0] - low, high - seen[1]))
    if all(before == after for before, after in zeros):
        return CutOperator(((reads[0], reads[1]),), {"pads": [zeros[0][0], zeros[1][0]]})
    return CutOperator(((reads[0], reads[1]),), {"pads": [0, 0]}, (zeros[0], zeros[1]))


def _average(node: Node, operands: list[Node], field: Field) -> CutOperator | None:
    steps, kernel = node.attrs["strides"], node.attrs["kernel"]
    rows, columns = (
        (first * step, (end - 1) * step + extent)
        for (first, end), step, extent in zip(field, steps, kernel, strict=True)
    )
    return CutOperator(((rows, columns),), {})


def _transposed(node: Node, operands: list[Node], field: Field) -> CutOperator | None:
    attrs, kernel = node.attrs, node.params["weight"].shape[2:]
    reads, zeros, pads, left = [], [], [], []
    for axis, (first, end) in enumerate(field):
        step, pad, extent = attrs["strides"][axis], attrs["pads"][axis], operands[0].shape[2 + axis]
        reach = attrs["dilations"][axis] * (kernel[axis] - 1)
        # elements that add to the span; where none does, one that lies before it
        low = min(max(0, -((reach - first - pad) // step)), (first + pad) // step, extent - 1)
        high = max(min(extent - 1, (end - 1 + pad) // step), low)
        before, after = first + pad - low * step, high * step + reach + 1 - end - pad
        lacking = (before - after) // step
        ahead, behind = max(-lacking, 0), max(lacking, 0)
        reads.append((low, high + 1))
        zeros.append((ahead, behind))
        pads.append(before + ahead * step)
        left.append(before - after - lacking * step)
    changed = {"pads": pads, "output_padding": left}
    return CutOperator(((reads[0], reads[1]),), changed, (zeros[0], zeros[1]))


def _padded(node: Node, operands: list[Node], field: Field) -> CutOperator | None:
    before, after = node.attrs["pads"]
    if before[0] or after[0]:
        return None
    reads, ahead, behind = [], [*before[:2]], [*after[:2]]
    for axis, (first, end) in enumerate(field, start=2):
        low, high = first - before[axis], end - before[axis]
        seen = max(low, 0), min(high, operands[0].shape[axis])
        if seen[0] >= seen[1]:
            return None
        reads.append(seen)
        ahead.append(seen[0] - low)
        behind.append(high - seen[1])
    return CutOperator(((reads[0], reads[1]),), {"pads": (ahead, behind)})


def _concatenated(node: Node, operands: list[Node], field: Field) -> CutOperator | None:
    axis = node.attrs["axis"]
    if axis == 1:
        return CutOperator((field,) * len(operands), {})
    if axis not in (2, 3):
        return None
    reads: list[Field | None] = []
    begin, (first, end) = 0, field[axis - 2]
    for operand in operands:
        extent = operand.shape[axis]
        span = max(first - begin, 0), min(end - begin, extent)
        both = (span, field[1]) if axis == 2 else (field[0], span)
        reads.append(both if span[0] < span[1] else None)
        begin += extent
    return CutOperator(tuple(reads), {})


def _sliced(node: Node, operands: list[Node], field: Field) -> CutOperator | None:
    slices, reads = list(node.attrs["slices"]), []
    for axis, (first, end) in enumerate(field, start=2):
        start, _, step = slices[axis]
        if start < 0 or step < 1:
            return None
        span = start + first * step, start + (end - 1) * step + 1
        slices[axis] = (0, span[1] - span[0], step)
        reads.append(span)
    return CutOperator(((reads[0], reads[1]),), {"slices": tuple(slices)})


def _gathered(node: Node, operands: list[Node], field: Field) -> CutOperator | None:
    axis, places = node.attrs["axis"], np.asarray(node.attrs["indices"])
    if axis == 1 and places.ndim == 1:
        return CutOperator((field,), {})
    if axis not in (2, 3) or places.ndim != 1:
        return None
    first, end = field[axis - 2]
    read = places[first:end]
    span = int(read.min()), int(read.max()) + 1
    both = (span, field[1]) if axis == 2 else (field[0], span)
    return (
        CutOperator((both,), {"indices": [int(place) - span[0] for place in read]})
        if span[0] >= 0
        else None
    )


_RULES = {
    "Conv": _convolution,
    "ConvTranspose": _transposed,
    "AveragePool": _average,
    "Pad": _padded,
    "Concat": _concatenated,
    "Slice": _sliced,
    "Gather": _gathered,
}
