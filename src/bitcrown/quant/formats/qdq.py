"""QuantizeLinear and DequantizeLinear, per tensor and per axis, of 2 to 16 bits, also those of
onnxruntime's own domain, which tools write for types that the standard lacks in old opsets.

QuantizeLinear is ``clip(rint(x / scale) + zero)``: one float32 division, ties to even, saturation.
DequantizeLinear is ``float32(q - zero) * scale``, one float32 product. Both were compared with
onnxruntime bit for bit, and are again for every file when it is read.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from bitcrown.model.lowering.builder import OnnxNode
from bitcrown.quant.formats.lattice import (
    FLOAT32,
    ChainStep,
    dequantize_step,
    dequantized,
    spread_over,
)
from bitcrown.quant.formats.rule_table import Grid, NoRule, Reading, node_label, reads, type_range
from bitcrown.quant.network.entry import Wraps
from bitcrown.quant.network.graph import Numbers, QuantError

_EIGHT_BITS = 255
_FARTHEST = 2.0**30
"""Quantizers of fewer bits convert to 32 before they saturate: from 2^31 on they wrap around."""


def quantized_levels(
    values: Numbers, scale: Numbers, zero: Numbers, low: Numbers, high: Numbers
) -> Numbers:
    """``clip(rint(values / scale) + zero, low, high)`` in float32; the clip before rounding keeps
    infinities out."""
    with np.errstate(all="ignore"):
        quotient = values / scale
    if np.isnan(quotient).any():
        raise QuantError("a value to be quantized is not a number")
    if (high - low).max() < _EIGHT_BITS and np.abs(quotient).max(initial=0.0) >= _FARTHEST:
        raise Wraps("a quantizer of less than eight bits wraps around 2^31 steps away from zero")
    return np.asarray(np.rint(np.clip(quotient, low - zero, high - zero)).astype(np.int64) + zero)


def _quantize_step(
    scale: Numbers, zero: Numbers, dtype: np.dtype[Any], name: str = "QuantizeLinear"
) -> ChainStep:
    low, high = (np.array([end], dtype=np.int64) for end in type_range(dtype))
    return ChainStep(name, quantized_levels, (scale, zero, low, high), whole=True)


def _along_axis(
    value: Numbers, node: OnnxNode, shape: tuple[int, ...], default_axis: int = 1
) -> Numbers:
    """A scale or zero point, one number or one for every index of an axis, shaped to broadcast."""
    if value.size == 1:
        return value.reshape(())
    axis = int(node.attrs.get("axis", default_axis)) % max(1, len(shape))
    if value.ndim != 1 or not shape or shape[axis] != value.size:
        raise NoRule(
            f"{node_label(node)} has a scale of shape {value.shape} for a tensor of {shape}"
        )
    return value.reshape([-1 if k == axis else 1 for k in range(len(shape))])


def _parameters(
    reading: Reading, node: OnnxNode, shape: tuple[int, ...], default: Any
) -> tuple[Numbers, Numbers, Any]:
    """Scale (float32) and zero point (int64), shaped to broadcast, and the integer type."""
    scale = reading.constant(node, 1)
    if scale.dtype != FLOAT32 or not np.isfinite(scale).all() or not (scale > 0).all():
        raise NoRule(f"{node_label(node)} has a scale that is not a positive float32 number")
    if node.attrs.get("block_size", 0):
        raise NoRule(
            f"{node_label(node)} quantizes in blocks; one scale per tensor or axis is supported"
        )
    if reading.has(node, 2):
        zero = reading.constant(node, 2)
        dtype = zero.dtype
    else:
        target = int(node.attrs.get("output_dtype", 0))
        dtype = (
            np.dtype(onnx.helper.tensor_dtype_to_np_dtype(target)) if target else np.dtype(default)
        )
        zero = np.zeros(scale.shape, dtype=dtype)
    type_range(dtype)
    return _along_axis(scale, node, shape), _along_axis(zero.astype(np.int64), node, shape), dtype


@reads("QuantizeLinear", "com.microsoft.QuantizeLinear")
def quantize_linear(reading: Reading, node: OnnxNode) -> None:
    name = node.inputs[0]
    if reading.is_constant(name):
        value = reading.constants[name]
        scale, zero, dtype = _parameters(reading, node, value.shape, np.uint8)
        if value.dtype != FLOAT32:
            raise NoRule(f"QuantizeLinear {node.name!r} of {value.dtype}; float32 is supported")
        low, high = (np.array(end) for end in type_range(dtype))
        reading.constants[node.outputs[0]] = quantized_levels(value, scale, zero, low, high).astype(
            dtype
        )
        return
    lattice = reading.lattice(name)
    if not lattice.is_float:
        raise NoRule(f"QuantizeLinear {node.name!r} of {lattice.dtype}; float32 is supported")
    scale, zero, dtype = _parameters(reading, node, lattice.shape, np.uint8)
    step = _quantize_step(
        spread_over(scale, lattice.shape), spread_over(zero, lattice.shape), dtype
    )
    reading.bind_settled(node, lattice.then(step, dtype))


@reads("DequantizeLinear", "com.microsoft.DequantizeLinear")
def dequantize_linear(reading: Reading, node: OnnxNode) -> None:
    name = node.inputs[0]
    if reading.is_constant(name):
        value = reading.constants[name]
        scale, zero, _ = _parameters(reading, node, value.shape, value.dtype)
        type_range(value.dtype)
        ints = value.astype(np.int64)
        known = dequantized(ints, scale, zero, np.array(1))
        reading.constants[node.outputs[0]] = known
        reading.grids[node.outputs[0]] = Grid(
            ints - zero, np.broadcast_to(scale.astype(np.float64), value.shape)
        )
        return
    lattice = reading.settled(reading.lattice(name))
    scale, zero, _ = _parameters(reading, node, lattice.shape, lattice.dtype)
    step = dequantize_step(spread_over(scale, lattice.shape), spread_over(zero, lattice.shape))
    reading.bind(node, lattice.then(step, FLOAT32))
