"""Adversarial images for training: projected gradient ascent of the cross entropy (Madry et al.
2018).

Unlike an attack that is to be reported, it needs no restarts and returns the last point whether or
not it fools the network: what matters is a large loss. Steps of ``2.5 eps / steps`` reach every
corner of the box from any start.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def ascended(
    loss: Callable[[Tensor], Tensor], images: Tensor, eps: Tensor | float, steps: int, start: Tensor
) -> Tensor:
    """Points ``[B, C, H, W]`` in [0, 1] within ``eps`` of ``images`` of a large ``loss``.

    ``start`` in [0, 1] says where in its range each value begins.
    """
    low, up = (images - eps).clamp(0, 1), (images + eps).clamp(0, 1)
    points = low + start * (up - low)
    for _ in range(steps):
        points.requires_grad_(True)
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(loss(points).sum(), points)
        points = (points.detach() + 2.5 * eps / steps * gradient.sign()).clamp(low, up)
    return points.detach()
