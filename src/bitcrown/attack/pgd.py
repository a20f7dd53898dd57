"""Projected gradient descent on conjunctions of linear output constraints, many cases at once.

Madry et al. (2018) with Adam steps (as in alpha,beta-CROWN's attack) scaled by the width of the box; restarts begin at
the middle, at random points and at random corners, half of them pushed apart first in a random output direction
(Tashiro et al., "Output Diversified Initialization", 2020).

Legend: ``B`` cases, ``K`` restarts, ``S`` rows of a case, ``n`` inputs, ``m`` outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitcrown.budget import Budget
from bitcrown.model.execute import Network


class Target:
    """``C [B, S, m]``, ``D [B, S, n]`` or None, ``rhs [B, S]``: violated iff ``C y + D x <= rhs`` in all rows."""

    def __init__(self, c: Tensor, d: Tensor | None, rhs: Tensor) -> None:
        self.c, self.d, self.rhs = c, d, rhs

    def excess(self, x: Tensor, y: Tensor) -> Tensor:
        """``[B, K]``: largest ``C y + D x - rhs`` over the rows; not positive where the case is violated."""
        value = torch.einsum("bsm,bkm->bks", self.c, y) - self.rhs.unsqueeze(1)
        if self.d is not None:
            value = value + torch.einsum("bsn,bkn->bks", self.d, x)
        padding = torch.isinf(self.rhs).unsqueeze(1).expand_as(value)
        return torch.where(padding, torch.full_like(value, -torch.inf), value).amax(dim=2)


def _outputs(network: Network, x: Tensor) -> Tensor:
    return network(x.flatten(0, 1)).reshape(*x.shape[:2], -1)


def _starts(lower: Tensor, upper: Tensor, restarts: int, generator: torch.Generator) -> Tensor:
    share = torch.rand(
        len(lower), restarts, lower.shape[1], generator=generator, dtype=lower.dtype, device=lower.device
    )
    share[:, 1::3] = (share[:, 1::3] > 0.5).to(share.dtype)
    share[:, 0] = 0.5
    starts = lower.unsqueeze(1) + share * (upper - lower).unsqueeze(1)
    # Rounded, lower + (upper - lower) may lie above upper.
    return torch.minimum(torch.maximum(starts, lower.unsqueeze(1)), upper.unsqueeze(1))


def _loss(excess: Tensor, y: Tensor, direction: Tensor | None) -> Tensor:
    """What a step descends: the excess, or, for every other restart, ``direction`` where it is given."""
    finite = torch.where(torch.isfinite(excess), excess, torch.zeros_like(excess))
    if direction is None:
        return finite.sum()
    return finite[:, ::2].sum() + (direction[:, 1::2] * y[:, 1::2]).sum()


def pgd(
    network: Network,
    lower: Tensor,
    upper: Tensor,
    target: Target,
    generator: torch.Generator,
    steps: int,
    restarts: int,
    budget: Budget,
) -> tuple[Tensor, Tensor]:
    """Best points found: ``x [K', n]`` and the case of each ``[K']``, those that violate first.

    ``lower``/``upper [B, n]``. Stops early once a case is violated (in the network's own dtype) or time is up.
    """
    width = (upper - lower).unsqueeze(1)
    x = _starts(lower, upper, restarts, generator)
    direction = torch.randn(len(x), restarts, target.c.shape[2], generator=generator, dtype=x.dtype, device=x.device)
    best, best_excess = x.clone(), torch.full(x.shape[:2], torch.inf, dtype=x.dtype, device=x.device)
    mean, square = torch.zeros_like(x), torch.zeros_like(x)
    warm = min(5, steps // 4)
    for step in range(steps + 1):
        with torch.enable_grad():
            x.requires_grad_(True)
            y = _outputs(network, x)
            excess = target.excess(x, y)
            loss = _loss(excess, y, direction if step < warm else None)
        with torch.no_grad():
            better = excess < best_excess
            best[better], best_excess[better] = x[better], excess[better]
        if step == steps or bool((best_excess <= 0).any()) or budget.is_expired() or not loss.requires_grad:
            break
        gradient = torch.autograd.grad(loss, x, allow_unused=True)[0]
        if gradient is None:
            break
        with torch.no_grad():
            gradient = gradient.nan_to_num(0.0, 0.0, 0.0) * width
            mean.lerp_(gradient, 0.1)
            square.mul_(0.99).addcmul_(gradient, gradient, value=0.01)
            move = mean / (1 - 0.9 ** (step + 1)) / ((square / (1 - 0.99 ** (step + 1))).sqrt() + 1e-30)
            rate = 0.25 * 0.97**step
            x = torch.minimum(
                torch.maximum(x - rate * width * move.clamp(-1, 1), lower.unsqueeze(1)), upper.unsqueeze(1)
            )
    order = best_excess.flatten().argsort()
    case = torch.arange(len(lower), device=x.device).repeat_interleave(restarts)
    return best.detach().flatten(0, 1)[order], case[order]
