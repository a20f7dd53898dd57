"""The bounds that training differentiates are the verifier's, sound, and have the right
derivatives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_task import EPS, NORMALISATION, TINY, tiny_data
from torch.nn.functional import cross_entropy

from bitcrown.bounds.crown import Backward, minimum, output_seeds, relaxation_of, relaxations_of
from bitcrown.bounds.interval import interval_bounds
from bitcrown.model.execute import Network
from bitcrown.model.graph import Node
from bitcrown.model.onnx_reader import read_graph
from bitcrown.train.adversarial import ascended
from bitcrown.train.certified import (
    certified_loss,
    certified_margins,
    chord,
    crown_bound,
    fused_bound,
    interval_margins,
    margin_rows,
)
from bitcrown.train.network import TrainableNetwork
from bitcrown.train.onnx_export import write_onnx

SMALL = EPS / 5


@pytest.fixture
def network() -> TrainableNetwork:
    """All weights away from zero, where absolute values have no derivative."""
    generator = torch.Generator().manual_seed(5)
    made = TrainableNetwork(TINY, generator)
    with torch.no_grad():
        for part in made.parts.values():
            if isinstance(part, torch.nn.BatchNorm2d):
                part.weight.uniform_(0.5, 1.5, generator=generator)
    made.clean_pass(NORMALISATION(tiny_data(3, 64).images))
    return made.double()


def test_training_bounds_are_the_engines_on_the_exported_file(
    network: TrainableNetwork, tmp_path: Path
) -> None:
    write_onnx(network, tmp_path / "net.onnx")
    engine = Network(read_graph(tmp_path / "net.onnx"), torch.float64)
    data = tiny_data(4, 12)
    box = NORMALISATION.box(data.images.double(), SMALL)
    with torch.no_grad():
        view = network.folded()
        mine = interval_bounds(view, *box, gamma=0.0)
        theirs = interval_bounds(engine, *box)
        output = engine.graph.outputs[0]
        for side in (0, 1):
            assert torch.allclose(mine["logits"][side], theirs[output][side], rtol=1e-4, atol=1e-5)
        rows = margin_rows(view, data.labels)
        found = crown_bound(view, mine, box, rows)
        backward = Backward(engine, relaxations_of(engine, theirs))
        expected = minimum(backward.run(output_seeds(engine, rows)), *box)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("is_fused", [False, True])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_certified_loss_bounds_the_loss_of_attacked_images(
    network: TrainableNetwork, beta: float, is_fused: bool
) -> None:
    data = tiny_data(5, 20)
    images = data.images.double()
    box = NORMALISATION.box(images, SMALL)
    view = network.folded()

    def loss(points: torch.Tensor) -> torch.Tensor:
        return cross_entropy(view(NORMALISATION(points).flatten(1)), data.labels, reduction="none")

    bound = certified_loss(view, box, data.labels, beta, is_fused)
    points = ascended(
        loss,
        images,
        SMALL,
        10,
        torch.rand(images.shape, generator=torch.Generator().manual_seed(0)),
    )
    assert (points - images).abs().max() <= SMALL + 1e-12
    assert (bound >= loss(points) - 1e-9).all()
    exact = certified_loss(view, NORMALISATION.box(images, 0.0), data.labels, beta, is_fused)
    assert torch.allclose(exact, loss(images), atol=1e-6)


def test_fusion_is_between_the_truth_and_a_bound_of_every_margin(network: TrainableNetwork) -> None:
    """One row cannot be better than the best row for every margin, but stays sound and finite."""
    data = tiny_data(6, 20)
    box = NORMALISATION.box(data.images.double(), SMALL)
    view = network.folded()
    bounds = interval_bounds(view, *box, gamma=0.0)
    margins = interval_margins(view, bounds, data.labels)
    fused = fused_bound(view, bounds, box, data.labels, margins)
    clean = cross_entropy(
        view(NORMALISATION(data.images.double()).flatten(1)), data.labels, reduction="none"
    )
    assert torch.isfinite(fused).all() and (fused >= clean).all()


def test_chord_is_the_engines_relaxation_of_exp() -> None:
    low = torch.tensor([[-8.0, -1.0, -0.02, 0.0, -40.0]], dtype=torch.float64)
    up = torch.tensor([[-1.0, 0.5, -0.01, 0.0, 2.0]], dtype=torch.float64)
    slope, intercept = chord(low, up)
    row = relaxation_of(Node("e", "Exp", ("m",), (5,)), {"m": (low, up)})
    middle = low + (up - low) * torch.linspace(0, 1, 11, dtype=torch.float64).reshape(-1, 1)
    assert torch.allclose(
        slope * middle + intercept,
        row.upper_slopes[0][0] * middle + row.upper_intercept[0],
        rtol=1e-7,
        atol=1e-9,
    )
    assert (slope * middle + intercept >= middle.exp() - 1e-12).all()


def test_intervals_of_margins_use_the_merged_last_layer(network: TrainableNetwork) -> None:
    data = tiny_data(7, 10)
    box = NORMALISATION.box(data.images.double(), SMALL)
    view = network.folded()
    bounds = interval_bounds(view, *box, gamma=0.0)
    low, up = interval_margins(view, bounds, data.labels)
    logits = view(NORMALISATION(data.images.double()).flatten(1))
    margins = logits - logits.gather(1, data.labels.unsqueeze(1))
    assert ((low <= margins) & (margins <= up)).all()
    separate = bounds["logits"][1].flatten(1) - bounds["logits"][0].flatten(1).gather(
        1, data.labels.unsqueeze(1)
    )
    is_other = torch.arange(4) != data.labels.unsqueeze(1)
    assert (up <= separate + 1e-9)[is_other].all() and (up < separate - 1e-6)[is_other].any()


@pytest.mark.parametrize("is_fused", [False, True])
def test_derivatives_are_those_of_the_loss(network: TrainableNetwork, is_fused: bool) -> None:
    """Finite differences in random directions of all weights, through moments, folding, intervals
    and CROWN."""
    data = tiny_data(8, 6)
    images = data.images.double()
    box = NORMALISATION.box(images, SMALL / 4)
    names, weights = zip(*network.named_parameters(), strict=True)
    assert any("bn.bias" in name for name in names) and any("conv.weight" in name for name in names)

    def loss() -> torch.Tensor:
        _, moments = network.clean_pass(NORMALISATION(images))
        return certified_loss(network.folded(moments), box, data.labels, 0.7, is_fused).mean()

    gradients = torch.autograd.grad(loss(), weights)
    generator = torch.Generator().manual_seed(0)
    for weight, gradient in zip(weights, gradients, strict=True):
        direction = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
        start, step = weight.detach().clone(), 1e-6
        values = []
        with torch.no_grad():
            for sign in (1, -1):
                weight.copy_(start + sign * step * direction)
                values.append(loss())
            weight.copy_(start)
        expected = (values[0] - values[1]) / (2 * step)
        assert torch.isclose((gradient * direction).sum(), expected, rtol=2e-3, atol=1e-5)


def test_margins_are_the_better_of_both_bounds_and_chunks_change_nothing(
    network: TrainableNetwork,
) -> None:
    data = tiny_data(9, 8)
    box = NORMALISATION.box(data.images.double(), SMALL / 4)
    with torch.no_grad():
        view = network.folded()
        bounds = interval_bounds(view, *box, gamma=0.0)
        whole = certified_margins(view, box, data.labels)
        pieces = certified_margins(view, box, data.labels, entries=1)
        rows = crown_bound(view, bounds, box, margin_rows(view, data.labels))
        interval = -interval_margins(view, bounds, data.labels)[1]
    is_label = torch.nn.functional.one_hot(data.labels, 4).bool()
    best = torch.maximum(rows, interval).masked_fill(is_label, torch.inf).amin(1)
    assert torch.allclose(whole, pieces)
    assert ((whole > 0) == (best > 0)).all()
    assert torch.allclose(whole[best <= 0], best[best <= 0])
