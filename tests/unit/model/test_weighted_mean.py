"""The rewritten weighted mean is the same function, applies only to row sums, and bounds better."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bitcrown.bounds.intermediate import LayerBounder
from bitcrown.model.execute import Network
from bitcrown.model.graph import Graph, Node
from bitcrown.model.passes import rewritten, without_dead_nodes
from bitcrown.model.weighted_mean import centred


def mean_graph(axes: tuple[int, ...], keepdims: bool, swapped: bool) -> Graph:
    """``W (p / sum p)`` with ``p = exp(x)`` for x of shape [3, 3]; not a row sum where axes is
    (0,)."""
    shape = (3, 3)
    total = tuple(1 if i in axes else 3 for i in range(2)) if keepdims else (3,)
    weight = np.array([[10.0, 20.0, 40.0], [7.0, 7.5, 8.0]])
    pair = ("p", "wide")
    nodes = [
        Node("x", "Input", (), shape),
        Node("p", "Exp", ("x",), shape),
        Node("sum", "ReduceSum", ("p",), total, {"axes": axes, "keepdims": keepdims, "count": 3}),
        Node("r", "Reciprocal", ("sum",), total),
        Node("wide", "Expand", ("r",), shape, {"shape": shape}),
        Node("w", "Mul", pair[::-1] if swapped else pair, shape),
        Node("y", "Linear", ("w",), (3, 2), {}, {"weight": weight, "bias": np.array([1.0, -2.0])}),
    ]
    return Graph({node.name: node for node in nodes}, ("x",), ("y",), {"x": np.dtype(np.float32)})


@pytest.mark.parametrize("swapped", [False, True])
def test_mean_over_rows_is_rewritten_to_the_same_function_with_tighter_bounds(
    swapped: bool,
) -> None:
    before = mean_graph((1,), True, swapped)
    after = without_dead_nodes(rewritten(before, centred))
    assert "w" not in after.nodes
    networks = [Network(graph, torch.float64) for graph in (before, after)]
    x = torch.randn(50, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(networks[0](x), networks[1](x), rtol=1e-12, atol=1e-12)
    box = (
        torch.full((1, 9), -0.1, dtype=torch.float64),
        torch.full((1, 9), 0.1, dtype=torch.float64),
    )
    loose, tight = (LayerBounder(network, 1 << 24).run(*box).bounds["y"] for network in networks)
    assert ((tight[1] - tight[0]) < 0.9 * (loose[1] - loose[0])).all()


@pytest.mark.parametrize(("axes", "keepdims"), [((0,), True), ((1,), False)])
def test_other_quotients_are_left_alone(axes: tuple[int, ...], keepdims: bool) -> None:
    """Sums of columns, and row sums that broadcasting lays along the columns, are no weighted means
    of rows."""
    before = mean_graph(axes, keepdims, False)
    assert rewritten(before, centred).nodes == before.nodes
