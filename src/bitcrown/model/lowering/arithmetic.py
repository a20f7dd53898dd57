"""Elementwise arithmetic, sums and powers."""

from __future__ import annotations

import math

import numpy as np

from bitcrown.errors import UnsupportedError
from bitcrown.model.lowering.builder import Builder, OnnxNode, lowers

_STEEPEST = 64.0
"""Largest exponent of a power."""


@lowers("Add", "Sub", "Mul", "Div")
def arithmetic(b: Builder, node: OnnxNode) -> None:
    left, right = node.inputs
    kinds = {b.dtypes.get(tensor, "") for tensor in node.inputs}
    if node.op == "Div" and any("int" in kind for kind in kinds):
        _divide_whole(b, node)
        return
    if _adds_a_mask(b, node):
        return
    if b.is_constant(right):
        b.bind(
            node, _with_constant(b, node.op, b.node_of(left), b.constants[right].astype(np.float64))
        )
        return
    if b.is_constant(left):
        value = b.constants[left].astype(np.float64)
        other = b.node_of(right)
        if node.op == "Div":
            other = b.emit("Reciprocal", (other,))
        result = b.scaled(other, -1.0, value) if node.op == "Sub" else None
        b.bind(
            node, result or _with_constant(b, "Mul" if node.op == "Div" else node.op, other, value)
        )
        return
    x, y = b.node_of(left), b.node_of(right)
    if node.op in ("Add", "Sub"):
        b.bind(node, b.binary(node.op, x, y))
        return
    if node.op == "Div":
        y = b.emit("Reciprocal", (y,))
    both, limit = product(b, x, y), norm_limit(b, x, y)
    b.bind(node, both if limit is None else within(b, both, limit))


def _divide_whole(b: Builder, node: OnnxNode) -> None:
    """Whole numbers over a known one, fractions cut off.

    Of ``x >= 0`` that is ``floor((x + 1/2) / d)``: ``(x + 1/2) / d`` lies ``1 / (2 d)`` or more
    from every whole number, further than the rounding of ``1 / d`` moves it below ``2^50``. Where
    ``d`` is a power of two nothing is rounded and ``x / d`` is enough.
    """
    divisor = b.constants.get(node.inputs[1])
    if divisor is None or not (divisor > 0).all():
        raise UnsupportedError(
            f"node {node.name!r} divides whole numbers that depend on the input by what is no "
            "known positive number"
        )
    x, inverse = b.node_of(node.inputs[0]), 1.0 / divisor.astype(np.float64)
    if (np.frexp(divisor)[0] == 0.5).all():
        most = {"most": float(np.iinfo(divisor.dtype).max)}
        b.bind(node, b.emit("Truncate", (b.scaled(x, inverse, None),), most))
        return
    most = {"most": 2.0**50 / float(divisor.max())}
    sides = [
        b.emit("Truncate", (b.scaled(b.scaled(side, None, 0.5), inverse, None),), most)
        for side in (b.relu(x), b.relu(b.scaled(x, -1.0, None)))
    ]
    b.bind(node, b.emit("Sub", tuple(sides)))


def _adds_a_mask(b: Builder, node: OnnxNode) -> bool:
    """Whether the node added a constant with minus infinities, or something to such a sum, after
    which a softmax must follow (``Builder.removed``)."""
    tensor, constant = sorted(node.inputs, key=b.is_constant)
    value = b.constants.get(constant, np.zeros(()))
    gone = np.isneginf(value) if value.dtype.kind == "f" else np.zeros((), dtype=bool)
    if b.removed.keys().isdisjoint(node.inputs) and not (node.op == "Add" and gone.any()):
        return False
    if node.op != "Add" or constant not in b.constants:
        raise UnsupportedError(f"node {node.name!r}: arithmetic with minus infinity")
    name = b.scaled(b.node_of(tensor), None, np.where(gone, 0.0, value.astype(np.float64)))
    gone = gone | b.removed.get(tensor, np.zeros((), dtype=bool))
    b.removed[node.outputs[0]] = np.broadcast_to(gone, b.shape(name))
    b.bind(node, name)
    return True


def _with_constant(b: Builder, op: str, x: str, value: np.ndarray) -> str:
    if op == "Add":
        return b.scaled(x, None, value)
    if op == "Sub":
        return b.scaled(x, None, -value)
    if op == "Div":
        if not value.all():
            raise UnsupportedError(f"node {b.source!r} divides by a constant zero")
        return b.scaled(x, 1.0 / value, None)
    return b.scaled(x, value, None)


def within(b: Builder, x: str, square: float) -> str:
    """``x``, of which it is known that ``x^2 <= square``: a limit that changes no value of the real
    function. The runtime's may be a rounding beyond it (``passes.without_limits``)."""
    limit = math.nextafter(math.sqrt(square), math.inf)
    return b.emit("Clip", (x,), {"min": -limit, "max": limit, "is_limit": True})


def _behind(b: Builder, name: str, op: str) -> str:
    """What a node of operator ``op`` reads, also where it was repeated; "" if it is another."""
    node = b.nodes[_once(b, name)]
    return node.inputs[0] if node.op == op else ""


def _once(b: Builder, name: str) -> str:
    while b.nodes[name].op == "Expand":
        name = b.nodes[name].inputs[0]
    return name


def _raised(b: Builder, name: str) -> str:
    """What ``max(x, c)`` with a constant is the maximum of: that is no larger than it."""
    limit = b.nodes[_once(b, name)]
    if limit.op != "Scale" or _behind(b, limit.inputs[0], "Relu") == "":
        return name
    shifted = b.nodes[_behind(b, limit.inputs[0], "Relu")]
    both = [node.params for node in (limit, shifted)]
    if shifted.op != "Scale" or any(params.keys() != {"shift"} for params in both):
        return name
    is_maximum = np.array_equal(both[0]["shift"], -both[1]["shift"])
    return shifted.inputs[0] if is_maximum else name


def norm_limit(b: Builder, x: str, y: str) -> float | None:
    """A bound of ``(x y)^2`` where either is ``1 / sqrt(a sum z^2 + e)`` and the other ``z``.

    Normalisations written out: ``z^2 <= sum z^2``, so with ``e >= 0`` the square is at most
    ``1 / a``.
    """
    for z, inverse in ((x, y), (y, x)):
        root = _behind(b, inverse, "Reciprocal")
        root = _behind(b, _raised(b, root), "Sqrt") if root else ""
        total, share = b.nodes.get(root), 1.0
        while total is not None and total.op == "Scale":
            scale, shift = (total.params.get(key, d) for key, d in (("scale", 1.0), ("shift", 0.0)))
            if np.size(scale) != 1 or not np.min(scale) > 0 or not np.min(shift) >= 0:
                break
            share *= float(np.min(scale))
            total = b.nodes[total.inputs[0]]
        if total is None or total.op != "ReduceSum" or not math.isfinite(1.0 / share):
            continue
        # Without the axis it was summed over, the sum of one line may meet entries of another.
        meets = total.attrs["keepdims"] or len(total.attrs["axes"]) == len(b.shape(z))
        if meets and _behind(b, total.inputs[0], "Square") == z:
            return math.nextafter(1.0 / share, math.inf)
    return None


def product(b: Builder, x: str, y: str) -> str:
    return b.emit("Square", (x,)) if x == y else b.binary("Mul", x, y)


@lowers("Neg")
def negate(b: Builder, node: OnnxNode) -> None:
    b.bind(node, b.scaled(b.node_of(node.inputs[0]), -1.0, None))


@lowers("Sum", "Mean", "Max", "Min")
def variadic(b: Builder, node: OnnxNode) -> None:
    parts = sorted(
        (b.node_of(tensor) for tensor in node.inputs),
        key=lambda part: b.nodes[part].op == "Constant",
    )
    result = parts[0]
    for part in parts[1:]:
        if node.op == "Max":
            result = b.maximum(result, part)
        elif node.op == "Min":
            result = b.minimum(result, part)
        else:
            result = b.binary("Add", result, part)
    b.bind(node, b.scaled(result, 1.0 / len(parts), None) if node.op == "Mean" else result)


@lowers("Pow")
def power(b: Builder, node: OnnxNode) -> None:
    x = b.node_of(node.inputs[0])
    exponents = np.unique(b.constant(node.inputs[1], "the exponent").astype(np.float64))
    exponent = float(exponents[0])
    if len(exponents) != 1 or not -_STEEPEST <= exponent <= _STEEPEST:
        raise UnsupportedError(f"node {node.name!r}: Pow with exponent {exponents[:3].tolist()}")
    x = b.expanded(x, np.broadcast_shapes(b.shape(x), b.constants[node.inputs[1]].shape))
    if exponent == 0.0:
        b.bind(node, b.known(np.ones(b.shape(x))))
    elif exponent == 0.5:
        b.bind(node, b.emit("Sqrt", (x,)))
    elif exponent != int(exponent):  # of numbers above zero; of others there is no power
        b.bind(node, b.emit("Exp", (b.scaled(b.emit("Log", (x,)), exponent, None),)))
    else:
        value = _whole_power(b, x, abs(int(exponent)))
        b.bind(node, value if exponent > 0 else b.emit("Reciprocal", (value,)))


def _whole_power(b: Builder, x: str, exponent: int) -> str:
    result, square, remaining = "", x, exponent
    while remaining:
        if remaining & 1:
            result = product(b, result, square) if result else square
        remaining >>= 1
        if remaining:
            square = product(b, square, square)
    return result
