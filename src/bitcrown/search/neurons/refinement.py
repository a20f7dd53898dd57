"""Tighter layers for all cases: every layer's neurons refined by small trees, first layers first.

Losses multiply: a layer whose bounds are twice too wide leaves more neurons unstable behind it, and
each of these loses more. In a deep network of dense layers the last bounds are then wrong by orders
of magnitude, and no tree over the whole network is large enough to mend that, while a few dozen
leaves for each neuron of an early layer (``small_trees``) make everything behind it tighter. A pass
goes through the layers from the second on, and may pause anywhere. What it has gained so far says
what it promises, so that it is given up early where single backward passes lose little.

A neuron's loss is the height of its triangle over ``[l, u]``, ``-l u / (u - l)``. Of every layer
all unstable neurons have trees but those with the least losses, which are a twentieth together:
even a tree's root is bounded under what is known by now of the layers before.

Bounds hold on the whole box. The idea of refining layers by exact means is that of Singh et al.,
"Boosting Robustness Certification of Neural Networks" (2019), with MILP in place of trees.

Legend: ``K`` neurons of one layer.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from bitcrown.bounds import claims
from bitcrown.bounds.ascent import Ascent
from bitcrown.errors import BudgetExpired
from bitcrown.search.neurons.bounder import DomainBounder
from bitcrown.search.neurons.domains import Domains
from bitcrown.search.neurons.guide import narrowed_guide
from bitcrown.search.neurons.small_trees import SmallTrees

_NEURONS = 128
"""Neurons whose trees grow together, at most: more gain nothing by their company."""
_FIRST_NEURONS = 1
"""Neurons of the first step, which says what a neuron's trees cost: hundredths of a second in a
small network, four seconds in a deep one of attention."""
_DEARER = 2.0
"""Where a first neuron was not done in a pause, one is tried in a pause so much longer."""
_JUDGED = 4
"""Neurons without whose trees nothing is given up for good."""
_FIRST_ROUNDS, _MORE_ROUNDS = 4, 2
"""Rounds of splits for every tree in the first pass, and more in each later one."""
_STEP_SHARE = 0.25
"""A step may take this share of the seconds in which refinement promises to end, if it does."""
_NEGLIGIBLE = 0.05
MOVED = 0.02
"""Share of the cases' distance to zero that a pass must gain to be followed by another."""


@dataclass
class _Pass:
    """How far a pass through ``layers`` (operands, in order) has come: ``left [K]`` are the neurons
    of the first of them that have had no trees yet (None where it was not begun), ``treated`` of
    its neurons have. ``losses`` are those of each layer that was begun, before and after, of
    treated neurons; ``seconds`` of computing went into it."""

    rounds: int
    expected: float
    layers: list[tuple[str, slice]]
    left: Tensor | None = None
    treated: int = 0
    losses: list[tuple[float, float]] = field(default_factory=list)
    seconds: float = 0.0

    def _finished(self) -> float:
        """Layers that are done, and the share of the one that was begun."""
        if self.left is None:
            return len(self.losses)
        return len(self.losses) - 1 + self.treated / max(1, self.treated + len(self.left))

    def promised(self) -> float:
        """The share of the cases' distance to zero that the whole pass may gain, if other layers
        do as those that were begun, and losses multiply."""
        kept: float = math.prod(after / before for before, after in self.losses if before)
        begun = max(1, len(self.losses))
        is_begun = self.left is not None
        return float(1.0 - kept ** ((begun + len(self.layers) - is_begun) / begun))

    def projected(self) -> float:
        """Seconds in which passes like this one would refute all cases; ``expected`` until there is
        a measurement."""
        finished = self._finished()
        if not finished:
            return self.expected
        promised = self.promised()
        if promised <= MOVED:
            return math.inf
        whole = len(self.losses) + len(self.layers) - (self.left is not None)
        return self.seconds * whole / finished / promised


def _worth(losses: Tensor) -> Tensor:
    """Indices of the largest ``losses [N]``, largest first, which make up all but ``_NEGLIGIBLE``
    of their sum."""
    size, index = losses.sort(descending=True)
    total = size.cumsum(0)
    return index[total - size < (1.0 - _NEGLIGIBLE) * total[-1]]


class Refinement:
    """``bounder`` has the whole guide and global bounds; ``domains`` are the open cases, unsplit.
    Both become tighter; ``gained`` is the share of the mean case's distance to zero, and
    ``seconds`` of computing have gone into it."""

    def __init__(self, bounder: DomainBounder, domains: Domains) -> None:
        self.bounder, self.domains = bounder, domains
        self.gained, self.seconds, self.neurons = 0.0, 0.0, 0
        self.pass_ = self._new_pass(_FIRST_ROUNDS, math.inf)
        self.together, self.pause = _FIRST_NEURONS, 0.0
        self.can_go_on = len(bounder.root.layout.neuron_at) > 1

    @property
    def rate(self) -> float:
        """Share of the distance to zero that is expected of a second; infinite at first."""
        return 1.0 / self.pass_.projected() if self.seconds else math.inf

    def keep(self, cases: set[int]) -> None:
        """Leave all cases but these to somebody else."""
        case = self.domains.case
        kept = torch.isin(case, torch.tensor(sorted(cases), dtype=case.dtype, device=case.device))
        self.domains = self.domains.select(kept.nonzero().flatten())

    def run(self, seconds: float, lasting: float) -> float:
        """Go on for ``seconds`` of computing, and longer as long as passes promise to refute all
        cases in less than ``lasting`` seconds, and in the time left; the share of the distance to
        zero that this gained. Raises ``BudgetExpired``."""
        gained, spent = self.gained, 0.0
        if seconds < self.pause:
            return 0.0
        while self.can_go_on and len(self.domains):
            limit = min(lasting, self.bounder.budget.remaining())
            if spent >= seconds and self.pass_.projected() >= limit:
                break
            started, before = time.process_time(), self.neurons
            is_done = self._step(math.inf if self.neurons else seconds)
            took = time.process_time() - started
            spent, self.seconds = spent + took, self.seconds + took
            self.pass_.seconds += took
            if not is_done:
                self.pause = _DEARER * seconds
                return 0.0
            projected = self.pass_.projected()
            share = _STEP_SHARE * projected if projected < limit else 0.0
            self._resize(self.neurons - before, took, max(seconds - spent, share))
            if not self.pass_.layers:
                gain = self._improved()
                self.can_go_on = gain > MOVED
                expected = self.pass_.seconds / gain if self.can_go_on else math.inf
                self.pass_ = self._new_pass(self.pass_.rounds + _MORE_ROUNDS, expected)
            elif self.pass_.treated and self.neurons >= _JUDGED:
                self.can_go_on = self.pass_.promised() > MOVED
        self._improved()
        return 1.0 - (1.0 - self.gained) / (1.0 - gained) if gained < 1.0 else 0.0

    def _resize(self, neurons: int, took: float, seconds: float) -> None:
        """As many neurons in the next step as ``seconds`` allow if each costs what each of the last
        ``neurons`` did. (In larger steps they cost less, so this is never too many, but for layers
        that are deeper: the first step in those says so.)"""
        if neurons and took:
            self.together = max(1, int(min(_NEURONS, seconds * neurons / took)))

    def _improved(self) -> float:
        """The domains under the bounds found so far; the share of their distance to zero that
        this gained."""
        before = self.domains
        self.domains = self.bounder.improve(before, Ascent(20, 0.25, 0.05))
        distance = torch.zeros(len(self.bounder.root.rows.C), dtype=torch.float64)
        distance[before.case.cpu()] = before.value.double().cpu().clamp(max=0.0)
        left = self.domains.value.double().cpu().clamp(max=0.0)
        share = claims.ratio(-left, -distance[self.domains.case.cpu()])
        gain = 1.0 - float(share.sum()) / max(1, len(before))
        self.gained = 1.0 - (1.0 - self.gained) * (1.0 - gain)
        return gain

    def _new_pass(self, rounds: int, expected: float) -> _Pass:
        layers = list(self.bounder.root.layout.neuron_at.items())[1:]
        return _Pass(rounds, expected, layers)

    def _step(self, most: float) -> bool:
        """Trees for the next neurons of the layer that the pass is at, highest triangles first.
        False if they would have taken more than ``most`` seconds; then nothing was done."""
        at = self.pass_
        name, where = at.layers[0]
        losses = self._losses(where)
        if at.left is None:
            at.left = _worth(losses)
            at.treated = 0
            at.losses.append((0.0, 0.0))
        neurons = at.left[: self.together]
        if len(neurons):
            if not self._bound(name, where, neurons, most):
                return False
            before, after = at.losses[-1]
            before += float(losses[neurons].sum())
            at.losses[-1] = before, after + float(self._losses(where)[neurons].sum())
            at.treated += len(neurons)
        at.left = at.left[self.together :]
        if not len(at.left):
            at.layers.pop(0)
            at.left = None
        return True

    def _losses(self, where: slice) -> Tensor:
        """Heights of the triangles of a layer's neurons; 0 where they are stable."""
        root = self.bounder.root
        low, up = (part[0, where] for part in root.layout.flat_bounds(root.enclosure.bounds))
        return torch.where(claims.is_unstable(low, up), claims.ratio(-low * up, up - low), 0.0)

    def _bound(self, name: str, where: slice, neurons: Tensor, most: float) -> bool:
        """Trees for ``neurons [K]`` of a layer; the root has what they prove from now on. False
        if that is not done in ``most`` seconds."""
        root = self.bounder.root
        low, up = (part.clone() for part in root.layout.flat_bounds(root.enclosure.bounds))
        share = self.bounder.budget.capped(most)
        try:
            trees = SmallTrees(replace(self.bounder, budget=share), name, neurons)
            trees.grow(self.pass_.rounds)
            proved = trees.proved()
        except BudgetExpired:
            self.bounder.budget.check()
            return False
        at = where.start + neurons
        low[0, at], up[0, at] = claims.tightened(low[0, at], up[0, at], *proved)
        bounds = root.layout.with_flat_bounds(root.enclosure.bounds, low, up)
        root = replace(root, enclosure=root.enclosure._replace(bounds=bounds))
        guide = narrowed_guide(self.bounder.guide, root)
        self.bounder = replace(self.bounder, root=root, guide=guide)
        self.neurons += len(neurons)
        return True
