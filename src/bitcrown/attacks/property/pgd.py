"""Projected gradient descent on conjunctions of linear constraints, many cases at once.

Madry et al. (2018) with Adam steps (as in alpha,beta-CROWN's attack) scaled by the width of the
box; restarts begin at the middle, at random points and at random corners, half of them pushed apart
first in a random output direction (Tashiro et al., "Output Diversified Initialization", 2020).
Staircases get the slopes of the lines through them (``rounding_slopes``); where the network has no
slope at all, points move at random.

Legend: ``B`` cases, ``K`` restarts, ``S`` rows of a case, ``n`` inputs, ``m`` outputs.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from bitcrown.attacks.property.target import Target
from bitcrown.attacks.rounding_slopes import RoundingSlopes
from bitcrown.budget import Budget
from bitcrown.model.execute import Network

_EXTRA_STEPS = 3
"""Steps after the first violation: deeper ones survive the replay in another arithmetic more
often."""
_MEMORY_SHARE = 8
"""The descent may take one part in this many of the budget's memory."""


class Candidates(NamedTuple):
    """``x [K', n]``, case and excess ``[K']`` of each, least (most violated) first."""

    x: Tensor
    case: Tensor
    excess: Tensor


def pgd(
    network: Network,
    lower: Tensor,
    upper: Tensor,
    target: Target,
    generator: torch.Generator,
    steps: int,
    restarts: int,
    budget: Budget,
) -> Candidates:
    """The best point of every restart, sorted; ``lower``/``upper [B, n]`` as the network's dtype.

    Stops soon after a case is violated (in the network's own dtype) or when time is up, but always
    looks at the starting points. Cases that do not fit into memory together are taken one chunk
    after the other, with a fair share of the time each. Nothing of torch's global state changes but
    the ``generator`` given.
    """
    room = max(1, budget.memory // _MEMORY_SHARE // _bytes_per_point(network, lower.dtype))
    restarts = max(1, min(restarts, room))
    size = max(1, room // restarts)
    parts: list[Candidates] = []
    for start in range(0, len(lower), size):
        left = -(-(len(lower) - start) // size)
        share = budget if left == 1 else budget.capped(max(0.0, budget.remaining()) / left)
        chunk = slice(start, start + size)
        found = _descend_chunk(
            network, lower[chunk], upper[chunk], target[chunk], generator, steps, restarts, share
        )
        parts.append(Candidates(found.x, found.case + start, found.excess))
        if bool((found.excess <= 0).any()) or budget.is_expired():
            break
    whole = Candidates(*(torch.cat(column) for column in zip(*parts, strict=True)))
    order = whole.excess.argsort(stable=True)
    return Candidates(whole.x[order], whole.case[order], whole.excess[order])


def _bytes_per_point(network: Network, dtype: torch.dtype) -> int:
    # Every activation is kept for the backward pass, and about as much again is in use by the
    # operators.
    numbers = sum(node.size for node in network.graph.nodes.values())
    return max(1, 2 * numbers * torch.finfo(dtype).bits // 8)


def _starts(lower: Tensor, upper: Tensor, restarts: int, generator: torch.Generator) -> Tensor:
    share = _random(lower, restarts, generator)
    share[:, 1::3] = (share[:, 1::3] > 0.5).to(share.dtype)
    share[:, 0] = 0.5
    return _clip(lower.unsqueeze(1) + share * (upper - lower).unsqueeze(1), lower, upper)


def _random(like: Tensor, restarts: int, generator: torch.Generator) -> Tensor:
    shape = len(like), restarts, like.shape[1]
    return torch.rand(shape, generator=generator, dtype=like.dtype, device=like.device)


def _clip(x: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    # Rounded, lower + (upper - lower) may lie above upper.
    return torch.minimum(torch.maximum(x, lower.unsqueeze(1)), upper.unsqueeze(1))


def _descend_chunk(
    network: Network,
    lower: Tensor,
    upper: Tensor,
    target: Target,
    generator: torch.Generator,
    steps: int,
    restarts: int,
    budget: Budget,
) -> Candidates:
    width = (upper - lower).unsqueeze(1)
    x = _starts(lower, upper, restarts, generator)
    direction = torch.randn(
        len(x), restarts, target.c.shape[2], generator=generator, dtype=x.dtype, device=x.device
    )
    best = x.clone()
    best_excess = torch.full(x.shape[:2], torch.inf, dtype=x.dtype, device=x.device)
    mean, square = torch.zeros_like(x), torch.zeros_like(x)
    warm = min(5, steps // 4)
    has_jumps = any(row.has_jumps for row in network.rows.values())
    slopes = RoundingSlopes("spread")
    for step in range(steps + 1):
        with (
            torch.enable_grad(),
            slopes if has_jumps else nullcontext(),
        ):
            x.requires_grad_(True)
            y = network(x.flatten(0, 1)).reshape(*x.shape[:2], -1)
            rows = target.rows(x, y)
            loss = target.loss(rows, y, direction if step < warm else None)
        with torch.no_grad():
            excess = rows.amax(dim=2)
            better = excess < best_excess
            best[better], best_excess[better] = x[better], excess[better]
            if bool((best_excess <= 0).any()):
                steps = min(steps, step + _EXTRA_STEPS)
        if step >= steps or budget.is_expired():
            break
        gradient = _gradient(loss, x)
        with torch.no_grad():
            gradient = gradient.nan_to_num(0.0, 0.0, 0.0) * width
            mean.lerp_(gradient, 0.1)
            square.mul_(0.99).addcmul_(gradient, gradient, value=0.01)
            # Adam (Kingma & Ba 2015): moments with the bias of their zero start taken out.
            scale = (square / (1 - 0.99 ** (step + 1))).sqrt() + 1e-30
            move = mean / (1 - 0.9 ** (step + 1)) / scale
            # No slope at all: a random point around the best one, in reach of the whole box.
            is_flat = (move == 0).all(dim=2, keepdim=True)
            if bool(is_flat.any()):
                jump = best - (2 * _random(lower, restarts, generator) - 1) * 2 * width
                x = torch.where(is_flat, jump, x)
            x = _clip(x - 0.25 * 0.97**step * width * move.clamp(-1, 1), lower, upper)
    case = torch.arange(len(lower), device=x.device).repeat_interleave(restarts)
    return Candidates(best.detach().flatten(0, 1), case, best_excess.flatten())


def _gradient(loss: Tensor, x: Tensor) -> Tensor:
    """``[B, K, n]``; zero where the network cannot be differentiated."""
    if not loss.requires_grad:
        return torch.zeros_like(x)
    (found,) = torch.autograd.grad(loss, x, allow_unused=True)
    return torch.zeros_like(x) if found is None else found
