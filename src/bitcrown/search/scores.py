"""Where an attack aims if outputs are only compared: at what stands before a rising function.

``softmax(z)_i >= softmax(z)_j`` says the same of real numbers as ``z_i >= z_j``, but where a
softmax is sure of itself it is flat to the last bit, and a descent has no slope to follow. So where
every row that reads an output is ``c (y_i - y_j) <= 0``, what rises is taken away from behind it:
``exp`` and other increasing functions, and what all compared entries have in common (the mean and
the ``log sum exp`` of their line). Proofs keep the outputs: the runtime's softmax may round two
different logits to one number, and then ``>=`` holds.

Legend: ``R`` rows that read the output; places are flat.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from bitcrown.model.execute import Network
from bitcrown.model.graph import Graph, Node
from bitcrown.model.passes import without_dead_nodes
from bitcrown.model.registry import op_row
from bitcrown.search.objective import Objective

_COPIES = ("Reshape", "Transpose", "Slice", "Gather", "Expand")
_RISING = ("Exp", "Log", "Sigmoid", "Tanh", "Softplus", "Sqrt", "Erf", "Atan")


def by_scores(network: Network, objective: Objective) -> tuple[Network, Objective]:
    """The network with outputs further in front, and the same rows about those; as given where
    nothing is gained."""
    graph, found = _with_scores(network.graph, objective)
    if graph is network.graph:
        return network, objective
    params = {name: network.params[name] for name in graph.nodes if name in network.params}
    return network.on(graph, params), found


def _with_scores(graph: Graph, objective: Objective) -> tuple[Graph, Objective]:
    outputs, matrix, start = list(graph.outputs), objective.C.copy(), 0
    for place, name in enumerate(graph.outputs):
        size = graph.nodes[name].size
        columns = slice(start, start + size)
        start += size
        pairs = _compared(objective, columns)
        if pairs is None or graph.outputs.count(name) > 1:
            continue
        left, right = pairs
        source, new_left, new_right = _behind(graph, name, left, right)
        node = graph.nodes[source]
        if source == name or node.size != size or node.op == "Input" or source in outputs:
            continue
        read = (matrix[:, :, columns] != 0).any(axis=2)
        rows = matrix[read]
        factor = rows[:, columns][np.arange(len(rows)), left]
        rows[:, columns] = 0.0
        rows[np.arange(len(rows)), columns.start + new_left] = factor
        rows[np.arange(len(rows)), columns.start + new_right] = -factor
        matrix[read] = rows
        outputs[place] = source
    if tuple(outputs) == graph.outputs:
        return graph, objective
    found = without_dead_nodes(replace(graph, outputs=tuple(outputs)))
    return found, replace(objective, C=matrix)


def _compared(objective: Objective, columns: slice) -> tuple[np.ndarray, np.ndarray] | None:
    """Places ``[R]`` of the added and of the subtracted entry in every row that reads an output
    (``columns``); None where a row does anything else with it, or none reads it."""
    read = (objective.C[:, :, columns] != 0).any(axis=2)
    rows, limits = objective.C[read], objective.rhs[read]
    if not len(rows) or (limits != 0).any():
        return None
    if objective.D is not None and (objective.D[read] != 0).any():
        return None
    own = rows[:, columns]
    signs = np.sign(own)
    is_pair = ((rows != 0).sum(axis=1) == 2) & ((signs == 1).sum(axis=1) == 1)
    is_pair &= (signs == -1).sum(axis=1) == 1
    if not is_pair.all() or (own.max(axis=1) != -own.min(axis=1)).any():
        return None
    return own.argmax(axis=1), own.argmin(axis=1)


def _behind(
    graph: Graph, name: str, left: np.ndarray, right: np.ndarray
) -> tuple[str, np.ndarray, np.ndarray]:
    """A node, and places in it, whose differences have the signs of those of ``name``."""
    best = name, left, right
    while True:
        node = graph.nodes[name]
        if node.rounding is not None:
            return best
        if node.op in _COPIES:
            name, (left, right) = node.inputs[0], _read(graph, node, left, right)
        elif node.op in _RISING or _is_common(graph, node, left, right):
            name = node.inputs[0]
            best = name, left, right
        else:
            return best


def _is_common(graph: Graph, node: Node, left: np.ndarray, right: np.ndarray) -> bool:
    """Whether ``node`` subtracts the same number from both entries of every pair."""
    is_difference = node.op == "Sub" or (node.op == "LogShare" and not node.params)
    if not is_difference or any(graph.nodes[name].shape != node.shape for name in node.inputs):
        return False
    other = node.inputs[1]
    while graph.nodes[other].op in _COPIES and graph.nodes[other].rounding is None:
        left, right = _read(graph, graph.nodes[other], left, right)
        other = graph.nodes[other].inputs[0]
    return bool((left == right).all())


def _read(
    graph: Graph, node: Node, left: np.ndarray, right: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The places that entries of a copying node have in its operand."""
    operand = graph.nodes[node.inputs[0]]
    numbers = torch.arange(operand.size).reshape(1, *operand.shape)
    places = op_row(node.op).forward(node, {}, [numbers]).expand(1, *node.shape).flatten().numpy()
    return places[left], places[right]
