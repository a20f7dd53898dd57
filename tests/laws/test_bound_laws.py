"""Laws of the bound engine: enclosure (a), inclusion of intervals (b), optimisation never worsens
(e), float32 (i)."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from bitcrown.bounds import rounding
from bitcrown.bounds.ascent import Ascent, ascend
from bitcrown.bounds.crown import Backward, minimum, relaxations_of
from bitcrown.bounds.intermediate import LayerBounder
from bitcrown.bounds.intermediate_ascent import LayerAscent
from bitcrown.bounds.interval import Bounds, intersect, interval_bounds, node_interval
from bitcrown.bounds.layout import Layout
from bitcrown.bounds.multipliers import Multipliers, proved_minimum
from bitcrown.bounds.rows import Rows
from bitcrown.bounds.zonotope import Forward
from bitcrown.budget import Budget
from bitcrown.model.execute import Network
from bitcrown.model.graph import Graph, Node
from tests.random_networks import conv_graph, dense_graph

GRAPHS = {
    "dense": lambda seed: dense_graph(seed, [3, 8, 8, 2]),
    "residual": lambda seed: dense_graph(seed, [4, 6, 6, 6, 2], residual=True),
    "conv": conv_graph,
    "sigmoid": lambda seed: dense_graph(seed, [3, 6, 5, 2], op="Sigmoid"),
    "tanh": lambda seed: dense_graph(seed, [2, 5, 5, 2], op="Tanh"),
}


def boxes(graph: Graph, seed: int, count: int, width: float) -> tuple[torch.Tensor, torch.Tensor]:
    random = np.random.default_rng(seed)
    centre = random.normal(size=(count, graph.n_inputs))
    half = random.uniform(0, width, size=centre.shape) * (random.random(centre.shape) > 0.2)
    return torch.from_numpy(centre - half), torch.from_numpy(centre + half)


def samples(lower: torch.Tensor, upper: torch.Tensor, count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    share = torch.rand(len(lower), count, lower.shape[1], generator=generator, dtype=lower.dtype)
    share[:, ::2] = share[:, ::2].round()
    return torch.minimum(lower[:, None] + share * (upper - lower)[:, None], upper[:, None])


@pytest.mark.parametrize("kind", GRAPHS)
@pytest.mark.parametrize("width", [1e-6, 0.1, 2.0])
@pytest.mark.parametrize("ascent", [0, 3])
def test_samples_lie_inside_every_layer_bound(kind: str, width: float, ascent: int) -> None:
    for seed in range(4):
        graph = GRAPHS[kind](seed)
        network = Network(graph, torch.float64)
        lower, upper = boxes(graph, seed, 1 if ascent else 3, width)
        finder = (
            LayerAscent(Network(graph, torch.float32), ascent, Budget.of_cpu_seconds(60))
            if ascent
            else None
        )
        bounds = LayerBounder(network, 1 << 22, finder).run(lower, upper).bounds
        points = samples(lower, upper, 64, seed)
        values = network.activations(points.flatten(0, 1))
        for name, (low, up) in bounds.items():
            value = values[name].reshape(len(lower), 64, *low.shape[1:])
            allowance = 1e-13 * (1 + value.abs())  # the sampled value itself is rounded
            assert (value >= low[:, None] - allowance).all() and (
                value <= up[:, None] + allowance
            ).all(), name


@pytest.mark.parametrize("kind", GRAPHS)
@pytest.mark.parametrize("width", [1e-6, 0.1, 2.0])
@pytest.mark.parametrize("symbols", [0, 6, 1000])
def test_samples_lie_inside_zonotopes(kind: str, width: float, symbols: int) -> None:
    """Also where branches meet again, and where symbols run out."""
    for seed in range(6):
        graph = GRAPHS[kind](seed)
        network = Network(graph, torch.float64)
        lower, upper = boxes(graph, seed, 1, width)
        widest = max(node.size for node in graph.nodes.values())
        forward = Forward(network, rounding.gamma(network), symbols * 8 * widest)
        ends = zip(
            graph.inputs,
            network.split_inputs(lower).values(),
            network.split_inputs(upper).values(),
            strict=True,
        )
        bounds: Bounds = {}
        for name, low, up in ends:
            forward.begin(graph.nodes[name], low, up)
            bounds[name] = (low, up)
        values = network.activations(samples(lower, upper, 64, seed).flatten(0, 1))
        for node in graph.nodes.values():
            if node.name in bounds:
                continue
            interval = node_interval(
                network, node, [bounds[name] for name in node.inputs], rounding.gamma(network)
            )
            relaxations = relaxations_of(network, bounds, [node.name])
            low, up = forward.step(node, interval, bounds, relaxations)
            bounds[node.name] = intersect(interval, (low, up))
            allowance = 1e-13 * (1 + values[node.name].abs())
            value = values[node.name]
            assert (value >= low - allowance).all() and (value <= up + allowance).all(), node.name
            assert forward.zonotopes[node.name].generators.numel() <= symbols * widest


def test_zonotopes_cancel_what_intervals_cannot() -> None:
    """``relu(x + 3) - x`` is 3 on [-1, 1]; intervals say [1, 5]."""
    shape = (1,)
    nodes = [
        Node("x", "Input", (), shape),
        Node("a", "Scale", ("x",), shape, {}, {"shift": np.array([3.0])}),
        Node("z", "Relu", ("a",), shape),
        Node("y", "Sub", ("z", "x"), shape),
    ]
    graph = Graph({node.name: node for node in nodes}, ("x",), ("y",), {"x": np.dtype(np.float32)})
    network = Network(graph, torch.float64)
    forward = Forward(network, rounding.gamma(network), 1 << 20)
    bounds: Bounds = {"x": (-torch.ones(1, 1).double(), torch.ones(1, 1).double())}
    forward.begin(nodes[0], *bounds["x"])
    for node in nodes[1:]:
        interval = node_interval(network, node, [bounds[name] for name in node.inputs], 0.0)
        bounds[node.name] = intersect(
            interval, forward.step(node, interval, bounds, relaxations_of(network, bounds))
        )
    assert 2.999 < float(bounds["y"][0]) <= 3.0 <= float(bounds["y"][1]) < 3.001


@pytest.mark.parametrize("kind", GRAPHS)
def test_smaller_boxes_never_have_looser_intervals(kind: str) -> None:
    for seed in range(5):
        graph = GRAPHS[kind](seed)
        network = Network(graph, torch.float64)
        lower, upper = boxes(graph, seed, 2, 1.0)
        inner_lower = lower + 0.3 * (upper - lower)
        outer = interval_bounds(network, lower, upper)
        inner = interval_bounds(network, inner_lower, upper)
        for name in graph.nodes:
            assert (inner[name][0] >= outer[name][0] - 1e-12).all()
            assert (inner[name][1] <= outer[name][1] + 1e-12).all()


def exact_outputs(graph: Graph, x: list[Fraction]) -> list[Fraction]:
    """A dense ReLU network in rational arithmetic."""
    values = {"x": x}
    for node in graph.nodes.values():
        if node.op == "Linear":
            rows, bias = node.params["weight"].tolist(), node.params["bias"].tolist()
            inputs = values[node.inputs[0]]
            values[node.name] = [
                sum((Fraction(w) * v for w, v in zip(row, inputs, strict=True)), Fraction(b))
                for row, b in zip(rows, bias, strict=True)
            ]
        elif node.op == "Relu":
            values[node.name] = [max(v, Fraction(0)) for v in values[node.inputs[0]]]
    return values[graph.outputs[0]]


def root_problem(graph: Graph, seed: int, width: float) -> tuple[Network, Rows, Layout]:
    network = Network(graph, torch.float64)
    lower, upper = boxes(graph, seed, 1, width)
    rows = Rows(
        torch.tensor([[[1.0, -1.0]]], dtype=torch.float64),
        None,
        torch.zeros(1, 1).double(),
        lower,
        upper,
    )
    return network, rows, Layout(network)


@pytest.mark.parametrize("width", [0.0, 1e-9, 0.05, 1.0])
def test_proved_minimum_is_below_the_exact_rational_value(width: float) -> None:
    for seed in range(12):
        graph = dense_graph(seed, [3, 6, 6, 2])
        network, rows, layout = root_problem(graph, seed, width)
        enclosure = LayerBounder(network, 1 << 22).run(rows.x_lower, rows.x_upper)
        alpha = layout.default_alpha(enclosure.bounds)[:, None]
        multipliers = Multipliers(layout, alpha)
        proved = float(
            proved_minimum(network, rows, enclosure.bounds, enclosure.scales, multipliers)
        )
        for point in samples(rows.x_lower, rows.x_upper, 16, seed)[0].tolist():
            y = exact_outputs(graph, [Fraction(v) for v in point])
            assert y[0] - y[1] >= Fraction(proved)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ascent_finds_no_worse_bounds_and_any_parameters_are_sound(dtype: torch.dtype) -> None:
    improved = 0
    for seed in range(12):
        graph = dense_graph(seed, [3, 8, 8, 2])
        network, rows, layout = root_problem(graph, seed, 1.0)
        enclosure = LayerBounder(network, 1 << 22).run(rows.x_lower, rows.x_upper)
        start = Multipliers(layout, layout.default_alpha(enclosure.bounds)[:, None])
        before = float(proved_minimum(network, rows, enclosure.bounds, enclosure.scales, start))
        guide = Network(graph, dtype)
        found, _ = ascend(guide, rows, enclosure.bounds, start, Ascent(30), target=float("inf"))
        after = float(proved_minimum(network, rows, enclosure.bounds, enclosure.scales, found))
        points = samples(rows.x_lower, rows.x_upper, 200, seed)[0]
        y = network(points)
        assert float((y[:, 0] - y[:, 1]).min()) >= max(before, after) - 1e-12
        assert after >= before - 1e-3 * abs(before)
        improved += after > before + 1e-9
    assert improved >= 6


@pytest.mark.parametrize("kind", GRAPHS)
def test_a_layer_that_climbs_longer_has_no_looser_rows(kind: str) -> None:
    """Steps are the same ones, so each row may only gain by more of them; wandering steps would
    show as a bound below the one before."""
    moved = 0
    for seed in range(3):
        graph = GRAPHS[kind](seed)
        network = Network(graph, torch.float64)
        lower, upper = boxes(graph, seed, 1, 1.0)
        enclosure = LayerBounder(network, 1 << 22).run(lower, upper)
        bounds = enclosure.bounds
        nodes = [graph.nodes[name] for name in enclosure.relaxations]
        unit = torch.eye(graph.nodes[graph.outputs[0]].size, dtype=torch.float64)
        seeds = {graph.outputs[0]: torch.cat([unit, -unit]).unsqueeze(0)}
        last = None
        for steps in (0, 1, 2, 3, 5, 8):
            climb = LayerAscent(network, steps, Budget.of_cpu_seconds(60))
            relaxed = climb.relaxations(seeds, bounds, nodes, lower, upper, None)
            found = minimum(Backward(network, relaxed).run(seeds), lower, upper)
            assert last is None or bool((found >= last - 1e-9 * (1 + last.abs())).all())
            moved += last is not None and bool((found > last + 1e-6).any())
            last = found
    assert moved


def test_an_unbounded_value_makes_no_neuron_stable() -> None:
    """1/x over an interval around zero has no bounds: everything after it must stay unbounded, not
    become NaN."""
    node = [
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
    graph = Graph({part.name: part for part in node}, ("x",), ("y",), ("float32",))
    network = Network(graph, torch.float64)
    low, up = torch.tensor([[-1.0]]).double(), torch.tensor([[1.0]]).double()
    bounds = LayerBounder(network, 1 << 20).run(low, up).bounds
    assert (bounds["z"][0] < 0).all() and (bounds["z"][1] > 0).all()
    values = network.activations(torch.linspace(-1, 1, 11).double()[:, None])
    for name, (lower, upper) in bounds.items():
        assert not lower.isnan().any() and not upper.isnan().any(), name
        finite = values[name].isfinite()
        assert ((values[name] >= lower) | ~finite).all() and (
            (values[name] <= upper) | ~finite
        ).all(), name


def test_float32_bounds_contain_the_float64_values() -> None:
    for seed in range(6):
        graph = dense_graph(seed, [3, 8, 8, 2])
        lower, upper = boxes(graph, seed, 2, 0.3)
        low32, up32 = lower.float(), upper.float()
        bounds = LayerBounder(Network(graph, torch.float32), 1 << 22).run(low32, up32).bounds
        inside = samples(low32.double(), up32.double(), 64, seed)
        values = Network(graph, torch.float64).activations(inside.flatten(0, 1))
        for name, (low, up) in bounds.items():
            value = values[name].reshape(2, 64, *low.shape[1:])
            assert (value >= low.double()[:, None]).all() and (value <= up.double()[:, None]).all()
