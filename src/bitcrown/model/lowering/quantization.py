"""Quantized operators as real functions with steps, for networks that are not integers throughout.

``QuantizeLinear`` is ``clip(rint(x / s), least - z, most - z) + z``: an affine map, the staircase
``Round``, a ``Clip``. ``DequantizeLinear`` is affine. An operator on integers
(``QLinearConv``, ``QGemm`` and their like) is the operator on the numbers that the integers stand
for, between the two; sums of integers are exact, so only what follows them rounds.

onnxruntime computes ``x / s`` in float32, and a value near an edge may fall to either side of it: a
network with quantizers is therefore always read with roundings (``model.roundings``), so that every
value that the runtime may round is inside the enclosure of what enters ``Round``. A network whose
tensors are integers from end to end is decided exactly elsewhere (``quant``); this reading serves
what that one refuses.

``QLinearSoftmax`` has no rule: its kernel divides whole numbers, truncates the inverse of the scale
and wraps around where the quotient leaves the type, far from the softmax of what it reads.
"""

from __future__ import annotations

import math

import numpy as np
import onnx

from bitcrown.errors import ModelError, UnsupportedError
from bitcrown.model.lowering.arithmetic import product
from bitcrown.model.lowering.builder import Builder, OnnxNode, lowers
from bitcrown.model.lowering.pooling import averaged_windows
from bitcrown.model.lowering.reduction import mean, reduction_axes
from bitcrown.model.lowering.weights import convolved, multiplied

_CONTRIB = "com.microsoft."
_EIGHT_BITS = 255
_LEAST = 2.0**-120
_WIDEST = 1 << 31
"""int32 sums wrap from here on."""
QUANTIZERS = {
    *("QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul"),
    *(
        _CONTRIB + name
        for name in (
            *("QuantizeLinear", "DequantizeLinear", "QGemm", "QLinearAdd", "QLinearMul"),
            *("QLinearSigmoid", "QLinearLeakyRelu", "QLinearGlobalAveragePool", "QLinearConcat"),
            *("QLinearReduceMean", "QLinearAveragePool", "QLinearWhere"),
        )
    ),
}
Operand = str | np.ndarray


def _range(node: OnnxNode, zero: np.ndarray) -> tuple[int, int]:
    """Least and greatest integer of the type of a zero point."""
    name = zero.dtype.name
    if name in ("int4", "uint4"):
        return (-8, 7) if name == "int4" else (0, 15)
    if zero.dtype.kind not in "iu":
        raise UnsupportedError(f"node {node.name!r} quantizes to type {name}")
    info = np.iinfo(zero.dtype)
    return int(info.min), int(info.max)


def _parameter(
    b: Builder, node: OnnxNode, index: int, default: np.ndarray | None = None
) -> np.ndarray:
    """A scale or zero point, which must be known."""
    if index >= len(node.inputs) or not node.inputs[index]:
        if default is None:
            raise ModelError(f"node {node.name!r} ({node.op}) lacks its input {index}")
        return default
    return b.constant(node.inputs[index], "a scale or zero point")


def _output_type(node: OnnxNode) -> np.dtype:
    """The type that a QuantizeLinear without a zero point asks for (opset 21)."""
    asked = int(node.attrs.get("output_dtype", 0))
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(asked) if asked else np.uint8)


def wraps_from(b: Builder, node: OnnxNode) -> float:
    """The number of steps from which on a QuantizeLinear may wrap around: kernels of less than
    eight bits convert to 32 before they add the zero point and saturate."""
    least, most = _range(node, _parameter(b, node, 2, np.zeros((), _output_type(node))))
    return 2.0**30 if most - least < _EIGHT_BITS else math.inf


def _spread(node: OnnxNode, value: np.ndarray, rank: int, axis: int) -> np.ndarray:
    """A parameter per tensor as it is, one per entry of ``axis`` laid along it, in float64."""
    value = value.astype(np.float64)
    if value.size == 1:
        return value.reshape(())
    if value.ndim != 1 or node.attrs.get("block_size", 0):
        raise UnsupportedError(f"node {node.name!r} is quantized in blocks")
    return value.reshape(-1, *([1] * (rank - 1 - axis)))


def _rounded(b: Builder, x: str, zero: np.ndarray, least: int, most: int) -> str:
    """``clip(rint(x) + z, least, most)`` of a node that is already divided by its scale."""
    step = b.emit("Round", (x,))
    low, high = least - zero, most - zero
    if zero.size == 1:
        cut = b.emit("Clip", (step,), {"min": float(low), "max": float(high)})
    else:  # ends of each channel: max(least - z, min(x, most - z))
        shape = np.broadcast_shapes(b.shape(x), zero.shape)
        ends = [b.known(np.broadcast_to(end, shape).copy()) for end in (low, high)]
        cut = b.maximum(b.minimum(step, ends[1]), ends[0])
    return b.scaled(cut, None, zero)


def _quantized(
    b: Builder, x: str, scale: np.ndarray, zero: np.ndarray, ends: tuple[int, int]
) -> str:
    if not (scale > 0).all():
        raise UnsupportedError(f"node {b.source!r} quantizes with a scale that is not positive")
    return _rounded(b, b.scaled(x, 1.0 / scale, None), zero, *ends)


def _real(b: Builder, tensor: str, scale: np.ndarray, zero: np.ndarray) -> Operand:
    """The numbers ``(q - z) s`` that a tensor of integers stands for."""
    if b.is_constant(tensor):
        return np.asarray((b.constants[tensor].astype(np.float64) - zero) * scale)
    return b.scaled(b.scaled(b.node_of(tensor), None, -zero), scale, None)


def _centred(b: Builder, tensor: str, zero: np.ndarray) -> Operand:
    """``q - z``, exact."""
    if b.is_constant(tensor):
        return np.asarray(b.constants[tensor].astype(np.float64) - zero)
    return b.scaled(b.node_of(tensor), None, -zero)


@lowers("QuantizeLinear", _CONTRIB + "QuantizeLinear")
def quantize(b: Builder, node: OnnxNode) -> None:
    x = b.node_of(node.inputs[0])
    rank = len(b.shape(x))
    axis = b.axis(int(node.attrs.get("axis", 1)), rank) if rank > 1 else 0
    scale = _parameter(b, node, 1)
    zero = _parameter(b, node, 2, np.zeros((), _output_type(node)))
    b.bind(
        node,
        _quantized(
            b,
            x,
            _spread(node, scale, rank, axis),
            _spread(node, zero, rank, axis),
            _range(node, zero),
        ),
    )


@lowers("DequantizeLinear", _CONTRIB + "DequantizeLinear")
def dequantize(b: Builder, node: OnnxNode) -> None:
    x = b.node_of(node.inputs[0])
    rank = len(b.shape(x))
    axis = b.axis(int(node.attrs.get("axis", 1)), rank) if rank > 1 else 0
    scale = _spread(node, _parameter(b, node, 1), rank, axis)
    zero = _spread(node, _parameter(b, node, 2, np.zeros((), np.uint8)), rank, axis)
    value = _real(b, node.inputs[0], scale, zero)
    assert isinstance(value, str)
    b.bind(node, value)


def _check_sums(node: OnnxNode, weight: np.ndarray, axes: tuple[int, ...]) -> None:
    """Integers of eight bits lie at most 255 from their zero point; their sums must fit 32 bits."""
    if 255 * np.abs(weight).sum(axis=axes).max(initial=0.0) >= _WIDEST:
        raise UnsupportedError(f"node {node.name!r}: sums of {node.op} may not fit into 32 bits")


def _combined(
    node: OnnxNode, one: np.ndarray, other: np.ndarray, result: np.ndarray | float = 1.0
) -> np.ndarray:
    """``one other / result`` of scales, in float64. Raises ``UnsupportedError`` where float32 does
    not hold what is met on the way: kernels combine scales in it before they apply them."""
    product = one.astype(np.float64) * other.astype(np.float64)
    found = product / np.asarray(result, dtype=np.float64)
    sizes = np.abs(np.stack(np.broadcast_arrays(one, product, found)))
    if not ((sizes > _LEAST) & (sizes < 1 / _LEAST)).all():
        raise UnsupportedError(f"node {node.name!r}: float32 does not hold its scales combined")
    return np.asarray(found)


@lowers("QLinearConv")
def qlinear_conv(b: Builder, node: OnnxNode) -> None:
    """Inputs ``x, s, z, w, s, z, y's s, z``, bias in the unit of the sums."""
    x_scale, x_zero, w_scale, w_zero, y_scale, y_zero = (
        _parameter(b, node, k) for k in (1, 2, 4, 5, 6, 7)
    )
    given = b.constant(node.inputs[3], "the weight")
    out = (-1, *([1] * (given.ndim - 1)))
    weight = given.astype(np.float64) - w_zero.astype(np.float64).reshape(
        out if w_zero.size > 1 else ()
    )
    _check_sums(node, weight, tuple(range(1, weight.ndim)))
    bias = None
    if len(node.inputs) > 8 and node.inputs[8]:
        bias = b.constant(node.inputs[8], "the bias").astype(np.float64)
    centred = _centred(b, node.inputs[0], x_zero.astype(np.float64).reshape(()))
    assert isinstance(centred, str)
    convolved(b, node, centred, weight, bias)
    sums = b.tensors.pop(node.outputs[0])
    factor = _combined(node, x_scale, w_scale, y_scale)
    factor = (
        factor.reshape(-1, *([1] * (weight.ndim - 2))) if factor.size > 1 else factor.reshape(())
    )
    zero = y_zero.astype(np.float64).reshape(())
    b.bind(node, _rounded(b, b.scaled(sums, factor, None), zero, *_range(node, y_zero)))


@lowers("QLinearMatMul")
def qlinear_matmul(b: Builder, node: OnnxNode) -> None:
    scales = [_parameter(b, node, k) for k in (1, 4, 6)]
    zeros = [_parameter(b, node, k) for k in (2, 5, 7)]
    left = _centred(b, node.inputs[0], zeros[0].astype(np.float64))
    right = _centred(b, node.inputs[3], zeros[1].astype(np.float64))
    if isinstance(right, np.ndarray):
        _check_sums(node, right, (-2,) if right.ndim > 1 else (0,))
    elif isinstance(left, np.ndarray):
        _check_sums(node, left, (-1,))
    elif 255 * 255 * b.shape(left)[-1] >= _WIDEST:
        raise UnsupportedError(f"node {node.name!r}: sums of {node.op} may not fit into 32 bits")
    sums = multiplied(b, left, right)
    factor = _combined(node, *scales)
    zero = zeros[2].astype(np.float64).reshape(())
    b.bind(node, _rounded(b, b.scaled(sums, factor, None), zero, *_range(node, zeros[2])))


@lowers(_CONTRIB + "QGemm")
def qgemm(b: Builder, node: OnnxNode) -> None:
    """``alpha a_s b_s (A' B' + C)``, quantized where an output scale is given."""
    a_scale, b_scale = (_parameter(b, node, k) for k in (1, 4))
    a_zero = _parameter(b, node, 2, np.zeros((), np.uint8)).astype(np.float64)
    b_zero = _parameter(b, node, 5, np.zeros((), np.uint8)).astype(np.float64)
    left = _centred(b, node.inputs[0], a_zero.reshape(()))
    right = b.constant(node.inputs[3], "the weight").astype(np.float64)
    is_turned = bool(node.attrs.get("transB", 0))
    weight = (right.T if is_turned else right) - (b_zero if b_zero.size > 1 else b_zero.reshape(()))
    _check_sums(node, weight, (0,))
    assert isinstance(left, str)
    if node.attrs.get("transA", 0):
        left = b.transposed(left, (1, 0))
    sums = multiplied(b, left, weight)
    if len(node.inputs) > 6 and node.inputs[6]:
        sums = b.scaled(sums, None, b.constant(node.inputs[6], "the addend").astype(np.float64))
    b_scale = b_scale if b_scale.size > 1 else b_scale.reshape(())
    alpha = np.asarray(node.real("alpha", 1.0) * a_scale.reshape(()).astype(np.float64))
    if len(node.inputs) > 7 and node.inputs[7]:
        y_zero = _parameter(b, node, 8, np.zeros((), np.uint8))
        y_scale = _parameter(b, node, 7).reshape(())
        value = b.scaled(sums, _combined(node, alpha, b_scale, y_scale), None)
        zero = y_zero.astype(np.float64).reshape(())
        b.bind(node, _rounded(b, value, zero, *_range(node, y_zero)))
    else:
        b.bind(node, b.scaled(sums, _combined(node, alpha, b_scale), None))


def _as_node(b: Builder, value: Operand) -> str:
    return b.known(value) if isinstance(value, np.ndarray) else value


def _requantized(b: Builder, node: OnnxNode, value: str, first: int) -> None:
    """Bind ``value`` in the scale and zero point at inputs ``first`` and ``first + 1``."""
    scale = _parameter(b, node, first).astype(np.float64).reshape(())
    zero = _parameter(b, node, first + 1, np.zeros((), np.uint8))
    ends = _range(node, zero)
    b.bind(node, _quantized(b, value, scale, zero.astype(np.float64).reshape(()), ends))


def _operand(b: Builder, node: OnnxNode, first: int) -> str:
    """The numbers that the integers of input ``first`` stand for; scale and zero point follow
    it."""
    scale = _parameter(b, node, first + 1).astype(np.float64).reshape(())
    zero = _parameter(b, node, first + 2, np.zeros((), np.uint8)).astype(np.float64).reshape(())
    return _as_node(b, _real(b, node.inputs[first], scale, zero))


@lowers(_CONTRIB + "QLinearAdd", _CONTRIB + "QLinearMul")
def qlinear_pair(b: Builder, node: OnnxNode) -> None:
    left, right = _operand(b, node, 0), _operand(b, node, 3)
    value = b.binary("Add", left, right) if node.op.endswith("Add") else product(b, left, right)
    _requantized(b, node, value, 6)


@lowers(_CONTRIB + "QLinearSigmoid", _CONTRIB + "QLinearLeakyRelu")
def qlinear_activation(b: Builder, node: OnnxNode) -> None:
    x = _operand(b, node, 0)
    if node.op.endswith("Sigmoid"):
        value = b.emit("Sigmoid", (x,))
    else:
        value = b.leaky(x, node.real("alpha", 0.01))
    _requantized(b, node, value, 3)


@lowers(_CONTRIB + "QLinearGlobalAveragePool", _CONTRIB + "QLinearReduceMean")
def qlinear_mean(b: Builder, node: OnnxNode) -> None:
    x = _operand(b, node, 0)
    rank = len(b.shape(x))
    if node.op.endswith("Pool"):
        if node.attrs.get("channels_last", 0):
            axes, keep = tuple(range(1, rank - 1)), True
        else:
            axes, keep = tuple(range(2, rank)), True
    else:
        plain = OnnxNode(node.op, node.name, node.inputs[:1], node.outputs, node.attrs, node.opset)
        axes, keep = reduction_axes(b, plain, rank)
    _requantized(b, node, mean(b, x, axes, keep), 3)


@lowers(_CONTRIB + "QLinearAveragePool")
def qlinear_average_pool(b: Builder, node: OnnxNode) -> None:
    x = _operand(b, node, 0)
    rank = len(b.shape(x))
    if not node.attrs.get("channels_last", 0):
        _requantized(b, node, averaged_windows(b, node, x), 3)
        return
    first = b.transposed(x, (0, rank - 1, *range(1, rank - 1)))
    value = averaged_windows(b, node, first)
    _requantized(b, node, b.transposed(value, (0, *range(2, rank), 1)), 3)


@lowers(_CONTRIB + "QLinearWhere")
def qlinear_where(b: Builder, node: OnnxNode) -> None:
    """Inputs: a condition, ``x`` with scale and zero point, ``y`` with both, both of the result."""
    condition = b.constant(node.inputs[0], "the condition").astype(np.float64)
    x, y = _operand(b, node, 1), _operand(b, node, 4)
    kept = b.binary("Mul", x, b.known(condition)), b.binary("Mul", y, b.known(1 - condition))
    _requantized(b, node, b.binary("Add", *kept), 7)


@lowers(_CONTRIB + "QLinearConcat")
def qlinear_concat(b: Builder, node: OnnxNode) -> None:
    """Inputs: scale and zero point of the result, then tensor, scale, zero point of each part."""
    parts = [_operand(b, node, k) for k in range(2, len(node.inputs), 3)]
    axis = b.axis(int(node.attrs["axis"]), len(b.shape(parts[0])))
    value = parts[0] if len(parts) == 1 else b.emit("Concat", tuple(parts), {"axis": axis})
    _requantized(b, node, value, 0)
