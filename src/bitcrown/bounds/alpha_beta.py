"""Choosing the free parameters of a bound by gradient ascent: alpha (relaxations) and beta (split
multipliers).

Xu et al., "Fast and Complete" (2021) for alpha; Wang et al., "Beta-CROWN" (2021) for beta. Every
feasible value of the parameters gives a valid bound, so the ascent may run in float32 without
rounding analysis; whatever it finds is then evaluated once, in float64 and with rounding error, by
``proved_minimum``.

Legend: ``B`` domains, ``S`` rows per domain, ``N`` parameters: one flat axis over all nonlinear
nodes, laid out by ``Layout``. ``alpha [B, S, N_alpha]``, ``beta [B, N_relu]`` (>= 0),
``split [B, N_relu]`` in {-1, 0, 1}.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bitcrown.bounds import rounding
from bitcrown.bounds.claims import known, least_margin, ratio
from bitcrown.bounds.crown import Backward, Lines, minimum, output_seeds, relaxation_of
from bitcrown.bounds.interval import Bounds
from bitcrown.bounds.relaxations.registry import Relaxation, nonlinear_row
from bitcrown.bounds.rounding import Scales
from bitcrown.model.execute import Network, elements
from bitcrown.model.graph import Node


class Layout:
    """Where each nonlinear node's alphas, and each ReLU operand's neurons, stand on the flat
    axes."""

    def __init__(self, network: Network) -> None:
        self.nodes: list[Node] = []
        self.alpha_at: dict[str, slice] = {}
        self.neuron_at: dict[str, slice] = {}
        alpha_end = neuron_end = 0
        for node in network.graph.nodes.values():
            if node.name in network.graph.inputs or network.rows[node.name].is_affine:
                continue
            self.nodes.append(node)
            width = nonlinear_row(node.op).alphas * node.size
            self.alpha_at[node.name] = slice(alpha_end, alpha_end + width)
            alpha_end += width
            if node.op == "Relu" and node.inputs[0] not in self.neuron_at:
                self.neuron_at[node.inputs[0]] = slice(neuron_end, neuron_end + node.size)
                neuron_end += node.size
        self.n_alphas, self.n_neurons = alpha_end, neuron_end
        self.operands = {name for node in self.nodes for name in node.inputs}

    def alpha_of(self, node: Node, alpha: Tensor) -> Tensor | None:
        """Part of ``alpha [B, S, N]`` for one node as ``[alphas, B, S, *]``."""
        count = nonlinear_row(node.op).alphas
        if count == 0:
            return None
        part = alpha[:, :, self.alpha_at[node.name]]
        return part.reshape(*alpha.shape[:2], count, *node.shape).movedim(2, 0)

    def default_alpha(self, bounds: Bounds) -> Tensor:
        """``[B, N_alpha]``: the parameters that reproduce the default relaxations."""
        parts = []
        for node in self.nodes:
            row = nonlinear_row(node.op)
            if row.alphas == 0 or row.default_alpha is None:
                continue
            start = row.default_alpha(
                node, [bounds[i][0] for i in node.inputs], [bounds[i][1] for i in node.inputs]
            )
            parts.append(start.movedim(0, 1).flatten(1))
        if not parts:
            any_bound = next(iter(bounds.values()))[0]
            return any_bound.new_zeros(any_bound.shape[0], 0)
        return torch.cat(parts, dim=1)

    def split_bounds(self, bounds: Bounds, split: Tensor | None) -> Bounds:
        """``bounds`` (``[1, *]`` or ``[B, *]``) with the signs of ``split [B, N]`` imposed on ReLU
        operands."""
        if split is None:
            return bounds
        result = dict(bounds)
        for name, where in self.neuron_at.items():
            low, up = bounds[name]
            sign = split[:, where].reshape(-1, *low.shape[1:])
            result[name] = (
                torch.where(sign > 0, low.clamp(min=0), low),
                torch.where(sign < 0, up.clamp(max=0), up),
            )
        return result

    def gathered(self, bounds: Bounds, index: Tensor) -> Bounds:
        """Bounds of the domains ``index [B]``; those that all domains share stay as they are."""
        return {
            name: pair if pair[0].shape[0] == 1 else (pair[0][index], pair[1][index])
            for name, pair in bounds.items()
            if name in self.operands
        }

    def flat_bounds(self, bounds: Bounds) -> tuple[Tensor, Tensor]:
        """Bounds of all ReLU operands on the flat axis: two ``[B, N]``."""
        rows = max([bounds[name][0].shape[0] for name in self.neuron_at], default=1)
        none = next(iter(bounds.values()))[0].new_zeros(rows, 0)  # there may be no neuron at all
        low = [elements(bounds[name][0], 1).expand(rows, -1) for name in self.neuron_at]
        up = [elements(bounds[name][1], 1).expand(rows, -1) for name in self.neuron_at]
        return torch.cat([none, *low], dim=1), torch.cat([none, *up], dim=1)

    def with_flat_bounds(self, bounds: Bounds, low: Tensor, up: Tensor) -> Bounds:
        """``bounds`` with those of the ReLU operands replaced by ``low``/``up [B, N]``."""
        result = dict(bounds)
        for name, where in self.neuron_at.items():
            shape = bounds[name][0].shape[1:]
            result[name] = (low[:, where].reshape(-1, *shape), up[:, where].reshape(-1, *shape))
        return result

    def signed_betas(self, bounds: Bounds, beta: Tensor, split: Tensor) -> dict[str, Tensor]:
        """``beta * s`` per ReLU operand as ``[B, 1, *]``."""
        signed = beta * split
        return {
            name: signed[:, where].reshape(-1, 1, *bounds[name][0].shape[1:])
            for name, where in self.neuron_at.items()
        }


@dataclass
class Rows:
    """What is bounded: ``C [B, S, m]``, ``D [B, S, n]`` or None, ``rhs [B, S]`` over the boxes
    ``[B, n]``."""

    C: Tensor
    D: Tensor | None
    rhs: Tensor
    x_lower: Tensor
    x_upper: Tensor

    def to(self, dtype: torch.dtype) -> Rows:
        d = None if self.D is None else self.D.to(dtype)
        return Rows(
            self.C.to(dtype), d, self.rhs.to(dtype), self.x_lower.to(dtype), self.x_upper.to(dtype)
        )

    def mixed(self, mix: Tensor) -> Rows:
        """One row per domain, ``sum_s mix_s row_s`` with ``mix [B, S] >= 0``: it must hold where
        all rows hold."""
        weight = torch.where(torch.isfinite(self.rhs), mix, 0.0)
        c = (weight.unsqueeze(2) * self.C).sum(1, keepdim=True)
        d = None if self.D is None else (weight.unsqueeze(2) * self.D).sum(1, keepdim=True)
        rhs = (weight * known(self.rhs, 0.0)).sum(1, keepdim=True)
        return Rows(c, d, rhs, self.x_lower, self.x_upper)

    def mixing_error(self, mix: Tensor, outputs: Tensor, gamma: float) -> Tensor:
        """Rounding error ``[B, 1]`` of ``mixed``; ``outputs [m]`` bounds the outputs in absolute
        value.

        Infinite where a row that has weight reads an output without bound; such an output costs no
        other row anything.
        """
        weight = torch.where(torch.isfinite(self.rhs), mix, 0.0)
        is_bounded = torch.isfinite(outputs)
        size = self.C.abs() @ torch.where(is_bounded, outputs, 0.0) + known(self.rhs, 0.0).abs()
        unbounded = (self.C[:, :, ~is_bounded] != 0).any(dim=2)
        terms = outputs.numel()
        if self.D is not None:
            reach = torch.maximum(self.x_lower.abs(), self.x_upper.abs())
            size = size + (self.D.abs() @ reach.unsqueeze(2)).squeeze(2)
            terms += reach.shape[1]
        size = torch.where(unbounded, torch.inf, size)
        # underflow costs each coefficient, and then each product with it, one smallest normal
        # number
        reached = torch.where(is_bounded, outputs, 0.0).sum() + terms
        lost = rounding.underflow(gamma, outputs.dtype) * (
            reached if self.D is None else reached + reach.sum(1)
        )
        error = torch.where(weight == 0, 0.0, weight * size).sum(1, keepdim=True)
        return gamma * max(1.0, len(self.C[0]) / 64) * error + lost.reshape(-1, 1)


def row_lines(network: Network, rows: Rows, backward: Backward) -> Lines:
    """Linear lower bounds of ``C y + D x``."""
    lines = backward.run(output_seeds(network, rows.C))
    return lines if rows.D is None else lines._replace(coefficient=lines.coefficient + rows.D)


def bound_rows(network: Network, rows: Rows, backward: Backward, gamma: float) -> Tensor:
    """Lower bounds of ``C y + D x - rhs``: ``[B, S]``."""
    return bound_lines(row_lines(network, rows, backward), rows, gamma)


def bound_lines(lines: Lines, rows: Rows, gamma: float) -> Tensor:
    """Least values of row lines over the boxes, minus ``rhs``: ``[B, S]``."""
    value = minimum(lines, rows.x_lower, rows.x_upper, gamma)
    return least_margin(value, rows.rhs) if gamma else value - rows.rhs


def base_relaxations(layout: Layout, bounds: Bounds) -> dict[str, Relaxation]:
    """Relaxations that do not depend on alpha, and for ReLU the part of them that does not."""
    return {
        node.name: relaxation_of(node, bounds)
        for node in layout.nodes
        if node.op == "Relu" or nonlinear_row(node.op).alphas == 0
    }


def _with_lower_slope(base: Relaxation, alpha: Tensor) -> Relaxation:
    """ReLU with lower slope ``alpha`` where it is unstable (where its upper line has an
    intercept)."""
    slope = torch.where(base.upper_intercept > 0, alpha, base.lower_slopes[0])
    return base._replace(lower_slopes=(slope,))


class Parameters:
    """The parameters of a batch of domains and how to bound with them."""

    def __init__(
        self,
        layout: Layout,
        alpha: Tensor,
        beta: Tensor | None,
        split: Tensor | None,
        mix: Tensor | None = None,
    ) -> None:
        self.layout, self.alpha, self.beta, self.split, self.mix = layout, alpha, beta, split, mix

    def backward(
        self,
        network: Network,
        bounds: Bounds,
        scales: Scales | None = None,
        record: dict[str, Tensor] | None = None,
        base: Mapping[str, Relaxation] | None = None,
    ) -> Backward:
        """A backward pass with these parameters; ``bounds`` already have the splits imposed.

        ``base`` are ``base_relaxations`` of the same bounds, to be given where many passes share
        them.
        """
        alpha = self.alpha.to(network.dtype)
        if self.mix is not None and alpha.shape[1] > 1:
            alpha = alpha[:, :1]
        if base is None:
            base = base_relaxations(self.layout, bounds)
        relaxations: dict[str, Relaxation] = {}
        for node in self.layout.nodes:
            part = self.layout.alpha_of(node, alpha)
            if part is None:
                relaxations[node.name] = base[node.name]
            elif node.op == "Relu":
                relaxations[node.name] = _with_lower_slope(base[node.name], part[0])
            else:
                relaxations[node.name] = relaxation_of(node, bounds, part)
        betas = None
        if self.beta is not None and self.split is not None:
            betas = self.layout.signed_betas(
                bounds, self.beta.to(network.dtype), self.split.to(network.dtype)
            )
        return Backward(network, relaxations, betas, scales, record)


def proved_minimum(
    network: Network,
    rows: Rows,
    bounds: Bounds,
    scales: Scales,
    parameters: Parameters,
    record: dict[str, Tensor] | None = None,
) -> Tensor:
    """Rigorous lower bounds ``[B, S]`` of the rows (float64 network; see ``rounding``)."""
    with torch.no_grad():
        split = parameters.layout.split_bounds(bounds, parameters.split)
        backward = parameters.backward(network, split, scales, record)
        rows = rows.to(network.dtype)
        if parameters.mix is None:
            return bound_rows(network, rows, backward, backward.gamma)
        mix = parameters.mix.to(network.dtype)
        outputs = torch.cat([scales[name].flatten() for name in network.graph.outputs])
        value = bound_rows(network, rows.mixed(mix), backward, backward.gamma)
        return least_margin(value, rows.mixing_error(mix, outputs, backward.gamma))


class Adam:
    """Kingma and Ba (2015), ascending. Own code because ``torch.optim`` costs a second of imports
    at first use."""

    def __init__(
        self,
        groups: list[tuple[Tensor, float]],
        decay: float,
        betas: tuple[float, float] = (0.9, 0.99),
    ) -> None:
        self.groups, self.decay, self.betas, self.steps = groups, decay, betas, 0
        self.moments = [
            (torch.zeros_like(tensor), torch.zeros_like(tensor)) for tensor, _ in groups
        ]

    def step(self, gradients: Sequence[Tensor | None]) -> None:
        """One step up along ``gradients``; entries without gradient or with NaN stay where they
        are."""
        self.steps += 1
        first, second = self.betas
        correction = (1 - second**self.steps) ** 0.5 / (1 - first**self.steps)
        with torch.no_grad():
            for (tensor, rate), (mean, square), gradient in zip(
                self.groups, self.moments, gradients, strict=True
            ):
                if gradient is None:
                    continue
                gradient = known(gradient, 0.0)
                mean.lerp_(gradient, 1 - first)
                square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
                step = rate * correction * self.decay ** (self.steps - 1)
                tensor.addcdiv_(mean, square.sqrt().add_(1e-12), value=step)


@dataclass(frozen=True)
class Ascent:
    """How to climb. ``decay`` multiplies both rates after every iteration."""

    iterations: int
    rate_alpha: float = 0.1
    rate_beta: float = 0.05
    rate_mix: float = 0.1
    decay: float = 0.98


def ascend(
    network: Network,
    rows: Rows,
    bounds: Bounds,
    parameters: Parameters,
    ascent: Ascent,
    target: float = 0.0,
) -> tuple[Parameters, Tensor]:
    """Improve ``parameters`` for the rows; returns them and the last (not rigorous) bounds
    ``[B, S]``.

    A domain counts as done once one of its rows exceeds ``target``; it then stops contributing to
    the gradient, and the ascent ends when all are done. With ``parameters.mix`` all rows of a
    domain are bounded as one mixture of them.
    """
    rows = rows.to(network.dtype)
    with torch.no_grad():
        bounds = {
            name: (low.to(network.dtype), up.to(network.dtype))
            for name, (low, up) in bounds.items()
        }
        bounds = parameters.layout.split_bounds(bounds, parameters.split)
    alpha = parameters.alpha.to(network.dtype).detach().clone().requires_grad_(True)
    groups = [(alpha, ascent.rate_alpha)] if alpha.numel() else []
    beta = parameters.beta
    if beta is not None:
        beta = beta.to(network.dtype).detach().clone().requires_grad_(True)
        groups.append((beta, ascent.rate_beta))
    mix = parameters.mix
    if mix is not None:
        mix = mix.to(network.dtype).detach().clone().requires_grad_(True)
        groups.append((mix, ascent.rate_mix))
    current = Parameters(parameters.layout, alpha, beta, parameters.split, mix)
    base = base_relaxations(parameters.layout, bounds)
    optimiser = Adam(groups, ascent.decay)
    value = rows.rhs
    for iteration in range(ascent.iterations):
        goal = rows if mix is None else rows.mixed(mix)
        value = bound_rows(network, goal, current.backward(network, bounds, base=base), 0.0)
        finite = torch.isfinite(value)
        open_ = (value.amax(dim=1, keepdim=True) <= target) & finite
        if not groups or iteration + 1 == ascent.iterations or not open_.any():
            break
        total = torch.where(open_, value, torch.zeros_like(value)).sum()
        if not total.requires_grad:
            break
        optimiser.step(
            torch.autograd.grad(total, [tensor for tensor, _ in groups], allow_unused=True)
        )
        with torch.no_grad():
            alpha.copy_(known(alpha, 0.5).clamp_(0.0, 1.0))
            if beta is not None:
                beta.copy_(known(beta, 0.0).clamp_(min=0.0))
            if mix is not None:  # only the direction of mix matters: keep its largest entry at 1
                mix.copy_(known(mix, 0.0).clamp_(min=0.0))
                mix.copy_(ratio(mix, mix.amax(dim=1, keepdim=True)))
    found = [None if part is None else part.detach() for part in (beta, mix)]
    return Parameters(
        parameters.layout, alpha.detach(), found[0], parameters.split, found[1]
    ), value.detach()
