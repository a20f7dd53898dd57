"""The attacks of a suite where the exact answer is known: linear classifiers, and networks that
count their calls."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from image_models import Linear, conv_net, some_images
from torch import Tensor

from bitcrown.attacks.images.apgd import apgd
from bitcrown.attacks.images.ball import Ball
from bitcrown.attacks.images.components import Component, run_component
from bitcrown.attacks.images.fab import fab
from bitcrown.attacks.images.hyperplane import shortest_move
from bitcrown.attacks.images.losses import cross_entropy, dlr, lead, targeted_dlr
from bitcrown.attacks.images.noise import stream_keys
from bitcrown.attacks.images.square import random_points, square
from bitcrown.attacks.images.square_mass import two_bumps
from bitcrown.attacks.images.trace import Trace
from bitcrown.attacks.images.victim import Victim

NET = conv_net(2)
DUAL = {"Linf": 1.0, "L2": 2.0, "L1": torch.inf}


def keys(count: int) -> np.ndarray:
    return stream_keys(3, np.arange(count), "test")


def boundary_distance(model: Linear, images: Tensor, labels: Tensor, norm: str) -> Tensor:
    """``[B]``: distance to the nearest decision boundary of a linear classifier, pixel range
    aside."""
    logits = model(images)
    gap = logits.gather(1, labels[:, None]) - logits
    length = torch.linalg.vector_norm(
        model.weight[labels][:, None] - model.weight[None], ord=DUAL[norm], dim=2
    )
    return torch.where(length > 0, gap / length.clamp(min=1e-9), torch.inf).amin(dim=1)


def judge(
    norm: str, attack: Callable[[Linear, Tensor, Tensor, Ball], Trace], nearly: float, model: Linear
) -> None:
    """Breaks all images that are ``nearly`` within reach, none that are beyond, and keeps to the
    ball."""
    images = 0.45 + 0.1 * some_images(40)
    labels = model(images).argmax(dim=1)
    radius = boundary_distance(model, images, labels, norm)
    ball = Ball(norm, float(radius.median()))
    trace = attack(model, images, labels, ball)
    assert bool(trace.found[radius < nearly * ball.eps].all())
    assert not bool(trace.found[radius > ball.eps].any())
    assert 10 <= int(trace.found.sum()) <= 30
    assert bool((model(trace.x[trace.found]).argmax(dim=1) != labels[trace.found]).all())
    assert bool(ball.contains(trace.x, images).all())
    assert torch.equal(trace.x[~trace.found], images[~trace.found])


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_fab_finds_the_closest_boundary_of_a_linear_model(norm: str) -> None:
    judge(norm, lambda m, x, y, ball: fab(Victim(m), x, y, ball, None, 30), 0.99, Linear(1))


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_targeted_fab_over_all_targets_finds_it_too(norm: str) -> None:
    def attack(model: Linear, x: Tensor, y: Tensor, ball: Ball) -> Trace:
        whole = Trace.empty(x)
        for shift in (1, 2, 3):
            place = (~whole.found).nonzero().flatten()
            targets = (y[place] + shift) % 4
            whole.merge(place, fab(Victim(model), x[place], y[place], ball, None, 30, targets))
        return whole

    judge(norm, attack, 0.99, Linear(2))


@pytest.mark.parametrize(
    "norm,loss", [("Linf", cross_entropy), ("L2", cross_entropy), ("Linf", dlr)]
)
def test_apgd_reaches_the_optimum_of_a_linear_model(
    norm: str, loss: Callable[[Tensor, Tensor], Tensor]
) -> None:
    judge(
        norm,
        lambda m, x, y, ball: apgd(Victim(m), x, y, ball, keys(40), 60, loss, y),
        0.99,
        Linear(4, classes=2),
    )


def test_l1_apgd_comes_close_to_the_optimum_of_a_linear_model() -> None:
    def attack(model: Linear, x: Tensor, y: Tensor, ball: Ball) -> Trace:
        return apgd(Victim(model), x, y, ball, keys(40), 60, cross_entropy, y)

    model = Linear(5, classes=2)
    # The optimum moves the steepest pixel alone; with three pixels near it the radius is used as
    # well.
    judge("L1", attack, 0.9, model)


def test_l1_apgd_ends_where_its_starts_leave_nothing_standing() -> None:
    def sums(x: Tensor) -> Tensor:
        total = (x.flatten(1) - 0.5).sum(dim=1, keepdim=True)
        return torch.cat([total, -total], dim=1)

    images, ball = torch.full((20, 3, 4, 4), 0.5001), Ball("L1", 2.0)
    is_broken = sums(ball.start(images, keys(20))).argmax(dim=1) != 0
    assert bool(is_broken.any())
    images, labels = images[is_broken], torch.zeros(int(is_broken.sum()), dtype=torch.int64)
    chosen = keys(20)[is_broken.numpy()]
    trace = apgd(Victim(sums), images, labels, ball, chosen, 60, cross_entropy, labels)
    assert bool(trace.found.all()) and bool(ball.contains(trace.x, images).all())


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_square_breaks_linear_models_within_its_budget(norm: str) -> None:
    model, images = Linear(6, classes=2), 0.45 + 0.1 * some_images(30)
    labels = model(images).argmax(dim=1)
    radius = boundary_distance(model, images, labels, norm)
    ball = Ball(norm, float(radius.median()))
    for queries in (1, 300):
        model.calls = 0
        trace = square(Victim(model, rows=None), images, labels, ball, keys(30), queries)
        assert model.calls <= 30 * queries
        assert not bool(trace.found[radius > ball.eps].any()) and bool(
            ball.contains(trace.x, images).all()
        )
    assert bool(trace.found[radius < (0.6 if norm == "Linf" else 0.45) * ball.eps].all())


def test_square_stops_asking_about_broken_images() -> None:
    model, images = Linear(6, classes=2), 0.45 + 0.1 * some_images(20)
    labels = model(images).argmax(dim=1)
    trace = square(Victim(model, rows=None), images, labels, Ball("Linf", 1.0), keys(20), 300)
    assert bool(trace.found.all()) and model.calls < 20 * 40


@pytest.mark.parametrize("norm", ["L2", "L1"])
def test_bumps_have_length_one_and_two_signs(norm: str) -> None:
    for side in (1, 2, 3, 6, 9):
        bump = two_bumps(side, torch.zeros(1), norm)
        assert bump.shape == (side, side)
        assert float(bump.flatten().norm(p=int(norm[1]))) == pytest.approx(1.0, abs=1e-6)
        if side > 1:
            assert bool((bump[: side // 2] > 0).all()) and bool((bump[side // 2 :] < 0).all())


def test_random_points_find_what_is_everywhere_and_nothing_that_is_not() -> None:
    images = some_images(5)
    labels = torch.zeros(5, dtype=torch.int64)
    always = Victim(lambda x: torch.stack([-x.flatten(1).sum(1) * 0, torch.ones(len(x))], dim=1))
    never = Victim(lambda x: torch.stack([torch.ones(len(x)), torch.zeros(len(x))], dim=1))
    assert bool(random_points(always, images, labels, Ball("Linf", 0.1), keys(5), 3).found.all())
    assert not bool(random_points(never, images, labels, Ball("Linf", 0.1), keys(5), 3).found.any())


@settings(max_examples=60, deadline=None)
@given(
    norm=st.sampled_from(["Linf", "L2", "L1"]),
    seed=st.integers(0, 10_000),
    size=st.floats(0.0, 3.0),
)
def test_shortest_moves_reach_the_hyperplane_and_no_sampled_move_is_shorter(
    norm: str, seed: int, size: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, w = torch.rand(4, 6, generator=generator), torch.randn(4, 6, generator=generator)
    corner = torch.where(w > 0, 1.0 - x, -x)
    most = (corner * w).sum(dim=1)
    c = (size / 2) * most
    move = shortest_move(x, w, c, norm, 0.0, 1.0)
    assert bool((x + move >= -1e-6).all()) and bool((x + move <= 1 + 1e-6).all())
    assert torch.allclose((move * w).sum(dim=1), torch.minimum(c, most), atol=1e-4)
    order = {"Linf": torch.inf, "L2": 2.0, "L1": 1.0}[norm]
    length = torch.linalg.vector_norm(move, ord=order, dim=1)
    # Any other point of the box that reaches the plane, scaled back to it, is at least as far.
    other = torch.rand(500, 4, 6, generator=generator) - x
    gain = (other * w).sum(dim=2)
    scale = torch.where(gain > 1e-6, c / gain.clamp(min=1e-6), torch.inf)
    usable = (scale <= 1.0) & (scale >= 0.0)
    other_length = torch.linalg.vector_norm(other, ord=order, dim=2) * scale
    assert bool((~usable | (other_length >= length - 1e-4)).all())


def test_losses_by_hand() -> None:
    logits, labels = torch.tensor([[4.0, 1.0, 3.0, 0.0]]), torch.tensor([0])
    assert float(lead(logits, labels)) == -1.0
    assert float(dlr(logits, labels)) == pytest.approx(-1.0 / 3.0)
    assert float(targeted_dlr(logits, labels, torch.tensor([1]))) == pytest.approx(-3.0 / 3.5)
    assert float(targeted_dlr(logits[:, :3], labels, torch.tensor([1]))) == pytest.approx(-1.0)
    assert float(targeted_dlr(logits[:, :2], labels, torch.tensor([1]))) == -3.0
    assert float(dlr(logits[:, :2], labels)) == -3.0
    assert float(cross_entropy(logits, labels)) == pytest.approx(
        float(-logits.log_softmax(1)[0, 0])
    )
    assert torch.allclose(dlr(7.0 * logits + 5.0, labels), dlr(logits, labels))


def test_what_gradients_were_like_is_noticed() -> None:
    images = some_images(6)
    labels = torch.zeros(6, dtype=torch.int64)
    ball = Ball("Linf", 0.1)

    def stepped(x: Tensor) -> Tensor:
        flat = x.flatten(1)[:, :2]
        return torch.cat([1.0 + 0.0 * flat[:, :1], torch.floor(flat[:, :1])], dim=1)

    trace = apgd(Victim(stepped), images, labels, ball, keys(6), 10, cross_entropy, labels)
    assert (
        bool(trace.zero_gradient.all())
        and bool(trace.flat.all())
        and not bool(trace.broken_gradient.any())
    )

    def undefined(x: Tensor) -> Tensor:
        root = (0.0 * x.flatten(1)[:, :1]).sqrt()
        return torch.cat([1.0 + root, root], dim=1)

    trace = apgd(Victim(undefined), images, labels, ball, keys(6), 10, cross_entropy, labels)
    assert bool(trace.broken_gradient.all()) and not bool(trace.found.any())
    assert not bool(fab(Victim(undefined), images, labels, ball, None, 5).found.any())

    net = Linear(0)
    labels = net(images).argmax(dim=1)
    trace = apgd(Victim(net), images, labels, ball, keys(6), 10, dlr, labels)
    assert not bool(
        (trace.broken_gradient | trace.zero_gradient | (trace.flat & ~trace.found)).any()
    )


def one_by_one(x: Tensor) -> Tensor:
    """Logits whose last bits do not depend on the shape of the call."""
    return torch.cat([NET(x[k : k + 1]) for k in range(len(x))])


@pytest.mark.parametrize("norm,eps", [("Linf", 0.06), ("L2", 0.3), ("L1", 0.6)])
def test_queries_asked_at_once_are_those_asked_one_after_the_other(norm: str, eps: float) -> None:
    images = some_images(11)
    labels, ball = NET(images).argmax(dim=1), Ball(norm, eps)
    single = square(Victim(one_by_one, rows=None), images, labels, ball, keys(11), 80)
    assert 0 < int(single.found.sum()) < 11
    for rows in (4, 11, 30, 200):
        several = square(Victim(one_by_one, rows=rows), images, labels, ball, keys(11), 80)
        assert torch.equal(several.found, single.found) and torch.equal(several.x, single.x)


@pytest.mark.parametrize("component", [
    Component("apgd-t", 8, targets=4), Component("fab-t", 4, targets=4), Component("apgd-ce", 3,
    restarts=4),
    Component("fab", 3, restarts=3),
])  # fmt: skip
def test_runs_beside_each_other_are_those_one_after_the_other(component: Component) -> None:
    images = some_images(11)
    labels, ball, number = NET(images).argmax(dim=1), Ball("Linf", 0.04), np.arange(11)
    traces = [
        run_component(component, Victim(one_by_one, rows=rows), images, labels, number, ball, 5)
        for rows in (None, 3, 16, 100)
    ]
    assert 0 < int(traces[0].found.sum()) < 11
    for trace in traces[1:]:
        assert all(torch.equal(field, other) for field, other in zip(trace, traces[0], strict=True))
