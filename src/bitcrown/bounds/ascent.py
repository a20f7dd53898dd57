"""Choosing the free parameters of a bound (``multipliers``) by gradient ascent.

The bound is concave in beta, mu and mix and piecewise smooth in alpha, so a few tens of steps with
decaying rates get most of what there is to get. Nothing here is rounded with care: what is found is
proved afterwards.

Legend: ``B`` domains, ``S`` rows per domain.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bitcrown.bounds.adam import Adam
from bitcrown.bounds.claims import known, ratio
from bitcrown.bounds.interval import Bounds
from bitcrown.bounds.multipliers import Multipliers, base_relaxations
from bitcrown.bounds.rows import Rows, bound_rows
from bitcrown.budget import Budget
from bitcrown.model.execute import Network


@dataclass(frozen=True)
class Ascent:
    """How to climb; ``rate_beta`` is that of mu, too. ``decay`` multiplies all rates after every
    iteration."""

    iterations: int
    rate_alpha: float = 0.1
    rate_beta: float = 0.05
    rate_mix: float = 0.1
    decay: float = 0.98


def ascend(
    network: Network,
    rows: Rows,
    bounds: Bounds,
    start: Multipliers,
    ascent: Ascent,
    target: float = 0.0,
    budget: Budget | None = None,
) -> tuple[Multipliers, Tensor]:
    """Improve ``start`` for the rows; returns what was found and its (not rigorous) bounds
    ``[B, S]``: for each domain those of the step at which its best row was bounded best. Few steps
    often lead down first.

    A domain counts as done once one of its rows exceeds ``target``; it then stops contributing to
    the gradient, and the ascent ends when all are done. With ``start.mix`` all rows of a domain are
    bounded as one mixture of them. Raises ``BudgetExpired`` as soon as ``budget`` is spent.
    """
    rows = rows.to(network.dtype)
    with torch.no_grad():
        bounds = {
            name: (low.to(network.dtype), up.to(network.dtype))
            for name, (low, up) in bounds.items()
        }
        bounds = start.layout.split_bounds(bounds, start.split)
    current = _each(
        start, lambda part: part.to(network.dtype).detach().clone().requires_grad_(True)
    )
    groups = _groups(current, ascent)
    base = base_relaxations(start.layout, bounds)  # the same in every iteration
    optimiser = Adam(groups, ascent.decay)
    best = None
    for iteration in range(ascent.iterations):
        if budget is not None:
            budget.check()
        goal = rows if current.mix is None else rows.mixed(current.mix)
        value = bound_rows(network, goal, current.backward(network, bounds, base=base), 0.0)
        best = _better(best, current, value.detach())
        # (At most ``target``, so neither NaN nor infinite above.)
        open_ = (value.amax(dim=1, keepdim=True) <= target) & (value > -torch.inf)
        if not groups or iteration + 1 == ascent.iterations or not open_.any():
            break
        total = torch.where(open_, value, torch.zeros_like(value)).sum()
        if not total.requires_grad:  # nothing that is free lies on the way from rows to inputs
            break
        optimiser.step(
            torch.autograd.grad(total, [tensor for tensor, _ in groups], allow_unused=True)
        )
        _project(current)
    return best or (_each(current, Tensor.detach), rows.rhs)


def _better(
    best: tuple[Multipliers, Tensor] | None, current: Multipliers, value: Tensor
) -> tuple[Multipliers, Tensor]:
    """For each domain that of both in which one row is bounded best; ``value [B, S]``."""
    copied = _each(current, lambda part: part.detach().clone())
    if best is None:
        return copied, value
    least = [known(v, -torch.inf).amax(dim=1) for v in (best[1], value)]
    is_better = least[1] > least[0]

    def pick(old: Tensor | None, new: Tensor | None) -> Tensor | None:
        if old is None or new is None:
            return None
        return torch.where(is_better.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    alpha, found = pick(best[0].alpha, copied.alpha), pick(best[1], value)
    assert alpha is not None and found is not None
    chosen = replace(
        copied,
        alpha=alpha,
        beta=pick(best[0].beta, copied.beta),
        mix=pick(best[0].mix, copied.mix),
        mu=pick(best[0].mu, copied.mu),
    )
    return chosen, found


def _each(given: Multipliers, change: Callable[[Tensor], Tensor]) -> Multipliers:
    """``given`` with all that an ascent moves changed."""

    def optional(part: Tensor | None) -> Tensor | None:
        return None if part is None else change(part)

    return replace(
        given,
        alpha=change(given.alpha),
        beta=optional(given.beta),
        mix=optional(given.mix),
        mu=optional(given.mu),
    )


def _groups(current: Multipliers, ascent: Ascent) -> list[tuple[Tensor, float]]:
    """Tensors to move, each with its rate."""
    groups = [(current.alpha, ascent.rate_alpha)] if current.alpha.numel() else []
    rates = (
        (current.beta, ascent.rate_beta),
        (current.mix, ascent.rate_mix),
        (current.mu, ascent.rate_beta),
    )
    return groups + [(part, rate) for part, rate in rates if part is not None]


def _project(current: Multipliers) -> None:
    """Back into the feasible set, in place: alpha in [0, 1], the others >= 0."""
    with torch.no_grad():
        current.alpha.copy_(known(current.alpha, 0.5).clamp_(0.0, 1.0))
        for part in (current.beta, current.mix, current.mu):
            if part is not None:
                part.copy_(known(part, 0.0).clamp_(min=0.0))
        if current.mix is not None:  # only its direction matters: its largest entry is kept at 1
            mix = current.mix
            mix.copy_(ratio(mix, mix.amax(dim=1, keepdim=True)))
