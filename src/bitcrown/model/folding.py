"""Constant folding: nodes whose inputs are all known are computed while reading.

Shape arithmetic has short numpy rows here, in the types of the file; rows that can make a large
tensor from a small file ask first. Any other operator on constants is run by onnxruntime, on a
model of that one node (``one_node``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx

from bitcrown.errors import ModelError, UnsupportedError
from bitcrown.model.lowering.builder import LARGEST, LOWERINGS, OnnxNode
from bitcrown.model.one_node import has_schema, run_alone

_Array = np.ndarray[Any, Any]
_Row = Callable[[OnnxNode, Sequence[_Array]], _Array]


def _bounded(node: OnnxNode, shape: Sequence[int]) -> tuple[int, ...]:
    extents = tuple(int(extent) for extent in shape)
    if min(extents, default=0) < 0 or math.prod(extents) > LARGEST:
        raise ModelError(f"node {node.name!r} ({node.op}) asks for a constant of shape {extents}")
    return extents


def _cast(node: OnnxNode, values: Sequence[_Array]) -> _Array:
    return values[0].astype(onnx.helper.tensor_dtype_to_np_dtype(int(node.attrs["to"])))


def _filled(node: OnnxNode, values: Sequence[_Array]) -> _Array:
    value = node.attrs.get("value", np.zeros(1, dtype=np.float32))
    return np.full(_bounded(node, values[0].reshape(-1).tolist()), np.asarray(value).reshape(-1)[0])


def _axes(node: OnnxNode, values: Sequence[_Array]) -> tuple[int, ...] | None:
    """Axes given as an attribute or as the second input."""
    if "axes" in node.attrs:
        return tuple(int(axis) for axis in node.attrs["axes"])
    return tuple(int(axis) for axis in values[1].reshape(-1)) if len(values) > 1 else None


def _unsqueeze(node: OnnxNode, values: Sequence[_Array]) -> _Array:
    return np.expand_dims(values[0], _axes(node, values) or ())


def _gather(node: OnnxNode, values: Sequence[_Array]) -> _Array:
    axis, indices = int(node.attrs.get("axis", 0)), values[1].astype(np.int64)
    _bounded(node, (*indices.shape, *values[0].shape))
    return np.take(values[0], indices, axis=axis)


def _divide(node: OnnxNode, values: Sequence[_Array]) -> _Array:
    """Integers divide towards zero in ONNX."""
    if not np.issubdtype(values[0].dtype, np.integer):
        return np.asarray(values[0] / values[1])
    if not values[1].all():
        raise ModelError(f"node {node.name!r} divides an integer by zero")
    quotient = np.abs(values[0]) // np.abs(values[1])
    return np.asarray(quotient * np.sign(values[0]) * np.sign(values[1])).astype(values[0].dtype)


def _reshape(node: OnnxNode, values: Sequence[_Array]) -> _Array:
    target = values[1].reshape(-1).tolist()
    if not node.attrs.get("allowzero", 0):
        target = [values[0].shape[i] if extent == 0 else extent for i, extent in enumerate(target)]
    return values[0].reshape(target)


def _expand(node: OnnxNode, values: Sequence[_Array]) -> _Array:
    shape = np.broadcast_shapes(
        values[0].shape, tuple(int(extent) for extent in values[1].reshape(-1))
    )
    return np.broadcast_to(values[0], _bounded(node, shape))


def _tile(node: OnnxNode, values: Sequence[_Array]) -> _Array:
    _bounded(node, (values[1].astype(np.float64) * np.asarray(values[0].shape)).tolist())
    return np.tile(values[0], values[1].astype(np.int64))


def _range(node: OnnxNode, values: Sequence[_Array]) -> _Array:
    start, limit, step = (value.reshape(()).item() for value in values)
    if step == 0:
        raise ModelError(f"node {node.name!r} makes a range with step zero")
    _bounded(node, (max(0, math.ceil((limit - start) / step)),))
    return np.arange(start, limit, step, dtype=values[0].dtype)


def _slice(node: OnnxNode, values: Sequence[_Array]) -> _Array:
    given = zip(("starts", "ends", "axes", "steps"), node.inputs[1:], strict=False)
    remaining = iter(values[1:])  # omitted operands have no name and no value
    parts = {key: next(remaining).reshape(-1).tolist() for key, name in given if name}
    parts = (
        {key: list(value) for key, value in node.attrs.items()} if "starts" in node.attrs else parts
    )
    starts, ends = parts["starts"], parts["ends"]
    axes, steps = parts.get("axes", range(len(starts))), parts.get("steps", [1] * len(starts))
    cut = [slice(None)] * values[0].ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if step < 0:  # ONNX clamps the start into the axis
            start, end = (
                max(start, -values[0].shape[axis]),
                None if end < -values[0].shape[axis] else end,
            )
        cut[axis] = slice(start, end, step)
    return values[0][tuple(cut)]


def _reducer(function: Callable[..., Any]) -> _Row:
    def row(node: OnnxNode, values: Sequence[_Array]) -> _Array:
        axes = _axes(node, values)
        if not axes:  # none given means all of them, unless the node says otherwise
            axes = () if node.attrs.get("noop_with_empty_axes", 0) == 1 else None
        return np.asarray(
            function(values[0], axis=axes, keepdims=node.attrs.get("keepdims", 1) == 1)
        )

    return row


def _elementwise(function: Callable[..., Any]) -> _Row:
    return lambda node, values: np.asarray(function(*values))


def _quantization(node: OnnxNode, values: Sequence[_Array]) -> tuple[_Array, _Array]:
    """Scale and zero point of a node, laid along its axis."""
    kind = int(node.attrs.get("output_dtype", 0)) or onnx.TensorProto.UINT8
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)
    scale, zero = values[1], values[2] if len(values) > 2 else np.zeros((), dtype)
    size = int(node.attrs.get("block_size", 0))
    if size > 0:
        axis = int(node.attrs.get("axis", 1))
        length = values[0].shape[axis]
        shape = list(values[0].shape)
        shape[axis] = -(-length // size)
        if list(scale.shape) != shape or (zero.ndim and zero.shape != scale.shape):
            raise ModelError(f"node {node.name!r} has scales of shape {scale.shape} for its blocks")
        first = np.arange(length) // size
        scale = np.take(scale, first, axis)
        zero = np.take(zero, first, axis) if zero.ndim else zero
    elif scale.size > 1:
        shape = [1] * values[0].ndim
        shape[int(node.attrs.get("axis", 1))] = -1
        scale, zero = scale.reshape(shape), zero.reshape(shape) if zero.size > 1 else zero
    return scale, zero


def _dequantize(node: OnnxNode, values: Sequence[_Array]) -> _Array:
    scale, zero = _quantization(node, values)
    return np.asarray(
        (values[0].astype(np.int64) - zero.astype(np.int64)).astype(np.float32) * scale
    )


def _quantize(node: OnnxNode, values: Sequence[_Array]) -> _Array:
    scale, zero = _quantization(node, values)
    if zero.dtype.name not in ("int8", "uint8", "int16", "uint16"):
        raise UnsupportedError(f"node {node.name!r} quantizes a constant to {zero.dtype.name}")
    ends = np.iinfo(zero.dtype)
    steps = np.rint(values[0].astype(np.float32) / scale.astype(np.float32)).astype(np.float64)
    return np.clip(steps + zero.astype(np.float64), ends.min, ends.max).astype(zero.dtype)


FOLDING_RULES: dict[str, _Row] = {
    "Identity": lambda node, v: v[0],
    "Cast": _cast,
    "ConstantOfShape": _filled,
    "Unsqueeze": _unsqueeze,
    "Squeeze": lambda node, v: np.squeeze(v[0], _axes(node, v)),
    "Gather": _gather,
    "Reshape": _reshape,
    "Expand": _expand,
    "Tile": _tile,
    "Range": _range,
    "Slice": _slice,
    "Div": _divide,
    **dict.fromkeys(("DequantizeLinear", "com.microsoft.DequantizeLinear"), _dequantize),
    **dict.fromkeys(("QuantizeLinear", "com.microsoft.QuantizeLinear"), _quantize),
    "Concat": lambda node, v: np.concatenate(v, axis=int(node.attrs["axis"])),
    "Shape": lambda node, v: np.array(
        v[0].shape[node.attrs.get("start") : node.attrs.get("end")], dtype=np.int64
    ),
    "Size": lambda node, v: np.array(v[0].size, dtype=np.int64),
    "Transpose": lambda node, v: np.transpose(v[0], node.attrs.get("perm")),
    "NonZero": lambda node, v: np.array(np.nonzero(v[0]), dtype=np.int64),
    "ReduceMax": _reducer(np.max),
    "ReduceMin": _reducer(np.min),
}
_ELEMENTWISE: dict[str, Callable[..., Any]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Neg": np.negative,
    "Abs": np.abs,
    "Sqrt": np.sqrt,
    "Floor": np.floor,
    "Ceil": np.ceil,
    "Equal": np.equal,
    "Less": np.less,
    "LessOrEqual": np.less_equal,
    "Greater": np.greater,
    "GreaterOrEqual": np.greater_equal,
    "Not": np.logical_not,
    "And": np.logical_and,
    "Or": np.logical_or,
    "Where": np.where,
}
FOLDING_RULES |= {name: _elementwise(function) for name, function in _ELEMENTWISE.items()}


def constant_value(node: OnnxNode) -> _Array:
    """Value of an ONNX ``Constant`` node."""
    for key in ("value", "value_float", "value_int", "value_floats", "value_ints"):
        if key in node.attrs:
            dtype = {"value_float": np.float32, "value_floats": np.float32}.get(key)
            value = node.attrs[key]
            return np.asarray(value) if dtype is None else np.asarray(value, dtype=dtype)
    raise UnsupportedError(f"node {node.name!r}: a Constant that is neither a tensor nor numbers")


def can_fold(op: str) -> bool:
    """Whether ``op`` on constants may have a value: onnxruntime is asked where no row is here."""
    return op in FOLDING_RULES or op in LOWERINGS or has_schema(op)


def fold(node: OnnxNode, constants: dict[str, _Array]) -> list[_Array]:
    """Outputs of a node on constant inputs. Raises ``UnsupportedError`` or ``ModelError``."""
    values = [constants[name] for name in node.inputs if name]
    if node.op in FOLDING_RULES:
        value = FOLDING_RULES[node.op](node, values)
        _bounded(node, value.shape)
        return [value]
    return run_alone(node, constants)
