"""ReLUs in mirrored pairs become one: ``max(-z, 0) = max(z, 0) - z``, exactly.

Networks that compute minima, maxima or absolute values in a layer have neurons whose
pre-activations are each other's negatives (``min(a, b) = (s - |d|) / 2`` with ``s = a + b``,
``d = a - b``, and each of ``s`` and ``|d|`` is a sum of two ReLUs). A relaxation does not know
that: it bounds the two apart, and even ``max(s, 0) - max(-s, 0)``, which is ``s``, becomes an
interval. Here the second of each pair is replaced, so that what is linear is linear again, and a
ReLU whose two shares cancel goes.

For ``y = C relu(z) + c`` with ``z = B x + b`` and ``z_j = -z_i`` for the pairs ``(i, j)``:

    y = sum_i (C_i + C_j) relu(z_i)  -  sum_i C_j (B_i x + b_i)  +  ...  + c.

The network is the same real function up to the rounding of ``C_i + C_j`` and ``C_j B_i`` in float64
(law d of the passes). Equal neurons are merged by the same step, without the linear part.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from bitcrown.model.fusion import carried_by, carrying, largest_row, offset_of
from bitcrown.model.graph import Graph, Node
from bitcrown.model.merged_weights import product_of_weights, sums_of_weights
from bitcrown.model.passes import simplified

_Array = np.ndarray[Any, Any]

WORTH = 0.25
"""Share of a layer's ReLUs that must go for a second path around it to pay."""


def without_mirrored_neurons(graph: Graph) -> Graph:
    """The same function with every mirrored pair of ReLUs as one; ``graph`` itself where there are
    none, or where the runtime's rounding of single nodes counts."""
    if any(node.rounding is not None for node in graph.nodes.values()):
        return graph
    readers = graph.consumers()
    nodes: dict[str, Node] = {}
    is_changed = False
    for node in graph.nodes.values():
        layer = _layer(node, graph.nodes, readers, graph.outputs)
        parts = None if layer is None else _unmirrored(*layer)
        is_changed |= parts is not None
        for part in (node,) if parts is None else parts:
            nodes[part.name] = part
    if not is_changed:
        return graph
    return simplified(replace(graph, nodes=nodes))


def _layer(
    node: Node,
    nodes: Mapping[str, Node],
    readers: Mapping[str, list[str]],
    outputs: tuple[str, ...],
) -> tuple[Node, Node, Node] | None:
    """``Linear``, ``Relu`` and ``node``, the ``Linear`` that alone reads it."""
    if node.op != "Linear" or nodes[node.inputs[0]].op != "Relu":
        return None
    relu = nodes[node.inputs[0]]
    first = nodes[relu.inputs[0]]
    is_inner = all(
        len(readers[inner.name]) == 1 and inner.name not in outputs for inner in (relu, first)
    )
    return (first, relu, node) if first.op == "Linear" and is_inner else None


def _pairs(weight: _Array, bias: _Array) -> tuple[_Array, _Array]:
    """``keeper [N]``: an earlier neuron (or itself) with the same or the negated row, and
    ``sign [N]``: which of the two."""
    rows = np.concatenate([weight, bias[:, None]], axis=1) + 0.0  # no negative zeros
    keeper, sign = np.arange(len(rows)), np.ones(len(rows))
    seen: dict[bytes, int] = {}
    for k, row in enumerate(rows):
        for value, side in ((row, 1.0), (0.0 - row, -1.0)):
            if value.tobytes() in seen:
                keeper[k], sign[k] = seen[value.tobytes()], side
                break
        else:
            seen[row.tobytes()] = k
    return keeper, sign


def _unmirrored(first: Node, relu: Node, second: Node) -> tuple[Node, ...] | None:
    """Nodes in place of ``second``, or None where too few neurons have a partner."""
    inner = first.params["weight"].astype(np.float64)
    outer = second.params["weight"].astype(np.float64)
    shift = np.broadcast_to(first.params.get("bias", np.zeros(())), (len(inner),)).astype(float)
    keeper, sign = _pairs(inner, shift)
    gathered = sums_of_weights(outer.T, keeper)
    if gathered is None:
        return None
    is_kept = (gathered != 0).any(axis=1)
    if is_kept.sum() > (1 - WORTH) * len(inner):
        return None
    mirrored = np.nonzero(sign < 0)[0]
    factor = -outer[:, mirrored]
    skip = product_of_weights(factor, inner[keeper[mirrored]])
    if skip is None:
        return None
    offset = factor @ shift[keeper[mirrored]]
    offset = offset + np.broadcast_to(second.params.get("bias", np.zeros(())), offset.shape)
    sizes = np.abs(factor) @ np.abs(shift[keeper[mirrored]]) + np.abs(offset_of(second))
    before = largest_row(factor) * carried_by(first) + carried_by(second)
    around = Node(
        f"{second.name}.around",
        "Linear",
        first.inputs,
        second.shape,
        carrying({}, offset, sizes, before),
        {"weight": skip, "bias": offset},
        second.source,
    )
    if not is_kept.any():
        return (replace(around, name=second.name),)
    hidden = (*first.shape[:-1], int(is_kept.sum()))
    z = Node(
        f"{second.name}.z",
        "Linear",
        first.inputs,
        hidden,
        first.attrs,
        {"weight": inner[is_kept], "bias": shift[is_kept]},
        first.source,
    )
    a = Node(f"{second.name}.a", "Relu", (z.name,), hidden, {}, {}, relu.source)
    through = Node(
        f"{second.name}.through",
        "Linear",
        (a.name,),
        second.shape,
        {},
        {"weight": gathered[is_kept].T.copy()},
        second.source,
    )
    return (
        z,
        a,
        around,
        through,
        replace(second, op="Add", inputs=(around.name, through.name), params={}),
    )
