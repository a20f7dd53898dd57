"""Projected gradient descent on images (Madry et al., "Towards deep learning models resistant to
attacks", 2018).

From a random point of the ball: ``x <- P(x + a d)`` where ``d`` is the direction of steepest ascent
of the cross entropy in the ball's norm (the sign of the gradient for L-infinity, the normalised
gradient for L2, its largest entries for L1), ``P`` the projection and ``a = 2.5 eps / steps``, so
that any point of the ball can be reached. An image is done as soon as it is misclassified; the
first restart begins at the clean image.

Legend: ``B`` images, ``C`` channels, ``H x W`` pixels, ``K`` classes.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bitcrown.attacks.images.ball import Ball
from bitcrown.attacks.images.losses import cross_entropy
from bitcrown.attacks.images.noise import Keys, stream_keys
from bitcrown.attacks.images.victim import Classifier, Victim, rows_for

_L1_SHARE = 0.05
"""Share of the pixels that one L1 step moves."""


def pgd_images(
    model: Classifier,
    images: Tensor,
    labels: Tensor,
    ball: Ball,
    *,
    steps: int,
    restarts: int,
    seed: int,
    batch: int = 100,
) -> Tensor:
    """``[B, C, H, W]``: a misclassified point of each ball, the clean image where none is found.

    Images that are misclassified as they are stay as they are. ``batch`` bounds memory and changes
    no result.
    """
    victim = Victim(model, rows_for(len(images), images.device))
    result = images.clone()
    for first in range(0, len(images), batch):
        part = slice(first, first + batch)
        clean, classes = images[part], labels[part]
        number = np.arange(first, first + len(clean))
        open_ones = (victim.logits(clean).argmax(dim=1) == classes).nonzero().flatten()
        for restart in range(restarts):
            if not len(open_ones):
                break
            keys = stream_keys(seed, number[open_ones.cpu().numpy()], "pgd", restart)
            found, x = _ascend(
                victim, clean[open_ones], classes[open_ones], ball, steps, keys, restart > 0
            )
            result[first + open_ones[found]] = x[found]
            open_ones = open_ones[~found]
    return result


def _ascend(
    victim: Victim,
    clean: Tensor,
    labels: Tensor,
    ball: Ball,
    steps: int,
    keys: Keys,
    is_random: bool,
) -> tuple[Tensor, Tensor]:
    """Which images were broken ``[B]`` and the points ``[B, C, H, W]``."""
    result, found = clean.clone(), torch.zeros(len(clean), dtype=torch.bool, device=clean.device)
    place = torch.arange(len(clean), device=clean.device)
    x = ball.start_inside(clean, keys) if is_random else clean.clone()
    for step in range(steps + 1):
        if step < steps:
            logits, _, slope = victim.gradient(x, cross_entropy, labels[place])
        else:
            logits = victim.logits(x)
        broken = victim.breaks(x, logits, labels[place])
        result[place[broken]], found[place[broken]] = x[broken], True
        if step == steps or bool(broken.all()):
            break
        x, place, slope = x[~broken], place[~broken], slope[~broken]
        x = ball.project(x + 2.5 * ball.eps / steps * steepest(slope, ball.norm), clean[place])
    return found, result


def steepest(slope: Tensor, norm: str) -> Tensor:
    """Unit direction in ``norm`` in which a function of gradient ``slope`` grows fastest.

    For L1 that would be one pixel: the largest ``_L1_SHARE`` of them share the step. NaN moves
    nothing.
    """
    slope = slope.nan_to_num(0.0, 0.0, 0.0)
    if norm == "Linf":
        return slope.sign_()
    flat: Tensor = slope.flatten(1)
    if norm == "L2":
        length: Tensor = torch.linalg.vector_norm(flat, dim=1, keepdim=True)
        return (flat / length.clamp(min=1e-30)).reshape(slope.shape)
    share = torch.full((len(flat),), _L1_SHARE, dtype=torch.float64, device=flat.device)
    return sparse_direction(slope, share)


def sparse_direction(slope: Tensor, share: Tensor) -> Tensor:
    """Signs of the largest entries of ``slope [B, C, H, W]``, a ``share [B]`` of them (one at
    least), of sum 1 in absolute value. NaN moves nothing."""
    flat = slope.nan_to_num(0.0, 0.0, 0.0).flatten(1)
    count = (share * flat.shape[1]).long().clamp(1, flat.shape[1])
    # The count-th largest size is the threshold; ties with it move too, zeros have no sign.
    ranked = flat.abs().sort(dim=1, descending=True).values
    least = ranked.gather(1, count.unsqueeze(1) - 1)
    signs = torch.where(flat.abs() >= least, flat.sign(), torch.zeros_like(flat))
    return (signs / signs.abs().sum(dim=1, keepdim=True).clamp(min=1.0)).reshape(slope.shape)
