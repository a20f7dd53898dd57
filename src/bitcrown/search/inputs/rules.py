"""Where to cut a box: a handful of rules, none of which is right everywhere, so they compete.

A row's line falls by ``|a_i| * width_i / 2`` at worst when coordinate ``i`` is halved *and the line
stays*: that is all that ``influence`` sees (smart branching). What matters more often is how the
relaxations tighten, which the line does not show: a coordinate may decide every neuron and have a
small coefficient. The others guard against that, each in its own way; ``look-ahead`` bounds both
halves along every coordinate with the cheap stage and multiplies what they gain.

Widths are measured against the root box, coefficients with them: rescaling an input changes
nothing.
Legend: see ``boxes``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bitcrown.bounds.claims import ratio

Score = Callable[[Tensor, Tensor], Tensor]
"""``score(weight [B, rows, n], share [B, n]) -> [B, n]``: ``weight`` is ``|a|`` times the root's
width for the rows of open cases (zero elsewhere), ``share`` a box's width over the root's."""


@dataclass(frozen=True)
class SplitRule:
    """``looks``: how many of the best coordinates are tried out before one is chosen."""

    name: str
    score: Score
    looks: int = 0


def _raised(weight: Tensor, floor: float) -> Tensor:
    """``weight [B, n]``, raised by a share of the box's largest: no coordinate is out of sight."""
    return weight + floor * weight.amax(1, keepdim=True)


def _longest(weight: Tensor, share: Tensor) -> Tensor:
    return share


def _largest(floor: float) -> Score:
    return lambda weight, share: _raised(weight.amax(1), floor) * share


def _total(floor: float) -> Score:
    return lambda weight, share: _raised(weight.sum(1), floor) * share


SPLIT_RULES = (
    SplitRule("look-ahead", _total(0.3), looks=6),
    SplitRule("influence", _largest(1e-3)),
    SplitRule("total influence", _total(0.03)),
    SplitRule("raised influence", _largest(0.3)),
    SplitRule("longest edge", _longest),
)


def scores(rule: SplitRule, a: Tensor, is_open: Tensor, width: Tensor, root: Tensor) -> Tensor:
    """Scores ``[B, n]`` of the coordinates: finite, larger is better, ties go to the longer edge.

    ``a [B, Q, S, n]``, ``is_open [B, Q]``, widths ``[B, n]``. Rows without a bound say nothing.
    """
    used = torch.where(is_open[:, :, None, None] & torch.isfinite(a), a.abs(), 0.0).flatten(1, 2)
    share = ratio(width, root)
    score = rule.score(used * root.unsqueeze(1), share)
    score = torch.where(torch.isfinite(score), score, share)
    return score + 1e-9 * score.amax(1, keepdim=True) * share
