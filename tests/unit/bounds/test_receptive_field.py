"""Views of convolutional networks: the same values and the same bounds as in the whole network."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from bitcrown.bounds.intermediate import LayerBounder
from bitcrown.bounds.intermediate_ascent import LayerAscent
from bitcrown.bounds.interval import interval_bounds
from bitcrown.bounds.subnetworks import receptive_field
from bitcrown.bounds.subnetworks.receptive_field import tiles, view_of
from bitcrown.budget import Budget
from bitcrown.model.execute import Network
from bitcrown.model.graph import Graph, Node

torch.set_num_threads(1)
SHAPES = {"c1": (9, 7), "c2": (5, 4), "sum": (5, 4), "c4": (3, 2)}


def image_graph(seed: int, flat_input: bool = False) -> Graph:
    """Normalisation, dilated, strided and 1x1 convolutions, a residual sum of two depths, a
    product, a dense output."""
    random = np.random.default_rng(seed)

    def conv(
        name: str, source: str, shape: tuple[int, ...], inputs: int, kernel: int, **attrs: list[int]
    ) -> Node:
        given = {
            "strides": [1, 1],
            "pads": [kernel // 2] * 2,
            "dilations": [1, 1],
            "group": 1,
            **attrs,
        }
        inner = inputs // given["group"]
        params = {
            "weight": random.normal(size=(shape[1], inner, kernel, kernel)) / kernel,
            "bias": random.normal(size=shape[1]),
        }
        return Node(name, "Conv", (source,), shape, given, params)

    def same(
        name: str, op: str, *sources: str, shape: tuple[int, ...], **params: np.ndarray
    ) -> Node:
        return Node(name, op, sources, shape, {}, params)

    image, middle = (1, 2, 9, 7), (1, 4, 5, 4)
    nodes = [
        Node("x", "Input", (), (1, 126) if flat_input else image),
        *([Node("image", "Reshape", ("x",), image, {"shape": image})] if flat_input else []),
        same(
            "n", "Scale", "image" if flat_input else "x", shape=image,
            scale=random.normal(size=(1, 2, 1, 1)), shift=random.normal(size=(1, 2, 9, 7)),
        ),
        conv("c1", "n", (1, 3, 9, 7), 2, 3, dilations=[2, 2], pads=[2, 2]),
        same("r1", "Relu", "c1", shape=(1, 3, 9, 7)),
        conv("c2", "r1", middle, 3, 3, strides=[2, 2]),
        same("r2", "Sigmoid", "c2", shape=middle),
        conv("c3", "r2", middle, 4, 3, group=2),
        conv("short", "r1", middle, 3, 1, strides=[2, 2]),
        same("offset", "Constant", shape=middle, value=random.normal(size=middle)),
        same("moved", "Sub", "short", "offset", shape=middle),
        same("sum", "Add", "c3", "moved", shape=middle),
        same("r3", "Relu", "sum", shape=middle),
        same("product", "Mul", "r3", "c3", shape=middle),
        conv("c4", "product", (1, 3, 3, 2), 4, 2, strides=[2, 2], pads=[1, 0]),
        same("r4", "Relu", "c4", shape=(1, 3, 3, 2)),
        Node("f", "Reshape", ("r4",), (1, 18), {"shape": (1, 18)}),
        Node("y", "Linear", ("f",), (1, 2), {}, {"weight": random.normal(size=(2, 18)),
        "bias": random.normal(size=2)}),
    ]  # fmt: skip
    return Graph({node.name: node for node in nodes}, ("x",), ("y",), ("float32",))


def spans(extent: int) -> list[tuple[int, int]]:
    return list(itertools.combinations(range(extent + 1), 2))


def network_and_points(seed: int, flat_input: bool) -> tuple[Network, torch.Tensor]:
    network = Network(image_graph(seed, flat_input), torch.float64)
    return network, torch.randn(
        3, 126, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )


@pytest.mark.parametrize("flat_input", [False, True])
@pytest.mark.parametrize("source", SHAPES)
def test_a_view_computes_what_the_whole_network_computes(source: str, flat_input: bool) -> None:
    network, x = network_and_points(1, flat_input)
    whole = network.activations(x)
    for rows, columns in list(itertools.product(*(spans(extent) for extent in SHAPES[source])))[
        ::7
    ]:
        view = view_of(network.graph, source, (rows, columns))
        assert view is not None
        part = view.network(network).activations(view.box(network, x))
        for name, value in view.cut(whole).items():
            assert torch.allclose(part[name], value, rtol=0, atol=1e-12), (name, rows, columns)
        assert part[source].shape[3:] == (rows[1] - rows[0], columns[1] - columns[0])


def test_a_view_of_a_corner_sees_a_corner() -> None:
    view = view_of(image_graph(1), "c2", ((0, 1), (0, 1)))
    assert view is not None
    assert view.fields["x"] == (
        (0, 4),
        (0, 4),
    )  # stride 2 and 3x3 read rows 0-1 of c1, dilated 3x3 rows 0-3 of x
    assert view.graph.n_inputs == 2 * 4 * 4


@pytest.mark.parametrize("source", ["f", "y"])
def test_what_is_no_image_has_no_view(source: str) -> None:
    graph = image_graph(1)
    places = list(tiles(graph, source, torch.arange(graph.nodes[source].size)))
    assert [view for view, _ in places] == [None]


@pytest.mark.parametrize("side", [1, 2, 3])
def test_tiles_serve_every_element_once(monkeypatch: pytest.MonkeyPatch, side: int) -> None:
    monkeypatch.setattr(receptive_field, "_cheapest", lambda graph, source, indices: (side, 1))
    graph, indices = image_graph(1), torch.arange(0, 80, 3)
    shape = graph.nodes["sum"].shape
    places = []
    for view, part in tiles(graph, "sum", indices):
        assert view is not None
        rows, columns = view.fields["sum"]
        values = torch.arange(80).reshape(shape)[..., slice(*rows), slice(*columns)].flatten()
        assert torch.equal(values[view.indices(shape, indices[part])], indices[part])
        places += part.tolist()
    assert sorted(places) == list(range(len(indices)))


@pytest.mark.parametrize("side", [1, 2, 3])
@pytest.mark.parametrize(("boxes", "ascends"), [(1, False), (3, False), (1, True)])
def test_bounds_in_views_are_those_of_the_whole_network(
    monkeypatch: pytest.MonkeyPatch, side: int, boxes: int, ascends: bool
) -> None:
    network, x = network_and_points(2, False)
    lower, upper = x[:boxes] - 0.05, x[:boxes] + 0.05

    def run(chosen: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        monkeypatch.setattr(
            receptive_field,
            "_cheapest",
            lambda g, s, i: (chosen if len(g.nodes[s].shape) == 4 else 0, 1),
        )
        ascent = LayerAscent(network, 5, Budget.of_cpu_seconds(60, 1 << 30)) if ascends else None
        with torch.no_grad():
            return LayerBounder(network, 1 << 24, ascent).run(lower, upper).bounds

    whole, parts = run(0), run(side)
    for name in SHAPES:
        for a, b in zip(whole[name], parts[name], strict=True):
            assert torch.allclose(a, b, rtol=0, atol=1e-7 if ascends else 1e-9), name
    values = network.activations(x[:boxes])
    for name, (low, up) in parts.items():
        assert bool((low <= values[name]).all() and (values[name] <= up).all())


def test_small_maps_are_bounded_whole_and_large_ones_in_tiles() -> None:
    conv = {"strides": [1, 1], "pads": [1, 1], "dilations": [1, 1], "group": 1}
    for extent, expected in ((4, 1), (64, 2)):
        shape = (1, 16, extent, extent)
        nodes = {"x": Node("x", "Input", (), shape)}
        for k in range(1, 5):
            params = {"weight": np.ones((16, 16, 3, 3))}
            nodes[f"c{k}"] = Node(
                f"c{k}", "Conv", (f"r{k - 1}" if k > 1 else "x",), shape, conv, params
            )
            nodes[f"r{k}"] = Node(f"r{k}", "Relu", (f"c{k}",), shape)
        graph = Graph(nodes, ("x",), ("r4",), ("float32",))
        served = list(tiles(graph, "c4", torch.arange(16 * extent * extent)))
        assert min(len(served), 2) == expected


def test_a_tile_that_reads_nothing_but_padding_is_bounded_in_the_whole_network() -> None:
    attrs = {"strides": [1, 1], "pads": [4, 4], "dilations": [1, 1], "group": 1}
    params = {"weight": np.ones((1, 1, 2, 2)), "bias": np.ones(1)}
    nodes = [
        Node("x", "Input", (), (1, 1, 1, 1)),
        Node("c", "Conv", ("x",), (1, 1, 8, 8), attrs, params),
        Node("r", "Relu", ("c",), (1, 1, 8, 8)),
    ]
    graph = Graph({node.name: node for node in nodes}, ("x",), ("r",), ("float32",))
    assert view_of(graph, "c", ((0, 2), (0, 2))) is None
    assert view_of(graph, "c", ((3, 5), (3, 5))) is not None
    served = torch.cat([places for _, places in tiles(graph, "c", torch.arange(64))])
    assert torch.equal(served.sort().values, torch.arange(64))


class Polls:
    """A budget that expires at the ``count``-th poll."""

    def __init__(self, count: int) -> None:
        self.left = count

    def is_expired(self) -> bool:
        self.left -= 1
        return self.left <= 0


@pytest.mark.parametrize("side", [0, 2])
def test_bounds_that_ran_out_of_time_hold_and_are_intervals_where_nothing_was_done(
    monkeypatch: pytest.MonkeyPatch, side: int
) -> None:
    network, x = network_and_points(4, False)
    lower, upper = x[:1] - 0.05, x[:1] + 0.05
    monkeypatch.setattr(
        receptive_field, "_cheapest", lambda g, s, i: (side if len(g.nodes[s].shape) == 4 else 0, 1)
    )
    random = torch.rand(200, 126, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    values = network.activations(lower + random * (upper - lower))
    intervals = interval_bounds(network, lower, upper)
    widths = []
    with torch.no_grad():
        for count in (1, 20, 30, 40, 50, 60, 10**9):
            bounds = LayerBounder(network, 1 << 14, budget=Polls(count)).run(lower, upper).bounds  # type: ignore[arg-type]
            for name, value in values.items():
                assert bool(
                    (bounds[name][0] <= value).all() and (value <= bounds[name][1]).all()
                ), (count, name)
            widths.append(sum(float((up - low).sum()) for low, up in bounds.values()))
            if count == 1:
                for name, (low, up) in intervals.items():
                    torch.testing.assert_close(bounds[name], (low, up))
    assert widths == sorted(widths, reverse=True) and len(set(widths)) > 3


@pytest.mark.parametrize("side", [1, 2])
def test_bounds_in_views_hold_all_over_the_box(monkeypatch: pytest.MonkeyPatch, side: int) -> None:
    network, x = network_and_points(3, True)
    lower, upper = x[:1] - 0.1, x[:1] + 0.1
    monkeypatch.setattr(
        receptive_field, "_cheapest", lambda g, s, i: (side if len(g.nodes[s].shape) == 4 else 0, 1)
    )
    with torch.no_grad():
        bounds = LayerBounder(network, 1 << 24).run(lower, upper).bounds
    random = torch.rand(300, 126, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    points = torch.cat([lower + random * (upper - lower), torch.where(random > 0.5, lower, upper)])
    for name, value in network.activations(points).items():
        assert bool((bounds[name][0] <= value).all() and (value <= bounds[name][1]).all()), name
