"""Values that are no numbers: roots and logarithms of what is negative, quotients of zeros, and
what is made of them.

Bounds enclose *some* number there (``bounds.relaxations.convex``), which is right as long as no
number is made of what is none: NaN violates nothing. A few operators do make one. They compare,
they count, or they look for the largest entry, which NaN never is: onnxruntime passes over it. Such
an operator is read only where every root, logarithm and divisor before it has the right sign.

A quotient alone has no bounds where its divisor may be zero. But behind it may be what is bounded
anyway, a sine or a clip, and a norm ``x / sqrt(sum x^2)`` is bounded by 1, while it is no number at
``x = 0``.
"""

from __future__ import annotations

import numpy as np

from bitcrown.errors import UnsupportedError
from bitcrown.model.graph import Node
from bitcrown.model.lowering.builder import Builder, OnnxNode

_CONTRIB = "com.microsoft."
FORGETFUL = {
    *("MaxPool", "GlobalMaxPool", "ReduceMax", "ReduceMin", "TopK", "Hardmax", "Shrink"),
    *("QuantizeLinear", "DynamicQuantizeLinear", "LSTM", "GRU", "RNN"),
    *(_CONTRIB + name for name in ("QuantizeLinear", "DynamicQuantizeMatMul")),
    _CONTRIB + "DynamicQuantizeLSTM",
}
"""Operators that may have numbers as results where an operand is none; those that decide by a
comparison ask for themselves."""
_PARTIAL = {"Sqrt", "Log", "Reciprocal"}
NORM_OF_ZERO = "norm_of_zero"
"""A mark of a ``Reciprocal`` whose product with a zero is 0 to the runtime where it is infinite."""
_DEEPEST = 64
"""Nodes that are looked back at for the sign of a value."""
_OF_ONE_SIGN = {
    *("AveragePool", "Expand", "Gather", "Perturb", "Reciprocal", "ReduceSum", "Reshape", "Slice"),
    *("Sqrt", "Transpose"),
}
"""Operators whose values are above zero where their operand is."""


def require_numbers(b: Builder, node: OnnxNode) -> None:
    """Raises ``UnsupportedError`` where ``node`` may make a number of what is none. (The sign of
    that is 0 in float16, and none in other types.)"""
    is_half = "float16" in {b.dtypes.get(name) for name in node.inputs}
    if node.op in FORGETFUL or (node.op == "Sign" and is_half):
        for name in node.inputs:
            if name in b.tensors:
                decides_on(b, b.tensors[name])


def decides_on(b: Builder, name: str) -> None:
    """Raises ``UnsupportedError`` unless every root, logarithm and divisor on the way to ``name``
    has the right sign by what it is made of. What is no number compares like none, and
    what a node decides on it is a number again, of which nothing would be known."""
    seen, waiting = set(), [name]
    while waiting:
        node = b.nodes[waiting.pop()]
        if node.name in seen:
            continue
        seen.add(node.name)
        is_partial = node.op in _PARTIAL and NORM_OF_ZERO not in node.attrs
        if is_partial and not _is_above_zero(b, node.inputs[0], node.op != "Sqrt"):
            raise UnsupportedError(
                f"node {b.source!r} decides on values that may be no numbers: node "
                f"{node.source!r} is a root, a logarithm or a quotient of what may be negative or "
                "zero"
            )
        waiting += node.inputs


def _is_above_zero(
    b: Builder,
    name: str,
    strictly: bool,
    depth: int = _DEEPEST,
    known: dict[tuple[str, bool], bool] | None = None,
) -> bool:
    """Whether ``name`` is above zero (or zero, unless ``strictly``) whatever the input is;
    ``known`` are answers that were given on the way."""
    node, answers = b.nodes[name], {} if known is None else known

    def above(place: int, strictly: bool) -> bool:
        key = node.inputs[place], strictly
        if key not in answers:
            answers[key] = depth > 0 and _is_above_zero(b, *key, depth - 1, answers)
        return answers[key]

    if node.op in ("Exp", "Sigmoid", "Softplus"):
        return True
    if node.op in ("Square", "Relu"):
        return not strictly
    if node.op in _OF_ONE_SIGN:
        return above(0, strictly or node.op == "Reciprocal")
    if node.op == "Scale":
        scale, shift = (np.min(node.params.get(key, d)) for key, d in (("scale", 1), ("shift", 0)))
        if not (scale >= 0 and shift >= 0 and above(0, False)):
            return False
        return bool(not strictly or shift > 0 or (scale > 0 and above(0, True)))
    if node.op == "Clip":
        return bool(node.attrs["min"] > 0 or (node.attrs["min"] == 0 and not strictly))
    if node.op == "Concat":
        return all(above(k, strictly) for k in range(len(node.inputs)))
    if node.op == "Larger":
        return above(1, strictly) or above(2, strictly)
    if node.op in ("Add", "Mul"):
        if node.op == "Add" and _is_absolute_value(b, node):
            return not strictly
        some = any if node.op == "Add" else all
        return above(0, False) and above(1, False) and some(above(k, strictly) for k in (0, 1))
    return False


def _is_absolute_value(b: Builder, node: Node) -> bool:
    """Whether ``node`` is ``s x + r relu(x)`` with ``s <= 0 <= s + r`` (``Builder.leaky``)."""
    straight, bent = (b.nodes[name] for name in node.inputs)
    if straight.op != "Scale" or bent.op != "Scale" or "shift" in {*straight.params, *bent.params}:
        return False
    relu, (s, r) = b.nodes[bent.inputs[0]], (part.params["scale"] for part in (straight, bent))
    return bool(relu.op == "Relu" and relu.inputs == straight.inputs and (s <= 0).all()) and bool(
        (s + r >= 0).all()
    )
