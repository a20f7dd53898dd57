"""Graph to graph, outputs unchanged (law d): each pass removes work that every later bound would
repeat.

A pass visits the nodes in order and puts, for each of them, another node or an earlier one in its
place. Weights are merged in float64, those that cancel exactly (``merged_weights``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from bitcrown.model.entry_signs import sign_of_entries
from bitcrown.model.fusion import fused
from bitcrown.model.graph import Graph, Node
from bitcrown.model.weighted_mean import centred

_Rule = Callable[[Node, Mapping[str, Node], Mapping[str, int]], "str | tuple[Node, ...]"]
"""``rule(node, earlier nodes, number of readers of each)`` gives the name of an equal earlier node,
or what to put in place of ``node``, the last of which has its name."""

_ROUNDS = 20


def simplified(graph: Graph) -> Graph:
    """All passes, repeated until nothing changes."""
    for _ in range(_ROUNDS):
        before = [(node.name, node.op, node.inputs) for node in graph.nodes.values()]
        graph = rewritten(rewritten(merge_equal(without_dead_nodes(graph)), fused), centred)
        graph = rewritten(graph, sign_of_entries)
        graph = without_dead_nodes(graph)
        if before == [(node.name, node.op, node.inputs) for node in graph.nodes.values()]:
            break
    return graph


def without_equal_nodes(graph: Graph) -> Graph:
    """What may be left out where nodes are rounded: nothing that would be computed in another
    way."""
    return without_dead_nodes(merge_equal(without_dead_nodes(graph)))


def without_roundings(graph: Graph) -> Graph:
    """The network as a real function. What whole numbers wrap around at stays."""
    graph = rewritten(graph, _unperturbed)
    nodes = {
        name: replace(node, rounding=None) if node.rounding and node.rounding.unit else node
        for name, node in graph.nodes.items()
    }
    return replace(graph, nodes=nodes)


def _unperturbed(
    node: Node, nodes: Mapping[str, Node], readers: Mapping[str, int]
) -> str | tuple[Node, ...]:
    return node.inputs[0] if node.op == "Perturb" else (node,)


def without_limits(graph: Graph) -> Graph:
    """The network without limits that only hold of the real function."""

    def unlimited(
        node: Node, nodes: Mapping[str, Node], readers: Mapping[str, int]
    ) -> str | tuple[Node, ...]:
        return node.inputs[0] if "is_limit" in node.attrs else (node,)

    return rewritten(graph, unlimited)


def without_dead_nodes(graph: Graph) -> Graph:
    """Keep the inputs and what the outputs need."""
    needed = set(graph.outputs) | set(graph.inputs)
    for node in reversed(list(graph.nodes.values())):
        if node.name in needed:
            needed.update(node.inputs)
    return replace(
        graph, nodes={name: node for name, node in graph.nodes.items() if name in needed}
    )


def rewritten(graph: Graph, rule: _Rule) -> Graph:
    """Apply ``rule`` once to every node; readers of replaced nodes follow."""
    nodes: dict[str, Node] = {}
    alias: dict[str, str] = {}
    readers = {
        name: len(found) + graph.outputs.count(name) for name, found in graph.consumers().items()
    }
    for original in graph.nodes.values():
        node = replace(original, inputs=tuple(alias.get(name, name) for name in original.inputs))
        result = rule(node, nodes, readers) if node.op != "Input" else (node,)
        if isinstance(result, str):
            # The earlier node gets this one's readers and loses this one as a reader. (A node that
            # is merely equal never read it: the count is then one short until the next pass. It
            # only decides whether work would be done twice.)
            alias[node.name] = result
            readers[result] += readers[node.name] - 1
            continue
        for new in result:
            nodes[new.name] = new
            readers.setdefault(new.name, 1)
    return replace(
        graph, nodes=nodes, outputs=tuple(alias.get(name, name) for name in graph.outputs)
    )


def merge_equal(graph: Graph) -> Graph:
    """Nodes that compute the same from the same inputs become one, and ``Mul`` of a node with
    itself a ``Square``."""
    seen: dict[object, list[Node]] = {}

    def rule(
        node: Node, nodes: Mapping[str, Node], readers: Mapping[str, int]
    ) -> str | tuple[Node, ...]:
        if node.op == "Mul" and node.inputs[0] == node.inputs[1]:
            node = replace(node, op="Square", inputs=node.inputs[:1])
        candidates = seen.setdefault(_fingerprint(node), [])
        for other in candidates:
            if all(np.array_equal(value, other.params[key]) for key, value in node.params.items()):
                return other.name
        candidates.append(node)
        return (node,)

    return rewritten(graph, rule)


def _fingerprint(node: Node) -> object:
    """Equal for nodes that differ at most in the values of their parameters; a rounding is a node's
    own."""
    attrs = tuple((key, _frozen(value)) for key, value in sorted(node.attrs.items()))
    return (
        node.op,
        "" if node.rounding is None else node.name,
        node.inputs,
        node.shape,
        attrs,
        tuple((key, value.shape) for key, value in sorted(node.params.items())),
    )


def _frozen(value: object) -> object:
    if isinstance(value, np.ndarray):
        return value.shape, value.tobytes()
    return repr(value)
