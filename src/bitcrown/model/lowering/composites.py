"""Operators that are read as several other ones, each with its rounding.

``QAttention`` (what BERT-like networks hold after their optimiser and ``quantize_dynamic``) is a
product of integers, scaled and with a bias; its columns are queries, keys and values of every head,
in this order; then scaled products, a softmax over keys, and products with values.

``MatMulNBits`` is a product with a known matrix ``(q - z) s``, whose integers of four bits are
packed in pairs, the lower half first, in blocks along the inner axis with a scale and a zero point
each. What its kernel does with the input in integers (``accuracy_level`` 4) is not this product.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np

from bitcrown.errors import ModelError, UnsupportedError
from bitcrown.model.lowering.branches import branches_of_if
from bitcrown.model.lowering.builder import Builder, OnnxNode
from bitcrown.model.lowering.loops import unrolled
from bitcrown.model.lowering.spectra import frames_and_product

_CONTRIB = "com.microsoft."
_OPSET = 17
"""In which the nodes are written."""


def _written(node: OnnxNode, op: str, inputs: list[str], to: str, **attrs: object) -> OnnxNode:
    return OnnxNode(op, node.name, tuple(inputs), (to,), attrs, _OPSET)


def _known(b: Builder, node: OnnxNode, suffix: str, value: np.ndarray) -> str:
    name = f"{node.outputs[0]}/{suffix}"
    b.constants[name] = value
    return name


def _attention(b: Builder, node: OnnxNode) -> list[OnnxNode]:
    """Inputs: integers ``[B, T, E]``, weight ``[E, 3 H]``, bias, their scales, a mask, their zero
    points, the past."""
    x, weight, bias, x_scale, w_scale, mask, x_zero, w_zero, past = (*node.inputs, *[""] * 9)[:9]
    if mask or past or any(node.attrs.get(key, 0) for key in ("unidirectional", "do_rotary")):
        raise UnsupportedError(
            f"node {node.name!r}: QAttention with a mask, a past or an order of its tokens"
        )
    width, heads = b.constant(weight, "the weight").shape[-1], int(node.attrs["num_heads"])
    if heads < 1 or width % (3 * heads):
        raise ModelError(f"node {node.name!r} splits {width} columns among {heads} heads")
    size, out = width // (3 * heads), node.outputs[0]
    shape = _known(b, node, "shape", np.array([0, 0, 3, heads, size]))
    joined = _known(b, node, "joined", np.array([0, 0, heads * size]))
    all_, split, turned, scores, shares, seen, back = (
        f"{out}/{part}" for part in ("all", "split", "turned", "scores", "shares", "seen", "back")
    )
    product = [x, weight, x_scale, w_scale, x_zero, w_zero, bias]
    nodes = [
        _written(node, _CONTRIB + "MatMulIntegerToFloat", product, all_),
        _written(node, "Reshape", [all_, shape], split),
        _written(node, "Transpose", [split], turned, perm=[2, 0, 3, 1, 4]),
    ]
    parts = [f"{out}/{part}" for part in ("queries", "keys", "values")]
    for place, part in enumerate(parts):
        index = _known(b, node, f"place {place}", np.array(place))
        nodes.append(_written(node, "Gather", [turned, index], part, axis=0))
    scaled = {"transB": 1, "alpha": 1.0 / math.sqrt(size)}
    return [
        *nodes,
        _written(node, _CONTRIB + "FusedMatMul", parts[:2], scores, **scaled),
        _written(node, "Softmax", [scores], shares, axis=-1),
        _written(node, "MatMul", [shares, parts[2]], seen),
        _written(node, "Transpose", [seen], back, perm=[0, 2, 1, 3]),
        _written(node, "Reshape", [back, joined], out),
    ]


def _packed_product(b: Builder, node: OnnxNode) -> list[OnnxNode]:
    """Inputs: a tensor ``[.., K]``, packed integers ``[N, blocks, bytes]``, scales, zero points,
    an order of the rows, a bias."""
    x, weight, scale, zero, order, bias = (*node.inputs, *[""] * 6)[:6]
    bits, level = int(node.attrs.get("bits", 4)), int(node.attrs.get("accuracy_level", 0))
    if bits != 4 or level not in (0, 1) or order:
        raise UnsupportedError(
            f"node {node.name!r}: MatMulNBits of {bits} bits and accuracy level {level}"
            f"{' with an order of its rows' * bool(order)}; 4 bits and level 0 or 1 are supported"
        )
    rows, columns = int(node.attrs["N"]), int(node.attrs["K"])
    block = int(node.attrs["block_size"])
    blocks = -(-columns // block)
    scales = b.constant(scale, "the scales").astype(np.float64).reshape(rows, blocks, 1)
    zeros = np.full((rows, blocks, 1), 8.0)
    if zero:
        given = b.constant(zero, "the zero points")
        if given.dtype == np.uint8:
            given = _unpacked(given.reshape(rows, -1))[:, :blocks]
        zeros = given.astype(np.float64).reshape(rows, blocks, 1)
    packed = b.constant(weight, "the weight").reshape(rows, blocks, -1)
    ints = _unpacked(packed).astype(np.float64)
    matrix = ((ints - zeros) * scales).reshape(rows, -1)[:, :columns].T
    known = _known(b, node, "matrix", np.ascontiguousarray(matrix))
    out = node.outputs[0]
    sums = f"{out}/sums" if bias else out
    nodes = [_written(node, _CONTRIB + "FusedMatMul", [x, known], sums)]
    return [*nodes, _written(node, "Add", [sums, bias], out)] if bias else nodes


def _unpacked(pairs: np.ndarray) -> np.ndarray:
    """Bytes ``[.., n]`` as halves ``[.., 2 n]``, the lower one first."""
    return np.stack([pairs & 15, pairs >> 4], axis=-1).reshape(*pairs.shape[:-1], -1)


COMPOSITES: dict[str, Callable[[Builder, OnnxNode], Iterable[OnnxNode]]] = {
    "If": branches_of_if,
    "Loop": unrolled,
    "STFT": frames_and_product,
    _CONTRIB + "QAttention": _attention,
    _CONTRIB + "MatMulNBits": _packed_product,
}
