"""Staircases split by their own values: lines hold for every point whose value is in the part,
parts cover the whole, and what intervals carry on encloses every point of a part."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from bitcrown.bounds.intermediate import LayerBounder
from bitcrown.bounds.layout import Layout
from bitcrown.bounds.relaxations.registry import nonlinear_row
from bitcrown.model.execute import Network
from bitcrown.model.graph import Node
from bitcrown.search.ranges.domains import STAIRCASES, OperandAxis, RangeDomains
from bitcrown.search.ranges.propagation import propagated
from tests.random_networks import dense_graph

Wide = np.longdouble


def near_edges(low: np.ndarray, up: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """``[P, B]``: points of the boxes, most of them a few numbers from a multiple of one half."""
    share = rng.random((80, len(low)))
    x = low + share * (up - low)
    edge = np.rint(2 * x) / 2
    for _ in range(2):
        edge = np.where(rng.random(x.shape) < 0.3, np.nextafter(edge, np.inf), edge)
        edge = np.where(rng.random(x.shape) < 0.3, np.nextafter(edge, -np.inf), edge)
    found = np.where(rng.random(x.shape) < 0.8, edge, x)
    return np.clip(np.concatenate([found, low[None], up[None]]), low, up)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("op", STAIRCASES)
def test_lines_within_a_part_of_the_values(op: str, dtype: torch.dtype) -> None:
    rng = np.random.default_rng(STAIRCASES.index(op))
    kind = np.float32 if dtype == torch.float32 else np.float64
    low = np.concatenate([rng.uniform(-4, 4, 300), rng.integers(-8, 8, 100) / 2, [2.0**22, 1e9]])
    up = low + np.concatenate([rng.uniform(0, 5, 300), rng.integers(0, 6, 100) / 2, [3.0, 500.0]])
    low, up = low.astype(kind), up.astype(kind)
    value = {"Round": np.rint, "Floor": np.floor, "Ceil": np.ceil}[op]
    bottom, top = value(low), value(up)
    first = bottom + np.floor(rng.random(len(low)) * (top - bottom + 1))
    last = first + np.floor(rng.random(len(low)) * (top - first + 1))
    row, node = nonlinear_row(op), Node("y", op, ("x",), ())
    assert row.within is not None
    operands = [torch.from_numpy(low)[:, None]], [torch.from_numpy(up)[:, None]]
    own = (
        torch.from_numpy(first.astype(kind))[:, None],
        torch.from_numpy(last.astype(kind))[:, None],
    )
    points = near_edges(low, up, rng).astype(kind)
    values = value(points)
    is_in = (first <= values) & (values <= last)
    assert is_in.sum() > 5000
    alphas: list[torch.Tensor | None] = [None]
    alphas += [torch.full((2, len(low), 1), share, dtype=dtype) for share in (0.0, 0.3, 1.0)]
    for alpha in alphas:
        lines = row.within(node, *operands, alpha, own)
        for slopes, intercept, sign in (
            (lines.lower_slopes, lines.lower_intercept, 1),
            (lines.upper_slopes, lines.upper_intercept, -1),
        ):
            slope, at = slopes[0].numpy().ravel().astype(Wide), intercept.numpy().ravel()
            gap = sign * (values.astype(Wide) - slope * points.astype(Wide) - at.astype(Wide))
            room = 8 * np.finfo(Wide).eps * (1 + np.abs(points)).astype(Wide)
            assert (gap >= -room)[is_in].all(), (op, sign)
    is_one = (first == last) & (np.abs(first) < 2.0**20)
    lines = row.within(node, *operands, None, own)
    assert (lines.lower_slopes[0].numpy().ravel()[is_one] == 0).all()
    assert (lines.lower_intercept.numpy().ravel()[is_one] == first[is_one]).all()


@pytest.mark.parametrize("seed", range(4))
def test_every_point_lies_in_the_part_that_its_values_say(seed: int) -> None:
    graph = dense_graph(seed, [4, 6, 5, 2], "Round")
    network, rng = Network(graph, torch.float64), np.random.default_rng(seed)
    low, up = (torch.from_numpy(rng.normal(size=4) + s * 0.8)[None] for s in (-1, 1))
    low, up = torch.minimum(low, up), torch.maximum(low, up)
    with torch.no_grad():
        bounds = LayerBounder(network, 1 << 24).run(low, up).bounds
    layout = Layout(network)
    axis = OperandAxis(layout, bounds)
    assert axis.stairs
    one = torch.ones(1, dtype=torch.float64)
    none = torch.zeros(1, 0, dtype=torch.float64)
    domains = RangeDomains(
        torch.tensor([0]), none.long(), none, none,
        torch.zeros(1, 1, layout.n_alphas, dtype=torch.float64), one[:, None], -one, one,
        none.long(), none,
    )  # fmt: skip
    places = [place for name in axis.stairs for place in range(axis.at[name].start,
                                                               axis.at[name].stop)]  # fmt: skip
    x = low + torch.from_numpy(rng.random((3000, 4))) * (up - low)
    with torch.no_grad():
        values = network.activations(x)
    flat = torch.zeros(len(x), axis.size, dtype=torch.float64)
    for name, where in axis.at.items():
        flat[:, where] = values[name].flatten(1)
    ends = torch.zeros(2, axis.size, dtype=torch.float64)
    for name, where in axis.at.items():
        ends[0, where], ends[1, where] = (end.flatten() for end in bounds[name])
    usable = [place for place in places if ends[1, place] > ends[0, place]]
    for place in rng.permutation(usable)[:4]:
        cut = float(torch.floor((ends[0, place] + ends[1, place]) / 2)) + 0.5
        count = len(domains)
        domains = replace(
            domains,
            candidates=torch.full((count, 1), int(place)),
            points=torch.full((count, 1), cut, dtype=torch.float64),
        ).children(torch.zeros(count, dtype=torch.long))
    found, is_empty = propagated(network, bounds, axis.narrowed(bounds, domains), len(domains))
    seen = torch.zeros(len(x), dtype=torch.long)
    for number in range(len(domains)):
        is_mine = torch.ones(len(x), dtype=torch.bool)
        for k, place in enumerate(domains.index[number].tolist()):
            column = flat[:, place]
            is_mine &= (column >= domains.low[number, k]) & (column <= domains.up[number, k])
        seen += is_mine.long()
        assert not (is_empty[number] and is_mine.any()), "a point in a part said to be empty"
        for name, (a, b) in found.items():
            mine = values[name][is_mine]
            a, b = (end[number if len(end) > 1 else 0] for end in (a, b))
            assert (a <= mine).all() and (mine <= b).all(), name
    assert (seen == 1).all(), "every point lies in one part"
