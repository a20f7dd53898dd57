"""Auto-PGD for the L1 ball: sparse steps.

Croce & Hein, "Mind the box: l1-APGD for sparse adversarial attacks on image classifiers", 2021. The
steepest direction of the L1 ball moves a single pixel, which is far too slow, a dense one wastes
the radius. So a step moves the largest ``k`` entries of the gradient,
``x <- P(x + eta sign(g_k) / k)``, with the exact projection ``P`` onto ball and pixel range. ``k``
follows the sparsity of the best point so far, two thirds of its changed pixels, and the step size
``eta`` returns to ``eps`` when that sparsity has fallen by 5 %, otherwise shrinks by 1.5 (down to
``eps / 10``), at check points every 4 % of the steps.

The steps are spent on radii 3 eps, 2 eps and eps (30, 30 and 40 %), each run beginning at the
projection of where the last one ended: the larger balls show the way. Only points of the smallest
ball count.

Legend: ``B`` images, ``R`` of them still standing, ``C`` channels, ``H x W`` pixels, ``n = C H W``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from bitcrown.attacks.images.ball import Ball
from bitcrown.attacks.images.noise import Keys
from bitcrown.attacks.images.trace import Trace
from bitcrown.attacks.images.victim import ImageLoss, Victim

RADII = ((3.0, 0.3), (2.0, 0.3), (1.0, 0.4))
"""Factor of the radius and share of the steps."""
SHRINK = 1.5
FIRST_SHARE = 0.2


@dataclass(frozen=True)
class _Task:
    """What does not change: fields over all ``B`` images, and where the answers go."""

    victim: Victim
    ball: Ball
    loss: ImageLoss
    clean: Tensor
    labels: Tensor
    classes: Tensor
    trace: Trace


class _Climb(NamedTuple):
    """State of the images still standing; every field ``[R, ...]``."""

    place: Tensor
    x: Tensor
    slope: Tensor
    best: Tensor
    best_value: Tensor
    best_slope: Tensor
    step: Tensor
    share: Tensor
    changed: Tensor
    first_value: Tensor

    def keep(self, mask: Tensor) -> _Climb:
        """The images of ``mask [R]`` only."""
        return self if bool(mask.all()) else _Climb(*(field[mask] for field in self))


def apgd_l1(
    victim: Victim,
    clean: Tensor,
    labels: Tensor,
    ball: Ball,
    keys: Keys,
    steps: int,
    loss: ImageLoss,
    classes: Tensor,
) -> Trace:
    """As ``apgd.apgd``, for a ball in L1."""
    task = _Task(victim, ball, loss, clean, labels, classes, Trace.empty(clean))
    place = torch.arange(len(clean), device=clean.device)
    x = ball.start(clean, keys)
    for number, (factor, share) in enumerate(RADII):
        wide = replace(ball, eps=factor * ball.eps)
        climb = _begin(task, wide, place, wide.project(x, clean[place]), number)
        every = max(int(0.04 * share * steps), 1)
        for step in range(1, int(share * steps) + 1):
            if not len(climb.place):
                break
            moved = climb.x + climb.step * sparse_direction(climb.slope, climb.share)
            climb = _look(task, climb._replace(x=wide.project(moved, clean[climb.place])))
            if step % every == 0:
                climb = _check(climb, clean[climb.place], wide.eps)
        place, x = climb.place, climb.best
    task.trace.flat[climb.place] = ~(climb.best_value > climb.first_value)
    return task.trace


def sparse_direction(slope: Tensor, share: Tensor) -> Tensor:
    """Signs of the largest entries of ``slope [R, C, H, W]``, a ``share [R]`` of them, of sum 1 in
    absolute value."""
    flat = slope.nan_to_num(0.0, 0.0, 0.0).flatten(1)
    count = (share * flat.shape[1]).long().clamp(1, flat.shape[1])
    ranked = flat.abs().sort(dim=1, descending=True).values
    least = ranked.gather(1, count.unsqueeze(1) - 1)
    signs = torch.where(flat.abs() >= least, flat.sign(), torch.zeros_like(flat))
    return (signs / signs.abs().sum(dim=1, keepdim=True).clamp(min=1.0)).reshape(slope.shape)


def _begin(task: _Task, wide: Ball, place: Tensor, x: Tensor, number: int) -> _Climb:
    logits, value, slope = task.victim.gradient(x, task.loss, task.classes[place])
    task.trace.note_gradient(place, slope, is_first=number == 0)
    value = value.nan_to_num(-torch.inf)
    step = torch.full((len(x), 1, 1, 1), wide.eps, dtype=x.dtype, device=x.device)
    changed = _changed_share(x, task.clean[place])
    share = changed / SHRINK if number else torch.full_like(changed, FIRST_SHARE)
    climb = _Climb(place, x, slope, x, value, slope, step, share, torch.ones_like(changed), value)
    return _retire(task, climb, logits)


def _changed_share(x: Tensor, clean: Tensor) -> Tensor:
    return (x != clean).flatten(1).double().mean(dim=1)


def _look(task: _Task, climb: _Climb) -> _Climb:
    logits, value, slope = task.victim.gradient(climb.x, task.loss, task.classes[climb.place])
    task.trace.note_gradient(climb.place, slope, is_first=False)
    better = value > climb.best_value
    chosen = better.reshape(-1, 1, 1, 1)
    climb = climb._replace(
        slope=slope,
        best=torch.where(chosen, climb.x, climb.best),
        best_value=torch.where(better, value, climb.best_value),
        best_slope=torch.where(chosen, slope, climb.best_slope),
    )
    return _retire(task, climb, logits)


def _retire(task: _Task, climb: _Climb, logits: Tensor) -> _Climb:
    """Let go of what is broken within the ball asked about, however large the present one is."""
    inside = task.ball.contains(climb.x, task.clean[climb.place])
    broken = torch.zeros_like(inside)
    broken[inside] = task.victim.breaks(
        climb.x[inside], logits[inside], task.labels[climb.place[inside]]
    )
    task.trace.record(climb.place[broken], climb.x[broken])
    return climb.keep(~broken)


def _check(climb: _Climb, clean: Tensor, eps: float) -> _Climb:
    """Adapt how many pixels a step moves and how far; where the best point became sparser, go back
    to it."""
    changed = _changed_share(climb.best, clean)
    sparser = changed < 0.95 * climb.changed
    chosen = sparser.reshape(-1, 1, 1, 1)
    smaller = (climb.step / SHRINK).clamp(min=eps / 10)
    return climb._replace(
        step=torch.where(chosen, torch.full_like(climb.step, eps), smaller),
        x=torch.where(chosen, climb.best, climb.x),
        slope=torch.where(chosen, climb.best_slope, climb.slope),
        share=changed / SHRINK,
        changed=changed,
    )
