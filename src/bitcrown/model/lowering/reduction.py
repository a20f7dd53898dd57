"""Reductions over axes, and the normalisations that are made of them."""

from __future__ import annotations

import math

import numpy as np

from bitcrown.errors import UnsupportedError
from bitcrown.model.lowering.arithmetic import product, within
from bitcrown.model.lowering.builder import Builder, OnnxNode, lowers

_MOST_PAIRS = 1 << 26
"""Entries of a tensor of differences of all pairs, 512 MiB."""


def reduction_axes(b: Builder, node: OnnxNode, rank: int) -> tuple[tuple[int, ...], bool]:
    """Axes (as attribute or second input) and keepdims of a reduction."""
    if node.op.startswith("Global"):
        return tuple(range(2, rank)), True
    if len(node.inputs) > 1 and node.inputs[1]:
        axes = b.integers(node.inputs[1], "the axes")
    else:
        axes = list(node.attrs.get("axes", []))
    if not axes and node.attrs.get("noop_with_empty_axes", 0) != 1:
        axes = list(range(rank))
    return tuple(sorted({b.axis(axis, rank) for axis in axes})), node.attrs.get("keepdims", 1) == 1


def mean(b: Builder, x: str, axes: tuple[int, ...], keep: bool) -> str:
    count = float(np.prod([b.shape(x)[axis] for axis in axes]))
    return b.scaled(b.summed(x, axes, keep), 1.0 / count, None) if axes else x


@lowers("ReduceSum", "ReduceMean", "GlobalAveragePool", "ReduceSumSquare", "ReduceL1", "ReduceL2")
def reduce_sum(b: Builder, node: OnnxNode) -> None:
    x = b.node_of(node.inputs[0])
    axes, keep = reduction_axes(b, node, len(b.shape(x)))
    if node.op in ("ReduceMean", "GlobalAveragePool"):
        if "int" in b.dtypes.get(node.inputs[0], ""):
            raise UnsupportedError(f"node {node.name!r} averages whole numbers")
        b.bind(node, mean(b, x, axes, keep))
        return
    if node.op in ("ReduceSumSquare", "ReduceL2"):
        x = b.emit("Square", (x,))
    elif node.op == "ReduceL1":
        x = b.absolute(x)
    x = b.summed(x, axes, keep)
    b.bind(node, b.emit("Sqrt", (x,)) if node.op == "ReduceL2" else x)


@lowers("ReduceLogSumExp", "ReduceLogSum")
def reduce_log(b: Builder, node: OnnxNode) -> None:
    x = b.node_of(node.inputs[0])
    axes, keep = reduction_axes(b, node, len(b.shape(x)))
    if node.op == "ReduceLogSumExp":
        x = b.emit("Exp", (x,))
    b.bind(node, b.emit("Log", (b.summed(x, axes, keep),)))


@lowers("ReduceMax", "ReduceMin", "GlobalMaxPool")
def reduce_max(b: Builder, node: OnnxNode) -> None:
    x = b.node_of(node.inputs[0])
    axes, keep = reduction_axes(b, node, len(b.shape(x)))
    shape = b.shape(x)
    for axis in axes:
        x = _best_along(b, x, axis, smallest=node.op == "ReduceMin")
    if not keep:
        x = b.reshaped(x, [extent for axis, extent in enumerate(shape) if axis not in axes])
    b.bind(node, x)


@lowers("ReduceProd")
def reduce_product(b: Builder, node: OnnxNode) -> None:
    """Halves of each axis are multiplied until one entry is left."""
    x = b.node_of(node.inputs[0])
    axes, keep = reduction_axes(b, node, len(b.shape(x)))
    shape = b.shape(x)
    for axis in axes:
        while b.shape(x)[axis] > 1:
            extent = b.shape(x)[axis]
            half = extent // 2
            left, right = b.sliced(x, axis, 0, half), b.sliced(x, axis, half, 2 * half)
            rest = (b.sliced(x, axis, 2 * half, extent),) if extent % 2 else ()
            x = b.binary("Mul", left, right)
            x = b.emit("Concat", (x, *rest), {"axis": axis}) if rest else x
    if not keep:
        x = b.reshaped(x, [extent for axis, extent in enumerate(shape) if axis not in axes])
    b.bind(node, x)


def _best_along(b: Builder, x: str, axis: int, smallest: bool) -> str:
    """Halve the axis until one entry is left: depth log2, one ReLU a comparison."""
    while b.shape(x)[axis] > 1:
        extent = b.shape(x)[axis]
        half = extent // 2
        left, right = b.sliced(x, axis, 0, half), b.sliced(x, axis, half, 2 * half)
        best = b.minimum(left, right) if smallest else b.maximum(left, right)
        rest = (b.sliced(x, axis, 2 * half, extent),) if extent % 2 else ()
        x = b.emit("Concat", (best, *rest), {"axis": axis}) if rest else best
    return x


@lowers("CumSum")
def cumulative(b: Builder, node: OnnxNode) -> None:
    x = b.node_of(node.inputs[0])
    axis = b.axis(b.integers(node.inputs[1], "the axis")[0], len(b.shape(x)))
    extent = b.shape(x)[axis]
    matrix = np.tril(np.ones((extent, extent)), -1 if node.attrs.get("exclusive", 0) else 0)
    b.bind(node, b.along(x, axis, matrix.T if node.attrs.get("reverse", 0) else matrix))


@lowers("Softmax", "LogSoftmax")
def softmax(b: Builder, node: OnnxNode) -> None:
    """``softmax_i = 1 / sum_j exp(x_j - x_i)``: differences are affine, and nothing overflows where
    it matters."""
    x = b.node_of(node.inputs[0])
    shape = b.shape(x)
    rank = len(shape)
    axis = b.axis(int(node.attrs.get("axis", 1 if node.opset < 13 else -1)), rank)
    is_log = node.op == "LogSoftmax"
    masked = b.removed.get(node.inputs[0])
    if node.opset < 13 and axis != rank - 1:
        line = (*shape[:axis], math.prod(shape[axis:]))
        masked = None if masked is None else masked.reshape(line)
        value = softmax_over(b, b.reshaped(x, line), axis, is_log, masked)
        b.bind(node, b.reshaped(value, shape))
        return
    b.bind(node, softmax_over(b, x, axis, is_log, masked))


def softmax_over(
    b: Builder, x: str, axis: int, is_log: bool, masked: np.ndarray | None = None
) -> str:
    """A ``masked`` entry is minus infinity: it is an exact zero, and no term of any sum."""
    shape = b.shape(x)
    n = shape[axis]
    if n > 1024:
        raise UnsupportedError(f"node {b.source!r}: Softmax over {n} entries")
    full = (*shape[:axis], n, n, *shape[axis + 1 :])
    if math.prod(full) > _MOST_PAIRS and masked is None and not is_log:
        return _softmax_below_the_largest(b, x, axis)
    column = b.expanded(b.reshaped(x, (*shape[:axis], 1, *shape[axis:])), full)
    row = b.expanded(b.reshaped(x, (*shape[: axis + 1], 1, *shape[axis + 1 :])), full)
    exponentials = b.emit("Exp", (b.emit("Sub", (column, row)),))
    # exp(x_i - x_i) is 1 whatever x_i is known to be, so the sum of the others begins with 1.
    counted = 1.0 - np.eye(n).reshape(n, n, *([1] * (len(shape) - axis - 1)))
    if masked is not None:
        if is_log or masked.all(axis=axis).any():
            raise UnsupportedError(
                f"node {b.source!r}: a Softmax of minus infinity alone, or its logarithm"
            )
        counted = counted * ~np.expand_dims(masked, axis)
    total = b.summed(b.scaled(exponentials, counted, None), (axis + 1,), False)
    total = b.scaled(total, None, 1.0)
    if is_log:
        return b.scaled(b.emit("Log", (total,)), -1.0, None)
    value = b.emit("Reciprocal", (total,))
    return value if masked is None else b.scaled(value, 1.0 - masked, None)


def _softmax_below_the_largest(b: Builder, x: str, axis: int) -> str:
    """``e_i / sum_j e_j`` with ``e = exp(min(x - max x, 0))``: one exponential an entry and not one
    a pair, so bounds know less. The sum is at least 1, the quotient between 0 and 1."""
    shape = b.shape(x)
    most = b.expanded(_best_along(b, x, axis, smallest=False), shape)
    below = b.scaled(b.relu(b.emit("Sub", (most, x))), -1.0, None)
    e = b.emit("Exp", (below,))
    beyond = b.relu(b.scaled(b.summed(e, (axis,), True), None, -1.0))
    share = b.emit("Reciprocal", (b.scaled(beyond, None, 1.0),))
    return b.emit("Clip", (b.binary("Mul", e, share),), {"min": 0.0, "max": 1.0})


@lowers("LpNormalization")
def lp_normalization(b: Builder, node: OnnxNode) -> None:
    x = b.node_of(node.inputs[0])
    axis = b.axis(int(node.attrs.get("axis", -1)), len(b.shape(x)))
    if int(node.attrs.get("p", 2)) == 2:
        norm = b.emit("Sqrt", (b.summed(b.emit("Square", (x,)), (axis,), True),))
    else:
        norm = b.summed(b.absolute(x), (axis,), True)
    b.bind(node, within(b, product(b, x, b.emit("Reciprocal", (norm,))), 1.0))
