"""Sine and cosine, on intervals of any width, through the best intercept of every slope.

For a slope ``m`` in ``[-1, 1]`` the function ``f(x) - m x`` has its local minima where ``f' = m`` and ``f < 0``: at
``v + asin(m) + 2 pi k`` with ``v`` the place of a minimum of ``f`` (``-pi/2`` for sine, ``pi`` for cosine). Their
values fall with ``k`` where ``m > 0`` and rise where ``m < 0``, so the least over ``[l, u]`` is at an end or at the
last (first) local minimum inside. That is the exact intercept of the lower line with slope ``m``; clamping the local
minimum into ``[l, u]`` makes it an end where there is none inside. Upper lines: the same for ``-f``, whose minima are
half a period away.

Alpha is the slope, from the least to the largest derivative on the interval. The default is the line that is highest
at the midpoint (the least area), found by bisection: the line's value there is concave in ``m`` with derivative
``midpoint - minimiser(m)``.

Rounding: if the computed minimiser is ``e`` away from the true one, the value is too large by at most ``e^2 / 2``, as
``|f''| <= 1`` and the derivative vanishes there; ``e`` is a few epsilons times ``|x| + 8``. The derivative of the
intercept in ``m`` is minus the minimiser (envelope theorem), so the minimiser itself needs no derivative. Beyond
``LARGEST_ANGLE`` periods are not told apart safely and the constants -1 and 1 serve.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bitcrown.bounds.relaxations.lines import gap_below, lower_or_constant
from bitcrown.bounds.relaxations.registry import Nonlinear, Relaxation, register
from bitcrown.model.graph import Node

TURN = 2 * math.pi
LARGEST_ANGLE = 8192.0
BISECTIONS = 14


@dataclass(frozen=True)
class Wave:
    """``value`` with period 2 pi, minimum -1 at ``valley``."""

    value: Callable[[Tensor], Tensor]
    valley: float

    @property
    def negated(self) -> Wave:
        return Wave(lambda x: -self.value(x), self.valley + math.pi)

    @property
    def derivative(self) -> Wave:
        """A wave a quarter of a period ahead: ``f'(x) = f(x + pi/2)``, least a quarter before the minimum of f."""
        return Wave(lambda x: self.value(x + math.pi / 2), self.valley - math.pi / 2)


SINE = Wave(torch.sin, -math.pi / 2)
COSINE = Wave(torch.cos, math.pi)


class Problem:
    """The lower lines of ``wave`` on ``[low, up]``."""

    def __init__(self, wave: Wave, low: Tensor, up: Tensor) -> None:
        self.wave, self.low, self.up = wave, low, up
        self.value_low, self.value_up = wave.value(low), wave.value(up)

    def inner_minimum(self, slope: Tensor) -> Tensor:
        """The local minimum of ``f - slope x`` that may be least, or an end of the interval."""
        first = torch.asin(slope.clamp(-1.0, 1.0)) + self.wave.valley
        last_turn = torch.floor((self.up - first) / TURN)
        first_turn = torch.ceil((self.low - first) / TURN)
        turns = torch.where(slope > 0, last_turn, first_turn)
        return torch.clamp(first + turns * TURN, self.low, self.up)

    def minimiser(self, slope: Tensor) -> Tensor:
        """Where ``f - slope x`` is least on the interval, approximately."""
        x = self.inner_minimum(slope)
        best = self.wave.value(x) - slope * x
        for end, value in ((self.low, self.value_low), (self.up, self.value_up)):
            gap = value - slope * end
            x = torch.where(gap < best, end, x)
            best = torch.minimum(gap, best)
        return x

    def intercept(self, slope: Tensor) -> Tensor:
        """A sound intercept for any slope; differentiable in it."""
        with torch.no_grad():
            x = self.inner_minimum(slope)
            value = self.wave.value(x)
            slack = (4 * torch.finfo(x.dtype).eps * (x.abs() + 8)).square()
        ends = torch.minimum(gap_below(self.value_low, slope, self.low), gap_below(self.value_up, slope, self.up))
        return torch.minimum(ends, gap_below(value, slope, x) - slack)

    def least(self) -> Tensor:
        """A lower bound of the wave on the interval."""
        is_far = torch.maximum(self.low.abs(), self.up.abs()) > LARGEST_ANGLE
        return torch.where(is_far, -1.0, self.intercept(torch.zeros_like(self.low)).clamp(min=-1.0))

    def slope_range(self) -> tuple[Tensor, Tensor]:
        """Least and largest derivative, approximately."""
        derivative = self.wave.derivative
        return Problem(derivative, self.low, self.up).least(), -Problem(derivative.negated, self.low, self.up).least()

    def best_fraction(self) -> Tensor:
        """Where in the slope range the line highest at the midpoint is."""
        flattest, steepest = self.slope_range()
        middle = self.low * 0.5 + self.up * 0.5
        left, right = torch.zeros_like(middle), torch.ones_like(middle)
        for _ in range(BISECTIONS):
            fraction = (left + right) * 0.5
            should_rise = self.minimiser(flattest + fraction * (steepest - flattest)) < middle
            left, right = torch.where(should_rise, fraction, left), torch.where(should_rise, right, fraction)
        return (left + right) * 0.5

    def line(self, fraction: Tensor | None) -> tuple[Tensor, Tensor]:
        flattest, steepest = self.slope_range()
        if fraction is None:
            fraction = self.best_fraction()
        slope = flattest + fraction * (steepest - flattest)
        is_far = torch.maximum(self.low.abs(), self.up.abs()) > LARGEST_ANGLE
        intercept = torch.where(is_far, -torch.inf, self.intercept(slope))
        return lower_or_constant(slope, intercept, self.least(), self.low, self.up)


def _row(op: str, wave: Wave) -> None:
    def interval(node: Node, lowers: Sequence[Tensor], uppers: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        low, up = lowers[0], uppers[0]
        return Problem(wave, low, up).least(), -Problem(wave.negated, low, up).least()

    def default_alpha(node: Node, lowers: Sequence[Tensor], uppers: Sequence[Tensor]) -> Tensor:
        low, up = lowers[0], uppers[0]
        return torch.stack([Problem(each, low, up).best_fraction() for each in (wave, wave.negated)])

    def relax(node: Node, lowers: Sequence[Tensor], uppers: Sequence[Tensor], alpha: Tensor | None) -> Relaxation:
        low, up = lowers[0], uppers[0]
        first, second = (None, None) if alpha is None else (alpha[0], alpha[1])
        slope, intercept = Problem(wave, low, up).line(first)
        negated_slope, negated_intercept = Problem(wave.negated, low, up).line(second)
        return Relaxation((slope,), intercept, (-negated_slope,), -negated_intercept)

    register(Nonlinear(op, interval, relax, alphas=2, default_alpha=default_alpha))


_row("Sin", SINE)
_row("Cos", COSINE)
