"""The interval of a first layer is exact, so it costs no backward pass; of a second it is not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bitcrown.bounds.intermediate import LayerBounder
from bitcrown.model.execute import Network
from bitcrown.model.graph import Graph, Node

SHAPE = (2, 3, 4)


def network_of(*between: Node) -> Network:
    """``x``, ``between``, a layer and its ReLU."""
    nodes = [Node("x", "Input", (), SHAPE), *between]
    size = nodes[-1].size
    weight = np.random.default_rng(0).normal(size=(5, size))
    nodes.append(Node("flat", "Reshape", (nodes[-1].name,), (size,), {"shape": (size,)}))
    layer = {"weight": weight, "bias": weight[:, 0]}
    nodes.append(Node("z", "Linear", ("flat",), (5,), params=layer))
    nodes.append(Node("y", "Relu", ("z",), (5,)))
    graph = Graph({node.name: node for node in nodes}, ("x",), ("y",), ("float64",))
    return Network(graph, torch.float64)


MOVED = Node("t", "Transpose", ("x",), (4, 2, 3), {"perm": (2, 0, 1)})
PART = Node("s", "Slice", ("x",), (2, 3, 2), {"slices": ((0, 2, 1), (0, 3, 1), (0, 4, 2))})
SCALED = Node("c", "Scale", ("x",), SHAPE, params={"scale": np.full(SHAPE, -3.0)})
TWICE = Node("e", "Gather", ("x",), (4, 3, 4), {"axis": 0, "indices": np.array([0, 0, 1, 1])})


@pytest.mark.parametrize("between", [(), (MOVED,), (PART,), (SCALED,)])
def test_first_layer_is_bounded_without_a_pass(
    between: tuple[Node, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LayerBounder, "bound_elements", lambda *_: pytest.fail("a backward pass"))
    network = network_of(*between)
    low = -torch.ones(1, 24, dtype=torch.float64)
    lower, upper = LayerBounder(network, 1 << 28).run(low, -low).bounds["z"]
    rows = torch.autograd.functional.jacobian(
        lambda x: network.activations(x)["z"], torch.zeros(1, 24, dtype=torch.float64)
    ).reshape(5, 24)
    middle = network.activations(torch.zeros(1, 24, dtype=torch.float64))["z"][0]
    radius = rows.abs().sum(dim=1)
    for found, exact in ((lower, middle - radius), (upper, middle + radius)):
        assert torch.allclose(found[0], exact, rtol=1e-12, atol=1e-12)


def test_entries_that_are_read_twice_need_one() -> None:
    network = network_of(TWICE)
    low = -torch.ones(1, 24, dtype=torch.float64)
    bounder = LayerBounder(network, 1 << 28)
    lower, upper = bounder.run(low, -low).bounds["z"]
    weight = torch.from_numpy(network.graph.nodes["z"].params["weight"]).reshape(5, 4, 12)
    exact = (weight[:, 0] + weight[:, 1]).abs().sum(1) + (weight[:, 2] + weight[:, 3]).abs().sum(1)
    open_ = (lower < 0) & (upper > 0)
    assert bool(open_.any())
    assert torch.allclose(((upper - lower) / 2)[open_], exact[None][open_], rtol=1e-9)
