"""Propagation inside a domain excludes nothing that exists."""

from __future__ import annotations

import numpy as np
import torch

from bitcrown.bounds.crown import Backward, minimum, output_seeds
from bitcrown.bounds.intermediate import LayerBounder
from bitcrown.bounds.layout import Layout
from bitcrown.model.execute import Network
from bitcrown.model.graph import Graph, Node
from bitcrown.search.neurons.clip import Clipper, Region, clipper_of
from tests.random_networks import dense_graph

MEMORY = 1 << 22


def clipper_for(
    graph: Graph, lower: torch.Tensor, upper: torch.Tensor, rhs: float
) -> tuple[Clipper, Layout, Network]:
    network = Network(graph, torch.float64)
    layout = Layout(network)
    c = torch.zeros(1, 2, graph.n_outputs, dtype=torch.float64)
    c[0, :, 0] = 1  # the same row twice: single rows are not propagated into the box
    enclosure = LayerBounder(network, MEMORY).run(lower, upper)
    rows = (c, None, torch.tensor([[rhs, rhs]], dtype=torch.float64))
    return clipper_of(network, layout, enclosure, rows, MEMORY), layout, network


def test_every_violating_point_survives_clipping() -> None:
    for seed in range(8):
        graph = dense_graph(seed, [4, 10, 2] if seed % 2 else [3, 8, 8, 2])
        n = graph.n_inputs
        lower, upper = -torch.ones(1, n).double(), torch.ones(1, n).double()
        points = lower + 2 * torch.rand(
            500, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
        )
        network = Network(graph, torch.float64)
        y = network(points)[:, 0]
        rhs = float(y.quantile(0.3))
        clipper, layout, network = clipper_for(graph, lower, upper, rhs)
        inside = points[y <= rhs]
        values = network.activations(inside)
        signs = torch.cat([values[name].flatten(1) for name in layout.neuron_at], dim=1).sign()
        split = torch.where(torch.rand(signs.shape) < 0.3, signs, torch.zeros_like(signs))
        infinity = torch.full_like(split, torch.inf)
        low = torch.where(split > 0, torch.zeros_like(split), -infinity)
        up = torch.where(split < 0, torch.zeros_like(split), infinity)
        bounds = LayerBounder(network, MEMORY).run(lower, upper).bounds
        root_low, root_up = layout.flat_bounds(bounds)
        low, up = torch.maximum(low, root_low), torch.minimum(up, root_up)
        case = torch.zeros(len(inside), dtype=torch.int64)
        region = clipper.run(
            case, lower.expand(len(inside), -1), upper.expand(len(inside), -1), low, up, 3
        )
        assert region.feasible.all()
        assert (inside >= region.x_lower).all() and (inside <= region.x_upper).all()
        assert float((region.x_upper - region.x_lower).mean()) < 2.0


def test_neuron_bounds_within_the_halfspace_of_a_row_hold_where_the_row_is_violated() -> None:
    tightened = 0
    for seed in range(8):
        graph = dense_graph(seed, [4, 10, 2] if seed % 2 else [3, 8, 8, 2])
        n = graph.n_inputs
        lower, upper = -torch.ones(1, n).double(), torch.ones(1, n).double()
        points = lower + 2 * torch.rand(
            500, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
        )
        y = Network(graph, torch.float64)(points)[:, 0]
        rhs = float(y.quantile(0.1))
        clipper, layout, network = clipper_for(graph, lower, upper, rhs)
        enclosure = LayerBounder(network, MEMORY).run(lower, upper)
        lines = Backward(network, enclosure.relaxations).run(
            output_seeds(network, torch.tensor([[[1.0, 0.0]]]).double())
        )
        a, least = lines.coefficient[:, 0], minimum(lines, lower, upper)[:, 0] - rhs - 1e-9
        low, up = layout.flat_bounds(enclosure.bounds)
        region = clipper.within_halfspace(
            Region(lower, upper, low, up, torch.tensor([True])), a, least
        )
        values = network.activations(points[y <= rhs])
        flat = torch.cat([values[name].flatten(1) for name in layout.neuron_at], dim=1)
        assert region.feasible.all()
        assert (flat >= region.low).all() and (flat <= region.up).all()
        assert (region.low >= low).all() and (region.up <= up).all()
        tightened += int((region.up - region.low < 0.95 * (up - low)).sum())
    assert tightened > 10


def test_unbounded_lines_exclude_nothing() -> None:
    nodes = [
        Node("x", "Input", (), (1, 1)),
        Node("r", "Reciprocal", ("x",), (1, 1)),
        Node(
            "z",
            "Linear",
            ("r",),
            (1, 2),
            {},
            {"weight": np.array([[1.0], [-1.0]]), "bias": np.zeros(2)},
        ),
        Node("a", "Relu", ("z",), (1, 2)),
        Node(
            "y",
            "Linear",
            ("a",),
            (1, 1),
            {},
            {"weight": np.array([[1.0, 1.0]]), "bias": np.zeros(1)},
        ),
    ]
    graph = Graph({node.name: node for node in nodes}, ("x",), ("y",), ("float32",))
    lower, upper = torch.tensor([[-1.0]]).double(), torch.tensor([[1.0]]).double()
    clipper, layout, network = clipper_for(graph, lower, upper, 100.0)
    low, up = layout.flat_bounds(LayerBounder(network, MEMORY).run(lower, upper).bounds)
    region = clipper.run(torch.zeros(1, dtype=torch.int64), lower, upper, low, up, 3)
    assert (
        region.feasible.all()
        and torch.equal(region.x_lower, lower)
        and torch.equal(region.x_upper, upper)
    )
