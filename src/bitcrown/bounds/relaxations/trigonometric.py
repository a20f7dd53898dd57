"""Sine and cosine, on intervals of any width, through the best intercept of every slope.

For a slope ``m`` in ``[-1, 1]`` the function ``f(x) - m x`` has its local minima where ``f' = m``
and ``f < 0``: at ``v + asin(m) + 2 pi k`` with ``v`` the place of a minimum of ``f`` (``-pi/2`` for
sine, ``pi`` for cosine). Their values fall with ``k`` where ``m > 0`` and rise where ``m < 0``, so
the least over ``[l, u]`` is at an end or at the last (first) local minimum inside. That is the
exact intercept of the lower line with slope ``m``; clamping the local minimum into ``[l, u]`` makes
it an end where there is none inside. Upper lines: the same for ``-f``, whose minima are half a
period away.

Alpha is the slope, from the least to the largest derivative on the interval. The default is the
line that is highest at the midpoint (the least area), found by bisection: the line's value there is
concave in ``m`` with derivative ``midpoint - minimiser(m)``.

Rounding: if the computed minimiser is ``e`` away from the true one, the value is too large by at
most ``e^2 / 2``, as ``|f''| <= 1`` and the derivative vanishes there; ``e`` is a few epsilons times
``|x| + 8``. The derivative of the intercept in ``m`` is minus the minimiser (envelope theorem), so
the minimiser itself needs no derivative. Beyond ``_LARGEST_ANGLE`` periods are not told apart
safely, and the constants -1 and 1 serve.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from bitcrown.bounds.relaxations.lines import gap_below, lower_or_constant
from bitcrown.bounds.relaxations.registry import Operands, Pair, Relaxation, register_nonlinear
from bitcrown.model.graph import Node

_TURN = 2 * math.pi
_LARGEST_ANGLE = 8192.0
_BISECTIONS = 14


class _BestLines:
    """Lower lines of ``f`` and of ``-f`` on ``[low, up] [B, *]``, computed together: everything
    else is ``[2, B, *]``.

    ``valley`` is the place of a minimum of ``f``, which has period 2 pi.
    """

    def __init__(
        self, function: Callable[[Tensor], Tensor], valley: float, low: Tensor, up: Tensor
    ) -> None:
        self.function, self.low, self.up = function, low, up
        axes = [1] * low.dim()
        # Made on the device: a list would be copied there, and waited for, at each call.
        number = torch.arange(2, dtype=low.dtype, device=low.device).reshape(2, *axes)
        self.sign = 1 - 2 * number
        self.valley_of_f = valley
        self.valley = valley + math.pi * number
        self.value_low, self.value_up = self.value(low), self.value(up)
        self.is_far = torch.maximum(low.abs(), up.abs()) > _LARGEST_ANGLE

    def value(self, x: Tensor) -> Tensor:
        return self.sign * self.function(x)

    def inner_minimum(self, slope: Tensor) -> Tensor:
        """The local minimum of ``f - slope x`` that may be least, or an end of the interval."""
        first = torch.asin(slope.clamp(-1.0, 1.0)) + self.valley
        last_turn = torch.floor((self.up - first) / _TURN)
        first_turn = torch.ceil((self.low - first) / _TURN)
        turns = torch.where(slope > 0, last_turn, first_turn)
        return torch.clamp(first + turns * _TURN, self.low, self.up)

    def minimiser(self, slope: Tensor) -> Tensor:
        """Where ``f - slope x`` is least on the interval, approximately."""
        x = self.inner_minimum(slope)
        best = self.value(x) - slope * x
        for end, value in ((self.low, self.value_low), (self.up, self.value_up)):
            gap = value - slope * end
            x = torch.where(gap < best, end, x)
            best = torch.minimum(gap, best)
        return x

    def intercept(self, slope: Tensor) -> Tensor:
        """A sound intercept for any slope; differentiable in it."""
        with torch.no_grad():
            x = self.inner_minimum(slope)
            value = self.value(x)
            slack = (4 * torch.finfo(x.dtype).eps * (x.abs() + 8)).square()
        ends = torch.minimum(
            gap_below(self.value_low, slope, self.low), gap_below(self.value_up, slope, self.up)
        )
        return torch.minimum(ends, gap_below(value, slope, x) - slack)

    def least(self) -> Tensor:
        """Lower bounds of ``f`` and of ``-f`` on the interval."""
        constant = self.intercept(torch.zeros_like(self.value_low)).clamp(min=-1.0)
        return torch.where(self.is_far, -1.0, constant)

    def slope_range(self) -> tuple[Tensor, Tensor]:
        """Least and largest derivative, approximately: ``f'(x) = f(x + pi/2)`` has its valley a
        quarter earlier."""
        quarter = math.pi / 2
        derivative = _BestLines(
            lambda x: self.function(x + quarter), self.valley_of_f - quarter, self.low, self.up
        )
        least = derivative.least()
        return least, -least.flip(0)

    def best_fraction(self, flattest: Tensor, steepest: Tensor) -> Tensor:
        """Where in the slope range the line highest at the midpoint is."""
        middle = self.low * 0.5 + self.up * 0.5
        left, right = torch.zeros_like(flattest), torch.ones_like(flattest)
        for _ in range(_BISECTIONS):
            fraction = (left + right) * 0.5
            should_rise = self.minimiser(flattest + fraction * (steepest - flattest)) < middle
            left, right = (
                torch.where(should_rise, fraction, left),
                torch.where(should_rise, right, fraction),
            )
        return (left + right) * 0.5

    def lines(self, fraction: Tensor | None) -> tuple[Tensor, Tensor]:
        """Slopes and intercepts."""
        flattest, steepest = self.slope_range()
        if fraction is None:
            fraction = self.best_fraction(flattest, steepest)
        slope = flattest + fraction * (steepest - flattest)
        intercept = torch.where(self.is_far, -torch.inf, self.intercept(slope))
        return lower_or_constant(slope, intercept, self.least(), self.low, self.up)


def _row(op: str, function: Callable[[Tensor], Tensor], valley: float) -> None:
    def interval(node: Node, lowers: Operands, uppers: Operands) -> Pair:
        low, negated_up = _BestLines(function, valley, lowers[0], uppers[0]).least()
        return low, -negated_up

    def default_alpha(node: Node, lowers: Operands, uppers: Operands) -> Tensor:
        problem = _BestLines(function, valley, lowers[0], uppers[0])
        return problem.best_fraction(*problem.slope_range())

    def relax(node: Node, lowers: Operands, uppers: Operands, alpha: Tensor | None) -> Relaxation:
        slopes, intercepts = _BestLines(function, valley, lowers[0], uppers[0]).lines(alpha)
        return Relaxation((slopes[0],), intercepts[0], (-slopes[1],), -intercepts[1])

    register_nonlinear(op, interval, relax, alphas=2, default_alpha=default_alpha)


_row("Sin", torch.sin, -math.pi / 2)
_row("Cos", torch.cos, math.pi)
