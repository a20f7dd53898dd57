"""Laws of derivatives along a direction: of the rows ``f'(z) u``, and of networks made of them.

Truth of a row is computed in extended precision. That of a network are differences of the network
itself: bounds of the derivative over a box hold for all pairs of points in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from bitcrown.bounds import rounding
from bitcrown.bounds.crown import Backward, minimum, output_seeds
from bitcrown.bounds.intermediate import LayerBounder
from bitcrown.bounds.relaxations import slope
from bitcrown.bounds.relaxations.difference import SLOPES
from bitcrown.bounds.relaxations.registry import Operands, Relaxation, nonlinear_row
from bitcrown.model.directional import directional_derivatives
from bitcrown.model.execute import Network
from bitcrown.model.graph import Graph, Node
from bitcrown.model.registry import SLOPE
from tests.laws.test_difference_laws import ATTRS, network_pair
from tests.laws.test_relaxation_laws import CASES, EPSILON, Real, Wide, line, wide

every_base = pytest.mark.parametrize("base", sorted(SLOPES))


def _bell(x: Real) -> Real:
    """The derivative of the sigmoid."""
    small = np.exp(-np.abs(x))
    found: Real = small / (1 + small) ** 2
    return found


DERIVATIVES: dict[str, Callable[[Real], Real]] = {
    "Relu": lambda x: (x > 0).astype(Wide),
    "Sigmoid": _bell,
    "Tanh": lambda x: 4 * _bell(2 * x),
    "Atan": lambda x: 1 / (1 + x * x),
    "Erf": lambda x: np.exp(-x * x) * 2 / np.sqrt(Wide(math.pi)),
    "Exp": np.exp,
    "Softplus": lambda x: np.where(x >= 0, 1, np.exp(x)) / (1 + np.exp(-np.abs(x))),
    "Square": lambda x: 2 * x,
    "Elu": lambda x: np.where(x > 0, 1, Wide(1.3) * np.exp(np.minimum(x, 0))),
    "Clip": lambda x: ((x > -1) & (x < 0.75)).astype(Wide),
    "Sin": np.cos,
    "Cos": lambda x: -np.sin(x),
}


def node_of(base: str) -> Node:
    return Node("r", f"{base}{SLOPE}", ("z", "u"), (1,), ATTRS.get(base, {}))


def boxes(base: str, dtype: torch.dtype) -> tuple[Operands, Operands, list[Real]]:
    """Intervals ``[B]`` of ``z`` and ``u``, and points ``[P, B]`` inside: narrow, degenerate, huge
    ones, of one sign and of both; ends, and 0 where it is inside."""
    rng, count = np.random.default_rng(1), 600
    size = 10.0 ** rng.integers(-6, 2, size=(2, count))
    size[0] = np.minimum(size[0], min(CASES[base].scale, 3.0))
    size[:, :20], size[:, 20:30] = 0.0, 1e-310
    size[1, 30:40] = 1e30
    middle = rng.normal(size=(2, count)) * (rng.random((2, count)) < 0.8)
    low = torch.tensor(middle - size * rng.random((2, count)), dtype=dtype)
    up = torch.maximum(torch.tensor(middle + size * rng.random((2, count)), dtype=dtype), low)
    low[0, 40:60], up[1, 60:90] = low[0, 40:60].clamp(min=0), up[1, 60:90].clamp(max=0)
    low, up = torch.minimum(low, up), torch.maximum(low, up)
    share = rng.random((2, 40, count)).astype(Wide)
    share[0, :4], share[1, :4] = [[0], [0], [1], [1]], [[0], [1], [0], [1]]
    points = wide(low)[:, None] + share * (wide(up) - wide(low))[:, None]
    points[0, 4:8] = 0
    points = np.clip(points, wide(low)[:, None], wide(up)[:, None])
    # at a kink the derivative is that of a side which the interval has
    is_right = (points[0] == 0) & ~((wide(low[0]) < 0) & (wide(up[0]) <= 0))
    points[0] = np.where(is_right, np.nextafter(Wide(0), Wide(1)), points[0])
    return list(low), list(up), list(points)


def assert_between(base: str, found: Relaxation, points: list[Real]) -> None:
    value = DERIVATIVES[base](points[0]) * points[1]
    slack = 2 * max(CASES[base].epsilon, 64 * EPSILON) * np.abs(points[1])
    low, low_size = line(found.lower_slopes, found.lower_intercept, points)
    up, up_size = line(found.upper_slopes, found.upper_intercept, points)
    assert not np.isnan(low).any() and not np.isnan(up).any()
    with np.errstate(all="ignore"):
        assert not (low - value > slack + EPSILON * low_size).any()
        assert not (value - up > slack + EPSILON * up_size).any()


@every_base
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_derivatives_lie_in_the_interval_and_between_the_lines(
    base: str, dtype: torch.dtype
) -> None:
    row, node = nonlinear_row(f"{base}{SLOPE}"), node_of(base)
    lowers, uppers, points = boxes(base, dtype)
    value = DERIVATIVES[base](points[0]) * points[1]
    low, up = row.interval(node, lowers, uppers)
    slack = 2 * max(CASES[base].epsilon, 64 * EPSILON) * np.abs(points[1])
    assert (value >= wide(low) - slack).all() and (value <= wide(up) + slack).all()
    assert_between(base, row.relax(node, lowers, uppers, None), points)
    if row.alphas:
        generator = torch.Generator().manual_seed(2)
        alpha = torch.rand(row.alphas, len(lowers[0]), 5, 1, generator=generator, dtype=dtype)
        alpha[:, :, 0], alpha[:, :, 1] = 0.0, 1.0
        ends = [[t[:, None, None] for t in side] for side in (lowers, uppers)]
        for k in range(5):
            one = row.relax(node, *ends, alpha[:, :, k : k + 1])
            parts = [[p.expand(len(alpha[0]), 1, 1)[:, 0, 0] for p in s] for s in (one[0], one[2])]
            ends_of = [p.expand(len(alpha[0]), 1, 1)[:, 0, 0] for p in (one[1], one[3])]
            assert_between(
                base, Relaxation(tuple(parts[0]), ends_of[0], tuple(parts[1]), ends_of[1]), points
            )


def test_a_planted_error_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines that are a hundredth too low fail the law above."""
    made = slope._relu_lines
    monkeypatch.setattr(
        slope, "_relu_lines", lambda *ends: [one._replace(c=0.99 * one.c) for one in made(*ends)]
    )
    row = nonlinear_row(f"Relu{SLOPE}")
    lowers, uppers, points = boxes("Relu", torch.float64)
    with pytest.raises(AssertionError):
        assert_between("Relu", row.relax(node_of("Relu"), lowers, uppers, None), points)


@pytest.mark.parametrize("alpha", [0.1, 0.4, 0.6, 0.9])
def test_a_slope_that_underflows_is_lost_as_far_as_it_reaches(alpha: float) -> None:
    """Between two lines in float32, of which one is as steep as 1e-30 over 1e15."""
    row, node = nonlinear_row(f"Relu{SLOPE}"), node_of("Relu")
    lowers = [torch.full((1, 1, 1), end) for end in (-(2.0**-127), -1e15)]
    uppers = [torch.full((1, 1, 1), end) for end in (2.0**-126, 1e-30)]
    found = row.relax(node, lowers, uppers, torch.full((row.alphas, 1, 1, 1), alpha))
    ends = [wide(end).reshape(-1) for end in lowers]  # where the derivative is 0
    slopes = tuple(part.reshape(-1) for part in found.upper_slopes)
    value, size = line(slopes, found.upper_intercept.reshape(-1), ends)
    assert (value >= -EPSILON * size).all()


@every_base
def test_what_is_no_number_says_nothing(base: str) -> None:
    row, node = nonlinear_row(f"{base}{SLOPE}"), node_of(base)
    odd = [-math.inf, -1e308, -1.0, -1e-310, 0.0, 1e-310, 1.0, 1e308, math.inf, math.nan]
    pairs = [(a, b) for a in odd for b in odd if not a > b]
    chosen = [[one, other] for one in pairs for other in pairs]
    ends = torch.tensor(chosen, dtype=torch.float64)
    lowers, uppers = list(ends[:, :, 0].T), list(ends[:, :, 1].T)
    low, up = row.interval(node, lowers, uppers)
    assert not torch.isnan(low).any() and not torch.isnan(up).any()
    found = row.relax(node, lowers, uppers, None)
    everything = (*found.lower_slopes, *found.upper_slopes)
    assert all(bool(torch.isfinite(part).all()) for part in everything)
    assert not torch.isnan(found.lower_intercept).any()
    assert not torch.isnan(found.upper_intercept).any()
    # of a direction without an end there is none where the slope may be 1/4
    low, up = row.interval(
        node, [torch.zeros(1), torch.tensor([-math.inf])], [torch.ones(1), torch.ones(1)]
    )
    assert low == -math.inf and up != -math.inf


def convolutions(activation: str) -> Graph:
    """A product, a residual and a convolution with padding."""
    rng, attrs = np.random.default_rng(3), ATTRS.get(activation, {})
    kernel = {"weight": rng.normal(size=(2, 1, 1, 2)), "bias": rng.normal(size=2)}
    last = {"weight": rng.normal(size=(2, 8)), "bias": rng.normal(size=2)}
    nodes = [
        Node("x", "Input", (), (4,)),
        Node("half", "Scale", ("x",), (4,), {}, {"scale": np.full(4, 0.5), "shift": np.ones(4)}),
        Node("square", "Mul", ("x", "half"), (4,)),
        Node("image", "Reshape", ("square",), (1, 1, 1, 4), {"shape": (1, 1, 1, 4)}),
        Node("z", "Conv", ("image",), (1, 2, 1, 3), {}, kernel),
        Node("a", activation, ("z",), (1, 2, 1, 3), attrs),
        Node("flat", "Reshape", ("a",), (6,), {"shape": (6,)}),
        Node("both", "Concat", ("flat", "c"), (8,), {"axis": 0}),
        Node("y", "Linear", ("both",), (2,), {}, last),
    ]
    nodes.insert(1, Node("c", "Constant", (), (2,), {}, {"value": np.ones(2)}))
    conv = {"strides": (1, 1), "pads": (0, 0), "dilations": (1, 1), "group": 1}
    nodes[5] = replace(nodes[5], attrs=conv)
    return Graph({node.name: node for node in nodes}, ("x",), ("y",), ("float32",))


def lower_bounds(graph: Graph, low: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Of ``J(p) d`` and its negative, proved."""
    network = Network(graph, torch.float64)
    enclosure = LayerBounder(network, 1 << 26).run(low, up)
    eye = torch.eye(2, dtype=torch.float64)
    backward = Backward(network, enclosure.relaxations, scales=enclosure.scales)
    lines = backward.run(output_seeds(network, torch.cat([eye, -eye]).unsqueeze(0)))
    return minimum(lines, low, up, rounding.gamma(network))[0]


@every_base
@pytest.mark.parametrize("is_conv", (False, True))
def test_differences_of_all_pairs_are_what_derivatives_allow(base: str, is_conv: bool) -> None:
    graph = convolutions(base) if is_conv else network_pair(1, base, 0.0)[0]
    made = directional_derivatives(graph)
    assert made is not None
    n, network = graph.n_inputs, Network(graph, torch.float64)
    assert made.n_inputs == 2 * n and made.n_outputs == graph.n_outputs
    generator = torch.Generator().manual_seed(4)
    x, z = torch.rand(2, 2000, n, generator=generator, dtype=torch.float64) - 0.5
    step = 1e-6
    value = Network(made, torch.float64)(torch.cat([x, z], 1))
    about = (network(x + step * z) - network(x - step * z)) / (2 * step)
    near = (value - about).abs() <= 1e-5 * (1 + about.abs())
    assert near.double().mean() > 0.99  # but for pairs on both sides of a kink
    for k in range(n):
        low, up = (torch.full((1, 2 * n), end, dtype=torch.float64) for end in (-0.5, 0.5))
        low[0, n:] = up[0, n:] = 0.0
        low[0, n + k] = up[0, n + k] = 1.0
        found = lower_bounds(made, low, up)
        other = x.clone()
        other[:, k] = z[:, k]
        rate = (network(x) - network(other)) / (x - other)[:, k : k + 1]
        least = torch.cat([rate.amin(0), (-rate).amin(0)])
        assert (found <= least + 1e-9 * (1 + least.abs())).all()
        assert torch.isfinite(found).all()


def test_networks_with_jumps_or_rounding_have_no_derivatives() -> None:
    graph = network_pair(1, "Relu", 0.0)[0]
    for op in ("Floor", "DynamicQuantize"):
        nodes = dict(graph.nodes)
        nodes["a0"] = replace(nodes["a0"], op=op)
        assert directional_derivatives(replace(graph, nodes=nodes)) is None
