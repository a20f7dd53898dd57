"""Activations. Piecewise linear ones become ReLU where that is exact, so that there is one kind of split."""

from __future__ import annotations

import math

import numpy as np

from bitcrown.errors import UnsupportedError
from bitcrown.model.lowering.arithmetic import product
from bitcrown.model.lowering.builder import Builder, OnnxNode, lowers

_PLAIN = ("Sigmoid", "Tanh", "Exp", "Log", "Reciprocal", "Sqrt", "Sin", "Cos", "Sign", "Floor", "Ceil", "Round", "Erf")


@lowers("Relu", "Softplus", *_PLAIN)
def plain(b: Builder, node: OnnxNode) -> None:
    b.bind(node, b.emit(node.op, (b.node_of(node.inputs[0]),), name=node.outputs[0]))


@lowers("Identity", "Dropout", "Cast")
def identity(b: Builder, node: OnnxNode) -> None:
    if node.op == "Cast" and node.attrs.get("to") not in (1, 11):
        raise UnsupportedError(f"node {node.name!r} casts a value that depends on the input to a non-float type")
    b.bind(node, b.node_of(node.inputs[0]))


def leaky(b: Builder, x: str, slope: np.ndarray | float) -> str:
    """``s x + (1 - s) relu(x)``."""
    return b.binary("Add", b.scaled(x, slope, None), b.scaled(b.relu(x), 1.0 - np.asarray(slope), None))


@lowers("LeakyRelu", "PRelu", "Abs")
def leaky_relu(b: Builder, node: OnnxNode) -> None:
    x = b.node_of(node.inputs[0])
    if node.op == "Abs":
        b.bind(node, leaky(b, x, -1.0))
    elif node.op == "LeakyRelu":
        b.bind(node, leaky(b, x, float(node.attrs.get("alpha", 0.01))))
    else:
        b.bind(node, leaky(b, x, b.constant(node.inputs[1], "the slope").astype(np.float64)))


@lowers("Clip")
def clip(b: Builder, node: OnnxNode) -> None:
    x = b.node_of(node.inputs[0])
    low, high = float(node.attrs.get("min", -math.inf)), float(node.attrs.get("max", math.inf))
    if len(node.inputs) > 1 and node.inputs[1]:
        low = float(b.constant(node.inputs[1], "the lower limit").reshape(()))
    if len(node.inputs) > 2 and node.inputs[2]:
        high = float(b.constant(node.inputs[2], "the upper limit").reshape(()))
    if math.isfinite(low) and math.isfinite(high) and abs(low) < 1e30 and abs(high) < 1e30:
        b.bind(node, b.emit("Clip", (x,), {"min": low, "max": high}))
        return
    if low > -1e30:
        x = b.scaled(b.relu(b.scaled(x, None, -low)), None, low)
    if high < 1e30:
        x = b.scaled(b.relu(b.scaled(x, -1.0, high)), -1.0, high)
    b.bind(node, x)


@lowers("Elu")
def elu(b: Builder, node: OnnxNode) -> None:
    b.bind(node, b.emit("Elu", (b.node_of(node.inputs[0]),), {"alpha": float(node.attrs.get("alpha", 1.0))}))


@lowers("HardSigmoid", "HardSwish")
def hard_sigmoid(b: Builder, node: OnnxNode) -> None:
    x = b.node_of(node.inputs[0])
    alpha = float(node.attrs.get("alpha", 0.2)) if node.op == "HardSigmoid" else 1.0 / 6.0
    beta = float(node.attrs.get("beta", 0.5)) if node.op == "HardSigmoid" else 0.5
    gate = b.emit("Clip", (b.scaled(x, alpha, beta),), {"min": 0.0, "max": 1.0})
    b.bind(node, gate if node.op == "HardSigmoid" else product(b, x, gate))


@lowers("Gelu")
def gelu(b: Builder, node: OnnxNode) -> None:
    if node.attrs.get("approximate", "none") != "none":
        raise UnsupportedError(f"node {node.name!r}: Gelu with tanh approximation")
    x = b.node_of(node.inputs[0])
    gate = b.scaled(b.emit("Erf", (b.scaled(x, 1 / math.sqrt(2.0), None),)), 0.5, 0.5)
    b.bind(node, product(b, x, gate))


@lowers("Softmax")
def softmax(b: Builder, node: OnnxNode) -> None:
    """``softmax_i = 1 / sum_j exp(x_j - x_i)``: differences are affine, and nothing overflows where it matters."""
    x = b.node_of(node.inputs[0])
    shape = b.shape(x)
    rank = len(shape)
    axis = b.axis(int(node.attrs.get("axis", 1 if node.opset < 13 else -1)), rank)
    if node.opset < 13 and axis != rank - 1:
        folded = b.reshaped(x, (*shape[:axis], int(np.prod(shape[axis:]))))
        b.bind(node, b.reshaped(_softmax_over(b, folded, axis), shape))
        return
    b.bind(node, _softmax_over(b, x, axis))


def _softmax_over(b: Builder, x: str, axis: int) -> str:
    shape = b.shape(x)
    if shape[axis] > 1024:
        raise UnsupportedError(f"node {b.source!r}: Softmax over {shape[axis]} entries")
    full = (*shape[:axis], shape[axis], shape[axis], *shape[axis + 1 :])
    column = b.expanded(b.reshaped(x, (*shape[:axis], 1, *shape[axis:])), full)
    row = b.expanded(b.reshaped(x, (*shape[: axis + 1], 1, *shape[axis + 1 :])), full)
    exponentials = b.emit("Exp", (b.emit("Sub", (column, row)),))
    total = b.emit("ReduceSum", (exponentials,), {"axes": (axis + 1,), "keepdims": False})
    return b.emit("Reciprocal", (total,))
