"""Neurons of one network in the order of another's.

A network without some of its neurons, or one that another tool has written, may list those of a
layer in any order, and then no neuron is like its partner. But a layer that only feeds layers of
the same kind, through elementwise functions, may be reordered as long as its readers' weights
follow: the same function, since a sum does not know the order of its terms.

Neurons are matched by their weights, layer by layer, with operands in the order that the layers
before have got. What a removed operand would have added is the same for all neurons of the pruned
layer, so distances count from the nearest one. Nothing is believed of a match: differences of
networks hold in any order, and are small in a good one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np

from bitcrown.model.graph import Graph, Node
from bitcrown.model.registry import op_row

_LAYERS = ("Linear", "Conv")
_LARGEST = 1 << 29
"""Entries of all differences of two neurons' weights: about a second."""


def in_order_of_partners(graph: Graph, second: Iterable[str], partner: Mapping[str, str]) -> Graph:
    """``graph`` with neurons of the nodes ``second`` in the order of those of their ``partner``,
    where they are free to be reordered and that brings their weights closer."""
    nodes, consumers = dict(graph.nodes), graph.consumers()
    order: dict[str, np.ndarray] = {}
    for name in second:
        node = nodes[name]
        moved = order.get(node.inputs[0]) if len(node.inputs) == 1 else None
        if node.op in _LAYERS and moved is not None:
            node = replace(node, params={**node.params, "weight": node.params["weight"][:, moved]})
        elif moved is not None:
            order[name] = moved
        if name in partner and _is_free(graph, consumers, node):
            found = _matching(node, graph.nodes[partner[name]])
            if found is not None:
                order[name] = found
                node = replace(node, params={k: value[found] for k, value in node.params.items()})
        nodes[name] = node
    return replace(graph, nodes=nodes)


def _is_free(graph: Graph, consumers: Mapping[str, list[str]], node: Node) -> bool:
    """Whether all that reads a layer, through elementwise functions, are layers of its kind."""
    if node.op not in _LAYERS or node.params.keys() - {"weight", "bias"} or _groups(node) != 1:
        return False
    waiting = [node.name]
    while waiting:
        name = waiting.pop()
        if name in graph.outputs:
            return False
        for reader in (graph.nodes[reader] for reader in consumers[name]):
            if reader.op == node.op and _groups(reader) == 1:
                continue
            row = op_row(reader.op)
            if row.is_affine or not row.is_local or len(reader.inputs) != 1 or reader.params:
                return False
            waiting.append(reader.name)
    return True


def _groups(node: Node) -> int:
    return int(node.attrs.get("group", 1))


def _matching(node: Node, other: Node) -> np.ndarray | None:
    """For each neuron of ``other`` the one of ``node`` that takes its place; None where the order
    stays."""
    if node.op != other.op or {k: v.shape for k, v in node.params.items()} != {
        k: v.shape for k, v in other.params.items()
    }:
        return None
    mine, theirs = (
        np.concatenate([v.reshape(len(v), -1).astype(np.float64) for v in n.params.values()], 1)
        for n in (node, other)
    )
    count = len(mine)
    if count * mine.size > _LARGEST or not (np.isfinite(mine) & np.isfinite(theirs)).all():
        return None
    distance = np.stack([np.abs(mine - row).sum(axis=1) for row in theirs], axis=1)
    near = distance - distance.min(axis=0)
    found, taken = np.full(count, -1), np.zeros(count, dtype=bool)
    for flat in np.argsort(near, axis=None, kind="stable").tolist():
        i, j = divmod(flat, count)
        if found[j] == -1 and not taken[i]:
            found[j], taken[i] = i, True
    places = np.arange(count)
    is_closer = distance[found, places].sum() < distance[places, places].sum()
    return found if is_closer else None
