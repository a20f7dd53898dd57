"""Which neuron to split: filtered smart branching.

De Palma et al., "Improved Branch and Bound for Neural Network Verification via Lagrangian
Decomposition" (2021). Cheap scores filter the neurons: an unstable ReLU loses at most
``|a| * (-l u) / (u - l)`` where ``a`` is the coefficient with which the backward pass reached it.
The few best are then judged by really bounding both children with the parent's parameters; the
neuron with the best gains wins.

Legend: ``B`` domains, ``S`` rows, ``N`` neurons, ``K`` candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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

UPPER, BOTH = 0, 1
"""The two filter scores, by their place in ``triangle_scores``."""
Gain = Callable[[Tensor, Tensor], Tensor]


def product_of_gains(first: Tensor, second: Tensor) -> Tensor:
    """The rule of mixed-integer programming (Achterberg, 2007): it wants both children good."""
    return first * second


def largest_gain(first: Tensor, second: Tensor) -> Tensor:
    """One child that is nearly closed is worth more than two that are a little better."""
    return torch.maximum(first, second)


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


def starting_betas(
    layout: Layout, record: Mapping[str, Tensor], alpha: Tensor, candidates: Tensor
) -> Tensor:
    """``[B, 2 C]``: multipliers for the signs of ``candidates [B, C]``, first negative, with which
    a child is bounded as its parent was.

    The pass of ``record`` (one row a domain) reached a ReLU with ``a`` and replaced it by
    ``a alpha z`` where ``a > 0``. The positive child has ``a z - beta z``, the negative one
    ``0 + beta z``: the same for ``beta = a (1 - alpha)`` and ``beta = a alpha``. Where ``a < 0``
    both signs are better than the upper line on all of ``[l, u]``, with ``beta = 0``.
    """
    # (One place at least: networks without neurons have candidates, all of them -1.)
    starts = alpha.new_zeros(2, len(candidates), max(1, layout.n_neurons))
    for node in layout.nodes:
        if node.op != "Relu" or node.name not in record:
            continue
        where = layout.neuron_at[node.inputs[0]]
        a = elements(record[node.name], 2)[:, 0].clamp(min=0)
        slope = alpha[:, 0, layout.alpha_at[node.name]]
        starts[0, :, where] += a * slope
        starts[1, :, where] += a * (1 - slope)
    chosen = candidates.clamp(min=0).expand(2, -1, -1)
    starts = known(starts.gather(2, chosen), 0.0) * (candidates != -1)
    return torch.cat([*starts], dim=1)


def best_candidates(scores: Tensor, count: int) -> Tensor:
    """``[B, K]`` neurons with the highest positive scores, best first; -1 where there are no
    more."""
    value, index = scores.topk(min(count, scores.shape[1]), dim=1)
    index = torch.where(torch.sign(value) == 1, index, -1)
    return torch.nn.functional.pad(index, (0, count - index.shape[1]), value=-1)


def choose(
    candidates: Tensor, parent: Tensor, negative: Tensor, positive: Tensor, gain: Gain
) -> Tensor:
    """``[B]``: the candidate whose children gain most over ``parent [B]``.

    ``negative``/``positive [B, K]`` are the children's bounds. Gains beyond zero count no more: the
    child is then excluded.
    """
    base = parent.unsqueeze(1).to(negative.dtype).clamp(max=0.0)
    floor = 1e-3 * base.abs() + 1e-9
    gains = [
        torch.maximum(known(value, -1e30).clamp(max=0.0) - base, floor)
        for value in (negative, positive)
    ]
    quality = torch.where(candidates != -1, gain(*gains), -1.0)
    return candidates.gather(1, quality.argmax(dim=1, keepdim=True)).squeeze(1)


class SmartBranching:
    """Candidates by one of the two ``scores``, judged by ``gain``; works wherever there are
    neurons.

    Neither score is better everywhere, and neither is a way of judging: convolutional networks want
    the first, dense ones the second, by factors in the size of the tree. So each pair is a tactic
    of its own, and tactics race (``race``).
    """

    def __init__(self, bounder: DomainBounder, score: int, gain: Gain) -> None:
        self.bounder, self.score, self.gain = bounder, score, gain

    def branch(self, batch: Domains) -> tuple[Domains, Tensor]:
        halves = batch.candidates.chunk(2, dim=1)
        # where the score has nothing left, the other one may have
        own = halves[self.score]
        candidates = torch.where(own[:, :1] != -1, own, halves[1 - self.score])
        if not (candidates[:, 1] != -1).any():  # nothing to choose from
            return batch, candidates[:, 0]
        count, width = candidates.shape
        every = torch.arange(count, device=candidates.device).repeat_interleave(width)
        neuron = candidates.flatten().clamp(min=0)
        parents = self.bounder.guide_bounds(batch)
        trial, value = batch.select(every), []
        for sign in (-1, 1):
            found = self.bounder.quick_bound(trial.decided(neuron, sign), parents, width)
            value.append(found.reshape(count, width))
        return batch, choose(candidates, batch.value, value[0], value[1], self.gain)
