"""Branching by propagation, where several rows must hold together: try both signs, keep what
settles most.

A row that must hold together with others works like a clause: a decision forces neurons, they force
inputs, these force other neurons. Bounds of the mixture of rows hardly see that, propagation does.
So candidates are judged by what propagation makes of their two children, as in look-ahead solvers
for satisfiability (Heule and van Maaren, 2009): the product of the shares of neuron width that the
children lose. Where one child is found empty the other sign is forced, whatever else is split.

Candidates come from a cheap score: neurons whose inputs are in the tightest constraints
(``slack``). Legend: ``B`` domains, ``N`` neurons, ``K`` candidates.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bitcrown.bounds.claims import is_unstable, ratio
from bitcrown.search.neurons.branching import best_candidates
from bitcrown.search.neurons.clip import Clipper
from bitcrown.search.neurons.domains import Domains
from bitcrown.search.neurons.slack import slack_scores

if TYPE_CHECKING:
    from bitcrown.search.neurons.bounder import DomainBounder

_WIDTH = 48
"""Candidates judged for a domain."""
_ROUNDS = 4
"""Rounds of propagation in each of their children."""
_CHILDREN = 4096
"""Children that are propagated at once."""


def look_ahead(
    clipper: Clipper, domains: Domains, low: Tensor, up: Tensor
) -> tuple[Tensor, Tensor]:
    """The neuron ``[B]`` to split in each domain (-1 if none is left), and ``split [B, N]`` with
    forced signs added.

    ``low``/``up [B, N]`` are the domains' neuron bounds.
    """
    scores = slack_scores(clipper, domains, low, up)
    candidates = best_candidates(
        torch.where(domains.split == 0, scores, torch.zeros_like(scores)), _WIDTH
    )
    count, width = candidates.shape
    settled = torch.zeros(2, count, width, dtype=low.dtype, device=low.device)
    step = max(1, _CHILDREN // (2 * width))
    for part in torch.split(torch.arange(count, device=low.device), step):
        settled[:, part] = _settled(
            clipper, domains.select(part), low[part], up[part], candidates[part]
        )
    is_empty = torch.isinf(settled)
    is_forced = is_empty[0] ^ is_empty[1]
    # With one child empty the split costs nothing: no other candidate can be better.
    quality = torch.where(is_forced, 1e30, settled[0] * settled[1])
    is_real = candidates != -1
    best = torch.where(is_real, quality, -torch.ones_like(quality)).argmax(dim=1, keepdim=True)
    # Signs that are forced hold in both children, whichever neuron is split.
    sign = torch.where(is_empty[0], 1, -1).to(domains.split.dtype) * (is_forced & is_real)
    forced = torch.zeros_like(domains.split).scatter_add(1, candidates.clamp(min=0), sign)
    return candidates.gather(1, best).squeeze(1), domains.split + forced


def _settled(
    clipper: Clipper, domains: Domains, low: Tensor, up: Tensor, candidates: Tensor
) -> Tensor:
    """What the negative and the positive child of each candidate lose, ``[2, B, K]``; infinity
    where it is empty."""
    count, width = candidates.shape
    index = torch.arange(count, device=low.device).repeat_interleave(width)
    neuron = candidates.clamp(min=0).reshape(-1, 1)
    before = (up - low)[index]
    is_open = is_unstable(low, up)[index]
    shares = []
    for sign in (-1, 1):
        child_low, child_up = low[index], up[index]
        if sign == 1:
            child_low = child_low.scatter(1, neuron, child_low.gather(1, neuron).clamp(min=0))
        else:
            child_up = child_up.scatter(1, neuron, child_up.gather(1, neuron).clamp(max=0))
        box = domains.x_lower[index], domains.x_upper[index]
        region = clipper.run(domains.case[index], *box, child_low, child_up, _ROUNDS)
        # The share of width lost, summed over the neurons that were undecided.
        kept = ratio(region.up - region.low, before)
        lost = torch.where(is_open, 1 - kept, 0.0).clamp(0, 1).sum(dim=1)
        shares.append(torch.where(region.feasible, lost, torch.full_like(lost, torch.inf)))
    return torch.stack(shares).reshape(2, count, width)


def looks_ahead(bounder: DomainBounder) -> bool:
    """Whether several rows must hold together and propagate."""
    clipper = bounder.root.clipper
    return clipper is not None and clipper.active is not None and bounder.has_joint_rows


class LookAhead:
    """The rule as ``rules`` wants it, where ``looks_ahead``."""

    def __init__(self, bounder: DomainBounder) -> None:
        self.bounder = bounder

    def branch(self, batch: Domains) -> tuple[Domains, Tensor]:
        clipper = self.bounder.root.clipper
        assert clipper is not None
        neuron, split = look_ahead(clipper, batch, *self.bounder.neuron_bounds(batch))
        return replace(batch, split=split), neuron
