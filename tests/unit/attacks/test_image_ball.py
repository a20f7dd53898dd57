"""Balls: nothing that a projection or a start returns is outside, and what is nearest is known for
simple cases."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from image_models import some_images

from bitcrown.attacks.images.ball import NORMS, Ball
from bitcrown.attacks.images.noise import normal_like, stream_keys, uniforms
from bitcrown.errors import SettingsError


def exact_distance(norm: str, x: torch.Tensor, clean: torch.Tensor) -> np.ndarray:
    move = np.abs(x.numpy().astype(np.float64) - clean.numpy().astype(np.float64)).reshape(
        len(x), -1
    )
    if norm == "Linf":
        return move.max(axis=1)
    return move.sum(axis=1) if norm == "L1" else np.sqrt((move * move).sum(axis=1))


@settings(max_examples=60, deadline=None)
@given(
    norm=st.sampled_from(NORMS),
    eps=st.one_of(st.sampled_from([2 / 255, 8 / 255, 0.5, 1 / 3]), st.floats(1e-6, 20.0)),
    scale=st.sampled_from([1e-3, 0.1, 1.0, 100.0]),
    seed=st.integers(0, 1000),
)
def test_projections_and_starts_stay_inside(norm: str, eps: float, scale: float, seed: int) -> None:
    ball, clean = Ball(norm, eps), some_images(6, seed)
    far = clean + scale * torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed))
    keys = stream_keys(seed, np.arange(6), "test")
    for x in (ball.project(far, clean), ball.start(clean, keys), ball.start_inside(clean, keys)):
        assert x.dtype == torch.float32
        assert bool((x >= 0).all()) and bool((x <= 1).all())
        assert (exact_distance(norm, x, clean) <= eps).all()
        assert bool(ball.contains(x, clean).all())


@pytest.mark.parametrize("norm", NORMS)
def test_points_inside_are_left_alone_and_far_ones_reach_the_sphere(norm: str) -> None:
    ball, clean = Ball(norm, 0.3), torch.full((2, 3, 4, 4), 0.5)
    near = clean.clone()
    near[0, 0, 0, 0] += 0.2
    assert torch.allclose(ball.project(near, clean), near, atol=1e-7)
    assert np.allclose(
        exact_distance(norm, ball.project(clean + 1.0, clean), clean), 0.3, rtol=1e-4
    )


def test_l1_projection_is_the_nearest_point() -> None:
    # In one colour channel: d = (0.5, 0.4, 0.1), room 1, radius 0.6: t = 0.15, so (0.35, 0.25, 0).
    clean = torch.zeros(1, 3, 1, 1)
    x = Ball("L1", 0.6).project(torch.tensor([0.5, 0.4, 0.1]).reshape(1, 3, 1, 1), clean)
    assert torch.allclose(x.flatten(), torch.tensor([0.35, 0.25, 0.0]), atol=1e-5)


def test_impossible_balls_are_refused() -> None:
    with pytest.raises(SettingsError, match="norm"):
        Ball("L3", 0.1)
    with pytest.raises(SettingsError, match="radius"):
        Ball("Linf", -0.1)


def test_noise_belongs_to_the_image_not_to_its_batch() -> None:
    keys = stream_keys(7, np.arange(5), "square", 2)
    assert np.array_equal(uniforms(keys, 6)[3], uniforms(keys[3:4], 6)[0])
    assert np.array_equal(uniforms(keys, 6)[:, 2:5], uniforms(keys, 3, first=2))
    like = some_images(5)
    assert torch.equal(normal_like(like, keys)[2:3], normal_like(like[2:3], keys[2:3]))
    assert len({*keys.tolist(), *stream_keys(8, np.arange(5), "square", 2).tolist()}) == 10


def test_noise_is_uniform_and_normal() -> None:
    keys = stream_keys(0, np.arange(200), "test")
    share = uniforms(keys, 500)
    assert abs(share.mean() - 0.5) < 0.005 and abs(share.var() - 1 / 12) < 0.002
    assert abs(np.corrcoef(share[:, :-1].ravel(), share[:, 1:].ravel())[0, 1]) < 0.01
    normal = normal_like(torch.zeros(200, 3, 13, 13), keys).numpy()
    assert abs(normal.mean()) < 0.02 and abs(normal.std() - 1.0) < 0.02
