"""What is bounded: rows ``C y + D x - rhs`` over the boxes of a batch of domains.

A domain violates where *all* its rows are at most zero, so it is excluded once one row, or one
mixture of rows with weights >= 0, is positive on its whole box.

Legend: ``B`` domains, ``S`` rows per domain, ``m`` flat outputs, ``n`` flat inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bitcrown.bounds import rounding
from bitcrown.bounds.claims import known, least_margin
from bitcrown.bounds.crown import Backward, Lines, minimum, output_seeds
from bitcrown.bounds.interval import Bounds
from bitcrown.model.execute import Network, elements


@dataclass(frozen=True)
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

    def of_cases(self, case: Tensor) -> Rows:
        """The rows of ``case [B]``, where ``self`` has one row of tensors per case, and one box
        ``[1, n]`` for all or one for each."""
        d = None if self.D is None else self.D[case]
        box = (
            end.expand(len(case), -1) if len(end) == 1 else end[case]
            for end in (self.x_lower, self.x_upper)
        )
        return Rows(self.C[case], d, self.rhs[case], *box)

    def outputs(self) -> Tensor:
        """Whether any row reads an output: ``[m]``, booleans."""
        return (self.C != 0).flatten(0, 1).any(0)

    def mixed(self, mix: Tensor) -> Rows:
        """One row per domain, ``sum_s mix_s row_s`` with ``mix [B, S] >= 0``: it must hold where
        all rows hold."""
        weight = torch.where(torch.isfinite(self.rhs), mix, 0.0)  # padding has no weight
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
        # Absolute terms of each row: |C| |y| + |rhs| + |D| |x|, of the outputs that have a bound.
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
        # gamma covers sums of at least 64 terms: of as many rows, so more rows need more of it
        error = torch.where(weight == 0, 0.0, weight * size).sum(1, keepdim=True)
        return gamma * max(1.0, len(self.C[0]) / 64) * error + lost.reshape(-1, 1)


def row_lines(network: Network, rows: Rows, backward: Backward) -> Lines:
    """Linear lower bounds of ``C y + D x``."""
    lines = backward.run(output_seeds(network, rows.C))
    return lines if rows.D is None else lines._replace(coefficient=lines.coefficient + rows.D)


def interval_rows(rows: Rows, lower: Tensor, upper: Tensor, gamma: float) -> Tensor:
    """Least values ``[B, S]`` of ``C y + D x`` for outputs in ``[lower, upper]``, ``[B, m]``.

    A row is linear in ``(y, x)``, which lie in a box; ``minimum`` is exact there up to a sum of
    ``m + n`` products, whose rounding ``gamma`` must cover. Where the last operator is a staircase
    this sees its steps, which no line does.
    """
    coefficient = rows.C
    if rows.D is not None:
        lower, upper = torch.cat([lower, rows.x_lower], 1), torch.cat([upper, rows.x_upper], 1)
        coefficient = torch.cat([coefficient, rows.D], dim=2)
    zero = coefficient.new_zeros(coefficient.shape[:2])
    unit = torch.finfo(lower.dtype).eps
    gamma = max(gamma, 2 * (coefficient.shape[2] + 2) * unit)
    return minimum(Lines(coefficient, zero, zero), lower, upper, gamma)


def flat_outputs(network: Network, bounds: Bounds) -> tuple[Tensor, Tensor]:
    """Both ends ``[B, m]`` of all outputs."""
    names = network.graph.outputs
    count = max(len(bounds[name][0]) for name in names)
    ends = [
        torch.cat([elements(bounds[name][k], 1).expand(count, -1) for name in names], dim=1)
        for k in (0, 1)
    ]
    return ends[0], ends[1]


def bound_rows(network: Network, rows: Rows, backward: Backward, gamma: float) -> Tensor:
    """Lower bounds of ``C y + D x - rhs``: ``[B, S]``."""
    return bound_lines(row_lines(network, rows, backward), rows, gamma)


def bound_lines(lines: Lines, rows: Rows, gamma: float) -> Tensor:
    """Least values of row lines over the boxes, minus ``rhs``: ``[B, S]``."""
    value = minimum(lines, rows.x_lower, rows.x_upper, gamma)
    return least_margin(value, rows.rhs) if gamma else value - rows.rhs
