"""Better slopes for rows that are nearly positive: a few steps of ascent on the lower lines.

Every slope gives a sound line (``bounds.relaxations``), so the ascent itself may be careless: no
rounding error, steps along the sign of the gradient. What it finds is bounded again with rounding
error, and only that counts. Inner bounds stay as they are: the pass costs as much as a row, where
another split would bound hundreds of inner entries twice.

Whether that pays is measured, not assumed. ``Tries`` counts, for each size of the gap, how often
the ascent closes a box, and lets it run where it saves more work (two children) than it costs.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from bitcrown.bounds.claims import ratio
from bitcrown.bounds.crown import Lines, minimum, relaxation_of
from bitcrown.bounds.interval import Bounds
from bitcrown.bounds.relaxations.registry import Relaxation, nonlinear_row
from bitcrown.search.inputs.bounds import BoxBounder, RelaxedBoxes, gathered
from bitcrown.search.inputs.boxes import Boxes

ASCENT_STEPS = 5
ASCENT_STEP_COST = 3.0
"""Passes that one step costs: forward, and its derivative."""
EDGES = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Gaps, as multiples of what the last split gained, that are told apart."""
_SAMPLE = 32
"""Boxes of a kind that are tried before their record decides."""
AGAIN = 16
"""A kind that does not pay is tried again once in so many rounds; before, in rounds 1, 2, 4, 8."""


@dataclass
class Tries:
    """Record of the ascent: boxes tried and closed for each kind (gap)."""

    tried: list[float] = field(default_factory=lambda: [0.0] * (len(EDGES) + 1))
    closed: list[float] = field(default_factory=lambda: [0.0] * (len(EDGES) + 1))
    round: int = 0
    edges: Tensor | None = None

    def kinds(self, least: Tensor, before: Tensor) -> Tensor:
        """``[B]``: the kinds of boxes whose worst rows are at ``least``, their parents' at
        ``before``."""
        gain = torch.where(torch.isfinite(before), least - before, 0.0)
        gap = torch.where(torch.sign(gain) == 1, ratio(-least, gain), torch.inf)
        if self.edges is None:
            self.edges = gap.new_tensor(EDGES)
        return torch.bucketize(gap, self.edges)

    def chosen(self, kind: Tensor, worth: float) -> Tensor:
        """``[B]`` bool: boxes to try; ``worth`` is what closing a box saves over what a try
        costs."""
        self.round += 1
        # A small tree must not pay for what only a large one can learn.
        explores = self.round & (self.round - 1) == 0 or self.round % AGAIN == 0
        most = [0] * len(self.tried)
        for k, (tried, closed) in enumerate(zip(self.tried, self.closed, strict=True)):
            if tried and closed / tried * worth > 1:
                most[k] = len(kind)
            elif explores and (tried < _SAMPLE or self.round % AGAIN == 0):
                most[k] = _SAMPLE
        if not any(most):
            return torch.zeros_like(kind, dtype=torch.bool)
        rank = self._is_kind(kind).cumsum(0).gather(1, kind.unsqueeze(1)).squeeze(1)
        room = kind.new_tensor(most)[kind] - rank
        return torch.sign(room) != -1

    def _is_kind(self, kind: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(kind, len(self.tried))

    def note(self, kind: Tensor, closed: Tensor) -> None:
        """Outcomes ``[K]``; old ones count half after a while, since later boxes differ."""
        is_kind = self._is_kind(kind)
        counts = torch.stack([is_kind.sum(0), (is_kind * closed.unsqueeze(1)).sum(0)])
        for k, (tried, won) in enumerate(counts.T.tolist()):
            self.tried[k] += tried
            self.closed[k] += won
            if self.tried[k] > 64 * _SAMPLE:
                self.tried[k], self.closed[k] = self.tried[k] / 2, self.closed[k] / 2


def has_slopes(bounder: BoxBounder) -> bool:
    return any(nonlinear_row(node.op).alphas for node in bounder.nonlinear)


def sharpened_values(
    bounder: BoxBounder, boxes: Boxes, stage: RelaxedBoxes, box: Tensor, row: Tensor
) -> Tensor:
    """Lower bounds ``[P]`` of the rows ``row [P]`` in the boxes ``box [P]`` after the ascent."""
    ends = boxes.lower[box], boxes.upper[box]
    group = boxes.group[box]
    bounds: Bounds = {
        name: (_picked(stage.bounds[name][0], box), _picked(stage.bounds[name][1], box))
        for node in bounder.nonlinear
        for name in node.inputs
    }
    fixed = {name: gathered(found, box) for name, found in stage.relaxations.items()}
    alphas: dict[str, Tensor] = {}
    for node in bounder.nonlinear:
        entry = nonlinear_row(node.op)
        if entry.default_alpha is not None and stage.relaxations[node.name].coupled is None:
            lows, ups = ([bounds[name][end] for name in node.inputs] for end in (0, 1))
            start = entry.default_alpha(node, lows, ups)
            alphas[node.name] = start.expand(start.shape[0], len(box), *start.shape[2:]).clone()

    def relaxed(values: dict[str, Tensor]) -> dict[str, Relaxation]:
        graph = bounder.network.graph
        return fixed | {
            name: relaxation_of(graph.nodes[name], bounds, value.unsqueeze(2))
            for name, value in values.items()
        }

    best = ends[0].new_full((len(box),), -torch.inf)
    kept = dict(alphas)
    for step in range(ASCENT_STEPS + 1 if alphas else 0):
        with torch.enable_grad():
            given = {name: value.detach().requires_grad_() for name, value in alphas.items()}
            value = minimum(bounder.lines(group, row, relaxed(given), None), *ends)[:, 0]
            known = torch.where(torch.isfinite(value), value, 0.0)
            wanted = list(given.values())
            grads = torch.autograd.grad(known.sum(), wanted, allow_unused=True)
        is_better = torch.sign(value.detach() - best) == 1
        best = torch.where(is_better, value.detach(), best)
        for (name, alpha), grad in zip(given.items(), grads, strict=True):
            mask = is_better.reshape(1, -1, *[1] * (alpha.dim() - 2))
            kept[name] = torch.where(mask, alpha.detach(), kept[name])
            if grad is not None:
                alphas[name] = (alpha.detach() + 0.5**step * 0.5 * grad.sign()).clamp(0.0, 1.0)
    lines: Lines = bounder.lines(group, row, relaxed(kept), stage.scales)
    return minimum(lines, *ends, bounder.gamma)[:, 0]


def _picked(part: Tensor, index: Tensor) -> Tensor:
    return part[index] if part.shape[0] > 1 else part.expand(len(index), *part.shape[1:])
