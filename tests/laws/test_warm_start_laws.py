"""Laws of the multipliers with which children begin: as they are, no child is bounded worse than
its parent."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bitcrown.bounds import claims
from bitcrown.bounds.rows import row_lines
from bitcrown.model.graph import Graph, Node
from bitcrown.search.neurons.bounder import DomainBounder
from bitcrown.search.neurons.branching import starting_betas
from bitcrown.search.neurons.domains import Domains
from bitcrown.search.neurons.guide import whole_guide
from tests.laws.test_violation_laws import GRAPHS, bounder_for, rivals
from tests.random_networks import dense_graph


def two_readers(seed: int) -> Graph:
    """Every hidden layer is ``relu(z) + 2 relu(z)``, of two nodes with slopes of their own."""
    graph = dense_graph(seed, [3, 8, 8, 3])
    nodes: dict[str, Node] = {}
    for name, node in graph.nodes.items():
        source = tuple(f"s{i[1:]}" if i.startswith("a") else i for i in node.inputs)
        nodes[name] = replace(node, inputs=source)
        if name.startswith("a"):
            twin = replace(node, name=f"b{name[1:]}", inputs=source)
            double = Node(f"d{name[1:]}", "Add", (twin.name, twin.name), node.shape)
            nodes |= {twin.name: twin, double.name: double}
            nodes[f"s{name[1:]}"] = Node(f"s{name[1:]}", "Add", (name, double.name), node.shape)
    return replace(graph, nodes=nodes)


NETWORKS = {**GRAPHS, "two readers": two_readers}


def bounder_in_float64(graph: Graph, seed: int) -> DomainBounder:
    bounder = bounder_for(graph, rivals(graph, seed, 0.6)[0], None)
    root = replace(bounder.root, clipper=None)
    return replace(bounder, root=root, guide=whole_guide(root, root.proof))


def at_random(bounder: DomainBounder, seed: int) -> Domains:
    """Domains of all cases with random slopes, and random signs for some neurons."""
    random = torch.Generator().manual_seed(seed)
    domains = bounder._fresh(
        torch.arange(len(bounder.root.rows.C)), bounder.root.case_value, bounder.root.row_value
    )
    low, up = bounder.root.layout.flat_bounds(bounder.root.enclosure.bounds)
    sign = torch.randint(-6, 7, domains.split.shape, generator=random)
    is_split = (sign.abs() == 1) & claims.is_unstable(low, up)
    return replace(
        domains,
        alpha=torch.rand(domains.alpha.shape, generator=random).double(),
        beta=0.3 * torch.rand(domains.beta.shape, generator=random).double(),
        split=torch.where(is_split, sign, 0).to(torch.int8),
    )


@pytest.mark.parametrize("kind", NETWORKS)
def test_no_child_begins_worse_than_its_parent(kind: str) -> None:
    """Where the pass took the lower line (``a >= 0``) the child begins exactly where the parent
    was. Where it took the upper one, what is dropped is the height of that line over ``[l, u]``,
    which a pass sees as it is where the neuron is affine in the inputs."""
    same = better = 0
    for seed in range(3):
        bounder = bounder_in_float64(NETWORKS[kind](seed), seed)
        layout, network = bounder.root.layout, bounder.root.proof
        domains = at_random(bounder, seed)
        bounds, record = bounder.guide_bounds(domains), dict[str, torch.Tensor]()
        row_lines(
            network,
            bounder.rows(domains),
            bounder.multipliers(domains).backward(network, bounds, None, record),
        )
        parent = bounder.quick_bound(domains, bounds, 1)
        every = torch.arange(layout.n_neurons).expand(len(domains), -1)
        domains = replace(
            domains,
            candidates=every,
            warm=starting_betas(layout, record, domains.alpha, every),
        )
        assert bool((domains.warm >= 0).all())
        first = next(iter(layout.neuron_at.values()))
        least = torch.full((len(domains), layout.n_neurons), torch.inf).double()
        for node in layout.nodes:
            a = record[node.name].flatten(2)[:, 0]
            where = layout.neuron_at[node.inputs[0]]
            least[:, where] = torch.minimum(least[:, where], a)
        low, up = layout.flat_bounds(bounds)
        is_open = claims.is_unstable(low, up) & (domains.split == 0)
        for neuron in range(layout.n_neurons):
            index = is_open[:, neuron].nonzero().flatten()
            choice = torch.full((len(index),), neuron)
            children = domains.select(index).children(choice)
            found = bounder.quick_bound(children, bounder.guide_bounds(children), 1)
            gain = found.reshape(2, -1) - parent[index]
            is_lower = least[index, neuron] >= 0
            slack = 1e-9 * (1 + parent[index].abs())
            assert bool((gain.abs() <= slack)[:, is_lower].all())
            if neuron < first.stop:
                assert bool((gain >= -slack).all())
                better += int((gain > slack).sum())
            same += int((is_lower & (domains.warm[index, neuron] > 0)).sum())
    assert same and better


@pytest.mark.parametrize("kind", NETWORKS)
def test_candidates_bring_the_start_of_their_children(kind: str) -> None:
    """The start that is kept with a candidate is that of its own sign, in the trial as in the
    child; any other neuron starts at zero."""
    warm = 0
    for seed in range(2):
        bounder = bounder_in_float64(NETWORKS[kind](seed), seed)
        domains = bounder._assess(at_random(bounder, seed))
        parent = bounder.quick_bound(domains, bounder.guide_bounds(domains), 1)
        for column in range(domains.candidates.shape[1]):
            index = (domains.candidates[:, column] != -1).nonzero().flatten()
            choice = domains.candidates[index, column]
            children = domains.select(index).children(choice)
            start = children.beta.gather(1, choice.repeat(2).unsqueeze(1))[:, 0].reshape(2, -1)
            found = bounder.quick_bound(children, bounder.guide_bounds(children), 1)
            gain = found.reshape(2, -1) - parent[index]
            assert bool((gain.abs() <= 1e-9 * (1 + parent[index].abs()))[start > 0].all())
            warm += int((start > 0).sum())
            other = replace(domains.select(index), candidates=domains.candidates[index] * 0 - 1)
            cold = other.children(choice).beta.gather(1, choice.repeat(2).unsqueeze(1))
            assert not cold.any()
    assert warm
