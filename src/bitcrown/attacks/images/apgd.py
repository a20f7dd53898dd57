"""Auto-PGD: gradient ascent with momentum whose step size needs no tuning.

Croce & Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse
parameter-free attacks", 2020, algorithm 1. With ``P`` the projection onto the ball and ``d`` the
steepest direction of its norm,

``z = P(x_k + eta d_k)``,  ``x_{k+1} = P(x_k + a (z - x_k) + (1 - a) (x_k - x_{k-1}))``,  a = 0.75
(1 at first).

``eta`` begins at ``2 eps``. At check points (after 22 % of the steps, then at intervals that shrink
by 3 % down to 6 %) it is halved, and the ascent goes on from the best point so far, if fewer than
75 % of the steps since the last check point raised the loss, or if the best loss has not moved
since then although ``eta`` was not halved there.

For L1 see ``apgd_l1``. Images leave as soon as they are broken, so a step costs what still stands.

Legend: ``B`` images, ``R`` of them still standing, ``C`` channels, ``H x W`` pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from bitcrown.attacks.images.ball import Ball, Region
from bitcrown.attacks.images.noise import Keys
from bitcrown.attacks.images.pgd import steepest
from bitcrown.attacks.images.trace import Trace
from bitcrown.attacks.images.victim import ImageLoss, Victim

MOMENTUM = 0.75
RISING_SHARE = 0.75


class _Climb(NamedTuple):
    """State of the images still standing; every field ``[R, ...]``."""

    place: Tensor
    classes: Tensor
    region_clean: Tensor
    region_lower: Tensor
    region_upper: Tensor
    x: Tensor
    before: Tensor
    slope: Tensor
    value: Tensor
    best: Tensor
    best_value: Tensor
    best_slope: Tensor
    step: Tensor
    rises: Tensor
    was_halved: Tensor
    checked_value: Tensor
    first_value: Tensor

    def region(self, ball: Ball) -> Region:
        return Region(ball, self.region_clean, self.region_lower, self.region_upper)

    def keep(self, index: Tensor) -> _Climb:
        """The images of numbers ``index`` only."""
        return _Climb(*(field.index_select(0, index) for field in self))


def apgd(
    victim: Victim,
    clean: Tensor,
    labels: Tensor,
    ball: Ball,
    keys: Keys,
    steps: int,
    loss: ImageLoss,
    classes: Tensor,
) -> Trace:
    """One run for ``clean [B, C, H, W]`` (``keys [B]``: the random start); ``classes [B, ...]`` is
    what ``loss`` takes.

    Any class other than the label breaks an image, also when ``loss`` aims at one of them.
    """
    trace = Trace.empty(clean)
    climb = _begin(victim, clean, labels, ball, keys, loss, classes, trace)
    interval = max(int(0.22 * steps), 1)
    last_check, next_check = 0, interval
    for step in range(1, steps + 1):
        if not len(climb.place):
            break
        x = _moved(climb, ball, MOMENTUM if step > 1 else 1.0)
        climb = _look(
            victim, climb._replace(before=climb.x, x=x), labels, loss, trace, is_last=step == steps
        )
        if step == next_check:
            climb = _check(climb, next_check - last_check)
            interval = max(interval - max(int(0.03 * steps), 1), max(int(0.06 * steps), 1))
            last_check, next_check = next_check, next_check + interval
    trace.flat[climb.place] = ~(climb.best_value > climb.first_value)
    return trace


def _moved(climb: _Climb, ball: Ball, share: float) -> Tensor:
    """``x_{k+1}`` where ``a`` is ``share``; in place, since a step of a small network costs no more
    than its passes."""
    region = climb.region(ball)
    z = region.project(steepest(climb.slope, ball.norm).mul_(climb.step).add_(climb.x))
    inertia = (climb.x - climb.before).mul_(1.0 - share)
    return region.project(z.sub_(climb.x).mul_(share).add_(climb.x).add_(inertia))


def _begin(
    victim: Victim,
    clean: Tensor,
    labels: Tensor,
    ball: Ball,
    keys: Keys,
    loss: ImageLoss,
    classes: Tensor,
    trace: Trace,
) -> _Climb:
    x = ball.start(clean, keys)
    logits, value, slope = victim.gradient(x, loss, classes)
    place = torch.arange(len(x), device=x.device)
    trace.note_gradient(place, slope, is_first=True)
    value = value.nan_to_num(-torch.inf)
    step = torch.full((len(x), 1, 1, 1), 2.0 * ball.eps, dtype=x.dtype, device=x.device)
    none = torch.zeros_like(value)
    region = ball.around(clean)
    climb = _Climb(
        place, classes, clean, region.lower, region.upper, x, x, slope, value, x.clone(), value,
        slope.clone(), step,
        none, none > 0, value, value,
    )  # fmt: skip
    return _retire(victim, climb, logits, labels, trace)


def _look(
    victim: Victim, climb: _Climb, labels: Tensor, loss: ImageLoss, trace: Trace, is_last: bool
) -> _Climb:
    """Evaluate the new points; note rises and the best; let go of what is broken. The last look
    needs no gradient."""
    if is_last:
        logits, value, slope = victim.logits(climb.x), None, climb.slope
        value = loss(logits, climb.classes)
    else:
        logits, value, slope = victim.gradient(climb.x, loss, climb.classes)
        trace.note_gradient(climb.place, slope, is_first=False)
    better = value > climb.best_value
    # The two fields of the best point belong to the climb alone, so the rows that rose are written
    # into them.
    rose = better.nonzero().flatten()
    climb.best.index_copy_(0, rose, climb.x.index_select(0, rose))
    climb.best_slope.index_copy_(0, rose, slope.index_select(0, rose))
    climb = climb._replace(
        slope=slope,
        rises=climb.rises + (value > climb.value),
        value=value,
        best_value=torch.where(better, value, climb.best_value),
    )
    return _retire(victim, climb, logits, labels, trace)


def _retire(victim: Victim, climb: _Climb, logits: Tensor, labels: Tensor, trace: Trace) -> _Climb:
    broken = victim.breaks(climb.x, logits, labels[climb.place])
    if not bool(broken.any()):
        return climb
    trace.record(climb.place[broken], climb.x[broken])
    return climb.keep((~broken).nonzero().flatten())


def _check(climb: _Climb, interval: int) -> _Climb:
    """Halve the step where the ascent stalls, and go back to the best point there."""
    oscillates = climb.rises <= RISING_SHARE * interval
    stands = ~climb.was_halved & (climb.checked_value >= climb.best_value)
    halve = oscillates | stands
    chosen = halve.reshape(-1, 1, 1, 1)
    return climb._replace(
        step=torch.where(chosen, climb.step / 2, climb.step),
        x=torch.where(chosen, climb.best, climb.x),
        slope=torch.where(chosen, climb.best_slope, climb.slope),
        rises=torch.zeros_like(climb.rises),
        was_halved=halve,
        checked_value=climb.best_value,
    )
