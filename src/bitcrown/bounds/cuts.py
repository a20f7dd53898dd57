"""Cuts: linear inequalities ``G z <= g`` over neurons that hold at every point of a domain.

They enter a bound as Lagrange multipliers ``mu >= 0``, as the signs of split neurons do: on the
domain ``<mu, G z - g>`` is not positive, so for every bounded quantity ``q``

    q  >=  q + <mu, G z - g>,

and whatever bounds the right side from below bounds ``q``. A backward pass therefore starts with
coefficients ``mu G`` at the neurons, beside those of ``q``, and with the constant ``-<mu, g>``
(Zhang et al., "General Cutting Planes for Bound-Propagation-Based Neural Network Verification",
2022, section 3.1). A split ``s z_j >= 0`` is the cut with the one entry ``-s`` and ``g = 0``; its
multiplier is beta. Any ``mu >= 0`` gives a valid bound; ``mu = 0`` gives that without cuts.

Rounding: ``mu G`` is a sum of ``K`` products, off by at most ``gamma_K mu |G|`` and one smallest
normal number for each product that is not zero; what it is off by multiplies ``z``, of which the
pass knows magnitudes (``rounding``). Likewise ``<mu, g>``.

Legend: ``B`` domains, ``K`` cuts, ``S`` rows, ``N`` neurons, ``*`` a node's shape.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bitcrown.bounds import rounding
from bitcrown.bounds.claims import known
from bitcrown.bounds.crown import Penalty
from bitcrown.bounds.layout import Layout


@dataclass(frozen=True)
class Cuts:
    """``coefficient [K, N]`` and ``bound [K]``, the same for all domains, or ``[B, K, N]`` and
    ``[B, K]``.

    Whoever makes them answers for their validity: for ``coefficient z <= bound`` in real arithmetic
    with the numbers as stored, at every point of the domain. A row that holds a number that is not
    finite says nothing, and has no effect.
    """

    coefficient: Tensor
    bound: Tensor

    def to(self, dtype: torch.dtype) -> Cuts:
        """The same rows rounded, as a guide reads them; a proof reads them as they are."""
        return Cuts(self.coefficient.to(dtype), self.bound.to(dtype))

    def restricted(self, neurons: Tensor, low: Tensor, up: Tensor) -> Cuts:
        """The same cuts over ``neurons [U]`` alone, the others at their least terms within
        ``low``/``up [1, N]``: valid as well, but for rounding, so for a guide."""
        g = self.coefficient
        terms = torch.where(g == 0, 0.0, torch.minimum(g * low, g * up))
        rest = terms.sum(dim=-1) - terms[..., neurons].sum(dim=-1)
        return Cuts(g[..., neurons], self.bound - rest)

    def penalty(
        self, mu: Tensor, layout: Layout, scales: rounding.Scales | None, gamma: float
    ) -> Penalty:
        """``<mu, G z - g>`` for multipliers ``mu [B, K]``; those that are no positive numbers count
        as 0.

        With ``scales`` its rounding error is bounded, without it is 0.
        """
        # What a broken row or multiplier would have said is left out: 0 z <= 0 holds everywhere.
        is_row = torch.isfinite(self.coefficient).all(dim=-1) & torch.isfinite(self.bound)
        g = torch.where(is_row.unsqueeze(-1), self.coefficient, 0.0)
        weight = torch.where(is_row, known(mu, 0.0).clamp(min=0.0), 0.0)
        coefficient = (weight.unsqueeze(1) @ g).squeeze(1)
        bound = torch.where(is_row, self.bound, 0.0)
        constant = (weight * bound).sum(dim=1, keepdim=True).neg()
        error = None
        if scales is not None:
            error = _rounding_error(weight, g, bound, layout.magnitudes(scales), gamma)
        return Penalty(layout.by_operand(coefficient), constant, error)


def _rounding_error(
    weight: Tensor, g: Tensor, bound: Tensor, magnitude: Tensor, gamma: float
) -> Tensor:
    """``[B, 1]``: how far ``<fl(mu G), z> - fl(<mu, g>)`` may be from the exact value, for
    ``|z| <= magnitude [N]``; exactly 0 where no multiplier is positive."""
    # The network's gamma covers sums of at least 64 terms: as many of it as the sum of K products
    # needs, and one more for what is added to these coefficients and this constant later.
    factor = gamma * (1.0 + weight.shape[1] / 64)
    lost = rounding.underflow(factor, weight.dtype)
    is_used = (weight > 0).to(weight.dtype).unsqueeze(1)
    off = factor * (weight.unsqueeze(1) @ g.abs()) + lost * (is_used @ (g != 0).to(g.dtype))
    # A neuron without bound costs only the cuts that it is in: 0 times infinity is nothing here.
    reached = torch.where(off == 0, 0.0, off * magnitude).sum(dim=2)
    constant = factor * (weight * bound.abs()).sum(dim=1, keepdim=True) + lost * is_used.sum(dim=2)
    return reached + constant
