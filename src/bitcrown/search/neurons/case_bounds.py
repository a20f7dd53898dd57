"""Bounds of neurons that hold where one case is violated, for that case alone.

All cases share the root's bounds, which hold on the whole box. A domain of one case only matters
where this case is violated, and there neurons have less room (``bounds.violation``): the deeper the
layer, the less. So a case that stays open gets bounds of its own, layer by layer from the last one,
and again while that moves its bound. Tighter layers have everything of the search tighter: the
case's bound, every domain's, and the number of neurons that are left to split.

What is claimed of a case here holds under its premises (``premises``), hence for the whole problem
only: all cases together are refuted, or nothing is.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace

import torch
from torch import Tensor

from bitcrown.bounds import claims
from bitcrown.bounds.ascent import Ascent
from bitcrown.bounds.intermediate import LayerBounder
from bitcrown.bounds.rows import Rows
from bitcrown.bounds.violation import Violation, climbed
from bitcrown.search.neurons.bounder import DomainBounder
from bitcrown.search.neurons.domains import Domains
from bitcrown.search.neurons.guide import narrowed_guide

_STEPS = 20
"""Steps of ascent for a neuron's bound."""
_NEURONS = 128
"""Neurons that climb together, at most."""
_FIRST_SECONDS = 0.25
"""What a neuron is thought to take at first: few of them, in a pause of a second, say it."""
_MOVES = 0.02
"""Share of its distance to zero by which a sweep must raise a case's bound to have moved it."""


def sweeps_left(distance: float, rise: float, before: float | None) -> float:
    """Sweeps until a bound has risen by ``distance`` more, after the last one raised it by ``rise``
    and the one ``before`` by that much (None: there was none). Each is taken to raise it ``q``
    times as far as the one before it, ``q = rise / before``, so infinitely many bring

        rise (q + q^2 + ...) = rise q / (1 - q),

    which may be too little."""
    if not rise:
        return math.inf
    if before is None or rise >= before:
        return distance / rise
    q = rise / before
    reached = rise * q / (1.0 - q)
    return math.inf if reached <= distance else math.log(1.0 - distance / reached) / math.log(q)


def _loosest(low: Tensor, up: Tensor) -> Tensor:
    """Indices of the unstable neurons among those with bounds ``low``, ``up`` ``[K]``, highest
    triangles first."""
    open_ = claims.is_unstable(low, up).nonzero().flatten()
    height = claims.ratio(-low[open_] * up[open_], (up - low)[open_])
    return open_[height.argsort(descending=True, stable=True)]


class CaseBounds:
    """``bounder`` and the unsplit ``domains`` (one, or none once the case is refuted) of ``case``.

    ``depth`` layers from the last one are tightened in a sweep; ``seconds`` of computing have gone
    into all sweeps.
    """

    def __init__(self, bounder: DomainBounder, domains: Domains) -> None:
        self.bounder, self.domains = bounder, domains
        self.case = int(domains.case[0])
        self.depth, self.seconds = 1, 0.0
        self.dearness = _FIRST_SECONDS  # seconds that a neuron takes
        self.rise: float | None = None  # of the last whole sweep of this depth

    @property
    def layers(self) -> int:
        return len(self.bounder.guide.layout.neuron_at)

    @property
    def value(self) -> float:
        """The case's bound, at most zero."""
        return min(float(self.domains.value[0]), 0.0) if len(self.domains) else 0.0

    @property
    def can_go_on(self) -> bool:
        return bool(len(self.domains)) and self.depth <= self.layers

    def run(self, premises: Rows, seconds: float, lasting: float) -> bool:
        """Sweep while that moves the bound at any depth, for ``seconds`` of computing, and beyond
        them as long as the case would be refuted in less than ``lasting`` seconds if the bound went
        on to rise as in the last sweeps; returns whether the bound has moved. Raises
        ``BudgetExpired``."""
        end, has_moved, projected = self.seconds + seconds, False, math.inf
        while self.can_go_on and (self.seconds < end or projected < lasting):
            started = time.process_time()
            is_beyond = self.seconds >= end
            stop = math.inf if is_beyond else started + end - self.seconds
            distance = -self.value
            gain = self._sweep(premises, stop)
            spent = time.process_time() - started
            self.seconds += spent
            has_moved |= gain > _MOVES
            rise, is_whole = gain * distance, is_beyond or self.seconds < end
            more = sweeps_left(distance - rise, rise, self.rise) if gain > _MOVES else math.inf
            projected = spent * more
            self.rise = rise if is_whole else None
            # a sweep that was cut short says nothing about the depth
            if gain <= _MOVES and is_whole:
                is_last = self.depth == self.layers
                self.depth = self.depth + 1 if is_last else min(2 * self.depth, self.layers)
                self.rise = None
        return has_moved or not len(self.domains)

    def _sweep(self, premises: Rows, end: float) -> float:
        """Tighten the last ``depth`` layers once; the share of the case's distance to zero that
        this gained."""
        layout = self.bounder.guide.layout
        for where in list(layout.neuron_at.values())[-self.depth :]:
            if not self._tighten(premises, torch.arange(where.start, where.stop), end):
                self._refuted()
                return 1.0
        before = self.domains.value
        self.domains = self.bounder.improve(self.domains, Ascent(20, 0.25, 0.05))
        if not len(self.domains):
            return 1.0
        return float(claims.ratio(self.domains.value - before, -before))

    def _refuted(self) -> None:
        """No input satisfies the premises."""
        self.domains = self.bounder.closed(self.domains)

    def _tighten(self, premises: Rows, neurons: Tensor, end: float) -> bool:
        """Bounds of the guide's ``neurons``, those of one layer; False if two of them cross."""
        bounder = self.bounder
        guide, root = bounder.guide, bounder.root
        low, up = root.layout.flat_bounds(root.enclosure.bounds)
        neurons = neurons.to(low.device)
        at = neurons if guide.reduced is None else guide.reduced.neurons[neurons]
        left = _loosest(low[0, at], up[0, at])
        if not len(left):
            return True
        low, up = low.clone(), up.clone()
        step = LayerBounder(root.proof, bounder.budget.memory // 8).rows_per_pass(1)
        violation = Violation(guide.climber, guide.layout, premises, guide.bounds)
        proof = Violation(root.proof, root.layout, premises, root.enclosure.bounds)
        while len(left) and (started := time.process_time()) < end:
            together = max(1, int(min(self._fitting(), (end - started) / self.dearness)))
            part, left = left[:together], left[together:]
            alpha, weight = climbed(violation, neurons[part], _STEPS, bounder.budget)
            where = at[part]
            new = proof.proved(where, guide.expanded(alpha), weight, root.enclosure.scales, step)
            low[0, where], up[0, where] = claims.tightened(low[0, where], up[0, where], *new)
            self.dearness = max((time.process_time() - started) / len(part), 1e-6)
        low, up, is_empty = claims.crossed(low, up)
        bounds = root.layout.with_flat_bounds(root.enclosure.bounds, low, up)
        root = replace(root, enclosure=root.enclosure._replace(bounds=bounds))
        self.bounder = replace(bounder, root=root, guide=narrowed_guide(guide, root))
        return not bool(is_empty)

    def _fitting(self) -> int:
        """Neurons whose slopes, moments and passes fit an eighth of the memory."""
        guide = self.bounder.guide
        entries = sum(node.size for node in guide.network.graph.nodes.values())
        row = 2 * 8 * (4 * guide.layout.n_alphas + 4 * entries)
        return max(1, min(_NEURONS, self.bounder.budget.memory // 8 // row))
