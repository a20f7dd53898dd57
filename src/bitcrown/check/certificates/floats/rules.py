"""One rule for each ONNX operator that certificates cover (those that only move elements:
``shape_rules``).

Piecewise linear operators become ReLU by identities of real numbers:
``LeakyRelu(x) = a x + (1 - a) relu(x)``, ``|x| = 2 relu(x) - x``,
``Clip(x; l, h) = l + relu(x - l) - relu(x - h)``, ``max(x, y) = x + relu(y - x)``. What a rule
computes from constants (a reciprocal, a square root) is correct to a few units in the last place,
which ``nodes`` counts as rounding of a product.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from bitcrown.check.certificates.floats.bounds import LARGEST_VALUE
from bitcrown.check.certificates.floats.nodes import ConvNode
from bitcrown.check.certificates.floats.reader import (
    Call,
    GraphTensor,
    NodeBuilder,
    NodeTensor,
    exact_floats,
    flat_places,
    float_rule,
    of_integers,
    shape_of,
)
from bitcrown.check.certificates.onnx_files import Windows, cut_quotient, windows_over

# -- affine ----------------------------------------------------------------------------------------


@float_rule("Gemm")
def gemm(b: NodeBuilder, call: Call) -> Sequence[GraphTensor]:
    x, weight = call.entry(0), exact_floats(call.constant(1), call)
    if call.attributes.get("transA", 0) or len(x.shape) != 2 or weight.ndim != 2:
        raise call.refuse("a transposed first factor")
    weight = weight if call.attributes.get("transB", 0) else weight.T
    weight = weight * call.real("alpha", 1.0)
    bias = exact_floats(call.constant(2), call) * call.real("beta", 1.0) if call.has(2) else 0.0
    return [b.dense(x, weight, bias, (x.shape[0], weight.shape[0]))]


@float_rule("MatMul")
def matmul(b: NodeBuilder, call: Call) -> Sequence[GraphTensor]:
    left, right = call.inputs
    if isinstance(left, NodeTensor) and isinstance(right, np.ndarray) and right.ndim == 2:
        weight = exact_floats(right, call).T
        return [b.dense(left, weight, 0.0, (*left.shape[:-1], weight.shape[0]))]
    if (
        isinstance(right, NodeTensor)
        and isinstance(left, np.ndarray)
        and left.ndim == 2
        and len(right.shape) == 2
    ):
        turned = b.gather(right, flat_places(right).T)
        found = b.dense(turned, exact_floats(left, call), 0.0, (right.shape[1], left.shape[0]))
        return [b.gather(found, flat_places(found).T)]
    raise call.refuse("only products with a constant matrix")


@float_rule("Add", "Sub", "Sum")
def add(b: NodeBuilder, call: Call) -> Sequence[GraphTensor]:
    if all(isinstance(item, np.ndarray) for item in call.inputs):
        return [of_integers(call, np.add if call.op != "Sub" else np.subtract)]
    shape = np.broadcast_shapes(*(shape_of(item) for item in call.inputs))
    signs = [-1.0 if call.op == "Sub" and place else 1.0 for place in range(len(call.inputs))]
    parts = [
        (item, sign)
        for item, sign in zip(call.inputs, signs, strict=True)
        if isinstance(item, NodeTensor)
    ]
    fixed = [
        exact_floats(item, call) * sign
        for item, sign in zip(call.inputs, signs, strict=True)
        if not isinstance(item, NodeTensor) and item is not None
    ]
    if len(fixed) > 1:
        raise call.refuse("sums of constants")
    return [b.combine(parts, fixed[0] if fixed else 0.0, shape)]


@float_rule("Mul", "Div")
def multiply(b: NodeBuilder, call: Call) -> Sequence[GraphTensor]:
    left, right = call.inputs
    if isinstance(left, np.ndarray) and isinstance(right, np.ndarray):
        return [of_integers(call, np.multiply if call.op == "Mul" else cut_quotient)]
    if isinstance(left, np.ndarray) and call.op == "Mul":
        left, right = right, left
    if not isinstance(left, NodeTensor) or not isinstance(right, np.ndarray):
        raise call.refuse("only factors and divisors that are constant")
    factor = exact_floats(right, call)
    if call.op == "Div":
        if not factor.all():
            raise call.refuse("a division by zero")
        factor = 1.0 / factor
    return [b.combine([(left, factor)], 0.0, np.broadcast_shapes(left.shape, factor.shape))]


@float_rule("Neg")
def negate(b: NodeBuilder, call: Call) -> Sequence[GraphTensor]:
    return [b.combine([(call.entry(), -1.0)], 0.0, call.entry().shape)]


@float_rule("BatchNormalization")
def normalise(b: NodeBuilder, call: Call) -> Sequence[GraphTensor]:
    x = call.entry()
    if call.attributes.get("training_mode", 0):
        raise call.refuse("training mode")
    scale, bias, mean, variance = (
        exact_floats(call.constant(place), call) for place in range(1, 5)
    )
    epsilon = call.real("epsilon", 1e-5)
    if not (variance >= 0).all() or not epsilon > 0:
        raise call.refuse("a negative variance")
    axes = (len(scale), *[1] * (len(x.shape) - 2))
    centred = b.combine([(x, 1.0)], -mean.reshape(axes), x.shape)
    factor = scale / np.sqrt(variance + epsilon)
    return [b.combine([(centred, factor.reshape(axes))], bias.reshape(axes), x.shape)]


@float_rule("Conv")
def convolution(b: NodeBuilder, call: Call) -> Sequence[GraphTensor]:
    weight = exact_floats(call.constant(1), call)
    bias = exact_floats(call.constant(2), call) if call.has(2) else np.zeros(weight.shape[0])
    return [_convolve(b, call, call.entry(), weight, bias, int(call.attributes.get("group", 1)))]


def _convolve(
    b: NodeBuilder, call: Call, x: NodeTensor, weight: Any, bias: Any, groups: int
) -> NodeTensor:
    rank = len(x.shape) - 2
    if rank not in (1, 2) or x.shape[0] != 1 or weight.ndim != rank + 2:
        raise call.refuse(f"an input of shape {x.shape}; one image or series at a time")
    if groups < 1 or x.shape[1] != groups * weight.shape[1] or weight.shape[0] % groups:
        raise call.refuse(f"{groups} groups do not fit the shapes {x.shape} and {weight.shape}")
    plane: Any = x.shape[2:]
    kernel = weight.shape[2:]
    windows: Any = _windows_of(call, plane, kernel)
    strides, dilations, pads, out = windows
    begin = pads[:rank]
    if rank == 1:
        weight, plane, out = weight[:, :, None], (1, *plane), (1, *out)
        strides, dilations, begin = (1, *strides), (1, *dilations), (0, *begin)
    spread = np.repeat(bias, math.prod(out))
    node = ConvNode((x.node,), weight, spread, plane, out, strides, begin, dilations, groups)
    return b.add(node, (1, weight.shape[0], *out[2 - rank :]))


def _windows_of(call: Call, plane: Sequence[int], kernel: Sequence[int]) -> Windows:
    if call.attributes.get("ceil_mode", 0):
        raise call.refuse("ceil_mode")
    found = windows_over(call.attributes, plane, kernel)
    if min(found.out) < 1:
        raise call.refuse("a kernel larger than its input")
    return found


@float_rule("AveragePool")
def average_pool(b: NodeBuilder, call: Call) -> Sequence[GraphTensor]:
    x, kernel = call.entry(), [int(k) for k in call.attributes["kernel_shape"]]
    channels = x.shape[1]
    total = _convolve(b, call, x, np.ones((channels, 1, *kernel)), np.zeros(channels), channels)
    if call.attributes.get("count_include_pad", 0):
        return [b.combine([(total, 1.0 / math.prod(kernel))], 0.0, total.shape)]
    node = b.nodes[total.node]
    assert isinstance(node, ConvNode)
    counts = node.forward([np.ones((1, math.prod(x.shape)))]).reshape(total.shape)
    return [b.combine([(total, 1.0 / counts)], 0.0, total.shape)]


@float_rule("GlobalAveragePool", "ReduceMean", "ReduceSum")
def reduce_axes(b: NodeBuilder, call: Call) -> Sequence[GraphTensor]:
    x = call.entry()
    rank = len(x.shape)
    axes = (
        list(range(2, rank))
        if call.op == "GlobalAveragePool"
        else call.integers(1, "axes") or list(range(rank))
    )
    axes = sorted({axis % rank for axis in axes})
    if call.attributes.get("noop_with_empty_axes", 0):
        raise call.refuse("noop_with_empty_axes")
    keeps = call.op == "GlobalAveragePool" or bool(call.attributes.get("keepdims", 1))
    rest = [axis for axis in range(rank) if axis not in axes]
    count = math.prod(x.shape[axis] for axis in axes)
    turned = b.gather(x, flat_places(x).transpose(rest + axes).reshape(-1, count))
    shape = tuple(
        1 if axis in axes else x.shape[axis] for axis in range(rank) if keeps or axis not in axes
    )
    total = b.dense(turned, np.ones((1, count)), 0.0, shape)
    return [total if call.op == "ReduceSum" else b.combine([(total, 1.0 / count)], 0.0, shape)]


# -- piecewise linear ------------------------------------------------------------------------------


@float_rule("Relu")
def relu(b: NodeBuilder, call: Call) -> Sequence[GraphTensor]:
    found = b.relu(call.entry())
    b.names[call.outputs[0]] = found.node
    return [found]


@float_rule("LeakyRelu", "PRelu")
def leaky_relu(b: NodeBuilder, call: Call) -> Sequence[GraphTensor]:
    x = call.entry()
    slope = exact_floats(call.constant(1), call) if call.op == "PRelu" else call.real("alpha", 0.01)
    return [b.combine([(x, slope), (b.relu(x), 1.0 - np.asarray(slope))], 0.0, x.shape)]


@float_rule("Abs")
def absolute(b: NodeBuilder, call: Call) -> Sequence[GraphTensor]:
    x = call.entry()
    return [b.combine([(x, -1.0), (b.relu(x), 2.0)], 0.0, x.shape)]


@float_rule("Clip")
def clip(b: NodeBuilder, call: Call) -> Sequence[GraphTensor]:
    x = call.entry()
    limits = [call.real("min", -math.inf), call.real("max", math.inf)]
    for place in (1, 2):
        if call.has(place):
            limits[place - 1] = float(exact_floats(call.constant(place), call).reshape(()))
    low = None if limits[0] < -LARGEST_VALUE else limits[0]
    high = None if limits[1] > LARGEST_VALUE else limits[1]
    if low is not None and high is not None and low > high:
        raise call.refuse("limits that contradict each other")
    if low is None:
        return [x] if high is None else [_least(b, x, high)]
    above = b.relu(b.combine([(x, 1.0)], -low, x.shape))
    if high is None:
        return [b.combine([(above, 1.0)], low, x.shape)]
    beyond = b.relu(b.combine([(x, 1.0)], -high, x.shape))
    return [b.combine([(above, 1.0), (beyond, -1.0)], low, x.shape)]


def _least(b: NodeBuilder, x: NodeTensor, high: float) -> NodeTensor:
    """``min(x, high) = high - relu(high - x)``."""
    return b.combine([(b.relu(b.combine([(x, -1.0)], high, x.shape)), -1.0)], high, x.shape)


def _maximum(b: NodeBuilder, parts: list[NodeTensor]) -> NodeTensor:
    """Elementwise maximum of equal shapes, pair by pair."""
    while len(parts) > 1:
        pairs = zip(parts[::2], parts[1::2], strict=False)
        found = [_larger(b, left, right) for left, right in pairs]
        parts = found + ([parts[-1]] if len(parts) % 2 else [])
    return parts[0]


def _larger(b: NodeBuilder, left: NodeTensor, right: NodeTensor) -> NodeTensor:
    gap = b.relu(b.combine([(right, 1.0), (left, -1.0)], 0.0, left.shape))
    return b.combine([(left, 1.0), (gap, 1.0)], 0.0, left.shape)


@float_rule("MaxPool")
def max_pool(b: NodeBuilder, call: Call) -> Sequence[GraphTensor]:
    x, kernel = call.entry(), [int(k) for k in call.attributes["kernel_shape"]]
    if len(call.outputs) > 1 or x.shape[0] != 1 or len(kernel) != len(x.shape) - 2:
        raise call.refuse("indices, or several images at a time")
    plane = x.shape[2:]
    strides, dilations, begin, out = _windows_of(call, plane, kernel)
    index = flat_places(x)
    parts = []
    for offset in np.ndindex(*kernel):
        taken, inside = index[0], np.ones((1, *out), dtype=bool)
        for axis in range(len(plane)):
            where = (
                np.arange(out[axis]) * strides[axis] - begin[axis] + offset[axis] * dilations[axis]
            )
            fits = (where >= 0) & (where < plane[axis])
            inside = inside & fits.reshape(
                [-1 if i == axis + 1 else 1 for i in range(len(plane) + 1)]
            )
            taken = np.take(taken, where.clip(0, plane[axis] - 1), axis=axis + 1)
        parts.append(np.where(inside, taken, -1))
    stacked = np.stack(parts)
    any_place = stacked.max(
        axis=0
    )  # padding never wins: an element of the same window stands in for it
    if (any_place < 0).any():
        raise call.refuse("a window that sees nothing but padding")
    shape = (1, x.shape[1], *out)
    windows = [b.gather(x, np.where(part < 0, any_place, part).reshape(shape)) for part in stacked]
    return [_maximum(b, windows)]


@float_rule("Max")
def maximum(b: NodeBuilder, call: Call) -> Sequence[GraphTensor]:
    shape = np.broadcast_shapes(*(shape_of(item) for item in call.inputs))
    parts = [
        b.gather(item, np.broadcast_to(flat_places(item), shape))
        for item in call.inputs
        if isinstance(item, NodeTensor)
    ]
    found = _maximum(b, parts)
    for item in call.inputs:
        if isinstance(item, np.ndarray):
            gap = b.relu(b.combine([(found, 1.0)], -exact_floats(item, call), shape))
            found = b.combine([(gap, 1.0)], exact_floats(item, call), shape)
    return [found]
