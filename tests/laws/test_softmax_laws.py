"""Laws of ``LogSumExp`` and ``LogShare``: ranges and lines against extended precision, over hostile
boxes.

Truth is ``numpy.longdouble``, from the same floating-point numbers. Legend: ``B`` boxes, ``P``
sample points per box, ``n`` entries of a line.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper, save

from bitcrown.bounds import intermediate, wanted
from bitcrown.bounds.intermediate import LayerBounder
from bitcrown.bounds.interval import Bounds
from bitcrown.bounds.relaxations.registry import nonlinear_row
from bitcrown.bounds.shares import common_part
from bitcrown.bounds.wanted import is_image_of
from bitcrown.model.execute import Network
from bitcrown.model.graph import Graph, Node, Rounding
from bitcrown.model.onnx_reader import read_graph

Wide = np.longdouble
Real = np.ndarray[Any, np.dtype[np.longdouble]]
EPSILON = 8 * float(np.finfo(Wide).eps)
DTYPES = (torch.float32, torch.float64)
EXTENTS = (1, 2, 3, 17, 1000)
CENTRES = (0.0, 1.0, 30.0, 1e4, 1e30)
WIDTHS = (0.0, 1e-300, 1e-3, 1.0, 30.0, 1e4)


def boxes(extent: int, dtype: torch.dtype, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """``[B, n]``: every width with every spread of centres, alike and mixed, and one entry far
    above the others."""
    draw = np.random.default_rng(seed)
    low, up = [], []
    for spread in CENTRES:
        for width in WIDTHS:
            centre = spread * draw.standard_normal(extent)
            for mixed in (np.ones(extent), draw.random(extent), draw.integers(0, 2, extent)):
                low.append(centre - width * mixed)
                up.append(centre + width * mixed)
            equal = np.full(extent, spread)
            low.append(equal - width)
            up.append(equal + width)
            equal = equal + 40.0 * (np.arange(extent) == extent // 2)
            low.append(equal - width)
            up.append(equal + width)
    step = 1 if extent < 100 else 7
    ends = [torch.as_tensor(np.array(end[::step])).to(dtype) for end in (low, up)]
    return torch.minimum(*ends), torch.maximum(*ends)


def points_of(low: torch.Tensor, up: torch.Tensor, seed: int) -> Real:
    """``[P, B, n]``: corners (also those of one entry against all others), and points inside."""
    draw = np.random.default_rng(seed)
    a, b = (end.numpy().astype(Wide) for end in (low, up))
    shares = [np.zeros(a.shape), np.ones(a.shape), np.full(a.shape, 0.5)]
    shares += [draw.integers(0, 2, a.shape).astype(float) for _ in range(6)]
    shares += [draw.random(a.shape) for _ in range(6)]
    for place in range(min(a.shape[1], 3)):
        for alone in (0.0, 1.0):
            share = np.full(a.shape, 1 - alone)
            share[:, place] = alone
            shares.append(share)
    return np.stack([np.clip(a * (1 - share) + b * share, a, b) for share in shares])


def lse(x: Real) -> Real:
    most = x.max(-1, keepdims=True)
    return most + np.log(np.exp(x - most).sum(-1, keepdims=True))


def nodes(extent: int) -> tuple[Node, Node]:
    total = Node("y", "LogSumExp", ("x",), (1,))
    return total, Node("s", "LogShare", ("x", "wide"), (extent,))


def tolerance(value: Real, x: Real) -> Real:
    return EPSILON * (np.abs(value) + np.abs(x).max(-1, keepdims=True) + x.shape[-1])


def lines(
    low: torch.Tensor, up: torch.Tensor, alpha: torch.Tensor | None
) -> tuple[Real, Real, Real, Real]:
    found = nonlinear_row("LogSumExp").relax(
        nodes(low.shape[-1])[0], [low.unsqueeze(1)], [up.unsqueeze(1)], alpha
    )
    parts = (
        found.lower_slopes[0],
        found.lower_intercept,
        found.upper_slopes[0],
        found.upper_intercept,
    )
    assert not any(part.isnan().any() for part in parts)
    below, floor, above, ceiling = (part.detach().numpy().astype(Wide) for part in parts)
    return below, floor, above, ceiling


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("extent", EXTENTS)
def test_values_lie_in_the_range_and_between_the_lines(extent: int, dtype: torch.dtype) -> None:
    low, up = boxes(extent, dtype, extent)
    x = points_of(low, up, 1)
    value = lse(x)
    slack = tolerance(value, x)
    node, _ = nodes(extent)
    least, most = nonlinear_row("LogSumExp").interval(node, [low], [up])
    assert (value >= least.numpy() - slack).all()
    assert (value <= most.numpy() + slack).all()
    draw = torch.Generator().manual_seed(2)
    drawn = torch.rand(2, len(low), 3, 1, generator=draw).to(dtype)
    drawn[:, :, 0], drawn[:, :, 1] = 0.0, 1.0
    for alpha in (None, drawn):
        below, floor, above, ceiling = lines(low, up, alpha)
        for k in range(below.shape[1]):
            at = (below[:, k] * x).sum(-1, keepdims=True) + floor[:, k]
            size = (np.abs(below[:, k] * x)).sum(-1, keepdims=True)
            assert (at <= value + slack + EPSILON * size).all()
            at = (above[:, k] * x).sum(-1, keepdims=True) + ceiling[:, k]
            size = (np.abs(above[:, k] * x)).sum(-1, keepdims=True)
            assert (at >= value - slack - EPSILON * size).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("extent", EXTENTS)
def test_shares_lie_in_their_range_which_is_attained(extent: int, dtype: torch.dtype) -> None:
    low, up = boxes(extent, dtype, extent)
    _, node = nodes(extent)
    least, most = (
        end.numpy().astype(Wide)
        for end in nonlinear_row("LogShare").interval(node, [low, low], [up, up])
    )
    assert (most <= 0).all()
    x = points_of(low, up, 1)
    value = x - lse(x)
    slack = tolerance(lse(x), x)
    assert (value >= least - slack).all()
    assert (value <= most + slack).all()
    # The corner where entry 0 is least and all others are largest attains its lower end.
    corner = up.numpy().astype(Wide)
    corner[:, 0] = low.numpy()[:, 0]
    attained = (corner - lse(corner))[:, 0]
    size = np.abs(corner).max(-1) + extent + 8
    assert (attained - least[:, 0] <= 64 * torch.finfo(dtype).eps * size).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_finite_claims_nothing_false(dtype: torch.dtype) -> None:
    infinite = float("inf")
    low = torch.tensor([[-infinite, 0.0], [0.0, 0.0], [-infinite, -infinite], [1e38, 0.0]]).to(
        dtype
    )
    up = torch.tensor([[0.0, 0.0], [infinite, 0.0], [infinite, infinite], [1e38, 1.0]]).to(dtype)
    node, share = nodes(2)
    least, most = nonlinear_row("LogSumExp").interval(node, [low], [up])
    assert (least[:2, 0] <= 0).all() or (least[1, 0] <= np.log(2))
    assert least[0, 0] <= 0 and most[0, 0] >= np.log(2) and most[1, 0] == infinite
    below, floor, above, ceiling = lines(low, up, None)
    assert (below[:3] == 0).all() and (above[:3] == 0).all()
    assert ceiling[1, 0, 0] == infinite and floor[2, 0, 0] == -infinite
    least, most = nonlinear_row("LogShare").interval(share, [low, low], [up, up])
    # x_0 may be minus infinity: its share is nothing, and that of x_1 everything.
    assert not (least[0, 0] > -1e30) and not (most[0, 1] < 0)
    # x_0 may be infinite
    assert not (most[1, 0] < 0) and not (least[1, 1] > -1e30)
    # exp(1e38) is no number, and the share of x_0 is one all the same
    assert not (most[3, 0] < 0) and not (least[3, 1] > -1e37)


def test_large_masks_leave_the_lines_of_the_rest() -> None:
    low, up = torch.tensor([[0.0, -3e38, 1.0]]), torch.tensor([[1.0, -2.5e38, 1.5]])
    rest = [0, 2]
    found, alone = lines(low, up, None), lines(low[:, rest], up[:, rest], None)
    for slopes, others in ((found[0], alone[0]), (found[2], alone[2])):
        assert slopes[0, 0, 1] == 0
        np.testing.assert_allclose(slopes[..., rest], others, rtol=1e-6)
    np.testing.assert_allclose(found[1], alone[1], atol=1e-5)
    np.testing.assert_allclose(found[3], alone[3], atol=1e-5)


def test_entries_that_do_not_count_are_no_terms() -> None:
    counted = np.array([1.0, 0.0, 1.0])
    low = torch.tensor([[0.0, -5.0, 1.0]], dtype=torch.float64)
    up = torch.tensor([[1.0, 1e6, 1.5]], dtype=torch.float64)
    node = Node("y", "LogSumExp", ("x",), (1,), {}, {"counted": counted})
    rest = [0, 2]
    found = nonlinear_row("LogSumExp").relax(node, [low], [up], None)
    alone = nonlinear_row("LogSumExp").relax(nodes(2)[0], [low[:, rest]], [up[:, rest]], None)
    for slopes, others in (
        (found.lower_slopes[0], alone.lower_slopes[0]),
        (found.upper_slopes[0], alone.upper_slopes[0]),
    ):
        assert slopes[0, 1] == 0
        torch.testing.assert_close(slopes[:, rest], others)
    torch.testing.assert_close(found.upper_intercept, alone.upper_intercept)
    torch.testing.assert_close(found.lower_intercept, alone.lower_intercept)
    share = Node("s", "LogShare", ("x", "y"), (3,), {}, {"counted": counted})
    least, most = nonlinear_row("LogShare").interval(share, [low, low], [up, up])
    assert least[0, 1] == -torch.inf and most[0, 1] == torch.inf
    parts = nonlinear_row("LogShare").interval(nodes(2)[1], [low[:, rest]] * 2, [up[:, rest]] * 2)
    torch.testing.assert_close(torch.stack([least, most])[:, :, rest], torch.stack(list(parts)))


@pytest.mark.parametrize("weights", [[0.0, 0.0, 0.0], [0.0, 6.0, 0.0]])
def test_the_gap_shrinks_with_the_square_of_the_width(weights: list[float]) -> None:
    """And faster than the square of the ranges' own width where one entry outweighs the others."""
    centre = torch.tensor([weights], dtype=torch.float64)
    gaps = []
    for width in (0.4, 0.2):
        below, floor, above, ceiling = lines(centre - width, centre + width, None)
        middle = centre.numpy()
        upper = (above[:, 0] * middle).sum() + ceiling[0, 0, 0]
        gaps.append(float(upper - lse(middle.astype(Wide))[0, 0]))
        tangent = (below[:, 0] * middle).sum() + floor[0, 0, 0]
        assert abs(float(tangent - lse(middle.astype(Wide))[0, 0])) < 1e-12
    assert gaps[1] < 0.3 * gaps[0]
    # log cosh(r) where all are alike; the rest's weight times that of twice the width otherwise
    assert gaps[0] < (0.08 if not any(weights) else 0.002)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_in_alpha_are_finite_and_the_default_is_the_default(dtype: torch.dtype) -> None:
    low, up = boxes(3, dtype, 5)
    row = nonlinear_row("LogSumExp")
    assert row.default_alpha is not None
    node, _ = nodes(3)
    alpha = row.default_alpha(node, [low], [up]).unsqueeze(2)
    for part, other in zip(lines(low, up, alpha), lines(low, up, None), strict=True):
        np.testing.assert_array_equal(part, other)
    alpha = alpha.clone().requires_grad_(True)
    found = row.relax(node, [low.unsqueeze(1)], [up.unsqueeze(1)], alpha)
    total = sum(
        torch.where(torch.isfinite(part), part, 0.0).clamp(-1e6, 1e6).sum()
        for part in (found.lower_slopes[0], found.upper_slopes[0], found.lower_intercept)
    )
    (gradient,) = torch.autograd.grad(total, alpha)
    assert torch.isfinite(gradient).all() and bool((gradient != 0).any())


def attention(tokens: int, offset: float, path: Path) -> Graph:
    """One head over ``x [tokens, 8]``; ``offset`` is added to all values."""
    draw = np.random.default_rng(tokens)
    weights = {name: draw.normal(0, 0.6, (8, 8)).astype(np.float32) for name in "qkvw"}
    nodes = [helper.make_node("MatMul", ["x", name], [name + "0"]) for name in "qkv"]
    nodes += [
        helper.make_node("Transpose", ["k0"], ["kt"], perm=[1, 0]),
        helper.make_node("MatMul", ["q0", "kt"], ["z"]),
        helper.make_node("Softmax", ["z"], ["p"], axis=-1),
        helper.make_node("Add", ["v0", "offset"], ["v1"]),
        helper.make_node("MatMul", ["p", "v1"], ["a"]),
        helper.make_node("MatMul", ["a", "w"], ["b"]),
        helper.make_node("Sigmoid", ["b"], ["y"]),
    ]
    constants = {**weights, "offset": np.full(8, offset, np.float32)}
    ends = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, (tokens, 8)) for name in ("x", "y")
    )
    graph = helper.make_graph(
        nodes,
        "attention",
        *([end] for end in ends),
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return read_graph(path)


def _lone(graph: Graph) -> Graph:
    """The same graph, whose shares are not known to add up to 1."""
    nodes = {
        name: replace(node, attrs={key: x for key, x in node.attrs.items() if key != "adds_up"})
        for name, node in graph.nodes.items()
    }
    assert nodes != graph.nodes
    return replace(graph, nodes=nodes)


@pytest.mark.parametrize("tokens", [3, 12])
def test_shares_add_up_to_one(tokens: int, tmp_path: Path) -> None:
    """All values of a network lie in bounds that use it, with 12 tokens in single precision; and a
    common part of what is weighted is not multiplied by what single shares may be."""
    graph = attention(tokens, 10.0, tmp_path / "attention.onnx")
    network = Network(graph, torch.float64)
    draw = torch.Generator().manual_seed(tokens)
    centre = torch.randn(1, graph.n_inputs, generator=draw, dtype=torch.float64) * 0.7
    low, up = centre - 0.05, centre + 0.05
    known = LayerBounder(network, 1 << 26).run(low, up).bounds
    share = torch.rand(400, graph.n_inputs, generator=draw, dtype=torch.float64)
    share[::2] = share[::2].round()
    for name, value in network.activations(low + share * (up - low)).items():
        least, most = known[name]
        assert (value >= least - 1e-9).all() and (value <= most + 1e-9).all(), name
    (operand,) = graph.nodes[graph.outputs[0]].inputs
    fine = LayerBounder(network, 1 << 26, may_round=False).run(low, up).bounds
    room = 1e-2 * float((fine[operand][1] - fine[operand][0]).amin())
    for end, other in zip(known[operand], fine[operand], strict=True):
        torch.testing.assert_close(end, other, rtol=0, atol=room)
    alone = LayerBounder(Network(_lone(graph), torch.float64), 1 << 26).run(low, up).bounds
    widths = [found[operand][1] - found[operand][0] for found in (known, alone)]
    assert widths[1].mean() > 1.2 * widths[0].mean()


def _rounded(graph: Graph, radius: float) -> Graph:
    """The same graph, whose shares the runtime may change by ``radius``."""
    limit = Rounding(0.0, 0.0, math.inf, absolute=radius)
    nodes = {
        name: replace(node, rounding=limit) if "adds_up" in node.attrs else node
        for name, node in graph.nodes.items()
    }
    return replace(graph, nodes=nodes)


def _off_by(graph: Graph, error: float) -> Graph:
    """The same graph with ``error`` added to every share."""
    found: dict[str, Node] = {}
    for name, node in graph.nodes.items():
        if "adds_up" in node.attrs:
            found["share"] = replace(node, name="share")
            shift = {"shift": np.full(node.shape, error)}
            node = Node(name, "Scale", ("share",), node.shape, params=shift)
        found[name] = node
    return replace(graph, nodes=found)


@pytest.mark.parametrize("tokens", [3, 12])
def test_shares_that_the_runtime_rounds_add_up_to_nearly_one(
    tokens: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each share is off by as much as it may be, all in one direction: what they weigh, which is
    about 10, adds up to that much more or less. Values lie in the bounds, also in those of single
    precision, which nothing replaces here (with 12 tokens)."""
    monkeypatch.setattr(intermediate, "_ROUNDED", math.inf)
    graph = attention(tokens, 10.0, tmp_path / "attention.onnx")
    (operand,) = graph.nodes[graph.outputs[0]].inputs
    draw = torch.Generator().manual_seed(tokens)
    centre = torch.randn(1, graph.n_inputs, generator=draw, dtype=torch.float64) * 0.7
    low, up = centre - 1e-4, centre + 1e-4
    rounded = _rounded(graph, 0.05)
    known = LayerBounder(Network(rounded, torch.float64), 1 << 26).run(low, up).bounds[operand]
    for error in (0.05, -0.05):
        value = Network(_off_by(graph, error), torch.float64).activations(centre)[operand]
        assert (value >= known[0]).all() and (value <= known[1]).all()


def test_common_part_is_a_weighted_median() -> None:
    a = torch.tensor([[5.0, -1.0, 2.0, 100.0]])
    even, heavy = torch.ones(4), torch.tensor([0.1, 0.1, 0.1, 9.0])
    assert common_part(a, even, torch.zeros(4), -1).item() == 2.0
    assert common_part(a, even, heavy, -1).item() == 100.0
    unknown = torch.tensor([float("nan"), 1.0, 1.0, 1.0])
    assert common_part(a, even, unknown, -1).item() in a[0].tolist()


def test_rows_of_images_would_gain_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What rises or falls with one bounded element: its interval is as good as its rows."""
    graph = attention(4, 0.0, tmp_path / "attention.onnx")
    network = Network(graph, torch.float64)
    low = torch.full((1, graph.n_inputs), -0.2, dtype=torch.float64)
    spared = LayerBounder(network, 1 << 26).run(low, -low).bounds
    asked: list[bool] = []

    def never(graph: Graph, source: str, fine: set[str], bounds: Bounds) -> bool:
        asked.append(is_image_of(graph, source, fine, bounds))
        return False

    monkeypatch.setattr(wanted, "is_image_of", never)
    every = LayerBounder(network, 1 << 26).run(low, -low).bounds
    assert any(asked)
    for name, (least, most) in every.items():
        torch.testing.assert_close(spared[name][0], least, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(spared[name][1], most, rtol=1e-9, atol=1e-9)
