"""Gradient descent on images: it reaches the closed-form optimum of a linear model and does not
look at the batch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from image_models import Linear, conv_net, some_images

from bitcrown.attacks.images import victim
from bitcrown.attacks.images.ball import Ball
from bitcrown.attacks.images.pgd import pgd_images
from bitcrown.attacks.images.victim import Victim


def weakest_radius(model: Linear, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """``[B]``: the least L-infinity radius (pixel range aside) at which each image can be
    misclassified."""
    logits = model(images)
    gap = logits.gather(1, labels[:, None]) - logits
    slope = (model.weight[labels][:, None] - model.weight[None]).abs().sum(dim=2)
    return torch.where(slope > 0, gap / slope.clamp(min=1e-9), torch.inf).amin(dim=1)


def test_linear_models_break_exactly_beyond_their_radius() -> None:
    model, images = Linear(0, classes=2), 0.4 + 0.2 * some_images(40)
    labels = model(images).argmax(dim=1)
    radius = weakest_radius(model, images, labels)
    eps = float(radius.median())
    adversarial = pgd_images(model, images, labels, Ball("Linf", eps), steps=20, restarts=2, seed=1)
    broken = model(adversarial).argmax(dim=1) != labels
    assert bool(broken[radius < 0.98 * eps].all()) and not bool(broken[radius > eps].any())
    assert torch.equal(adversarial[~broken], images[~broken])


@pytest.mark.parametrize("norm,eps", [("Linf", 0.05), ("L2", 0.3), ("L1", 2.0)])
def test_batch_size_and_order_change_nothing(norm: str, eps: float) -> None:
    net, images = conv_net(3), some_images(30, 4)
    labels = net(images).argmax(dim=1)
    ball = Ball(norm, eps)

    def attack(batch: int) -> torch.Tensor:
        return pgd_images(net, images, labels, ball, steps=10, restarts=2, seed=5, batch=batch)

    whole = attack(30)
    assert torch.equal(whole, attack(7))
    broken = net(whole).argmax(dim=1) != labels
    assert bool(broken.any()) and not bool(broken.all())
    assert bool(ball.contains(whole, images).all())


def test_calls_always_have_the_same_shape() -> None:
    shapes = set()

    def model(x: torch.Tensor) -> torch.Tensor:
        shapes.add(tuple(x.shape))
        return x.flatten(1)[:, :3]

    Victim(model, rows=8).logits(some_images(19))
    assert shapes == {(8, 3, 4, 4)}
    assert Victim(model, rows=None).logits(some_images(19)).shape == (19, 3)


def test_rounding_thin_leads_and_nan_are_no_success() -> None:
    table = torch.tensor([[1.0, 1.0 + 1e-7], [1.0, 1.1], [float("nan"), 2.0]])
    asked = Victim(lambda x: table[x[:, 0, 0, 0].long()], rows=2)
    images = torch.arange(3.0).reshape(3, 1, 1, 1)
    labels = torch.zeros(3, dtype=torch.int64)
    assert asked.breaks(images, asked.logits(images), labels).tolist() == [False, True, False]


@pytest.mark.parametrize("norm,eps", [("Linf", 0.05), ("L2", 0.3), ("L1", 0.7)])
def test_climbs_beside_each_other_break_what_they_break_one_by_one(
    norm: str, eps: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same images by the same restarts, whether all climbs share calls or each has its own."""
    net, images = conv_net(3), some_images(30, 4)
    labels = net(images).argmax(dim=1)
    ball, number = Ball(norm, eps), np.arange(30)
    together = pgd_images(net, images, labels, ball, steps=10, restarts=6, seed=5)
    monkeypatch.setattr(victim, "CPU_ROWS", 1)  # one climb after the other
    alone = [
        pgd_images(
            net, images[k : k + 1], labels[k : k + 1], ball,
            steps=10, restarts=6, seed=5, number=number[k : k + 1],
        )
        for k in range(30)
    ]  # fmt: skip
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)
    broken = (together != images).flatten(1).any(dim=1)
    assert bool(broken.any()) and not bool(broken.all())


def test_decided_images_leave_and_others_take_their_place() -> None:
    model, images = Linear(0, classes=2), 0.4 + 0.2 * some_images(40)
    labels = model(images).argmax(dim=1)
    ball, sizes = Ball("Linf", float(weakest_radius(model, images, labels).median())), []

    def counted(x: torch.Tensor) -> torch.Tensor:
        sizes.append(len(x))
        return model(x)

    pgd_images(counted, images, labels, ball, steps=20, restarts=9, seed=1)
    calls = [size for size in sizes if size > 1]  # others confirm what is broken
    # 20 images stand: 180 climbs of 21 points each. The other 20 end early, in one climb's time.
    assert set(calls) == {90}
    assert len(calls) <= (180 + 20) * 21 / 90 + 21


@pytest.mark.parametrize(
    "seconds,expected",
    [
        (lambda rows: 1.0, 1 << 14),  # a call costs the same whatever its size: the largest
        (lambda rows: rows, 512),  # a row costs the same: the smallest
        (lambda rows: max(rows, 2000.0), 2048),
    ],
)
def test_calls_grow_while_rows_get_cheaper(seconds: Callable[[int], float], expected: int) -> None:
    images = torch.zeros(3, 3, 4, 4, device="meta")

    def clock(model: object, x: torch.Tensor) -> float:
        return seconds(len(x))

    assert victim.widest_call(lambda x: x, images, clock) == expected
    assert victim.widest_call(lambda x: x, images.new_zeros(3, device="cpu"), clock) == 96


def test_calls_stop_growing_where_memory_ends() -> None:
    def clock(model: object, x: torch.Tensor) -> float:
        if len(x) > 2048:
            raise torch.OutOfMemoryError
        return 1.0

    images = torch.zeros(3, 3, 4, 4, device="meta")
    assert victim.widest_call(lambda x: x, images, clock) == 1024
