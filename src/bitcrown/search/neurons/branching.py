"""Which neuron to split: filtered smart branching.

De Palma et al., "Improved Branch and Bound for Neural Network Verification via Lagrangian
Decomposition" (2021). Cheap scores filter the neurons: an unstable ReLU loses at most
``|a| * (-l u) / (u - l)`` where ``a`` is the coefficient with which the backward pass reached it.
The few best are then judged by really bounding both children with the parent's parameters; the
neuron with the best product of gains wins.

Legend: ``B`` domains, ``S`` rows, ``N`` neurons, ``K`` candidates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bitcrown.bounds.claims import is_unstable, known, ratio
from bitcrown.bounds.interval import Bounds
from bitcrown.bounds.layout import Layout
from bitcrown.model.execute import elements
from bitcrown.search.neurons.domains import Domains

if TYPE_CHECKING:
    from bitcrown.search.neurons.bounder import DomainBounder

_ALTERNATING = 8
"""Rounds at the start in which the two scores take turns."""
_AGAIN = 10
"""Every so many rounds later the worse one has a turn."""


def triangle_scores(
    layout: Layout, bounds: Bounds, record: Mapping[str, Tensor], split: Tensor
) -> tuple[Tensor, Tensor]:
    """Two filter scores ``[B, N]``; zero for stable or split neurons. ``record`` holds the
    coefficients with which the backward pass reached the ReLUs.

    The first counts only negative coefficients, which use the upper line: the lower one costs
    nothing where its slope is the best. The second counts both, because that slope is shared by
    everything behind the neuron.
    """
    dtype = next(iter(bounds.values()))[0].dtype
    upper = torch.zeros(split.shape, dtype=dtype, device=split.device)
    both = torch.zeros_like(upper)
    for node in layout.nodes:
        if node.op != "Relu" or node.name not in record:
            continue
        where = layout.neuron_at[node.inputs[0]]
        low, up = (elements(part, 1) for part in bounds[node.inputs[0]])
        # the height of the triangle over [low, up], which is what the upper line may lose
        gap = torch.where(is_unstable(low, up), ratio(-low * up, up - low), 0.0)
        a = elements(record[node.name], 2)
        for scores, size in ((upper, a.clamp(max=0).neg()), (both, a.abs())):
            scores[:, where] += size.sum(1) * gap
    open_ = split == 0
    return upper * open_, both * open_


class ScoreChoice:
    """Which of two scores to take candidates from: the one whose splits gained more so far.

    Neither is better everywhere (convolutional networks want the first, dense ones the second, by
    factors in the size of the tree), and a trial with the parent's parameters cannot tell. So both
    are measured: rounds alternate at first, later every tenth tries the other one. A split's gain
    is what its children won, as a share of the parent's distance from zero.
    """

    def __init__(self) -> None:
        self.count, self.gain = [0, 0], [0.0, 0.0]

    def pick(self) -> int:
        """The score of this round: the same until something is learned."""
        done = sum(self.count)
        if done < _ALTERNATING:
            return done % 2
        better = int(self.gain[1] / self.count[1] > self.gain[0] / self.count[0])
        return 1 - better if done % _AGAIN == 0 else better

    def of(self, candidates: Tensor, score: int) -> Tensor:
        """``[B, K]``: the half of ``candidates [B, 2K]`` that ``score`` gave; the other half where
        that is empty."""
        halves = candidates.chunk(2, dim=1)
        return torch.where(halves[score][:, :1] != -1, halves[score], halves[1 - score])

    def learn(self, score: int, parents: Tensor, children: Tensor) -> None:
        """``parents [B]`` were split; ``children [K]`` are the values of children still open (the
        rest is closed)."""
        size = parents.clamp(max=0.0).neg().sum()
        left = children.clamp(max=0.0).neg().sum()
        self.count[score] += 1
        self.gain[score] += 1 - float(ratio(left, 2 * size))


def best_candidates(scores: Tensor, count: int) -> Tensor:
    """``[B, K]`` neurons with the highest positive scores, best first; -1 where there are no
    more."""
    value, index = scores.topk(min(count, scores.shape[1]), dim=1)
    index = torch.where(torch.sign(value) == 1, index, -1)
    return torch.nn.functional.pad(index, (0, count - index.shape[1]), value=-1)


def choose(candidates: Tensor, parent: Tensor, negative: Tensor, positive: Tensor) -> Tensor:
    """``[B]``: the candidate with the best product of its children's gains over ``parent [B]``.

    ``negative``/``positive [B, K]`` are the children's bounds. Gains beyond zero count no more: the
    child is then excluded. The product rule is the one of mixed-integer programming (Achterberg,
    2007): it wants both children good.
    """
    base = parent.unsqueeze(1).to(negative.dtype).clamp(max=0.0)
    floor = 1e-3 * base.abs() + 1e-9
    gains = [
        torch.maximum(known(value, -1e30).clamp(max=0.0) - base, floor)
        for value in (negative, positive)
    ]
    quality = torch.where(
        candidates != -1, gains[0] * gains[1], torch.full_like(floor, -1.0).expand_as(gains[0])
    )
    return candidates.gather(1, quality.argmax(dim=1, keepdim=True)).squeeze(1)


class SmartBranching:
    """The rule as ``rules`` wants it; works wherever there are neurons."""

    def __init__(self, bounder: DomainBounder) -> None:
        self.bounder, self.choice = bounder, ScoreChoice()

    @staticmethod
    def is_for(bounder: DomainBounder) -> bool:
        return True

    def branch(self, batch: Domains) -> tuple[Domains, Tensor]:
        candidates = self.choice.of(batch.candidates, self.choice.pick())
        if not (candidates[:, 1] != -1).any():  # nothing to choose from
            return batch, candidates[:, 0]
        count, width = candidates.shape
        every = torch.arange(count, device=candidates.device).repeat_interleave(width)
        neuron = candidates.flatten().clamp(min=0).unsqueeze(1)
        parents = self.bounder.guide_bounds(batch)
        trial, value = batch.select(every), []
        for sign in (-1, 1):
            child = replace(trial, split=trial.split.scatter(1, neuron, sign))
            found = self.bounder.quick_bound(child, parents, width)
            value.append(found.reshape(count, width))
        return batch, choose(candidates, batch.value, value[0], value[1])

    def learn(self, batch: Domains, children: Domains) -> None:
        self.choice.learn(self.choice.pick(), batch.value, children.value)
