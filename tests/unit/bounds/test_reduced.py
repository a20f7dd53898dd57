"""The network that is left on a box: same function there, same bounds, and proofs that stand on the
original."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bitcrown.bounds.intermediate import LayerBounder
from bitcrown.bounds.layout import Layout
from bitcrown.bounds.multipliers import Multipliers, proved_minimum
from bitcrown.bounds.rows import Rows
from bitcrown.bounds.subnetworks.reduced import reduced_network
from bitcrown.budget import Budget
from bitcrown.model.execute import Network
from bitcrown.model.graph import Graph
from bitcrown.search.neurons.bounder import DomainBounder, bounder_of
from bitcrown.search.neurons.domains import Domains
from bitcrown.search.neurons.guide import whole_guide
from bitcrown.search.neurons.root import root_of, rows_of_cases
from bitcrown.search.neurons.search import NeuronSplit
from bitcrown.search.neurons.trials import Trials
from bitcrown.search.objective import Objective
from tests.random_networks import conv_graph, dense_graph

GRAPHS = {
    "dense": lambda seed: dense_graph(seed, [6, 20, 20, 20, 3]),
    "residual": lambda seed: dense_graph(seed, [6, 12, 12, 12, 3], residual=True),
    "conv": conv_graph,
}


def box(graph: Graph, seed: int, width: float) -> tuple[torch.Tensor, torch.Tensor]:
    centre = np.random.default_rng(seed).normal(size=(1, graph.n_inputs))
    return torch.from_numpy(centre - width), torch.from_numpy(centre + width)


@pytest.mark.parametrize("kind", GRAPHS)
@pytest.mark.parametrize("width", [0.05, 0.3, 2.0])
def test_it_is_the_same_function_on_the_box(kind: str, width: float) -> None:
    met = 0
    for seed in range(5):
        network = Network(GRAPHS[kind](seed), torch.float64)
        lower, upper = box(network.graph, seed, width)
        layout = Layout(network)
        bounds = LayerBounder(network, 1 << 22).run(lower, upper).bounds
        reduced = reduced_network(network, layout, bounds, 1 << 24)
        if reduced is None:
            assert all(
                ((bounds[name][0] >= 0) | (bounds[name][1] <= 0)).all() for name in layout.neuron_at
            )
            continue
        met += 1
        low, up = layout.flat_bounds(bounds)
        assert reduced.neurons.tolist() == ((low < 0) & (up > 0))[0].nonzero().flatten().tolist()
        share = torch.rand(
            200, lower.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
        )
        points = lower + share * (upper - lower)
        assert torch.allclose(reduced.network(points), network(points), rtol=1e-10, atol=1e-10)
        values, found = network.activations(points), reduced.network.activations(points)
        flat = torch.cat([values[name].flatten(1) for name in layout.neuron_at], dim=1)[
            :, reduced.neurons
        ]
        mine = torch.cat([found[name] for name in reduced.layout.neuron_at], dim=1)
        assert torch.allclose(mine, flat, rtol=1e-10, atol=1e-10)
    assert met >= 3


@pytest.mark.parametrize("kind", GRAPHS)
def test_parameters_prove_on_the_original_what_they_promise_here(kind: str) -> None:
    network = Network(GRAPHS[kind](1), torch.float64)
    lower, upper = box(network.graph, 1, 0.5)
    layout = Layout(network)
    enclosure = LayerBounder(network, 1 << 22).run(lower, upper)
    reduced = reduced_network(network, layout, enclosure.bounds, 1 << 24)
    assert reduced is not None
    generator = torch.Generator().manual_seed(3)
    count = 7
    alpha = torch.rand(count, 1, len(reduced.neurons), generator=generator, dtype=torch.float64)
    beta = torch.rand(count, len(reduced.neurons), generator=generator, dtype=torch.float64)
    split = torch.randint(-1, 2, beta.shape, generator=generator, dtype=torch.int8)
    rows = Rows(
        torch.randn(count, 1, 3, generator=generator, dtype=torch.float64),
        None,
        torch.zeros(count, 1, dtype=torch.float64),
        lower.expand(count, -1),
        upper.expand(count, -1),
    )
    small = LayerBounder(reduced.network, 1 << 22).run(lower, upper)
    bounds = {**small.bounds, **reduced.bounds}
    here = proved_minimum(
        reduced.network, rows, bounds, small.scales, Multipliers(reduced.layout, alpha, beta, split)
    )
    whole = Multipliers(layout, *(reduced.expand(part) for part in (alpha, beta, split)))
    there = proved_minimum(network, rows, enclosure.bounds, enclosure.scales, whole)
    assert torch.allclose(here, there, rtol=1e-8, atol=1e-8)


def test_other_nonlinear_operators_and_large_matrices_are_left_alone() -> None:
    for op, memory in (("Tanh", 1 << 24), ("Relu", 64)):
        network = Network(dense_graph(0, [3, 8, 8, 2], op=op), torch.float64)
        lower, upper = box(network.graph, 0, 1.0)
        bounds = LayerBounder(network, 1 << 22).run(lower, upper).bounds
        assert reduced_network(network, Layout(network), bounds, memory) is None


def objective(lower: torch.Tensor, upper: torch.Tensor, threshold: float) -> Objective:
    """Is there an ``x`` in the box with ``y_0 <= threshold``?"""
    rhs, box_of_case = np.array([[threshold]]), np.array([0])
    return Objective(
        np.array([[[1.0, 0.0, 0.0]]]), None, rhs, lower.numpy(), upper.numpy(), box_of_case
    )


def bounder_for(proof: Network, guide: Network, goal: Objective) -> DomainBounder:
    budget = Budget.of_cpu_seconds(60)
    rows = rows_of_cases(proof, goal)
    enclosure = LayerBounder(proof, budget.memory // 4).run(rows.x_lower, rows.x_upper)
    root = root_of(proof, guide, rows, enclosure, budget.memory)
    return bounder_of(root, whole_guide(root, guide), Trials(lambda x: x.tolist()), budget)


@pytest.mark.parametrize("form", ["whole", "reduced", "rough"])
def test_every_form_of_the_network_leads_the_search_to_the_same_answer(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cost(bounder: DomainBounder, domains: Domains) -> float:
        guide = bounder.guide
        if guide.reduced is None:
            return 0.0 if form == "whole" else 9.0
        return 1.0 if (guide.climber is guide.reduced.rough) == (form == "rough") else 5.0

    monkeypatch.setattr(DomainBounder, "seconds", cost)
    monkeypatch.setattr("bitcrown.search.neurons.root.CLIP_INPUTS", 0)
    for seed in range(4):
        graph = conv_graph(seed)
        proof, guide = Network(graph, torch.float64), Network(graph, torch.float32)
        lower, upper = box(graph, seed, 0.2)
        share = torch.rand(
            20000,
            lower.shape[1],
            dtype=torch.float64,
            generator=torch.Generator().manual_seed(seed),
        )
        least = float(proof(lower + share.round() * (upper - lower))[:, 0].min())
        crown = float(bounder_for(proof, guide, objective(lower, upper, 0.0)).root.case_value)
        for threshold, holds in ((crown + 0.25 * (least - crown), True), (least + 1e-3, False)):
            bounder = bounder_for(proof, guide, objective(lower, upper, threshold))
            domains = bounder.root_domains(bounder.root.open_cases(), 3)
            search = NeuronSplit(bounder, domains)
            outcome = search.run()
            assert outcome.proved == holds and (outcome.witness is None) == holds
            if len(domains):
                chosen = search.bounder.guide
                assert (chosen.reduced is not None) == (form != "whole")
                assert chosen.reduced is None or (chosen.climber is chosen.reduced.rough) == (
                    form == "rough"
                )
