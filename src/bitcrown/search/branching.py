"""Which neuron to split: filtered smart branching.

De Palma et al., "Improved Branch and Bound for Neural Network Verification via Lagrangian Decomposition" (2021).
A cheap score filters the neurons: an unstable ReLU loses at most ``|a| * (-l u) / (u - l)`` where ``a`` is the
coefficient with which the backward pass reached it. The few best are then judged by really bounding both children with
the parent's parameters; the neuron with the best product of gains wins.

Legend: ``B`` domains, ``S`` rows, ``N`` neurons, ``K`` candidates.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from bitcrown.bounds.interval import Bounds
from bitcrown.bounds.optimise import Layout


def triangle_scores(
    layout: Layout, bounds: Bounds, record: Mapping[str, Tensor], split: Tensor, weights: Tensor
) -> Tensor:
    """``[B, N]`` filter scores; zero for stable or split neurons. ``weights [B, S]`` says which rows count."""
    scores = torch.zeros(split.shape, dtype=weights.dtype, device=split.device)
    for node in layout.nodes:
        if node.op != "Relu" or node.name not in record:
            continue
        where = layout.neuron_at[node.inputs[0]]
        low, up = (part.flatten(1) for part in bounds[node.inputs[0]])
        gap = torch.where((low < 0) & (up > 0), -low * up / (up - low).clamp(min=1e-30), torch.zeros_like(low))
        a = record[node.name].flatten(2).abs()
        reached = (a * weights[:, :, None]).sum(1) if a.shape[1] > 1 else a[:, 0]
        scores[:, where] += reached * gap
    return torch.where(split == 0, scores, torch.zeros_like(scores))


def best_candidates(scores: Tensor, count: int) -> Tensor:
    """``[B, K]`` neurons with the highest positive scores, best first; -1 where there are no more."""
    value, index = scores.topk(min(count, scores.shape[1]), dim=1)
    index = torch.where(value > 0, index, torch.full_like(index, -1))
    return torch.nn.functional.pad(index, (0, count - index.shape[1]), value=-1)


def choose(candidates: Tensor, parent: Tensor, negative: Tensor, positive: Tensor) -> Tensor:
    """``[B]``: the candidate with the best product of its children's gains over ``parent [B]``.

    ``negative``/``positive [B, K]`` are the children's bounds. Gains beyond zero count no more: the child is then
    excluded. The product rule is the one of mixed-integer programming (Achterberg, 2007): it wants both children good.
    """
    base = parent.unsqueeze(1).to(negative.dtype).clamp(max=0.0)
    floor = 1e-3 * base.abs() + 1e-9
    gains = [torch.maximum(value.nan_to_num(-1e30).clamp(max=0.0) - base, floor) for value in (negative, positive)]
    quality = torch.where(candidates >= 0, gains[0] * gains[1], torch.full_like(floor, -1.0).expand_as(gains[0]))
    return candidates.gather(1, quality.argmax(dim=1, keepdim=True)).squeeze(1)
