"""A crop of a float network is the network, where it looks: the same values, the same bounds, and
nothing that an element depends on is missing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bitcrown.check.certificates.floats.bounds import Bounder, BoxBatch, relu_line
from bitcrown.check.certificates.floats.crops import crop_behind, element_tiles
from bitcrown.check.certificates.floats.layers import layer_bounds, neuron_passes
from bitcrown.check.certificates.floats.nodes import (
    CombineNode,
    ConvNode,
    DenseNode,
    FloatNetwork,
    FloatNode,
    GatherNode,
    InputNode,
    ReluNode,
)

SEEDS = range(40)


def convolution(random: Any, source: int, channels: int, plane: tuple[int, int]) -> ConvNode | None:
    """A convolution of any kind that leaves something of the plane."""
    groups = int(random.choice([1, 1, 1, channels]))
    outputs = groups * int(random.integers(1, 12))
    kernel, stride, dilation, begin, end = (random.integers(low, 4, 2) for low in (1, 1, 1, 0, 0))
    out = tuple(
        int((n + b + e - (k - 1) * d - 1) // s + 1)
        for n, b, e, k, d, s in zip(plane, begin, end, kernel, dilation, stride, strict=True)
    )
    if min(out) < 1:
        return None
    return ConvNode(
        (source,),
        random.normal(size=(outputs, channels // groups, *kernel)),
        random.normal(size=outputs * out[0] * out[1]),
        plane,
        (out[0], out[1]),
        (int(stride[0]), int(stride[1])),
        (int(begin[0]), int(begin[1])),
        (int(dilation[0]), int(dilation[1])),
        groups,
    )


def random_network(seed: int) -> FloatNetwork:
    """Convolutions, residual sums, gathers and matrices between ReLUs."""
    random = np.random.default_rng(seed)
    channels, plane = int(random.integers(1, 4)), (int(random.integers(3, 8)), 6)
    nodes: list[FloatNode] = [InputNode(channels * plane[0] * plane[1])]
    for _ in range(int(random.integers(2, 5))):
        last, size = len(nodes) - 1, nodes[-1].size
        kind = random.choice(["conv", "conv", "conv", "sum", "gather", "rows"])
        if kind == "conv":
            node = convolution(random, last, channels, plane)
            if node is None:
                continue
            channels, plane = int(node.weight.shape[0]), node.out
            nodes.append(node)
        elif kind == "sum":
            earlier = [k for k, node in enumerate(nodes[:-1]) if node.size == size]
            other = int(random.choice([*earlier, last]))
            factors = (np.asarray(-0.5), random.normal(size=size))
            nodes.append(CombineNode((last, other), factors, random.normal(size=size)))
        elif kind == "gather":
            nodes.append(GatherNode((last,), random.integers(-1, size, size), size))
        else:
            weight = random.normal(size=(plane[1], plane[1]))
            rows = channels * plane[0]
            nodes.append(DenseNode((last,), weight, random.normal(size=size), rows))
        nodes.append(ReluNode((len(nodes) - 1,), nodes[-1].size))
        if random.random() < 0.3:
            nodes.append(
                CombineNode((len(nodes) - 1,), (np.asarray(2.0),), np.zeros(nodes[-1].size))
            )
    nodes.append(DenseNode((len(nodes) - 1,), random.normal(size=(2, nodes[-1].size)), np.zeros(2)))
    return FloatNetwork(tuple(nodes), len(nodes) - 1)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_crop_computes_what_the_network_does(seed: int) -> None:
    network, random = random_network(seed), np.random.default_rng(seed)
    x = random.normal(size=(3, network.n_inputs))
    whole = network.values(x)
    for target in range(1, len(network.nodes)):
        size = network.nodes[target].size
        elements = np.unique(random.integers(0, size, int(random.integers(1, 4))))
        crop = crop_behind(network, target, elements)
        found = crop.network.values(x[:, crop.kept[0]])
        assert set(elements) <= set(crop.kept[target])
        for number, place in crop.place.items():
            wanted = whole[number][:, crop.kept[number]]
            assert np.allclose(found[place], wanted, rtol=1e-9, atol=1e-9)
        for value, (number, kept) in zip(found, crop.origin, strict=True):
            assert np.allclose(value, whole[number][:, kept], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_transpose_is_the_transpose(seed: int) -> None:
    network, random = random_network(seed), np.random.default_rng(seed)
    for node in network.nodes:
        if isinstance(node, InputNode | ReluNode):
            continue
        xs = [random.normal(size=(5, network.nodes[source].size)) for source in node.sources]
        a = random.normal(size=(5, node.size))
        back = node.adjoint(a)
        left = (a * node.forward(xs)).sum(axis=1)
        right = sum((part * x).sum(axis=1) for part, x in zip(back, xs, strict=True))
        assert np.allclose(left, right, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("seed", SEEDS)
def test_bounds_through_crops_are_those_of_the_network(seed: int) -> None:
    network, random = random_network(seed), np.random.default_rng(seed)
    centre = random.normal(size=(1, network.n_inputs))
    box = BoxBatch(centre - 0.1, centre + 0.1)
    bounder = Bounder(network, box)
    bounds = layer_bounds(bounder, box)
    points = random.uniform(box.lower[0], box.upper[0], (200, network.n_inputs))
    values = network.values(points)
    for relu, (low, up) in bounds.items():
        z = values[network.nodes[relu].sources[0]]
        assert (low[0] <= z + 1e-9).all() and (z - 1e-9 <= up[0]).all()
    lines = {relu: relu_line(low[:, None], up[:, None]) for relu, (low, up) in bounds.items()}
    source = network.nodes[network.relus[-1]].sources[0]
    neurons = np.repeat(np.arange(network.nodes[source].size), 2)
    signs = np.tile([1.0, -1.0], len(neurons) // 2)
    seed_rows = np.zeros((1, len(neurons), network.nodes[source].size))
    seed_rows[0, np.arange(len(neurons)), neurons] = signs
    wanted = bounder.least(bounder.backward({source: seed_rows}, lines), box)
    met = []
    for one in neuron_passes(bounder, source, neurons, 1):
        rows = one.bounder.backward(one.seeds(source, neurons, signs), one.lines(lines))
        value = one.bounder.least(rows, one.box(box))
        assert np.allclose(value, wanted[:, one.rows], rtol=1e-9, atol=1e-9)
        assert (rows.error > 0).all()
        met += one.rows.tolist()
    assert sorted(met) == list(range(len(neurons)))


def test_tiles_divide_the_elements() -> None:
    random = np.random.default_rng(0)
    conv = ConvNode(
        (0,),
        random.normal(size=(8, 1, 3, 3)),
        np.zeros(8 * 36),
        (8, 8),
        (6, 6),
        (1, 1),
        (0, 0),
        (1, 1),
        1,
    )
    network = FloatNetwork((InputNode(64), conv, ReluNode((1,), 288)), 2)
    elements = np.arange(288)
    groups = list(element_tiles(network, 1, elements))
    assert len(groups) > 1
    assert sorted(np.concatenate(groups).tolist()) == elements.tolist()
    seen = [len(crop_behind(network, 1, elements[group]).kept[0]) for group in groups]
    assert max(seen) < 64, "a tile sees a part of the input"
