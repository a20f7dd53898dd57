"""A network as one differentiable step has the values of the network and the gradient that autograd
derives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bitcrown.model.execute import Network
from bitcrown.model.graph import Graph, Node
from bitcrown.model.pullback import Pullback
from bitcrown.model.strided_adjoint import PhasedAdjoint
from tests.random_networks import conv_graph, dense_graph


def with_constant(operator: str) -> Graph:
    """``Relu(constant) op Relu(x + x)``, a ReLU behind it, and the last of its values read
    twice."""
    nodes = [
        Node("x", "Input", (), (1, 6)),
        Node("k", "Constant", (), (1, 6), {}, {"value": np.linspace(-1.0, 1.0, 6)[None]}),
        Node("rk", "Relu", ("k",), (1, 6)),
        Node("xx", "Add", ("x", "x"), (1, 6)),
        Node("rx", "Relu", ("xx",), (1, 6)),
        Node("s", operator, ("rk", "rx"), (1, 6)),
        Node("rs", "Relu", ("s",), (1, 6)),
        Node("y", "Add", ("s", "rs"), (1, 6)),
    ]
    return Graph({node.name: node for node in nodes}, ("x",), ("y",), ("float32",))


GRAPHS = {
    "dense": dense_graph(1, [6, 9, 9, 4]),
    "residual": dense_graph(2, [6, 9, 9, 9, 4], residual=True),
    "convolutions": conv_graph(3),
    "constant added": with_constant("Add"),
    "constant subtracted": with_constant("Sub"),
}


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("count", [1, 5])
def test_values_and_gradients_are_those_of_the_network(name: str, count: int) -> None:
    network = Network(GRAPHS[name], torch.float64)
    pullback = Pullback.of(network)
    assert pullback is not None
    x = torch.randn(
        count,
        network.graph.n_inputs,
        dtype=torch.float64,
        generator=torch.Generator().manual_seed(4),
    )
    weights = torch.randn(count, network.graph.n_outputs, dtype=torch.float64)
    point, other = x.clone().requires_grad_(True), x.clone().requires_grad_(True)
    value, expected = pullback(point), network(other)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(pullback(x), expected.detach())
    slope = torch.autograd.grad((weights * value).sum(), point, retain_graph=True)[0]
    torch.testing.assert_close(slope, torch.autograd.grad((weights * expected).sum(), other)[0])
    assert bool(slope.any())
    again = torch.autograd.grad((weights * value).sum(), point)[0]
    assert torch.equal(again, slope), "a second pass backward finds what the first one needed"


def test_other_nonlinear_operators_are_left_to_autograd() -> None:
    assert Pullback.of(Network(dense_graph(1, [3, 4, 2], op="Tanh"), torch.float64)) is None


def test_not_a_number_passes_and_zero_has_no_slope() -> None:
    nodes = [Node("x", "Input", (), (1, 3)), Node("y", "Relu", ("x",), (1, 3))]
    pullback = Pullback.of(
        Network(Graph({n.name: n for n in nodes}, ("x",), ("y",), ("float32",)), torch.float32)
    )
    assert pullback is not None
    x = torch.tensor([[0.0, torch.nan, torch.inf]], requires_grad=True)
    value = pullback(x)
    assert torch.equal(value.isnan(), torch.tensor([[False, True, False]]))
    assert (
        torch.autograd.grad(value.sum(), x)[0].tolist()
        == torch.autograd.grad(torch.relu(x).sum(), x)[0].tolist()
    )


def test_second_derivatives_are_refused() -> None:
    pullback = Pullback.of(Network(dense_graph(1, [3, 4, 2]), torch.float64))
    assert pullback is not None
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(pullback(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


@pytest.mark.parametrize("kernel", [2, 3, 5])
@pytest.mark.parametrize("stride", [2, 3])
@pytest.mark.parametrize("padding", [0, 1, 3])
@pytest.mark.parametrize("extent", [7, 8, 9])
def test_phases_are_the_adjoint_of_a_strided_convolution(
    kernel: int, stride: int, padding: int, extent: int
) -> None:
    generator = torch.Generator().manual_seed(kernel)
    weight = torch.randn(2, 3, kernel, kernel, dtype=torch.float64, generator=generator)
    attrs = {
        "strides": [stride, stride],
        "pads": [padding, padding],
        "group": 1,
        "dilations": [1, 1],
    }
    adjoint = PhasedAdjoint.of(weight, attrs, (extent, extent + 1))
    if kernel < stride:
        assert adjoint is None
        return
    assert adjoint is not None
    x = torch.randn(
        2, 3, extent, extent + 1, dtype=torch.float64, generator=generator, requires_grad=True
    )
    y = F.conv2d(x, weight, None, stride, padding)
    slope = torch.randn(y.shape, dtype=torch.float64, generator=generator)
    torch.testing.assert_close(adjoint(slope), torch.autograd.grad(y, x, slope)[0])


def test_phases_are_for_strided_convolutions_alone() -> None:
    weight = torch.zeros(2, 2, 3, 3)
    plain = {"strides": [2, 2], "pads": [1, 1], "group": 1, "dilations": [1, 1]}
    assert PhasedAdjoint.of(weight, plain, (8, 8)) is not None
    for change in ({"strides": [1, 1]}, {"group": 2}, {"dilations": [2, 2]}):
        assert PhasedAdjoint.of(weight, {**plain, **change}, (8, 8)) is None
    assert PhasedAdjoint.of(weight[:, :, 0], {**plain, "strides": [2]}, (8,)) is None
