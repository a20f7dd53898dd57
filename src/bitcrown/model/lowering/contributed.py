"""Operators of onnxruntime itself (domain ``com.microsoft``), which its optimiser writes into
files: activations with a bias, and matrix products fused with what follows them.
"""

from __future__ import annotations

import math

import numpy as np

from bitcrown.errors import UnsupportedError
from bitcrown.model.lowering.arithmetic import product
from bitcrown.model.lowering.builder import Builder, OnnxNode, lowers
from bitcrown.model.lowering.weights import multiplied

_CONTRIB = "com.microsoft."


@lowers(*(_CONTRIB + name for name in ("Gelu", "BiasGelu", "FastGelu", "QuickGelu")))
def fused_gelu(b: Builder, node: OnnxNode) -> None:
    """``x g(x)`` of the sum with a bias, where there is one: ``g`` is ``(1 + erf(x / sqrt 2)) /
    2``, its approximation by tanh (fast), or by a sigmoid (quick)."""
    x = b.node_of(node.inputs[0])
    if len(node.inputs) > 1 and node.inputs[1]:
        x = b.binary("Add", x, b.node_of(node.inputs[1]))
    if node.op.endswith("QuickGelu"):
        gate = b.emit("Sigmoid", (b.scaled(x, node.real("alpha", 1.702), None),))
    elif node.op.endswith("FastGelu"):
        ratio = math.sqrt(2.0 / math.pi)
        inner = product(b, x, b.scaled(b.emit("Square", (x,)), 0.044715 * ratio, ratio))
        gate = b.scaled(b.emit("Tanh", (inner,)), 0.5, 0.5)
    else:
        gate = b.scaled(b.emit("Erf", (b.scaled(x, 1 / math.sqrt(2.0), None),)), 0.5, 0.5)
    b.bind(node, product(b, x, gate))


@lowers(_CONTRIB + "DynamicQuantizeMatMul")
def dynamic_quantize_matmul(b: Builder, node: OnnxNode) -> None:
    """Inputs: a tensor that is quantized here, the weight, its scale, its zero point, a bias."""
    given = dict(enumerate(node.inputs))
    quantized = b.emit("DynamicQuantize", (b.node_of(given[0]),))
    weight = _real_weight(b, given[1], given[2], given.get(3, ""))
    _bind_sum(b, node, multiplied(b, quantized, weight), given.get(4, ""))


@lowers(_CONTRIB + "MatMulIntegerToFloat")
def matmul_integer_to_float(b: Builder, node: OnnxNode) -> None:
    """Inputs: two tensors of integers, their scales, their zero points, a bias."""
    given = dict(enumerate(node.inputs))
    x = b.node_of(given[0])
    scale = b.constant(given[2], "a scale").astype(np.float64)
    zero = b.constant(given[4], "a zero point").astype(np.float64) if given.get(4) else np.zeros(())
    if scale.size > 1 or zero.size > 1:
        raise UnsupportedError(f"node {node.name!r} has several scales for its first operand")
    x = b.scaled(b.scaled(x, None, -zero.reshape(())), scale.reshape(()), None)
    weight = _real_weight(b, given[1], given[3], given.get(5, ""))
    _bind_sum(b, node, multiplied(b, x, weight), given.get(6, ""))


def _real_weight(b: Builder, weight: str, scale: str, zero: str) -> np.ndarray:
    """What the integers of a weight stand for; scales and zero points may be those of columns."""
    value = b.constant(weight, "the weight").astype(np.float64)
    shift = b.constant(zero, "a zero point").astype(np.float64) if zero else np.zeros(())
    factor = b.constant(scale, "a scale").astype(np.float64)
    shift, factor = (part.reshape(()) if part.size == 1 else part for part in (shift, factor))
    return np.asarray((value - shift) * factor)


def _bind_sum(b: Builder, node: OnnxNode, value: str, bias: str) -> None:
    b.bind(node, b.binary("Add", value, b.node_of(bias)) if bias else value)


@lowers(_CONTRIB + "FusedMatMul")
def fused_matmul(b: Builder, node: OnnxNode) -> None:
    """``alpha A' B'`` where ``'`` may exchange the last two axes."""
    if node.attrs.get("transBatchA", 0) or node.attrs.get("transBatchB", 0):
        raise UnsupportedError(f"node {node.name!r}: FusedMatMul that moves its batch axes")
    parts: list[str | np.ndarray] = []
    for tensor, key in zip(node.inputs, ("transA", "transB"), strict=True):
        turn = bool(node.attrs.get(key, 0))
        if b.is_constant(tensor):
            value = b.constants[tensor].astype(np.float64)
            parts.append(np.swapaxes(value, -1, -2) if turn and value.ndim > 1 else value)
            continue
        name = b.node_of(tensor)
        rank = len(b.shape(name))
        order = (*range(rank - 2), rank - 1, rank - 2)
        parts.append(b.transposed(name, order) if turn and rank > 1 else name)
    found = multiplied(b, *parts)
    b.bind(node, b.scaled(found, node.real("alpha", 1.0), None))
