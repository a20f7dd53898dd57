"""Operators on integers: MatMulInteger, ConvInteger, QLinear ones, QGemm.

The accumulator ``sum (x - x_zero) (w - w_zero) + bias`` is an exact 32-bit integer. onnxruntime
(CPU) requantizes it as ``rint(clip(float32(acc) * m, low - zero, high - zero)) + zero`` with ``m =
float32(float32(x_scale * w_scale) / y_scale)``, ties to even. QLinearAdd is, with r_a = a_scale /
c_scale and r_b = b_scale / c_scale, ``rint(clip(fma(r_a, a, fma(r_b, b, c_zero - fma(r_a, a_zero,
r_b * b_zero)))))``, without fused operations on processors that have none. Found by fitting; every
QLinearAdd is compared with the runtime on all pairs of values.

On x86 processors without VNNI instructions onnxruntime adds pairs of uint8 * int8 products in
saturating 16 bits; the comparison at load shows it only where the inputs drawn there reach that.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bitcrown.model.lowering.builder import OnnxNode
from bitcrown.quant.formats.lattice import FLOAT32, ChainStep, Lattice, spread_over
from bitcrown.quant.formats.rule_table import NoRule, Reading, node_label, reads, type_range
from bitcrown.quant.formats.runtime import evaluated
from bitcrown.quant.formats.sums import conv_geometry, pair_step
from bitcrown.quant.network.graph import Conv, Dense, Ints, Numbers, QuantError

_INT32 = np.dtype(np.int32)


def _whole(reading: Reading, name: str, label: str) -> Lattice:
    lattice = reading.lattice(name)
    if lattice.is_float:
        raise NoRule(f"{label} takes float numbers where integers are expected")
    return reading.settled(lattice)


def _zero(reading: Reading, node: OnnxNode, position: int) -> Ints:
    return reading.constant(node, position, 0).astype(np.int64)


def _scale(reading: Reading, node: OnnxNode, position: int) -> Numbers:
    value = reading.constant(node, position)
    if value.dtype != FLOAT32 or not np.isfinite(value).all() or not (value > 0).all():
        raise NoRule(f"{node_label(node)} has a scale that is not a positive float32 number")
    return value


def _matrix(
    reading: Reading,
    x: Lattice,
    x_zero: Ints,
    weight: Numbers,
    w_zero: Ints,
    label: str,
    addend: Ints | int = 0,
) -> Lattice:
    """Exact int32 ``(x - x_zero) (weight - w_zero) + addend`` of one row x: [1, .., 1, in] and
    weight [in, out]."""
    ints = weight.astype(np.int64)
    if ints.ndim != 2 or x.shape[-1] != len(ints) or x.size != len(ints) or x_zero.size != 1:
        raise NoRule(
            f"{label} multiplies {x.shape} with {weight.shape}; one row and one matrix are "
            "supported"
        )
    ints = ints - (w_zero.reshape(()) if w_zero.size == 1 else w_zero.reshape(1, -1))
    shape = (*x.shape[:-1], ints.shape[1])
    flat = Lattice(0, shape, _INT32)
    bias = -int(x_zero.reshape(())) * ints.sum(axis=0)
    bias = bias + np.broadcast_to(addend, (1, len(bias))).reshape(-1)
    number = reading.assembly.add(
        Dense(flat.sample_shape, x.node, np.ascontiguousarray(ints.T), bias)
    )
    return flat.on(number)


def _image(
    reading: Reading,
    node: OnnxNode,
    x: Lattice,
    x_zero: Ints,
    weight: Numbers,
    w_zero: Ints,
    bias: Ints | None,
) -> Lattice:
    """Exact int32 convolution, padded with the zero point."""
    label = node_label(node)
    ints = weight.astype(np.int64)
    strides, dilations, padding, plane = conv_geometry(node, x.shape, weight.shape[2:])
    groups = int(node.attrs.get("group", 1))
    if x.shape[1] != ints.shape[1] * groups or len(ints) % groups or x_zero.size != 1:
        raise QuantError(
            f"{label}: weights {ints.shape}, {groups} groups and {x.shape[1]} channels do not fit"
        )
    ints = ints - (w_zero.reshape(()) if w_zero.size == 1 else w_zero.reshape(-1, 1, 1, 1))
    zero = int(x_zero.reshape(()))
    total = -zero * ints.sum(axis=(1, 2, 3)) + (0 if bias is None else bias)
    shape = (len(ints), *plane)
    image = (x.shape[2], x.shape[3])
    number = reading.assembly.add(
        Conv(shape, x.node, image, ints, total, strides, padding, dilations, groups, zero)
    )
    return Lattice(number, (1, *shape), _INT32)


def _requantized(
    reading: Reading, node: OnnxNode, acc: Lattice, multiplier: Numbers, zero: Numbers
) -> None:
    """``multiplier``: float32, one number or shaped to broadcast; ``zero`` in the output's type."""
    if not (np.isfinite(multiplier) & (multiplier > 0)).all():
        raise NoRule(f"{node_label(node)} has scales whose quotient float32 does not hold")
    low, high = (np.array([end], dtype=np.int64) for end in type_range(zero.dtype))
    params = (spread_over(multiplier, acc.shape), zero.astype(np.int64).reshape(1), low, high)
    step = ChainStep(f"{node.op} requantize", requantized, params, whole=True)
    reading.bind_settled(node, acc.then(step, zero.dtype))


def _quotient(x_scale: Numbers, w_scale: Numbers, y_scale: Numbers) -> Numbers:
    with np.errstate(all="ignore"):
        return np.asarray((x_scale * w_scale) / y_scale)


def requantized(
    acc: Numbers, multiplier: Numbers, zero: Numbers, low: Numbers, high: Numbers
) -> Numbers:
    ends = (low - zero).astype(np.float32), (high - zero).astype(np.float32)
    product = acc.astype(np.float32) * multiplier
    return np.asarray(np.rint(np.clip(product, *ends)).astype(np.int64) + zero)


@reads("MatMulInteger")
def matmul_integer(reading: Reading, node: OnnxNode) -> None:
    label = node_label(node)
    x = _whole(reading, node.inputs[0], label)
    result = _matrix(
        reading,
        x,
        _zero(reading, node, 2),
        reading.constant(node, 1),
        _zero(reading, node, 3),
        label,
    )
    reading.check_width(result, label)
    reading.bind(node, result)


@reads("ConvInteger")
def conv_integer(reading: Reading, node: OnnxNode) -> None:
    label = node_label(node)
    x = _whole(reading, node.inputs[0], label)
    zeros = _zero(reading, node, 2), _zero(reading, node, 3)
    result = _image(reading, node, x, zeros[0], reading.constant(node, 1), zeros[1], None)
    reading.check_width(result, label)
    reading.bind(node, result)


@reads("QLinearMatMul")
def qlinear_matmul(reading: Reading, node: OnnxNode) -> None:
    label = node_label(node)
    x = _whole(reading, node.inputs[0], label)
    zeros = _zero(reading, node, 2), _zero(reading, node, 5)
    acc = _matrix(reading, x, zeros[0], reading.constant(node, 3), zeros[1], label)
    reading.check_width(acc, label)
    x_scale, w_scale, y_scale = (_scale(reading, node, k).reshape(-1) for k in (1, 4, 6))
    _requantized(
        reading, node, acc, _quotient(x_scale, w_scale, y_scale), reading.constant(node, 7)
    )


@reads("QLinearConv")
def qlinear_conv(reading: Reading, node: OnnxNode) -> None:
    label = node_label(node)
    x = _whole(reading, node.inputs[0], label)
    bias = reading.constant(node, 8).astype(np.int64) if reading.has(node, 8) else None
    zeros = _zero(reading, node, 2), _zero(reading, node, 5)
    acc = _image(reading, node, x, zeros[0], reading.constant(node, 3), zeros[1], bias)
    reading.check_width(acc, label)
    x_scale, w_scale, y_scale = (_scale(reading, node, k).reshape(-1) for k in (1, 4, 6))
    multiplier = _quotient(x_scale, w_scale, y_scale).reshape(-1, 1, 1)
    _requantized(reading, node, acc, multiplier, reading.constant(node, 7))


@reads("com.microsoft.QGemm")
def qgemm(reading: Reading, node: OnnxNode) -> None:
    """``alpha a_s b_s (A B' + C)``: the scales are multiplied in this order, then divided by that
    of the result, where there is one; else the result is float32."""
    label = node_label(node)
    if node.attrs.get("transA", 0):
        raise NoRule(f"{label} transposes the tensor that depends on the input")
    x = _whole(reading, node.inputs[0], label)
    weight = reading.constant(node, 3)
    weight = weight.T if node.attrs.get("transB", 0) else weight
    zeros = _zero(reading, node, 2), _zero(reading, node, 5)
    addend = _zero(reading, node, 6)
    acc = _matrix(reading, x, zeros[0], weight, zeros[1], label, addend)
    reading.check_width(acc, label)
    alpha = np.float32(node.attrs.get("alpha", 1.0))
    a_scale, b_scale = (_scale(reading, node, k).reshape(-1) for k in (1, 4))
    factor: Numbers = np.asarray((alpha * a_scale) * b_scale)
    if not (factor > 0).all():
        raise NoRule(f"{label} has a factor that is not positive")
    if reading.has(node, 7):
        factor = factor / _scale(reading, node, 7).reshape(-1)
        _requantized(reading, node, acc, factor, reading.constant(node, 8, np.uint8(0)))
    else:
        params = (spread_over(factor, acc.shape),)
        reading.bind(node, acc.then(ChainStep(f"{node.op} scale", _scaled, params), FLOAT32))


def _scaled(acc: Numbers, factor: Numbers) -> Numbers:
    return np.asarray(acc.astype(np.float32) * factor)


@reads("com.microsoft.QLinearAdd")
def qlinear_add(reading: Reading, node: OnnxNode) -> None:
    label = node_label(node)
    a_scale, b_scale, c_scale = (_scale(reading, node, k).reshape(()) for k in (1, 4, 6))
    c_zero = reading.constant(node, 7, 0)
    a_zero, b_zero = (np.float32(_zero(reading, node, k).reshape(())) for k in (2, 5))
    ratios = (np.float32(a_scale / c_scale), np.float32(b_scale / c_scale))
    kind = c_zero.dtype
    fused = _is_fused(node, kind, [reading.constant(node, k) for k in (1, 2, 4, 5, 6, 7)])
    low, high = type_range(kind)
    ends = (np.array([low], np.int64), np.array([high], np.int64))
    inner = _fma if fused else _product_sum
    fixed = np.float32(c_zero.astype(np.float32).reshape(())) - inner(
        ratios[0], a_zero, ratios[1] * b_zero
    )

    def total(a: Numbers, b: Numbers) -> Numbers:
        return _add_rounded(a, b, ratios, np.float32(fixed), inner, (low, high))

    constants = [reading.is_constant(node.inputs[k]) for k in (0, 3)]
    if any(constants):
        which = int(constants[0])
        lattice = _whole(reading, node.inputs[3 * which], label)
        known = reading.constants[node.inputs[3 * (1 - which)]].astype(np.int64)
        if np.broadcast_shapes(lattice.shape, known.shape) != lattice.shape:
            raise NoRule(f"{label} repeats the tensor that depends on the input")
        params = (spread_over(known, lattice.shape), *ends)
        function = (
            (lambda q, c, lo, hi: total(c, q)) if which else (lambda q, c, lo, hi: total(q, c))
        )
        result = lattice.then(ChainStep(label, function, params, whole=True), kind)
    else:
        a, b = (_whole(reading, node.inputs[k], label) for k in (0, 3))
        if a.shape != b.shape:
            raise NoRule(
                f"{label} combines the shapes {a.shape} and {b.shape}; equal ones are supported"
            )
        ranges = [_range(reading, lattice) for lattice in (a, b)]
        table = total(ranges[0][:, None], ranges[1][None])
        weights = (float(ratios[0]), float(ratios[1]))
        number, step = pair_step(
            reading, (a.node, b.node), (ranges[0][0], ranges[1][0]), weights, table, label
        )
        result = Lattice(number, a.shape, kind, (step,))
    reading.bind_settled(node, result)


def _range(reading: Reading, lattice: Lattice) -> Ints:
    low, high = (bound[lattice.node] for bound in (reading.assembly.low, reading.assembly.high))
    return np.arange(int(low.min()), int(high.max()) + 1, dtype=np.int64)


def _fma(a: Any, b: Any, c: Any) -> Any:
    """float32 ``a * b + c`` rounded once: exact product in float64, whose sum is rounded again only
    behind bit 53."""
    return (np.float64(a) * np.asarray(b, np.float64) + np.asarray(c, np.float64)).astype(
        np.float32
    )


def _product_sum(a: Any, b: Any, c: Any) -> Any:
    return np.float32(a) * np.asarray(b, np.float32) + np.asarray(c, np.float32)


def _add_rounded(
    a: Numbers, b: Numbers, ratios: Any, fixed: Any, inner: Any, ends: tuple[int, int]
) -> Numbers:
    value = inner(ratios[0], a, inner(ratios[1], b, fixed))
    return np.asarray(np.clip(np.rint(value), *ends).astype(np.int64))


def _is_fused(node: OnnxNode, kind: np.dtype[Any], constants: list[Numbers]) -> bool:
    """Whether this processor fuses: decided by the runtime itself on all 65,536 pairs of values."""
    low, high = type_range(kind)
    values = np.arange(low, high + 1)
    a, b = (grid.reshape(-1) for grid in np.meshgrid(values, values, indexing="ij"))
    a_scale, a_zero, b_scale, b_zero, c_scale, c_zero = (c.reshape(()) for c in constants)
    inputs = [a.astype(kind), a_scale, a_zero, b.astype(kind), b_scale, b_zero, c_scale, c_zero]
    found = evaluated("QLinearAdd", inputs, {}, domain="com.microsoft").astype(np.int64)
    ratios = (np.float32(a_scale / c_scale), np.float32(b_scale / c_scale))
    zeros = np.float32(a_zero.astype(np.float32)), np.float32(b_zero.astype(np.float32))
    for fused in (True, False):
        inner = _fma if fused else _product_sum
        fixed = np.float32(c_zero.astype(np.float32)) - inner(
            ratios[0], zeros[0], ratios[1] * zeros[1]
        )
        if (_add_rounded(a, b, ratios, np.float32(fixed), inner, (low, high)) == found).all():
            return fused
    raise NoRule(
        f"{node_label(node)} is computed by this onnxruntime in a way that is not known here"
    )


@reads("DynamicQuantizeLinear")
def dynamic_quantize(reading: Reading, node: OnnxNode) -> None:
    raise NoRule(
        f"{node_label(node)} is not supported, because its scale depends on the input; quantize "
        "statically"
    )
