"""The range split: children cover their parent, what it excludes has no violation, and it decides
what bounds alone leave open."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from bitcrown import Settings, Status, Verdict, load, verify
from bitcrown.bounds.intermediate import LayerBounder
from bitcrown.bounds.layout import Layout
from bitcrown.model.execute import Network
from bitcrown.model.graph import Graph
from bitcrown.search import decision
from bitcrown.search.ranges.branching import candidates_of
from bitcrown.search.ranges.domains import OperandAxis, RangeDomains
from tests.random_networks import box_property, dense_graph, save_onnx

OPERATORS = ("Sigmoid", "Tanh", "Erf", "Sin", "Exp", "Relu")
WIDTHS = [("Sigmoid", 3.0), ("Tanh", 0.6), ("Sin", 0.3)]
"""Operators, and boxes on which plain bounds are too loose."""
SIZES = [5, 12, 12, 2]


@pytest.fixture(autouse=True)
def only_neurons(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """So few inputs would be split themselves."""
    monkeypatch.setattr(decision, "FEW_INPUTS", 0)
    yield


def sampled(graph: Graph, width: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(1)
    centre = random.normal(size=graph.n_inputs)
    lower, upper = ((centre + s * width).astype(np.float32).astype(np.float64) for s in (-1, 1))
    points = lower + random.random((6000, graph.n_inputs)) * (upper - lower)
    return lower, upper, Network(graph, torch.float64)(torch.from_numpy(points)).numpy()


def asked(graph: Graph, box: tuple[np.ndarray, np.ndarray], formula: str, folder: Path) -> Verdict:
    save_onnx(graph, folder / "net.onnx")
    (folder / "p.vnnlib").write_text(box_property(*box, graph.n_outputs, formula))
    problem = load(folder / "net.onnx", folder / "p.vnnlib")
    return verify(problem, Settings(threads=1), cpu_seconds=8.0)


def domains_over(graph: Graph, width: float) -> tuple[OperandAxis, Layout, RangeDomains, dict]:
    lower, upper, _ = sampled(graph, width)
    network = Network(graph, torch.float64)
    box = network.tensor(lower[None]), network.tensor(upper[None])
    with torch.no_grad():
        bounds = LayerBounder(network, 1 << 24).run(*box).bounds
    layout = Layout(network)
    axis = OperandAxis(layout, bounds)
    none = torch.zeros(2, 0, dtype=torch.float64)
    many = torch.zeros(2, 1, layout.n_alphas, dtype=torch.float64)
    ones = torch.ones(2, dtype=torch.float64)
    start = RangeDomains(
        torch.tensor([0, 1]),
        none.long(),
        none,
        none,
        many,
        ones[:, None],
        -ones,
        ones,
        none.long(),
        none,
    )
    return axis, layout, start, bounds


@pytest.mark.parametrize("op", OPERATORS)
def test_children_cover_their_parent_and_nothing_else(op: str) -> None:
    axis, layout, domains, bounds = domains_over(dense_graph(0, SIZES, op), 0.4)
    random = torch.Generator().manual_seed(0)
    for _ in range(4):
        scores = torch.rand(len(domains), axis.size, generator=random, dtype=torch.float64)
        before = axis.narrowed(bounds, domains)
        operands, points = candidates_of(layout, axis, before, scores, torch.full_like(scores, 0.3))
        assert (operands != -1).any(dim=1).all()
        domains = RangeDomains(**{**vars(domains), "candidates": operands, "points": points})
        choice = (operands != -1).int().argmax(dim=1)
        children = domains.children(choice)
        count = len(domains)
        assert children.mass.sum() == domains.mass.sum()
        after = axis.narrowed(bounds, children)
        for name, where in axis.at.items():
            low, up = (end.expand(count, *end.shape[1:]).flatten(1) for end in before[name])
            ends = [end.expand(2 * count, *end.shape[1:]).flatten(1) for end in after[name]]
            (first_low, second_low), (first_up, second_up) = (end.chunk(2) for end in ends)
            assert torch.equal(first_low, low) and torch.equal(second_up, up)
            operand = operands.gather(1, choice[:, None]) - where.start
            place = torch.arange(low.shape[1])
            is_cut = operand == place
            assert torch.equal(first_up[~is_cut], up[~is_cut])
            assert torch.equal(second_low[~is_cut], low[~is_cut])
            assert torch.equal(first_up[is_cut], second_low[is_cut])
            assert ((low < first_up) & (second_low < up))[is_cut].all()
        domains = children.select(torch.randperm(2 * count, generator=random)[:3])


def test_lists_of_other_lengths_are_stacked() -> None:
    axis, layout, domains, bounds = domains_over(dense_graph(0, SIZES, "Tanh"), 0.4)
    operand, point = torch.tensor([0, 3]), torch.zeros(2, dtype=torch.float64)
    deeper = domains.cut(operand, point, True)
    both = RangeDomains.stacked([domains, deeper, deeper.cut(operand + 1, point, False)])
    assert both.index.tolist() == [[-1, -1], [-1, -1], [0, -1], [3, -1], [0, 1], [3, 4]]
    parts = [axis.narrowed(bounds, part) for part in (domains, deeper)]
    whole = axis.narrowed(bounds, both)
    for name in axis.at:
        for end in (0, 1):
            every = whole[name][end].expand(6, -1, -1)
            assert torch.equal(every[:2], parts[0][name][end].expand(2, -1, -1))
            assert torch.equal(every[2:4], parts[1][name][end].expand(2, -1, -1))


@pytest.mark.parametrize(("op", "width"), WIDTHS)
def test_the_very_minimum_is_never_excluded(op: str, width: float, tmp_path: Path) -> None:
    for seed in range(3):
        graph = dense_graph(seed, SIZES, op)
        lower, upper, y = sampled(graph, width)
        formula = f"(<= Y_0 {float(y[:, 0].min())!r})"
        assert asked(graph, (lower, upper), formula, tmp_path).status is not Status.UNSAT


@pytest.mark.parametrize(("op", "width"), WIDTHS)
def test_it_decides_what_bounds_leave_open(op: str, width: float, tmp_path: Path) -> None:
    decided = []
    for seed in range(3):
        graph = dense_graph(seed, SIZES, op)
        lower, upper, y = sampled(graph, width)
        spread = float(y[:, 0].max() - y[:, 0].min())
        formula = f"(<= Y_0 {float(y[:, 0].min()) - 0.25 * spread!r})"
        verdict = asked(graph, (lower, upper), formula, tmp_path)
        assert verdict.status is not Status.SAT
        decided.append((verdict.status, verdict.decided_by))
    assert (Status.UNSAT, "range split") in decided
