"""The checker's rules for sums in integers: MatMulInteger, ConvInteger, QLinear ones, QGemm.

The 32-bit accumulator ``sum (x - x_zero) (w - w_zero) + bias`` is exact, so a node of the
certificate has to be just that, or the negative of it, weight by weight. QLinear operators go on
with ``rint(clip(float32(acc) * m)) + zero``, ``m = float32(float32(x_scale * w_scale) / y_scale)``.
QGemm has ``float32(alpha * x_scale)`` in place of ``x_scale``, and without ``y_scale`` it ends with
``float32(acc) * m``.
"""

from __future__ import annotations

import numpy as np

from bitcrown.check.certificates.documents import need
from bitcrown.check.certificates.quantized.candidates import (
    Candidate,
    conv_candidates,
    dense_candidates,
    result,
)
from bitcrown.check.certificates.quantized.chain import (
    BINARY32,
    ChainLink,
    ChainTensor,
    NumpyArray,
    as_parameter,
)
from bitcrown.check.certificates.quantized.reading import (
    FileReading,
    Operator,
    integer_range,
    quantized_rule,
)

_INT32 = np.dtype(np.int32)


def integer_view(reading: FileReading, view: ChainTensor) -> tuple[int, int] | None:
    """(factor, shift) if the tensor is ``factor * r + shift`` of its integers r, alike in all
    elements."""
    if not view.chain:
        return 1, 0
    known = reading.table(view)
    if known is None:
        return None
    first, values = known
    factor = int(values[1] - values[0]) if len(values) > 1 else 1
    shift = int(values[0]) - factor * first
    return (
        (factor, shift)
        if np.array_equal(factor * (first + np.arange(len(values))) + shift, values)
        else None
    )


@quantized_rule("MatMulInteger", "QLinearMatMul")
def integer_matrix(reading: FileReading, node: Operator) -> None:
    at = 3 if node.op == "QLinearMatMul" else 1
    weight = reading.constant(node, at).astype(np.int64)
    need(weight.ndim == 2, f"{node} is not one matrix times a tensor")
    w_zero = reading.constant(node, 5 if at == 3 else 3, 0).astype(np.int64)
    need(w_zero.size in (1, weight.shape[1]), f"{node} has bad zero points")
    weight = (weight - (w_zero.reshape(()) if w_zero.size == 1 else w_zero.reshape(1, -1))).T
    found = _row_sums(reading, node, weight, _row_bias(reading, node, weight, at))
    _finish_integers(reading, node, found, at == 3, (-1,))


@quantized_rule("com.microsoft.QGemm")
def integer_gemm(reading: FileReading, node: Operator) -> None:
    need(not node.attrs.get("transA", 0), f"{node} turns what depends on the input")
    weight = reading.constant(node, 3).astype(np.int64)
    need(weight.ndim == 2, f"{node} has no matrix")
    weight = weight if node.attrs.get("transB", 0) else weight.T
    w_zero, addend = reading.constant(node, 5, 0), reading.constant(node, 6, np.int32(0))
    fits = w_zero.size in (1, len(weight)) and addend.size in (1, len(weight))
    need(fits and addend.dtype == np.int32, f"{node} has bad zero points or a bad addend")
    weight = weight - w_zero.astype(np.int64).reshape(-1, 1)
    bias = _row_bias(reading, node, weight, 3) + addend.astype(np.int64).reshape(-1)
    found = _row_sums(reading, node, weight, bias)
    need(bool(found), f"no node of the certificate's network computes {node}")
    for tensor in found:
        reading.check_width(tensor, node)
    alpha = np.float32(node.attrs.get("alpha", 1.0))
    a_scale, b_scale = (_positive(node, reading.constant(node, k)) for k in (1, 4))
    factor = _positive(node, (alpha * a_scale) * b_scale)
    if not node.has(7):
        scaled = ChainLink("scaled", _scaled, (as_parameter(factor, found[0].shape),), True)
        reading.bind(node, [tensor.then(scaled, BINARY32) for tensor in found])
        return
    factor = _positive(node, factor / _positive(node, reading.constant(node, 7)))
    zero = reading.constant(node, 8, np.uint8(0))
    need(zero.size == 1, f"{node} has several zero points for its output")
    parameters = _parameters(factor, zero, found[0].shape)
    step = ChainLink("requantize", _requantized, parameters, True)
    reading.bind(node, [tensor.then(step, zero.dtype) for tensor in found])


def _positive(node: Operator, value: NumpyArray) -> NumpyArray:
    flat = np.asarray(value).reshape(-1)
    is_positive = flat.dtype == BINARY32 and bool((np.isfinite(flat) & (flat > 0)).all())
    need(is_positive, f"{node} has scales that are not positive float32 numbers")
    return flat


def _scaled(acc: NumpyArray, factor: NumpyArray) -> NumpyArray:
    return np.asarray(acc.astype(np.float32) * factor)


def _row_sums(
    reading: FileReading, node: Operator, weight: NumpyArray, bias: NumpyArray
) -> list[ChainTensor]:
    """Nodes of the network that are ``weight x + bias`` for the one row x."""
    found = []
    for view in reading.views(node.inputs[0]):
        need(
            not view.is_float and view.size == weight.shape[1] == view.shape[-1],
            f"{node} does not multiply one row",
        )
        for candidate in dense_candidates(reading, view, 1, len(weight)):
            signs = exact_signs(reading, view, candidate, weight, bias, 0)
            if signs is not None:
                found.append(
                    result(
                        candidate.number,
                        (*view.shape[:-1], len(weight)),
                        _INT32,
                        *_signed(signs, 1),
                    )
                )
    return found


def _row_bias(reading: FileReading, node: Operator, weight: NumpyArray, at: int) -> NumpyArray:
    zero = reading.constant(node, 2, 0).astype(np.int64)
    need(zero.size == 1, f"{node} has several zero points for its input")
    return np.asarray(-int(zero.reshape(())) * weight.reshape(len(weight), -1).sum(axis=1))


@quantized_rule("ConvInteger", "QLinearConv")
def integer_convolution(reading: FileReading, node: Operator) -> None:
    at = 3 if node.op == "QLinearConv" else 1
    weight = reading.constant(node, at).astype(np.int64)
    w_zero = reading.constant(node, 5 if at == 3 else 3, 0).astype(np.int64)
    need(
        weight.ndim == 4 and w_zero.size in (1, len(weight)),
        f"{node} has bad weights or zero points",
    )
    weight = weight - w_zero.reshape(-1, 1, 1, 1)
    bias = _row_bias(reading, node, weight, at)
    if node.has(8) and at == 3:
        bias = bias + reading.constant(node, 8).astype(np.int64)
    zero = int(reading.constant(node, 2, 0).astype(np.int64).reshape(()))
    groups = int(node.attrs.get("group", 1))
    found = []
    for view in reading.views(node.inputs[0]):
        fits_input = (
            not view.is_float and len(view.shape) == 4 and view.shape[1] == weight.shape[1] * groups
        )
        need(fits_input, f"{node} does not fit its input")
        for candidate in conv_candidates(
            reading, view, node, weight.shape[2:], len(weight), groups
        ):
            signs = exact_signs(
                reading, view, candidate, weight.reshape(len(weight), -1), bias, zero
            )
            if signs is not None:
                shape = reading.net.nodes[candidate.number]["shape"]
                steps = _signed(signs, shape[1] * shape[2])
                found.append(result(candidate.number, (1, *shape), _INT32, *steps))
    _finish_integers(reading, node, found, at == 3, (-1, 1, 1))


def exact_signs(
    reading: FileReading,
    view: ChainTensor,
    candidate: Candidate,
    weight: NumpyArray,
    bias: NumpyArray,
    zero: int,
) -> NumpyArray | None:
    """[out] 1 or -1, such that the node is that times ``weight x + bias`` for the tensor's integers
    x; else None.

    Padding has to be x = ``zero``.
    """
    seen = integer_view(reading, view)
    if seen is None or candidate.ints.shape != weight.shape:
        return None
    factor, shift = seen
    if candidate.is_padded and factor * candidate.pad + shift != zero:
        return None
    ints, constant = weight * factor, bias + shift * weight.sum(axis=1)
    same = (candidate.ints == ints).all(axis=1) & (candidate.bias == constant)
    opposite = (candidate.ints == -ints).all(axis=1) & (candidate.bias == -constant)
    return np.where(same, 1, -1) if bool((same | opposite).all()) else None


def _signed(signs: NumpyArray, copies: int) -> tuple[ChainLink, ...]:
    """The step from the node's integers to the file's."""
    if (signs == 1).all():
        return ()
    return (ChainLink("negated", np.multiply, (np.repeat(signs, copies),), whole=True, keeps=True),)


def _finish_integers(
    reading: FileReading,
    node: Operator,
    found: list[ChainTensor],
    is_requantized: bool,
    axes: tuple[int, ...],
) -> None:
    """The int32 sum; a QLinear operator goes on with ``clip(rint(float32(sum) * m)) + zero``, m in
    float32."""
    need(bool(found), f"no node of the certificate's network computes {node}")
    for tensor in found:
        reading.check_width(tensor, node)
    if is_requantized:
        scales = [reading.constant(node, k).reshape(-1) for k in (1, 4, 6)]
        positive = all(
            s.dtype == BINARY32 and bool(np.isfinite(s).all() and (s > 0).all()) for s in scales
        )
        need(positive, f"{node} has scales that are not positive float32 numbers")
        zero = reading.constant(node, 7)
        need(zero.size == 1, f"{node} has several zero points for its output")
        multiplier = _positive(node, (scales[0] * scales[1]) / scales[2])
        step = ChainLink(
            "requantize",
            _requantized,
            (*_parameters(multiplier.reshape(axes), zero, found[0].shape),),
            True,
        )
        found = [tensor.then(step, zero.dtype) for tensor in found]
    reading.bind(node, found)


def _parameters(
    multiplier: NumpyArray, zero: NumpyArray, shape: tuple[int, ...]
) -> tuple[NumpyArray, ...]:
    low, high = (np.array([end]) for end in integer_range(zero.dtype))
    return as_parameter(multiplier, shape), zero.astype(np.int64).reshape(1), low, high


def _requantized(
    acc: NumpyArray, multiplier: NumpyArray, zero: NumpyArray, low: NumpyArray, high: NumpyArray
) -> NumpyArray:
    product = acc.astype(np.float32) * multiplier
    return np.asarray(np.rint(np.clip(product, low - zero, high - zero)).astype(np.int64) + zero)
