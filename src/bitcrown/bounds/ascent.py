"""Choosing the free parameters of a bound (``multipliers``) by gradient ascent.

The bound is concave in beta, mu and mix and piecewise smooth in alpha, so a few tens of steps with
decaying rates get most of what there is to get. Nothing here is rounded with care: what is found is
proved afterwards.

Of the children of a split many are done at once, or after a step. Those leave the batch as soon as
they are enough to pay for copying the rest.

Legend: ``B`` domains, ``S`` rows per domain.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bitcrown.bounds.adam import Adam
from bitcrown.bounds.claims import known, ratio
from bitcrown.bounds.interval import Bounds
from bitcrown.bounds.multipliers import Multipliers, base_relaxations
from bitcrown.bounds.relaxations.registry import Relaxation
from bitcrown.bounds.rows import Rows, bound_rows
from bitcrown.bounds.stride import Stride
from bitcrown.budget import Budget
from bitcrown.model.execute import Network


@dataclass(frozen=True)
class Ascent:
    """How to climb; ``rate_beta`` is that of mu, too. ``decay`` multiplies all rates after every
    iteration, and ``stride`` all of them, where there is one, which learns from the ascent."""

    iterations: int
    rate_alpha: float = 0.1
    rate_beta: float = 0.05
    rate_mix: float = 0.1
    decay: float = 0.98
    stride: Stride | None = None


_IDLE_RISE, _IDLE_STEPS = 0.002, 2
"""Ascents of a tree's children end with so many steps that raise their bounds by less than this
share of their distance to zero: the next split brings more."""
_DONE = 0.125
"""Share of a batch that must be done before the rest goes on alone."""


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

    A domain is done once one of its rows exceeds ``target``; the ascent ends when all are. With
    ``start.mix`` all rows of a domain are bounded as one mixture of them. Raises ``BudgetExpired``
    as soon as ``budget`` is spent.
    """
    climb, stride = _begun(network, rows, bounds, start, ascent), ascent.stride
    base = base_relaxations(start.layout, climb.bounds)  # the same in every iteration
    finished: list[_Found] = []
    first, factors = None, climb.optimiser.scale
    for iteration in range(ascent.iterations):
        if budget is not None:
            budget.check()
        value = climb.bound(network, base)
        first = value.detach() if first is None else first
        # (At most ``target``, so neither NaN nor infinite above.)
        open_ = (value.amax(dim=1, keepdim=True) <= target) & (value > -torch.inf)
        left = open_.any(dim=1)
        count = climb.count(left)
        if not climb.optimiser.groups or iteration + 1 == ascent.iterations or not count:
            break
        total = torch.where(open_, value, torch.zeros_like(value)).sum()
        if not total.requires_grad:  # nothing that is free lies on the way from rows to inputs
            break
        if stride is not None and climb.idle == _IDLE_STEPS:
            break
        climb.step(total)
        if count <= (1.0 - _DONE) * len(left):
            finished.append(climb.found((~left).nonzero().flatten()))
            climb = climb.of(left.nonzero().flatten(), ascent)
            base = base_relaxations(start.layout, climb.bounds)
    if climb.best is None:
        return _each(climb.current, Tensor.detach), climb.rows.rhs
    parts = finished + [(climb.place, *climb.best)]
    found, value = parts[0][1:] if len(parts) == 1 else _together(start, parts)
    if stride is not None and factors is not None and first is not None:
        stride.learn(factors, first.amax(dim=1), value.amax(dim=1))
    return found, value


def _begun(
    network: Network, rows: Rows, bounds: Bounds, start: Multipliers, ascent: Ascent
) -> _Climb:
    """All domains before their first step, in the type of ``network``."""
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
    every = torch.arange(len(current.alpha), device=current.alpha.device)
    factors = None if ascent.stride is None else ascent.stride.factors(current.alpha)
    optimiser = Adam(_groups(current, ascent), ascent.decay, factors)
    return _Climb(every, rows, bounds, current, optimiser)


_Found = tuple[Tensor, Multipliers, Tensor]
"""Places in a batch, and what was found for the domains there."""


@dataclass
class _Climb:
    """Domains that climb together: their ``place [B]`` in the whole batch, their ``rows`` and
    ``bounds``, the ``current`` multipliers, which ``optimiser`` moves, and the ``best`` so far."""

    place: Tensor
    rows: Rows
    bounds: Bounds
    current: Multipliers
    optimiser: Adam
    best: tuple[Multipliers, Tensor] | None = None
    reached: Tensor | None = None
    idle: int = 0

    def count(self, open_: Tensor) -> int:
        """How many are ``open_ [B]``, and whether the last step has raised their bounds by next to
        nothing."""
        assert self.best is not None
        value = known(self.best[1].amax(dim=1), 0.0).double()
        before, self.reached = self.reached, value
        rise = value if before is None else value - before
        sums = [
            torch.where(open_, part, 0.0).sum() for part in (torch.ones_like(value), rise, value)
        ]
        count, gained, distance = torch.stack(sums).tolist()  # once for all: a device makes us wait
        if before is not None:
            self.idle = 0 if gained > -_IDLE_RISE * distance else self.idle + 1
        return int(count)

    def bound(self, network: Network, base: Mapping[str, Relaxation]) -> Tensor:
        """Bounds ``[B, S]`` with the current multipliers, which are kept where they are best."""
        current = self.current
        goal = self.rows if current.mix is None else self.rows.mixed(current.mix)
        value = bound_rows(network, goal, current.backward(network, self.bounds, base=base), 0.0)
        self.best = _better(self.best, current, value.detach())
        return value

    def step(self, total: Tensor) -> None:
        """Move what is free along the gradient of ``total``."""
        free = [tensor for tensor, _ in self.optimiser.groups]
        self.optimiser.step(torch.autograd.grad(total, free, allow_unused=True))
        _project(self.current)

    def found(self, index: Tensor) -> _Found:
        """The best for the domains at ``index``."""
        assert self.best is not None
        best, value = self.best
        return self.place[index], _picked(best, index, len(self.place)), value[index]

    def of(self, index: Tensor, ascent: Ascent) -> _Climb:
        """The domains at ``index``, in the middle of ``ascent``."""
        rows, count = self.rows, len(self.place)

        def pick(part: Tensor) -> Tensor:
            return part[index] if len(part) == count else part  # (all share it)

        place, best, value = self.found(index)
        current = _each(
            _picked(self.current, index, count), lambda part: part.detach().requires_grad_(True)
        )
        d = None if rows.D is None else pick(rows.D)
        return _Climb(
            place,
            Rows(pick(rows.C), d, pick(rows.rhs), pick(rows.x_lower), pick(rows.x_upper)),
            {name: (pick(low), pick(up)) for name, (low, up) in self.bounds.items()},
            current,
            self.optimiser.of(_groups(current, ascent), index),
            (best, value),
            None if self.reached is None else self.reached[index],
            self.idle,
        )


def _picked(given: Multipliers, index: Tensor, count: int) -> Multipliers:
    """``given`` for ``count`` domains, at ``index`` of them."""
    split = given.split
    if split is not None and len(split) == count:
        split = split[index]
    return replace(_each(given, lambda part: part[index]), split=split)


def _together(start: Multipliers, found: list[_Found]) -> tuple[Multipliers, Tensor]:
    """All that was ``found``, in the order of ``start``."""
    places, parts, values = zip(*found, strict=True)
    order = torch.cat(places).argsort()

    def joined(name: str) -> Tensor | None:
        each = [getattr(part, name) for part in parts]
        return None if each[0] is None else torch.cat(each)[order]

    alpha = joined("alpha")
    assert alpha is not None
    best = replace(start, alpha=alpha, beta=joined("beta"), mix=joined("mix"), mu=joined("mu"))
    return best, torch.cat(values)[order]


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
