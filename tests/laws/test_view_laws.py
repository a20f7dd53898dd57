"""Laws of networks cut to what a window sees: for any operators in a row, any of their attributes
and any window, borders included, the cut network computes the same numbers and the same bounds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from bitcrown.bounds.crown import Backward, minimum
from bitcrown.bounds.intermediate import LayerBounder
from bitcrown.bounds.subnetworks.receptive_field import View, view_of
from bitcrown.model.execute import Network
from bitcrown.model.graph import Graph, Node
from bitcrown.model.registry import op_row

torch.set_num_threads(1)
Shape = tuple[int, ...]
Made = tuple[dict[str, Any], dict[str, np.ndarray]] | None


def pair(random: np.random.Generator, low: int, high: int) -> list[int]:
    return [int(value) for value in random.integers(low, high + 1, 2)]


def conv(random: np.random.Generator, shape: Shape) -> Made:
    group = int(random.choice([g for g in (1, 2) if shape[1] % g == 0]))
    kernel = pair(random, 1, 3)
    weight = random.normal(size=(2 * group, shape[1] // group, *kernel))
    attrs = {"strides": pair(random, 1, 3), "pads": pair(random, 0, 3)}
    attrs |= {"dilations": pair(random, 1, 2), "group": group}
    return attrs, {"weight": weight, "bias": random.normal(size=2 * group)}


def transposed(random: np.random.Generator, shape: Shape) -> Made:
    group = int(random.choice([g for g in (1, 2) if shape[1] % g == 0]))
    weight = random.normal(size=(shape[1], 2, *pair(random, 1, 4)))
    steps, gaps = pair(random, 1, 3), pair(random, 1, 2)
    extra = [int(random.integers(0, max(both))) for both in zip(steps, gaps, strict=True)]
    attrs = {"strides": steps, "pads": pair(random, 0, 2), "dilations": gaps}
    attrs |= {"output_padding": extra, "group": group}
    return attrs, {"weight": weight, "bias": random.normal(size=2 * group)}


def average(random: np.random.Generator, shape: Shape) -> Made:
    return {"kernel": pair(random, 1, 3), "strides": pair(random, 1, 3)}, {}


def pad(random: np.random.Generator, shape: Shape) -> Made:
    before, after = ([0, int(random.integers(0, 2)), *pair(random, -1, 2)] for _ in range(2))
    return {"pads": (before, after), "value": float(random.normal())}, {}


def sliced(random: np.random.Generator, shape: Shape) -> Made:
    start, step = [0, 0, *pair(random, 0, 2)], [1, 1, *pair(random, 1, 3)]
    return {"slices": tuple(zip(start, shape, step, strict=True))}, {}


def gathered(random: np.random.Generator, shape: Shape) -> Made:
    axis = int(random.integers(1, 4))
    places = np.sort(random.integers(0, shape[axis], shape[axis] + 3))
    return {"axis": axis, "indices": places}, {}


def concatenated(random: np.random.Generator, shape: Shape) -> Made:
    return {"axis": int(random.integers(1, 4))}, {}


MAKERS: dict[str, Callable[[np.random.Generator, Shape], Made]] = {
    "Conv": conv,
    "ConvTranspose": transposed,
    "AveragePool": average,
    "Pad": pad,
    "Slice": sliced,
    "Gather": gathered,
    "Concat": concatenated,
}


def random_graph(seed: int, first: str) -> Graph:
    """``first``, then any operators in a row, some with a ReLU behind; a concatenation takes any
    node that fits, or the same one again."""
    random = np.random.default_rng(seed)
    nodes = {"x": Node("x", "Input", (), (1, int(random.integers(1, 4)), *pair(random, 5, 9)))}
    last, made = "x", 0
    while made < 4:
        op = str(random.choice(list(MAKERS))) if made else first
        found = MAKERS[op](random, nodes[last].shape)
        assert found is not None
        attrs, params = found
        names = [last]
        if op == "Concat":
            kept = [axis for axis in range(4) if axis != attrs["axis"]]
            fits = [
                name
                for name, node in nodes.items()
                if all(node.shape[axis] == nodes[last].shape[axis] for axis in kept)
            ]
            names.append(str(random.choice(fits)))
        points = [torch.zeros(1, *nodes[name].shape, dtype=torch.float64) for name in names]
        draft = Node(f"n{made}", op, tuple(names), (), attrs, params)
        weights = {key: torch.as_tensor(value) for key, value in params.items()}
        try:
            shape = tuple(op_row(op).forward(draft, weights, points).shape[1:])
        except RuntimeError:  # nothing would be left
            continue
        if not 4 <= shape[2] * shape[3] <= 400 or shape[1] > 8:
            continue
        last = draft.name
        nodes[last] = Node(last, op, tuple(names), shape, attrs, params)
        made += 1
        if random.random() < 0.6:
            nodes[f"r{made}"] = Node(f"r{made}", "Relu", (last,), shape)
            last = f"r{made}"
    return Graph(nodes, ("x",), (last,), ("float64",))


def windows(graph: Graph, seed: int) -> list[tuple[str, View]]:
    """Windows of all nodes: single elements in two corners, the whole, and some of any size."""
    random, found = np.random.default_rng(seed), []
    for node in graph.nodes.values():
        height, width = node.shape[2:]
        corners = [(0, 1, 0, 1), (height - 1, height, width - 1, width), (0, height, 0, width)]
        for _ in range(4):
            (a, b), (c, d) = (
                np.sort(random.choice(extent + 1, 2, replace=False)) for extent in (height, width)
            )
            corners.append((int(a), int(b), int(c), int(d)))
        for a, b, c, d in corners:
            view = view_of(graph, node.name, ((a, b), (c, d)))
            if view is not None:
                assert view.fields[node.name] == ((a, b), (c, d))
                found.append((node.name, view))
    return found


@pytest.mark.parametrize("op", MAKERS)
def test_a_cut_network_computes_the_same_numbers(op: str) -> None:
    count = 0
    for seed in range(25):
        graph = random_graph(seed, op)
        network = Network(graph, torch.float64)
        x = torch.from_numpy(np.random.default_rng(seed).normal(size=(2, graph.n_inputs)))
        whole = network.activations(x)
        for source, view in windows(graph, seed):
            (top, bottom), (left, right) = view.fields[source]
            part = view.network(network).activations(view.box(network, x))
            for name, value in view.cut(whole).items():
                torch.testing.assert_close(part[name], value, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(
                part[source], whole[source][..., top:bottom, left:right], rtol=1e-9, atol=1e-9
            )
            count += 1
    assert count > 400


@pytest.mark.parametrize("op", MAKERS)
def test_a_cut_network_has_the_same_bounds(op: str) -> None:
    for seed in range(5):
        graph = random_graph(seed, op)
        network = Network(graph, torch.float64)
        x = torch.from_numpy(np.random.default_rng(seed).normal(size=(1, graph.n_inputs)))
        box = x - 0.05, x + 0.05
        with torch.no_grad():
            known = LayerBounder(network, 1 << 24, may_round=False).run(*box)
        for source, view in windows(graph, seed):
            (top, bottom), (left, right) = view.fields[source]
            shape = graph.nodes[source].shape
            places = torch.arange(graph.nodes[source].size).reshape(shape)
            places = places[..., top:bottom, left:right].flatten()[::5]
            values = []
            for cut in (None, view):
                here = network if cut is None else cut.network(network)
                at = places if cut is None else cut.indices(shape, places)
                seed_rows = torch.zeros(len(at), here.graph.nodes[source].size, dtype=torch.float64)
                seed_rows[torch.arange(len(at)), at] = 1
                seeds = {source: seed_rows.reshape(1, len(at), *here.graph.nodes[source].shape)}
                lines = known.relaxations if cut is None else cut.relaxations(known.relaxations)
                scales = known.scales if cut is None else cut.scales(known.scales)
                ends = box if cut is None else (cut.box(network, box[0]), cut.box(network, box[1]))
                with torch.no_grad():
                    backward = Backward(here, lines, scales=scales)
                    values.append(minimum(backward.run(seeds), *ends, backward.gamma))
            torch.testing.assert_close(values[1], values[0], rtol=1e-9, atol=1e-9)


def test_views_of_one_form_are_one_network_for_different_windows() -> None:
    count = 0
    for seed in range(30):
        graph = random_graph(seed, list(MAKERS)[seed % len(MAKERS)])
        network = Network(graph, torch.float64)
        last = graph.nodes[graph.outputs[0]]
        forms: dict[str, View] = {}
        for y in range(last.shape[2]):
            for x in range(last.shape[3]):
                view = view_of(graph, last.name, ((y, y + 1), (x, x + 1)))
                if view is None:
                    continue
                first = forms.setdefault(view.form, view)
                count += first is not view
                assert list(first.graph.nodes) == list(view.graph.nodes)
                params = [each.network(network).params for each in (first, view)]
                for name, node in view.graph.nodes.items():
                    other = first.graph.nodes[name]
                    assert (node.op, node.inputs, node.shape) == (
                        other.op,
                        other.inputs,
                        other.shape,
                    )
                    assert repr(node.attrs) == repr(other.attrs)
                    for key, value in params[1][name].items():
                        assert torch.equal(params[0][name][key], value)
    assert count > 100


def test_windows_with_weights_of_their_own_have_forms_of_their_own() -> None:
    shape = (1, 1, 4, 4)
    for op, params, forms in (
        ("Scale", {"shift": np.arange(16.0).reshape(shape)}, 16),
        ("Scale", {"shift": np.ones((1, 1, 1, 1))}, 1),
    ):
        nodes = {"x": Node("x", "Input", (), shape), "y": Node("y", op, ("x",), shape, {}, params)}
        graph = Graph(nodes, ("x",), ("y",), ("float64",))
        fields = [((y, y + 1), (x, x + 1)) for y in range(4) for x in range(4)]
        found = [view_of(graph, "y", field) for field in fields]
        assert len({view.form for view in found if view is not None}) == forms
