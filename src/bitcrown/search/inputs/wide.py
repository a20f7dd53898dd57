"""Bounds of single boxes in wide networks: quick ones or deep ones, whichever pays.

*Quick* bounds are zonotopes without backward passes. *Deep* ones are backward passes for every
entry that neither the signs known from a larger box nor forms in the inputs alone decide. Where few
neurons are unstable, zonotopes have few symbols and say in a fraction of the time what passes say.
Where many are, layer behind layer, they cost as much and are wider by an order of magnitude.

Halving a box makes two of it, and halves the distance ``d`` of its worst row to zero at best. So of
two ways that take ``c`` seconds a box, that with the smaller product ``c d`` is taken to end
sooner. Both are measured on the first box that quick bounds leave open; deep ones may take
twice as long as quick ones there. The better way has all boxes until it is measured again: after
four times as many boxes, and more if the difference was large.

A box remembers what its bounds say about signs, a byte for each end of every entry: enough to spare
its halves most of the passes, and so little that many boxes may be open.

Legend: ``N`` entries that nonlinear nodes read, ``n`` inputs, ``m`` outputs, ``*`` a node's shape.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
from torch import Tensor

from bitcrown.bounds.claims import is_active, known
from bitcrown.bounds.intermediate import Enclosure, LayerBounder
from bitcrown.bounds.interval import Bounds
from bitcrown.budget import Budget
from bitcrown.model.execute import Network

_AGAIN, _DECISIVE = 4.0, 1e3
_LONGEST_TRIAL = 2.0
"""Deep bounds of a trial may take so many times the seconds of quick ones: a small tree must not
pay for what only a large one could gain."""

_Box = tuple[Tensor, Tensor]


def signs_known(low: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """What bounds ``[1, N]`` say about signs, as ends in int8: 0 where the sign is known, else -1
    below and 1 above. Ends that are not finite say nothing."""
    is_positive, is_negative = (is_active(known(end, -torch.inf)) for end in (low, -up))
    return is_positive.to(torch.int8) - 1, 1 - is_negative.to(torch.int8)


def known_by_signs(low: Tensor, up: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Bounds ``[B, N]`` that ``signs_known`` has made ends of: 0, or infinite."""
    ends = []
    for end, unknown in ((low, -torch.inf), (up, torch.inf)):
        bound = torch.full(end.shape, unknown, dtype=dtype, device=end.device)
        ends.append(bound.masked_fill(end == 0, 0.0))
    return ends[0], ends[1]


class WideBoxes:
    """``outputs [m]`` (booleans) are those that rows read. ``is_deep`` says which bounds boxes get
    at present; ``boxes`` counts them."""

    def __init__(self, network: Network, memory: int, budget: Budget, outputs: Tensor) -> None:
        self.network, self.memory, self.budget, self.outputs = network, memory, budget, outputs
        self.is_deep, self.boxes, self.next_trial = False, 0, 1.0
        self.last: tuple[Tensor, Tensor, Enclosure] | None = None

    def run(
        self, box: _Box, known_there: Bounds, distance: Callable[[Enclosure], float]
    ) -> Enclosure:
        """Bounds on one box, whose ends are ``[1, n]``; those of ``known_there`` hold on it.
        ``distance(enclosure)`` is how far below zero the worst row is, 0 where all are excluded."""
        if self.last is not None and all(map(torch.equal, box, self.last[:2])):
            return self.last[2]  # a root is the first box of its tree as well
        self.boxes += 1
        if self.boxes >= self.next_trial:
            found = self._trial(box, known_there, distance)
        elif self.is_deep:
            found = self._deep(box, known_there, self.budget)
        else:
            found = self._quick(box)
        self.last = box[0].clone(), box[1].clone(), found
        return found

    def _trial(
        self, box: _Box, known_there: Bounds, distance: Callable[[Enclosure], float]
    ) -> Enclosure:
        """Both bounds of one box, and which are better. Deep ones go on from quick ones, unless
        they have all boxes already, and are taken to need them."""
        started = time.process_time()
        quick = self._quick(box)
        seconds = time.process_time() - started
        far = distance(quick)
        if not far:
            return quick
        started = time.process_time()
        begin = known_there if self.is_deep else quick.bounds
        deep = self._deep(box, begin, self.budget.capped(_LONGEST_TRIAL * seconds))
        took = time.process_time() - started + (0.0 if self.is_deep else seconds)
        near = distance(deep)
        self._decide(seconds * far if near else 1.0, took * near if near else 0.0)
        return deep if near <= far else quick

    def _decide(self, quick: float, deep: float) -> None:
        """Take the way with the smaller product; one that is ``_DECISIVE`` times as large is as bad
        as any."""
        self.is_deep, factor = deep < quick, 1.0
        better, worse = sorted((quick, deep))
        if math.isfinite(quick + deep) and worse:  # distances may be so small that products are 0
            factor = min(worse / better, _DECISIVE) if better else _DECISIVE
        self.next_trial = _AGAIN * self.boxes * factor**2

    def _quick(self, box: _Box) -> Enclosure:
        layers = LayerBounder(self.network, self.memory, quick=True, budget=self.budget)
        return layers.run(*box)

    def _deep(self, box: _Box, known_there: Bounds, budget: Budget) -> Enclosure:
        layers = LayerBounder(self.network, self.memory, budget=budget)
        return layers.run(*box, known_there, self.outputs)
