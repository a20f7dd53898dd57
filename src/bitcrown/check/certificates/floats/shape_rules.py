"""Rules of operators that only move elements, or compute shapes from constants (see
``rules``)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bitcrown.check.certificates.floats.reader import (
    Call,
    GraphTensor,
    NodeBuilder,
    NodeTensor,
    concatenated,
    exact_floats,
    flat_places,
    float_rule,
    shape_of,
)


def _moved(b: NodeBuilder, tensor: GraphTensor, move: Callable[[Any], Any]) -> GraphTensor:
    """A movement of elements, of a constant or of places."""
    return (
        b.gather(tensor, np.asarray(move(flat_places(tensor))))
        if isinstance(tensor, NodeTensor)
        else np.asarray(move(tensor))
    )


def _first(call: Call) -> GraphTensor:
    if not call.inputs or call.inputs[0] is None:
        raise call.refuse("no input")
    return call.inputs[0]


@float_rule("Identity", "Dropout")
def identity(b: NodeBuilder, call: Call) -> Sequence[GraphTensor]:
    if call.has(2) and call.constant(2).any():
        raise call.refuse("training mode")
    return [_first(call)]


@float_rule("Cast")
def cast(b: NodeBuilder, call: Call) -> Sequence[GraphTensor]:
    from onnx.helper import tensor_dtype_to_np_dtype

    x, dtype = _first(call), np.dtype(tensor_dtype_to_np_dtype(int(call.attributes["to"])))
    if isinstance(x, NodeTensor):
        if dtype not in (np.float32, np.float64):
            raise call.refuse(f"a cast to {dtype}")
        return [x]
    moved = x.astype(dtype)
    if not np.array_equal(moved.astype(x.dtype), x):
        raise call.refuse("a cast that rounds a constant")
    return [moved]


@float_rule("Constant")
def constant(b: NodeBuilder, call: Call) -> Sequence[GraphTensor]:
    from onnx import numpy_helper

    if "value" in call.attributes:
        return [np.asarray(numpy_helper.to_array(call.attributes["value"]))]
    for name, dtype in (
        ("value_float", np.float32),
        ("value_floats", np.float32),
        ("value_int", np.int64),
        ("value_ints", np.int64),
    ):
        if name in call.attributes:
            return [np.asarray(call.attributes[name], dtype=dtype)]
    raise call.refuse("a constant of this kind")


@float_rule("Shape")
def shape_op(b: NodeBuilder, call: Call) -> Sequence[GraphTensor]:
    if call.attributes.get("start", 0) or "end" in call.attributes:
        raise call.refuse("a part of a shape")
    return [np.asarray(shape_of(_first(call)), dtype=np.int64)]


@float_rule("Flatten")
def flatten(b: NodeBuilder, call: Call) -> Sequence[GraphTensor]:
    x = _first(call)
    axis = int(call.attributes.get("axis", 1))
    axis += len(x.shape) if axis < 0 else 0
    return [_moved(b, x, lambda value: value.reshape(math.prod(value.shape[:axis]), -1))]


@float_rule("Reshape")
def reshape(b: NodeBuilder, call: Call) -> Sequence[GraphTensor]:
    x, wanted = _first(call), call.integers(1, "shape") or []
    if not call.attributes.get("allowzero", 0):
        wanted = [x.shape[i] if extent == 0 else extent for i, extent in enumerate(wanted)]
    return [_moved(b, x, lambda value: value.reshape(wanted))]


@float_rule("Transpose")
def transpose(b: NodeBuilder, call: Call) -> Sequence[GraphTensor]:
    order = call.attributes.get("perm")
    return [_moved(b, _first(call), lambda value: value.transpose(order))]


@float_rule("Squeeze", "Unsqueeze")
def squeeze(b: NodeBuilder, call: Call) -> Sequence[GraphTensor]:
    axes = call.integers(1, "axes")
    if call.op == "Squeeze":
        return [
            _moved(
                b,
                _first(call),
                lambda value: np.squeeze(value, None if axes is None else tuple(axes)),
            )
        ]
    return [_moved(b, _first(call), lambda value: np.expand_dims(value, tuple(axes or ())))]


@float_rule("Concat")
def concat(b: NodeBuilder, call: Call) -> Sequence[GraphTensor]:
    parts = [item for item in call.inputs if item is not None]
    axis = int(call.attributes["axis"]) % len(parts[0].shape)
    if all(isinstance(item, np.ndarray) for item in parts):
        return [np.concatenate([np.asarray(item) for item in parts], axis)]
    if not all(isinstance(item, NodeTensor) for item in parts):
        raise call.refuse("constants beside tensors that depend on the input")
    return [concatenated(b, [item for item in parts if isinstance(item, NodeTensor)], axis)]


@float_rule("Gather")
def gather(b: NodeBuilder, call: Call) -> Sequence[GraphTensor]:
    axis, index = int(call.attributes.get("axis", 0)), call.constant(1)
    return [_moved(b, _first(call), lambda value: np.take(value, index.astype(np.int64), axis))]


@float_rule("Slice")
def slice_op(b: NodeBuilder, call: Call) -> Sequence[GraphTensor]:
    x = _first(call)
    starts, ends = call.integers(1, "starts") or [], call.integers(2, "ends") or []
    axes = call.integers(3, "axes") or list(range(len(starts)))
    steps = call.integers(4) or [1] * len(starts)
    where = [slice(None)] * len(x.shape)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        where[axis] = slice(start, None if step < 0 and end < -x.shape[axis] else end, step)
    return [_moved(b, x, lambda value: value[tuple(where)])]


@float_rule("Split")
def split(b: NodeBuilder, call: Call) -> Sequence[GraphTensor]:
    x, axis = _first(call), int(call.attributes.get("axis", 0))
    sizes = call.integers(1, "split")
    if sizes is None:
        if x.shape[axis] % len(call.outputs):
            raise call.refuse("parts of different size")
        sizes = [x.shape[axis] // len(call.outputs)] * len(call.outputs)
    if sum(sizes) != x.shape[axis]:
        raise call.refuse("parts that do not add up")
    whole = np.asarray(flat_places(x) if isinstance(x, NodeTensor) else x)
    parts = np.split(whole, np.cumsum(sizes)[:-1], axis)
    return [b.gather(x, part) if isinstance(x, NodeTensor) else part for part in parts]


@float_rule("Pad")
def pad(b: NodeBuilder, call: Call) -> Sequence[GraphTensor]:
    x, pads = call.entry(), call.integers(1, "pads") or []
    if (
        call.attributes.get("mode", "constant") != "constant"
        or call.has(3)
        or min(pads, default=0) < 0
    ):
        raise call.refuse("only constant padding of every axis by zero or more")
    value = (
        float(exact_floats(call.constant(2), call).reshape(()))
        if call.has(2)
        else float(call.attributes.get("value", 0.0))
    )
    rank = len(x.shape)
    if len(pads) != 2 * rank:
        raise call.refuse("pads that do not fit the shape")
    widths = [(pads[i], pads[i + rank]) for i in range(rank)]
    index = np.pad(flat_places(x), widths, constant_values=-1)
    padded = b.gather(x, index)
    return [
        b.combine([(padded, 1.0)], np.where(index < 0, value, 0.0), index.shape)
        if value
        else padded
    ]
