"""The sign of a difference of two entries of one tensor, without the rising functions around them.

For every strictly rising ``f``, ``sign(f(a) - f(b)) = sign(a - b)``, and what is added to both
cancels: of ``argmax softmax x`` the differences of the logits are left. Where these are two
channels ``i`` and ``j`` of a convolution at the same pixel, they are one convolution, with the
weights ``W_i - W_j`` (one rounding in float64). This holds of the real functions: a computed one
may make a tie of what is none, so nodes that say how they round are not passed.

Entries are followed backward by their flat places.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from bitcrown.model.fusion import carried_by, carrying, offset_of
from bitcrown.model.graph import Node
from bitcrown.model.registry import op_row

_Places = np.ndarray[Any, Any]
_MOVES = ("Reshape", "Transpose", "Slice", "Gather", "Expand")
_RISING = ("Exp", "Sigmoid", "Tanh", "Softplus", "Log", "Sqrt", "Erf", "Atan")
"""Strictly, wherever they are defined."""
_IMAGE_RANK = 4


def sign_of_entries(
    node: Node, nodes: Mapping[str, Node], readers: Mapping[str, int]
) -> str | tuple[Node, ...]:
    """The rule (``passes``): a ``Sign`` of a difference of entries, said by earlier ones."""
    if node.op != "Sign" or node.rounding is not None:
        return (node,)
    difference = nodes[node.inputs[0]]
    if difference.op != "Sub" or difference.rounding is not None:
        return (node,)
    every = np.arange(difference.size)
    ends = [_origin(nodes, name, every) for name in difference.inputs]
    (origin, first), (other, second) = ends
    if origin.name != other.name:
        return (node,)
    is_passed = False
    while (inner := _inside(nodes, origin, first, second)) is not None:
        (origin, first), (_, second) = (_origin(nodes, inner, part) for part in (first, second))
        is_passed = True
    joined = _channels(node, origin, first, second)
    if joined is None and is_passed:
        joined = _gathered(node, origin, first, second)
    if joined is None:
        return (node,)
    shaped = _made(node, "shaped", "Reshape", joined[-1].name, difference.shape)
    return *joined, shaped, replace(node, inputs=(shaped.name,))


def _origin(nodes: Mapping[str, Node], name: str, places: _Places) -> tuple[Node, _Places]:
    """The node whose entries are those of ``name`` at ``places``, and where they are there."""
    node = nodes[name]
    while node.op in _MOVES and node.rounding is None:
        source = nodes[node.inputs[0]]
        numbers = torch.arange(source.size).reshape(1, *source.shape)
        moved = op_row(node.op).forward(node, {}, [numbers])
        places = moved.flatten().numpy()[places]
        node = source
    return node, places


def _inside(nodes: Mapping[str, Node], node: Node, first: _Places, second: _Places) -> str | None:
    """The operand of ``node`` whose entries differ with the same sign; None where there is none."""
    if node.rounding is not None:
        return None
    if node.op in _RISING:
        return node.inputs[0]
    if node.op not in ("Add", "Sub", "LogShare"):
        return None
    if any(nodes[name].shape != node.shape for name in node.inputs):
        return None
    for kept, dropped in ((0, 1), (1, 0)) if node.op == "Add" else ((0, 1),):
        one, other = (_origin(nodes, node.inputs[dropped], part)[1] for part in (first, second))
        if np.array_equal(one, other):
            return node.inputs[kept]
    return None


def _channels(node: Node, origin: Node, first: _Places, second: _Places) -> tuple[Node, ...] | None:
    """The difference of two channels of a convolution, all over the image."""
    is_image = origin.op == "Conv" and len(origin.shape) == _IMAGE_RANK and origin.shape[0] == 1
    if not is_image or origin.rounding is not None or origin.attrs["group"] != 1:
        return None
    pixels = origin.shape[2] * origin.shape[3]
    every = np.arange(pixels)
    if not all(np.array_equal(part % pixels, every) for part in (first, second)):
        return None
    i, j = (part // pixels for part in (first, second))
    if np.any(i != i[0]) or np.any(j != j[0]):
        return None
    weight, bias = origin.params["weight"].astype(np.float64), offset_of(origin)
    bias = np.broadcast_to(bias, (len(weight),)).astype(np.float64)
    k, m = int(i[0]), int(j[0])
    offset, sizes = bias[k : k + 1] - bias[m : m + 1], np.abs(bias[[k]]) + np.abs(bias[[m]])
    made = replace(
        origin,
        name=f"{node.name}/difference",
        shape=(1, 1, *origin.shape[2:]),
        params={"weight": weight[k : k + 1] - weight[m : m + 1], "bias": offset},
        attrs=carrying(origin.attrs, offset, sizes, 2 * carried_by(origin)),
    )
    return (made,)


def _gathered(node: Node, origin: Node, first: _Places, second: _Places) -> tuple[Node, ...]:
    """The difference of entries at any places."""
    flat = _made(node, "flat", "Reshape", origin.name, (origin.size,))
    parts = [
        _made(node, name, "Gather", flat.name, places.shape, axis=0, indices=places)
        for name, places in (("first", first), ("second", second))
    ]
    names = parts[0].name, parts[1].name
    difference = Node(f"{node.name}/difference", "Sub", names, first.shape, source=node.source)
    return flat, *parts, difference


def _made(
    node: Node, suffix: str, op: str, source: str, shape: tuple[int, ...], **attrs: Any
) -> Node:
    attrs = {"shape": shape} if op == "Reshape" else attrs
    return Node(f"{node.name}/{suffix}", op, (source,), shape, attrs, source=node.source)
