"""Reductions over axes, and the normalisations that are made of them."""

from __future__ import annotations

import math

import numpy as np

from bitcrown.errors import UnsupportedError
from bitcrown.model.lowering.arithmetic import product, within
from bitcrown.model.lowering.builder import Builder, OnnxNode, lowers
from bitcrown.model.lowering.undefined import NORM_OF_ZERO

_STEPS = 8
_LARGE = 1e3
"""Eight steps before a softmax: nobody adds a mask earlier than that."""


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
    shape = b.shape(x)
    axes, keep = reduction_axes(b, node, len(shape))
    if node.op == "ReduceLogSum":
        b.bind(node, b.emit("Log", (b.summed(x, axes, keep),)))
        return
    kept = [axis for axis in range(len(shape)) if axis not in axes]
    line = [*(shape[axis] for axis in kept), math.prod(shape[axis] for axis in axes)]
    total = b.emit("LogSumExp", (b.reshaped(_moved(b, x, [*kept, *axes]), line),))
    result = [1 if axis in axes else extent for axis, extent in enumerate(shape)]
    b.bind(node, b.reshaped(total, result if keep else line[:-1]))


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
    """``softmax(x)_i = exp(x_i - lse(x))``, of ``x`` minus its mean along the axis: that changes
    nothing, and what all entries have in common widens no range. (A mean with large constants in
    it, as masks are, would round the rest away.)

    A ``masked`` entry is minus infinity: it is an exact zero, and no term of any sum.
    """
    order = _axis_last(len(b.shape(x)), axis)
    x = _moved(b, x, order)
    counted = None
    if masked is not None:
        if is_log or masked.all(axis=axis).any():
            raise UnsupportedError(
                f"node {b.source!r}: a Softmax of minus infinity alone, or its logarithm"
            )
        counted = 1.0 - np.broadcast_to(masked, masked.shape).transpose(order)
    x = x if _has_large_constants(b, x) else _minus_mean(b, x, counted)
    params = {} if counted is None else {"counted": counted}
    total = b.emit("LogSumExp", (x,), {}, params)
    share = b.emit("LogShare", (x, b.expanded(total, b.shape(x))), {}, params)
    if is_log:
        return _moved(b, share, list(np.argsort(order)))
    value = b.emit("Exp", (share,), {"adds_up": True} if counted is None else {})
    value = value if counted is None else b.scaled(value, counted, None)
    return _moved(b, value, list(np.argsort(order)))


def _minus_mean(b: Builder, x: str, counted: np.ndarray | None) -> str:
    last = len(b.shape(x)) - 1
    if counted is None:
        centre = mean(b, x, (last,), True)
    else:
        weights = counted / counted.sum(axis=last, keepdims=True)
        centre = b.summed(b.scaled(x, weights, None), (last,), True)
    return b.emit("Sub", (x, b.expanded(centre, b.shape(x))))


def _has_large_constants(b: Builder, x: str) -> bool:
    """Whether constants in the last steps before ``x`` are of the size of a mask."""
    near = {x}
    for _ in range(_STEPS):
        params = [value for name in near for value in b.nodes[name].params.values()]
        if any(np.abs(value).max(initial=0.0) > _LARGE for value in params):
            return True
        near = {name for node in near for name in b.nodes[node].inputs}
    return False


def _axis_last(rank: int, axis: int) -> list[int]:
    return [other for other in range(rank) if other != axis] + [axis]


def _moved(b: Builder, x: str, order: list[int]) -> str:
    return x if order == sorted(order) else b.transposed(x, [int(place) for place in order])


@lowers("LpNormalization")
def lp_normalization(b: Builder, node: OnnxNode) -> None:
    x = b.node_of(node.inputs[0])
    axis = b.axis(int(node.attrs.get("axis", -1)), len(b.shape(x)))
    if int(node.attrs.get("p", 2)) == 2:
        norm = b.emit("Sqrt", (b.summed(b.emit("Square", (x,)), (axis,), True),))
    else:
        norm = b.summed(b.absolute(x), (axis,), True)
    inverse = b.emit("Reciprocal", (norm,), {NORM_OF_ZERO: True})
    b.bind(node, within(b, product(b, x, inverse), 1.0))
