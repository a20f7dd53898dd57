"""Open subproblems of the range split: a case, and narrower ranges for a few operands.

An *operand* is one element of a tensor that a nonlinear node reads, or the value of a staircase:
cut between two integers, that leaves both halves without the step there. A cut of what the
staircase reads does not, since a step belongs to one side. A domain lists the ranges that its
splits gave to operands, in the order of the splits; all others keep the root's. The list is as long
as the tree is deep, the axis of all operands may be a thousand times longer.

Legend: ``B`` domains, ``S`` rows per domain, ``N`` operands on their flat axis, ``D`` splits, ``C``
candidates, ``*`` a node's shape.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bitcrown.bounds import claims
from bitcrown.bounds.interval import Bounds
from bitcrown.bounds.layout import Layout
from bitcrown.model.execute import elements
from bitcrown.search.neurons.domains import Domains

STAIRCASES = ("Round", "Floor", "Ceil")
"""Operators that are split by their own values, which are integers."""


class OperandAxis:
    """Where each operand of a nonlinear node stands on the flat axis, and each staircase."""

    def __init__(self, layout: Layout, bounds: Bounds) -> None:
        self.at: dict[str, slice] = {}
        end = 0
        self.stairs = {node.name for node in layout.nodes if node.op in STAIRCASES}
        for name in dict.fromkeys(
            name for node in layout.nodes for name in (*node.inputs, *({node.name} & self.stairs))
        ):
            size = bounds[name][0][0].numel()
            self.at[name] = slice(end, end + size)
            end += size
        self.size = end

    def narrowed(self, bounds: Bounds, domains: RangeDomains) -> Bounds:
        """The root's ``bounds`` with the ranges of ``domains`` imposed on operands, in their own
        dtype; ``[1, *]`` where no domain has split anything."""
        result = dict(bounds)
        if not domains.index.shape[1]:
            return result
        for name, where in self.at.items():
            is_here = (domains.index >= where.start) & (domains.index < where.stop)
            if not is_here.any():
                continue
            low, up = (elements(end, 1) for end in bounds[name])
            # what lies elsewhere is written to a place beyond the end
            place = torch.where(is_here, domains.index - where.start, low.shape[1])
            ends = []
            for root, mine, amount in ((low, domains.low, "amax"), (up, domains.up, "amin")):
                wide = torch.nn.functional.pad(root, (0, 1)).expand(len(domains), -1).clone()
                wide.scatter_reduce_(1, place, mine.to(wide.dtype), amount)
                if name in self.stairs:
                    wide = torch.ceil(wide) if amount == "amax" else torch.floor(wide)
                ends.append(wide[:, :-1].reshape(len(domains), *bounds[name][0].shape[1:]))
            result[name] = (ends[0], ends[1])
        return result


@dataclass(frozen=True)
class RangeDomains:
    """Everything that a domain knows beyond the root.

    * ``case [B]``: which case; ``index``, ``low``, ``up [B, D]``: the operands split, and their
      ranges (float64; at ``index`` -1 there is nothing);
    * ``alpha [B, 1, N_alpha]``, ``mix [B, S]``: multipliers found so far;
    * ``value [B]``: the best lower bound so far, over rows; ``mass [B]``: its share of the tree;
    * ``candidates``, ``points [B, C]``: operands worth splitting, and where; -1 where there are no
      more.
    """

    case: Tensor
    index: Tensor
    low: Tensor
    up: Tensor
    alpha: Tensor
    mix: Tensor
    value: Tensor
    mass: Tensor
    candidates: Tensor
    points: Tensor

    @classmethod
    def of(cls, domains: Domains) -> RangeDomains:
        """``domains`` that have no splits yet."""
        none = domains.mass.new_zeros(len(domains), 0)
        index = none.to(torch.long)
        return cls(
            domains.case,
            index,
            none,
            none,
            domains.alpha,
            domains.mix,
            domains.value,
            domains.mass,
            index,
            none,
        )

    def __len__(self) -> int:
        return int(self.case.shape[0])

    def _tensors(self) -> dict[str, Tensor]:
        return dict(vars(self))

    def select(self, index: Tensor) -> RangeDomains:
        return RangeDomains(**{name: part[index] for name, part in self._tensors().items()})

    def bytes(self) -> int:
        return sum(part.numel() * part.element_size() for part in self._tensors().values())

    @classmethod
    def stacked(cls, parts: list[RangeDomains]) -> RangeDomains:
        """One after the other; shorter lists are filled up with nothing."""
        if len(parts) == 1:
            return parts[0]
        filled = []
        deepest = max(part.index.shape[1] for part in parts)
        for part in parts:
            missing = (0, deepest - part.index.shape[1])
            pad = torch.nn.functional.pad
            filled.append(
                replace(
                    part,
                    index=pad(part.index, missing, value=-1),
                    low=pad(part.low, missing, value=-torch.inf),
                    up=pad(part.up, missing, value=torch.inf),
                )._tensors()
            )
        return cls(**{name: torch.cat([part[name] for part in filled]) for name in filled[0]})

    def cut(self, operand: Tensor, point: Tensor, is_lower: bool) -> RangeDomains:
        """Each domain with its ``operand [B]`` at most (``is_lower``) or at least ``point [B]``."""
        point = point.to(self.low.dtype).unsqueeze(1)
        nothing = torch.full_like(point, torch.inf)
        ends = (-nothing, point) if is_lower else (point, nothing)
        return replace(
            self,
            index=torch.cat([self.index, operand.unsqueeze(1)], dim=1),
            low=torch.cat([self.low, ends[0]], dim=1),
            up=torch.cat([self.up, ends[1]], dim=1),
        )

    def children(self, choice: Tensor) -> RangeDomains:
        """``[2 B]``: each domain below the point of its candidate ``choice [B]``, then each above;
        all else is the parent's. Every value of the operand lies in one of the two."""
        column = choice.unsqueeze(1)
        operand = self.candidates.gather(1, column).squeeze(1)
        point = claims.known(self.points.gather(1, column).squeeze(1), 0.0)
        both = self.stacked([self.cut(operand, point, True), self.cut(operand, point, False)])
        return replace(both, mass=both.mass / 2)
