"""The free parameters of a bound, and the bound that they prove.

* *alpha*: the slopes of the relaxations (Xu et al., "Fast and Complete", 2021);
* *beta*: a multiplier for the sign of each split neuron (Wang et al., "Beta-CROWN", 2021);
* *mix*: how a domain's rows are mixed into one, where all of them must hold together;
* *mu*: a multiplier for each cut (``cuts``).

Every feasible value of them gives a valid bound. So they may be found by any means, in float32 and
without rounding analysis (``ascent``); ``proved_minimum`` then evaluates what was found, once, in
float64 and with rounding error.

Legend: ``B`` domains, ``S`` rows per domain, ``K`` cuts, ``N`` slopes or neurons on the flat axes
of ``Layout``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from bitcrown.bounds import rounding
from bitcrown.bounds.claims import least_margin
from bitcrown.bounds.crown import Backward, relaxation_of
from bitcrown.bounds.cuts import Cuts
from bitcrown.bounds.interval import Bounds
from bitcrown.bounds.layout import Layout
from bitcrown.bounds.relaxations.registry import Relaxation, nonlinear_row
from bitcrown.bounds.rows import Rows, bound_rows
from bitcrown.model.execute import Network


@dataclass(frozen=True)
class Multipliers:
    """``alpha [B, S, N_alpha]`` in [0, 1]; ``beta [B, N] >= 0`` for the signs ``split [B, N]`` in
    {-1, 0, 1}; ``mix [B, S] >= 0``; ``mu [B, K] >= 0`` for the rows of ``cuts``. What is None is
    not used."""

    layout: Layout
    alpha: Tensor
    beta: Tensor | None = None
    split: Tensor | None = None
    mix: Tensor | None = None
    cuts: Cuts | None = None
    mu: Tensor | None = None

    def backward(
        self,
        network: Network,
        bounds: Bounds,
        scales: rounding.Scales | None = None,
        record: dict[str, Tensor] | None = None,
        base: Mapping[str, Relaxation] | None = None,
    ) -> Backward:
        """A backward pass with these parameters; ``bounds`` already have the splits imposed.

        ``base`` are ``base_relaxations`` of the same bounds, to be given where many passes share
        them.
        """
        alpha = self.alpha.to(network.dtype)
        if self.mix is not None and alpha.shape[1] > 1:  # one mixed row needs one set of slopes
            alpha = alpha[:, :1]
        if base is None:
            base = base_relaxations(self.layout, bounds)
        relaxations = {node.name: base[node.name] for node in self.layout.capped}
        for node in self.layout.nodes:
            part = self.layout.alpha_of(node, alpha)
            if part is None:
                relaxations[node.name] = base[node.name]
            elif node.op == "Relu":
                relaxations[node.name] = _with_lower_slope(base[node.name], part[0])
            else:
                relaxations[node.name] = relaxation_of(node, bounds, part)
        betas = penalty = None
        if self.beta is not None and self.split is not None:
            signed = self.beta.to(network.dtype) * self.split.to(network.dtype)
            betas = self.layout.by_operand(signed)
        if self.cuts is not None and self.mu is not None:
            penalty = self.cuts.to(network.dtype).penalty(
                self.mu.to(network.dtype), self.layout, scales, rounding.gamma(network)
            )
        return Backward(network, relaxations, betas, scales, record, penalty)


def base_relaxations(layout: Layout, bounds: Bounds) -> dict[str, Relaxation]:
    """Relaxations that do not depend on alpha, and for ReLU the part of them that does not."""
    return {
        node.name: relaxation_of(node, bounds)
        for node in layout.nodes + layout.capped
        if node.op == "Relu" or nonlinear_row(node.op).alphas == 0
    }


def _with_lower_slope(base: Relaxation, alpha: Tensor) -> Relaxation:
    """ReLU with lower slope ``alpha`` where it is unstable (where its upper line has an
    intercept)."""
    slope = torch.where(base.upper_intercept > 0, alpha, base.lower_slopes[0])
    return base._replace(lower_slopes=(slope,))


def proved_minimum(
    network: Network, rows: Rows, bounds: Bounds, scales: rounding.Scales, multipliers: Multipliers
) -> Tensor:
    """Rigorous lower bounds ``[B, S]`` of the rows, or ``[B, 1]`` of their mixture (float64
    network; see ``rounding``). Cuts must be given in the network's own precision."""
    with torch.no_grad():
        split = multipliers.layout.split_bounds(bounds, multipliers.split)
        backward = multipliers.backward(network, split, scales)
        rows = rows.to(network.dtype)
        if multipliers.mix is None:
            return bound_rows(network, rows, backward, backward.gamma)
        mix = multipliers.mix.to(network.dtype)
        outputs = torch.cat([scales[name].flatten() for name in network.graph.outputs])
        value = bound_rows(network, rows.mixed(mix), backward, backward.gamma)
        return least_margin(value, rows.mixing_error(mix, outputs, backward.gamma))
