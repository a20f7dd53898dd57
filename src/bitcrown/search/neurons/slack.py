"""Branching by slack, where several rows must hold together: split what is in the tightest
constraints.

What a domain demands of its neurons are constraints ``a x <= b`` on the inputs, through the root's
lines: ``L_j x + l_j <= up_j`` and ``-U_j x - u_j <= -low_j``. Such a constraint works like a
clause. Let ``t`` be the size of its terms ``|a_i| (xup_i - xlow_i)``, and ``least`` and ``most``
the ends of ``a x`` over the box. Then

* ``(b - least) / t`` terms may still go the wrong way before the rest is forced. A clause of ``w``
  open literals has ``w - 1`` of them, and among random points one in ``2^w`` violates it;
* ``(most - b) / t`` says how much of the box it cuts off at all. At or below zero it is redundant,
  as a clause with a true literal is.

So its weight is ``2^-((b - least) / t)`` times the second number, at most 1: the weight of Jeroslow
and Wang ("Solving Propositional Satisfiability Problems", 1990) where constraints are clauses, and
defined for all others. An input counts by the constraints it is in, a neuron by its inputs. Where
clauses divide the space as the leaves of a tree do, this finds that tree.

Terms differ, so ``t`` is their mean weighted by themselves, ``sum t_i^2 / sum t_i``: that of a few
equal terms, however many others are nothing. All numbers here are guesses. Legend: ``B`` domains,
``N`` neurons, ``K`` neurons with lines, ``n`` inputs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bitcrown.bounds.claims import known, ratio
from bitcrown.search.neurons.branching import best_candidates
from bitcrown.search.neurons.domains import Domains

if TYPE_CHECKING:
    from bitcrown.search.neurons.bounder import DomainBounder
    from bitcrown.search.neurons.clip import Clipper

_NEGLIGIBLE = 1e-6
"""Share of its width at the root by which a neuron must cross zero to be worth a split. What a
domain has decided may cross by as much as bounds are padded, which is less; relative to the
neuron's own width that would be much."""
_LAST = 1e-30
"""Factor for neurons that are not."""


def slack_scores(clipper: Clipper, domains: Domains, low: Tensor, up: Tensor) -> Tensor:
    """``[B, N]``, zero for neurons that hardly cross zero; ``low``/``up [B, N]`` bound them."""
    lines = clipper.lines
    k_low, k_up = low[:, lines.index], up[:, lines.index]
    width = domains.x_upper - domains.x_lower
    # 1. Inputs: how much of each constraint is theirs, by the constraint's weight.
    below = _weights(lines.L, domains.x_lower, domains.x_upper, k_up - lines.l)
    above = _weights(-lines.U, domains.x_lower, domains.x_upper, lines.u - k_low)
    influence = (below @ lines.L.abs() + above @ lines.U.abs()) * width
    # 2. Neurons: the mean of their inputs, times how evenly a split divides them.
    reach = ratio(influence @ clipper.magnitude.T, width @ clipper.magnitude.T)
    crossing = torch.minimum(-k_low, k_up)
    share = ratio(crossing, k_up - k_low)
    is_worth = ratio(crossing, lines.width) > _NEGLIGIBLE
    # what no constraint touches comes late, and what is decided but for padding last
    found = known(share * (reach + 1e-9), 0.0) * torch.where(is_worth, 1.0, _LAST)
    found = torch.where(share > _NEGLIGIBLE, found, 0.0)
    return torch.zeros_like(low).index_copy(1, lines.index, found)


def _weights(a: Tensor, x_lower: Tensor, x_upper: Tensor, bound: Tensor) -> Tensor:
    """Weights ``[B, K]`` of ``a [K, n] x <= bound [B, K]``, divided by the size of their terms."""
    size, width = a.abs(), x_upper - x_lower
    swing = width @ size.T
    least = x_lower @ a.clamp(min=0).T + x_upper @ a.clamp(max=0).T
    term = ratio(width.square() @ size.square().T, swing)
    to_spare = ratio(bound - least, term).clamp(min=0)
    cut_off = ratio(least + swing - bound, term).clamp(0, 1)
    return ratio(torch.exp2(-to_spare) * cut_off, term)


class TightestLines:
    """The rule as ``rules`` wants it: the best score, and nothing tried. Works where rows
    propagate."""

    def __init__(self, bounder: DomainBounder) -> None:
        self.bounder = bounder

    def branch(self, batch: Domains) -> tuple[Domains, Tensor]:
        clipper = self.bounder.root.clipper
        assert clipper is not None
        scores = slack_scores(clipper, batch, *self.bounder.neuron_bounds(batch))
        best = best_candidates(scores * (batch.split == 0), 1)
        return batch, best[:, 0]
