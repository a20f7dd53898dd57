"""Mirrored ReLUs become one, and the function stays."""

from __future__ import annotations

import numpy as np
import torch

from bitcrown.model.execute import Network
from bitcrown.model.graph import Graph, Node, Rounding
from bitcrown.model.mirrored import without_mirrored_neurons
from tests.random_networks import dense_graph


def minimum_graph(rounding: Rounding | None = None) -> Graph:
    """``min(x_0, x_1) + 3`` as four ReLUs of ``s = x_0 + x_1`` and ``d = x_0 - x_1``."""
    inner = np.array([[1.0, 1.0], [-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]])
    outer = {"weight": np.array([[0.5, -0.5, -0.5, -0.5]]), "bias": np.array([3.0])}
    nodes = [
        Node("x", "Input", (), (1, 2)),
        Node("z", "Linear", ("x",), (1, 4), {}, {"weight": inner}, rounding=rounding),
        Node("a", "Relu", ("z",), (1, 4)),
        Node("y", "Linear", ("a",), (1, 1), {}, outer),
    ]
    return Graph({node.name: node for node in nodes}, ("x",), ("y",), ("float64",))


def relus(graph: Graph) -> int:
    return sum(node.size for node in graph.nodes.values() if node.op == "Relu")


def test_a_minimum_keeps_one_relu() -> None:
    graph = minimum_graph()
    found = without_mirrored_neurons(graph)
    points = torch.randn(200, 2, dtype=torch.float64)
    assert relus(found) == 1
    expected = points.amin(dim=1, keepdim=True) + 3.0
    assert torch.allclose(Network(found, torch.float64)(points), expected, rtol=0, atol=1e-12)


def test_outputs_are_preserved_with_biases_and_equal_neurons() -> None:
    graph = dense_graph(4, [3, 8, 6, 2])
    node = graph.nodes["z1"]
    weight, bias = node.params["weight"].copy(), node.params["bias"].copy()
    weight[4:8], bias[4:8] = -weight[:4], -bias[:4]
    weight[1], bias[1] = weight[0], bias[0]
    changed = Node("z1", "Linear", node.inputs, node.shape, {}, {"weight": weight, "bias": bias})
    graph = Graph({**graph.nodes, "z1": changed}, graph.inputs, graph.outputs, graph.input_dtypes)
    found = without_mirrored_neurons(graph)
    points = 3 * torch.randn(500, 3, dtype=torch.float64)
    assert relus(found) < relus(graph)
    values = [Network(each, torch.float64)(points) for each in (graph, found)]
    assert torch.allclose(*values, rtol=1e-12, atol=1e-12)


def test_other_networks_stay_as_they_are() -> None:
    graph = dense_graph(5, [3, 8, 6, 2])
    assert without_mirrored_neurons(graph) is graph
    rounded = minimum_graph(Rounding(2.0**-11, 2.0**-24, 65504.0, 1.0))
    assert without_mirrored_neurons(rounded) is rounded


def test_a_layer_whose_relus_all_cancel_is_affine() -> None:
    graph = minimum_graph()
    outer = {"weight": np.array([[0.5, -0.5, 0.25, -0.25]])}
    node = Node("y", "Linear", ("a",), (1, 1), {}, outer)
    graph = Graph({**graph.nodes, "y": node}, ("x",), ("y",), ("float64",))
    found = without_mirrored_neurons(graph)
    points = torch.randn(50, 2, dtype=torch.float64)
    assert relus(found) == 0
    expected = points @ torch.tensor([[0.75], [0.25]], dtype=torch.float64)
    assert torch.allclose(Network(found, torch.float64)(points), expected, rtol=0, atol=1e-12)
