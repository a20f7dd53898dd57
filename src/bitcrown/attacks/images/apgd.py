"""Auto-PGD: gradient ascent whose step size needs no tuning.

Croce & Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse
parameter-free attacks", 2020, algorithm 1; for L1 their "Mind the box: l1-APGD for sparse
adversarial attacks on image classifiers", 2021. Both are one loop: step, look, remember the best
point, and at check points adapt the step and perhaps go back to the best point. What differs by
norm is a value, ``_Variant``. With ``P`` the projection onto ball and pixel range:

* L-infinity and L2 (``_DENSE``): with ``d`` the steepest direction of the norm and momentum,
  ``z = P(x_k + eta d_k)``, ``x_{k+1} = P(x_k + a (z - x_k) + (1 - a) (x_k - x_{k-1}))``, a = 0.75
  (1 at first). ``eta`` begins at ``2 eps``. At check points (after 22 % of the steps, then at
  intervals that shrink by 3 % down to 6 %) it is halved, and the ascent goes on from the best point
  so far, if fewer than 75 % of the steps since the last check point raised the loss, or if the best
  loss has not moved since then although ``eta`` was not halved there.
* L1 (``_SPARSE``): the steepest direction moves a single pixel, which is far too slow, and a dense
  one wastes the radius. So a step moves the largest ``k`` entries of the gradient,
  ``x <- P(x + eta sign(g_k) / k)``. ``k`` follows the sparsity of the best point so far: two thirds
  of its changed pixels. At check points every 4 % of the steps ``eta`` returns to ``eps`` if that
  sparsity has fallen by 5 %, and shrinks by 1.5 otherwise (down to ``eps / 10``). The steps are
  spent on radii 3 eps, 2 eps and eps (30, 30 and 40 %), each climb beginning at the projection of
  where the last one ended: the larger balls show the way. Only points of the smallest ball count.

Images leave as soon as they are broken, so a step costs what still stands.

Legend: ``B`` images, ``R`` of them still standing, ``C`` channels, ``H x W`` pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from bitcrown.attacks.images.ball import Ball, BallAround
from bitcrown.attacks.images.noise import Keys
from bitcrown.attacks.images.pgd import sparse_direction, steepest
from bitcrown.attacks.images.trace import Trace
from bitcrown.attacks.images.victim import ImageLoss, Victim

_MOMENTUM = 0.75
_RISING_SHARE = 0.75
_SHRINK = 1.5
_FIRST_SPARSITY = 0.2


@dataclass(frozen=True)
class _Variant:
    """The parts that differ by norm.

    ``radii``: factor of the radius and share of the steps of each climb; ``first_step``: in radii;
    ``checks``: steps of a climb to check points, with how many steps each looks back on; ``moved``:
    the next points ``[R, C, H, W]`` (of a climb's first step: or not); ``adapted``: a check point
    that looks back on so many steps.
    """

    radii: tuple[tuple[float, float], ...]
    first_step: float
    checks: Callable[[float], Mapping[int, int]]
    moved: Callable[[_Climb, bool], Tensor]
    adapted: Callable[[_Climb, int], _Climb]


@dataclass(frozen=True)
class _Task:
    """What does not change: fields over all ``B`` images, and where the answers go."""

    victim: Victim
    ball: Ball
    loss: ImageLoss
    labels: Tensor
    classes: Tensor
    trace: Trace


class _Climb(NamedTuple):
    """State of the images still standing, every field ``[R, ...]``; ``around``: the present ball.

    ``rises``, ``was_halved`` and ``checked_value`` are what ``_halved`` looks back on,
    ``moving`` (the share of pixels that a step moves) and ``changed`` what ``_resparsed`` does.
    """

    around: BallAround
    place: Tensor
    x: Tensor
    before: Tensor
    slope: Tensor
    value: Tensor
    best: Tensor
    best_value: Tensor
    best_slope: Tensor
    first_value: Tensor
    step: Tensor
    rises: Tensor
    was_halved: Tensor
    checked_value: Tensor
    moving: Tensor
    changed: Tensor

    def keep(self, index: Tensor) -> _Climb:
        """The images of numbers ``index`` only."""
        around, *fields = self
        return _Climb(around.at(index), *(field.index_select(0, index) for field in fields))


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
    """One run for ``clean [B, C, H, W]``; ``keys [B]``: random start; ``loss`` takes ``classes``.

    Any class other than the label breaks an image, also when ``loss`` aims at one of them.
    """
    task = _Task(victim, ball, loss, labels, classes, Trace.empty(clean))
    variant = _SPARSE if ball.norm == "L1" else _DENSE
    place = torch.arange(len(clean), device=clean.device)
    x = ball.start(clean, keys)
    for number, (factor, share) in enumerate(variant.radii):
        around = replace(ball, eps=factor * ball.eps).around(clean.index_select(0, place))
        if len(variant.radii) > 1:
            x = around.project(x)
        climb = _begin(task, around, place, x, variant.first_step, is_first=number == 0)
        checks = variant.checks(share * steps)
        for step in range(1, int(share * steps) + 1):
            if not len(climb.place):
                return task.trace
            moved = climb._replace(before=climb.x, x=variant.moved(climb, step == 1))
            # With one radius nobody reads the last gradient. With several it is looked at like the
            # others: a randomised network draws its numbers call by call.
            is_last = step == steps and len(variant.radii) == 1
            climb = _look(task, moved, is_last)
            if step in checks:
                climb = variant.adapted(climb, checks[step])
        place, x = climb.place, climb.best
        if not len(place):
            return task.trace
    task.trace.flat[place] = ~(climb.best_value > climb.first_value)
    return task.trace


def _begin(
    task: _Task, around: BallAround, place: Tensor, x: Tensor, first_step: float, is_first: bool
) -> _Climb:
    logits, value, slope = task.victim.gradient(x, task.loss, task.classes[place])
    task.trace.note_gradient(place, slope, is_first)
    value = value.nan_to_num(-torch.inf)
    step = torch.full(
        (len(x), 1, 1, 1), first_step * around.ball.eps, dtype=x.dtype, device=x.device
    )
    none = torch.zeros_like(value)
    changed = _changed_share(x, around.clean)
    climb = _Climb(
        around=around, place=place, x=x, before=x, slope=slope, value=value,
        best=x.clone(), best_value=value, best_slope=slope.clone(), first_value=value,
        step=step, rises=none, was_halved=none > 0, checked_value=value,
        moving=torch.full_like(changed, _FIRST_SPARSITY) if is_first else changed / _SHRINK,
        changed=torch.ones_like(changed),
    )  # fmt: skip
    return _retire(task, climb, logits)


def _look(task: _Task, climb: _Climb, is_last: bool) -> _Climb:
    """Evaluate the new points, note rises and the best, let go of what is broken."""
    classes = task.classes[climb.place]
    if is_last:
        logits, slope = task.victim.logits(climb.x), climb.slope
        value = task.loss(logits, classes)
    else:
        logits, value, slope = task.victim.gradient(climb.x, task.loss, classes)
        task.trace.note_gradient(climb.place, slope, is_first=False)
    # NaN is never above anything, so best_value is the largest value seen that is a number. The two
    # fields of the best point belong to the climb alone: the rows that rose are written into them.
    better = value > climb.best_value
    rose = better.nonzero().flatten()
    climb.best.index_copy_(0, rose, climb.x.index_select(0, rose))
    climb.best_slope.index_copy_(0, rose, slope.index_select(0, rose))
    climb = climb._replace(
        slope=slope,
        rises=climb.rises + (value > climb.value),
        value=value,
        best_value=torch.where(better, value, climb.best_value),
    )
    return _retire(task, climb, logits)


def _retire(task: _Task, climb: _Climb, logits: Tensor) -> _Climb:
    """Let go of what is broken within the ball asked about, however large the present one is."""
    labels = task.labels[climb.place]
    if climb.around.ball == task.ball:  # projected points lie inside
        broken = task.victim.breaks(climb.x, logits, labels)
    else:
        broken = task.ball.contains(climb.x, climb.around.clean)
        inside = broken.nonzero().flatten()
        broken[inside] = task.victim.breaks(climb.x[inside], logits[inside], labels[inside])
    if not bool(broken.any()):
        return climb
    task.trace.record(climb.place[broken], climb.x[broken])
    return climb.keep((~broken).nonzero().flatten())


# ---- L-infinity and L2


def _shrinking_intervals(steps: float) -> dict[int, int]:
    interval = max(int(0.22 * steps), 1)
    checks, at = {}, 0
    while at <= steps:
        at += interval
        checks[at] = interval
        interval = max(interval - max(int(0.03 * steps), 1), max(int(0.06 * steps), 1))
    return checks


def _with_momentum(climb: _Climb, is_first: bool) -> Tensor:
    """``x_{k+1}``; in place, since a step of a small network costs no more than its passes."""
    share = 1.0 if is_first else _MOMENTUM
    around = climb.around
    # z = P(x + eta d)
    z = around.project(steepest(climb.slope, around.ball.norm).mul_(climb.step).add_(climb.x))
    # P(x + a (z - x) + (1 - a) (x - before))
    inertia = (climb.x - climb.before).mul_(1.0 - share)
    return around.project(z.sub_(climb.x).mul_(share).add_(climb.x).add_(inertia))


def _halved(climb: _Climb, interval: int) -> _Climb:
    """Halve the step where the ascent stalls, and go back to the best point there."""
    # Condition 1 of the paper: at most 75 % of the steps rose. Condition 2: neither the step nor
    # the best value has changed since the last check point (best values only grow).
    oscillates = climb.rises <= _RISING_SHARE * interval
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


_DENSE = _Variant(((1.0, 1.0),), 2.0, _shrinking_intervals, _with_momentum, _halved)


# ---- L1


def _equal_intervals(steps: float) -> dict[int, int]:
    every = max(int(0.04 * steps), 1)
    return dict.fromkeys(range(every, int(steps) + 1, every), every)


def _sparsely(climb: _Climb, is_first: bool) -> Tensor:
    return climb.around.project(climb.x + climb.step * sparse_direction(climb.slope, climb.moving))


def _resparsed(climb: _Climb, interval: int) -> _Climb:
    """Adapt how many pixels a step moves and how far; go back to the best if it is sparser."""
    eps = climb.around.ball.eps
    changed = _changed_share(climb.best, climb.around.clean)
    chosen = (changed < 0.95 * climb.changed).reshape(-1, 1, 1, 1)
    smaller = (climb.step / _SHRINK).clamp(min=eps / 10)
    return climb._replace(
        step=torch.where(chosen, torch.full_like(climb.step, eps), smaller),
        x=torch.where(chosen, climb.best, climb.x),
        slope=torch.where(chosen, climb.best_slope, climb.slope),
        moving=changed / _SHRINK,
        changed=changed,
    )


def _changed_share(x: Tensor, clean: Tensor) -> Tensor:
    """``[R]``: share of the entries that differ."""
    return (x != clean).flatten(1).double().mean(dim=1)


_SPARSE = _Variant(
    ((3.0, 0.3), (2.0, 0.3), (1.0, 0.4)), 1.0, _equal_intervals, _sparsely, _resparsed
)
