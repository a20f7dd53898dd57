"""Laws of differences: of the rows ``f(z) - f(w)``, and of networks that are written with them.

Truth of a row is computed in extended precision at points ``(z, w, z - w)`` whose three parts lie
in their intervals; that of a network by running both.
"""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch

from bitcrown.bounds import rounding
from bitcrown.bounds.crown import Backward, minimum, output_seeds
from bitcrown.bounds.intermediate import LayerBounder
from bitcrown.bounds.relaxations import difference
from bitcrown.bounds.relaxations.difference import SLOPES
from bitcrown.bounds.relaxations.registry import Operands, Relaxation, nonlinear_row
from bitcrown.model.execute import Network
from bitcrown.model.graph import Graph, Node
from bitcrown.model.joining import join
from bitcrown.model.pairs import PairedInput, with_differences, with_equal_inputs
from bitcrown.model.registry import DIFFERENCE, DIFFERENT
from tests.laws.test_relaxation_laws import CASES, EPSILON, Case, Real, Wide, line, truth_of, wide

ATTRS = {"Elu": {"alpha": 1.3}, "Clip": {"min": -1.0, "max": 0.75}}
every_base = pytest.mark.parametrize("base", sorted(SLOPES))


def node_of(base: str) -> Node:
    names = ("z", "w", "d", "y", "v")
    return Node("e", f"{base}{DIFFERENCE}", names, (1,), ATTRS.get(base, {}))


def truths(base: str, points: list[Real]) -> tuple[Real, Real]:
    """``f(z)`` and ``f(w)``."""
    case = replace(CASES[base], attrs=ATTRS.get(base, {}))
    return truth_of(case, [points[0]]), truth_of(case, [points[1]])


def triples(base: str, dtype: torch.dtype, seed: int) -> tuple[Operands, Operands, list[Real]]:
    """Intervals ``[B]`` of ``z``, ``w``, ``d``, and points ``[P, B]`` inside all three: close and
    far arguments, narrow, degenerate, huge and one-sided intervals."""
    rng, count = np.random.default_rng(seed), 400
    scale = min(CASES[base].scale, 3.0)
    size = 10.0 ** rng.integers(-6, 1, size=count)
    size[:20], size[20:40], size[40:44] = 0.0, 1e-30, 1e-310
    if base not in ("Exp", "Square", "Softplus", "Elu"):
        size[44:50] = 1e30
    middle = rng.normal(size=count) * scale * (rng.random(count) < 0.8)
    low = torch.tensor(middle - size * rng.random(count), dtype=dtype)
    up = torch.maximum(torch.tensor(middle + size * rng.random(count), dtype=dtype), low)
    shift = rng.normal(size=count) * 10.0 ** rng.integers(-8, 1, size=count)
    shift[rng.random(count) < 0.2] = 0.0
    other_low = torch.tensor(low.numpy() + shift, dtype=dtype)
    other_up = torch.maximum(torch.tensor(up.numpy() + shift, dtype=dtype), other_low)
    share = rng.random((40, count)).astype(Wide)
    share[:4] = [[0.0], [0.0], [1.0], [1.0]]
    z = wide(low) + share * (wide(up) - wide(low))
    share = np.where(rng.random((40, count)) < 0.5, share, rng.random((40, count))).astype(Wide)
    share[:4] = [[0.0], [1.0], [0.0], [1.0]]
    w = wide(other_low) + share * (wide(other_up) - wide(other_low))
    z, w = np.clip(z, wide(low), wide(up)), np.clip(w, wide(other_low), wide(other_up))
    z[4:8], w[4:6] = np.clip(0, wide(low), wide(up)), np.clip(0, wide(other_low), wide(other_up))
    d = z - w
    # the interval of d is what these points say, rounded outward
    tiny = torch.finfo(dtype).tiny
    least = torch.tensor(d.min(0).astype(np.float64), dtype=dtype)
    most = torch.tensor(d.max(0).astype(np.float64), dtype=dtype)
    is_exact = torch.tensor((d == 0).all(0))
    pad = torch.maximum(least.abs(), most.abs()) * 2 * torch.finfo(dtype).eps + tiny
    least, most = torch.where(is_exact, 0.0, least - pad), torch.where(is_exact, 0.0, most + pad)
    return [low, other_low, least], [up, other_up, most], [z, w, d]


def assert_between(base: str, found: Relaxation, points: list[Real]) -> None:
    first, second = truths(base, points)
    value, size = first - second, np.abs(first) + np.abs(second)
    points = [*points, first, second]
    low, low_size = line(found.lower_slopes, found.lower_intercept, points)
    up, up_size = line(found.upper_slopes, found.upper_intercept, points)
    assert not np.isnan(low).any() and not np.isnan(up).any()
    slack = CASES[base].epsilon * size
    with np.errstate(all="ignore"):
        too_high = np.isfinite(low) & (low - value > slack + EPSILON * low_size)
        too_low = np.isfinite(up) & (value - up > slack + EPSILON * up_size)
    assert not too_high.any() and not too_low.any()


def test_every_operator_that_has_a_difference_has_its_row() -> None:
    assert set(SLOPES) == set(DIFFERENT)


@every_base
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_differences_lie_in_the_interval_and_between_the_lines(
    base: str, dtype: torch.dtype
) -> None:
    row, node = nonlinear_row(f"{base}{DIFFERENCE}"), node_of(base)
    lowers, uppers, points = triples(base, dtype, 1)
    first, second = truths(base, points)
    low, up = row.interval(node, lowers, uppers)
    slack = CASES[base].epsilon * (np.abs(first) + np.abs(second))
    assert (first - second >= wide(low) - slack).all()
    assert (first - second <= wide(up) + slack).all()
    assert_between(base, row.relax(node, lowers, uppers, None), points)
    generator = torch.Generator().manual_seed(2)
    alpha = torch.rand(row.alphas, len(lowers[0]), 5, 1, generator=generator, dtype=dtype)
    alpha[:, :, 0], alpha[:, :, 1] = 0.0, 1.0
    ends = [[t[:, None, None] for t in side] for side in (lowers, uppers)]
    found = row.relax(node, ends[0], ends[1], alpha)
    flat = [
        part.expand(len(alpha[0]), 5, 1)
        for part in (
            *(*found.lower_slopes, found.lower_intercept),
            *(*found.upper_slopes, found.upper_intercept),
        )
    ]
    for k in range(5):
        parts = [part[:, k, 0] for part in flat]
        chosen = Relaxation(tuple(parts[:5]), parts[5], tuple(parts[6:11]), parts[11])
        assert_between(base, chosen, points)


@every_base
def test_equal_arguments_have_no_difference(base: str) -> None:
    row, node = nonlinear_row(f"{base}{DIFFERENCE}"), node_of(base)
    low, up = torch.tensor([-2.0, -0.5, 0.25]), torch.tensor([-1.0, 0.5, 2.0])
    zero = torch.zeros(3)
    ends = row.interval(node, [low, low, zero], [up, up, zero])
    assert (ends[0] == 0).all() and (ends[1] == 0).all()
    found = row.relax(node, [low, low, zero], [up, up, zero], None)
    for slopes, intercept in (
        (found.lower_slopes, found.lower_intercept),
        (found.upper_slopes, found.upper_intercept),
    ):
        assert all((slopes[k] == 0).all() for k in (0, 1, 3, 4)) and (intercept == 0).all()


@every_base
def test_what_is_no_number_says_nothing(base: str) -> None:
    """Whatever stands for an operand's bounds, no end is NaN, and none claims more than it may."""
    row, node = nonlinear_row(f"{base}{DIFFERENCE}"), node_of(base)
    odd = [-math.inf, -1e308, -1.0, -1e-310, 0.0, 1e-310, 1.0, 1e308, math.inf, math.nan]
    pairs = [(a, b) for a in odd for b in odd if not a > b]
    rng = np.random.default_rng(3)
    chosen = [[pairs[k] for k in rng.integers(0, len(pairs), size=3)] for _ in range(600)]
    ends = torch.tensor(chosen, dtype=torch.float64)
    lowers, uppers = list(ends[:, :, 0].T), list(ends[:, :, 1].T)
    low, up = row.interval(node, lowers, uppers)
    assert not torch.isnan(low).any() and not torch.isnan(up).any()
    found = row.relax(node, lowers, uppers, None)
    everything = (*found.lower_slopes, *found.upper_slopes)
    assert all(bool(torch.isfinite(slope).all()) for slope in everything)
    assert not torch.isnan(found.lower_intercept).any()
    assert not torch.isnan(found.upper_intercept).any()
    z, w = ends[:, 0].mean(1), ends[:, 1].mean(1)
    is_point = torch.isfinite(z + w) & (z - w >= lowers[2]) & (z - w <= uppers[2])
    points = [wide(part[is_point]) for part in (z, w, z - w)]
    kept = Relaxation(
        tuple(s[is_point] for s in found.lower_slopes),
        found.lower_intercept[is_point],
        tuple(s[is_point] for s in found.upper_slopes),
        found.upper_intercept[is_point],
    )
    with np.errstate(all="ignore"):
        first, second = truths(base, points)
        is_defined = np.isfinite(first - second)
        value = first - second
        slack = 1e-12 * (np.abs(first) + np.abs(second)) + 1e-300
        for side, sign in (
            ((kept.lower_slopes, kept.lower_intercept), 1),
            ((kept.upper_slopes, kept.upper_intercept), -1),
        ):
            at, size = line(*side, [*points, first, second])
            wrong = is_defined & np.isfinite(at) & (sign * (at - value) > slack + 1e-12 * size)
            assert not wrong.any(), np.stack([*points, at, value])[:, wrong][:, 0]


def test_a_planted_error_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chord that is a hundredth too low fails the law above."""
    chord = difference._chord
    monkeypatch.setattr(
        difference,
        "_chord",
        lambda left, right: (chord(left, right)[0], 0.99 * chord(left, right)[1]),
    )
    lowers, uppers, points = triples("Relu", torch.float64, 1)
    row = nonlinear_row(f"Relu{DIFFERENCE}")
    with pytest.raises(AssertionError):
        assert_between("Relu", row.relax(node_of("Relu"), lowers, uppers, None), points)


def test_what_is_positive_at_every_violation_is_bounded_there() -> None:
    row, node = nonlinear_row("Positive"), Node("p", "Positive", ("x",), (1,))
    low = torch.tensor([-2.0, -1.0, 0.5, 0.0])[:, None, None]
    up = torch.tensor([1.0, 0.0, 2.0, 0.0])[:, None, None]
    for alpha in (None, torch.full((1, 4, 1, 1), 0.3), torch.zeros(1, 4, 1, 1)):
        found = row.relax(node, [low], [up], alpha)
        least, most = row.interval(node, [low], [up])
        for share in torch.linspace(0, 1, 9):
            x = low.clamp(min=0) + share * (up - low.clamp(min=0))
            assert (found.lower_slopes[0] * x + found.lower_intercept <= x).all()
            assert (found.upper_slopes[0] * x + found.upper_intercept >= x).all()
            assert ((least <= x) & (x <= most)).all()


def network_pair(seed: int, activation: str, closeness: float) -> tuple[Graph, Graph]:
    """Two networks with two hidden layers whose weights differ by ``closeness``; some rows are
    equal."""
    rng, sizes = np.random.default_rng(seed), (3, 6, 5, 2)
    graphs = []
    weights = [rng.normal(size=(b, a)) for a, b in zip(sizes, sizes[1:], strict=False)]
    biases = [rng.normal(size=b) * 0.3 for b in sizes[1:]]
    for own in (0.0, closeness):
        nodes, name = {"x": Node("x", "Input", (), (3,))}, "x"
        for k, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            moved = weight + own * rng.normal(size=weight.shape) * (
                rng.random((len(weight), 1)) < 0.7
            )
            params = {"weight": moved, "bias": bias + own * rng.normal(size=bias.shape)}
            nodes[f"z{k}"] = Node(f"z{k}", "Linear", (name,), (sizes[k + 1],), {}, params)
            name = f"z{k}"
            if k < 2:
                nodes[f"a{k}"] = Node(
                    f"a{k}", activation, (name,), (sizes[k + 1],), ATTRS.get(activation, {})
                )
                name = f"a{k}"
        graphs.append(Graph(nodes, ("x",), (name,), ("float32",)))
    return graphs[0], graphs[1]


def ties(same: bool) -> dict[str, PairedInput]:
    known = np.full(3, same)
    return {"g:x": PairedInput("f:x", known, np.zeros(3, dtype=np.int64))}


def difference_bounds(graph: Graph, low: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Lower bounds of ``f - g`` and ``g - f``, proved."""
    network = Network(graph, torch.float64)
    enclosure = LayerBounder(network, 1 << 26).run(low, up)
    eye = torch.eye(2, dtype=torch.float64)
    rows = torch.cat([torch.cat([eye, -eye], 1), torch.cat([-eye, eye], 1)]).unsqueeze(0)
    backward = Backward(network, enclosure.relaxations, scales=enclosure.scales)
    return minimum(backward.run(output_seeds(network, rows)), low, up, rounding.gamma(network))[0]


@pytest.mark.parametrize("activation", ("Relu", "Sigmoid", "Tanh", "Elu", "Clip"))
@pytest.mark.parametrize("closeness", (0.0, 1e-6, 1e-2, 1.0))
def test_bounds_of_pairs_hold_what_is_sampled(activation: str, closeness: float) -> None:
    gained = []
    for seed in range(4):
        joined = join(dict(zip("fg", network_pair(seed, activation, closeness), strict=True)))
        inputs = ties(True)
        plain = with_equal_inputs(joined, inputs)
        pair = with_differences(plain, "f", "g", inputs)
        assert pair is not None
        low, up = -torch.ones(1, 6, dtype=torch.float64), torch.ones(1, 6, dtype=torch.float64)
        x = torch.rand(500, 6, dtype=torch.float64) * 2 - 1
        x[:, 3:] = x[:, :3]
        y = Network(joined, torch.float64)(x)
        torch.testing.assert_close(Network(pair, torch.float64)(x), y, rtol=1e-9, atol=1e-9)
        gap = y[:, :2] - y[:, 2:]
        found = difference_bounds(pair, low, up)
        least = torch.cat([gap.amin(0), (-gap).amin(0)])
        assert (found <= least).all()
        gained.append(float((found - difference_bounds(plain, low, up)).min()))
        if closeness == 0.0:
            assert (found.abs() < 1e-290).all()  # what underflow may cost
    if closeness <= 1e-2:
        assert min(gained) > 0


@pytest.mark.parametrize("sign", (-1, 0, 1))
def test_inputs_whose_order_is_known_are_bounded_by_it(sign: int) -> None:
    """Two inputs are tied; of the third only the order may be known."""
    joined = join(dict(zip("fg", network_pair(5, "Relu", 0.0), strict=True)))
    inputs = {"g:x": PairedInput("f:x", np.array([True, True, False]), np.array([0, 0, sign]))}
    pair = with_differences(with_equal_inputs(joined, inputs), "f", "g", inputs)
    assert pair is not None
    x = torch.rand(500, 6, dtype=torch.float64) * 2 - 1
    x[:, 3:5] = x[:, :2]
    if sign:
        x = x[(x[:, 2] - x[:, 5]) * sign >= 0]
    y = Network(joined, torch.float64)(x)
    torch.testing.assert_close(Network(pair, torch.float64)(x), y, rtol=1e-9, atol=1e-9)
    low, up = -torch.ones(1, 6, dtype=torch.float64), torch.ones(1, 6, dtype=torch.float64)
    gap = y[:, :2] - y[:, 2:]
    assert (difference_bounds(pair, low, up) <= torch.cat([gap.amin(0), (-gap).amin(0)])).all()


def test_differences_of_weights_are_exact() -> None:
    """What one float64 does not hold is kept in a second one."""
    first, second = network_pair(1, "Relu", 0.0)
    nodes = dict(second.nodes)
    tiny = nodes["z0"].params["weight"].copy()
    tiny[0] = 2.0**-70 * np.array([1.0, 3.0, 5.0])
    nodes["z0"] = replace(nodes["z0"], params={**nodes["z0"].params, "weight": tiny})
    joined = join({"f": first, "g": replace(second, nodes=nodes)})
    pair = with_differences(with_equal_inputs(joined, ties(True)), "f", "g", ties(True))
    assert pair is not None
    parts = [
        n.params["weight"][0] for n in pair.nodes.values() if "/moved" in n.name and n.size == 6
    ]
    assert len(parts) == 2
    whole = first.nodes["z0"].params["weight"][0]
    for k in range(3):
        exact = Fraction(whole[k]) - Fraction(tiny[0][k])
        assert Fraction(parts[0][k]) + Fraction(parts[1][k]) == exact


def test_networks_that_round_have_no_differences() -> None:
    first, second = network_pair(2, "Relu", 1e-3)
    nodes = dict(second.nodes)
    nodes["p"] = Node("p", "Perturb", ("z2", "z2"), (2,), {"share": 0.1, "least": 0.0})
    joined = join({"f": first, "g": replace(second, nodes=nodes, outputs=("p",))})
    assert with_differences(joined, "f", "g", ties(False)) is None


__all__ = ["Case"]
