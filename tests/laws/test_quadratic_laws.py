"""Laws of products that are added up: forms enclose values, and what they give bounds every point,
exactly for convex forms."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from bitcrown.bounds import rounding
from bitcrown.bounds.affine_forms import AffineForms
from bitcrown.bounds.crown import relaxations_of
from bitcrown.bounds.interval import interval_bounds
from bitcrown.bounds.quadratic import least_of_form
from bitcrown.budget import Budget
from bitcrown.model.execute import Network
from bitcrown.model.graph import Graph, Node
from bitcrown.search.inputs.bounds import BoxBounder
from bitcrown.search.inputs.boxes import GroupedRows
from bitcrown.search.objective import Objective

SIZE = 4


def exact_value(form: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> Fraction:
    total = Fraction(0)
    for row, left in zip(form.tolist(), x.tolist(), strict=True):
        for entry, right in zip(row, y.tolist(), strict=True):
            total += Fraction(left) * Fraction(entry) * Fraction(right)
    return total


def forms(kind: str, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    square = torch.randn(3, SIZE, SIZE, generator=generator, dtype=torch.float64)
    if kind == "convex":
        return square @ square.mT
    if kind == "one direction":
        return square[:, :, :1] @ square[:, :, :1].mT
    scale = {"any": 1.0, "huge": 1e300, "tiny": 1e-310}[kind]
    return (square + square.mT) * scale


@pytest.mark.parametrize("kind", ["convex", "one direction", "any", "huge", "tiny"])
@pytest.mark.parametrize("seed", range(5))
def test_forms_are_bounded_at_every_point(kind: str, seed: int) -> None:
    given = forms(kind, seed)
    least, convex = least_of_form(given)
    generator = torch.Generator().manual_seed(seed + 100)
    for form, bound, tangents in zip(given, least, convex, strict=True):
        for number in range(20):
            e, p = 2 * torch.rand(2, SIZE, generator=generator, dtype=torch.float64) - 1
            e = e.sign() if number % 2 else e
            line = 2 * exact_value(tangents, p, e) - exact_value(tangents, p, p)
            assert exact_value(form, e, e) >= Fraction(float(bound)) + line


@pytest.mark.parametrize("seed", range(5))
def test_convex_forms_lose_nothing(seed: int) -> None:
    given = forms("convex", seed)
    least, convex = least_of_form(given)
    assert (least > -1e-11 * given.abs().sum((1, 2))).all()
    assert torch.allclose(convex, given)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_forms_that_are_no_numbers_say_nothing(value: float) -> None:
    given = forms("any", 0)
    given[1, 0, 2] = given[1, 2, 0] = value
    least, convex = least_of_form(given)
    assert least[1] == -torch.inf and not convex[1].any()
    assert torch.isfinite(least[[0, 2]]).all()


def quadratic_graph(seed: int, is_convex: bool, shift: float = 0.0) -> Graph:
    """``sum x (Q x)``, or ``sum u (Q w)`` with ``u``, ``w`` behind a ReLU and a sine; and a sum of
    both factors."""
    random = np.random.default_rng(seed)
    root = random.normal(size=(3, 3))
    weight = root @ root.T if is_convex else random.normal(size=(3, 3))
    shape = (1, 3)
    nodes = [Node("x", "Input", (), shape)]
    if is_convex:
        first = "x"
    else:
        inner = {"weight": random.normal(size=(3, 3)), "bias": random.normal(size=3) + shift}
        nodes += [
            Node("z", "Linear", ("x",), shape, {}, inner),
            Node("r", "Relu", ("z",), shape),
            Node("s", "Sin", ("x",), shape),
            Node("u", "Add", ("r", "s"), shape),
        ]
        first = "u"
    nodes += [
        Node("w", "Linear", (first,), shape, {}, {"weight": weight}),
        Node("p", "Mul", (first, "w"), shape),
        Node("q", "ReduceSum", ("p",), (1, 1), {"axes": (1,), "keepdims": True, "count": 3}),
        Node("y", "Linear", ("q",), (1, 1), {}, {"weight": np.ones((1, 1))}),
    ]
    return Graph({node.name: node for node in nodes}, ("x",), ("y",), ("float32",))


def bounder_of(
    graph: Graph, lower: np.ndarray, upper: np.ndarray, sign: float
) -> tuple[Network, GroupedRows, BoxBounder]:
    rows = np.full((1, 1, 1), sign)
    box = np.zeros(1, dtype=np.int64)
    objective = Objective(rows, None, np.zeros((1, 1)), lower[None], upper[None], box)
    network = Network(graph, torch.float64)
    grouped = GroupedRows(objective, np.arange(1), network)
    return network, grouped, BoxBounder(network, grouped, Budget.of_cpu_seconds(60))


def box_of(seed: int, width: float) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    centre, half = random.normal(size=3), random.uniform(0.1, 1.0, size=3) * width
    return centre - half, centre + half


def points_in(lower: np.ndarray, upper: np.ndarray, seed: int) -> torch.Tensor:
    share = np.random.default_rng(seed).random((400, len(lower)))
    share[::2] = share[::2].round()
    return torch.from_numpy(np.minimum(lower + share * (upper - lower), upper))


@pytest.mark.parametrize("width", [1e-7, 0.05, 1.0])
@pytest.mark.parametrize("seed", range(6))
def test_forms_enclose_every_value(seed: int, width: float) -> None:
    graph = quadratic_graph(seed, is_convex=False)
    network, (lower, upper) = Network(graph, torch.float64), box_of(seed, width)
    low, up = torch.from_numpy(lower)[None], torch.from_numpy(upper)[None]
    bounds = interval_bounds(network, low, up)
    found = AffineForms(network, rounding.gamma(network), torch.arange(3), {"y"})
    relaxations, known = relaxations_of(network, bounds), found.inputs(low, up)
    points = points_in(lower, upper, seed)
    e = (points - (low + up) / 2) / ((up - low) / 2)
    for node in graph.nodes.values():
        if node.name not in known:
            known[node.name] = found.step(node, known, bounds, relaxations, None)
        form, value = known[node.name], network.activations(points)[node.name].flatten(1)
        line = form.centre.flatten(1) + e @ form.slopes.flatten(2)[0]
        assert ((value - line).abs() <= form.error.flatten(1) + 1e-14).all()


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("width", [1e-7, 0.05, 1.0])
@pytest.mark.parametrize("seed", range(6))
def test_sums_of_products_lie_above_their_bounds(seed: int, width: float, sign: float) -> None:
    """The line at each point, and the best value at all of them."""
    lower, upper = box_of(seed, width)
    for is_convex in (False, True):
        graph = quadratic_graph(seed, is_convex)
        network, rows, bounder = bounder_of(graph, lower, upper, sign)
        assert bounder.products == {"p"}
        boxes = rows.roots(torch.arange(1), bounder.root())
        stage, _ = bounder.sharp(boxes)
        found = bounder.row_bounds(boxes, stage)
        points = points_in(lower, upper, seed)
        value = sign * network(points)[:, 0]
        assert (value >= found.best[0, 0, 0] - 1e-13).all()
        least_of_line = torch.where(found.a[0, 0, 0] > 0, boxes.lower[0], boxes.upper[0])
        rise = ((points - least_of_line) * found.a[0, 0, 0]).sum(1)
        assert (value >= found.least[0, 0, 0] + rise - 1e-13).all()


@pytest.mark.parametrize("seed", range(6))
def test_the_least_value_of_a_convex_form_is_found(seed: int) -> None:
    """McCormick's planes lose a share of the square of the box, one tangent half of that."""
    lower, upper = box_of(seed, 0.3)
    network, rows, bounder = bounder_of(quadratic_graph(seed, True), lower, upper, 1.0)
    boxes = rows.roots(torch.arange(1), bounder.root())
    found = bounder.row_bounds(boxes, bounder.sharp(boxes)[0])
    x = torch.from_numpy((lower + upper) / 2)[None].requires_grad_()
    for _ in range(2000):
        (slope,) = torch.autograd.grad(network(x).sum(), x)
        x = (x - 0.02 * slope).detach().clamp(torch.from_numpy(lower), torch.from_numpy(upper))
        x.requires_grad_()
    least = float(network(x.detach())[0, 0])
    largest = float(network(points_in(lower, upper, seed)).max())
    assert least >= float(found.best[0, 0, 0]) >= least - 0.01 * (largest - least)


def test_numbers_that_overflow_give_no_false_bound() -> None:
    for width in (1e160, 1e200, 1e308):
        lower, upper = np.full(3, -width), np.full(3, width)
        network, rows, bounder = bounder_of(quadratic_graph(0, False), lower, upper, 1.0)
        boxes = rows.roots(torch.arange(1), bounder.root())
        found = bounder.row_bounds(boxes, bounder.quick(boxes))
        assert not (found.best > 0).any() and not torch.isnan(found.best).any()
