"""Activations. Piecewise linear ones become ReLU where that is exact, so that there is one kind of
split."""

from __future__ import annotations

import math

import numpy as np

from bitcrown.errors import UnsupportedError
from bitcrown.model.lowering.arithmetic import product
from bitcrown.model.lowering.builder import HUGE, Builder, OnnxNode, lowers
from bitcrown.model.lowering.comparison import differs, is_truth
from bitcrown.model.lowering.undefined import decides_on

FLOATS = (1, 10, 11, 16)
"""Element types of ONNX that hold real numbers: float32, float16, float64, bfloat16."""
_BOOL = 9
WHOLE = {2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 12: "uint32"}
"""Types of whole numbers of ONNX."""
_PLAIN = (
    "Sigmoid",
    "Tanh",
    "Exp",
    "Log",
    "Reciprocal",
    "Sqrt",
    "Sin",
    "Cos",
    "Sign",
    "Floor",
    "Ceil",
    "Round",
    "Erf",
    "Atan",
)


@lowers("Relu", "Softplus", *_PLAIN)
def plain(b: Builder, node: OnnxNode) -> None:
    b.bind(node, b.emit(node.op, (b.node_of(node.inputs[0]),), name=node.outputs[0]))


@lowers("Cast")
def cast(b: Builder, node: OnnxNode) -> None:
    """To floats nothing happens here (see ``roundings``); to whole numbers fractions are cut off,
    and a truth value is whether anything is there, ``[x != 0]``. A type that holds all numbers of
    the one before changes none; what another one cannot hold has no bound."""
    x, target = b.node_of(node.inputs[0]), int(node.attrs.get("to", 1))
    source = b.dtypes.get(node.inputs[0], "")
    if target in FLOATS or source == "bool" or is_truth(b, x):
        b.bind(node, x)
        return
    decides_on(b, x)
    if target == _BOOL:
        b.bind(node, differs(b, x))
        return
    if target not in WHOLE:
        raise UnsupportedError(
            f"node {node.name!r} casts what depends on the input to type {target}"
        )
    ends = np.iinfo(WHOLE[target])
    known = np.iinfo(source) if source in WHOLE.values() else None
    if known is not None and ends.min <= known.min and known.max <= ends.max:
        b.bind(node, x)
    else:
        b.bind(node, b.emit("Truncate", (x,), {"least": float(ends.min), "most": float(ends.max)}))


@lowers("Identity", "Dropout")
def identity(b: Builder, node: OnnxNode) -> None:
    training = node.inputs[2] if node.op == "Dropout" and len(node.inputs) > 2 else ""
    if training and b.constant(training, "the training mode").any():
        raise UnsupportedError(
            f"node {node.name!r} drops at random: export the model for inference"
        )
    b.bind(node, b.node_of(node.inputs[0]))


@lowers("LeakyRelu", "PRelu", "Abs")
def leaky_relu(b: Builder, node: OnnxNode) -> None:
    x = b.node_of(node.inputs[0])
    if node.op == "Abs":
        b.bind(node, b.absolute(x))
    elif node.op == "LeakyRelu":
        b.bind(node, b.leaky(x, node.real("alpha", 0.01)))
    else:
        b.bind(node, b.leaky(x, b.constant(node.inputs[1], "the slope").astype(np.float64)))


@lowers("Clip")
def clip(b: Builder, node: OnnxNode) -> None:
    x = b.node_of(node.inputs[0])
    low, high = node.real("min", -math.inf), node.real("max", math.inf)
    if len(node.inputs) > 1 and node.inputs[1]:
        low = float(b.constant(node.inputs[1], "the lower limit").reshape(()))
    if len(node.inputs) > 2 and node.inputs[2]:
        high = float(b.constant(node.inputs[2], "the upper limit").reshape(()))
    b.bind(node, _clipped(b, x, low, high))


def _clipped(b: Builder, x: str, low: float, high: float) -> str:
    """Limits from ``b.unlimited`` on are none."""
    if not low <= high:
        raise UnsupportedError(f"node {b.source!r}: Clip between {low} and {high}")
    has_low, has_high = low > -b.unlimited(), high < b.unlimited()
    is_huge = (has_low and abs(low) >= HUGE) or (has_high and abs(high) >= HUGE)
    if (has_low and has_high) or is_huge:
        return b.emit(
            "Clip",
            (x,),
            {"min": low if has_low else -math.inf, "max": high if has_high else math.inf},
        )
    if has_low:
        return b.scaled(b.relu(b.scaled(x, None, -low)), None, low) if low else b.relu(x)
    return b.scaled(b.relu(b.scaled(x, -1.0, high)), -1.0, high) if has_high else x


@lowers("Elu", "Selu", "Celu")
def elu(b: Builder, node: OnnxNode) -> None:
    x = b.node_of(node.inputs[0])
    if node.op == "Selu":
        alpha, gain = node.real("alpha", 1.6732632423543772), node.real("gamma", 1.0507009873554805)
        b.bind(node, b.scaled(b.emit("Elu", (x,), {"alpha": alpha}), gain, None))
        return
    alpha = node.real("alpha", 1.0)
    if node.op == "Celu" and not alpha > 0:
        raise UnsupportedError(f"node {node.name!r}: Celu with alpha {alpha}")
    if node.op == "Elu":
        b.bind(node, b.emit("Elu", (x,), {"alpha": alpha}))
        return
    b.bind(
        node,
        b.scaled(b.emit("Elu", (b.scaled(x, 1.0 / alpha, None),), {"alpha": 1.0}), alpha, None),
    )


@lowers("HardSigmoid", "HardSwish")
def hard_sigmoid(b: Builder, node: OnnxNode) -> None:
    x = b.node_of(node.inputs[0])
    alpha = node.real("alpha", 0.2) if node.op == "HardSigmoid" else float(np.float32(1.0 / 6.0))
    beta = node.real("beta", 0.5) if node.op == "HardSigmoid" else 0.5
    gate = b.emit("Clip", (b.scaled(x, alpha, beta),), {"min": 0.0, "max": 1.0})
    b.bind(node, gate if node.op == "HardSigmoid" else product(b, x, gate))


@lowers("Softsign")
def softsign(b: Builder, node: OnnxNode) -> None:
    x = b.node_of(node.inputs[0])
    b.bind(node, product(b, x, b.emit("Reciprocal", (b.scaled(b.absolute(x), None, 1.0),))))


@lowers("Swish", "Mish")
def gated(b: Builder, node: OnnxNode) -> None:
    """``x sigmoid(alpha x)`` and ``x tanh(softplus(x))``."""
    x = b.node_of(node.inputs[0])
    if node.op == "Mish":
        gate = b.emit("Tanh", (b.emit("Softplus", (x,)),))
    else:
        gate = b.emit("Sigmoid", (b.scaled(x, node.real("alpha", 1.0), None),))
    b.bind(node, product(b, x, gate))


@lowers("Gelu")
def gelu(b: Builder, node: OnnxNode) -> None:
    x = b.node_of(node.inputs[0])
    if node.attrs.get("approximate", "none") == "tanh":
        cube = product(b, x, b.emit("Square", (x,)))
        inner = b.scaled(
            b.binary("Add", x, b.scaled(cube, 0.044715, None)), math.sqrt(2.0 / math.pi), None
        )
        gate = b.scaled(b.emit("Tanh", (inner,)), 0.5, 0.5)
    else:
        gate = b.scaled(b.emit("Erf", (b.scaled(x, 1 / math.sqrt(2.0), None),)), 0.5, 0.5)
    b.bind(node, product(b, x, gate))
