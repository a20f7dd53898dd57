"""Elementwise arithmetic, sums and powers."""

from __future__ import annotations

import numpy as np

from bitcrown.errors import UnsupportedError
from bitcrown.model.lowering.builder import Builder, OnnxNode, lowers


@lowers("Add", "Sub", "Mul", "Div")
def arithmetic(b: Builder, node: OnnxNode) -> None:
    left, right = node.inputs
    if b.is_constant(right):
        b.bind(node, _with_constant(b, node.op, b.node_of(left), b.constants[right].astype(np.float64)))
        return
    if b.is_constant(left):
        value = b.constants[left].astype(np.float64)
        other = b.node_of(right)
        if node.op == "Div":
            other = b.emit("Reciprocal", (other,))
        result = b.scaled(other, -1.0, value) if node.op == "Sub" else None
        b.bind(node, result or _with_constant(b, "Mul" if node.op == "Div" else node.op, other, value))
        return
    x, y = b.node_of(left), b.node_of(right)
    if node.op in ("Add", "Sub"):
        b.bind(node, b.binary(node.op, x, y))
    else:
        b.bind(node, product(b, x, b.emit("Reciprocal", (y,)) if node.op == "Div" else y))


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


def product(b: Builder, x: str, y: str) -> str:
    return b.emit("Square", (x,)) if x == y else b.binary("Mul", x, y)


@lowers("Neg")
def negate(b: Builder, node: OnnxNode) -> None:
    b.bind(node, b.scaled(b.node_of(node.inputs[0]), -1.0, None))


@lowers("Sum", "Mean", "Max", "Min")
def variadic(b: Builder, node: OnnxNode) -> None:
    parts = [b.node_of(tensor) for tensor in node.inputs]
    result = parts[0]
    for part in parts[1:]:
        if node.op == "Max":
            result = b.maximum(result, part)
        elif node.op == "Min":
            result = b.scaled(b.maximum(b.scaled(result, -1.0, None), b.scaled(part, -1.0, None)), -1.0, None)
        else:
            result = b.binary("Add", result, part)
    b.bind(node, b.scaled(result, 1.0 / len(parts), None) if node.op == "Mean" else result)


@lowers("Pow")
def power(b: Builder, node: OnnxNode) -> None:
    x = b.node_of(node.inputs[0])
    exponents = np.unique(b.constant(node.inputs[1], "the exponent").astype(np.float64))
    exponent = float(exponents[0])
    if len(exponents) != 1 or (exponent not in (-1.0, 0.5) and not (exponent == int(exponent) and 1 <= exponent <= 8)):
        raise UnsupportedError(f"node {node.name!r}: Pow with exponent {exponents[:3].tolist()}")
    if exponent in (-1.0, 0.5):
        b.bind(node, b.emit("Reciprocal" if exponent < 0 else "Sqrt", (x,)))
        return
    result, square, remaining = "", x, int(exponent)
    while remaining:
        if remaining & 1:
            result = product(b, result, square) if result else square
        remaining >>= 1
        if remaining:
            square = b.emit("Square", (square,))
    b.bind(node, result)


def reduction_axes(b: Builder, node: OnnxNode, rank: int) -> tuple[tuple[int, ...], bool]:
    """Axes (as attribute or second input) and keepdims of a reduction."""
    if len(node.inputs) > 1 and node.inputs[1]:
        axes = b.integers(node.inputs[1], "the axes")
    else:
        axes = list(node.attrs.get("axes", range(rank)))
    return tuple(sorted(b.axis(axis, rank) for axis in axes)), bool(node.attrs.get("keepdims", 1))


@lowers("ReduceSum", "ReduceMean", "GlobalAveragePool")
def reduce_sum(b: Builder, node: OnnxNode) -> None:
    x = b.node_of(node.inputs[0])
    shape = b.shape(x)
    if node.op == "GlobalAveragePool":
        axes, keep = tuple(range(2, len(shape))), True
    else:
        axes, keep = reduction_axes(b, node, len(shape))
    result = b.emit("ReduceSum", (x,), {"axes": axes, "keepdims": keep})
    if node.op != "ReduceSum":
        result = b.scaled(result, 1.0 / float(np.prod([shape[axis] for axis in axes])), None)
    b.bind(node, result)


@lowers("ReduceMax", "ReduceMin", "GlobalMaxPool")
def reduce_max(b: Builder, node: OnnxNode) -> None:
    x = b.node_of(node.inputs[0])
    shape = b.shape(x)
    if node.op == "GlobalMaxPool":
        axes, keep = tuple(range(2, len(shape))), True
    else:
        axes, keep = reduction_axes(b, node, len(shape))
    if node.op == "ReduceMin":
        x = b.scaled(x, -1.0, None)
    for axis in axes:
        parts = []
        for index in range(shape[axis]):
            cut = [(0, extent, 1) for extent in b.shape(x)]
            cut[axis] = (index, index + 1, 1)
            parts.append(b.emit("Slice", (x,), {"slices": tuple(cut)}))
        x = tournament(b, parts)
    if not keep:
        x = b.reshaped(x, [extent for axis, extent in enumerate(shape) if axis not in axes])
    b.bind(node, b.scaled(x, -1.0, None) if node.op == "ReduceMin" else x)


def tournament(b: Builder, parts: list[str]) -> str:
    """Maximum of equally shaped nodes as a balanced tree: depth log2, one ReLU a comparison."""
    while len(parts) > 1:
        winners = [b.maximum(parts[i], parts[i + 1]) for i in range(0, len(parts) - 1, 2)]
        parts = winners + ([parts[-1]] if len(parts) % 2 else [])
    return parts[0]
