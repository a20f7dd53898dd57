"""S-shaped functions: convex left of zero, concave right of it, increasing, bounded.

These are sigmoid, tanh, erf and the arc tangent.

Lower line on ``[l, u]``. Let ``t(u)`` be the point left of zero whose tangent passes through
``(u, f(u))``, and ``t(u) = u`` for ``u <= 0``. If ``l < t(u)``, the tangent at any ``p`` in
``[l, t(u)]`` lies below ``f`` (alpha chooses ``p``); otherwise the chord does. The line that
maximises the area below it touches at ``min((l+u)/2, t(u))``, as the tangent's value at the
midpoint grows until ``p`` reaches it.

Soundness does not depend on ``t``, which comes from a table: on ``[l, min(u,0)]`` the function is
convex and the slope ``m`` is the derivative at ``p``, or ``p = l`` and ``m`` is at most the
derivative there, so ``f(x) - m x`` is at least ``f(p) - m p`` (up to the tangent error of
``lines``); on ``[max(l,0), u]`` the function is concave, so it is smallest at an end. The intercept
is therefore ``min(f(p) - m p, f(u) - m u)``; for ``l >= 0`` again ``p = l``.

Upper line: all satisfy ``f(x) = shift - f(-x)``, so it is the mirrored lower line on
``[-u, -l]``. Both are computed together, on a leading axis of extent 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from bitcrown.bounds.relaxations.lines import (
    above,
    below,
    gap_below,
    lower_or_constant,
    mix,
    padding,
    reach,
    secant_slope,
)
from bitcrown.bounds.relaxations.registry import Operands, Pair, Relaxation, register_nonlinear
from bitcrown.model.graph import Node

_TABLE_SIZE = 8192
_TABLE_END = 24.0
"""The table is uniform in ``log(1 + u)`` up to here and extrapolated beyond."""


@dataclass(frozen=True)
class _Curve:
    """``value`` takes values in ``[floor, shift - floor]`` and ``f(x) = shift - f(-x)``; ``slope``
    is the derivative, computed with relative error ``slope_ulps`` epsilons plus ``slope_loss``
    epsilons absolutely. Tangent points are sought down to ``-farthest``."""

    op: str
    value: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    floor: float
    shift: float
    slope_ulps: float = 8.0
    slope_loss: float = 0.0
    farthest: float = 60.0

    @property
    def ceiling(self) -> float:
        return self.shift - self.floor


def _sigmoid_slope(x: Tensor) -> Tensor:
    return torch.sigmoid(x) * torch.sigmoid(-x)


def _tanh_slope(x: Tensor) -> Tensor:
    return 4 * _sigmoid_slope(2 * x)


def _erf_slope(x: Tensor) -> Tensor:
    return torch.exp(-x * x) * 1.1283791670955126


def _atan_slope(x: Tensor) -> Tensor:
    return torch.reciprocal(1 + x * x)


# The rounding of x^2 makes the relative error of exp(-x^2) about x^2 epsilons: below 40 for x^2 <=
# 32, and beyond that below 1e3 * exp(-32) < 1e-10 epsilons absolutely.
_SIGMOID = _Curve("Sigmoid", torch.sigmoid, _sigmoid_slope, floor=0.0, shift=1.0)
_TANH = _Curve("Tanh", torch.tanh, _tanh_slope, floor=-1.0, shift=0.0)
_ERF = _Curve(
    "Erf", torch.erf, _erf_slope, floor=-1.0, shift=0.0, slope_ulps=48.0, slope_loss=1e-10
)
# math.pi / 2 lies below pi / 2, the next float above it
_HALF_PI = math.nextafter(math.pi / 2, 2.0)
_ATAN = _Curve("Atan", torch.atan, _atan_slope, floor=-_HALF_PI, shift=0.0, farthest=1e6)


@lru_cache(maxsize=32)
def _tangent_table(curve: _Curve, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``t(u)`` at ``log(1 + u) = 0 .. _TABLE_END``, by bisection in float64."""
    u = torch.expm1(torch.linspace(0.0, _TABLE_END, _TABLE_SIZE, dtype=torch.float64))
    value = curve.value(u)
    left, right = -u.clamp(max=curve.farthest), torch.zeros_like(u)
    for _ in range(60):
        middle = (left + right) * 0.5
        # Left of t(u) the tangent passes below (u, f(u)).
        passes_below = value - curve.value(middle) > curve.slope(middle) * (u - middle)
        left, right = (
            torch.where(passes_below, middle, left),
            torch.where(passes_below, right, middle),
        )
    return left.to(device=device, dtype=dtype)


def _tangent_point(curve: _Curve, u: Tensor) -> Tensor:
    """``t(u)``, approximately."""
    table = _tangent_table(curve, u.dtype, u.device)
    position = torch.log1p(u.clamp(min=0)) * ((_TABLE_SIZE - 1) / _TABLE_END)
    index = position.clamp(max=_TABLE_SIZE - 2).long()
    left = table[index]
    interpolated = left + (position - index) * (table[index + 1] - left)
    return torch.where(u > 0, interpolated, u)


def _fractions(low: Tensor, up: Tensor, tangent: Tensor) -> Tensor:
    """The best ``p = min((l+u)/2, t(u))`` as a fraction of the way from ``l`` to ``t(u)``."""
    room = (tangent - low).clamp(min=torch.finfo(low.dtype).tiny)
    return ((up * 0.5 - low * 0.5) / room).clamp(max=1.0)


def _mirrored(low: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    return torch.stack([low, -up]), torch.stack([up, -low])


def _lower_lines(
    curve: _Curve, low: Tensor, up: Tensor, fraction: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Slope and intercept of the line below ``curve`` on ``[low, up]``; ``fraction`` in ``[0, 1]``
    chooses ``p``."""
    value_low, value_up = curve.value(low), curve.value(up)
    tangent = _tangent_point(curve, up)
    has_tangent = tangent > low
    tangent = torch.maximum(tangent, low)
    if fraction is None:
        fraction = _fractions(low, up, tangent)
    p = mix(low, tangent, fraction)
    chord = secant_slope(low, up, value_low, value_up)
    chord = torch.minimum(torch.maximum(chord, curve.slope(up)), curve.slope(low))
    slope = torch.where(has_tangent, curve.slope(p), chord)
    epsilon = torch.finfo(low.dtype).eps
    slope_error = slope * (curve.slope_ulps * epsilon) + (
        curve.slope_loss * epsilon + padding(low.dtype)[1]
    )
    at_p = gap_below(curve.value(p), slope, p) - slope_error * reach(p, low, up)
    intercept = torch.minimum(at_p, gap_below(value_up, slope, up))
    return lower_or_constant(slope, intercept, below(value_low).clamp(min=curve.floor), low, up)


def _row(curve: _Curve) -> None:
    def interval(node: Node, lowers: Operands, uppers: Operands) -> Pair:
        low, up = below(curve.value(lowers[0])), above(curve.value(uppers[0]))
        return low.clamp(min=curve.floor), up.clamp(max=curve.ceiling)

    def default_alpha(node: Node, lowers: Operands, uppers: Operands) -> Tensor:
        low, up = _mirrored(lowers[0], uppers[0])
        return _fractions(low, up, torch.maximum(_tangent_point(curve, up), low))

    def relax(node: Node, lowers: Operands, uppers: Operands, alpha: Tensor | None) -> Relaxation:
        low, up = _mirrored(lowers[0], uppers[0])
        slopes, intercepts = _lower_lines(curve, low, up, alpha)
        upper_intercept = -intercepts[1]
        if curve.shift:
            shifted = curve.shift - intercepts[1]
            upper_intercept = shifted + shifted.abs() * torch.finfo(low.dtype).eps
        return Relaxation((slopes[0],), intercepts[0], (slopes[1],), upper_intercept)

    register_nonlinear(curve.op, interval, relax, alphas=2, default_alpha=default_alpha)


for _curve in (_SIGMOID, _TANH, _ERF, _ATAN):
    _row(_curve)
