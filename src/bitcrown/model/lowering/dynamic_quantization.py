"""Dynamic quantization: integers whose scale depends on the input, read as the real numbers they
stand for.

``DynamicQuantizeLinear`` turns ``x`` into integers ``q``, a scale ``s`` and a zero point ``z``;
``MatMulInteger`` or ``ConvInteger`` computes with ``q - z``, and a product with ``s`` and the scale
of the weights makes floats of the sums. As a real function all of that is the usual layer applied
to ``(q - z) s``, the engine operator ``DynamicQuantize``. So ``q`` is lowered to that, ``s`` to 1
and ``z`` to 0, and every later node is lowered as ever.

That is right only if the file multiplies by each scale exactly where it must. So each of these
tensors has a ``Unit``, its value in the file being the value here times powers of scales (plus a
zero point, for ``q`` itself); ``_UNIT_RULES`` says what the operators make of units, an operator
that is not there takes none, and outputs must have none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import numpy as np

from bitcrown.errors import UnsupportedError
from bitcrown.model.lowering.builder import Builder, OnnxNode, Unit, lowers
from bitcrown.model.lowering.weights import convolved, multiplied

_LARGEST_SUM = 1 << 31
"""int32 sums wrap from here on."""
INTEGER_SUMS = {
    *("DynamicQuantizeLinear", "MatMulInteger", "ConvInteger"),
    *("com.microsoft.DynamicQuantizeMatMul", "com.microsoft.MatMulIntegerToFloat"),
    "com.microsoft.DynamicQuantizeLSTM",
}
"""Operators whose networks are read with roundings: what is a little off falls on another step of
the next quantizer."""
_UnitRule = Callable[[Builder, OnnxNode], Unit]


@lowers("DynamicQuantizeLinear")
def dynamic_quantize(b: Builder, node: OnnxNode) -> None:
    integers, scale, zero = node.outputs
    b.bind(node, b.emit("DynamicQuantize", (b.node_of(node.inputs[0]),)))
    b.units[integers] = Unit({integers: -1}, zero_of=integers)
    b.constants[scale], b.units[scale] = np.ones((), dtype=np.float32), Unit({integers: 1})
    b.constants[zero], b.units[zero] = np.zeros((), dtype=np.uint8), Unit({}, zero_of=integers)


@lowers("MatMulInteger")
def matmul_integer(b: Builder, node: OnnxNode) -> None:
    left, right = _centred(b, node, 0), _centred(b, node, 1)
    if isinstance(right, np.ndarray):
        size = np.abs(right).sum(axis=-2 if right.ndim > 1 else 0).max(initial=0.0)
    elif isinstance(left, np.ndarray):
        size = np.abs(left).sum(axis=-1).max(initial=0.0)
    else:
        size = 255.0 * b.shape(left)[-1]
    _check_sums(node, size)
    b.bind(node, multiplied(b, left, right))


@lowers("ConvInteger")
def conv_integer(b: Builder, node: OnnxNode) -> None:
    x, weight = _centred(b, node, 0), _centred(b, node, 1)
    if isinstance(x, np.ndarray) or not isinstance(weight, np.ndarray):
        raise UnsupportedError(
            f"node {node.name!r}: ConvInteger whose weight depends on the network input"
        )
    _check_sums(node, np.abs(weight).reshape(len(weight), -1).sum(axis=1).max(initial=0.0))
    convolved(b, node, x, weight, None)


def _centred(b: Builder, node: OnnxNode, operand: int) -> str | np.ndarray:
    """An operand minus its zero point: a constant, or an engine node."""
    zero = np.zeros(())
    if len(node.inputs) > operand + 2 and node.inputs[operand + 2]:
        zero = b.constant(node.inputs[operand + 2], "a zero point").astype(np.float64)
    if zero.size > 1 and (
        node.op == "ConvInteger" or operand == 0
    ):  # which onnxruntime does not run either
        raise UnsupportedError(
            f"node {node.name!r} has several zero points for an operand that may have one"
        )
    name = node.inputs[operand]
    if b.is_constant(name):
        return b.constants[name].astype(np.float64) - zero
    return b.scaled(b.node_of(name), None, -zero) if zero.any() else b.node_of(name)


def _check_sums(node: OnnxNode, size: float) -> None:
    """``size``: largest sum of absolute weights; integers of eight bits are at most 255 from their
    zero point."""
    if 255 * size >= _LARGEST_SUM:
        raise UnsupportedError(f"node {node.name!r}: sums of {node.op} may not fit into 32 bits")


def _unchanged(b: Builder, node: OnnxNode) -> Unit:
    return b.units[node.inputs[0]]


def _cast(b: Builder, node: OnnxNode) -> Unit:
    unit = b.units[node.inputs[0]]
    if unit.zero_of:
        raise UnsupportedError(
            f"node {node.name!r} casts integers whose zero point depends on the input"
        )
    return unit


def _multiplied(units: Iterable[Unit]) -> Unit:
    """Unit of a product of numbers without zero points."""
    powers: Counter[str] = Counter()
    for unit in units:
        powers.update(unit.powers)
    return Unit({scale: power for scale, power in powers.items() if power})


def _product(b: Builder, node: OnnxNode) -> Unit:
    units = [b.units[name] for name in node.inputs if name in b.units]
    if any(unit.zero_of for unit in units):
        raise UnsupportedError(
            f"node {node.name!r} multiplies integers whose zero point depends on the input"
        )
    return _multiplied(units)


def _integer_product(b: Builder, node: OnnxNode) -> Unit:
    """Each operand must have its own zero point subtracted."""
    units = [b.units.get(name, Unit({})) for name in node.inputs[:2]]
    for name, unit, zero in zip(
        node.inputs[:2], units, (*node.inputs[2:], "", "")[:2], strict=True
    ):
        given = b.units[zero].zero_of if zero in b.units else ""
        if unit.zero_of != given or (unit.powers and not given):
            raise UnsupportedError(f"node {node.name!r}: the zero point of {name!r} is not its own")
    return _multiplied(units)


def _scaled_product(b: Builder, node: OnnxNode) -> Unit:
    """The product of two tensors of integers with their scales, which are its next operands."""
    zeros = (*node.inputs[4:6], "", "")[:2]
    unit = _integer_product(b, replace(node, inputs=(*node.inputs[:2], *zeros)))
    scales = [b.units[name] for name in node.inputs[2:4] if name in b.units]
    if any(scale.zero_of for scale in scales):
        raise UnsupportedError(f"node {node.name!r} takes a zero point for a scale")
    unit = _multiplied([unit, *scales])
    if unit.powers and any(node.inputs[6:]):
        raise UnsupportedError(f"node {node.name!r} adds a bias to integers without their scale")
    return unit


_UNIT_RULES: Mapping[str, _UnitRule] = {
    **dict.fromkeys(
        ("Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose"), _unchanged
    ),
    "Cast": _cast,
    "Mul": _product,
    "MatMulInteger": _integer_product,
    "ConvInteger": _integer_product,
    "com.microsoft.MatMulIntegerToFloat": _scaled_product,
}


def unit_of_result(b: Builder, node: OnnxNode) -> Unit | None:
    """Unit of the node's output; None where no input has one. Raises ``UnsupportedError`` where
    units do not fit."""
    if not any(name in b.units for name in node.inputs):
        return None
    if node.op not in _UNIT_RULES:
        raise UnsupportedError(
            f"{node.op} {node.name!r} of integers whose scale depends on the input"
        )
    return _UNIT_RULES[node.op](b, node)
