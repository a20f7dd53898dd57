"""One rule for each ONNX operator that certificates cover, and the walk over a file's nodes.

Piecewise linear operators become ReLU by identities of real numbers: ``LeakyRelu(x) = a x + (1 - a) relu(x)``,
``|x| = 2 relu(x) - x``, ``Clip(x; l, h) = l + relu(x - l) - relu(x - h)``, ``max(x, y) = x + relu(y - x)``. What a
rule computes from constants (a reciprocal, a square root) is correct to a few units in the last place, which
``float_nodes`` counts as rounding of a product.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bitcrown.check.float_nodes import Conv
from bitcrown.check.float_reader import FLOATS, Builder, Call, Entry, Rule, Tensor, exact, extents, graph_inputs, places
from bitcrown.errors import ModelError, UnsupportedError

RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    def enter(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return enter


def run_graph(builder: Builder, model: Any, start: int) -> list[Entry]:
    """Add the nodes of one file, whose flat inputs begin at ``start``; returns its outputs."""
    from onnx import numpy_helper

    tensors: dict[str, Tensor] = {
        item.name: np.asarray(numpy_helper.to_array(item)) for item in model.graph.initializer
    }
    for item in graph_inputs(model):
        shape = extents(item)
        index = np.arange(start, start + math.prod(shape)).reshape(shape)
        tensors[item.name] = builder.gather(Entry(0, (builder.nodes[0].size,)), index)
        start += math.prod(shape)
    for node in model.graph.node:
        inputs = tuple(tensors[name] if name else None for name in node.input)
        call = Call(node.op_type, node.name or node.output[0], inputs, _attributes(node), tuple(node.output))
        for name, tensor in zip(node.output, _outcome(builder, call), strict=False):
            tensors[name] = tensor
    found = [tensors[item.name] for item in model.graph.output]
    if not all(isinstance(item, Entry) for item in found):
        raise UnsupportedError("certificates: an output of the network does not depend on its input")
    return [item for item in found if isinstance(item, Entry)]


def _attributes(node: Any) -> dict[str, Any]:
    from onnx import helper

    return {item.name: helper.get_attribute_value(item) for item in node.attribute}


def _outcome(builder: Builder, call: Call) -> Sequence[Tensor]:
    if call.op not in RULES:
        raise UnsupportedError(
            f"certificates are written for piecewise-linear networks; node {call.name!r} is a {call.op}"
        )
    try:
        return RULES[call.op](builder, call)
    except (ValueError, IndexError, TypeError, OverflowError) as error:
        raise ModelError(f"certificates: node {call.name!r} ({call.op}) cannot be read: {error}") from error


def shape_of(tensor: Tensor | None) -> tuple[int, ...]:
    assert tensor is not None
    return tuple(tensor.shape)


# -- affine ------------------------------------------------------------------------------------------------------


@rule("Gemm")
def gemm(b: Builder, call: Call) -> Sequence[Tensor]:
    x, weight = call.entry(0), exact(call.constant(1), call)
    if call.attributes.get("transA", 0) or len(x.shape) != 2 or weight.ndim != 2:
        raise call.refuse("a transposed first factor")
    weight = weight if call.attributes.get("transB", 0) else weight.T
    weight = weight * float(call.attributes.get("alpha", 1.0))
    bias = exact(call.constant(2), call) * float(call.attributes.get("beta", 1.0)) if call.has(2) else 0.0
    return [b.dense(x, weight, bias, (x.shape[0], weight.shape[0]))]


@rule("MatMul")
def matmul(b: Builder, call: Call) -> Sequence[Tensor]:
    left, right = call.inputs
    if isinstance(left, Entry) and isinstance(right, np.ndarray) and right.ndim == 2:
        weight = exact(right, call).T
        return [b.dense(left, weight, 0.0, (*left.shape[:-1], weight.shape[0]))]
    if isinstance(right, Entry) and isinstance(left, np.ndarray) and left.ndim == 2 and len(right.shape) == 2:
        turned = b.gather(right, places(right).T)
        found = b.dense(turned, exact(left, call), 0.0, (right.shape[1], left.shape[0]))
        return [b.gather(found, places(found).T)]
    raise call.refuse("only products with a constant matrix")


@rule("Add", "Sub", "Sum")
def add(b: Builder, call: Call) -> Sequence[Tensor]:
    if all(isinstance(item, np.ndarray) for item in call.inputs):
        return [_of_integers(call, np.add if call.op != "Sub" else np.subtract)]
    shape = np.broadcast_shapes(*(shape_of(item) for item in call.inputs))
    signs = [-1.0 if call.op == "Sub" and place else 1.0 for place in range(len(call.inputs))]
    parts = [(item, sign) for item, sign in zip(call.inputs, signs, strict=True) if isinstance(item, Entry)]
    fixed = [exact(item, call) * sign for item, sign in zip(call.inputs, signs, strict=True) if not isinstance(item, Entry) and item is not None]
    if len(fixed) > 1:
        raise call.refuse("sums of constants")
    return [b.combine(parts, fixed[0] if fixed else 0.0, shape)]


@rule("Mul", "Div")
def multiply(b: Builder, call: Call) -> Sequence[Tensor]:
    left, right = call.inputs
    if isinstance(left, np.ndarray) and isinstance(right, np.ndarray):
        return [_of_integers(call, np.multiply if call.op == "Mul" else np.floor_divide)]
    if isinstance(left, np.ndarray) and call.op == "Mul":
        left, right = right, left
    if not isinstance(left, Entry) or not isinstance(right, np.ndarray):
        raise call.refuse("only factors and divisors that are constant")
    factor = exact(right, call)
    if call.op == "Div":
        if not factor.all():
            raise call.refuse("a division by zero")
        factor = 1.0 / factor
    return [b.combine([(left, factor)], 0.0, np.broadcast_shapes(left.shape, factor.shape))]


@rule("Neg")
def negate(b: Builder, call: Call) -> Sequence[Tensor]:
    return [b.combine([(call.entry(), -1.0)], 0.0, call.entry().shape)]


@rule("BatchNormalization")
def normalise(b: Builder, call: Call) -> Sequence[Tensor]:
    x = call.entry()
    if call.attributes.get("training_mode", 0):
        raise call.refuse("training mode")
    scale, bias, mean, variance = (exact(call.constant(place), call) for place in range(1, 5))
    epsilon = float(call.attributes.get("epsilon", 1e-5))
    if not (variance >= 0).all() or not epsilon > 0:
        raise call.refuse("a negative variance")
    axes = (len(scale), *[1] * (len(x.shape) - 2))
    centred = b.combine([(x, 1.0)], -mean.reshape(axes), x.shape)
    factor = scale / np.sqrt(variance + epsilon)
    return [b.combine([(centred, factor.reshape(axes))], bias.reshape(axes), x.shape)]


@rule("Conv")
def convolution(b: Builder, call: Call) -> Sequence[Tensor]:
    weight = exact(call.constant(1), call)
    bias = exact(call.constant(2), call) if call.has(2) else np.zeros(weight.shape[0])
    return [_convolve(b, call, call.entry(), weight, bias, int(call.attributes.get("group", 1)))]


def _convolve(b: Builder, call: Call, x: Entry, weight: Any, bias: Any, groups: int) -> Entry:
    rank = len(x.shape) - 2
    if rank not in (1, 2) or x.shape[0] != 1 or weight.ndim != rank + 2:
        raise call.refuse(f"an input of shape {x.shape}; one image or series at a time")
    if groups < 1 or x.shape[1] != groups * weight.shape[1] or weight.shape[0] % groups:
        raise call.refuse(f"{groups} groups do not fit the shapes {x.shape} and {weight.shape}")
    kernel, plane = weight.shape[2:], x.shape[2:]
    strides, dilations, begin, out = _windows_of(call, plane, kernel)
    if rank == 1:
        weight, plane, out = weight[:, :, None], (1, *plane), (1, *out)
        strides, dilations, begin = (1, *strides), (1, *dilations), (0, *begin)
    spread = np.repeat(bias, math.prod(out))
    node = Conv((x.node,), weight, spread, plane, out, strides, begin, dilations, groups)
    return b.add(node, (1, weight.shape[0], *out[2 - rank :]))


def _windows_of(call: Call, plane: Sequence[int], kernel: Sequence[int]) -> tuple[Any, Any, Any, Any]:
    """Strides, dilations, pads at the beginning, and the extents of the result."""
    rank = len(kernel)
    strides = [int(s) for s in call.attributes.get("strides", [1] * rank)]
    dilations = [int(d) for d in call.attributes.get("dilations", [1] * rank)]
    pads = [int(p) for p in call.attributes.get("pads", [0] * 2 * rank)]
    word = call.attributes.get("auto_pad", b"NOTSET").decode()
    if word in ("SAME_UPPER", "SAME_LOWER"):
        total = [
            max(0, (-(-n // s) - 1) * s + (k - 1) * d + 1 - n)
            for n, s, k, d in zip(plane, strides, kernel, dilations, strict=True)
        ]
        small = [value // 2 for value in total]
        large = [value - half for value, half in zip(total, small, strict=True)]
        pads = small + large if word == "SAME_UPPER" else large + small
    elif word == "VALID":
        pads = [0] * 2 * rank
    if min(*strides, *dilations) < 1 or min(pads) < 0 or call.attributes.get("ceil_mode", 0):
        raise call.refuse("strides and dilations below 1, negative pads or ceil_mode")
    out = [
        (n + pads[i] + pads[i + rank] - (k - 1) * d - 1) // s + 1
        for i, (n, s, k, d) in enumerate(zip(plane, strides, kernel, dilations, strict=True))
    ]
    if min(out) < 1:
        raise call.refuse("a kernel larger than its input")
    return tuple(strides), tuple(dilations), tuple(pads[:rank]), tuple(out)


@rule("AveragePool")
def average_pool(b: Builder, call: Call) -> Sequence[Tensor]:
    x, kernel = call.entry(), [int(k) for k in call.attributes["kernel_shape"]]
    channels = x.shape[1]
    total = _convolve(b, call, x, np.ones((channels, 1, *kernel)), np.zeros(channels), channels)
    if call.attributes.get("count_include_pad", 0):
        return [b.combine([(total, 1.0 / math.prod(kernel))], 0.0, total.shape)]
    node = b.nodes[total.node]
    assert isinstance(node, Conv)
    counts = node.forward([np.ones((1, math.prod(x.shape)))]).reshape(total.shape)
    return [b.combine([(total, 1.0 / counts)], 0.0, total.shape)]


@rule("GlobalAveragePool", "ReduceMean", "ReduceSum")
def reduce_axes(b: Builder, call: Call) -> Sequence[Tensor]:
    x = call.entry()
    rank = len(x.shape)
    axes = list(range(2, rank)) if call.op == "GlobalAveragePool" else call.integers(1, "axes") or list(range(rank))
    axes = sorted({axis % rank for axis in axes})
    keeps = call.op == "GlobalAveragePool" or bool(call.attributes.get("keepdims", 1))
    rest = [axis for axis in range(rank) if axis not in axes]
    count = math.prod(x.shape[axis] for axis in axes)
    turned = b.gather(x, places(x).transpose(rest + axes).reshape(-1, count))
    shape = tuple(1 if axis in axes else x.shape[axis] for axis in range(rank) if keeps or axis not in axes)
    total = b.dense(turned, np.ones((1, count)), 0.0, shape)
    return [total if call.op == "ReduceSum" else b.combine([(total, 1.0 / count)], 0.0, shape)]


# -- piecewise linear ----------------------------------------------------------------------------------------------


@rule("Relu")
def relu(b: Builder, call: Call) -> Sequence[Tensor]:
    found = b.relu(call.entry())
    b.names[call.outputs[0]] = found.node
    return [found]


@rule("LeakyRelu", "PRelu")
def leaky_relu(b: Builder, call: Call) -> Sequence[Tensor]:
    x = call.entry()
    slope = exact(call.constant(1), call) if call.op == "PRelu" else float(call.attributes.get("alpha", 0.01))
    return [b.combine([(x, slope), (b.relu(x), 1.0 - np.asarray(slope))], 0.0, x.shape)]


@rule("Abs")
def absolute(b: Builder, call: Call) -> Sequence[Tensor]:
    x = call.entry()
    return [b.combine([(x, -1.0), (b.relu(x), 2.0)], 0.0, x.shape)]


@rule("Clip")
def clip(b: Builder, call: Call) -> Sequence[Tensor]:
    x = call.entry()
    limits = [float(call.attributes.get("min", -math.inf)), float(call.attributes.get("max", math.inf))]
    for place in (1, 2):
        if call.has(place):
            limits[place - 1] = float(exact(call.constant(place), call).reshape(()))
    low, high = (None if abs(limit) > 1e30 else limit for limit in limits)
    if low is not None and high is not None and low > high:
        raise call.refuse("limits that contradict each other")
    if low is None:
        return [x] if high is None else [_least(b, x, high)]
    above = b.relu(b.combine([(x, 1.0)], -low, x.shape))
    if high is None:
        return [b.combine([(above, 1.0)], low, x.shape)]
    beyond = b.relu(b.combine([(x, 1.0)], -high, x.shape))
    return [b.combine([(above, 1.0), (beyond, -1.0)], low, x.shape)]


def _least(b: Builder, x: Entry, high: float) -> Entry:
    """``min(x, high) = high - relu(high - x)``."""
    return b.combine([(b.relu(b.combine([(x, -1.0)], high, x.shape)), -1.0)], high, x.shape)


def _maximum(b: Builder, parts: list[Entry]) -> Entry:
    """Elementwise maximum of equal shapes, pair by pair."""
    while len(parts) > 1:
        pairs = zip(parts[::2], parts[1::2], strict=False)
        found = [_larger(b, left, right) for left, right in pairs]
        parts = found + ([parts[-1]] if len(parts) % 2 else [])
    return parts[0]


def _larger(b: Builder, left: Entry, right: Entry) -> Entry:
    gap = b.relu(b.combine([(right, 1.0), (left, -1.0)], 0.0, left.shape))
    return b.combine([(left, 1.0), (gap, 1.0)], 0.0, left.shape)


@rule("MaxPool")
def max_pool(b: Builder, call: Call) -> Sequence[Tensor]:
    x, kernel = call.entry(), [int(k) for k in call.attributes["kernel_shape"]]
    if len(call.outputs) > 1 or x.shape[0] != 1 or len(kernel) != len(x.shape) - 2:
        raise call.refuse("indices, or several images at a time")
    plane = x.shape[2:]
    strides, dilations, begin, out = _windows_of(call, plane, kernel)
    index = places(x)
    parts = []
    for offset in np.ndindex(*kernel):
        taken, inside = index[0], np.ones((1, *out), dtype=bool)
        for axis in range(len(plane)):
            where = np.arange(out[axis]) * strides[axis] - begin[axis] + offset[axis] * dilations[axis]
            fits = (where >= 0) & (where < plane[axis])
            inside = inside & fits.reshape([-1 if i == axis + 1 else 1 for i in range(len(plane) + 1)])
            taken = np.take(taken, where.clip(0, plane[axis] - 1), axis=axis + 1)
        parts.append(np.where(inside, taken, -1))
    stacked = np.stack(parts)
    any_place = stacked.max(axis=0)  # padding never wins: an element of the same window stands in for it
    if (any_place < 0).any():
        raise call.refuse("a window that sees nothing but padding")
    shape = (1, x.shape[1], *out)
    windows = [b.gather(x, np.where(part < 0, any_place, part).reshape(shape)) for part in stacked]
    return [_maximum(b, windows)]


@rule("Max")
def maximum(b: Builder, call: Call) -> Sequence[Tensor]:
    shape = np.broadcast_shapes(*(shape_of(item) for item in call.inputs))
    parts = [b.gather(item, np.broadcast_to(places(item), shape)) for item in call.inputs if isinstance(item, Entry)]
    found = _maximum(b, parts)
    for item in call.inputs:
        if isinstance(item, np.ndarray):
            gap = b.relu(b.combine([(found, 1.0)], -exact(item, call), shape))
            found = b.combine([(gap, 1.0)], exact(item, call), shape)
    return [found]


# -- shapes --------------------------------------------------------------------------------------------------------


def _moved(b: Builder, tensor: Tensor, move: Callable[[Any], Any]) -> Tensor:
    """A movement of elements, of a constant or of places."""
    return b.gather(tensor, np.asarray(move(places(tensor)))) if isinstance(tensor, Entry) else np.asarray(move(tensor))


def _first(call: Call) -> Tensor:
    if not call.inputs or call.inputs[0] is None:
        raise call.refuse("no input")
    return call.inputs[0]


@rule("Identity", "Dropout")
def identity(b: Builder, call: Call) -> Sequence[Tensor]:
    if call.has(2) and call.constant(2).any():
        raise call.refuse("training mode")
    return [_first(call)]


@rule("Cast")
def cast(b: Builder, call: Call) -> Sequence[Tensor]:
    from onnx.helper import tensor_dtype_to_np_dtype

    x, dtype = _first(call), np.dtype(tensor_dtype_to_np_dtype(int(call.attributes["to"])))
    if isinstance(x, Entry):
        if dtype not in (np.float32, np.float64):
            raise call.refuse(f"a cast to {dtype}")
        return [x]
    moved = x.astype(dtype)
    if not np.array_equal(moved.astype(x.dtype), x):
        raise call.refuse("a cast that rounds a constant")
    return [moved]


@rule("Constant")
def constant(b: Builder, call: Call) -> Sequence[Tensor]:
    from onnx import numpy_helper

    if "value" in call.attributes:
        return [np.asarray(numpy_helper.to_array(call.attributes["value"]))]
    for name, dtype in (("value_float", np.float32), ("value_floats", np.float32), ("value_int", np.int64), ("value_ints", np.int64)):
        if name in call.attributes:
            return [np.asarray(call.attributes[name], dtype=dtype)]
    raise call.refuse("a constant of this kind")


@rule("Shape")
def shape_op(b: Builder, call: Call) -> Sequence[Tensor]:
    if call.attributes.get("start", 0) or "end" in call.attributes:
        raise call.refuse("a part of a shape")
    return [np.asarray(shape_of(_first(call)), dtype=np.int64)]


@rule("Flatten")
def flatten(b: Builder, call: Call) -> Sequence[Tensor]:
    x = _first(call)
    axis = int(call.attributes.get("axis", 1))
    axis += len(x.shape) if axis < 0 else 0
    return [_moved(b, x, lambda value: value.reshape(math.prod(value.shape[:axis]), -1))]


@rule("Reshape")
def reshape(b: Builder, call: Call) -> Sequence[Tensor]:
    x, wanted = _first(call), call.integers(1, "shape") or []
    if not call.attributes.get("allowzero", 0):
        wanted = [x.shape[i] if extent == 0 else extent for i, extent in enumerate(wanted)]
    return [_moved(b, x, lambda value: value.reshape(wanted))]


@rule("Transpose")
def transpose(b: Builder, call: Call) -> Sequence[Tensor]:
    order = call.attributes.get("perm")
    return [_moved(b, _first(call), lambda value: value.transpose(order))]


@rule("Squeeze", "Unsqueeze")
def squeeze(b: Builder, call: Call) -> Sequence[Tensor]:
    axes = call.integers(1, "axes")
    if call.op == "Squeeze":
        return [_moved(b, _first(call), lambda value: np.squeeze(value, None if axes is None else tuple(axes)))]
    return [_moved(b, _first(call), lambda value: np.expand_dims(value, tuple(axes or ())))]


def concatenated(b: Builder, parts: Sequence[Entry], axis: int) -> Entry:
    """Entries side by side: each is spread over the result, zero elsewhere, and all are added."""
    start, spread = 0, []
    extent = sum(part.shape[axis] for part in parts)
    shape = tuple(extent if i == axis else size for i, size in enumerate(parts[0].shape))
    for part in parts:
        index = np.full(shape, -1, dtype=np.int64)
        where = tuple(slice(start, start + part.shape[axis]) if i == axis else slice(None) for i in range(len(shape)))
        index[where] = places(part)
        spread.append((b.gather(part, index), 1.0))
        start += part.shape[axis]
    return b.combine(spread, 0.0, shape)


@rule("Concat")
def concat(b: Builder, call: Call) -> Sequence[Tensor]:
    parts = [item for item in call.inputs if item is not None]
    axis = int(call.attributes["axis"]) % len(parts[0].shape)
    if all(isinstance(item, np.ndarray) for item in parts):
        return [np.concatenate(parts, axis)]  # type: ignore[arg-type]
    if not all(isinstance(item, Entry) for item in parts):
        raise call.refuse("constants beside tensors that depend on the input")
    return [concatenated(b, [item for item in parts if isinstance(item, Entry)], axis)]


@rule("Gather")
def gather(b: Builder, call: Call) -> Sequence[Tensor]:
    axis, index = int(call.attributes.get("axis", 0)), call.constant(1)
    return [_moved(b, _first(call), lambda value: np.take(value, index.astype(np.int64), axis))]


@rule("Slice")
def slice_op(b: Builder, call: Call) -> Sequence[Tensor]:
    x = _first(call)
    starts, ends = call.integers(1, "starts") or [], call.integers(2, "ends") or []
    axes = call.integers(3, "axes") or list(range(len(starts)))
    steps = call.integers(4) or [1] * len(starts)
    where = [slice(None)] * len(x.shape)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        where[axis] = slice(start, None if step < 0 and end < -x.shape[axis] else end, step)
    return [_moved(b, x, lambda value: value[tuple(where)])]


@rule("Split")
def split(b: Builder, call: Call) -> Sequence[Tensor]:
    x, axis = _first(call), int(call.attributes.get("axis", 0))
    sizes = call.integers(1, "split")
    if sizes is None:
        if x.shape[axis] % len(call.outputs):
            raise call.refuse("parts of different size")
        sizes = [x.shape[axis] // len(call.outputs)] * len(call.outputs)
    if sum(sizes) != x.shape[axis]:
        raise call.refuse("parts that do not add up")
    ends = np.cumsum([0, *sizes])
    return [
        _moved(b, x, lambda value, a=a, e=e: np.take(value, np.arange(a, e), axis))
        for a, e in zip(ends[:-1], ends[1:], strict=True)
    ]


@rule("Pad")
def pad(b: Builder, call: Call) -> Sequence[Tensor]:
    x, pads = call.entry(), call.integers(1, "pads") or []
    if call.attributes.get("mode", b"constant") != b"constant" or call.has(3) or min(pads, default=0) < 0:
        raise call.refuse("only constant padding of every axis by zero or more")
    value = float(exact(call.constant(2), call).reshape(())) if call.has(2) else float(call.attributes.get("value", 0.0))
    rank = len(x.shape)
    if len(pads) != 2 * rank:
        raise call.refuse("pads that do not fit the shape")
    widths = [(pads[i], pads[i + rank]) for i in range(rank)]
    index = np.pad(places(x), widths, constant_values=-1)
    padded = b.gather(x, index)
    return [b.combine([(padded, 1.0)], np.where(index < 0, value, 0.0), index.shape) if value else padded]


def _of_integers(call: Call, function: Callable[[Any, Any], Any]) -> np.ndarray[Any, Any]:
    values = [item for item in call.inputs if isinstance(item, np.ndarray)]
    if len(values) != 2 or any(value.dtype in FLOATS or value.dtype.kind not in "iu" for value in values):
        raise call.refuse("arithmetic on float constants")
    return np.asarray(function(*values))
