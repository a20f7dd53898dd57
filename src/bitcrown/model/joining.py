"""Several networks as one: for queries that relate them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

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


def part_of(graph: Graph, prefix: str) -> Graph:
    """One of the networks that ``graph`` joins, with the names that it had."""
    start = len(prefix) + 1

    def own(names: Iterable[str]) -> tuple[str, ...]:
        return tuple(name[start:] for name in names if name.startswith(f"{prefix}:"))

    nodes = {
        name[start:]: replace(node, name=name[start:], inputs=own(node.inputs))
        for name, node in graph.nodes.items()
        if name.startswith(f"{prefix}:")
    }
    of_inputs = zip(graph.inputs, graph.input_dtypes, strict=True)
    dtypes = tuple(dtype for name, dtype in of_inputs if name.startswith(f"{prefix}:"))
    return Graph(nodes, own(graph.inputs), own(graph.outputs), dtypes)


def are_equal(one: Graph, other: Graph) -> bool:
    """Whether two graphs are node by node the same."""
    ends = [(graph.inputs, graph.outputs, list(graph.nodes)) for graph in (one, other)]
    return ends[0] == ends[1] and all(
        (node.op, node.inputs, node.shape, node.rounding)
        == (twin.op, twin.inputs, twin.shape, twin.rounding)
        and _has_same_values(node.attrs, twin.attrs)
        and _has_same_values(node.params, twin.params)
        for node, twin in zip(one.nodes.values(), other.nodes.values(), strict=True)
    )


def _has_same_values(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return one.keys() == other.keys() and all(
        np.array_equal(value, other[key])
        if isinstance(value, np.ndarray)
        else repr(value) == repr(other[key])
        for key, value in one.items()
    )
