"""What changes during training, as functions of the share ``t`` of the run that is done (0 to 1).

*Radius*: zero until ``start``, full from ``end`` on; in between linear, or smooth: first a power of
4, whose derivative is small where the network is not ready for boxes yet, then from a quarter of
the way the tangent line, which arrives exactly (as in auto_LiRPA's schedules). *beta* is the share
of CROWN in the last bound (Zhang et al., CROWN-IBP, 2020): interval bounds train well at large
radii, linear ones at small ones, so with ``beta_end < 1`` it falls from 1 with the radius. *kappa*
is the share of the natural loss and moves with the radius too.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from bitcrown.train.settings import TrainSettings

_POWER = 4.0
_MIDDLE = 0.25
_DROPS = (0.7, 0.9)
"""Shares of the run after which the stepwise learning rate is divided by ten."""


class StepValues(NamedTuple):
    """Values for one step."""

    eps: float
    beta: float
    kappa: float
    learning_rate: float


def step_values(settings: TrainSettings, t: float) -> StepValues:
    share = _eps_share(settings, t)
    full = settings.eps * settings.train_eps_factor
    kappa = settings.kappa_start + (settings.kappa_end - settings.kappa_start) * share
    beta = 1.0 - share * (1.0 - settings.beta_end)
    kappa = 1.0 if settings.method == "natural" else kappa
    return StepValues(full * share, beta, kappa, _learning_rate(settings, t))


def _eps_share(settings: TrainSettings, t: float) -> float:
    """Share of the full radius."""
    if settings.eps_schedule == "constant" or t >= settings.eps_end:
        return 1.0
    if t <= settings.eps_start:
        return 0.0
    way = (t - settings.eps_start) / (settings.eps_end - settings.eps_start)
    if settings.eps_schedule == "linear":
        return way
    scale = 1.0 / (1.0 + _POWER * (1.0 - _MIDDLE) / _MIDDLE)
    if way <= _MIDDLE:
        return float(scale * (way / _MIDDLE) ** _POWER)
    return scale * (1.0 + _POWER * (way - _MIDDLE) / _MIDDLE)


def _learning_rate(settings: TrainSettings, t: float) -> float:
    if t < settings.warm_up:
        return settings.learning_rate * max(0.01, t / settings.warm_up)
    if settings.learning_schedule == "steps":
        return settings.learning_rate * 0.1 ** sum(t >= drop for drop in _DROPS)
    if settings.learning_schedule == "cosine":
        way = (t - settings.warm_up) / max(1e-9, 1.0 - settings.warm_up)
        return settings.learning_rate * max(0.001, 0.5 * (1.0 + math.cos(math.pi * min(1.0, way))))
    return settings.learning_rate
