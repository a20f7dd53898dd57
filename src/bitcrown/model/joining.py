"""Several networks as one: for queries that relate them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from bitcrown.model.graph import Graph, Node


def join(graphs: Mapping[str, Graph]) -> Graph:
    """Disjoint union; names get the network's name in front, inputs and outputs follow the order of
    the mapping. One network alone stays as it is."""
    if len(graphs) == 1:
        return next(iter(graphs.values()))
    nodes: dict[str, Node] = {}
    inputs: list[str] = []
    outputs: list[str] = []
    dtypes: list[str] = []
    for prefix, graph in graphs.items():
        for node in graph.nodes.values():
            name = f"{prefix}:{node.name}"
            nodes[name] = replace(
                node, name=name, inputs=tuple(f"{prefix}:{source}" for source in node.inputs)
            )
        inputs += [f"{prefix}:{name}" for name in graph.inputs]
        outputs += [f"{prefix}:{name}" for name in graph.outputs]
        dtypes += list(graph.input_dtypes)
    return Graph(nodes, tuple(inputs), tuple(outputs), tuple(dtypes))
