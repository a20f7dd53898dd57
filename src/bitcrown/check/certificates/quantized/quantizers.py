"""The checker's rules for operators that make integers of real numbers, and back.

They are QuantizeLinear and DequantizeLinear, and Quant and BipolarQuant of the QONNX specification.
Each is a chain of steps that are correctly rounded in float32, so monotone. Of a constant that was
dequantized, the integers and scales behind it are kept (``FileReading.grids``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx

from bitcrown.check.certificates.documents import Reject, need
from bitcrown.check.certificates.quantized.chain import (
    BINARY32,
    ChainLink,
    NumpyArray,
    WrappedNumber,
    as_parameter,
)
from bitcrown.check.certificates.quantized.elementwise import stepped
from bitcrown.check.certificates.quantized.reading import (
    FileReading,
    Operator,
    integer_range,
    quantized_rule,
)
from bitcrown.check.qonnx import QONNX

_EIGHT_BITS = 255
"""Kernels of fewer bits convert to 32 before they saturate."""
QONNX_ROUNDINGS: dict[str, Callable[[Any], Any]] = {
    "ROUND": np.rint,
    "HALF_EVEN": np.rint,
    "CEIL": np.ceil,
    "FLOOR": np.floor,
    "UP": lambda v: np.sign(v) * np.ceil(np.abs(v)),
    "DOWN": np.trunc,
    "ROUND_TO_ZERO": np.trunc,
    "HALF_UP": lambda v: np.sign(v) * np.floor(np.abs(v) + np.float32(0.5)),
    "HALF_DOWN": lambda v: np.sign(v) * np.ceil(np.abs(v) - np.float32(0.5)),
}


def parameters(
    reading: FileReading, node: Operator, shape: tuple[int, ...], default: Any
) -> tuple[NumpyArray, NumpyArray, Any]:
    """Scale (float32) and zero point (int64) of a quantizer, shaped to broadcast over ``shape``,
    and its type."""
    scale = reading.constant(node, 1)
    positive = (
        scale.dtype == BINARY32 and bool(np.isfinite(scale).all()) and bool((scale > 0).all())
    )
    need(
        positive and not node.attrs.get("block_size", 0),
        f"{node} has scales that are not positive float32 numbers",
    )
    target = int(node.attrs.get("output_dtype", 0))
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(target)) if target else np.dtype(default)
    zero = reading.constant(node, 2) if node.has(2) else np.zeros(scale.shape, dtype)
    return _along(scale, node, shape), _along(zero.astype(np.int64), node, shape), zero.dtype


def _along(value: NumpyArray, node: Operator, shape: tuple[int, ...]) -> NumpyArray:
    if value.size == 1:
        return value.reshape(())
    axis = int(node.attrs.get("axis", 1))
    need(
        value.ndim == 1 and -len(shape) <= axis < len(shape) and shape[axis] == len(value),
        f"{node} has bad scales",
    )
    return value.reshape([-1 if k == axis % len(shape) else 1 for k in range(len(shape))])


@quantized_rule("QuantizeLinear")
def quantize(reading: FileReading, node: Operator) -> None:
    """``clip(rint(x / scale) + zero)``."""
    tensors = reading.given(node.inputs[0])
    need(tensors[0].dtype == BINARY32, f"{node} takes {tensors[0].dtype}")
    scale, zero, dtype = parameters(reading, node, tensors[0].shape, np.uint8)
    low, high = integer_range(dtype)
    farthest = 2.0**30 if high - low < _EIGHT_BITS else np.inf

    def levels(values: NumpyArray, s: NumpyArray, z: NumpyArray) -> NumpyArray:
        if np.abs(values / s).max(initial=0.0) > farthest:
            raise WrappedNumber(f"{node} wraps around 2^31 steps away from zero")
        return np.asarray(np.rint(np.clip(values / s, low - z, high - z)).astype(np.int64) + z)

    params = as_parameter(scale, tensors[0].shape), as_parameter(zero, tensors[0].shape)
    stepped(
        reading, node, tensors, ChainLink(f"quantize {dtype}", levels, params, whole=True), dtype
    )


@quantized_rule("DequantizeLinear")
def dequantize(reading: FileReading, node: Operator) -> None:
    """``float32(q - zero) * scale``."""
    tensors = reading.given(node.inputs[0])
    scale, zero, _ = parameters(reading, node, tensors[0].shape, tensors[0].dtype)
    params = as_parameter(scale, tensors[0].shape), as_parameter(zero, tensors[0].shape)
    step = ChainLink("dequantize", lambda q, s, z: (q - z).astype(np.float32) * s, params)
    stepped(reading, node, tensors, step, BINARY32)


def quant_settings(
    reading: FileReading, node: Operator
) -> tuple[NumpyArray, int, tuple[int, int], str]:
    """Scale, zero point, range and rounding mode of a Quant node."""
    scale = reading.constant(node, 1).astype(BINARY32)
    zero, bits = (reading.constant(node, k).reshape(-1) for k in (2, 3))
    mode = node.attrs.get("rounding_mode", "ROUND").upper()
    need(
        bool(np.isfinite(scale).all() and (scale > 0).all()),
        f"{node} has a scale that is not positive",
    )
    one_each = (
        zero.size == 1
        and bits.size == 1
        and float(bits[0]) in range(1, 17)
        and float(zero[0]).is_integer()
    )
    need(
        one_each and mode in QONNX_ROUNDINGS,
        f"{node} has a zero point, bits or a rounding that are not known here",
    )
    b, narrow = int(bits[0]), int(bool(node.attrs.get("narrow", 0)))
    ends = (
        (-(2 ** (b - 1)) + narrow, 2 ** (b - 1) - 1)
        if node.attrs.get("signed", 1)
        else (0, 2**b - 1 - narrow)
    )
    return scale, int(zero[0]), ends, mode


def rounded_levels(
    values: NumpyArray, scale: NumpyArray, zero: int, ends: tuple[int, int], mode: str
) -> NumpyArray:
    """``round(clip(x / scale + zero))``."""
    with np.errstate(all="ignore"):
        clipped = np.clip(
            values / scale + np.float32(zero), np.float32(ends[0]), np.float32(ends[1])
        )
    if np.isnan(clipped).any():
        raise Reject("a value to be quantized is not a number")
    return np.asarray(QONNX_ROUNDINGS[mode](clipped).astype(np.int64))


@quantized_rule(*(f"{domain}.Quant" for domain in QONNX))
def quant(reading: FileReading, node: Operator) -> None:
    scale, zero, ends, mode = quant_settings(reading, node)
    if node.inputs[0] in reading.constants:
        value = reading.constants[node.inputs[0]].astype(BINARY32)
        keep_grid(reading, node, rounded_levels(value, scale, zero, ends, mode) - zero, scale)
        return
    tensors = reading.given(node.inputs[0])
    need(tensors[0].dtype == BINARY32, f"{node} takes {tensors[0].dtype}")
    s = as_parameter(scale, tensors[0].shape)
    rounded = ChainLink(
        f"Quant {mode} {ends} {zero}",
        lambda v, c: rounded_levels(v, c, zero, ends, mode),
        (s,),
        whole=True,
    )
    back = ChainLink(
        "dequantize", lambda q, c, z: (q - z).astype(np.float32) * c, (s, np.array([zero]))
    )
    reading.bind(node, [tensor.then(rounded).then(back) for tensor in tensors])


@quantized_rule(*(f"{domain}.BipolarQuant" for domain in QONNX))
def bipolar(reading: FileReading, node: Operator) -> None:
    """``scale`` for x >= 0, ``-scale`` below."""
    scale = reading.constant(node, 1).astype(BINARY32)
    need(
        bool(np.isfinite(scale).all() and (scale > 0).all()),
        f"{node} has a scale that is not positive",
    )
    if node.inputs[0] in reading.constants:
        ints = np.where(reading.constants[node.inputs[0]] >= 0, 1, -1).astype(np.int64)
        keep_grid(reading, node, ints, scale)
        return
    tensors = reading.given(node.inputs[0])
    need(tensors[0].dtype == BINARY32, f"{node} takes {tensors[0].dtype}")
    is_positive = ChainLink("is not negative", _is_not_negative, whole=True)
    back = ChainLink(
        "sign",
        lambda q, c: (2 * q - 1).astype(np.float32) * c,
        (as_parameter(scale, tensors[0].shape),),
    )
    reading.bind(node, [tensor.then(is_positive).then(back) for tensor in tensors])


def _is_not_negative(values: NumpyArray) -> NumpyArray:
    need(not bool(np.isnan(values).any()), "a value to be quantized is not a number")
    return np.asarray((values >= 0).astype(np.int64))


def keep_grid(reading: FileReading, node: Operator, ints: NumpyArray, scale: NumpyArray) -> None:
    """A constant that was dequantized: its values, and the integers and scales behind them."""
    reading.constants[node.outputs[0]] = ints.astype(np.float32) * scale.astype(BINARY32)
    reading.grids[node.outputs[0]] = ints, np.broadcast_to(scale.astype(np.float64), ints.shape)
