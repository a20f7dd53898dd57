"""Alpha-CROWN for the layers inside: each unstable neuron gets its own lower slopes in all earlier
layers.

Xu et al., "Fast and Complete" (2021) optimise intermediate bounds jointly with the final one; here
layers are taken in order, each against the bounds its predecessors already reached, so that a
neuron's ascent is a small problem of its own and rows of one layer form one batch. The ascent runs
in the guide network; the bound is then evaluated in the proof network with the slopes found.

Legend: ``S`` rows (a neuron from below or from above), ``*`` a node's shape.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from bitcrown.bounds.adam import Adam
from bitcrown.bounds.claims import known
from bitcrown.bounds.crown import Backward, minimum, relaxation_of
from bitcrown.bounds.interval import Bounds
from bitcrown.bounds.relaxations.registry import Relaxation, nonlinear_row
from bitcrown.bounds.subnetworks.receptive_field import View
from bitcrown.budget import Budget
from bitcrown.model.execute import Network
from bitcrown.model.graph import Node

_RATE, _DECAY = 0.25, 0.95
"""The ascent has ten steps: it begins with large ones."""


class LayerAscent:
    """Slopes for rows over one layer, found by ``iterations`` steps of gradient ascent in
    ``guide``.

    Once ``budget`` has expired the slopes that the rows have are kept: bounds get no worse, only no
    better.
    """

    def __init__(self, guide: Network, iterations: int, budget: Budget) -> None:
        self.guide, self.iterations, self.budget = guide, iterations, budget

    def relaxations(
        self,
        seeds: Mapping[str, Tensor],
        bounds: Bounds,
        nodes: list[Node],
        x_lower: Tensor,
        x_upper: Tensor,
        view: View | None,
    ) -> dict[str, Relaxation]:
        """Relaxations (dtype of ``bounds``) of ``nodes``, with slopes per row where a node has
        parameters.

        ``seeds`` holds ``[1, S, *]`` coefficients of the bounded rows, ``bounds`` those of all
        earlier nodes; with a ``view`` all of them belong to its network.
        """
        guide = self.guide if view is None else view.network(self.guide)
        dtype = guide.dtype
        low_precision = {
            name: (bounds[name][0].to(dtype), bounds[name][1].to(dtype))
            for node in nodes
            for name in node.inputs
        }
        rows = {name: seed.to(dtype) for name, seed in seeds.items()}
        count = next(iter(rows.values())).shape[1]
        alphas = {node.name: self._start(node, low_precision, count) for node in nodes}
        free = {name: alpha for name, alpha in alphas.items() if alpha is not None}
        best, found = {name: alpha.detach() for name, alpha in free.items()}, None
        adam = Adam([(alpha, _RATE) for alpha in free.values()], _DECAY)
        box = x_lower.to(dtype), x_upper.to(dtype)
        for step in range(self.iterations + 1 if free else 0):
            if self.budget.is_expired():
                break
            with torch.set_grad_enabled(step < self.iterations):  # what the last step led to counts
                relaxed = {
                    node.name: relaxation_of(node, low_precision, alphas[node.name])
                    for node in nodes
                }
                value = minimum(Backward(guide, relaxed).run(rows), *box)
            best, found = _better(best, found, free, value.detach())
            total = torch.where(torch.isfinite(value), value, torch.zeros_like(value)).sum()
            if not total.requires_grad:  # nothing is free on the way from these rows to the input
                break
            adam.step(torch.autograd.grad(total, list(free.values()), allow_unused=True))
            with torch.no_grad():
                for alpha in free.values():
                    alpha.copy_(known(alpha, 0.5).clamp_(0.0, 1.0))
        with torch.no_grad():
            wide = next(iter(bounds.values()))[0].dtype
            chosen = {name: alpha.to(wide) for name, alpha in best.items()}
            return {node.name: relaxation_of(node, bounds, chosen.get(node.name)) for node in nodes}

    def _start(self, node: Node, bounds: Bounds, count: int) -> Tensor | None:
        row = nonlinear_row(node.op)
        if row.alphas == 0 or row.default_alpha is None:
            return None
        lowers, uppers = [bounds[i][0] for i in node.inputs], [bounds[i][1] for i in node.inputs]
        start = row.default_alpha(node, lowers, uppers).unsqueeze(2)
        shape = (*start.shape[:2], count, *start.shape[3:])
        return start.expand(shape).clone().requires_grad_(True)


def _better(
    best: dict[str, Tensor], found: Tensor | None, free: dict[str, Tensor], value: Tensor
) -> tuple[dict[str, Tensor], Tensor]:
    """For each row that of the slopes ``best`` and ``free`` (``[k, B, S, *]``) by which it is
    bounded best, and its bound: ``found`` by ``best`` (None: not known), ``value [B, S]`` by
    ``free``. Few large steps often lead down, and a row's last step need not be its best."""
    if found is None:
        return {name: alpha.detach().clone() for name, alpha in free.items()}, value
    is_better = value > found
    chosen = {}
    for name, alpha in free.items():
        mask = is_better.reshape(1, *is_better.shape, *[1] * (alpha.ndim - 3))
        chosen[name] = torch.where(mask, alpha.detach(), best[name])
    return chosen, torch.maximum(found, value)
