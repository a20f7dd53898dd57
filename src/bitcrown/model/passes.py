"""Graph to graph, outputs unchanged (law d): each pass removes work that every later bound would repeat."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from bitcrown.model.graph import Graph, Node


def simplified(graph: Graph) -> Graph:
    """All passes: fold scales into weights, drop what nothing reads."""
    return without_dead_nodes(fold_scales(without_dead_nodes(graph)))


def without_dead_nodes(graph: Graph) -> Graph:
    """Keep the inputs and what the outputs need."""
    needed = set(graph.outputs) | set(graph.inputs)
    for node in reversed(list(graph.nodes.values())):
        if node.name in needed:
            needed.update(node.inputs)
    return replace(graph, nodes={name: node for name, node in graph.nodes.items() if name in needed})


def fold_scales(graph: Graph) -> Graph:
    """``Scale`` after ``Linear``, ``Conv``, ``ConvTranspose`` or ``Scale`` with no other reader becomes part of it.

    The product of two float32 weights needs up to 48 bits, so float64 holds it exactly; sums of biases are rounded to
    float64, far below the tolerance that the load check allows.
    """
    nodes: dict[str, Node] = {}
    renamed: dict[str, str] = {}
    readers = graph.consumers()
    for node in graph.nodes.values():
        node = replace(node, inputs=tuple(renamed.get(name, name) for name in node.inputs))
        source = nodes.get(node.inputs[0]) if len(node.inputs) == 1 else None
        if node.op == "Scale" and source is not None and _only_reader(graph, readers, source.name, renamed):
            merged = _merged(source, node)
            if merged is not None:
                nodes[source.name] = merged
                renamed[node.name] = source.name
                continue
        nodes[node.name] = node
    outputs = tuple(renamed.get(name, name) for name in graph.outputs)
    return replace(graph, nodes=nodes, outputs=outputs)


def _only_reader(graph: Graph, readers: dict[str, list[str]], name: str, renamed: dict[str, str]) -> bool:
    """Whether the tensor now called ``name`` had one reader; merged names stand for the last tensor merged."""
    last = name
    for old, new in renamed.items():
        if new == name:
            last = old
    return len(readers[last]) == 1 and last not in graph.outputs


def _per_channel(value: np.ndarray, rank: int, axis: int, extent: int) -> np.ndarray | None:
    """``value`` as ``[extent]`` if it varies along ``axis`` only (broadcast against a tensor of ``rank``)."""
    full = value.reshape((1,) * (rank - value.ndim) + value.shape)
    if any(size != 1 for i, size in enumerate(full.shape) if i != axis):
        return None
    return np.broadcast_to(full.reshape(-1), (extent,))


def _merged(source: Node, scale: Node) -> Node | None:
    rank = len(source.shape)
    axis = {"Linear": rank - 1, "Conv": 1, "ConvTranspose": 1}.get(source.op)
    if axis is None or scale.shape != source.shape:
        return None
    extent = source.shape[axis]
    gain = _per_channel(scale.params.get("scale", np.ones(())), rank, axis, extent)
    shift = _per_channel(scale.params.get("shift", np.zeros(())), rank, axis, extent)
    if gain is None or shift is None:
        return None
    weight = source.params["weight"].astype(np.float64)
    if source.op == "ConvTranspose":
        if source.attrs["group"] != 1:
            return None
        weight = weight * gain.reshape(1, -1, *([1] * (weight.ndim - 2)))
    else:
        weight = weight * gain.reshape(-1, *([1] * (weight.ndim - 1)))
    bias = source.params.get("bias", np.zeros(extent)) * gain + shift
    return replace(source, params={"weight": weight, "bias": bias})
