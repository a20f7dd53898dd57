"""Warnings: each fires on a network made to deserve it, with its measurement, and none on an honest
one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from image_models import conv_net, some_images
from torch import Tensor

from bitcrown.attacks.images import hygiene
from bitcrown.attacks.images.ball import Ball
from bitcrown.attacks.images.hygiene import confidence_interval, inspect
from bitcrown.attacks.images.suite import run_suite

NET = conv_net(2)
IMAGES = some_images(12, 1)
LABELS = NET(IMAGES).argmax(dim=1)
BALL = Ball("Linf", 0.06)
pytestmark = pytest.mark.usefixtures("short_suites")


def batch_moments(x: Tensor) -> Tensor:
    return NET((x - x.mean(dim=0)) / (x.std(dim=0, correction=0) + 1e-3))


def batch_maximum(x: Tensor) -> Tensor:
    return NET(x * (1.0 + 0.05 * x.detach().max()) / (1.0 + x.mean(dim=(1, 2, 3)).detach().max()))


def noisy(x: Tensor) -> Tensor:
    return NET(x + 0.1 * torch.randn_like(x))


def optimising(x: Tensor) -> Tensor:
    with torch.enable_grad():
        moving = x.detach().clone().requires_grad_(True)
        (slope,) = torch.autograd.grad(NET(moving).sum(), moving)
    return NET(x - 0.001 * slope)


def staircase(x: Tensor) -> Tensor:
    return NET(torch.round(8 * x) / 8)


def steep_staircase(x: Tensor) -> Tensor:
    # The published quantisation block: a sigmoid of slope 1e8 whose exponential overflows below the
    # step.
    base = (torch.round(x * 10) / 10).detach()
    return NET(base + 0.1 / (1.0 + torch.exp(-1e8 * (x - base))))


def cliff(x: Tensor) -> Tensor:
    return NET(x) + 1e5 * (x - x.detach()).flatten(1).sum(dim=1, keepdim=True) * torch.arange(5.0)


def names(model: Callable[[Tensor], Tensor]) -> dict[str, hygiene.Finding]:
    return {finding.name: finding for finding in inspect(model, IMAGES, LABELS, BALL).findings}


def test_an_honest_network_raises_nothing() -> None:
    found = inspect(NET, IMAGES, LABELS, BALL)
    assert found.findings == () and not found.is_batch_dependent and found.is_differentiable


@pytest.mark.parametrize("model,expected", [
    (batch_moments, {"batch-dependent", "cross-sample-gradient"}),
    (batch_maximum, {"batch-dependent"}),
    (noisy, {"randomised"}),
    (optimising, {"dynamic"}),
    (staircase, {"zero-gradient"}),
    (steep_staircase, {"nan-gradient"}),
    (cliff, {"exploding-gradient"}),
    (lambda x: NET(x).softmax(dim=1), {"softmax-output"}),
])  # fmt: skip
def test_each_vice_is_named(model: Callable[[Tensor], Tensor], expected: set[str]) -> None:
    found = names(model)
    assert found.keys() == expected
    for finding in found.values():
        assert finding.measured and all(value >= 0 for value in finding.measured.values())


def test_measurements_are_those_of_the_network() -> None:
    assert names(staircase)["zero-gradient"].measured == {"count": 12.0, "images": 12.0}
    assert 0 < names(steep_staircase)["nan-gradient"].measured["count"] <= 12
    assert names(batch_moments)["batch-dependent"].measured["difference"] > 0.01
    with torch.no_grad():
        assert not inspect(lambda x: staircase(x).detach(), IMAGES, LABELS, BALL).is_differentiable


def test_the_suite_says_when_random_search_beats_gradients() -> None:
    result = run_suite(staircase, IMAGES, staircase(IMAGES).argmax(dim=1), Ball("Linf", 0.2),
    suite="standard",
                       seed=0, batch=12)  # fmt: skip
    found = {finding.name: finding for finding in result.warnings}
    assert {
        "zero-gradient",
        "zero-gradient:apgd-ce",
        "flat-loss:apgd-ce",
        "black-box-ahead",
    } <= found.keys()
    square = next(row for row in result.per_attack if row.name == "square")
    assert found["black-box-ahead"].measured["broken"] == square.broken > 0


def test_batch_dependent_networks_keep_their_batches_and_are_reported() -> None:
    shapes = set()

    def model(x: Tensor) -> Tensor:
        shapes.add(len(x))
        return batch_moments(x)

    labels = batch_moments(IMAGES).argmax(dim=1)
    result = run_suite(
        model, IMAGES, labels, Ball("Linf", 0.1), suite="black-box", seed=0, batch=12
    )
    assert result.is_batch_dependent and result.clean_accuracy() == 1.0
    assert max(shapes) == 12 and len(shapes) > 2
    assert result.warnings[0].name == "batch-dependent"
    together = batch_moments(result.adversarial).argmax(dim=1) != labels
    broken = torch.tensor([name is not None for name in result.broken_by])
    assert bool(together[broken].all())


def test_randomised_networks_are_reproducible_for_a_seed() -> None:
    before = torch.get_rng_state()
    results = [
        run_suite(noisy, IMAGES, LABELS, BALL, suite="rand", seed=4, batch=12) for _ in range(2)
    ]
    assert results[0].broken_by == results[1].broken_by and torch.equal(
        *(r.adversarial for r in results)
    )
    assert torch.equal(torch.get_rng_state(), before)


def test_gap_and_sample_size() -> None:
    assert hygiene.substitute_gap(1000, 622, 620) is None
    gap = hygiene.substitute_gap(1000, 622, 533)
    assert gap is not None and "53.3 %" in gap.sentence and gap.measured["without"] == 0.622
    lower, upper = confidence_interval(533, 1000)
    assert lower == pytest.approx(0.502, abs=1e-3) and upper == pytest.approx(0.564, abs=1e-3)
    assert confidence_interval(0, 10)[0] == 0.0 and confidence_interval(10, 10)[1] == pytest.approx(
        1.0
    )
    small = hygiene.small_sample(533, 1000)
    assert small is not None and small.measured["images"] == 1000.0
    assert hygiene.small_sample(533_000, 1_000_000) is None
    assert hygiene.black_box_ahead(1000, 3, "square", 2) is None
    assert hygiene.black_box_ahead(1000, 0, "square", 200) is None
    assert hygiene.black_box_ahead(1000, 3, "square", 3) is not None
