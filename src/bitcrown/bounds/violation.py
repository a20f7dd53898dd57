"""Bounds of neurons at the points that violate: the rows of a violation in every neuron's own pass.

A search refutes violations; what it believes of inner neurons need not hold anywhere else. Let all
*premises* ``r_s(x) = C_s y + D_s x - rhs_s <= 0`` hold at the points that matter. For a neuron
``z``, a sign ``t`` in {-1, 1} and any weights ``w >= 0``, there

    t z  >=  t z + sum_s w_s r_s(x)  >=  min over the box of a line in x,

where the line comes from one backward pass that starts at the neuron with ``t`` and at the outputs
with ``w C`` (Kotha et al., "Provably Bounding Neural Network Preimages", 2023, section 3.2, there
called gamma). So the layers *behind* the neuron have a say in its bound. Any weights and any slopes
are sound; ascent looks for good ones, one evaluation in float64 with rounding error is the proof.

Passes may use what earlier ones have found, in any order: all of it holds at the same points. If
the bounds of one neuron cross, there is no such point.

Legend: ``K`` neurons, ``Q = 2 K`` bounded quantities (all neurons from below, then all from above),
``S`` premises, ``N`` neurons or slopes on the flat axes of ``Layout``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bitcrown.bounds.adam import Adam
from bitcrown.bounds.claims import known, least_margin, ratio
from bitcrown.bounds.crown import output_seeds
from bitcrown.bounds.interval import Bounds
from bitcrown.bounds.layout import Layout
from bitcrown.bounds.multipliers import Multipliers, base_relaxations
from bitcrown.bounds.relaxations.registry import Relaxation
from bitcrown.bounds.rounding import Scales
from bitcrown.bounds.rows import Rows, bound_lines, bound_rows
from bitcrown.budget import Budget
from bitcrown.model.execute import Network

_RATE_ALPHA, _RATE_WEIGHT, _DECAY = 0.2, 0.3, 0.97
_FIRST_EXPONENT = -2.0
"""Weights are ``exp`` of what is climbed times (width of the neuron / width of the premise): from a
small weight up and down over several powers of ten within twenty steps."""


@dataclass(frozen=True)
class Violation:
    """``premises`` (``C [1, S, m]`` over one box ``[1, n]``) hold at every point that matters, as
    do the ``bounds`` of ``network``'s nodes (``[1, *]``)."""

    network: Network
    layout: Layout
    premises: Rows
    bounds: Bounds

    def least(
        self,
        neurons: Tensor,
        alpha: Tensor,
        weight: Tensor,
        scales: Scales | None = None,
        base: dict[str, Relaxation] | None = None,
    ) -> Tensor:
        """Lower bounds ``[Q]`` of ``z`` and of ``-z`` for the ``neurons [K]`` (flat indices, all of
        one layer) with slopes ``alpha [Q, 1, N]`` and ``weight [Q, S]``: a proof with ``scales``, a
        guess without."""
        network = self.network
        backward = Multipliers(self.layout, alpha).backward(network, self.bounds, scales, base=base)
        gamma = 0.0 if scales is None else backward.gamma
        rows = self.premises
        goal = rows.mixed(weight)
        seeds = output_seeds(network, goal.C)
        name, seed = self._seed(neurons)
        seeds[name] = seeds[name] + seed if name in seeds else seed
        lines = backward.run(seeds)
        if goal.D is not None:
            lines = lines._replace(coefficient=lines.coefficient + goal.D)
        value = bound_lines(lines, goal, gamma)
        if scales is not None:
            outputs = torch.cat([scales[name].flatten() for name in network.graph.outputs])
            value = least_margin(value, rows.mixing_error(weight, outputs, gamma))
        return value[:, 0]

    def _seed(self, neurons: Tensor) -> tuple[str, Tensor]:
        """1 at each neuron, then -1 at each: ``[Q, 1, *]`` for their layer's node."""
        layout, count = self.layout, len(neurons)
        first = int(neurons[0])
        name, where = next(
            (name, where) for name, where in layout.neuron_at.items() if first < where.stop
        )
        seed = torch.zeros(
            2 * count, where.stop - where.start, dtype=self.network.dtype, device=neurons.device
        )
        place = torch.arange(count, device=neurons.device)
        seed[place, neurons - where.start] = 1
        seed[place + count, neurons - where.start] = -1
        return name, seed.reshape(2 * count, 1, *layout.shapes[name])

    def proved(
        self, neurons: Tensor, alpha: Tensor, weight: Tensor, scales: Scales, step: int
    ) -> tuple[Tensor, Tensor]:
        """Rigorous bounds ``low``, ``up`` ``[K]`` at the points that matter, for ``network`` in
        float64 and ``least``'s parameters, which need not be feasible: they are made so. ``step``
        quantities at most share a pass."""
        alpha = known(alpha, 0.5).clamp(0.0, 1.0).to(self.network.dtype)
        weight = known(weight, 0.0).clamp(min=0.0).to(self.network.dtype)
        count, parts = len(neurons), []
        with torch.no_grad():
            base = base_relaxations(self.layout, self.bounds)
            for part in torch.split(torch.arange(count, device=neurons.device), max(1, step // 2)):
                both = torch.cat([part, part + count])
                value = self.least(neurons[part], alpha[both], weight[both], scales, base)
                parts.append(value.reshape(2, -1))
        low, up = torch.cat(parts, dim=1)
        return low, -up

    def in_dtype(self, dtype: torch.dtype) -> Violation:
        bounds = {name: (low.to(dtype), up.to(dtype)) for name, (low, up) in self.bounds.items()}
        return replace(self, premises=self.premises.to(dtype), bounds=bounds)

    def widths(self) -> Tensor:
        """``[S]``: how far the premises' values may lie apart, for a start."""
        rows, layout = self.premises, self.layout
        both = replace(
            rows,
            C=torch.cat([rows.C, -rows.C], dim=1),
            D=None if rows.D is None else torch.cat([rows.D, -rows.D], dim=1),
            rhs=torch.zeros_like(rows.rhs).repeat(1, 2),
        )
        backward = Multipliers(layout, layout.default_alpha(self.bounds)[:, None]).backward(
            self.network, self.bounds
        )
        least = bound_rows(self.network, both, backward, 0.0)
        return -least.reshape(2, -1).sum(dim=0)


def climbed(
    violation: Violation, neurons: Tensor, steps: int, budget: Budget
) -> tuple[Tensor, Tensor]:
    """``alpha [Q, 1, N]`` and ``weight [Q, S]`` after ``steps`` of ascent for the ``neurons [K]``
    of one layer: guesses. Raises ``BudgetExpired``."""
    given = violation.in_dtype(violation.network.dtype)
    layout, count = given.layout, 2 * len(neurons)
    with torch.no_grad():
        low, up = (part[0, neurons] for part in layout.flat_bounds(given.bounds))
        scale = ratio((up - low).repeat(2).unsqueeze(1), given.widths())
        base = base_relaxations(layout, given.bounds)
        start = layout.default_alpha(given.bounds)
    alpha = start.expand(count, 1, -1).clone().requires_grad_(True)
    exponent = torch.full_like(scale, _FIRST_EXPONENT).requires_grad_(True)
    adam = Adam([(alpha, _RATE_ALPHA), (exponent, _RATE_WEIGHT)], _DECAY)
    for _ in range(steps):
        budget.check()
        value = given.least(neurons, alpha, scale * exponent.exp(), base=base)
        total = torch.where(torch.isfinite(value), value, 0.0).sum()
        if not total.requires_grad:
            break
        adam.step(torch.autograd.grad(total, [alpha, exponent], allow_unused=True))
        with torch.no_grad():
            alpha.copy_(known(alpha, 0.5).clamp_(0.0, 1.0))
            exponent.copy_(known(exponent, _FIRST_EXPONENT).clamp_(-30.0, 30.0))
    return alpha.detach(), (scale * exponent.exp()).detach()
